#pragma once

#include <heed/parallel/executor.hpp>

namespace heed {

/// An executor of any type, not owned, so that what runs on it is compiled once.
class any_executor {
 public:
  template <class E>
    requires executor<E const>
  explicit any_executor(E const& e)
      : executor_(&e),
        concurrency_([](void const* at) {
          return static_cast<index_t>(static_cast<E const*>(at)->concurrency());
        }),
        run_([](void const* at, index_t n, call f) { static_cast<E const*>(at)->run(n, f); }) {}

  template <class E>
    requires executor<E const>
  explicit any_executor(E const&&) = delete;  // it would be gone

  index_t concurrency() const { return concurrency_(executor_); }
  template <class F>
  void run(index_t n, F f) const {
    run_(executor_, n, call{&f, [](void* what, index_t i) { (*static_cast<F*>(what))(i); }});
  }

 private:
  struct call {
    void* what;
    void (*function)(void*, index_t);

    void operator()(index_t i) const noexcept { function(what, i); }
  };

  void const* executor_;
  index_t (*concurrency_)(void const*);
  void (*run_)(void const*, index_t, call);
};

}  // namespace heed
