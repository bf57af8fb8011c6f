#include "pool/replay.h"

#include "base/error.h"

namespace vramkit {

uint64_t& Replay::address_of(int64_t id) {
  if (id < 0 || static_cast<uint64_t>(id) >= addresses_.size()) {
    throw_error(Status::kInvalidArgument, "block %lld is not between 0 and %zu",
                static_cast<long long>(id), addresses_.size());
  }
  return addresses_[static_cast<size_t>(id)];
}

Status Replay::step(Op op, int64_t id, int64_t size, int32_t stream) {
  uint64_t& address = address_of(id);
  if (op != Op::kAllocate && op != Op::kFree) {
    throw_error(Status::kInvalidArgument,
                "block %lld: the operation %u is unknown; 0 allocates and 1 frees",
                static_cast<long long>(id), static_cast<unsigned>(op));
  }
  if (op == Op::kFree) {
    if (address == 0) {
      throw_error(Status::kInvalidArgument, "block %lld is freed but not live",
                  static_cast<long long>(id));
    }
    pool_.release_block(address);
    address = 0;
    return Status::kOk;
  }
  if (address != 0 || size <= 0) {
    throw_error(Status::kInvalidArgument, "block %lld: %s", static_cast<long long>(id),
                address != 0 ? "allocated while it is live" : "its size must be positive");
  }
  return pool_.allocate(static_cast<uint64_t>(size), static_cast<uint64_t>(stream), 0, &address);
}

}  // namespace vramkit
