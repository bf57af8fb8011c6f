// What every backend promises; a new one is a line at the end.
#include "backend/backend.h"

#include <gtest/gtest.h>

#include <cstring>

#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kPage = 64 * kKiB;
constexpr Layout kLayout{kPage, 32, 32};

class Conformance : public testing::TestWithParam<const char*> {
 protected:
  Conformance() { backend_->reserve(kLayout); }

  uint64_t primary_address(uint64_t page) const { return backend_->base() + page * kPage; }
  uint64_t alias(uint64_t page) const { return primary_address(kLayout.primary_pages + page); }
  bool has_memory() const { return std::string(GetParam()).find("null") == std::string::npos; }
  void write(uint64_t address, uint64_t bytes, int value) const {
    if (has_memory()) std::memset(reinterpret_cast<void*>(address), value, bytes);
  }
  /// True where there is nothing to read.
  bool holds(uint64_t address, uint64_t bytes, int value) const {
    if (!has_memory()) return true;
    const auto* at = reinterpret_cast<const char*>(address);
    return at[0] == static_cast<char>(value) && std::memcmp(at, at + 1, bytes - 1) == 0;
  }

  std::unique_ptr<Backend> backend_ = make_backend(GetParam());
};

TEST_P(Conformance, TheRangeIsAlignedToPages) {
  EXPECT_EQ(backend_->base() % kPage, 0U);
  EXPECT_GT(backend_->memory_limit(), kPage);
  EXPECT_GT(backend_->max_alias_pages(), 0U);
}

TEST_P(Conformance, BackedPagesHoldData) {
  backend_->map_primary({0, 2});
  backend_->map_primary({5, 1});
  write(primary_address(0), 2 * kPage, 1);
  write(primary_address(5), kPage, 2);
  EXPECT_TRUE(holds(primary_address(0), 2 * kPage, 1));
  EXPECT_TRUE(holds(primary_address(5), kPage, 2));
}

TEST_P(Conformance, MappedPagesAreContiguousAndWritable) {
  backend_->map_primary({0, 8});
  write(primary_address(0), 8 * kPage, 7);
  backend_->map_alias(alias(0), {6, 1});
  backend_->map_alias(alias(1), {1, 2});
  write(alias(0), 3 * kPage, 9);
  EXPECT_TRUE(holds(alias(0), 3 * kPage, 9));
  EXPECT_TRUE(holds(primary_address(0), kPage, 7)) << "its neighbours are left alone";
  EXPECT_TRUE(holds(primary_address(3), 3 * kPage, 7));
  backend_->unmap_alias(alias(0), {6, 1});
  backend_->unmap_alias(alias(1), {1, 2});
  write(primary_address(0), 8 * kPage, 3);
  EXPECT_TRUE(holds(primary_address(0), 8 * kPage, 3));
}

TEST_P(Conformance, AMappingIsUndoneInParts) {
  backend_->map_primary({0, 4});
  backend_->map_alias(alias(0), {0, 4});
  write(alias(0), 4 * kPage, 5);
  backend_->unmap_alias(alias(2), {2, 2});
  EXPECT_TRUE(holds(alias(0), 2 * kPage, 5));
  write(primary_address(2), 2 * kPage, 6);
  backend_->unmap_alias(alias(0), {0, 2});
  write(primary_address(0), 2 * kPage, 6);
  EXPECT_TRUE(holds(primary_address(0), 4 * kPage, 6));
}

TEST_P(Conformance, TwoAddressesShowOnePageWhereThatIsSaid) {
  backend_->map_primary({0, 4});
  backend_->map_alias(alias(0), {2, 1});
  write(alias(0), kPage, 4);
  if (!backend_->aliasing()) return;
  EXPECT_TRUE(holds(primary_address(2), kPage, 4));
  backend_->map_alias(alias(5), {2, 1});
  EXPECT_TRUE(holds(alias(5), kPage, 4));
  backend_->unmap_alias(alias(0), {2, 1});
  backend_->unmap_alias(alias(5), {2, 1});
  EXPECT_TRUE(holds(primary_address(2), kPage, 4));
}

