// Which stream's work may still touch freed memory, and how another stream may take it.
//
// Frees are numbered for each stream (its epoch). Memory freed by stream A at epoch e is safe for
// stream B once B waits for an event that A recorded at epoch >= e, or once that event is known to
// be done. Events are recorded only when another stream wants the memory ("lazily"), which covers
// all that A freed until then.
//
// An external stream may be destroyed while its memory is in use, and then nothing may be
// recorded on it. It is known to be there only during a call that names it (`note_alive`, and the
// free of a block whose recorded user it is): events are recorded then. Until the next such call
// nobody else can have what it freed since, unless the whole device is waited for (`drain`).
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "pool/block.h"

namespace vramkit {

/// Called under the pool's lock. Only `drain` blocks. While a graph is captured no event is
/// recorded, queried or waited for. It owns the events that it recorded; the destructor releases
/// them. Indices are given out once and stay valid.
class Streams {
 public:
  explicit Streams(Backend& backend) : backend_(backend) {}
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;
  ~Streams();

  /// Registers the stream at its first use.
  StreamIndex index_of(uint64_t handle);
  uint64_t handle_of(StreamIndex index) const {
    return index == kAnyStream ? 0 : streams_[index].handle;
  }
  size_t count() const { return streams_.size(); }
  void declare_external(uint64_t handle);
  bool external(StreamIndex index) const { return streams_[index].external; }
  /// A call names the stream: an event is recorded for the frees of an external one that have
  /// none.
  void note_alive(StreamIndex index) {
    if (streams_[index].lacks_event()) record_or_defer(streams_[index]);
  }

  /// Adds `user` to the set `uses` (0: a new one, held once) and returns the set.
  uint32_t add_use(uint32_t uses, StreamIndex user);
  /// A set is held by each block that a freed block was cut into, and forgotten with the last one.
  void hold_uses(uint32_t uses) { uses_[uses].holders += uses != 0; }
  void drop_uses(uint32_t uses);

  /// The tag of a block that `owner` frees now, with the set of its recorded uses.
  Tag tag_freed(StreamIndex owner, uint32_t uses);
  /// The same where a recorded user comes after the owner's work: nobody owns the block.
  Tag tag_used(uint32_t uses);
  /// The tag of memory of which `owner` has freed parts without one (see Spans).
  Tag tag_given_back(StreamIndex owner);

  /// True if `taker` needs to wait for nobody.
  bool ready(StreamIndex taker, const Tag& tag) const;
  /// True if `taker` comes after the work on the memory by the order of streams and earlier waits
  /// alone: unlike `ready`, the answer does not depend on how fast the device happens to be.
  bool ordered(StreamIndex taker, const Tag& tag) const;
  /// True if `taker` can have the memory, after a wait where it may wait (`events_allowed`).
  bool obtainable(StreamIndex taker, const Tag& tag, bool may_wait) const {
    return may_wait ? !any_external_ || can_wait_for(taker, tag) : ready(taker, tag);
  }
  /// Makes `taker` wait for whatever `tag` needs. Only for what is obtainable.
  void wait_for(StreamIndex taker, const Tag& tag);
  /// True when all recorded uses of the tag are known to be done.
  bool uses_done(const Tag& tag) const;

  /// Looks which events are done. True if anything new was learnt.
  bool poll();
  /// Blocks until all work that any free so far depends on is done; that is all work of the device
  /// while an external stream lacks an event.
  void drain();
  /// True if an external stream has freed memory since an event was last recorded on it.
  bool lack_events() const;
  bool events_allowed() const { return backend_.events_allowed(); }

  uint64_t waits() const { return waits_; }

 private:
  struct Recorded {
    Event event;
    uint64_t epoch;
  };
  struct Stream {
    uint64_t handle = 0;
    bool external = false;
    bool event_deferred = false;      // it could not be recorded when it was due
    uint64_t epoch = 0;               // frees so far
    uint64_t completed = 0;           // frees up to here are safe for everybody
    std::deque<Recorded> recorded{};  // not known to be done, oldest first
    std::vector<uint64_t> waited{};   // by index: frees of that stream that this one waited for

    /// Frees up to here have an event, or need none any more.
    uint64_t covered() const { return recorded.empty() ? completed : recorded.back().epoch; }
    bool lacks_event() const { return external && covered() < epoch; }
  };
  struct Use {
    StreamIndex stream;
    uint64_t epoch;
  };
  struct UseSet {
    uint32_t holders = 0;
    std::vector<Use> items{};
  };

  /// True if holds(stream, epoch) for the owner and for each recorded use.
  template <typename Holds>
  bool for_all(const Tag& tag, Holds holds) const;
  bool ready(StreamIndex taker, StreamIndex owner, uint64_t epoch) const;
  bool ordered(StreamIndex taker, StreamIndex owner, uint64_t epoch) const;
  bool can_wait_for(StreamIndex taker, const Tag& tag) const;
  void wait_for(StreamIndex taker, StreamIndex owner, uint64_t epoch);
  const Recorded& record(Stream& stream);
  uint32_t new_use(StreamIndex user);
  void record_or_defer(Stream& stream);
  void record_deferred(Stream& stream);
  void complete_oldest(Stream& stream);
  void drain_device();

  Backend& backend_;
  std::vector<Stream> streams_;
  std::unordered_map<uint64_t, StreamIndex> indices_;
  bool any_external_ = false;
  uint64_t last_handle_ = 0;
  StreamIndex last_index_ = kAnyStream;
  std::vector<UseSet> uses_{1};  // set 0 is the empty one
  std::vector<uint32_t> free_uses_;
  uint64_t waits_ = 0;
};

}  // namespace vramkit
