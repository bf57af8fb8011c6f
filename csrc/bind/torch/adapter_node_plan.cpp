#include "bind/torch/adapter_node_plan.h"

#include <algorithm>
#include <charconv>
#include <deque>
#include <mutex>
#include <shared_mutex>
#include <utility>

namespace vramkit::adapter {
namespace {

using Kind = Algorithm::Kind;

struct Plans {
  std::shared_mutex lock;
  std::deque<Plan> all;  // a deque, so that references stay valid
};

Plans& plans() {
  // Never destroyed: a thread of autograd may still be running at exit.
  static auto* const made = new Plans;
  return *made;
}

/// Returns the number after a prefix; none if the name is something else.
std::optional<int64_t> variant_of(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  int64_t variant = 0;
  const char* const end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + prefix.size(), end, variant);
  if (error != std::errc() || rest != end) return std::nullopt;
  return variant;
}

}  // namespace

std::optional<Algorithm> forward_of(std::string_view name) {
  if (name == "torch+pass") return Algorithm{Kind::kTorch, 0};
  if (name == "cudnn") return Algorithm{Kind::kCudnn, 0};
  if (const auto found = variant_of(name, "depthwise")) return Algorithm{Kind::kDepthwise, *found};
  if (const auto found = variant_of(name, "grouped")) return Algorithm{Kind::kGrouped, *found};
  if (const auto found = variant_of(name, "stem")) return Algorithm{Kind::kStem, *found};
  return std::nullopt;
}

Algorithm gradient_of(std::string_view name) {
  if (name == "torch") return {Kind::kTorch, 0};
  if (const auto found = variant_of(name, "depthwise")) return {Kind::kDepthwise, *found};
  if (const auto found = variant_of(name, "grouped")) return {Kind::kGrouped, *found};
  return {};
}

int64_t register_plan(Plan plan) {
  Plans& known = plans();
  const std::unique_lock lock(known.lock);
  const auto found = std::find(known.all.begin(), known.all.end(), plan);
  const auto number = std::distance(known.all.begin(), found);
  if (found == known.all.end()) known.all.push_back(std::move(plan));
  return number;
}

const Plan& plan_at(int64_t number) {
  Plans& known = plans();
  const std::shared_lock lock(known.lock);
  TORCH_CHECK(number >= 0 && static_cast<std::size_t>(number) < known.all.size(),
              "vramkit: there is no plan ", number, " of a convolution; there are ",
              known.all.size());
  return known.all[static_cast<std::size_t>(number)];
}

}  // namespace vramkit::adapter
