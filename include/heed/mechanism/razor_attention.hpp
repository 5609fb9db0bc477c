#pragma once

#include <heed/mechanism/extra_keys.hpp>
#include <heed/mechanism/streaming.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <unordered_map>
#include <vector>

/// RazorAttention: Efficient KV Cache Compression Through Retrieval Heads. Retrieval heads keep every key. The others
/// keep sinks and recent keys, and one compensation token: the mean key and the mean value of those that they dropped,
/// counted as often as there are such. For inference.
namespace heed {

/// A compensation token for each head: what it has dropped so far.
///
///   key, value    [batch, 1, heads, dim]
///   log_count     [batch, heads, 1]: log of the number dropped, -infinity for none, so that the token does not count
///
/// With it attention is
///
///     heed::attention_with_extra_keys(q, k, v, dropped.token(), out, heed::streaming_heads{sinks, recent});
///
/// where retrieval heads have `recent` unbounded and never drop. Compensation begins once a head has more than
/// sinks + recent keys.
template <element T>
struct compensation_tokens {
  using number = compute_type<T>;
  tensor_view<T, 4> key;
  tensor_view<T, 4> value;
  tensor_view<number, 3> log_count;

  /// Nothing has been dropped.
  void clear() const {
    for (index_t b = 0; b < log_count.extent(0); ++b)
      for (index_t h = 0; h < log_count.extent(1); ++h) log_count(b, h, index_t{0}) = empty;
  }

  /// Takes the positions [dropped.first, dropped.last) of a batch entry, as they lie in the cache, rotated, into the
  /// means of one head: mean <- (mean n + x) / (n + 1).
  template <element K, element V>
  void drop(tensor_view<K, 4> keys, tensor_view<V, 4> values, index_t b, index_t head,
            interval dropped) const {
    require(dropped.first >= 0 && dropped.last <= keys.extent(1) && keys.extent(2) > 0 &&
                key.extent(2) % keys.extent(2) == 0 && values.extent(2) > 0 &&
                key.extent(2) % values.extent(2) == 0 && keys.extent(3) == key.extent(3) &&
                values.extent(3) == value.extent(3) && values.extent(1) == keys.extent(1),
            [&] {
              return "positions [" + std::to_string(dropped.first) + ", " +
                     std::to_string(dropped.last) + ") of keys of shape " +
                     shape_text(keys.extents()) + " and values of " + shape_text(values.extents()) +
                     " do not fit compensation tokens of shape " + shape_text(key.extents()) +
                     " and " + shape_text(value.extents());
            });
    number& log_n = log_count(b, head, index_t{0});
    for (index_t j = dropped.first; j < dropped.last; ++j) {
      number const count = log_n == empty ? 0 : std::round(std::exp(log_n));
      auto const move = [&](auto const& from, auto const& to) {
        index_t const shared = head * from.extent(2) / to.extent(2);
        for (index_t d = 0; d < to.extent(3); ++d) {
          T& mean = to(b, index_t{0}, head, d);
          number const next = convert_element<number>(from(b, j, shared, d));
          number const old = count == 0 ? 0 : convert_element<number>(mean);
          mean = convert_element<T>(old + (next - old) / (count + 1));
        }
      };
      move(keys, key);
      move(values, value);
      log_n = std::log(count + 1);
    }
  }

  /// What attention_with_extra_keys takes.
  auto token() const { return extra_keys(key, value, log_weights(log_count)); }

