// Host memory that is reserved before a change begins, so that the change itself cannot fail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>

#include "base/bytes.h"

namespace vramkit {

/// Afterwards `items` takes `count` elements more without allocating. Grows as push_back does.
template <typename Vector>
void reserve_more(Vector& items, size_t count) {
  const size_t needed = items.size() + count;
  if (needed > items.capacity()) items.reserve(std::max(needed, 2 * items.capacity()));
}

/// Memory for the nodes of sets and maps, all of one size. Not thread-safe; outlives its
/// containers.
class NodePool {
 public:
  explicit NodePool(size_t node_bytes) : node_bytes_(node_bytes) {}
  NodePool(const NodePool&) = delete;
  NodePool& operator=(const NodePool&) = delete;
  ~NodePool() {
    while (spares_ != nullptr) ::operator delete(pop());
  }

  size_t node_bytes() const { return node_bytes_; }
  /// Afterwards there are at least `count` nodes, in use or spare.
  void reserve(size_t count) {
    for (; made_ < count; ++made_) give_back(::operator new(node_bytes_));
  }
  void* take() {
    if (spares_ == nullptr) reserve(made_ + 1);
    return pop();
  }
  void give_back(void* node) noexcept { spares_ = new (node) Spare{spares_}; }

 private:
  struct Spare {
    Spare* next;
  };

  void* pop() {
    Spare* const spare = spares_;
    spares_ = spare->next;
    return spare;
  }

  const size_t node_bytes_;
  size_t made_ = 0;
  Spare* spares_ = nullptr;
};

/// Lets a std::set or std::map take its nodes from a NodePool.
template <typename T>
class NodeAllocator {
 public:
  using value_type = T;

  /// Enough for a node of a tree: three pointers and a colour besides the value.
  static constexpr size_t kNodeBytes = align_up(sizeof(T), sizeof(void*)) + 4 * sizeof(void*);

  explicit NodeAllocator(NodePool& nodes) : nodes_(&nodes) {}
  template <typename Other>
  explicit(false) NodeAllocator(const NodeAllocator<Other>& other) : nodes_(&other.nodes()) {}

  T* allocate(size_t count) {
    if (count != 1 || sizeof(T) > nodes_->node_bytes()) throw std::bad_alloc();
    return static_cast<T*>(nodes_->take());
  }
  void deallocate(T* node, size_t) noexcept { nodes_->give_back(node); }

  NodePool& nodes() const { return *nodes_; }
  template <typename Other>
  bool operator==(const NodeAllocator<Other>& other) const {
    return nodes_ == &other.nodes();
  }

 private:
  NodePool* nodes_;
};

}  // namespace vramkit
