// Makes allocations of this thread fail, so that a test meets every place that can run out of host
// memory.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>

namespace vramkit::failing_new {

/// One allocation fails, or that one and all that follow it in the same step.
enum class Shortage : uint8_t { kOnce, kLasting };

struct Countdown {
  bool armed = false;   // allocations are counted
  bool struck = false;  // one has failed
  uint64_t left = 0;    // until the one that fails
  Shortage shortage = Shortage::kOnce;
};
extern thread_local Countdown countdown;

/// Fails the n-th allocation of its steps. The step that it hits is checked and done again.
class Trial {
 public:
  Trial(uint64_t nth, Shortage shortage) { countdown = {false, false, nth, shortage}; }
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;
  ~Trial() { countdown = {}; }

  static bool struck() { return countdown.struck; }

  /// `step` returns false, or throws, only where an allocation failed.
  template <typename Step, typename Check>
  void run(Step step, Check check) {
    const bool before = struck();
    bool done = attempt(step);
    if (!before && struck()) {
      check();
      if (!done) done = attempt(step);
      check();
    }
    if (!done) throw std::logic_error("a step failed without a failed allocation");
  }

 private:
  template <typename Step>
  bool attempt(Step step) {
    const Armed armed;
    try {
      return step();
    } catch (const std::exception&) {
      if (!struck()) throw;
      return false;
    }
  }

  struct Armed {
    Armed() { countdown.armed = !countdown.struck; }
    ~Armed() { countdown.armed = false; }
  };
};

/// Runs trial(Trial&) until it needs fewer allocations than the failing one. Returns how many it
/// needs.
uint64_t fail_each(Shortage shortage, const std::function<void(Trial&)>& trial);

}  // namespace vramkit::failing_new
