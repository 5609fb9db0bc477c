#include "support/compositions.hpp"

#include <heed/mechanism/abc.hpp>
#include <heed/mechanism/cosformer.hpp>
#include <heed/mechanism/lara.hpp>
#include <heed/mechanism/long_short.hpp>
#include <heed/mechanism/nystrom.hpp>
#include <heed/mechanism/performer.hpp>
#include <heed/mechanism/probsparse.hpp>
#include <heed/mechanism/s4d.hpp>

#include <functional>

// CAB, a Comprehensive Attention Benchmark: its nine mechanisms and four patterns of use. Non-causal and causal self-attention,
// where row i of the latter sees the tokens up to i only; attention to another sequence, all of which every row sees, and
// causal for queries that come one by one: then a mechanism must not mix query rows, which a change of a later query shows.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::seed_t;
using support::view_of;

namespace {

constexpr index_t rows = 24, heads = 2, dim = 6;

using tokens = tensor<float, 4>;
using attend = std::function<tokens(tokens const& q, tokens const& k, tokens const& v)>;

tokens random_tokens(seed_t seed, index_t count, index_t width = dim) {
  support::random draw(seed);
  tokens x({1, count, heads, width});
  for (float& each : x.values) each = float(draw.normal());
  return x;
}

/// f(q, k, v, out) as a function.
template <class F>
attend returning(F f) {
  return [f](tokens const& q, tokens const& k, tokens const& v) {
    tokens out({1, q.extent(1), heads, v.extent(3)});
    f(view_of(q), view_of(k), view_of(v), view_of(out));
    return out;
  };
}

/// The rows that differ.
std::vector<index_t> changed_rows(tokens const& a, tokens const& b) {
  std::vector<index_t> changed;
  for (index_t i = 0; i < a.extent(1); ++i) {
    bool same = true;
    for (index_t h = 0; h < a.extent(2); ++h)
      for (index_t d = 0; d < a.extent(3); ++d) same &= a(0, i, h, d) == b(0, i, h, d);
    if (!same) changed.push_back(i);
  }
  return changed;
}

tokens with_other_row(tokens x, index_t row) {
  tokens const other = random_tokens(99, x.extent(1), x.extent(3));
  for (index_t h = 0; h < heads; ++h)
    for (index_t d = 0; d < x.extent(3); ++d) x(0, row, h, d) = other(0, row, h, d);
  return x;
}

/// In causal self-attention no row before `changed` differs when all of that token does, and that row does.
void check_causal_self(attend const& f) {
  tokens const q = random_tokens(1, rows), k = random_tokens(2, rows), v = random_tokens(3, rows);
  tokens const before = f(q, k, v);
  for (index_t changed : {0, 5, 8, 16, 23}) {
    auto const differing = changed_rows(
        before,
        f(with_other_row(q, changed), with_other_row(k, changed), with_other_row(v, changed)));
    CAPTURE(changed);
    REQUIRE(!differing.empty());
    CHECK(differing.front() == changed);
  }
}

/// Every row sees the last token of what it attends to.
void check_sees_all(attend const& f, index_t keys) {
  tokens const q = random_tokens(1, rows), k = random_tokens(2, keys), v = random_tokens(3, keys);
  CHECK(changed_rows(f(q, k, v), f(q, with_other_row(k, keys - 1), with_other_row(v, keys - 1)))
            .size() == std::size_t(rows));
}

/// Which rows differ with the last query.
std::vector<index_t> rows_of_last_query(attend const& f, index_t keys) {
  tokens const q = random_tokens(1, rows), k = random_tokens(2, keys), v = random_tokens(3, keys);
  return changed_rows(f(q, k, v), f(with_other_row(q, rows - 1), k, v));
}
/// Safe for causal cross-attention: only its own.
void check_causal_cross(attend const& f, index_t keys) {
  CHECK(rows_of_last_query(f, keys) == std::vector<index_t>{rows - 1});
}
void check_mixes_queries(attend const& f) {
  CHECK(rows_of_last_query(f, rows).size() > 1);
}

}  // namespace

TEST_CASE("cab: local attention", "[mechanism][cab]") {
  // Rows |i - j| <= w, and causal the last w: the windows of sliding_window.
  index_t const w = 4;
  support::random draw(4);
  tokens const q = random_tokens(1, rows), k = random_tokens(2, rows), v = random_tokens(3, rows);
  double const scale = 1 / std::sqrt(double(dim));
  auto const expected = [&](auto keep) {
    return reference::scaled_attention(q.as<double>(), k.as<double>(), v.as<double>(), scale, keep);
  };
  auto const local =
      support::attend(view_of(q), view_of(k), view_of(v), heed::sliding_window{w, w});
  CHECK(support::difference(local.out.as<double>(), expected([](index_t i, index_t j) {
                              return std::abs(i - j) <= w;
                            })) < 1e-6);
  auto const causal = returning([](auto q_, auto k_, auto v_, auto out) {
    heed::attention(q_, k_, v_, out, heed::sliding_window{w - 1, 0});
  });
  CHECK(support::difference(causal(q, k, v).as<double>(), expected([](index_t i, index_t j) {
                              return i - w < j && j <= i;
                            })) < 1e-6);
  check_causal_self(causal);
}

