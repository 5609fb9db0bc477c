#pragma once

#include <heed/parallel/executor.hpp>
#include <heed/parallel/workspace.hpp>
#include <heed/view/ingredients.hpp>

#include <concepts>

/// The ingredients that say where a call runs, which every call takes.
namespace heed::detail {

inline constexpr auto is_executor = []<class T>() { return executor<T const>; };
inline constexpr auto is_scratch = []<class T>() { return std::same_as<T, scratch>; };

/// The executor of a call; everything on the calling thread if none is given.
template <class... I>
auto executor_of(I const&... ingredients) {
  return one_of<is_executor>(serial{}, ingredients...);
}
/// The workspace of a call; the calling thread's if none is given.
template <class... I>
workspace& scratch_of(I const&... ingredients) {
  return one_of<is_scratch>(scratch{thread_workspace()}, ingredients...).memory;
}

}  // namespace heed::detail
