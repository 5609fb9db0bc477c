#pragma once

#include <tuple>
#include <type_traits>

/// Sorting the ingredients of a call, which come in any order.
namespace heed {

namespace detail {

template <class T, template <class...> class Template>
inline constexpr bool is_a = false;
template <class... Arguments, template <class...> class Template>
inline constexpr bool is_a<Template<Arguments...>, Template> = true;

template <auto Is, class T>
constexpr auto keep_if(T const& ingredient) {
  if constexpr (Is.template operator()<T>())
    return std::tuple<T>(ingredient);
  else
    return std::tuple<>();
}

}  // namespace detail

/// The ingredients of one kind, in the order given, as a tuple.
template <auto Is, class... I>
constexpr auto all_of(I const&... ingredients) {
  return std::tuple_cat(detail::keep_if<Is>(ingredients)...);
}

/// The only ingredient of a kind, or `otherwise`.
template <auto Is, class Default, class... I>
constexpr auto one_of(Default const& otherwise, I const&... ingredients) {
  static_assert((0 + ... + int(Is.template operator()<I>())) <= 1,
                "heed: two ingredients of a kind of which a call takes one");
  if constexpr ((false || ... || Is.template operator()<I>()))
    return std::get<0>(all_of<Is>(ingredients...));
  else
    return otherwise;
}

}  // namespace heed
