// What a Gatherer copies from: arrays of rows, each in one or several parts of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vramkit {

/// Rows that lie in memory at a constant distance.
struct Segment {
  uint64_t address;    // of its first row
  uint64_t first_row;  // its number in the array
  uint64_t rows;
};

/// An array of rows of equal size. Its segments are sorted by their first rows and leave none out.
struct Piece {
  std::vector<Segment> segments;
  uint64_t row_bytes;
  uint64_t row_stride_bytes;  // from the start of a row to that of the next one of its segment
  uint64_t rows;

  const char* row(uint64_t number) const {
    const Segment& held = segment_of(number);
    return reinterpret_cast<const char*>(held.address +
                                         (number - held.first_row) * row_stride_bytes);
  }
  /// The one that has the row.
  const Segment& segment_of(uint64_t number) const {
    return segments.size() == 1 ? segments.front() : find_segment(number);
  }
  /// Whether consecutive rows are one stretch of memory.
  bool is_dense() const { return segments.size() == 1 && row_stride_bytes == row_bytes; }

 private:
  const Segment& find_segment(uint64_t number) const;
};

/// What is known of an array before it has been checked.
struct PieceSpec {
  std::span<const Segment> segments;
  uint64_t row_bytes;
  uint64_t row_stride_bytes;
};

/// The arrays that are gathered together with one index list. Immutable, so any thread may use it;
/// it borrows the memory of the rows, which must stay until the last job on it is over.
class GatherPlan {
 public:
  /// Throws kInvalidArgument where segments leave rows out or overlap, where an address is null,
  /// or where an array does not fit the address space.
  explicit GatherPlan(std::span<const PieceSpec> specs);

  const std::vector<Piece>& pieces() const { return pieces_; }

  /// Throws kInvalidArgument, with the index, its position and the number of rows, where an index
  /// is not in [0, rows) of every array.
  void check_indices(std::span<const int64_t> indices) const;
  /// Throws kInvalidArgument unless there is one destination a piece.
  void check_destination_count(size_t count) const;

 private:
  std::vector<Piece> pieces_;
  size_t shortest_ = 0;  // the piece with the fewest rows
};

/// The product; throws kInvalidArgument, naming `what`, where it exceeds 64 bits.
uint64_t checked_product(uint64_t a, uint64_t b, const char* what);
/// Throws kInvalidArgument where [address, address + bytes) wraps, or is not empty and at null.
void check_extent(uint64_t address, uint64_t bytes, const char* what);

}  // namespace vramkit
