// The plain C interface of the native core (libvramkit_core): pools, and the loader's copies.
//
// Contract of every function:
//  - thread-safe; may be called without Python's GIL;
//  - returns a status; a text for the last failure of the calling thread is in
//  vramkit_last_error();
//  - sizes are bytes, streams are opaque 64-bit handles (0 is the default stream);
//  - a null pointer is refused (INVALID_ARGUMENT) unless the function's comment allows it. An array
//  may be null where its length is 0.
//
// Pool handles are small and immortal: a handle stays valid for the life of the process, so that a
// thread that has just looked one up never touches freed memory. What a pool owns is given back
// when it is closed, or when it was released and its last block is freed.
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define VRAMKIT_API __attribute__((visibility("default")))

enum { VRAMKIT_ABI_VERSION = 5 };

typedef enum vramkit_status {
  VRAMKIT_OK = 0,
  VRAMKIT_INVALID_ARGUMENT = 1,  // a size, option or state that can never work
  VRAMKIT_OUT_OF_MEMORY = 2,     // the pool cannot serve the request within its capacity
  VRAMKIT_FOREIGN_POINTER = 3,   // the address was never handed out by this pool
  VRAMKIT_DOUBLE_FREE = 4,       // the address is the pool's, but no live block starts there
  VRAMKIT_CLOSED = 5,            // the pool has been closed
  VRAMKIT_BUSY = 6,              // blocks are live where none may be
  VRAMKIT_SYSTEM = 7,            // the operating system or the driver refused a call
  VRAMKIT_FORKED = 8,            // the pool belongs to the parent of this process
  VRAMKIT_NOT_ROUTED = 9,        // no pool is active: the caller uses its own allocator
} vramkit_status;

typedef struct vramkit_pool vramkit_pool;

// Text of the last failing call of this thread; valid until its next failing call.
VRAMKIT_API const char* vramkit_last_error(void);

// ---- pools ---------------------------------------------------------------------------------

typedef struct vramkit_pool_config {
  // "host", "memfd", "null", "cuda:N", or "cuda:N@ADDRESS" (decimal) for capacity_bytes of device
  // memory that the caller owns; decorators follow, each after a '+': "memfd+late_events+faults".
  const char* backend;
  const char* label;        // the name in error texts: "cpu", "cuda:0"
  uint64_t capacity_bytes;  // rounded down to whole pages; at least one page
  uint64_t page_bytes;      // a power of two of at least 64 KiB; 0 takes 2 MiB
  int32_t overflow_native;  // 1: vramkit_route_alloc answers NOT_ROUTED instead of OUT_OF_MEMORY
  int32_t debug_checks;     // 1: check_valid() after every mutation (slow; for tests)
} vramkit_pool_config;

VRAMKIT_API vramkit_status vramkit_pool_create(const vramkit_pool_config* config,
                                               vramkit_pool** pool);

// Gives everything back. BUSY, and nothing changes, while blocks are live.
VRAMKIT_API vramkit_status vramkit_pool_close(vramkit_pool* pool);

// The owner's last word: closes the pool now, or when its last live block is freed.
VRAMKIT_API vramkit_status vramkit_pool_release(vramkit_pool* pool);

// The process is about to end: returns when no pool is in the driver, nor will be, to map its
// memory in the background.
VRAMKIT_API vramkit_status vramkit_prepare_exit(void);

// Changes the capacity. Growing adds fresh addresses; shrinking takes wholly free pages and is
// refused (BUSY, nothing changes) when there are too few.
VRAMKIT_API vramkit_status vramkit_pool_resize(vramkit_pool* pool, uint64_t capacity_bytes);

// Gives the physical memory of wholly free pages back and forgets cached stitched addresses.
// The capacity stays. *released_bytes (may be null) receives what was given back. What the system
// refuses to take, such as memory that mlock() has locked, stays and is reported on stderr.
VRAMKIT_API vramkit_status vramkit_pool_trim(vramkit_pool* pool, uint64_t* released_bytes);

// Checks every invariant; SYSTEM with a text naming the broken one. For tests.
VRAMKIT_API vramkit_status vramkit_pool_check(vramkit_pool* pool);

// ---- blocks --------------------------------------------------------------------------------

// stack_id: any number to remember with the block (0: none).
VRAMKIT_API vramkit_status vramkit_alloc(vramkit_pool* pool, uint64_t size_bytes, uint64_t stream,
                                         uint32_t stack_id, void** address);

