// What a pattern is made from: arguments, and the shape of the call that it is for.
#pragma once

#include "registry.hpp"

#include <heed/pattern/any_pattern.hpp>
#include <heed/pattern/grid.hpp>
#include <heed/score/relative_bias.hpp>

namespace conformance {

/// Makes patterns. What they point to lives as long as this does.
class pattern_arguments {
 public:
  /// `lanes` is the number of queries that the engine works on at a time.
  pattern_arguments(arguments& arguments, heed::call_shape const& of_call, index_t lanes_of_engine)
      : given(arguments), shape(of_call), lanes(lanes_of_engine) {}

  arguments& given;
  heed::call_shape shape;
  index_t lanes;

  /// A step of decoding takes its row and the keys up to it from tables of all of them, or says where these begin.
  bool grows = false;
  index_t row = 0;
  std::optional<index_t> first_position;

  heed::any_arrangement order;  ///< how the tokens are arranged, if not in their order
  heed::relative_index const* relative = nullptr;  ///< the entries of a table of relative positions
  bool top_left = false;  ///< whether the first query stands at the first key

  index_t integer(std::string_view name) const { return given.integer(name); }
  bool flag(std::string_view name) const { return given.flag(name); }

  /// The array in a file; leading axes that it lacks have extent 1.
  template <class T, int Rank>
  heed::tensor_view<T const, Rank> numbers(std::string_view name) {
    return keep(given.input<T, Rank>(name, 0, static_cast<std::size_t>(Rank))).const_view();
  }
  template <class T, int Rank>
  heed::tensor_view<T const, Rank> optional_numbers(std::string_view name) {
    return given.has(name) ? numbers<T, Rank>(name) : heed::tensor_view<T const, Rank>();
  }
  /// One number for each query row or each key, [batch, head, n]: those of the rows or keys of this call.
  template <class T>
  heed::tensor_view<T const, 3> by_row(std::string_view name) {
    return grows ? part(name, numbers<T, 3>(name), row, 1) : numbers<T, 3>(name);
  }
  template <class T>
  heed::tensor_view<T const, 3> by_key(std::string_view name) {
    return grows ? part(name, numbers<T, 3>(name), 0, shape.keys) : numbers<T, 3>(name);
  }
  template <class T>
  std::span<T const> list(std::string_view name) {
    auto const& all = keep(given.input<T, 1>(name));
    return {all.data(), static_cast<std::size_t>(all.shape()[0])};
  }

  template <std::size_t d>
  heed::grid_point<d> point(std::string_view name) const {
    return given.point<d>(name);
  }

  template <class U>
  U const& keep(U&& value) {
    auto const kept = std::make_shared<std::remove_cvref_t<U>>(std::forward<U>(value));
    memory_.push_back(kept);
    return *kept;
  }

  /// Arranges the tokens, and returns what arranges them.
  template <heed::arrangement A>
  A const& arrange(A const& how) {
    how.check(shape);
    A const& kept = keep(how);
    order = heed::any_arrangement(kept);
    return kept;
  }

 private:
  template <class T>
  static heed::tensor_view<T const, 3> part(std::string_view name,
                                            heed::tensor_view<T const, 3> all, index_t first,
                                            index_t count) {
    require(first + count <= all.extent(2), [&] {
      return std::string(name) + " has shape " + heed::shape_text(all.extents()) + "; expected " +
             std::to_string(first + count) + " numbers or more on its last axis";
    });
    return all.slice(2, first, count);
  }

  std::vector<std::shared_ptr<void const>> memory_;
};

}  // namespace conformance
