// Python stacks of allocations: each distinct one has a number, and is kept while a block has it.

#include <algorithm>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "bind/python/python_runtime.h"
#include "pool/registry.h"

namespace vramkit::python {
namespace {

constexpr size_t kMostFrames = 32;
constexpr size_t kFramesTold = 6;
// Below this, what is kept is worth less than the look for it.
constexpr size_t kFewestKept = 4096;
// Captures after which an allocation has certainly got its block, or failed.
constexpr uint64_t kSettled = 1024;
constexpr const char* kNoFrames = "no Python frames (an autograd or worker thread)";
// The stack of a thread that Python does not know. The thread that has the GIL may wait for such a
// thread, which therefore never asks for the GIL.
constexpr uint32_t kForeignThread = ~uint32_t{0};

bool is_foreign_thread() { return api.PyGILState_GetThisThreadState() == nullptr; }

/// As it costs least to note: the code object and the offset of its instruction.
struct Frame {
  Object* code;
  int offset;
  bool operator==(const Frame&) const = default;
};
using Frames = std::vector<Frame>;

struct Stack {
  Frames frames;  // owns a reference to each code object
  size_t hash;
  uint64_t last_capture;
};

size_t hash_of(const Frames& frames) {
  size_t hash = frames.size();
  for (const Frame& frame : frames) {
    for (const size_t part : {reinterpret_cast<size_t>(frame.code) >> 4,
                              static_cast<size_t>(static_cast<unsigned>(frame.offset))}) {
      hash = (hash ^ part) * 0x9E3779B97F4A7C15U;
      hash ^= hash >> 32;
    }
  }
  return hash;
}

/// The calling thread's frames, innermost first. Code objects are borrowed from them.
void walk(Frames& frames) {
  frames.clear();
  Ref frame = Ref::to(api.PyEval_GetFrame());
  while (frame && frames.size() < kMostFrames) {
    const Ref code(api.PyFrame_GetCode(frame.get()));
    frames.push_back({code.get(), api.PyFrame_GetLasti(frame.get())});
    frame = Ref(api.PyFrame_GetBack(frame.get()));
  }
}

std::string describe(const Frame& frame) {
  int line = api.PyCode_Addr2Line(frame.code, frame.offset);
  if (line <= 0) line = api.PyCode_Addr2Line(frame.code, -1);  // of the function's first line
  return text_of(frame.code, "co_filename") + ":" + std::to_string(line) + " in " +
         text_of(frame.code, "co_qualname");
}

using Numbers = std::unordered_set<uint32_t>;

void add_numbers_in_use(Pool& pool, Numbers& used) {
  try {
    const auto blocks = pool.inspect([](Engine& engine) { return engine.snapshot(); });
    for (const BlockInfo& block : blocks) {
      if (block.state == BlockState::kLive && block.stack_id != 0) used.insert(block.stack_id);
    }
  } catch (const Error&) {
    return;  // closed meanwhile, or the parent's: it has no block that could be asked for
  }
}

/// The stack numbers of the live blocks of all pools; nothing when there is no memory to tell.
std::optional<Numbers> numbers_in_use() {
  const Released released;
  try {
    Numbers used;
    const auto look = [&used](Pool& pool) { add_numbers_in_use(pool, used); };
    for (int device = -1; device < Registry::kMaxDevices; ++device) {
      Registry::instance().each(device, look);
    }
    return used;
  } catch (const std::bad_alloc&) {
    return std::nullopt;
  }
}

/// All stacks. The GIL guards it; what may let go of the GIL is called when it is whole.
class Stacks {
 public:
  /// Never destroyed: threads allocate until the very end of the process.
  static Stacks& instance() {
    static auto* stacks = new Stacks();
    return *stacks;
  }

  uint32_t number_of(const Frames& frames) {
    const size_t hash = hash_of(frames);
    const auto [first, last] = by_hash_.equal_range(hash);
    for (auto candidate = first; candidate != last; ++candidate) {
      Stack& stack = by_number_.at(candidate->second);
      if (stack.frames != frames) continue;
      stack.last_capture = ++captures_;
      return candidate->second;
    }
    if (by_number_.size() >= limit_) sweep();
    return add(frames, hash);
  }

  /// Null for an unknown number.
  const Stack* find(uint32_t number) const {
    const auto found = by_number_.find(number);
    return found != by_number_.end() ? &found->second : nullptr;
  }

  size_t size() const { return by_number_.size(); }
  void set_library_paths(std::string paths) { library_paths_ = std::move(paths); }

  bool is_library(const std::string& description) const {
    if (description.starts_with('<')) return true;
    const std::string_view all(library_paths_);
    for (size_t begin = 0; begin < all.size();) {
      const size_t end = std::min(all.find('\n', begin), all.size());
      if (end > begin && description.starts_with(all.substr(begin, end - begin))) return true;
      begin = end + 1;
    }
    return false;
  }