TEST_CASE("cab: Nystroemformer is for non-causal self-attention", "[mechanism][cab]") {
  auto const f =
      returning([](auto q, auto k, auto v, auto out) { heed::nystrom_attention(q, k, v, out, 5); });
  check_sees_all(f, rows);
  check_mixes_queries(f);
}

TEST_CASE("cab: LARA is for non-causal self-attention", "[mechanism][cab]") {
  auto const f =
      returning([](auto q, auto k, auto v, auto out) { heed::lara_attention(q, k, v, out, 5); });
  check_sees_all(f, rows);
  check_mixes_queries(f);
}

TEST_CASE("cab: ProbSparse is for self-attention, and its choice mixes queries",
          "[mechanism][cab]") {
  auto const with = [](auto const&... causal) {
    return returning([=](auto q, auto k, auto v, auto out) {
      tensor<index_t, 4> samples({1, 1, rows, 8});
      support::random draw(5);
      for (index_t& each : samples.values) each = draw.between(0, rows - 1);
      tensor<index_t, 3> chosen({1, heads, 6});
      heed::probsparse_select(q, k, view_of(std::as_const(samples)), view_of(chosen));
      heed::probsparse_attention(q, k, v, view_of(std::as_const(chosen)), out, causal...);
    });
  };
  check_sees_all(with(), rows);
  // A query large enough to be chosen takes the place of another.
  for (auto const& f : {with(), with(heed::causal{})}) {
    tokens const q = random_tokens(1, rows), k = random_tokens(2, rows), v = random_tokens(3, rows);
    tokens other = q;
    for (index_t h = 0; h < heads; ++h)
      for (index_t d = 0; d < dim; ++d) other(0, rows - 1, h, d) = 100.f * float(d - 2);
    CHECK(changed_rows(f(q, k, v), f(other, k, v)).size() > 1);
  }
}

TEST_CASE("cab: LongShort is for self-attention", "[mechanism][cab]") {
  auto const with = [](auto how, index_t length) {
    return returning([=](auto q, auto k, auto v, auto out) {
      index_t const r = 2, count = rows / length * r;
      tokens ck({1, count, heads, dim}), cv = ck;
      // Logits as the caller would project them.
      heed::compress_positions(k.slice(3, 0, r), k, v, length, view_of(ck), view_of(cv));
      heed::long_short_attention(how, q, k, v, view_of(std::as_const(ck)),
                                 view_of(std::as_const(cv)), out);
    });
  };
  check_sees_all(with(heed::long_short{4}, rows), rows);
  check_causal_self(with(heed::causal_long_short{4, 8, 2}, 8));
}

TEST_CASE("cab: Performer is for everything", "[mechanism][cab]") {
  std::mt19937_64 bits(6);
  auto const omega = heed::favor_projection::orthogonal(16, dim, bits);
  auto const f = returning(
      [&](auto q, auto k, auto v, auto out) { heed::performer(q, k, v, out, heed::favor{omega}); });
  check_sees_all(f, rows);
  check_sees_all(f, 31);
  check_causal_cross(f, 31);
  check_causal_self(returning(
      [&](auto q, auto k, auto v, auto out) { heed::causal_performer(q, k, v, out, omega); }));
}

TEST_CASE("cab: cosFormer is for everything where the horizon is fixed", "[mechanism][cab]") {
  auto const with = [](auto const&... more) {
    return returning([=](auto q, auto k, auto v, auto out) {
      heed::cosformer(q, k, v, out, heed::cosine_horizon{.positions = 64}, more...);
    });
  };
  check_sees_all(with(heed::dense{}), rows);
  check_sees_all(with(heed::dense{}), 31);
  check_causal_cross(with(heed::dense{}), 31);
  check_causal_self(with());
}

TEST_CASE("cab: ABC is for everything", "[mechanism][cab]") {
  auto const f = returning([](auto q, auto k, auto v, auto out) {
    heed::abc_cross_attention(q, k, v, k.slice(3, 0, 3), v.slice(3, 0, 3), out);
  });
  check_sees_all(f, rows);
  check_sees_all(f, 31);
  check_causal_cross(f, 31);
  check_causal_self(returning([](auto q, auto k, auto v, auto out) {
    heed::abc_attention(q, k, v, k.slice(3, 0, 3), out);
  }));
}

TEST_CASE("cab: S4D is for self-attention", "[mechanism][cab]") {
  index_t const n = 3;
  support::random draw(7);
  std::vector<float> numbers(std::size_t(6 * heads * dim * n));
  for (float& each : numbers) each = float(draw.uniform(-1, 1));
  auto const parameter = [&](std::size_t which) {
    return tensor_view<float const, 3>(numbers.data() + which * std::size_t(heads * dim * n),
                                       {heads, dim, n});
  };
  auto const per_channel = [&](std::size_t which) {
    return tensor_view<float const, 2>(parameter(which).data(), {heads, dim});
  };
  heed::s4d_parameters<float const> const all{per_channel(0), per_channel(1), parameter(2),
                                              parameter(3),   parameter(4),   parameter(5)};
  auto const with = [&](auto const&... more) {
    return returning([=](auto, auto, auto v, auto out) { heed::s4d(v, all, out, more...); });
  };
  check_causal_self(with());
  check_sees_all(with(heed::s4d_future{parameter(3), parameter(2)}), rows);
}
