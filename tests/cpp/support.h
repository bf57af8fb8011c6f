// What the native tests share.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "device_model.h"
#include "pool/engine.h"

namespace vramkit {

/// The error that `body` throws.
template <typename Body>
Error caught(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error was thrown";
  return {Status::kOk, ""};
}

template <typename Body>
void expect_error(Status status, const std::string& text, Body body) {
  const Error error = caught(body);
  EXPECT_EQ(error.status(), status) << error.what();
  EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
}

/// Keeps reports of injected failures off the screen.
class QuietStderr {
 public:
  QuietStderr() { testing::internal::CaptureStderr(); }
  ~QuietStderr() { testing::internal::GetCapturedStderr(); }
};

/// A fresh seed, or the one in VRAMKIT_STRESS_SEED. Failure messages should show
/// `replay_with(seed)`.
inline uint64_t stress_seed() {
  const char* const given = std::getenv("VRAMKIT_STRESS_SEED");
  if (given != nullptr && *given != '\0') return std::strtoull(given, nullptr, 10);
  return std::random_device{}();
}
inline std::string replay_with(uint64_t seed) {
  return "replay with VRAMKIT_STRESS_SEED=" + std::to_string(seed);
}

inline EngineConfig config_of(const std::string& backend, uint64_t capacity_bytes,
                              uint64_t page_bytes = 64 * kKiB) {
  return {backend, "test", capacity_bytes, page_bytes};
}

inline constexpr std::array<const char*, 7> kBackendCalls = {
    "map_primary",  "unmap_and_release", "map_alias",      "unmap_alias",
    "record_event", "stream_wait",       "synchronize_all"};

/// An engine on a device whose streams run late, judged; its backend can be told to fail.
class JudgedEngine {
 public:
  explicit JudgedEngine(uint64_t pages, const std::string& backend = "null",
                        uint64_t max_alias_pages = 1 << 20) {
    auto model = std::make_unique<DeviceModel>(make_backend(backend), violations_, max_alias_pages);
    device_ = model.get();
    engine_ = std::make_unique<Engine>(config_of(backend, pages * kPage),
                                       std::make_unique<FaultBackend>(std::move(model)));
  }
  ~JudgedEngine() {
    device_->set_capturing(false);
    for (const char* call : kBackendCalls) engine_->inject_fault(call, 0);
    while (!live_.empty()) free(*live_.begin());
    engine_->drain();
    engine_.reset();
    EXPECT_EQ(violations_, "");
  }

  static constexpr uint64_t kPage = 64 * kKiB;

  Engine* operator->() { return engine_.get(); }
  DeviceModel& device() { return *device_; }

  /// 0 when the pool cannot serve it.
  uint64_t allocate(uint64_t bytes, size_t stream = 0) {
    const uint64_t address = engine_->allocate(bytes, DeviceModel::handle(stream), 0);
    check();
    if (address == 0) return 0;
    device_->on_allocate(address, size_of(address), stream);
    live_.insert(address);
    return address;
  }
  void use(uint64_t address, size_t stream) { device_->on_use(address, size_of(address), stream); }
  void record_stream(uint64_t address, size_t stream) {
    engine_->record_stream(address, DeviceModel::handle(stream));
    use(address, stream);
    check();
  }
  /// Returns the size that was asked for.
  uint64_t free(uint64_t address) {
    return free_with(address, [&] { return engine_->release(address); });
  }
  /// After the program has made `stream` wait for `owner`.
  uint64_t free_on(uint64_t address, size_t stream, size_t owner) {
    device_->streams().wait(stream, device_->streams().now(owner));
    return free_with(address,
                     [&] { return engine_->release_on(address, DeviceModel::handle(stream)); });
  }
  uint64_t size_of(uint64_t address) { return engine_->find(address)->size; }
  void check() {
    engine_->check_valid();
    EXPECT_EQ(violations_, "");
  }
  std::string take_violations() { return std::exchange(violations_, ""); }

 private:
  template <typename Release>
  uint64_t free_with(uint64_t address, Release release) {
    const uint64_t bytes = size_of(address);
    const uint64_t requested = release();
    device_->on_free(address, bytes);
    live_.erase(address);
    check();
    return requested;
  }

  std::string violations_;
  DeviceModel* device_ = nullptr;
  std::set<uint64_t> live_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace vramkit
