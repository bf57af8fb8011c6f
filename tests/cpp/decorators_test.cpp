#include "backend/decorators.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>
#include <vector>

#include "support.h"

namespace vramkit {
namespace {

constexpr Layout kLayout{64 * kKiB, 16, 16};

std::unique_ptr<Backend> make(const char* spec) {
  auto backend = make_backend(spec);
  backend->reserve(kLayout);
  return backend;
}

TEST(LimitBackend, BacksNoMoreThanItsLimit) {
  const auto backend = make("null+limit=131072");
  backend->map_primary({0, 2});
  expect_error(Status::kOutOfMemory,
               "no memory for 64.0 KiB more: 128.0 KiB of 128.0 KiB are in use", [&] {
                 backend->map_primary({2, 1});
               });
  backend->unmap_and_release({0, 1});
  backend->map_primary({2, 1});
}

TEST(FaultBackend, FailsTheChosenCallOnce) {
  const auto backend = make("null+faults");
  backend->inject_fault("map_primary", 2);
  backend->map_primary({0, 1});
  expect_error(Status::kSystem, "injected failure of map_primary", [&] {
    backend->map_primary({1, 1});
  });
  backend->map_primary({1, 1});
}

TEST(FaultBackend, CanBeDisarmed) {
  const auto backend = make("null+faults");
  backend->inject_fault("map_alias", 1);
  backend->inject_fault("map_alias", 0);
  backend->map_alias(backend->base() + 16 * kLayout.page_bytes, {0, 1});
}

TEST(FaultBackend, FailsEveryCallThatItNames) {
  const auto backend = make_backend("null+faults");
  const uint64_t alias = backend->base() + 16 * kLayout.page_bytes;
  const std::vector<std::pair<const char*, std::function<void()>>> calls = {
      {"reserve", [&] { backend->reserve(kLayout); }},
      {"map_primary",
       [&] {
         backend->map_primary({0, 1});
       }},
      {"unmap_and_release",
       [&] {
         backend->unmap_and_release({0, 1});
       }},
      {"map_alias",
       [&] {
         backend->map_alias(alias, {0, 1});
       }},
      {"unmap_alias",
       [&] {
         backend->unmap_alias(alias, {0, 1});
       }},
      {"record_event", [&] { backend->record_event(0); }},
      {"stream_wait", [&] { backend->stream_wait(0, 0); }},
      {"synchronize_all", [&] { backend->synchronize_all(); }}};
  for (const auto& [name, call] : calls) {
    backend->inject_fault(name, 1);
    expect_error(Status::kSystem, std::string("injected failure of ") + name, call);
    call();
  }
}

TEST(FaultBackend, RefusesCallsThatThereAreNot) {
  const auto backend = make("null+faults");
  expect_error(Status::kInvalidArgument, "no backend call 'bakc'",
               [&] { backend->inject_fault("bakc", 1); });
}

TEST(LateEventsBackend, KeepsEventsOpenUntilTold) {
  const auto backend = make("host+late_events");
  const Event first = backend->record_event(0);
  const Event second = backend->record_event(1);
  EXPECT_FALSE(backend->event_done(first));
  backend->complete_events(1);
  EXPECT_TRUE(backend->event_done(first)) << "the oldest";
  EXPECT_FALSE(backend->event_done(second));
  backend->synchronize(second);
  EXPECT_TRUE(backend->event_done(second));
  backend->complete_events(10);
}

TEST(LateEventsBackend, AWaitForTheDeviceCompletesAll) {
  const auto backend = make("null+late_events");
  const Event first = backend->record_event(0);
  const Event second = backend->record_event(1);
  backend->synchronize_all();
  EXPECT_TRUE(backend->event_done(first));
  EXPECT_TRUE(backend->event_done(second));
}

TEST(Decorators, WrapInTheOrderOfTheirNames) {
  const auto backend = make("null+late_events+faults+limit=65536");
  backend->map_primary({0, 1});
  backend->inject_fault("map_primary", 1);
  expect_error(Status::kOutOfMemory, "no memory", [&] { backend->map_primary({1, 1}); });
  backend->unmap_and_release({0, 1});
  expect_error(Status::kSystem, "injected", [&] { backend->map_primary({1, 1}); });
}

// The judge of the other tests, seen to judge.
class JudgeTest : public testing::Test {
 protected:
  JudgeTest() {
    device_.reserve(kLayout);
    device_.map_primary({0, 4});
  }
  uint64_t page(uint64_t index) const { return device_.base() + index * kLayout.page_bytes; }
  void expect_accusation(const std::string& text) {
    EXPECT_NE(violations_.find(text), std::string::npos) << violations_;
    violations_.clear();
  }

