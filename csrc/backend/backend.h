// What the pool asks of memory: address space, pages behind it, a second address for pages, events.
//
// A backend owns one address range. Its lower part holds the *primary* addresses: page i is mapped
// at base + i * page_bytes. The upper part is for *aliases*: contiguous addresses for pages whose
// primary addresses are scattered.
//
// Rules for callers:
//  - one thread at a time (the pool holds its lock), but for `map_primary` of pages whose
//    physical memory was created;
//  - no page is taken from data: `unmap_and_release`, `map_alias` and `unmap_alias` only touch
//  pages without live data;
//  - a call that throws has changed nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace vramkit {

struct PageRun {
  uint64_t first;  // index among the primary pages
  uint64_t count;
};

/// A point in a stream's work. 0 is a point that has always been passed.
using Event = uint64_t;

struct Layout {
  uint64_t page_bytes;
  uint64_t primary_pages;  // primary addresses are reserved for this many pages
  uint64_t alias_pages;    // and for this many aliases behind them

  uint64_t primary_bytes() const { return primary_pages * page_bytes; }
  uint64_t address_bytes() const { return (primary_pages + alias_pages) * page_bytes; }
  /// The alias page that contains an offset behind the primary addresses.
  uint64_t alias_page(uint64_t offset) const { return (offset - primary_bytes()) / page_bytes; }
};

/// One engine owns it, and destroys it last: its destructor frees the address range and the memory
/// that is left, throws nothing, and reports what fails. Calls may block in the system or the
/// driver; only `synchronize` and `synchronize_all` wait for work of the device. Failures are
/// thrown as `Error`.
class Backend {
 public:
  virtual ~Backend() = default;

  /// The CUDA device whose memory this is, or -1.
  virtual int device() const { return -1; }
  /// False where the memory is one piece that was given: neither growing nor stitching is possible.
  virtual bool has_own_addresses() const { return true; }

  /// True where the range takes addresses of this process, which `ulimit -v` may limit.
  virtual bool takes_address_space() const { return false; }

  /// No pool can have more than this: the memory of the machine, or what its limits leave of it.
  virtual uint64_t memory_limit() const = 0;

  /// Reserves the address range. Called once, first. Memory comes with `map_primary`.
  virtual void reserve(const Layout& layout) = 0;
  /// First address of the range, a multiple of the page size.
  virtual uint64_t base() const = 0;

  /// The pool is about to promise these pages: takes their memory from the device where that can be
  /// known, or throws.
  virtual void create_physical(PageRun) {}
  /// Gives memory that was created, but not mapped, back to the device. Returns how many
  /// had any.
  virtual uint64_t release_physical(PageRun) { return 0; }
  /// Pages that have memory, backed or not; `backed` of them are.
  virtual uint64_t held_pages(uint64_t backed) const { return backed; }
  /// True where `map_primary` takes so long that it is better done in the background.
  virtual bool maps_slowly() const { return false; }
  /// Puts physical memory behind primary pages that have none. Where the backend maps slowly and
  /// the memory was created, this may run beside any call for other pages but `reserve`,
  /// `create_physical`, `release_physical` and those about peers.
  virtual void map_primary(PageRun run) = 0;
  /// Gives physical memory back. Afterwards the pages have none.
  virtual void unmap_and_release(PageRun run) = 0;

  /// True where an unbacked page can be backed again at its old address, and an alias address used
  /// for other pages. Where false, both are retired for ever: on CUDA, what registered an address
  /// (NCCL's graphs) must never find other memory there.
  virtual bool rebindable() const = 0;
  /// True where a page can stand at two addresses at once; where false, `map_alias` moves it.
  virtual bool aliasing() const = 0;
  /// How many pages may be mapped at alias addresses now. Falls when other pools map more.
  virtual uint64_t max_alias_pages() const = 0;
  /// Before pages get alias addresses, and after they have lost them: counts them where the
  /// process's pools share a limit. False, and nothing is counted, beyond it.
  virtual bool take_mappings(uint64_t) { return true; }
  virtual void give_back_mappings(uint64_t) noexcept {}
  /// That limit and what is used of it, in words; empty where there is none.
  virtual std::string describe_mappings() const { return {}; }

  /// Makes the backed pages of `run` readable and writable at `address` too (moves them there).
  virtual void map_alias(uint64_t address, PageRun run) = 0;
  /// Undoes `map_alias` (moves them to their primary addresses).
  virtual void unmap_alias(uint64_t address, PageRun run) = 0;

  /// From now on what is mapped is mapped for that device too, until it is taken back;
  /// `grant_peers` does so for what was.
  virtual void add_peer(int) {}
  /// Devices that the process uses and that could access this one's memory: they may have been
  /// given access before there was a pool, which cannot be asked.
  virtual std::vector<int> peers_in_use() const { return {}; }
  virtual void remove_peer(int) {}
  virtual void grant_peers(uint64_t, uint64_t) {}

  /// False while a graph capture forbids to record, query or wait for events.
  virtual bool events_allowed() const = 0;
  virtual Event record_event(uint64_t stream) = 0;
  virtual bool event_done(Event event) = 0;
  /// Work queued on `stream` from now on runs after `event`. Does not block the host.
  virtual void stream_wait(uint64_t stream, Event event) = 0;
  /// Blocks the host until `event` is done.
  virtual void synchronize(Event event) = 0;
  /// Blocks the host until all work that was queued on the device is done. Only while
  /// `events_allowed`.
  virtual void synchronize_all() = 0;
  /// Every event is released once, done or not.
  virtual void release_event(Event event) = 0;

  /// In a forked child: lets go of memory that nobody will use there. Must not allocate.
  virtual void discard_in_child(uint64_t address, uint64_t bytes) = 0;

  /// Test controls; a backend without them refuses.
  virtual void inject_fault(const std::string& call, uint64_t nth);
  virtual void complete_events(uint64_t count);
};

/// `spec` is "host", "memfd", "null", "cuda:N", or "cuda:N@ADDRESS" for a piece of device memory at
/// that decimal address that somebody else owns; then decorators: "+limit=64MiB-in-bytes",
/// "+faults", "+late_events", "+slow_maps". The last one named is the outermost.
std::unique_ptr<Backend> make_backend(const std::string& spec);

}  // namespace vramkit
