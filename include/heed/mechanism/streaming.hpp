#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/shared.hpp>

namespace heed {

/// Attention sinks and a window: a query meets the first `sinks` keys and the `recent` most recent ones, its own
/// included, of those up to its own position. keep = key <= p and (key < sinks or p - key < recent).
///
/// With no sinks it is `sliding_window{.left = recent - 1, .right = 0}`, with `recent` unbounded it is causal.
struct streaming {
  index_t sinks = 0;
  index_t recent = unbounded;

  constexpr bool keep(index_t query, index_t key) const {
    return key <= query && (key < sinks || window().keep(query, key));
  }
  constexpr interval_set keys(interval queries, index_t count) const {
    return causal::keys(queries, count) &
           (first_keys{sinks}.keys(queries, count) | window().keys(queries, count));
  }
  constexpr coverage cover(interval queries, interval keys) const {
    // A tile may be kept by sinks and window together: of its keys only those behind the sinks ask for the window.
    interval const behind{std::max(keys.first, sinks), keys.last};
    coverage const up_to_own = causal::cover(queries, keys);
    if (behind.empty()) return up_to_own;
    coverage const near = window().cover(queries, behind);
    bool const has_sinks = keys.first < sinks;
    return std::min(up_to_own, has_sinks ? std::max(near, coverage::some) : near);
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    interval const first = intersect(keys, {0, sinks}),
                   behind{keys.first + first.size(), keys.last};
    causal::mask(queries, first, rows);
    window().mask(queries, behind, rows + first.size());
  }
  constexpr index_t pairs(index_t rows, index_t count) const {
    index_t const whole = causal::pairs(rows, count);
    if (recent < 0) return whole;
    // Row p has min(p + 1, sinks + recent) keys: the causal ones without those that are as far away as that.
    return whole - detail::clamped_sum(count - rows + 1 - sinks - recent, rows, count);
  }
  void check(call_shape const&) const {
    require(sinks >= 0, [&] {
      return "the sinks of streaming are " + std::to_string(sinks) + "; expected 0 or more";
    });
    require(recent >= 1 || recent == unbounded, [&] {
      return "the recent keys of streaming are " + std::to_string(recent) +
             "; expected 1 (the query's own) or more, or unbounded";
    });
  }

 private:
  constexpr sliding_window window() const { return {recent < 0 ? unbounded : recent - 1, 0}; }
};

/// The same with numbers for each head: streaming heads beside full ones, whose `recent` is `unbounded`, or spans that
/// differ. sinks, recent: [batch, head], either 1 to share.
struct streaming_heads {
  tensor_view<index_t const, 2> sinks;
  tensor_view<index_t const, 2> recent;

  streaming bind(place const& where) const {
    auto const at = [&](tensor_view<index_t const, 2> const& numbers) {
      return numbers.data()[detail::shared_offset(numbers, where)];
    };
    return {at(sinks), at(recent)};
  }
  void check(call_shape const& shape) const {
    for (auto const& numbers : {sinks, recent})
      require(detail::shares_axes(numbers, shape), [&] {
        return "streaming_heads has numbers of shape " + shape_text(numbers.extents()) +
               "; expected [" + detail::shared_axes_text(shape) + "] (batch, head)";
      });
    for (index_t batch = 0; batch < shape.batches; ++batch)
      for (index_t head = 0; head < shape.heads; ++head)
        bind({.batch = batch, .head = head}).check(shape);
  }
};

}  // namespace heed