  std::string violations_;
  DeviceModel device_{make_backend("null"), violations_};
};

TEST_F(JudgeTest, SeesMemoryHandedOverTooEarly) {
  device_.on_allocate(page(0), 4096, 0);
  device_.on_free(page(0), 4096);
  device_.on_allocate(page(0), 4096, 1);
  expect_accusation("handed to stream 1");
}

TEST_F(JudgeTest, AcceptsAWaitAndADoneEvent) {
  device_.on_allocate(page(0), 4096, 0);
  device_.on_free(page(0), 4096);
  const Event event = device_.record_event(0);
  device_.stream_wait(16, event);
  device_.on_allocate(page(0), 4096, 1);
  device_.on_free(page(0), 4096);
  device_.synchronize(device_.record_event(16));
  device_.on_allocate(page(0), 4096, 2);
  EXPECT_EQ(violations_, "");
}

TEST_F(JudgeTest, AcceptsAWaitForTheDevice) {
  device_.on_allocate(page(0), 4096, 0);
  device_.on_allocate(page(1), 4096, 1);
  device_.on_free(page(0), 4096);
  device_.on_free(page(1), 4096);
  device_.synchronize_all();
  device_.on_allocate(page(0), 2 * kLayout.page_bytes, 2);
  EXPECT_EQ(violations_, "");
}

TEST_F(JudgeTest, SeesAWaitThatWasTooEarly) {
  device_.on_allocate(page(0), 4096, 0);
  device_.stream_wait(16, device_.record_event(0));
  device_.on_use(page(0), 4096, 0);
  device_.on_free(page(0), 4096);
  device_.on_allocate(page(0), 4096, 1);
  expect_accusation("handed to stream 1");
}

TEST_F(JudgeTest, SeesAPageUnderTwoBlocks) {
  device_.map_alias(page(16), {1, 2});
  device_.on_allocate(page(16), 2 * kLayout.page_bytes, 0);
  device_.on_allocate(page(2), 512, 0);
  expect_accusation("live and handed out again");
}

TEST_F(JudgeTest, SeesUnmappingUnderWork) {
  device_.map_alias(page(16), {1, 1});
  device_.on_allocate(page(16), 512, 0);
  device_.on_free(page(16), 512);
  device_.unmap_alias(page(16), {1, 1});
  expect_accusation("unmapped under work");
  device_.unmap_and_release({1, 1});
  expect_accusation("given back under work");
}

TEST_F(JudgeTest, SeesMemoryGivenBackThatAnAliasHas) {
  device_.map_alias(page(16), {1, 1});
  device_.unmap_and_release({1, 1});
  expect_accusation("with 1 aliases");
}

TEST_F(JudgeTest, SeesAddressesBoundAgain) {
  device_.unmap_and_release({1, 1});
  device_.map_primary({1, 1});
  expect_accusation("backed again");
  device_.map_alias(page(16), {1, 1});
  device_.unmap_alias(page(16), {1, 1});
  device_.map_alias(page(16), {2, 1});
  expect_accusation("bound to another page");
}

TEST_F(JudgeTest, SeesEventsDuringACaptureAndOnDeadStreams) {
  const Event event = device_.record_event(0);
  device_.set_capturing(true);
  device_.event_done(event);
  expect_accusation("query of an event during a capture");
  device_.synchronize_all();
  expect_accusation("wait for the device during a capture");
  device_.set_capturing(false);
  device_.destroy_stream(0);
  device_.record_event(0);
  expect_accusation("destroyed stream 0");
}

}  // namespace
}  // namespace vramkit
