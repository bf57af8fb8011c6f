#include "loader/gather_plan.h"

#include <algorithm>

#include "base/error.h"

namespace vramkit {
namespace {

unsigned long long printable(uint64_t value) { return value; }

Piece checked(const PieceSpec& spec, size_t number) {
  Piece piece{
      {spec.segments.begin(), spec.segments.end()}, spec.row_bytes, spec.row_stride_bytes, 0};
  for (const Segment& segment : piece.segments) {
    if (segment.first_row != piece.rows) {
      throw_error(
          Status::kInvalidArgument,
          "a segment of piece %zu begins at row %llu, but the segments before it end at row %llu; "
          "pass the segments sorted by first_row, without gaps",
          number, printable(segment.first_row), printable(piece.rows));
    }
    if (segment.rows > static_cast<uint64_t>(INT64_MAX) - piece.rows) {
      throw_error(Status::kInvalidArgument, "piece %zu has more rows than an int64 index can name",
                  number);
    }
    piece.rows += segment.rows;
    if (segment.rows == 0) continue;
    const uint64_t before_last =
        checked_product(segment.rows - 1, spec.row_stride_bytes, "segment");
    check_extent(segment.address, before_last, "segment");
    check_extent(segment.address + before_last, spec.row_bytes, "segment");
  }
  // A search among the segments must find the one that has the row.
  std::erase_if(piece.segments, [](const Segment& segment) { return segment.rows == 0; });
  return piece;
}

}  // namespace

const Segment& Piece::find_segment(uint64_t number) const {
  const auto after =
      std::upper_bound(segments.begin(), segments.end(), number,
                       [](uint64_t row, const Segment& s) { return row < s.first_row; });
  return *(after - 1);
}

GatherPlan::GatherPlan(std::span<const PieceSpec> specs) {
  pieces_.reserve(specs.size());
  for (const PieceSpec& spec : specs) {
    pieces_.push_back(checked(spec, pieces_.size()));
    if (pieces_.back().rows < pieces_[shortest_].rows) shortest_ = pieces_.size() - 1;
  }
}

void GatherPlan::check_indices(std::span<const int64_t> indices) const {
  if (pieces_.empty()) return;
  const uint64_t rows = pieces_[shortest_].rows;
  // No early end, so that compilers make vector code of it; a negative index is a large number.
  bool outside = false;
  for (const int64_t index : indices) outside |= static_cast<uint64_t>(index) >= rows;
  if (!outside) return;
  const auto bad = std::find_if(indices.begin(), indices.end(), [rows](int64_t index) {
    return static_cast<uint64_t>(index) >= rows;
  });
  throw_error(
      Status::kInvalidArgument,
      "index %lld at position %lld is out of range: piece %zu has %llu rows, so indices must be "
      "at least 0 and less than that",
      static_cast<long long>(*bad), static_cast<long long>(bad - indices.begin()), shortest_,
      printable(rows));
}

void GatherPlan::check_destination_count(size_t count) const {
  if (count == pieces_.size()) return;
  throw_error(Status::kInvalidArgument, "the plan has %zu pieces, got %zu destinations",
              pieces_.size(), count);
}

uint64_t checked_product(uint64_t a, uint64_t b, const char* what) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    throw_error(Status::kInvalidArgument,
                "a %s of %llu rows at a distance of %llu bytes exceeds 64 bits", what, printable(a),
                printable(b));
  }
  return product;
}

void check_extent(uint64_t address, uint64_t bytes, const char* what) {
  uint64_t end = 0;
  if ((address == 0 && bytes > 0) || __builtin_add_overflow(address, bytes, &end)) {
    throw_error(Status::kInvalidArgument, "a %s of %llu bytes cannot begin at address 0x%llx", what,
                printable(bytes), printable(address));
  }
}

}  // namespace vramkit
