#include "loader/registration_cuda.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "fake_driver.h"
#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kAddress = uint64_t{1} << 30;

TEST(RegistrationCuda, RegistersAndUnregisters) {
  FakeGpu& gpu = FakeGpu::fresh();
  host_register(kAddress, kMiB, 0);
  host_register(kAddress + kMiB, 2 * kMiB, 1);
  EXPECT_EQ(gpu.registered,
            (std::map<uint64_t, size_t>{{kAddress, kMiB}, {kAddress + kMiB, 2 * kMiB}}));
  EXPECT_EQ(gpu.contexts, 2);
  host_unregister(kAddress);
  host_unregister(kAddress + kMiB);
  EXPECT_TRUE(gpu.registered.empty());
  EXPECT_EQ(gpu.contexts, 0);
  expect_error(Status::kInvalidArgument, "no host memory was registered at address 0x40000000",
               [] { host_unregister(kAddress); });
}

TEST(RegistrationCuda, MemoryThatIsOnlyRead) {
  FakeGpu& gpu = FakeGpu::fresh();
  host_register(kAddress, kMiB, 0, true);
  EXPECT_TRUE(gpu.read_only);
  host_register(kAddress + kMiB, kMiB, 0);
  EXPECT_FALSE(gpu.read_only);
  host_unregister(kAddress);
  host_unregister(kAddress + kMiB);
}

TEST(RegistrationCuda, ARefusalNamesTheLimit) {
  FakeGpu& gpu = FakeGpu::fresh();
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_MEMLOCK, &before), 0);
  const struct rlimit low = {64 * kKiB, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_MEMLOCK, &low), 0);
  gpu.registering = cuda::kOutOfMemory;
  expect_error(
      Status::kSystem,
      "cuda:0: the driver cannot register 3.0 GiB of host memory: FAKE_ERROR (2). The limit "
      "on locked memory (ulimit -l) is 64.0 KiB; raise it, or register less",
      [] { host_register(kAddress, 3 * kGiB, 0); });
  ASSERT_EQ(::setrlimit(RLIMIT_MEMLOCK, &before), 0);
  EXPECT_EQ(gpu.contexts, 0);
  gpu.registering = cuda::kSuccess;
  host_register(kAddress, 3 * kGiB, 0);
  host_unregister(kAddress);
}

TEST(RegistrationCuda, TwiceIsRefused) {
  FakeGpu& gpu = FakeGpu::fresh();
  host_register(kAddress, kMiB, 0);
  const auto again = [] { host_register(kAddress, kMiB, 0); };
  expect_error(Status::kInvalidArgument, "are registered already", again);
  host_unregister(kAddress);
  gpu.registering = cuda::kHostMemoryAlreadyRegistered;  // by someone else
  expect_error(Status::kInvalidArgument, "are registered already", again);
  EXPECT_EQ(gpu.contexts, 0);
}

TEST(RegistrationCuda, RefusesWhatCannotBe) {
  FakeGpu::fresh();
  expect_error(Status::kInvalidArgument, "cannot register 0 bytes",
               [] { host_register(kAddress, 0, 0); });
  expect_error(Status::kInvalidArgument, "at address 0x0", [] { host_register(0, kMiB, 0); });
  expect_error(Status::kInvalidArgument, "cannot register",
               [] { host_register(kAddress, UINT64_MAX, 0); });
  for (const int device : {-1, 5}) {
    expect_error(Status::kInvalidArgument,
                 "there is no CUDA device " + std::to_string(device) + ": the driver counts 5",
                 [device] { host_register(kAddress, kMiB, device); });
  }
}

TEST(RegistrationCuda, AGoneContextTakesItsRegistrationsAlong) {
  FakeGpu& gpu = FakeGpu::fresh();
  host_register(kAddress, kMiB, 0);
  gpu.context_gone = true;
  {
    const QuietStderr quiet;
    host_unregister(kAddress);
  }
  gpu.context_gone = false;
  gpu.registered.clear();
  host_register(kAddress, kMiB, 0);
  host_unregister(kAddress);
}

TEST(RegistrationCuda, AForkedChildIsRefused) {
  FakeGpu::fresh();
  host_register(kAddress, kMiB, 0);
  const pid_t child = ::fork();
  if (child == 0) {
    int refused = 0;
    try {
      host_unregister(kAddress);
    } catch (const Error& error) {
      refused += error.status() == Status::kForked;
    }
    try {
      host_register(kAddress + kMiB, kMiB, 0);
    } catch (const Error& error) {
      refused += error.status() == Status::kForked;
    }
    ::_exit(refused == 2 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  host_unregister(kAddress);
}

}  // namespace
}  // namespace vramkit