 private:
  static constexpr number empty = -std::numeric_limits<number>::infinity();
};

/// How far a head with ALiBi slope `slope` sees: where no |scale q.k| exceeds `largest_score`, all keys farther away
/// together have at most `share` of the weight of each key nearby.
inline double alibi_reach(double slope, double largest_score, double share) {
  return (2 * largest_score + std::log(1 / share)) / slope;
}

/// How many recent keys a head that is not for retrieval keeps: the larger of `least` and a `part`-th of the input.
constexpr index_t razor_recent(index_t length, index_t least, index_t part) {
  return std::max(least, length / part);
}

/// The pairs whose weights tell retrieval heads, on a probe of random tokens that repeat: for each token the key of its
/// latest earlier copy for the echo score, or of what followed that for the induction score; -1 for none.
inline std::vector<index_t> earlier_copies(std::span<index_t const> tokens) {
  std::vector<index_t> keys;
  std::unordered_map<index_t, index_t> latest;
  for (index_t token : tokens) {
    auto const [seen, is_new] = latest.try_emplace(token);
    keys.push_back(is_new ? -1 : seen->second);
    seen->second = static_cast<index_t>(keys.size()) - 1;
  }
  return keys;
}
inline std::vector<index_t> after_earlier_copies(std::span<index_t const> tokens) {
  std::vector<index_t> keys = earlier_copies(tokens);
  for (index_t& key : keys) key += key < 0 ? 0 : 1;
  return keys;
}

/// The mean weight of such pairs in each head.
///
///   query, key, lse   of the probe, as in attention(); positions are rows
///   keys_of_rows      [row]: the key of a row's pair, -1 for none
///   scores            [head]
template <element Q, element K, class L, class S>
void mean_pair_weights(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<L, 3> lse,
                       std::span<index_t const> keys_of_rows, double scale,
                       tensor_view<S, 1> scores) {
  index_t const rows = query.extent(1), heads = query.extent(2);
  require(static_cast<index_t>(keys_of_rows.size()) == rows && scores.extent(0) == heads &&
              lse.extents() == std::array<index_t, 3>{query.extent(0), heads, rows},
          [&] {
            return "mean_pair_weights got query " + shape_text(query.extents()) + ", lse " +
                   shape_text(lse.extents()) + ", " + std::to_string(keys_of_rows.size()) +
                   " pairs and scores " + shape_text(scores.extents()) +
                   "; expected [batch, head, row], a pair for each row and a score for each head";
          });
  for (index_t j : keys_of_rows)
    require(j >= -1 && j < key.extent(1), [&] {
      return "keys_of_rows holds " + std::to_string(j) + "; expected -1 to " +
             std::to_string(key.extent(1) - 1);
    });
  for (index_t h = 0; h < heads; ++h) {
    double sum = 0;
    index_t pairs = 0;
    for (index_t b = 0; b < query.extent(0); ++b)
      for (index_t i = 0; i < rows; ++i) {
        index_t const j = keys_of_rows[static_cast<std::size_t>(i)];
        if (j < 0) continue;
        double dot = 0;
        for (index_t d = 0; d < query.extent(3); ++d)
          dot += convert_element<double>(convert_element<compute_type<Q>>(query(b, i, h, d))) *
                 convert_element<double>(
                     convert_element<compute_type<K>>(key(b, j, h * key.extent(2) / heads, d)));
        sum += std::exp(scale * dot - static_cast<double>(lse(b, h, i)));
        ++pairs;
      }
    scores(h) = static_cast<S>(pairs == 0 ? 0 : sum / static_cast<double>(pairs));
  }
}

/// Which heads are for retrieval: the highest shares of them by induction score and by echo score, rounded up; of equal
/// scores those of lower heads.
///
///   induction, echo   [head], of all layers together
///   chosen            [head]
template <class S>
void retrieval_heads(std::span<S const> induction, std::span<S const> echo, std::span<bool> chosen,
                     double induction_share = 0.14, double echo_share = 0.01) {
  std::size_t const heads = chosen.size();
  auto const is_share = [](double share) { return share >= 0 && share <= 1; };
  require(induction.size() == heads && echo.size() == heads && is_share(induction_share) &&
              is_share(echo_share),
          [&] {
            return "retrieval_heads got " + std::to_string(induction.size()) +
                   " induction scores and a share of " + std::to_string(induction_share) + ", " +
                   std::to_string(echo.size()) + " echo scores and a share of " +
                   std::to_string(echo_share) + "; expected " + std::to_string(heads) +
                   " scores of each and shares of 0 to 1";
          });
  std::fill(chosen.begin(), chosen.end(), false);
  std::vector<std::size_t> order(heads);
  auto const choose = [&](std::span<S const> scores, double share) {
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    auto const count = static_cast<std::size_t>(std::ceil(share * static_cast<double>(heads)));
    for (std::size_t n = 0; n < count; ++n) chosen[order[n]] = true;
  };
  choose(induction, induction_share);
  choose(echo, echo_share);
}

}  // namespace heed
