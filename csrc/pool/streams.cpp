#include "pool/streams.h"

#include <algorithm>

#include "base/error.h"
#include "base/host_memory.h"

namespace vramkit {

Streams::~Streams() {
  for (Stream& stream : streams_) {
    for (const Recorded& recorded : stream.recorded) backend_.release_event(recorded.event);
  }
}

StreamIndex Streams::index_of(uint64_t handle) {
  if (handle == last_handle_ && last_index_ != kAnyStream) return last_index_;
  auto found = indices_.find(handle);
  if (found == indices_.end()) {
    if (streams_.size() == kAnyStream) {
      throw_error(Status::kInvalidArgument, "more than %u streams use one pool; reuse streams",
                  unsigned{kAnyStream});
    }
    streams_.emplace_back().handle = handle;
    try {
      found = indices_.emplace(handle, static_cast<StreamIndex>(streams_.size() - 1)).first;
    } catch (...) {
      streams_.pop_back();
      throw;
    }
  }
  last_handle_ = handle;
  last_index_ = found->second;
  return last_index_;
}

void Streams::declare_external(uint64_t handle) {
  Stream& stream = streams_[index_of(handle)];
  if (stream.external) return;
  stream.external = true;
  any_external_ = true;
  // Covers what it has freed until now, numbered or not.
  ++stream.epoch;
  record_or_defer(stream);
}

uint32_t Streams::add_use(uint32_t uses, StreamIndex user) {
  if (uses == 0) return new_use(user);
  auto& set = uses_[uses].items;
  const bool known =
      std::any_of(set.begin(), set.end(), [user](const Use& use) { return use.stream == user; });
  if (!known) set.push_back({user, 0});
  return uses;
}

uint32_t Streams::new_use(StreamIndex user) {
  if (free_uses_.empty()) {
    reserve_more(free_uses_, uses_.size() + 1);  // all sets may be free at once
    uses_.emplace_back();
    free_uses_.push_back(static_cast<uint32_t>(uses_.size() - 1));
  }
  const uint32_t uses = free_uses_.back();
  uses_[uses].items.push_back({user, 0});
  uses_[uses].holders = 1;
  free_uses_.pop_back();
  return uses;
}

void Streams::drop_uses(uint32_t uses) {
  if (uses == 0 || --uses_[uses].holders > 0) return;
  uses_[uses].items.clear();
  free_uses_.push_back(uses);
}

Tag Streams::tag_freed(StreamIndex owner, uint32_t uses) {
  const uint64_t epoch = ++streams_[owner].epoch;
  tag_used(uses);
  return {owner, uses, epoch};
}

Tag Streams::tag_used(uint32_t uses) {
  for (Use& use : uses_[uses].items) {
    Stream& user = streams_[use.stream];
    use.epoch = ++user.epoch;
    record_or_defer(user);
  }
  return {kAnyStream, uses, 0};
}

Tag Streams::tag_given_back(StreamIndex owner) {
  // Each free of an external stream has a number: an event may have been recorded since.
  if (external(owner)) return {owner, 0, streams_[owner].epoch};
  return tag_freed(owner, 0);
}

template <typename Holds>
bool Streams::for_all(const Tag& tag, Holds holds) const {
  const auto& set = uses_[tag.uses].items;
  return holds(tag.stream, tag.epoch) &&
         std::all_of(set.begin(), set.end(),
                     [&holds](const Use& use) { return holds(use.stream, use.epoch); });
}

bool Streams::ready(StreamIndex taker, StreamIndex owner, uint64_t epoch) const {
  return ordered(taker, owner, epoch) || epoch <= streams_[owner].completed;
}

bool Streams::ordered(StreamIndex taker, StreamIndex owner, uint64_t epoch) const {
  if (owner == kAnyStream || owner == taker) return true;
  const auto& waited = streams_[taker].waited;
  return owner < waited.size() && epoch <= waited[owner];
}

bool Streams::ordered(StreamIndex taker, const Tag& tag) const {
  return for_all(tag, [this, taker](StreamIndex stream, uint64_t epoch) {
    return ordered(taker, stream, epoch);
  });
}

bool Streams::ready(StreamIndex taker, const Tag& tag) const {
  return for_all(tag, [this, taker](StreamIndex stream, uint64_t epoch) {
    return ready(taker, stream, epoch);
  });
}

bool Streams::can_wait_for(StreamIndex taker, const Tag& tag) const {
  return for_all(tag, [this, taker](StreamIndex stream, uint64_t epoch) {
    if (ready(taker, stream, epoch)) return true;
    return !streams_[stream].external || epoch <= streams_[stream].covered();
  });
}

void Streams::wait_for(StreamIndex taker, const Tag& tag) {
  wait_for(taker, tag.stream, tag.epoch);
  for (const Use& use : uses_[tag.uses].items) wait_for(taker, use.stream, use.epoch);
}

void Streams::wait_for(StreamIndex taker, StreamIndex owner, uint64_t epoch) {
  if (ready(taker, owner, epoch)) return;
  Stream& stream = streams_[owner];
  // Epochs only grow. Where nobody polls, events pile up by the hundred thousand: no linear search.
  const auto found =
      std::lower_bound(stream.recorded.begin(), stream.recorded.end(), epoch,
                       [](const Recorded& one, uint64_t wanted) { return one.epoch < wanted; });
  const Recorded recorded = found != stream.recorded.end() ? *found : record(stream);
  auto& waited = streams_[taker].waited;
  if (waited.size() <= owner) waited.resize(owner + size_t{1});
  backend_.stream_wait(streams_[taker].handle, recorded.event);
  waited[owner] = recorded.epoch;
  ++waits_;
}

bool Streams::uses_done(const Tag& tag) const {
  const auto& set = uses_[tag.uses].items;
  return std::all_of(set.begin(), set.end(), [this](const Use& use) {
    return use.epoch <= streams_[use.stream].completed;
  });
}

const Streams::Recorded& Streams::record(Stream& stream) {
  stream.recorded.push_back({0, stream.epoch});
  try {
    stream.recorded.back().event = backend_.record_event(stream.handle);
  } catch (...) {
    stream.recorded.pop_back();
    throw;
  }
  stream.event_deferred = false;
  return stream.recorded.back();
}

/// What is done besides must not fail. An event recorded later covers the same work.
void Streams::record_or_defer(Stream& stream) {
  stream.event_deferred = true;
  if (!backend_.events_allowed()) return;
  try {
    record(stream);
    // So that events do not pile up where nobody looks for memory of other streams.
    while (stream.recorded.size() > 1 && backend_.event_done(stream.recorded.front().event)) {
      complete_oldest(stream);
    }
  } catch (const std::exception& error) {
    report("no event after a free, one is recorded later: %s", error.what());
  }
}

void Streams::record_deferred(Stream& stream) {
  try {
    record(stream);
  } catch (const std::exception&) {
    // Owed still. Who must wait for this stream meets the failure; the others need not.
  }
}

void Streams::complete_oldest(Stream& stream) {
  stream.completed = stream.recorded.front().epoch;
  backend_.release_event(stream.recorded.front().event);
  stream.recorded.pop_front();
}

bool Streams::poll() {
  if (!backend_.events_allowed()) return false;
  bool learnt = false;
  for (Stream& stream : streams_) {
    // An external one may be gone.
    if (stream.event_deferred && !stream.external) record_deferred(stream);
    while (!stream.recorded.empty() && backend_.event_done(stream.recorded.front().event)) {
      complete_oldest(stream);
      learnt = true;
    }
  }
  return learnt;
}

void Streams::drain() {
  if (!backend_.events_allowed()) {
    throw_error(Status::kBusy, "cannot wait for the device while a graph is being captured on it");
  }
  if (lack_events()) return drain_device();
  for (Stream& stream : streams_) {
    if (stream.completed == stream.epoch) continue;
    if (stream.covered() < stream.epoch) record(stream);
    backend_.synchronize(stream.recorded.back().event);
    while (!stream.recorded.empty()) complete_oldest(stream);
  }
}

void Streams::drain_device() {
  backend_.synchronize_all();
  for (Stream& stream : streams_) {
    while (!stream.recorded.empty()) complete_oldest(stream);
    stream.completed = stream.epoch;
    stream.event_deferred = false;
  }
}

bool Streams::lack_events() const {
  return std::any_of(streams_.begin(), streams_.end(),
                     [](const Stream& stream) { return stream.lacks_event(); });
}

}  // namespace vramkit
