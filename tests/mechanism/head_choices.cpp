#include "reference/attention.hpp"
#include "reference/patterns/head_mixtures.hpp"
#include "support/attention_check.hpp"
#include "support/pattern_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/adaptive_heads.hpp>
#include <heed/mechanism/razor_attention.hpp>
#include <heed/mechanism/task_kv.hpp>

#include <memory>
#include <numeric>

// Heads that keep every key and heads that do not: who is which, and what replaces the keys that are dropped.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

struct head_problem {
  support::random draw;
  index_t B = 2, N, M, H = 4, D = 5, Dv = 6;
  guarded<double, 4> query, key, value, out;
  guarded<double, 3> lse;
  double const scale = 0.4;

  explicit head_problem(seed_t seed, bool one_row = false)
      : draw(seed), N(one_row ? 1 : draw.between(1, 30)), M(draw.between(N, 50)) {
    query = support::normal<double>(draw, {B, N, H, D});
    key = support::normal<double>(draw, {B, M, 2, D});
    value = support::normal<double>(draw, {B, M, 2, Dv});
    out = support::blank<double, 4>({B, N, H, Dv});
    lse = support::blank<double, 3>({B, H, N});
  }
  double score(index_t b, index_t i, index_t h, index_t j) const {
    double sum = 0;
    for (index_t d = 0; d < D; ++d) sum += query.view()(b, i, h, d) * key.view()(b, j, h / 2, d);
    return scale * sum;
  }
};

}  // namespace

TEST_CASE("razor attention: kept keys and the mean of the dropped ones", "[mechanism][heads]") {
  for_each_seed("razor", 100, [](seed_t seed) {
    head_problem p(seed, true);
    auto mean_key = support::blank<double, 4>({p.B, 1, p.H, p.D}),
         mean_value = support::blank<double, 4>({p.B, 1, p.H, p.Dv});
    auto log_count = support::blank<double, 3>({p.B, p.H, 1});
    heed::compensation_tokens<double> const tokens{mean_key.view(), mean_value.view(),
                                                   log_count.view()};
    tokens.clear();
    std::vector<index_t> sinks(4), recent(4);
    bool const equal = p.draw.one_in(3);  // all dropped keys are the same
    for (index_t h = 0; h < p.H; ++h) {
      auto const at = static_cast<std::size_t>(h);
      sinks[at] = p.draw.between(0, 4);
      recent[at] = h == 1 ? heed::unbounded : p.draw.between(1, 20);
      if (recent[at] == heed::unbounded) continue;
      heed::interval const dropped{sinks[at], p.M - recent[at]};
      for (index_t b = 0; b < p.B && !dropped.empty(); ++b) {
        if (equal)
          for (index_t j = 0; j < p.M; ++j)
            for (index_t d = 0; d < p.D; ++d)
              p.key.view()(b, j, h / 2, d) = p.key.view()(b, 0, h / 2, d);
        // In two goes: the mean runs on.
        index_t const middle = p.draw.between(dropped.first, dropped.last);
        tokens.drop(p.key.view(), p.value.view(), b, h, {dropped.first, middle});
        tokens.drop(p.key.view(), p.value.view(), b, h, {middle, dropped.last});
      }
    }
    heed::streaming_heads const pattern{tensor_view<index_t const, 2>(sinks.data(), {1, 4}),
                                        tensor_view<index_t const, 2>(recent.data(), {1, 4})};
    heed::attention_with_extra_keys(std::as_const(p.query).view(), std::as_const(p.key).view(),
                                    std::as_const(p.value).view(), tokens.token(), p.out.view(),
                                    heed::any_pattern(pattern), heed::scale{p.scale},
                                    heed::lse_into{p.lse.view()});
    std::string complaint;
    for (index_t b = 0; b < p.B; ++b)
      for (index_t h = 0; h < p.H; ++h) {
        auto const at = static_cast<std::size_t>(h);
        double kept = 0, all = 0;
        std::vector<double> sum(6), whole(6), k(5), v(6);
        index_t dropped = 0;
        for (index_t j = 0; j < p.M; ++j) {
          double const weight = std::exp(p.score(b, 0, h, j));
          bool const keeps =
              recent[at] < 0 || reference::streaming(p.M - 1, j, sinks[at], recent[at]);
          all += weight;
          kept += keeps ? weight : 0;
          dropped += keeps ? 0 : 1;
          for (std::size_t d = 0; d < 6; ++d) {
            double const x = p.value.view()(b, j, h / 2, index_t(d));
            whole[d] += weight * x;
            if (keeps) sum[d] += weight * x;
            if (!keeps) v[d] += x;
            if (!keeps && d < 5) k[d] += p.key.view()(b, j, h / 2, index_t(d));
          }
        }
        double mass = 0;  // of the compensation token
        if (dropped > 0) {
          double score = 0;
          for (std::size_t d = 0; d < 5; ++d)
            score += p.scale * p.query.view()(b, 0, h, index_t(d)) * k[d] / double(dropped);
          mass = double(dropped) * std::exp(score);
        }
        if (kept + mass > all * (1 + 1e-12)) complaint += "the token is heavier than its keys\n";
        for (std::size_t d = 0; d < 6; ++d) {
          double const exact =
              (sum[d] + (dropped > 0 ? mass * v[d] / double(dropped) : 0)) / (kept + mass);
          double const got = p.out.view()(b, 0, h, index_t(d));
          if (!(std::abs(got - exact) < 1e-10)) complaint += "out differs\n";
          if ((dropped == 0 || equal) && !(std::abs(got - whole[d] / all) < 1e-10))
            complaint += "what should be exact is not\n";
        }
      }
    return complaint;
  });
}