 private:
  uint32_t add(const Frames& frames, size_t hash) {
    if (++last_number_ == kForeignThread) last_number_ = 1;  // and 0 stands for none
    const uint32_t number = last_number_;
    by_number_.insert_or_assign(number, Stack{frames, hash, ++captures_});
    try {
      by_hash_.emplace(hash, number);
    } catch (...) {
      by_number_.erase(number);
      throw;
    }
    for (const Frame& frame : frames) api.Py_IncRef(frame.code);
    return number;
  }

  /// Forgets the stacks that no live block has.
  void sweep() {
    const uint64_t before = captures_;
    const std::optional<Numbers> used = numbers_in_use();
    if (!used) return;
    std::vector<Ref> dropped;  // let go of last: that may run any code
    dropped.reserve(by_number_.size() * kMostFrames);
    for (auto entry = by_number_.begin(); entry != by_number_.end();) {
      const bool kept =
          used->contains(entry->first) || entry->second.last_capture + kSettled > before;
      entry = kept ? std::next(entry) : erase(entry, dropped);
    }
    limit_ = std::max(kFewestKept, 2 * by_number_.size());
  }

  using Entry = std::unordered_map<uint32_t, Stack>::iterator;
  Entry erase(Entry entry, std::vector<Ref>& dropped) {
    const auto& [number, stack] = *entry;
    for (const Frame& frame : stack.frames) dropped.emplace_back(frame.code);
    const auto [first, last] = by_hash_.equal_range(stack.hash);
    by_hash_.erase(std::find_if(first, last, [number = number](const auto& candidate) {
      return candidate.second == number;
    }));
    return by_number_.erase(entry);
  }

  std::unordered_map<uint32_t, Stack> by_number_;
  std::unordered_multimap<size_t, uint32_t> by_hash_;
  std::string library_paths_;
  size_t limit_ = kFewestKept;
  uint64_t captures_ = 0;
  uint32_t last_number_ = 0;
};

/// One line for the user's own frames.
std::string line_of(const Stack& stack) {
  std::vector<std::string> all;
  std::vector<std::string> own;
  for (const Frame& frame : stack.frames) {
    all.push_back(describe(frame));
    if (!Stacks::instance().is_library(all.back())) own.push_back(all.back());
  }
  const auto& told = own.empty() ? all : own;
  if (told.empty()) return kNoFrames;
  std::string line;
  for (size_t i = 0; i < std::min(told.size(), kFramesTold); ++i) {
    line += (i == 0 ? "" : " <- ") + told[i];
  }
  return line;
}

uint32_t capture() {
  if (!is_running()) return 0;
  if (is_foreign_thread()) return kForeignThread;
  try {
    const Visit visit;
    if (!visit) return 0;
    Frames frames;
    frames.reserve(kMostFrames);
    walk(frames);
    return Stacks::instance().number_of(frames);
  } catch (const std::exception&) {
    return 0;  // the allocation matters more than the record of it
  }
}

const char* text(uint32_t number) {
  thread_local std::string line;
  try {
    line.clear();
    if (number == kForeignThread) return kNoFrames;
    if (!is_running()) return line.c_str();
    if (is_foreign_thread()) return "not told to a thread that Python does not know";
    const Visit visit;
    if (!visit) return line.c_str();
    const SavedError saved;
    const Stack* const stack = Stacks::instance().find(number);
    if (stack != nullptr) line = line_of(*stack);
  } catch (const std::exception&) {
    line.clear();
  }
  return line.c_str();
}

}  // namespace
}  // namespace vramkit::python

namespace own = vramkit::python;

vramkit_status vramkit_python_record_stacks(vramkit_pool* pool) {
  return vramkit_pool_set_stack_hooks(pool, &own::capture, &own::text);
}

vramkit_status vramkit_python_set_library_paths(const char* paths) {
  own::Stacks::instance().set_library_paths(paths);
  return VRAMKIT_OK;
}

vramkit_object* vramkit_python_frames(uint32_t stack_id) {
  std::vector<std::string> texts;
  if (stack_id == own::kForeignThread) texts.emplace_back(own::kNoFrames);
  if (const own::Stack* const stack = own::Stacks::instance().find(stack_id)) {
    for (const own::Frame& frame : stack->frames) texts.push_back(own::describe(frame));
    if (texts.empty()) texts.emplace_back(own::kNoFrames);
  }
  own::Ref tuple(own::api.PyTuple_New(static_cast<intptr_t>(texts.size())));
  if (!tuple) return nullptr;
  intptr_t i = 0;
  for (const std::string& text : texts) {
    vramkit_object* const made = own::api.PyUnicode_FromString(text.c_str());
    if (made == nullptr || own::api.PyTuple_SetItem(tuple.get(), i++, made) != 0) return nullptr;
  }
  return tuple.release();
}

uint64_t vramkit_python_stacks() { return own::Stacks::instance().size(); }
