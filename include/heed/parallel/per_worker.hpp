#pragma once

#include <heed/parallel/workspace.hpp>

#include <new>
#include <type_traits>

namespace heed {

/// One object for each worker of a parallel_for, made when it is first asked for, with scratch memory of its own.
template <class Worker>
class per_worker {
  static_assert(std::is_trivially_destructible_v<Worker>);

 public:
  /// Memory for `workers` of them, which are made from (arena&, arguments...).
  template <class... Arguments>
  per_worker(arena& memory, index_t workers, Arguments const&... arguments) {
    arena size;
    Worker(size, arguments...);
    bytes_ = static_cast<index_t>(size.used());
    objects_ = memory.take<Worker>(workers);
    made_ = memory.take<bool>(workers);
    memory_ = memory.take<std::byte>(workers * bytes_);
    if (!memory.measuring()) std::fill_n(made_, workers, false);
  }

  template <class... Arguments>
  Worker& get(index_t worker, Arguments const&... arguments) {
    if (!made_[worker]) {
      arena own(memory_ + worker * bytes_);
      new (objects_ + worker) Worker(own, arguments...);
      made_[worker] = true;
    }
    return objects_[worker];
  }

 private:
  index_t bytes_;
  Worker* objects_;
  bool* made_;
  std::byte* memory_;
};

}  // namespace heed