TEST_CASE("razor attention: lengths and the reach of ALiBi heads", "[mechanism][heads][quick]") {
  CHECK(heed::razor_recent(8192, 4000, 5) == 4000);
  CHECK(heed::razor_recent(65536, 4000, 5) == 13107);
  support::random draw(1);
  for (int n = 0; n < 1000; ++n) {
    double const slope = draw.uniform(0.01, 1), largest = draw.uniform(0, 5),
                 share = draw.uniform(1e-6, 0.1);
    double const reach = heed::alibi_reach(slope, largest, share);
    // The weight of a key beyond it, against that of the nearest one, at the worst scores.
    CHECK(std::exp(largest - slope * reach) <= share * std::exp(-largest) * (1 + 1e-9));
  }
}

TEST_CASE("razor attention: scores of heads", "[mechanism][heads]") {
  for_each_seed("pair weights", 40, [](seed_t seed) {
    head_problem p(seed);
    auto const keys = std::as_const(p.key).view().slice(1, 0, p.N),
               values = std::as_const(p.value).view().slice(1, 0, p.N);
    heed::attention(std::as_const(p.query).view(), keys, values, p.out.view(),
                    heed::any_pattern(heed::causal{}), heed::scale{p.scale},
                    heed::lse_into{p.lse.view()});
    std::vector<index_t> pairs(static_cast<std::size_t>(p.N));
    for (std::size_t i = 0; i < pairs.size(); ++i) pairs[i] = p.draw.between(-1, index_t(i));
    std::vector<double> scores(4);
    heed::mean_pair_weights(p.query.view(), keys, p.lse.view(), pairs, p.scale,
                            tensor_view<double, 1>(scores.data(), {4}));
    for (index_t h = 0; h < p.H; ++h) {
      double sum = 0, count = 0;
      for (index_t b = 0; b < p.B; ++b)
        for (index_t i = 0; i < p.N; ++i) {
          index_t const j = pairs[static_cast<std::size_t>(i)];
          if (j < 0) continue;
          double total = 0;
          for (index_t other = 0; other <= i; ++other) total += std::exp(p.score(b, i, h, other));
          sum += std::exp(p.score(b, i, h, j)) / total;
          ++count;
        }
      if (std::abs(scores[static_cast<std::size_t>(h)] - (count > 0 ? sum / count : 0)) > 1e-12)
        return "a score differs\n";
    }
    return "";
  });
  // On a probe that repeats after 8 tokens, a head that looks 8 back echoes and one that looks 7 back inducts.
  index_t const n = 16;
  std::vector<float> query(2 * 16 * 16), key(16 * 16), scores(2);
  std::vector<float> value(16), out(32), lse(32);
  std::vector<index_t> tokens;
  for (std::size_t i = 0; i < 16; ++i) {
    key[i * 16 + i] = 50;
    tokens.push_back(100 - index_t(i) % 8);
    if (i < 8) continue;
    query[(i * 2 + 0) * 16 + i - 8] = 50;
    query[(i * 2 + 1) * 16 + i - 7] = 50;
  }
  auto const echo = heed::earlier_copies(tokens), induction = heed::after_earlier_copies(tokens);
  auto const q = heed::bnhd(query.data(), 1, n, 2, 16), k = heed::bnhd(key.data(), 1, n, 1, 16);
  tensor_view<float, 3> const lse_view(lse.data(), {1, 2, n});
  heed::attention(q, k, heed::bnhd(value.data(), 1, n, 1, 1), heed::bnhd(out.data(), 1, n, 2, 1),
                  heed::any_pattern(heed::causal{}), heed::scale{0.25}, heed::lse_into{lse_view});
  tensor_view<float, 1> const of_heads(scores.data(), {2});
  heed::mean_pair_weights(q, k, lse_view, echo, 0.25, of_heads);
  CHECK(scores[0] == Approx(1));
  CHECK(scores[1] < 0.01);
  heed::mean_pair_weights(q, k, lse_view, induction, 0.25, of_heads);
  CHECK(scores[0] < 0.01);
  CHECK(scores[1] == Approx(1));
}