TEST_P(Conformance, PagesMoveHundredsOfTimes) {
  backend_->map_primary({0, 32});
  for (uint64_t round = 0; round < 300; ++round) {
    const uint64_t page = round * 7 % 31;
    const uint64_t at = backend_->rebindable() ? round * 5 % 31 : page;
    backend_->map_alias(alias(at), {page, 1});
    write(alias(at), kPage, static_cast<int>(round));
    EXPECT_TRUE(holds(alias(at), kPage, static_cast<int>(round)));
    backend_->unmap_alias(alias(at), {page, 1});
    write(primary_address(page), kPage, 1);
  }
}

TEST_P(Conformance, UnbackedPagesComeBackWhereThatIsSaid) {
  backend_->map_primary({0, 4});
  write(primary_address(0), 4 * kPage, 1);
  backend_->unmap_and_release({1, 2});
  EXPECT_TRUE(holds(primary_address(0), kPage, 1));
  EXPECT_TRUE(holds(primary_address(3), kPage, 1));
  if (!backend_->rebindable()) return;
  backend_->map_primary({1, 2});
  write(primary_address(1), 2 * kPage, 2);
  EXPECT_TRUE(holds(primary_address(1), 2 * kPage, 2));
}

TEST_P(Conformance, EventsAreDoneAfterAHostWait) {
  ASSERT_TRUE(backend_->events_allowed());
  EXPECT_TRUE(backend_->event_done(0)) << "a point that has always been passed";
  const Event event = backend_->record_event(3);
  backend_->stream_wait(4, event);
  backend_->synchronize(event);
  EXPECT_TRUE(backend_->event_done(event));
  backend_->release_event(event);
}

TEST_P(Conformance, EventsAreDoneAfterAWaitForTheDevice) {
  const Event event = backend_->record_event(3);
  backend_->synchronize_all();
  EXPECT_TRUE(backend_->event_done(event));
  backend_->release_event(event);
}

TEST_P(Conformance, ReadsNothingOfItsOwnInAChild) {
  backend_->discard_in_child(primary_address(0), 0);
}

INSTANTIATE_TEST_SUITE_P(Backends, Conformance,
                         testing::Values("host", "memfd", "null", "host+late_events",
                                         "memfd+faults+late_events", "null+late_events",
                                         "memfd+limit=100000000", "host+faults"));

TEST(MakeBackend, RefusesUnknownNames) {
  expect_error(Status::kInvalidArgument, "unknown backend 'disk'; known are host, memfd, null",
               [] { make_backend("disk"); });
  expect_error(Status::kInvalidArgument, "unknown backend ''", [] { make_backend(""); });
  expect_error(Status::kInvalidArgument, "unknown backend decorator 'slow'",
               [] { make_backend("null+slow"); });
  for (const char* spec : {"null+limit=", "null+limit=abc", "null+limit=-1", "null+limit=1GiB",
                           "null+limit=99999999999999999999"}) {
    expect_error(Status::kInvalidArgument, "is no number", [&] { make_backend(spec); });
  }
}

TEST(MakeBackend, WithoutDecoratorsTheControlsRefuse) {
  const auto backend = make_backend("null");
  expect_error(Status::kInvalidArgument, "no '+faults'", [&] { backend->inject_fault("map", 1); });
  expect_error(Status::kInvalidArgument, "no '+late_events'", [&] { backend->complete_events(1); });
}

TEST(MakeBackend, ARangeBeyondAllAddressesIsRefused) {
  for (const char* name : {"host", "memfd"}) {
    expect_error(Status::kSystem, "of address space", [&] {
      make_backend(name)->reserve({kGiB, uint64_t{1} << 20, uint64_t{1} << 20});
    });
  }
}

TEST(NullBackend, HasNoAddressThatAnybodyElseCanHave) {
  const auto backend = make_backend("null");
  EXPECT_GT(backend->base(), uint64_t{1} << 57);
}

}  // namespace
}  // namespace vramkit