// *size_bytes (may be null) receives the size that was requested for the block. A null address is
// a foreign pointer.
VRAMKIT_API vramkit_status vramkit_free(vramkit_pool* pool, void* address, uint64_t* size_bytes);

// The same, where `stream` comes after all work on the block: it need not be known any more which
// stream that was on. Uses by vramkit_record_stream count besides.
VRAMKIT_API vramkit_status vramkit_free_on(vramkit_pool* pool, void* address, uint64_t stream,
                                           uint64_t* size_bytes);

// The block is also used by work queued on `stream`: its memory is reused only after that work.
VRAMKIT_API vramkit_status vramkit_record_stream(vramkit_pool* pool, void* address,
                                                 uint64_t stream);

// A stream that may be destroyed while the pool lives, even while blocks of it do. It must be there
// during the calls that name it, and when a block is freed that was recorded for it.
VRAMKIT_API vramkit_status vramkit_declare_external_stream(vramkit_pool* pool, uint64_t stream);

// The pool whose address range holds `address`, or null. Takes no lock.
VRAMKIT_API vramkit_pool* vramkit_owner(const void* address);

typedef enum vramkit_block_state {
  VRAMKIT_BLOCK_LIVE = 0,
  VRAMKIT_BLOCK_FREE = 1,
  VRAMKIT_BLOCK_PENDING = 2,  // freed, work of another stream may still use it
} vramkit_block_state;

typedef enum vramkit_block_kind {
  VRAMKIT_BLOCK_LARGE = 0,     // carved from the pool's contiguous range
  VRAMKIT_BLOCK_SMALL = 1,     // a slot of a size-class span
  VRAMKIT_BLOCK_STITCHED = 2,  // free pages at a contiguous address of their own
} vramkit_block_kind;

typedef struct vramkit_block {
  uint64_t address;
  uint64_t size_bytes;       // what the block occupies
  uint64_t requested_bytes;  // what was asked for; 0 when free
  uint64_t stream;
  uint32_t stack_id;
  uint32_t state;  // vramkit_block_state
  uint32_t kind;   // vramkit_block_kind
  uint32_t reserved;
} vramkit_block;

// The live block that holds `address`, which may lie in its interior.
VRAMKIT_API vramkit_status vramkit_find_block(vramkit_pool* pool, const void* address,
                                              vramkit_block* block);

// All blocks by address. Writes at most `room` of them; *count receives how many there are.
VRAMKIT_API vramkit_status vramkit_snapshot(vramkit_pool* pool, vramkit_block* blocks,
                                            uint64_t room, uint64_t* count);

// ---- statistics ----------------------------------------------------------------------------

typedef struct vramkit_stats {
  uint64_t capacity_bytes;
  uint64_t page_bytes;
  uint64_t live_bytes;  // requested bytes of live blocks
  uint64_t peak_live_bytes;
  uint64_t allocated_bytes;  // live blocks with their rounding
  uint64_t peak_allocated_bytes;
  uint64_t mapped_bytes;  // pages with physical memory behind them
  uint64_t peak_mapped_bytes;
  uint64_t held_bytes;            // taken from the device, mapped or not
  uint64_t free_bytes;            // capacity not in live blocks
  uint64_t largest_free_bytes;    // largest contiguous free block
  uint64_t largest_stitch_bytes;  // wholly free pages together: what stitching could serve
  uint64_t pending_bytes;         // freed, waiting for work of another stream
  uint64_t live_blocks;
  uint64_t peak_live_blocks;
  uint64_t allocations;
  uint64_t frees;
  uint64_t failures;  // requests that found no memory
  uint64_t stitched_requests;
  uint64_t stitched_pages;
  uint64_t alias_hits;     // requests served by a stitched address that was still mapped
  uint64_t mapping_calls;  // calls that changed a page's backing or place
  uint64_t cross_stream_waits;
  uint64_t overflow_allocations;  // requests sent to the native allocator
  uint64_t overflow_bytes;
  uint64_t metadata_bytes;  // host memory for the pool's own books
} vramkit_stats;

VRAMKIT_API vramkit_status vramkit_pool_stats(vramkit_pool* pool, vramkit_stats* stats);
VRAMKIT_API vramkit_status vramkit_pool_reset_peaks(vramkit_pool* pool);

// One row for each power of two: requests of (upper/2, upper] bytes; the first takes all <= 512.
typedef struct vramkit_size_class {
  uint64_t upper_bytes;
  uint64_t live_blocks;
  uint64_t live_bytes;
  uint64_t allocations;
  uint64_t frees;
} vramkit_size_class;

