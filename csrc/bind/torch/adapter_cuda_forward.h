// The functions of PyTorch's CUDA allocator that the adapter leaves as they are.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace vramkit::adapter {

namespace torch_cuda = c10::cuda::CUDACachingAllocator;
using c10::DeviceIndex;
using c10::MempoolId_t;
using torch_cuda::CUDAAllocator;

class Forwarder : public CUDAAllocator {
 public:
  explicit Forwarder(CUDAAllocator& native) : native_(native) {}

  CUDAAllocator& native() const { return native_; }

  std::string name() override { return native_.name(); }
  void init(int device_count) override { native_.init(device_count); }
  bool initialized() override { return native_.initialized(); }
  void enable(bool value) override { native_.enable(value); }
  bool isEnabled() const override { return native_.isEnabled(); }

  // Native's: what compiled CUDA graphs compare the deleters of their private pools' tensors with.
  c10::DeleterFnPtr raw_deleter() const override { return native_.raw_deleter(); }
  void copy_data(void* destination, const void* source, std::size_t count) const override {
    native_.copy_data(destination, source, count);
  }

  // Only native's cache: the pools keep their pages. CUDA graphs ask for this at each capture.
  void emptyCache(MempoolId_t id) override { native_.emptyCache(id); }
  double getMemoryFraction(DeviceIndex device) override {
    return native_.getMemoryFraction(device);
  }
  void setMemoryFraction(double fraction, DeviceIndex device) override {
    native_.setMemoryFraction(fraction, device);
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex device) override {
    return native_.getMemoryInfo(device);
  }
  std::vector<torch_cuda::StreamSegmentSize> getExpandableSegmentSizes(
      DeviceIndex device) override {
    return native_.getExpandableSegmentSizes(device);
  }

  void releasePool(DeviceIndex device, MempoolId_t id) override { native_.releasePool(device, id); }
  int getPoolUseCount(DeviceIndex device, MempoolId_t id) override {
    return native_.getPoolUseCount(device, id);
  }
  void createOrIncrefPool(DeviceIndex device, MempoolId_t id,
                          std::shared_ptr<CUDAAllocator> allocator) override {
    native_.createOrIncrefPool(device, id, std::move(allocator));
  }
  void setUseOnOOM(DeviceIndex device, MempoolId_t id, bool use_on_oom) override {
    native_.setUseOnOOM(device, id, use_on_oom);
  }
  void setNoSplit(DeviceIndex device, MempoolId_t id) override { native_.setNoSplit(device, id); }
  bool checkPoolLiveAllocations(DeviceIndex device, MempoolId_t id,
                                const std::unordered_set<void*>& expected) override {
    return native_.checkPoolLiveAllocations(device, id, expected);
  }
  std::shared_ptr<torch_cuda::AllocatorState> getCheckpointState(DeviceIndex device,
                                                                 MempoolId_t id) override {
    return native_.getCheckpointState(device, id);
  }
  torch_cuda::CheckpointDelta setCheckpointPoolState(
      DeviceIndex device, std::shared_ptr<torch_cuda::AllocatorState> state) override {
    return native_.setCheckpointPoolState(device, std::move(state));
  }

  std::shared_ptr<void> getIpcDevPtr(std::string handle) override {
    return native_.getIpcDevPtr(std::move(handle));
  }

  bool isHistoryEnabled() override { return native_.isHistoryEnabled(); }
  void recordAnnotation(
      const std::vector<std::pair<std::string, std::string>>& annotation) override {
    native_.recordAnnotation(annotation);
  }
  void pushCompileContext(std::string& context) override { native_.pushCompileContext(context); }
  void popCompileContext() override { native_.popCompileContext(); }
  void setUserMetadata(const std::string& metadata) override { native_.setUserMetadata(metadata); }
  std::string getUserMetadata() override { return native_.getUserMetadata(); }
  void attachAllocatorTraceTracker(torch_cuda::AllocatorTraceTracker tracker) override {
    native_.attachAllocatorTraceTracker(std::move(tracker));
  }

 private:
  CUDAAllocator& native_;
};

}  // namespace vramkit::adapter