TEST_CASE("razor attention: who is a retrieval head", "[mechanism][heads][quick]") {
  std::vector<index_t> const tokens{5, 7, 5, 5, 9, 7};
  CHECK(heed::earlier_copies(tokens) == std::vector<index_t>{-1, -1, 0, 2, -1, 1});
  CHECK(heed::after_earlier_copies(tokens) == std::vector<index_t>{-1, -1, 1, 3, -1, 2});

  for_each_seed("retrieval heads", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const heads = draw.between(1, 60);
    std::vector<float> induction, echo;
    for (index_t h = 0; h < heads; ++h) {
      induction.push_back(float(draw.between(0, 20)));  // with ties
      echo.push_back(float(draw.between(0, 20)));
    }
    auto const chosen = std::make_unique<bool[]>(std::size_t(heads));
    heed::retrieval_heads<float>(induction, echo, {chosen.get(), std::size_t(heads)});
    auto const ranks_below = [&](std::vector<float> const& scores, std::size_t head, double count) {
      double before = 0;
      for (std::size_t other = 0; other < scores.size(); ++other)
        if (scores[other] > scores[head] || (scores[other] == scores[head] && other < head))
          ++before;
      return before < count;
    };
    for (std::size_t h = 0; h < std::size_t(heads); ++h)
      if (chosen[h] != (ranks_below(induction, h, 0.14 * double(heads)) ||
                        ranks_below(echo, h, 0.01 * double(heads))))
        return "head " + std::to_string(h) + " of " + std::to_string(heads) + "\n";
    return std::string();
  });
  bool chosen[2];
  float const scores[3] = {};
  CHECK_THROWS_WITH(
      heed::retrieval_heads<float>(scores, scores, chosen),
      "heed: retrieval_heads got 3 induction scores and a share of 0.140000, 3 echo scores and a "
      "share of 0.010000; expected 2 scores of each and shares of 0 to 1");
}