enum { VRAMKIT_SIZE_CLASSES = 40 };

VRAMKIT_API vramkit_status vramkit_pool_size_classes(vramkit_pool* pool,
                                                     vramkit_size_class rows[40]);

// Why the pool could not serve `size_bytes` now, with the numbers, its ten largest live blocks and
// what to do. Writes at most `room` bytes with the final zero; *length receives the full length.
VRAMKIT_API vramkit_status vramkit_explain(vramkit_pool* pool, uint64_t size_bytes, char* text,
                                           uint64_t room, uint64_t* length);

// ---- routing (what an allocator adapter needs) ---------------------------------------------

enum { VRAMKIT_DEVICE_CPU = -1 };  // 0 and up: the CUDA device of that ordinal
enum { VRAMKIT_MAX_DEVICES = 64 };

// Routes the device's allocations to the pool until the scope with that token is closed. The
// latest scope still open wins; scopes close in any order, from any thread. Inside a scope of a
// null pool nothing is routed.
VRAMKIT_API vramkit_status vramkit_scope_open(vramkit_pool* pool, int32_t device, uint64_t* token);
VRAMKIT_API vramkit_status vramkit_scope_close(uint64_t token);
VRAMKIT_API vramkit_pool* vramkit_active_pool(int32_t device);

// Called, with no lock held, for the stack id of each routed allocation of the pool, and for the
// text of an id (valid until the thread's next call; null where there is none). Null pointers
// switch it off.
typedef uint32_t (*vramkit_stack_hook)(void);
typedef const char* (*vramkit_stack_text)(uint32_t stack_id);
VRAMKIT_API vramkit_status vramkit_pool_set_stack_hooks(vramkit_pool* pool, vramkit_stack_hook hook,
                                                        vramkit_stack_text text);

// NOT_ROUTED: use the native allocator. That is the answer when no scope is open, in a forked
// child, for a device that no scope can have, and on overflow; *overflowed is then the pool that
// just overflowed for the first time (warn once), else null. OUT_OF_MEMORY: vramkit_last_error() is
// the whole explanation.
// flags: VRAMKIT_STREAM_EXTERNAL where the stream may be destroyed while the pool lives.
enum { VRAMKIT_STREAM_EXTERNAL = 1 };
VRAMKIT_API vramkit_status vramkit_route_alloc(int32_t device, uint64_t size_bytes, uint64_t stream,
                                               uint32_t flags, void** address,
                                               vramkit_pool** overflowed);

// *size_bytes may be null. NOT_ROUTED: the address is no pool's. In a forked child, blocks of the
// parent's pools are left alone and the answer is OK.
VRAMKIT_API vramkit_status vramkit_route_free(void* address, uint64_t* size_bytes);

// The open pools of a CUDA device: at most `room` are written, *count receives how many there are.
VRAMKIT_API vramkit_status vramkit_device_pools(int32_t device, vramkit_pool** pools, uint64_t room,
                                                uint64_t* count);

// What the pools of a CUDA device have done, closed ones too: no number ever falls.
typedef struct vramkit_totals {
  uint64_t allocations;
  uint64_t frees;
  uint64_t requested_bytes;  // of all requests that were served
  uint64_t freed_requested_bytes;
  uint64_t allocated_bytes;  // with rounding
  uint64_t freed_allocated_bytes;
  uint64_t shortages;  // requests that found no memory, here or in the native allocator
} vramkit_totals;

VRAMKIT_API vramkit_status vramkit_device_totals(int32_t device, vramkit_totals* totals);

// A graph may be captured on that stream from now on, and no longer. While one is, the pools of the
// device neither record, query nor wait for events.
VRAMKIT_API vramkit_status vramkit_capture_begin(int32_t device, uint64_t stream);
VRAMKIT_API vramkit_status vramkit_capture_end(int32_t device, uint64_t stream);

// The memory of the device's pools becomes accessible from device `peer`.
VRAMKIT_API vramkit_status vramkit_device_add_peer(int32_t device, int32_t peer);

