#pragma once

#include <heed/cache/evicting_cache.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/chosen_rows.hpp>
#include <heed/pattern/key_set.hpp>
#include <heed/pattern/lifetimes.hpp>
#include <heed/pattern/row_ranges.hpp>

#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

/// Context Compression for Auto-regressive Transformers with Sentinel Tokens: a pair of markers brackets a span, and once
/// the span is closed only its closing marker stands for it.
namespace heed {

enum class marker : std::uint8_t {
  none,   ///< an ordinary token
  open,   ///< CL, before a span: meets itself
  close,  ///< CR, behind the span that was opened last: meets that, the marker before it, and itself
};

/// What the markers of a sequence mean. Spans may be nested; a closing marker without an opening one closes a span from
/// the first token on. An ordinary token meets itself and, of what is before it, all closing markers, the ordinary
/// tokens outside all spans, and whatever is inside a span with it. A call may have the
/// last tokens alone as queries.
///
///     heed::sentinel_tokens const spans(markers);
///     heed::attention(q, k, v, out, spans.pattern());    // points into `spans`; for a batch see by_sequence
class sentinel_tokens {
 public:
  explicit sentinel_tokens(std::span<marker const> markers)
      : ends_(markers.size(), static_cast<index_t>(markers.size())),
        first_(markers.size()),
        last_(markers.size()),
        positions_(markers.size()),
        is_marker_(new bool[markers.size() + 1]) {
    std::vector<index_t> open;
    index_t text = 0;
    for (index_t i = 0; i < size(); ++i) {
      marker const mark = markers[at(i)];
      is_marker_[at(i)] = mark != marker::none;
      positions_[at(i)] = mark == marker::none ? text++ : std::max<index_t>(text - 1, 0);
      if (mark == marker::none) continue;
      first_[at(i)] = i;
      last_[at(i)] = i + 1;
      if (mark == marker::open) {
        ends_[at(i)] = i + 1;  // unless it turns out to be inside a span
        open.push_back(i);
        continue;
      }
      index_t const opened = open.empty() ? -1 : open.back();
      if (!open.empty()) open.pop_back();
      first_[at(i)] = std::max<index_t>(opened, 0);
      // Of the spans that hold a key, the last to be closed counts.
      for (index_t j = opened + 1; j < i; ++j)
        if (markers[at(j)] != marker::close) ends_[at(j)] = i;
    }
  }

  auto pattern() const {
    return (lifetimes{view(ends_)} &
            ~chosen_rows{tensor_view<bool const, 3>(is_marker_.get(), {1, 1, size()}), 0}) |
           row_ranges{view(first_), view(last_), 0};
  }

  /// The positions of the tokens, for rotation: ordinary ones count on, a marker has that of the ordinary token before it.
  std::span<index_t const> positions() const { return positions_; }

 private:
  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
  index_t size() const { return static_cast<index_t>(ends_.size()); }
  tensor_view<index_t const, 3> view(std::vector<index_t> const& numbers) const {
    return {numbers.data(), {1, 1, size()}};
  }

  std::vector<index_t> ends_;          // of ordinary rows: when a key is forgotten
  std::vector<index_t> first_, last_;  // the rows of markers
  std::vector<index_t> positions_;
  std::unique_ptr<bool[]> is_marker_;
};

/// Decoding with spans: keys leave the cache when the outermost span that holds them is closed. Spans are told as
/// they come, so each closing marker needs an opening one, and one that is open is taken to be closed some day.
///
///   keys    [batch, slots, key_heads, head_dim], room for what lies outside spans, in open ones and in closing markers
///   values  [batch, slots, key_heads, value_dim]
template <element T>
class sentinel_cache {
 public:
  sentinel_cache(tensor_view<T, 4> keys, tensor_view<T, 4> values)
      : cache_(keys, values),
        open_(static_cast<std::size_t>(keys.extent(0))),
        closed_(open_.size(), -1),
        visible_(new bool[open_.size() * static_cast<std::size_t>(keys.extent(1)) + 1]) {}

