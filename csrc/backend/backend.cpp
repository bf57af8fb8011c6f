#include "backend/backend.h"

#include <charconv>

#include "backend/decorators.h"
#include "backend/host.h"
#include "backend/memfd.h"
#include "backend/null.h"
#include "backend/slab_cuda.h"
#include "backend/vmm_cuda.h"
#include "base/error.h"

namespace vramkit {
namespace {

uint64_t number_in(const std::string& text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw_error(Status::kInvalidArgument, "'%s' is no number", text.c_str());
  }
  return number;
}

/// "N" or "N@ADDRESS".
std::unique_ptr<Backend> make_cuda(const std::string& where) {
  const size_t at = where.find('@');
  const auto device = static_cast<int>(number_in(where.substr(0, at)));
  if (at == std::string::npos) return std::make_unique<CudaVmmBackend>(device);
  return std::make_unique<CudaSlabBackend>(device, number_in(where.substr(at + 1)));
}

std::unique_ptr<Backend> make_base(const std::string& name) {
  if (name == "host") return std::make_unique<HostBackend>();
  if (name == "memfd") return std::make_unique<MemfdBackend>();
  if (name == "null") return std::make_unique<NullBackend>();
  if (name.starts_with("cuda:")) return make_cuda(name.substr(5));
  throw_error(Status::kInvalidArgument, "unknown backend '%s'; known are host, memfd, null, cuda:N",
              name.c_str());
}

std::unique_ptr<Backend> decorate(std::unique_ptr<Backend> inner, const std::string& name) {
  if (name == "faults") return std::make_unique<FaultBackend>(std::move(inner));
  if (name == "late_events") return std::make_unique<LateEventsBackend>(std::move(inner));
  if (name == "slow_maps") return std::make_unique<SlowMapsBackend>(std::move(inner));
  if (name.starts_with("limit=")) {
    return std::make_unique<LimitBackend>(std::move(inner), number_in(name.substr(6)));
  }
  throw_error(
      Status::kInvalidArgument,
      "unknown backend decorator '%s'; known are faults, late_events, slow_maps, limit=BYTES",
      name.c_str());
}

}  // namespace

void Backend::inject_fault(const std::string& call, uint64_t) {
  throw_error(Status::kInvalidArgument, "no '+faults' in the backend: cannot make '%s' fail",
              call.c_str());
}

void Backend::complete_events(uint64_t) {
  throw_error(Status::kInvalidArgument, "no '+late_events' in the backend: no event is late");
}

std::unique_ptr<Backend> make_backend(const std::string& spec) {
  size_t end = spec.find('+');
  std::unique_ptr<Backend> backend = make_base(spec.substr(0, end));
  while (end != std::string::npos) {
    const size_t start = end + 1;
    end = spec.find('+', start);
    backend = decorate(std::move(backend), spec.substr(start, end - start));
  }
  return backend;
}

}  // namespace vramkit