// The functions above that adapters call, so that an adapter links to nothing.
typedef struct vramkit_core_api {
  uint32_t abi_version;
  uint32_t struct_bytes;
  const char* (*last_error)(void);
  vramkit_status (*route_alloc)(int32_t, uint64_t, uint64_t, uint32_t, void**, vramkit_pool**);
  vramkit_status (*route_free)(void*, uint64_t*);
  vramkit_pool* (*owner)(const void*);
  vramkit_pool* (*active_pool)(int32_t);
  vramkit_status (*record_stream)(vramkit_pool*, void*, uint64_t);
  vramkit_status (*find_block)(vramkit_pool*, const void*, vramkit_block*);
  vramkit_status (*pool_stats)(vramkit_pool*, vramkit_stats*);
  vramkit_status (*snapshot)(vramkit_pool*, vramkit_block*, uint64_t, uint64_t*);
  vramkit_status (*device_pools)(int32_t, vramkit_pool**, uint64_t, uint64_t*);
  vramkit_status (*capture_begin)(int32_t, uint64_t);
  vramkit_status (*capture_end)(int32_t, uint64_t);
  vramkit_status (*device_add_peer)(int32_t, int32_t);
  vramkit_status (*pool_reset_peaks)(vramkit_pool*);
  vramkit_status (*device_totals)(int32_t, vramkit_totals*);
  vramkit_status (*declare_external_stream)(vramkit_pool*, uint64_t);
} vramkit_core_api;

VRAMKIT_API const vramkit_core_api* vramkit_core(void);

// ---- replay --------------------------------------------------------------------------------

typedef enum vramkit_replay_op {
  VRAMKIT_REPLAY_ALLOC = 0,
  VRAMKIT_REPLAY_FREE = 1
} vramkit_replay_op;

typedef struct vramkit_replay vramkit_replay;

// block_count: ids run from 0 to block_count - 1. The replay borrows the pool.
VRAMKIT_API vramkit_status vramkit_replay_create(vramkit_pool* pool, uint64_t block_count,
                                                 vramkit_replay** replay);
// A null replay is left alone.
VRAMKIT_API void vramkit_replay_destroy(vramkit_replay* replay);

// Runs `count` events: `op`, `id`, `size_bytes` (of allocations) and `stream` have one entry an
// event. *done receives the events completed; it is less than `count` only when the status is not
// OK. OUT_OF_MEMORY leaves the pool as it was before the failing event.
VRAMKIT_API vramkit_status vramkit_replay_run(vramkit_replay* replay, const uint8_t* op,
                                              const int64_t* id, const int64_t* size_bytes,
                                              const int32_t* stream, uint64_t count,
                                              uint64_t* done);

// ---- copies of the loader ------------------------------------------------------------------

// memcpy whose stores bypass the CPU's caches where that is faster: for large copies into memory
// that another device or process reads next. The ranges must not overlap.
VRAMKIT_API vramkit_status vramkit_stream_copy(void* to, const void* from, uint64_t size_bytes);

// Rows of an array that lie in memory at a constant distance.
typedef struct vramkit_segment {
  uint64_t address;    // of its first row
  uint64_t first_row;  // its number in the array: the rows of the segments before it
  uint64_t rows;
} vramkit_segment;

// An array of rows of equal size, in one segment or several.
typedef struct vramkit_piece {
  const vramkit_segment* segments;  // sorted by first_row, without gaps
  uint64_t segment_count;
  uint64_t row_bytes;
  uint64_t row_stride_bytes;  // from the start of a row to that of the next one of its segment
} vramkit_piece;

// Which arrays are gathered together. Immutable; the pieces are copied, the rows' memory is
// borrowed until the last job on it is over.
typedef struct vramkit_gather_plan vramkit_gather_plan;

VRAMKIT_API vramkit_status vramkit_gather_plan_create(const vramkit_piece* pieces,
                                                      uint64_t piece_count,
                                                      vramkit_gather_plan** plan);
// Jobs that use the plan go on. A null plan is left alone.
VRAMKIT_API void vramkit_gather_plan_destroy(vramkit_gather_plan* plan);

// Threads that copy rows. In a child forked from the creator's process every function but destroy
// answers FORKED.
typedef struct vramkit_gatherer vramkit_gatherer;

// At most 1,024 threads; with 0, each job is done inside submit.
VRAMKIT_API vramkit_status vramkit_gatherer_create(uint32_t threads, vramkit_gatherer** gatherer);

// Abandons the jobs that are not over and ends the threads: afterwards nothing is read or written
// for it. Threads that wait for a job, and all later calls, get CLOSED.
VRAMKIT_API vramkit_status vramkit_gatherer_close(vramkit_gatherer* gatherer);

// Closes and frees it; no other call on it may be under way, nor follow. In a forked child it does
// nothing but keep the memory. A null gatherer is left alone.
VRAMKIT_API void vramkit_gatherer_destroy(vramkit_gatherer* gatherer);