TEST_CASE("task-kv: distant heads", "[mechanism][heads]") {
  for_each_seed("distant heads", 100, [](seed_t seed) {
    support::random draw(seed);
    index_t const groups = draw.one_of(std::array<index_t, 4>{1, 2, 3, 6}),
                  count = draw.between(0, groups);
    auto const out = support::normal<double>(draw, {draw.between(1, 2), draw.between(1, 5), 6, 3});
    auto const view = out.view();
    std::array<bool, 6> marks{};
    heed::distant_heads(view, count, std::span(marks).first(static_cast<std::size_t>(groups)));
    std::vector<std::array<double, 3>> z(6);
    std::array<double, 3> centre{};
    double const rows = double(view.extent(0) * view.extent(1));
    for (index_t h = 0; h < 6; ++h)
      for (index_t d = 0; d < 3; ++d) {
        for (index_t b = 0; b < view.extent(0); ++b)
          for (index_t i = 0; i < view.extent(1); ++i)
            z[std::size_t(h)][std::size_t(d)] += view(b, i, h, d) / rows;
        centre[std::size_t(d)] += z[std::size_t(h)][std::size_t(d)] / 6;
      }
    std::vector<std::pair<double, index_t>> distances;
    for (index_t g = 0; g < groups; ++g) {
      double mean = 0;
      for (index_t h = 0; h < 6; ++h)
        if (h * groups / 6 == g)
          mean += std::hypot(z[std::size_t(h)][0] - centre[0], z[std::size_t(h)][1] - centre[1],
                             z[std::size_t(h)][2] - centre[2]) *
                  double(groups) / 6;
      distances.emplace_back(-mean, g);
    }
    std::sort(distances.begin(), distances.end());
    for (index_t n = 0; n < groups; ++n)
      if (marks[std::size_t(distances[std::size_t(n)].second)] != (n < count))
        return "other heads are far\n";
    return "";
  });
  // All the same: the lowest indices.
  std::vector<float> const ones(8, 1.0f);
  std::array<bool, 4> marks{};
  heed::distant_heads(heed::bnhd(ones.data(), 1, 1, 4, 2), 2, marks);
  CHECK(marks == std::array<bool, 4>{true, true, false, false});
}

TEST_CASE("task-kv: middle activations", "[mechanism][heads]") {
  for_each_seed("middle activations", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const M = draw.between(1, 40), count = draw.between(0, 12);
    heed::streaming const others{draw.between(0, 5), draw.between(1, 8)};
    auto weights = support::blank<float, 3>({2, 3, M});
    weights.fill([&](auto const&) { return float(draw.between(0, 9)); });  // with ties
    guarded<index_t, 3> chosen = support::blank<index_t, 3>({2, 3, count});
    heed::middle_activations(weights.view(), others, chosen.view());
    for (index_t b = 0; b < 2; ++b)
      for (index_t h = 0; h < 3; ++h) {
        std::vector<index_t> middle;
        for (index_t j = others.sinks; j < M - others.recent; ++j) middle.push_back(j);
        std::stable_sort(middle.begin(), middle.end(), [&](index_t i, index_t j) {
          return weights.view()(b, h, i) > weights.view()(b, h, j);
        });
        if (static_cast<index_t>(middle.size()) > count) middle.resize(std::size_t(count));
        std::sort(middle.begin(), middle.end());
        middle.resize(std::size_t(count), -1);
        for (index_t n = 0; n < count; ++n)
          if (chosen.view()(b, h, n) != middle[std::size_t(n)]) return "other keys are chosen\n";
      }
    return "";
  });
}

TEST_CASE("task-kv: the pattern", "[mechanism][heads]") {
  for_each_seed("task-kv pattern", 40, [](seed_t seed) {
    support::random draw(seed);
    index_t const M = draw.between(1, 60), rows = draw.between(1, M), count = draw.between(1, 8);
    heed::streaming const others{draw.between(0, 5), draw.between(1, 8)};
    auto weights = support::blank<float, 3>({2, 4, M});
    weights.fill([&](auto const&) { return float(draw.normal()); });
    auto middle = support::blank<index_t, 3>({2, 4, count});
    heed::middle_activations(weights.view(), others, middle.view());
    bool const far[] = {draw.one_in(2), draw.one_in(2), draw.one_in(2), draw.one_in(2)};
    heed::task_kv const pattern{others, std::as_const(middle).view(),
                                tensor_view<bool const, 2>(far, {1, 4})};
    auto const keep = [&, listed = std::as_const(middle).view()](index_t b, index_t h, index_t p,
                                                                 index_t j) {
      bool chosen = false;
      for (index_t n = 0; n < count; ++n) chosen |= listed(b, h, n) == j;
      return j <= p &&
             (far[h] || chosen || reference::streaming(p, j, others.sinks, others.recent));
    };
    heed::place const where{.sequence = 1, .batch = 1, .head = 2, .rows = rows, .keys = M};
    return support::check_pattern(draw, pattern, where,
                                  [&](index_t p, index_t j) { return keep(1, 2, p, j); }) +
           support::attention_complaint(seed, {.pattern = pattern,
                                               .keep = keep,
                                               .rows = rows,
                                               .keys = M,
                                               .batches = 2,
                                               .heads = 4,
                                               .key_heads = 2});
  });
}

