// One update of embedding tables at the end of a backward pass.
#include "bind/torch/adapter_node_gradients.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace vramkit::adapter {
namespace {

using at::Tensor;

template <class Signature>
c10::TypedOperatorHandle<Signature> find_operator(std::string_view name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(std::string(name).c_str(), "")
      .typed<Signature>();
}

/// The operators of tables on one kind of device, or of their emulation.
struct Operators {
  using Insert = std::vector<Tensor>(at::TensorList, at::IntArrayRef, at::ArrayRef<double>);
  using Update = void(at::TensorList, at::IntArrayRef, at::ArrayRef<double>);

  std::string name;
  c10::TypedOperatorHandle<Insert> insert;
  c10::TypedOperatorHandle<Update> update;
};

/// All kinds; their addresses never change.
class Kinds {
 public:
  int64_t add(std::string_view insert, std::string_view update) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(all_.begin(), all_.end(),
                                    [&](const Operators& of) { return of.name == insert; });
    const auto number = std::distance(all_.begin(), found);
    if (found == all_.end()) {
      all_.push_back({std::string(insert), find_operator<Operators::Insert>(insert),
                      find_operator<Operators::Update>(update)});
    }
    return number;
  }
  const Operators& at(int64_t number) {
    const std::lock_guard lock(mutex_);
    TORCH_CHECK(number >= 0 && static_cast<std::size_t>(number) < all_.size(),
                "vramkit: there are no operators of tables with the number ", number);
    return all_[static_cast<std::size_t>(number)];
  }

 private:
  std::mutex mutex_;
  std::deque<Operators> all_;
};

Kinds& kinds() {
  static auto* const all = new Kinds;
  return *all;
}

double* told(const Tensor& control) { return static_cast<double*>(control.data_ptr()); }

/// Has Python raise its error for that of an operator; `type` is the name of Python's type.
void raise(const char* type, const std::exception& error) {
  static const auto in_python =
      find_operator<void(std::string_view, std::string_view)>("vramkit::raise_table_error");
  in_python.call(type, error.what());
}

/// Calls an operator whose errors reach Python by way of the engine, which knows no types of its
/// own for those of the standard library.
template <class F>
void with_errors_of_python(const F& call) {
  try {
    call();
  } catch (const std::out_of_range& error) {
    raise("IndexError", error);
    throw;
  } catch (const std::bad_alloc& error) {
    raise("MemoryError", error);
    throw;
  } catch (const std::invalid_argument& error) {
    raise("ValueError", error);
    throw;
  } catch (const std::runtime_error& error) {
    raise("RuntimeError", error);
    throw;
  }
}

/// The current stream of the device of a tensor on a GPU.
c10::Stream current_stream(const Tensor& tensor) {
  return c10::impl::VirtualGuardImpl(tensor.device().type()).getStream(tensor.device());
}

/// The gradients of the running pass for tables that one call of an operator can update.
class PassGradients {
 public:
  explicit PassGradients(const Operators& operators) : operators_(operators) {}

  void add(const TableGradient& of) {
    const Tensor& grad = of.parts[0];
    if (!grad.is_cpu()) {
      const c10::Stream stream = current_stream(grad);
      if (streams_.empty() || streams_.back().first != stream) {
        streams_.emplace_back(stream, parts_.size());
      }
    }
    parts_.insert(parts_.end(), of.parts.begin(), of.parts.end());
    plan_.insert(plan_.end(), of.plan.begin(), of.plan.end());
    const bool is_new = std::none_of(controls_.begin(), controls_.end(), [&](const Tensor& known) {
      return known.is_same(of.control);
    });
    if (is_new) controls_.push_back(of.control);
  }

  void update() {
    wait();
    std::vector<double> numbers;
    for (const Tensor& control : controls_) {
      numbers.insert(numbers.end(), told(control) + kRule, told(control) + kTold);
      numbers.push_back(1.0);  // the gradients' factor
    }
    with_errors_of_python([&] {
      const at::AutoDispatchBelowADInplaceOrView below;
      operators_.update.call(parts_, plan_, numbers);
    });
    for (const Tensor& control : controls_) {
      // Passes of other threads may update the table, too.
      std::atomic_ref<double>(told(control)[kUpdates]).fetch_add(1.0, std::memory_order_relaxed);
    }
  }

 private:
  /// Has the current stream wait for those that made the gradients.
  void wait() const {
    for (std::size_t i = 0; i < streams_.size(); ++i) {
      const auto& [stream, begin] = streams_[i];
      const c10::Stream here = current_stream(parts_[0]);
      if (stream == here) continue;
      c10::Event event(here.device_type());
      event.record(stream);
      event.block(here);
      const std::size_t end = i + 1 < streams_.size() ? streams_[i + 1].second : parts_.size();
      for (std::size_t part = begin; part < end; ++part) {
        if (!parts_[part].is_cpu()) parts_[part].record_stream(here);
      }
    }
  }

  const Operators& operators_;
  std::vector<Tensor> parts_;
  std::vector<int64_t> plan_;
  std::vector<Tensor> controls_;
  // Streams, and the first part that each has made.
  std::vector<std::pair<c10::Stream, std::size_t>> streams_;
};

/// Of the running backward passes. The engine holds the gradients until a pass has ended, also
/// where it fails: nothing of such a pass is left.
class Running {
 public:
  std::shared_ptr<PassGradients> find(int64_t kind, const at::Device& device) {
    const Key key(torch::autograd::get_current_graph_task_id(), kind, device.type(),
                  device.index());
    const std::lock_guard lock(mutex_);
    if (auto found = all_[key].lock()) return found;
    std::erase_if(all_, [](const auto& of) { return of.second.expired(); });
    auto made = std::make_shared<PassGradients>(kinds().at(kind));
    torch::autograd::Engine::get_default_engine().queue_callback([made] { made->update(); });
    all_[key] = made;
    return made;
  }

 private:
  using Key = std::tuple<int, int64_t, c10::DeviceType, c10::DeviceIndex>;
  std::mutex mutex_;
  std::map<Key, std::weak_ptr<PassGradients>> all_;
};

Running& running() {
  static auto* const all = new Running;
  return *all;
}

}  // namespace

int64_t register_tables(std::string_view insert, std::string_view update) {
  return kinds().add(insert, update);
}

std::vector<Tensor> insert_rows(int64_t kind, at::TensorList parts, at::IntArrayRef plan,
                                at::ArrayRef<double> limits) {
  return kinds().at(kind).insert.call(parts, plan, limits);
}

void keep_gradient(int64_t kind, const TableGradient& of) {
  const double* const now = told(of.control);
  if (now[kHeld] == 0.0 && now[kReplaced] == 0.0) {
    running().find(kind, of.parts[0].device())->add(of);
    return;
  }
  using Signature = void(const Tensor&, at::TensorList, at::IntArrayRef);
  static const auto in_python = find_operator<Signature>("vramkit::hold_table_gradient");
  in_python.call(of.control, of.parts, of.plan);
}

}  // namespace vramkit::adapter
