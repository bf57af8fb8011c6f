#include "loader/gather_copy.h"

#include <algorithm>
#include <cstring>

#include "loader/stream_copy.h"

namespace vramkit {
namespace {

constexpr uint64_t kLineBytes = 64;
// Shorter rows are stored through the caches: parts of lines are what streaming is bad at.
constexpr uint64_t kStreamedRowBytes = 256;
// How far ahead rows are fetched: enough of them to cover a miss, without evicting each other.
constexpr uint64_t kPrefetchBytes = 4 * 1024;
constexpr uint64_t kMostRowsAhead = 16;
// Of longer rows the CPU's own prefetcher fetches the rest.
constexpr uint64_t kMostLinesAhead = 16;

uint64_t rows_ahead(uint64_t row_bytes) {
  return std::clamp<uint64_t>(kPrefetchBytes / row_bytes, 1, kMostRowsAhead);
}

void prefetch(const char* row, uint64_t bytes) {
  const uint64_t covered = std::min(bytes, kMostLinesAhead * kLineBytes);
  for (uint64_t at = 0; at < covered; at += kLineBytes) __builtin_prefetch(row + at, 0, 0);
  // A row that begins within a line ends in one more.
  __builtin_prefetch(row + covered - 1, 0, 0);
}

/// Copies row by row with `copy`, and fetches coming rows meanwhile.
template <typename Copy>
void each_row(const Piece& piece, const int64_t* indices, uint64_t count, char* to, Copy copy) {
  const uint64_t size = piece.row_bytes;
  const uint64_t ahead = std::min(rows_ahead(size), count);
  const char* coming[kMostRowsAhead];  // row k at k % kMostRowsAhead, found once
  const auto find = [&](uint64_t k) {
    const char* const row = piece.row(static_cast<uint64_t>(indices[k]));
    coming[k % kMostRowsAhead] = row;
    prefetch(row, size);
  };
  for (uint64_t k = 0; k < ahead; ++k) find(k);
  for (uint64_t k = 0; k < count; ++k, to += size) {
    const char* const row = coming[k % kMostRowsAhead];
    if (k + ahead < count) find(k + ahead);
    copy(to, row);
  }
}

/// Rows whose size the compiler knows, in one segment: a few instructions each.
template <size_t kBytes>
void each_small_row(const Piece& piece, const int64_t* indices, uint64_t count, char* to) {
  const auto* const base = reinterpret_cast<const char*>(piece.segments.front().address);
  const uint64_t stride = piece.row_stride_bytes;
  const uint64_t ahead = std::min<uint64_t>(kMostRowsAhead, count);
  const auto row = [&](uint64_t k) { return base + static_cast<uint64_t>(indices[k]) * stride; };
  for (uint64_t k = 0; k + ahead < count; ++k, to += kBytes) {
    __builtin_prefetch(row(k + ahead), 0, 0);
    std::memcpy(to, row(k), kBytes);
  }
  for (uint64_t k = count - ahead; k < count; ++k, to += kBytes) std::memcpy(to, row(k), kBytes);
}

using SmallRows = void (*)(const Piece&, const int64_t*, uint64_t, char*);

SmallRows small_rows(const Piece& piece) {
  if (piece.segments.size() != 1) return nullptr;
  switch (piece.row_bytes) {
    case 1:
      return each_small_row<1>;
    case 2:
      return each_small_row<2>;
    case 4:
      return each_small_row<4>;
    case 8:
      return each_small_row<8>;
    case 16:
      return each_small_row<16>;
    case 32:
      return each_small_row<32>;
    case 64:
      return each_small_row<64>;
    default:
      return nullptr;
  }
}

bool is_consecutive(const int64_t* indices, uint64_t count) {
  for (uint64_t k = 1; k < count; ++k) {
    if (indices[k] != indices[k - 1] + 1) return false;
  }
  return true;
}

void copy_one(char* to, const char* from, uint64_t bytes, bool streamed) {
  if (streamed) {
    stream_unfenced(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace

PieceCopy::PieceCopy(const Piece& piece, uint64_t destination, uint64_t count)
    : piece_(&piece),
      destination_(reinterpret_cast<char*>(destination)),
      count_(count),
      bytes_(checked_product(count, piece.row_bytes, "destination")) {
  check_extent(destination, bytes_, "destination");
  if (bytes_ == 0) return;
  if (piece.row_bytes >= 2 * kChunkBytes) {
    parts_a_row_ = piece.row_bytes / kChunkBytes;
    chunks_ = checked_product(count, parts_a_row_, "destination");
  } else {
    rows_a_chunk_ = std::max<uint64_t>(1, kChunkBytes / piece.row_bytes);
    chunks_ = (count - 1) / rows_a_chunk_ + 1;
  }
}

void PieceCopy::run(uint64_t chunk, std::span<const int64_t> indices,
                    bool streamed) const noexcept {
  const uint64_t size = piece_->row_bytes;
  if (parts_a_row_ > 1) {
    const uint64_t row = chunk / parts_a_row_;
    const uint64_t part = chunk % parts_a_row_;
    const uint64_t begin = part * kChunkBytes;
    // The last part also takes what is less than a chunk.
    const uint64_t end = part + 1 == parts_a_row_ ? size : begin + kChunkBytes;
    const char* const from = piece_->row(static_cast<uint64_t>(indices[row]));
    copy_one(destination_ + row * size + begin, from + begin, end - begin, streamed);
    return;
  }
  const uint64_t first = chunk * rows_a_chunk_;
  const uint64_t rows = std::min(rows_a_chunk_, count_ - first);
  copy_rows(indices.data() + first, rows, destination_ + first * size, streamed);
}

void PieceCopy::copy_rows(const int64_t* indices, uint64_t count, char* to,
                          bool streamed) const noexcept {
  const uint64_t size = piece_->row_bytes;
  if (piece_->is_dense() && is_consecutive(indices, count)) {
    copy_one(to, piece_->row(static_cast<uint64_t>(indices[0])), count * size, streamed);
  } else if (const SmallRows small = small_rows(*piece_)) {
    small(*piece_, indices, count, to);
  } else if (streamed && size >= kStreamedRowBytes) {
    each_row(*piece_, indices, count, to,
             [size](char* target, const char* from) { stream_unfenced(target, from, size); });
  } else {
    each_row(*piece_, indices, count, to,
             [size](char* target, const char* from) { std::memcpy(target, from, size); });
  }
}

}  // namespace vramkit