TEST_CASE("adaptive heads: estimate, rule and merge", "[mechanism][heads]") {
  for_each_seed("adaptive heads", 60, [](seed_t seed) {
    head_problem p(seed);
    auto mean = support::blank<double, 3>({p.B, 2, p.D});
    auto covariance = support::blank<double, 4>({p.B, 2, p.D, p.D});
    heed::key_moments<double> const moments{mean.view(), covariance.view()};
    heed::measure_key_moments(std::as_const(p.key).view(), moments);
    heed::adaptive_heads const how{p.draw.between(0, 3), p.draw.between(1, 6),
                                   p.draw.one_in(4)   ? 0
                                   : p.draw.one_in(3) ? 1
                                                      : p.draw.uniform()};
    auto reaches_far = support::blank<float, 3>({p.B, p.H, p.N});
    heed::adaptive_attention(std::as_const(p.query).view(), std::as_const(p.key).view(),
                             std::as_const(p.value).view(), p.out.view(), moments, how,
                             reaches_far.view(), heed::scale{p.scale},
                             heed::lse_into{p.lse.view()});
    std::string complaint;
    for (index_t b = 0; b < p.B; ++b)
      for (index_t h = 0; h < p.H; ++h) {
        std::vector<double> mu(5);
        for (index_t j = 0; j < p.M; ++j)
          for (index_t d = 0; d < p.D; ++d)
            mu[std::size_t(d)] += p.key.view()(b, j, h / 2, d) / double(p.M);
        for (index_t i = 0; i < p.N; ++i) {
          index_t const position = i + p.M - p.N;
          double near = 0, all = 0, product = 0, spread = 0;
          index_t others = 0;
          std::vector<double> near_sum(6), all_sum(6);
          for (index_t j = 0; j <= position; ++j) {
            double const weight = std::exp(p.score(b, i, h, j));
            bool const local = reference::streaming(position, j, how.sinks, how.recent);
            all += weight;
            near += local ? weight : 0;
            others += local ? 0 : 1;
            for (std::size_t d = 0; d < 6; ++d) {
              all_sum[d] += weight * p.value.view()(b, j, h / 2, index_t(d));
              near_sum[d] += local ? weight * p.value.view()(b, j, h / 2, index_t(d)) : 0;
            }
          }
          for (index_t d = 0; d < p.D; ++d)
            product += p.query.view()(b, i, h, d) * mu[std::size_t(d)];
          for (index_t j = 0; j < p.M; ++j) {  // q' covariance q is the variance of q.k
            double dot = 0;
            for (index_t d = 0; d < p.D; ++d)
              dot +=
                  p.query.view()(b, i, h, d) * (p.key.view()(b, j, h / 2, d) - mu[std::size_t(d)]);
            spread += dot * dot / double(p.M);
          }
          double const estimate =
              double(others) * std::exp(p.scale * product + p.scale * p.scale * spread / 2);
          double const share = near / (near + estimate);
          if (others > 0 && std::abs(share - how.threshold) < 1e-9) continue;  // either will do
          bool const local = others == 0 || share >= how.threshold;
          if ((reaches_far.view()(b, h, i) == 0) != local) complaint += "another choice\n";
          for (std::size_t d = 0; d < 6; ++d)
            if (!(std::abs(p.out.view()(b, i, h, index_t(d)) -
                           (local ? near_sum[d] / near : all_sum[d] / all)) < 1e-12))
              complaint += "out differs\n";
          if (!(std::abs(p.lse.view()(b, h, i) - std::log(local ? near : all)) < 1e-12))
            complaint += "lse differs\n";
        }
      }
    // The pattern of the choice gives the same.
    auto again = support::blank<double, 4>(p.out.extents());
    heed::attention(
        std::as_const(p.query).view(), std::as_const(p.key).view(), std::as_const(p.value).view(),
        again.view(),
        heed::any_pattern(heed::causal{} & (how.near() | heed::chosen_rows{reaches_far.view()})),
        heed::scale{p.scale}, heed::lse_into{p.lse.view()});
    if (!(support::difference(p.out.values<double>(), again.values<double>()) < 1e-12))
      complaint += "the pattern differs\n";
    return complaint;
  });
}

