// The C interface of the loader's copies: statuses and texts instead of exceptions.
#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "bind/c/guarded.h"
#include "bind/c/vramkit.h"
#include "loader/dma_cuda.h"
#include "loader/gather.h"
#include "loader/gather_plan.h"
#include "loader/permutation.h"
#include "loader/registration_cuda.h"
#include "loader/stream_copy.h"

using vramkit::Gatherer;
using vramkit::GatherPlan;
using vramkit::guarded;
using vramkit::need;

struct vramkit_gather_plan {
  std::shared_ptr<const GatherPlan> plan;
};

struct vramkit_gatherer {
  Gatherer gatherer;
};

struct vramkit_permutation {
  vramkit::Permutation permutation;
};

static_assert(VRAMKIT_MAX_PERMUTATION == vramkit::Permutation::kMostEntries);

namespace {

GatherPlan plan_of(const vramkit_piece* pieces, uint64_t count) {
  std::vector<std::vector<vramkit::Segment>> segments(count);
  std::vector<vramkit::PieceSpec> specs;
  for (uint64_t i = 0; i < count; ++i) {
    const vramkit_piece& piece = pieces[i];
    if (piece.segment_count > 0) need(piece.segments, "segments");
    for (const vramkit_segment& s : std::span(piece.segments, piece.segment_count)) {
      segments[i].push_back({s.address, s.first_row, s.rows});
    }
    specs.push_back({segments[i], piece.row_bytes, piece.row_stride_bytes});
  }
  return GatherPlan(specs);
}

}  // namespace

vramkit_status vramkit_stream_copy(void* to, const void* from, uint64_t size_bytes) {
  if (size_bytes > 0 && (to == nullptr || from == nullptr)) {
    return guarded([&] {
      need(to, "to");
      need(from, "from");
    });
  }
  vramkit::stream_copy(to, from, size_bytes);
  return VRAMKIT_OK;
}

vramkit_status vramkit_gather_plan_create(const vramkit_piece* pieces, uint64_t piece_count,
                                          vramkit_gather_plan** plan) {
  return guarded([&] {
    need(plan, "plan");
    if (piece_count > 0) need(pieces, "pieces");
    auto made = std::make_shared<const GatherPlan>(plan_of(pieces, piece_count));
    *plan = new vramkit_gather_plan{std::move(made)};
  });
}

void vramkit_gather_plan_destroy(vramkit_gather_plan* plan) { delete plan; }

vramkit_status vramkit_gatherer_create(uint32_t threads, vramkit_gatherer** gatherer) {
  return guarded([&] {
    need(gatherer, "gatherer");
    *gatherer = new vramkit_gatherer{Gatherer(threads)};
  });
}

vramkit_status vramkit_gatherer_close(vramkit_gatherer* gatherer) {
  return guarded([&] {
    need(gatherer, "gatherer");
    gatherer->gatherer.close();
  });
}

void vramkit_gatherer_destroy(vramkit_gatherer* gatherer) { delete gatherer; }

vramkit_status vramkit_gatherer_submit(vramkit_gatherer* gatherer, const vramkit_gather_plan* plan,
                                       const uint64_t* destinations, uint64_t destination_count,
                                       const int64_t* indices, uint64_t index_count,
                                       uint64_t* ticket) {
  return guarded([&] {
    need(gatherer, "gatherer");
    need(plan, "plan");
    if (destination_count > 0) need(destinations, "destinations");
    if (index_count > 0) need(indices, "indices");
    need(ticket, "ticket");
    *ticket = gatherer->gatherer.submit(plan->plan, {destinations, destination_count},
                                        {indices, index_count});
  });
}

vramkit_status vramkit_gatherer_wait(vramkit_gatherer* gatherer, uint64_t ticket,
                                     int64_t timeout_ns, int32_t* is_over) {
  return guarded([&] {
    need(gatherer, "gatherer");
    need(is_over, "is_over");
    std::optional<uint64_t> limit;
    if (timeout_ns >= 0) limit = static_cast<uint64_t>(timeout_ns);
    *is_over = gatherer->gatherer.wait(ticket, limit);
  });
}

vramkit_status vramkit_gatherer_done(vramkit_gatherer* gatherer, uint64_t ticket,
                                     int32_t* is_over) {
  return guarded([&] {
    need(gatherer, "gatherer");
    need(is_over, "is_over");
    *is_over = gatherer->gatherer.done(ticket);
  });
}

vramkit_status vramkit_host_register(void* address, uint64_t size_bytes, int32_t device,
                                     int32_t read_only) {
  return guarded([&] {
    vramkit::host_register(reinterpret_cast<uint64_t>(address), size_bytes, device, read_only != 0);
  });
}

vramkit_status vramkit_host_unregister(void* address) {
  return guarded([&] { vramkit::host_unregister(reinterpret_cast<uint64_t>(address)); });
}

int32_t vramkit_has_batched_copies(void) { return vramkit::has_batched_copies() ? 1 : 0; }

vramkit_status vramkit_copy_to_device(const vramkit_gather_plan* plan, const uint64_t* destinations,
                                      uint64_t destination_count, const int64_t* indices,
                                      uint64_t index_count, int32_t device, uint64_t stream) {
  return guarded([&] {
    need(plan, "plan");
    if (destination_count > 0) need(destinations, "destinations");
    if (index_count > 0) need(indices, "indices");
    vramkit::copy_to_device(*plan->plan, {destinations, destination_count}, {indices, index_count},
                            device, stream);
  });
}

vramkit_status vramkit_permutation_create(uint64_t seed, uint64_t count,
                                          vramkit_permutation** permutation) {
  return guarded([&] {
    need(permutation, "permutation");
    *permutation = new vramkit_permutation{vramkit::Permutation(seed, count)};
  });
}

void vramkit_permutation_destroy(vramkit_permutation* permutation) { delete permutation; }

vramkit_status vramkit_permutation_next(vramkit_permutation* permutation, int64_t* out,
                                        uint64_t count) {
  return guarded([&] {
    need(permutation, "permutation");
    if (count > 0) need(out, "out");
    permutation->permutation.next({out, count});
  });
}
