#include "loader/permutation.h"

#include <algorithm>

#include "base/error.h"

namespace vramkit {
namespace {

uint32_t checked(uint64_t count) {
  if (count > Permutation::kMostEntries) {
    throw_error(Status::kInvalidArgument, "a permutation has at most %llu entries, got %llu",
                static_cast<unsigned long long>(Permutation::kMostEntries),
                static_cast<unsigned long long>(count));
  }
  return static_cast<uint32_t>(count);
}

}  // namespace

// torch seeds with the low 32 bits.
Permutation::Permutation(uint64_t seed, uint64_t count)
    : count_(checked(count)), random_(static_cast<uint32_t>(seed)), shifts_(count_) {}

void Permutation::next(std::span<int64_t> out) {
  if (out.size() > left()) {
    throw_error(Status::kInvalidArgument,
                "the permutation has %llu entries left, got a request "
                "for %llu",
                static_cast<unsigned long long>(left()),
                static_cast<unsigned long long>(out.size()));
  }
  const auto end = static_cast<uint32_t>(at_ + out.size());
  int64_t* to = out.data();
  while (at_ < end) {
    if (at_ == drawn_) draw_partners();
    const uint32_t part = std::min(end, drawn_) - at_;
    swap_up_to(at_ + part, to);
    to += part;
  }
}

void Permutation::draw_partners() {
  random_.advance();
  const uint32_t* const shifts = &shifts_[0];
  const uint32_t block = std::min<uint32_t>(Mt19937::kBlock, count_ - at_);
  for (uint32_t k = 0; k < block; ++k) {
    const uint32_t left = count_ - at_ - k;
    const uint32_t partner = at_ + k + random_[k] % left;
    // By the time of the swaps, the memory that they need is in the cache or under way.
    __builtin_prefetch(&shifts[partner], 1);
    partners_[k] = partner;
  }
  drawn_ = at_ + block;
}

void Permutation::swap_up_to(uint32_t end, int64_t* out) {
  // Whole blocks are drawn, from position 0 on.
  const uint32_t* partner = &partners_[at_ % Mt19937::kBlock];
  uint32_t* const shifts = &shifts_[0];
  for (uint32_t position = at_; position < end; ++position) {
    const uint32_t other = *partner++;
    const uint32_t mine = shifts[position] + position;
    *out++ = shifts[other] + other;
    // This position is never read again, so only the other one is written.
    shifts[other] = mine - other;
  }
  at_ = end;
}

}  // namespace vramkit