  /// Appends the next position of each batch entry; its query then meets keys() and values() with pattern().
  template <element K, element V>
  void append(tensor_view<K, 4> key, tensor_view<V, 4> value, std::span<marker const> markers) {
    auto const batches = static_cast<index_t>(open_.size());
    index_t const heads = cache_.keys().extent(2), now = cache_.length();
    require(key.extent(1) == 1 && static_cast<index_t>(markers.size()) == batches, [&] {
      return "a sentinel cache is given keys of shape " + shape_text(key.extents()) + " and " +
             std::to_string(markers.size()) +
             " markers; expected one position, and a marker for each of " +
             std::to_string(batches) + " batch entries";
    });
    for (index_t b = 0; b < batches; ++b)
      require(markers[at(b)] != marker::close || !open_[at(b)].empty(), [&] {
        return "batch entry " + std::to_string(b) + " closes a span at position " +
               std::to_string(now) + " that was not opened";
      });
    for (index_t b = 0; b < batches; ++b) {
      if (closed_[at(b)] < 0) continue;
      for (index_t h = 0; h < heads; ++h)
        cache_.forget_if(b, h, [&](index_t position, index_t note) {
          return position >= closed_[at(b)] && note != closing;
        });
      closed_[at(b)] = -1;
    }

    notes_.assign(at(batches), ordinary);
    for (index_t b = 0; b < batches; ++b) {
      bool const outside = open_[at(b)].empty();
      if (markers[at(b)] == marker::close) notes_[at(b)] = closing;
      if (markers[at(b)] == marker::open && outside) notes_[at(b)] = outer_opening;
    }
    cache_.append(key, value,
                  tensor_view<index_t const, 3>(notes_.data(), {batches, heads, 1}, {1, 0, 0}));

    for (index_t b = 0; b < batches; ++b) {
      std::vector<index_t>& open = open_[at(b)];
      index_t first = 0;  // what the query meets starts here
      if (markers[at(b)] == marker::open) {
        first = now;
        open.push_back(now);
      } else if (markers[at(b)] == marker::close) {
        first = open.back();
        open.pop_back();
        if (open.empty()) closed_[at(b)] = first;
      }
      if (heads == 0) continue;
      auto const positions = cache_.positions(b, 0), notes = cache_.notes(b, 0);
      for (index_t slot = 0; slot < cache_.capacity(); ++slot)
        visible_[at(b * cache_.capacity() + slot)] =
            at(slot) < positions.size() && positions[at(slot)] >= first &&
            (markers[at(b)] != marker::none || notes[at(slot)] != outer_opening);
    }
  }

  tensor_view<T const, 4> keys() const { return cache_.keys(); }
  tensor_view<T const, 4> values() const { return cache_.values(); }
  key_set pattern() const {
    return {tensor_view<bool const, 3>(visible_.get(),
                                       {static_cast<index_t>(open_.size()), 1, keys().extent(1)},
                                       {cache_.capacity(), 0, 1})};
  }

 private:
  enum kind : index_t { ordinary, closing, outer_opening };
  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

  evicting_cache<T> cache_;
  std::vector<std::vector<index_t>> open_;  // for each batch entry, where spans were opened
  std::vector<index_t> closed_;             // where the span starts that the last position closed
  std::vector<index_t> notes_;
  std::unique_ptr<bool[]> visible_;  // [batch, slot]
};

/// What the paper compares with. Local: the nearest share of what is before, floor(ratio p) <= key <= p.
struct nearest_share {
  double ratio;  // the share that is left out, in [0, 1]

  index_t first(index_t query) const {
    return static_cast<index_t>(std::floor(ratio * static_cast<double>(query)));
  }
  bool keep(index_t query, index_t key) const { return first(query) <= key && key <= query; }
  interval_set keys(interval queries, index_t count) const {
    if (queries.empty()) return {};
    return intersect({first(queries.first), queries.last}, {0, count});
  }
  coverage cover(interval queries, interval keys) const {
    index_t const last = queries.last - 1;
    if (keys.first > last || keys.last <= first(queries.first)) return coverage::none;
    return keys.last - 1 <= queries.first && keys.first >= first(last) ? coverage::all
                                                                       : coverage::some;
  }
  void check(call_shape const&) const {
    require(ratio >= 0 && ratio <= 1, [&] {
      return "nearest_share.ratio is " + std::to_string(ratio) + "; expected 0 to 1";
    });
  }
};

/// Scattered: itself, and the keys that were drawn to stay. kept: [batch, head, key], the first two 1 to share.
inline auto scattered_keys(tensor_view<bool const, 3> kept) {
  return (causal{} & key_set{kept}) | sliding_window{0, 0};
}

}  // namespace heed
