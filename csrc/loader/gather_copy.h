// How the rows of one chunk of a job are copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "loader/gather_plan.h"

namespace vramkit {

/// Chunks of about this size are what threads take turns at.
inline constexpr uint64_t kChunkBytes = 256 * 1024;

/// One piece's share of a job, cut into chunks: of several rows, or of a part of one large row.
class PieceCopy {
 public:
  /// `destination` has room for `count` rows. Throws kInvalidArgument where it cannot have.
  PieceCopy(const Piece& piece, uint64_t destination, uint64_t count);

  uint64_t chunks() const { return chunks_; }
  uint64_t bytes() const { return bytes_; }

  /// Copies the rows, or the part of a row, that chunk number `chunk` stands for. Every index is in
  /// range. With `streamed`, stores may bypass the caches: the caller fences.
  void run(uint64_t chunk, std::span<const int64_t> indices, bool streamed) const noexcept;

 private:
  void copy_rows(const int64_t* indices, uint64_t count, char* to, bool streamed) const noexcept;

  const Piece* piece_;  // lives as long as the job's plan
  char* destination_;
  uint64_t count_;
  uint64_t bytes_;
  uint64_t rows_a_chunk_ = 1;
  uint64_t parts_a_row_ = 1;
  uint64_t chunks_ = 0;
};

}  // namespace vramkit
