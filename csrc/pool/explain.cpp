#include "pool/explain.h"

#include <algorithm>

#include "base/bytes.h"
#include "base/error.h"

namespace vramkit {
namespace {

constexpr size_t kListed = 10;

/// No machine has more; what asks for more has miscounted.
constexpr uint64_t kLargestMeant = uint64_t{1} << 50;

unsigned long long number(uint64_t value) { return value; }

std::string why_not_stitched(const Shortage& s) {
  if (!s.refusal.empty()) return "The system or the device refused memory: " + s.refusal + ".";
  if (s.wanted > s.capacity) return "The request is larger than the whole pool.";
  const uint64_t need = align_up(s.wanted, s.page);
  if (s.free < s.wanted) return "Stitching cannot help: less is free than was wanted.";
  if (s.free_pages < need) {
    return format(
        "Stitching did not help: it joins wholly free pages of %s, and of these there are %s, "
        "while "
        "the request needs %s; the other %s of free memory lie in pages that are partly in use.",
        mib(s.page).c_str(), mib_apart(s.free_pages, need).c_str(),
        mib_apart(need, s.free_pages).c_str(), mib(s.free - s.free_pages).c_str());
  }
  if (!s.alias_limit.empty()) return "Stitching did not help: " + s.alias_limit + ".";
  return "Stitching did not help: pages could not be mapped at a new address at this moment.";
}

std::string ask_for_more(const Shortage& s, uint64_t more) {
  if (more > s.machine || s.capacity > s.machine - more) return "";
  if (s.capacity + more > s.most_capacity) {
    return format("; or make a new pool of at least %s", advised_size(s.capacity + more).c_str());
  }
  return format("; or give the pool at least %s more (a larger capacity, or pool.resize(%llu))",
                advised_size(more).c_str(), number(s.capacity + more));
}

std::string what_to_do(const Shortage& s) {
  if (s.wanted > kLargestMeant) {
    return "No machine has that much: look at how the size was computed; it may be negative.";
  }
  const uint64_t missing = s.wanted > s.free_pages ? s.wanted - s.free_pages : s.page;
  return format(
      "To go on: free tensors or use a smaller batch%s; or let such requests go to PyTorch's "
      "allocator with overflow=\"native\".",
      ask_for_more(s, align_up(missing, s.page)).c_str());
}

std::string list_blocks(const Shortage& s, const char* (*stack_text)(uint32_t)) {
  const size_t count = s.largest_blocks.size();
  std::string text =
      count == 1 ? "The largest live block:" : format("The %zu largest live blocks:", count);
  for (const BlockInfo& block : s.largest_blocks) {
    text += format("\n  %12s at %p", mib(block.requested).c_str(),
                   reinterpret_cast<const void*>(block.address));
    if (block.kind == BlockKind::kStitched) text += " (stitched)";
    if (block.stack_id == 0 || stack_text == nullptr) continue;
    const char* const stack = stack_text(block.stack_id);
    if (stack == nullptr) continue;  // the callback could not make one
    text += "\n";
    text += stack;
  }
  return text;
}

}  // namespace

Shortage describe_shortage(const Engine& engine, uint64_t wanted) {
  const Counters& counters = engine.counters();
  Shortage s;
  s.label = engine.label();
  s.wanted = wanted;
  s.capacity = engine.capacity_bytes();
  s.page = engine.page_bytes();
  s.live = counters.live_bytes;
  s.live_blocks = counters.live_blocks;
  s.free = s.capacity - counters.allocated_bytes;
  s.largest_free_extent = engine.largest_free_extent();
  s.free_pages = engine.free_page_bytes();
  s.pending = engine.pending_bytes();
  s.most_capacity = engine.most_capacity_bytes();
  s.machine = engine.memory_limit();
  if (s.free_pages >= wanted) s.alias_limit = engine.alias_limit(wanted);
  s.largest_blocks = engine.snapshot();
  std::erase_if(s.largest_blocks,
                [](const BlockInfo& block) { return block.state != BlockState::kLive; });
  std::sort(s.largest_blocks.begin(), s.largest_blocks.end(),
            [](const BlockInfo& a, const BlockInfo& b) { return a.requested > b.requested; });
  if (s.largest_blocks.size() > kListed) s.largest_blocks.resize(kListed);
  return s;
}

std::string explain_shortage(const Shortage& s, const char* (*stack_text)(uint32_t)) {
  std::string text = format(
      "vramkit pool on %s is out of memory. Wanted %s (%s); capacity %s, live %s in %s, free %s, "
      "largest free block %s.",
      s.label.c_str(), mib(s.wanted).c_str(), counted(s.wanted, "byte").c_str(),
      mib_apart(s.capacity, s.wanted).c_str(), mib(s.live).c_str(),
      counted(s.live_blocks, "block").c_str(), mib_apart(s.free, s.wanted).c_str(),
      mib_apart(s.largest_free_extent, s.wanted).c_str());
  if (s.pending > 0) {
    text +=
        format(" Of the free memory %s wait for work on other streams.", mib(s.pending).c_str());
  }
  text += format(" %s\n%s", why_not_stitched(s).c_str(), what_to_do(s).c_str());
  if (!s.largest_blocks.empty()) text += format("\n%s", list_blocks(s, stack_text).c_str());
  return text;
}

}  // namespace vramkit
