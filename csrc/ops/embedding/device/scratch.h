// Memory for the intermediate results of kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "ops/embedding/memory.h"

namespace vramkit::embedding::device {

/// A piece of a device's memory for a kernel's intermediate results. Pieces begin at multiples of
/// 256 bytes.
class Scratch {
 public:
  /// Adds a piece, and returns its number.
  template <class T>
  size_t add(uint64_t count) {
    offsets_.push_back(bytes_);
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return offsets_.size() - 1;
  }
  template <class Device>
  void allocate(Device& device) {
    memory_ = device.allocate(std::max<uint64_t>(bytes_, 256));
  }
  template <class T>
  T* piece(size_t number) const {
    return reinterpret_cast<T*>(memory_->data() + offsets_[number]);
  }

 private:
  std::vector<uint64_t> offsets_;
  uint64_t bytes_ = 0;
  std::unique_ptr<Memory> memory_;
};

}  // namespace vramkit::embedding::device
