// A CUDA device as tables use it: torch's memory and current stream, kernels, and what they tell
// the host.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "ops/embedding/device/lanes_cuda.h"
#include "ops/embedding/device/lookup.h"
#include "ops/embedding/device/pinned_cuda.h"
#include "ops/embedding/device/primitives_cuda.h"
#include "ops/embedding/memory.h"
#include "ops/embedding/new_tensors.h"

namespace vramkit::embedding::device {

/// Memory of torch's allocator for the stream that was current.
class CudaMemory : public Memory {
 public:
  CudaMemory(uint64_t bytes, int device, cudaStream_t stream)
      : tensor_(new_on_cuda(static_cast<int64_t>(bytes), ScalarType::Byte, device)),
        stream_(stream) {}
  char* data() override { return static_cast<char*>(tensor_.mutable_data_ptr()); }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::Tensor tensor_;
  cudaStream_t stream_;
};

/// Selects a device and its current stream as long as it lives. Calls for one table follow each
/// other on the device, whatever streams they are made on.
class Cuda {
 public:
  /// Host memory that kernels write, and events.
  class Mailbox {
   public:
    // With the alarm about a page of memory.
    static constexpr size_t kAnswerBytes = 4000;

    explicit Mailbox(int device) {
      const torch::stable::accelerator::DeviceGuard guard(device);
      void* memory = nullptr;
      check_cuda(cudaHostAlloc(&memory, sizeof(Letter), cudaHostAllocMapped), "cudaHostAlloc");
      letter_ = new (memory) Letter{};
      check_cuda(cudaEventCreateWithFlags(&answered_, cudaEventDisableTiming), "cudaEventCreate");
      check_cuda(cudaEventCreateWithFlags(&last_, cudaEventDisableTiming), "cudaEventCreate");
    }
    Mailbox(const Mailbox&) = delete;
    Mailbox& operator=(const Mailbox&) = delete;
    ~Mailbox() {
      warn_on_failure(cudaEventDestroy(answered_), "cudaEventDestroy");
      warn_on_failure(cudaEventDestroy(last_), "cudaEventDestroy");
      warn_on_failure(cudaFreeHost(letter_), "cudaFreeHost");
    }

    /// Kernels raise it; unified addressing gives it one address on both sides.
    Alarm& alarm() { return letter_->alarm; }

   private:
    friend class Cuda;
    struct Letter {
      Alarm alarm;
      alignas(16) char answer[kAnswerBytes];
    };
    static void warn_on_failure(cudaError_t status, const char* call) {
      if (status == cudaSuccess || status == cudaErrorCudartUnloading) return;
      std::fprintf(stderr, "vramkit: %s failed: %s\n", call, cudaGetErrorString(status));
    }

    Letter* letter_ = nullptr;
    cudaEvent_t answered_ = nullptr;
    cudaEvent_t last_ = nullptr;
    cudaStream_t last_stream_ = nullptr;
    bool used_ = false;
  };

  static constexpr bool kIsImmediate = false;

  Cuda(int device, Mailbox& mailbox) : Cuda(device, std::vector<Mailbox*>{&mailbox}) {}

