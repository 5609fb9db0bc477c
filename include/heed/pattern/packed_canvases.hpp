#pragma once

#include <heed/pattern/grid.hpp>
#include <heed/pattern/pattern.hpp>

#include <vector>

/// Canvases of different shapes in one call, as pictures of any size come in a batch: their tokens lie one canvas after
/// the other, and each is a problem of its own.
namespace heed {

/// The arrangement of some canvases, each with an arrangement of the type Order.
///
///     std::vector<neighborhood_order<2>> orders;
///     for (grid_point<2> canvas : canvases)
///       orders.emplace_back(neighborhood<2>{.canvas = canvas, .window = {7, 7}}, attend::panel_lanes<float>);
///     packed_canvases const pictures(orders);
///     attention(q, k, v, out, pictures, pictures.pattern());  // [batch, tokens of all canvases, heads, dim]
///
/// Windows and grids need no pattern. Throws heed::error where an arrangement does.
template <arrangement Order>
class packed_canvases {
 public:
  explicit packed_canvases(std::vector<Order> orders) : orders_(std::move(orders)) {
    for (std::size_t n = 0; n < orders_.size(); ++n) {
      Order const& order = orders_[n];
      if constexpr (requires { order.canvas; })
        order.check({.rows = grid_size(order.canvas), .keys = grid_size(order.canvas)});
      if constexpr (requires { order.pattern(); }) patterns_.push_back(order.pattern());
      canvases_.push_back({static_cast<index_t>(canvas_of_.size()), query_tokens_, key_tokens_});
      for (index_t g = 0; g < order.groups(); ++g) {
        canvas_of_.push_back(n);
        query_tokens_ +=
            tokens(order.rows(g), [&](index_t slot) { return order.query_run(g, slot); });
        key_tokens_ += tokens(order.keys(g), [&](index_t slot) { return order.key_run(g, slot); });
      }
    }
  }

  std::vector<Order> const& orders() const { return orders_; }

  index_t groups() const { return static_cast<index_t>(canvas_of_.size()); }
  index_t panel_rows() const requires requires(Order const& order) { order.panel_rows(); }
  { return orders_.empty() ? 0 : orders_[0].panel_rows(); }
  index_t rows(index_t group) const {
    return in_canvas(group,
                     [](Order const& order, index_t g, auto const&) { return order.rows(g); });
  }
  index_t keys(index_t group) const {
    return in_canvas(group,
                     [](Order const& order, index_t g, auto const&) { return order.keys(g); });
  }
  token_run query_run(index_t group, index_t slot) const {
    return in_canvas(group, [&](Order const& order, index_t g, canvas const& at) {
      return moved(order.query_run(g, slot), at.first_query);
    });
  }
  token_run key_run(index_t group, index_t slot) const {
    return in_canvas(group, [&](Order const& order, index_t g, canvas const& at) {
      return moved(order.key_run(g, slot), at.first_key);
    });
  }
  auto query_place(index_t group, index_t slot) const {
    return in_canvas(group, [&](Order const& order, index_t g, auto const&) {
      return order.query_place(g, slot);
    });
  }
  auto key_place(index_t group, index_t slot) const {
    return in_canvas(group, [&](Order const& order, index_t g, auto const&) {
      return order.key_place(g, slot);
    });
  }

  void check(call_shape const& shape) const {
    require(shape.rows == query_tokens_ && shape.keys == key_tokens_, [&] {
      return "packed_canvases hold " + std::to_string(query_tokens_) + " queries and " +
             std::to_string(key_tokens_) + " keys; expected those of the call, " +
             std::to_string(shape.rows) + " and " + std::to_string(shape.keys);
    });
  }

  /// The pattern of every canvas on its slots. It refers to this arrangement.
  struct pattern_of_each {
    packed_canvases const* canvases;

    auto bind(place const& where) const {
      std::size_t const n = canvases->canvas_of_[static_cast<std::size_t>(where.group)];
      place local = where;
      local.group -= canvases->canvases_[n].first_group;
      return bind_at(canvases->patterns_[n], local);
    }
  };
  pattern_of_each pattern() const { return {this}; }

 private:
  struct canvas {
    index_t first_group, first_query, first_key;
  };
  struct none {};
  template <class O>
  static auto pattern_type(O const& order) {
    if constexpr (requires { order.pattern(); })
      return order.pattern();
    else
      return none{};
  }

  template <class Run>
  static index_t tokens(index_t slots, Run run) {
    index_t count = 0;
    for (index_t slot = 0; slot < slots;) {
      token_run const next = run(slot);
      if (!next.padding()) count += next.size;
      slot += next.size;
    }
    return count;
  }
  static token_run moved(token_run run, index_t by) {
    if (!run.padding()) run.first += by;
    return run;
  }
  template <class F>
  auto in_canvas(index_t group, F f) const {
    std::size_t const n = canvas_of_[static_cast<std::size_t>(group)];
    return f(orders_[n], group - canvases_[n].first_group, canvases_[n]);
  }

  std::vector<Order> orders_;
  std::vector<decltype(pattern_type(std::declval<Order const&>()))> patterns_;
  std::vector<canvas> canvases_;
  std::vector<std::size_t> canvas_of_;  // of each group
  index_t query_tokens_ = 0, key_tokens_ = 0;
};

}  // namespace heed