TEST_CASE("adaptive heads: the estimate of Gaussian keys", "[mechanism][heads]") {
  support::random draw(2);
  index_t const M = 200000, D = 4;
  std::vector<double> key(static_cast<std::size_t>(M * D)), query{0.7, -0.4, 0.3, 0.9};
  for (std::size_t j = 0; j < std::size_t(M); ++j) {
    double const shared = draw.normal();
    for (std::size_t d = 0; d < 4; ++d) key[j * 4 + d] = 0.5 * shared + 0.6 * draw.normal() - 0.2;
  }
  std::vector<double> mean(4), covariance(16);
  heed::key_moments<double> const moments{tensor_view<double, 3>(mean.data(), {1, 1, D}),
                                          tensor_view<double, 4>(covariance.data(), {1, 1, D, D})};
  auto const keys = heed::bnhd(key.data(), 1, M, 1, D), q = heed::bnhd(query.data(), 1, 1, 1, D);
  heed::measure_key_moments(keys, moments);
  double mass = 0;
  for (std::size_t j = 0; j < std::size_t(M); ++j)
    mass += std::exp(
        0.8 * std::inner_product(query.begin(), query.end(), key.begin() + index_t(j) * 4, 0.0));
  CHECK(heed::estimated_log_mass(q, 0, 0, 0, 0.8, moments, M) ==
        Approx(std::log(mass)).margin(0.01));
  CHECK(heed::estimated_log_mass(q, 0, 0, 0, 0.8, moments, 0) ==
        -std::numeric_limits<double>::infinity());
}

TEST_CASE("adaptive heads: a factor for the covariance", "[mechanism][heads]") {
  for_each_seed("factored moments", 60, [](seed_t seed) {
    head_problem p(seed);
    index_t const rank = p.draw.between(1, 7);
    auto mean = support::blank<double, 3>({p.B, 2, p.D});
    mean.fill([&](auto const&) { return p.draw.normal(); });
    auto const factor = support::normal<double>(p.draw, {p.B, 2, rank, p.D});
    auto covariance = support::blank<double, 4>({p.B, 2, p.D, p.D});
    covariance.fill([&](auto const& at) {
      double sum = 0;
      for (index_t n = 0; n < rank; ++n)
        sum += factor.view()(at[0], at[1], n, at[2]) * factor.view()(at[0], at[1], n, at[3]);
      return sum;
    });
    heed::key_moments<double const> const whole{std::as_const(mean).view(),
                                                std::as_const(covariance).view()},
        factored{std::as_const(mean).view(), {}, factor.view()};
    heed::adaptive_heads const how{1, 2, p.draw.uniform()};
    auto const run = [&](auto const& moments) {
      auto reaches_far = support::blank<float, 3>({p.B, p.H, p.N});
      heed::adaptive_attention(std::as_const(p.query).view(), std::as_const(p.key).view(),
                               std::as_const(p.value).view(), p.out.view(), moments, how,
                               reaches_far.view(), heed::scale{p.scale});
      return reaches_far.values<float>().values;
    };
    std::string complaint;
    for (index_t h = 0; h < p.H; ++h) {
      auto const mass = [&](auto const& moments) {
        return heed::estimated_log_mass(p.query.view(), 1, p.N - 1, h, p.scale, moments, 9);
      };
      double const exact = mass(whole);
      if (!(std::abs(mass(factored) - exact) < 1e-12 * (1 + std::abs(exact))))
        complaint += "the estimate differs\n";
    }
    if (run(whole) != run(factored)) complaint += "another choice\n";
    return complaint;
  });
  head_problem p(1);
  auto const mean = support::blank<double, 3>({1, 2, p.D});
  auto const factor = support::blank<double, 4>({1, 1, 3, p.D});
  CHECK_THROWS_WITH(
      heed::adaptive_attention(p.query.view(), p.key.view(), p.value.view(), p.out.view(),
                               heed::key_moments<double const>{mean.view(), {}, factor.view()},
                               heed::adaptive_heads{}, p.lse.view()),
      "heed: key moments have shapes [1, 2, 5] and [1, 1, 3, 5]; expected [1 or batch, key_heads, "
      "5] and [1 or batch, key_heads, rank, 5]");
}