// Copies row indices[k] of each piece of the plan to destinations[piece] + k * row_bytes. The index
// list is copied; the destinations, of which there is one a piece, are borrowed until the job is
// over. INVALID_ARGUMENT, and nothing is copied, if an index is out of range. *ticket receives what
// names the job; 0 if it is already over, as small ones are.
VRAMKIT_API vramkit_status vramkit_gatherer_submit(
    vramkit_gatherer* gatherer, const vramkit_gather_plan* plan, const uint64_t* destinations,
    uint64_t destination_count, const int64_t* indices, uint64_t index_count, uint64_t* ticket);

// Helps with the job until it is over or the time has passed; *is_over receives which (1 or 0). A
// negative time never passes.
// Once it is over, the ticket is forgotten: a further call is an INVALID_ARGUMENT, except for
// ticket 0.
VRAMKIT_API vramkit_status vramkit_gatherer_wait(vramkit_gatherer* gatherer, uint64_t ticket,
                                                 int64_t timeout_ns, int32_t* is_over);

// Whether the job is over, without waiting; the ticket stays.
VRAMKIT_API vramkit_status vramkit_gatherer_done(vramkit_gatherer* gatherer, uint64_t ticket,
                                                 int32_t* is_over);

// Locks host memory and makes it known to the CUDA driver, so that devices copy from and to it at
// full speed. Slow, and kernel launches wait meanwhile. The memory must stay mapped until it is
// unregistered, when no copy may be under way. With read_only, devices copy from it only; memory
// that this process may not write needs that. SYSTEM, with the limit on locked memory, if the
// driver refuses.
VRAMKIT_API vramkit_status vramkit_host_register(void* address, uint64_t size_bytes, int32_t device,
                                                 int32_t read_only);
VRAMKIT_API vramkit_status vramkit_host_unregister(void* address);

// Whether there is a CUDA driver that takes many copies by one call (CUDA 12.8 or later): 1 or 0.
VRAMKIT_API int32_t vramkit_has_batched_copies(void);

// Queues copies of row indices[k] of each piece of the plan to destinations[piece] + k * row_bytes,
// an address in memory of the CUDA device, on a stream of that device other than the default one.
// The rows of a segment must lie in one range that vramkit_host_register registered. The index list
// is copied; the rows and the destinations, which must not overlap, are borrowed until the stream
// is done. INVALID_ARGUMENT, and nothing is queued, if an index is out of range. SYSTEM if the
// driver has no batched copies or refuses; after a refusal some copies may be queued.
VRAMKIT_API vramkit_status vramkit_copy_to_device(const vramkit_gather_plan* plan,
                                                  const uint64_t* destinations,
                                                  uint64_t destination_count,
                                                  const int64_t* indices, uint64_t index_count,
                                                  int32_t device, uint64_t stream);

// The permutation of 0 to count - 1 that torch.randperm(count) returns on the CPU for a generator
// that was just seeded with `seed`, made a part at a time. One call at a time may use it.
typedef struct vramkit_permutation vramkit_permutation;

// For more entries, torch.randperm uses another algorithm.
enum { VRAMKIT_MAX_PERMUTATION = 214748363 };

// INVALID_ARGUMENT for more than VRAMKIT_MAX_PERMUTATION entries.
VRAMKIT_API vramkit_status vramkit_permutation_create(uint64_t seed, uint64_t count,
                                                      vramkit_permutation** permutation);
// A null permutation is left alone.
VRAMKIT_API void vramkit_permutation_destroy(vramkit_permutation* permutation);

// Writes the next `count` entries. INVALID_ARGUMENT, and nothing is written, if fewer are left.
VRAMKIT_API vramkit_status vramkit_permutation_next(vramkit_permutation* permutation, int64_t* out,
                                                    uint64_t count);

// ---- controls of the test decorators -------------------------------------------------------

// "+faults": the n-th next backend call of that name fails (n >= 1; 0 disarms). Names: reserve,
// map_primary, unmap_and_release, map_alias, unmap_alias, record_event, stream_wait,
// synchronize_all.
VRAMKIT_API vramkit_status vramkit_fault(vramkit_pool* pool, const char* call, uint64_t nth);

// "+late_events": lets the oldest `count` recorded events complete. Without this call they stay
// incomplete until something waits for them on the host.
VRAMKIT_API vramkit_status vramkit_complete_events(vramkit_pool* pool, uint64_t count);

#if defined(__cplusplus)
}
#endif