  /// For calls of several tables, one or more.
  Cuda(int device, std::vector<Mailbox*> mailboxes)
      : device_(device),
        guard_(device),
        mailboxes_(std::move(mailboxes)),
        mailbox_(*mailboxes_[0]),
        allocate_([this](uint64_t bytes) {
          return std::make_unique<CudaMemory>(bytes, device_, stream_);
        }) {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream) == AOTI_TORCH_SUCCESS,
                    "torch does not tell the current stream of cuda:", device_);
    stream_ = static_cast<cudaStream_t>(stream);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream_, &capture), "cudaStreamIsCapturing");
    is_capturing_ = capture != cudaStreamCaptureStatusNone;
    if (is_capturing_) return;
    for (const Mailbox* const mailbox : mailboxes_) {
      if (!mailbox->used_ || mailbox->last_stream_ == stream_) continue;
      check_cuda(cudaStreamWaitEvent(stream_, mailbox->last_, 0), "cudaStreamWaitEvent");
    }
  }
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda() {
    if (is_capturing_) return;
    for (Mailbox* const mailbox : mailboxes_) {
      Mailbox::warn_on_failure(cudaEventRecord(mailbox->last_, stream_), "cudaEventRecord");
      mailbox->last_stream_ = stream_;
      mailbox->used_ = true;
    }
  }

  bool is_capturing() const { return is_capturing_; }

  /// What has the host wait for the device cannot be in a graph.
  void check_waiting(const char* what) const {
    STD_TORCH_CHECK(!is_capturing_, "vramkit: ", what,
                    " cannot be captured in a CUDA graph: the host must know which ids have no row "
                    "yet; capture lookups in eval mode, or under torch.no_grad()");
  }

  std::unique_ptr<Memory> allocate(uint64_t bytes) { return allocate_(bytes); }

  /// Frees memory that kernels may be using.
  void retire(std::unique_ptr<Memory> memory) {
    if (memory == nullptr) return;
    // The allocator would give it to the stream that it came from, which may be ahead.
    if (static_cast<CudaMemory&>(*memory).stream() != stream_) synchronize();
  }

  /// Locked host memory, by its address on the device.
  std::unique_ptr<Memory> allocate_host(uint64_t bytes) {
    return std::make_unique<PinnedMemory>(bytes);
  }
  /// Frees it when the table's kernels are done with it, those of CUDA graphs too.
  void retire_host(std::vector<std::unique_ptr<Memory>> memory, bool has_graphs) {
    // Waiting is refused while some stream is being captured, but these kernels are older.
    const Uncaptured uncaptured;
    if (mailbox_.used_) check_cuda(cudaEventSynchronize(mailbox_.last_), "cudaEventSynchronize");
    if (has_graphs) check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    memory.clear();
  }

  void fill(void* to, int byte, uint64_t bytes) {
    if (bytes != 0) check_cuda(cudaMemsetAsync(to, byte, bytes, stream_), "cudaMemsetAsync");
  }
  /// Returns when `from` has been read.
  void write(void* to, const void* from, uint64_t bytes) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_),
               "cudaMemcpyAsync");
  }
  void read(void* to, const void* from, uint64_t bytes) {
    check_waiting("this call");
    copy_answer(from, bytes);
    synchronize();
    std::memcpy(to, mailbox_.letter_->answer, bytes);
  }

  /// Asks for a value, and waits for it: what is started in between is not waited for.
  void ask(const void* from, uint64_t bytes) {
    copy_answer(from, bytes);
    check_cuda(cudaEventRecord(mailbox_.answered_, stream_), "cudaEventRecord");
  }
  void answer(void* to, uint64_t bytes) {
    check_cuda(cudaEventSynchronize(mailbox_.answered_), "cudaEventSynchronize");
    std::memcpy(to, mailbox_.letter_->answer, bytes);
  }

  template <class F>
  void run(int64_t count, const F& f) {
    if (count == 0) return;
    item_kernel<<<blocks_for(count), kThreads, 0, stream_>>>(count, f);
    check_cuda(cudaGetLastError(), "a kernel of an embedding table");
  }
  template <class F>
  void run_groups(const F& f, uint32_t lanes) {
    const int64_t count = f.items();
    if (count == 0) return;
    group_kernel<<<blocks_for(count * lanes), kThreads, 0, stream_>>>(count, lanes, f);
    check_cuda(cudaGetLastError(), "a kernel of an embedding table");
  }
  template <class F>
  void run_teams(const F& f, uint32_t lanes) {
    team_kernel<<<kTeams, kTeamThreads, 0, stream_>>>(lanes, f);
    check_cuda(cudaGetLastError(), "a kernel of an embedding table");
  }

  template <class Key>
  void sort(const Key* keys, Key* sorted_keys, const uint32_t* values, uint32_t* sorted_values,
            int64_t count, int bits = 8 * sizeof(Key)) {
    sort_pairs(place(), keys, sorted_keys, values, sorted_values, count, std::max(bits, 1));
  }
  /// The same, in storage of at least sort_bytes().
  uint64_t sort_bytes(int64_t count, int bits) const {
    return count == 0 ? 0 : device::sort_bytes(count, bits);
  }
  void sort(const uint32_t* keys, uint32_t* sorted_keys, const uint32_t* values,
            uint32_t* sorted_values, int64_t count, int bits, char* storage,
            uint64_t storage_bytes) {
    sort_pairs_in(stream_, storage, storage_bytes, keys, sorted_keys, values, sorted_values, count,
                  bits);
  }
  void select(const uint8_t* flags, int64_t count, uint32_t* chosen, uint32_t* number) {
    select_flagged(place(), flags, count, chosen, number);
  }
  void sum(const double* values, int64_t count, double* total) {
    add_up(place(), values, count, total);
  }

 private:
  /// Lets the thread make calls that are unsafe while it captures a graph.
  class Uncaptured {
   public:
    Uncaptured() { exchange(); }
    Uncaptured(const Uncaptured&) = delete;
    Uncaptured& operator=(const Uncaptured&) = delete;
    ~Uncaptured() { exchange(); }

   private:
    void exchange() {
      Mailbox::warn_on_failure(cudaThreadExchangeStreamCaptureMode(&mode_),
                               "cudaThreadExchangeStreamCaptureMode");
    }
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  };

  // Blocks for the few rows that occur very often; more than multiprocessors.
  static constexpr unsigned int kTeams = 256;

  Place place() const { return {stream_, allocate_}; }
  void synchronize() { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
  void copy_answer(const void* from, uint64_t bytes) {
    STD_TORCH_CHECK(bytes <= Mailbox::kAnswerBytes, "vramkit: an answer of ", bytes, " bytes");
    check_cuda(
        cudaMemcpyAsync(mailbox_.letter_->answer, from, bytes, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync");
  }
  static unsigned int blocks_for(int64_t threads) {
    constexpr int64_t kMost = (int64_t{1} << 31) - 1;
    return static_cast<unsigned int>(std::min((threads + kThreads - 1) / kThreads, kMost));
  }

  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Mailbox*> mailboxes_;
  Mailbox& mailbox_;  // the first of them
  Allocate allocate_;
  cudaStream_t stream_ = nullptr;
  bool is_capturing_ = false;
};

}  // namespace vramkit::embedding::device
