#pragma once

#include <heed/attend/observe.hpp>
#include <heed/normalize/softmax.hpp>
#include <heed/parallel/any_executor.hpp>
#include <heed/parallel/ingredients.hpp>
#include <heed/pattern/any_pattern.hpp>
#include <heed/pattern/positions.hpp>
#include <heed/score/modifier.hpp>
#include <heed/score/scale.hpp>

/// Sorts the ingredients of a call, given in any order, into the clauses of its sentence.
namespace heed::attend {

namespace detail {

using heed::detail::is_a;
using heed::detail::is_documents;
using heed::detail::is_executor;
using heed::detail::is_scratch;

inline constexpr auto is_pattern = []<class T>() { return pattern<T>; };
inline constexpr auto is_modifier = []<class T>() { return score_modifier<T>; };
inline constexpr auto is_factor = []<class T>() { return numerator_factor<T>; };
inline constexpr auto is_normaliser = []<class T>() { return normaliser<T>; };
inline constexpr auto is_row_observer = []<class T>() { return row_observer<T>; };
inline constexpr auto is_sweep_observer = []<class T>() {
  return is_a<T, column_sums_into> || is_a<T, top_keys_into>;
};
inline constexpr auto is_positions = []<class T>() {
  return std::same_as<T, top_left> || std::same_as<T, query_positions>;
};
inline constexpr auto is_arrangement = []<class T>() { return arrangement<T>; };
inline constexpr auto is_scale = []<class T>() { return std::same_as<T, scale>; };
inline constexpr auto is_row_scale = []<class T>() { return is_a<T, row_scale>; };
inline constexpr auto is_lse_gradient = []<class T>() { return is_a<T, lse_gradient>; };

}  // namespace detail

using heed::all_of;
using heed::one_of;
using heed::detail::executor_of;
using heed::detail::scratch_of;

/// Stops with one clear error if an ingredient models no concept, rather than deep in an engine.
template <class I>
constexpr bool check_ingredient() {
  using namespace detail;
  constexpr bool known =
      is_pattern.template operator()<I>() || is_modifier.template operator()<I>() ||
      is_factor.template operator()<I>() || is_normaliser.template operator()<I>() ||
      is_row_observer.template operator()<I>() || is_sweep_observer.template operator()<I>() ||
      is_executor.template operator()<I>() || is_scratch.template operator()<I>() ||
      is_positions.template operator()<I>() || is_documents.template operator()<I>() ||
      is_arrangement.template operator()<I>() || is_scale.template operator()<I>() ||
      is_row_scale.template operator()<I>() || is_lse_gradient.template operator()<I>();
  static_assert(
      known,
      "heed: this is no ingredient of attention: expected a pattern (keep), score modifier "
      "(apply), "
      "numerator factor (factor), normaliser, observer, executor, scale, positions, documents, "
      "arrangement or scratch");
  return known;
}

/// The pattern of a call, its type erased and not owned.
class pattern_view {
 public:
  template <pattern P>
  explicit pattern_view(P const& p) : pattern_(&p), bind_(&bind_as<P>) {}

  bound_any_pattern bind(place const& where) const { return bind_(pattern_, where); }

 private:
  template <class P>
  static bound_any_pattern bind_as(void const* p, place const& where) {
    P const& pattern = *static_cast<P const*>(p);
    if constexpr (std::is_same_v<decltype(bind_at(pattern, where)), bound_any_pattern>)
      return bind_at(pattern, where);  // whose type is erased already
    else
      return bound_any_pattern([&] { return bind_at(pattern, where); });
  }

  void const* pattern_;
  bound_any_pattern (*bind_)(void const*, place const&);
};

/// What decides the numbers of a call, bound to a place.
template <class Modifiers, class Factors, class Normaliser>
struct bound_sentence {
  bound_any_pattern pattern;
  Modifiers modifiers;
  Factors factors;
  Normaliser normaliser;
};

/// What decides the numbers of a call: pattern, modifiers, factors and the normaliser. `at` binds it to a place.
template <class Modifiers, class Factors, class Normaliser>
struct sentence {
  pattern_view pattern;
  Modifiers modifiers;
  Factors factors;
  Normaliser normaliser;

  auto at(place const& where) const {
    auto bind_all = [&](auto const&... items) { return std::tuple(bind_at(items, where)...); };
    using bound_modifiers = decltype(std::apply(bind_all, modifiers));
    using bound_factors = decltype(std::apply(bind_all, factors));
    return bound_sentence<bound_modifiers, bound_factors, decltype(bind_at(normaliser, where))>{
        pattern.bind(where), std::apply(bind_all, modifiers), std::apply(bind_all, factors),
        bind_at(normaliser, where)};
  }
};

namespace detail {

// The pattern itself and not a copy: it is looked at from afar.
inline pattern_view view_of_pattern() {
  static constexpr dense everything;
  return pattern_view(everything);
}
template <class First, class... I>
pattern_view view_of_pattern(First const& first, I const&... rest) {
  if constexpr (pattern<First>)
    return pattern_view(first);
  else
    return view_of_pattern(rest...);
}

}  // namespace detail

/// The sentence of a call. It refers to the pattern among the ingredients.
template <class... I>
auto make_sentence(I const&... ingredients) {
  static_assert((0 + ... + int(pattern<I>)) <= 1,
                "heed: two patterns; a call takes one: join them with & or |");
  auto const modifiers = all_of<detail::is_modifier>(ingredients...);
  auto const factors = all_of<detail::is_factor>(ingredients...);
  auto const the_normaliser = one_of<detail::is_normaliser>(softmax{}, ingredients...);
  return sentence<std::remove_const_t<decltype(modifiers)>, std::remove_const_t<decltype(factors)>,
                  std::remove_const_t<decltype(the_normaliser)>>{
      detail::view_of_pattern(ingredients...), modifiers, factors, the_normaliser};
}

}  // namespace heed::attend
