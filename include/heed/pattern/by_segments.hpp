#pragma once

#include <heed/pattern/pattern.hpp>

#include <array>
#include <string>

namespace heed {

namespace detail {

/// Consecutive segments of positions, by their starts; the last has no end, and what lies before the first is
/// number -1.
struct segment_starts {
  index_t const* first = nullptr;
  index_t stride = 1;
  index_t count = 0;

  constexpr index_t start(index_t segment) const { return first[segment * stride]; }
  constexpr interval positions(index_t segment, index_t end) const {
    return {start(segment), segment + 1 < count ? std::min(start(segment + 1), end) : end};
  }
  /// The last segment that starts at or before a position.
  constexpr index_t of(index_t position) const {
    index_t low = 0, high = count;
    while (low < high) {
      index_t const middle = low + (high - low) / 2;
      if (start(middle) <= position)
        low = middle + 1;
      else
        high = middle;
    }
    return low - 1;
  }
};

}  // namespace detail

/// A pattern of consecutive segments of any lengths: a pair meets if `blocks`, a pattern over segment numbers, keeps
/// the segments that its query and its key lie in. `by_segments{sliding_window{0, 0}, starts}` sees its own
/// segment and nothing else. For segments of one length there is by_blocks.
///
///   starts   [batch, segment], the first 1 to share: where each segment starts, from 0 on, not decreasing. Segments
///            may be empty; the last goes on without end, so that it need not be told when a cache grows
template <pattern P>
struct by_segments {
  P blocks;
  tensor_view<index_t const, 2> starts;

  template <bound_pattern B>
  struct bound {
    B blocks;
    detail::segment_starts segments;

    constexpr bool keep(index_t query, index_t key) const {
      return blocks.keep(segments.of(query), segments.of(key));
    }
    constexpr interval_set keys(interval queries, index_t count) const {
      interval_set all;
      for (interval part : pattern_keys(blocks, segments_of(queries), segments.count))
        all.add(positions_of(part, 0, count));
      return all;
    }
    constexpr coverage cover(interval queries, interval keys) const {
      return pattern_cover(blocks, segments_of(queries), segments_of(keys));
    }
    constexpr void mask(std::span<index_t const> queries, interval keys,
                        std::uint64_t* rows) const {
      std::array<index_t, 64> numbers{};
      for (std::size_t q = 0; q < queries.size(); ++q) numbers[q] = segments.of(queries[q]);
      auto const in_segments = std::span<index_t const>(numbers).first(queries.size());
      for (index_t key = keys.first; key < keys.last;) {
        index_t const segment = segments.of(key);
        index_t const last = segments.positions(segment, keys.last).last;
        std::uint64_t bits = 0;
        pattern_mask(blocks, in_segments, {segment, segment + 1}, &bits);
        for (; key < last; ++key) rows[key - keys.first] = bits;
      }
    }
    constexpr bool scattered() const { return is_scattered(blocks); }
    constexpr interval next_keys(interval queries, index_t from, index_t count) const {
      // Segments may be empty, so that runs of segments apart can be one run of positions, or none.
      interval const queried = segments_of(queries);
      interval run;
      for (index_t segment = segments.of(from); segment < segments.count;) {
        interval const next = next_run(blocks, queried, segment, segments.count);
        if (next.empty()) break;
        interval const positions = positions_of(next, from, count);
        if (!run.empty() && positions.first > run.last) break;
        if (!positions.empty()) run = {run.empty() ? positions.first : run.first, positions.last};
        segment = next.last;
      }
      return run;
    }

   private:
    constexpr interval segments_of(interval positions) const {
      return positions.empty()
                 ? interval{}
                 : interval{segments.of(positions.first), segments.of(positions.last - 1) + 1};
    }
    constexpr interval positions_of(interval run, index_t from, index_t count) const {
      return {std::max(from, segments.start(run.first)),
              segments.positions(run.last - 1, count).last};
    }
  };

  constexpr auto bind(place where) const {
    index_t const batch = starts.extent(0) == 1 ? 0 : where.batch;
    where.rows = where.keys = starts.extent(1);
    where.first_row = where.first_key = 0;
    where.order = nullptr;
    return bound<decltype(bind_at(blocks, where))>{
        bind_at(blocks, where),
        {starts.data() + batch * starts.stride(0), starts.stride(1), starts.extent(1)}};
  }
  void check(call_shape const& shape) const {
    require((starts.extent(0) == 1 || starts.extent(0) == shape.batches) && starts.extent(1) > 0,
            [&] {
              return "by_segments.starts has shape " + shape_text(starts.extents()) +
                     "; expected [1 or " + std::to_string(shape.batches) +
                     ", 1 or more] (batch, segment)";
            });
    for (index_t b = 0; b < starts.extent(0); ++b)
      for (index_t s = 0; s < starts.extent(1); ++s)
        require(s == 0 ? starts(b, 0) == 0 : starts(b, s - 1) <= starts(b, s), [&] {
          return "by_segments.starts holds " + std::to_string(starts(b, s)) +
                 (s == 0 ? "; expected 0 for the first segment"
                         : " after " + std::to_string(starts(b, s - 1)) +
                               "; expected starts that do not decrease");
        });
    call_shape of_blocks = shape;
    of_blocks.rows = of_blocks.keys = starts.extent(1);
    check_against(blocks, of_blocks);
  }
};
template <pattern P, class T>
by_segments(P, tensor_view<T, 2>) -> by_segments<P>;

}  // namespace heed
