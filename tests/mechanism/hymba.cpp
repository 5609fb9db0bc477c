#include "reference/state_space.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/hymba.hpp>
#include <heed/softmax.hpp>

// Hymba's norms, fusion, mask and pair of heads against plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

template <class T>
std::string fusion(seed_t seed, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  support::extents_of<4> const tokens{draw.between(1, 2), draw.between(1, 40), draw.between(1, 3),
                                      draw.between(1, 30)},
      channels{1, 1, tokens[2], tokens[3]};
  bool const one = draw.one_in(3);
  double const epsilon = draw.one_in(2) ? 1e-6 : 0.5;
  check.input("x", tokens);
  check.input("weight", channels);
  if (!one) {
    check.input("second", tokens);
    check.input("second weight", channels);
  }
  check.output("out", tokens);
  auto const two = [](auto view) { return last_axes<2>(view); };
  if (one && !backward)
    heed::weighted_rms_norm(check.in(0), two(check.in(1)), check.out(0), epsilon);
  else if (one)
    heed::weighted_rms_norm_backward(check.in(0), two(check.in(1)), check.dout(0), check.din(0),
                                     two(check.din(1)), epsilon);
  else if (!backward)
    heed::hymba_fusion(check.in(0), check.in(2), two(check.in(1)), two(check.in(3)), check.out(0),
                       epsilon);
  else
    heed::hymba_fusion_backward(check.in(0), check.in(2), two(check.in(1)), two(check.in(3)),
                                check.dout(0), check.din(0), check.din(2), two(check.din(1)),
                                two(check.din(3)), epsilon);
  auto const definition = [&]<class R>(reference::tensors<R> const& in) {
    auto out = reference::weighted_rms(in[0], in[1], epsilon);
    if (!one) {
      auto const other = reference::weighted_rms(in[2], in[3], epsilon);
      for (std::size_t n = 0; n < out.values.size(); ++n)
        out.values[n] = (out.values[n] + other.values[n]) / R(2);
    }
    return reference::tensors<R>{out};
  };
  return backward ? check.backward(definition) : check.forward(definition);
}

support::guarded<double, 4> filled(support::random& draw, support::extents_of<4> const& extents) {
  support::guarded<double, 4> all(extents, support::packed<4>(extents));
  all.fill([&](auto const&) { return draw.normal(); });
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("hymba: norms and fusion", "[mechanism][hymba][quick]", double, float) {
  for_each_seed("hymba fusion", 150, [](seed_t seed) { return fusion<TestType>(seed, false); });
}

TEMPLATE_TEST_CASE("hymba: gradients of norms and fusion", "[mechanism][hymba]", double, float) {
  for_each_seed("hymba fusion backward", 80,
                [](seed_t seed) { return fusion<TestType>(seed, true); });
}

TEST_CASE("hymba: the mask counts as the published code", "[mechanism][hymba][quick]") {
  for (index_t window : {0, 3})
    for (index_t meta : {0, 2}) {
      auto const mask = heed::hymba_mask(window, meta);
      for (index_t i = 0; i < 12; ++i)
        for (index_t j = 0; j < 12; ++j)
          CHECK(mask.keep(i, j) == (j <= i && (i - j <= window || j < meta)));
    }
  CHECK_THROWS_WITH(heed::hymba_mask(-1, 2),
                    "heed: hymba_mask has a window of -1 and 2 meta tokens; expected at least 0 of "
                    "both");
}

TEST_CASE("hymba: a pair of heads", "[mechanism][hymba]") {
  // Meta tokens in front, the branches of one layer, fused; the maps between them are small and plain.
  support::random draw(9);
  index_t const meta = 3, N = 30, D = 12, n = 4, rank = 2, taps = 4, window = 5;
  auto u = filled(draw, {1, N, 1, D}), filter = filled(draw, {1, taps, 1, D}),
       q = filled(draw, {1, N, 2, D / 2}), k = filled(draw, {1, N, 1, D / 2}),
       v = filled(draw, {1, N, 1, D / 2}), z = filled(draw, {1, N, 1, D}),
       lift = filled(draw, {1, 1, rank, D}), norms = filled(draw, {1, 1, 1, rank + 2 * n}),
       A = filled(draw, {1, 1, D, n}), bias = filled(draw, {1, 1, 1, D}),
       w1 = filled(draw, {1, 1, 1, D}), w2 = filled(draw, {1, 1, 1, D});
  A.fill([&](auto const&) { return -std::exp(draw.normal()); });

  auto mixed = filled(draw, {1, N, 1, D}), low = filled(draw, {1, N, 1, rank}),
       write = filled(draw, {1, N, 1, n}), read = filled(draw, {1, N, 1, n}),
       step = filled(draw, {1, N, 1, D}), state = filled(draw, {1, N, 1, D}),
       attended = filled(draw, {1, N, 2, D / 2}), out = filled(draw, {1, N, 1, D});
  auto const two = [](auto& all) { return last_axes<2>(all.view()); };
  heed::causal_convolution(u.view(), last_axes<3>(filter.view()), mixed.view(), heed::with_silu{});
  auto const normed = [&](index_t first, index_t count, auto& to) {
    heed::weighted_rms_norm(mixed.view().slice(3, first, count),
                            last_axes<2>(norms.view().slice(3, first, count)), to.view());
  };
  normed(0, rank, low);
  normed(rank, n, write);
  normed(rank + n, n, read);
  step.fill([&](auto const& at) {
    double sum = 0;
    for (index_t r = 0; r < rank; ++r)
      sum += low.view()(0, at[1], 0, r) * lift.view()(0, 0, r, at[3]);
    return sum;
  });
  heed::selective_scan(u.view(), step.view(), last_axes<3>(A.view()), write.view(), read.view(),
                       state.view(), heed::softplus_step(two(bias)), heed::silu_gate(z.view()));
  heed::attention(q.view(), k.view(), v.view(), attended.view(), heed::hymba_mask(window, meta));
  tensor_view<double, 4> const joined(attended.view().data(), {1, N, 1, D});
  heed::hymba_fusion(joined, state.view(), two(w1), two(w2), out.view());

  // The same in plain loops.
  auto const rms = [](std::vector<double> x) {
    double squares = 0;
    for (double each : x) squares += each * each;
    for (double& each : x) each /= std::sqrt(squares / double(x.size()) + 1e-6);
    return x;
  };
  auto const at = [](auto& all, index_t a, index_t b) -> double& { return all.view()(0, a, 0, b); };
  std::vector h(static_cast<std::size_t>(D), std::vector(static_cast<std::size_t>(n), 0.0));
  for (index_t t = 0; t < N; ++t) {
    std::vector<double> c;
    for (index_t d = 0; d < D; ++d) {
      double sum = 0;
      for (index_t j = 0; j < taps && j <= t; ++j) sum += at(filter, j, d) * at(u, t - j, d);
      c.push_back(reference::silu(sum));
    }
    auto const part = [&](index_t first, index_t count) {
      auto x = rms({c.begin() + first, c.begin() + first + count});
      for (index_t i = 0; i < count; ++i) x[std::size_t(i)] *= at(norms, 0, first + i);
      return x;
    };
    auto const low_t = part(0, rank), write_t = part(rank, n), read_t = part(rank + n, n);
    std::vector<double> ssm, attn;
    for (index_t d = 0; d < D; ++d) {
      double raw = at(bias, 0, d), y = 0;
      for (index_t r = 0; r < rank; ++r) raw += low_t[std::size_t(r)] * lift.view()(0, 0, r, d);
      double const delta = reference::softplus(raw);
      for (index_t i = 0; i < n; ++i) {
        double& own = h[std::size_t(d)][std::size_t(i)];
        own = std::exp(delta * A.view()(0, 0, d, i)) * own +
              delta * at(u, t, d) * write_t[std::size_t(i)];
        y += own * read_t[std::size_t(i)];
      }
      ssm.push_back(y * reference::silu(at(z, t, d)));
    }
    for (index_t head = 0; head < 2; ++head) {
      std::vector sums(static_cast<std::size_t>(D / 2), 0.0);
      double total = 0;
      for (index_t j = 0; j <= t; ++j) {
        if (t - j > window && j >= meta) continue;
        double score = 0;
        for (index_t d = 0; d < D / 2; ++d) score += q.view()(0, t, head, d) * at(k, j, d);
        double const weight = std::exp(score / std::sqrt(double(D / 2)));
        total += weight;
        for (index_t d = 0; d < D / 2; ++d) sums[std::size_t(d)] += weight * at(v, j, d);
      }
      for (double sum : sums) attn.push_back(sum / total);
    }
    ssm = rms(ssm);
    attn = rms(attn);
    for (index_t d = 0; d < D; ++d)
      CHECK(at(out, t, d) ==
            Approx((attn[std::size_t(d)] * at(w1, 0, d) + ssm[std::size_t(d)] * at(w2, 0, d)) / 2)
                .margin(1e-12));
  }
}

TEST_CASE("hymba: the same bits on any executor; sizes of any number", "[mechanism][hymba]") {
  support::random draw(10);
  auto a = filled(draw, {2, 70, 2, 9}), s = filled(draw, {2, 70, 2, 9}),
       w = filled(draw, {1, 1, 2, 9}), out = filled(draw, {2, 70, 2, 9}),
       da = filled(draw, {2, 70, 2, 9}), ds = filled(draw, {2, 70, 2, 9}),
       dw = filled(draw, {2, 1, 2, 9});
  support::threads executor;
  auto const weight = last_axes<2>(w.view());
  auto const run = [&](auto const&... more) {
    heed::hymba_fusion(a.view(), s.view(), weight, weight, out.view(), 1e-6, more...);
    heed::hymba_fusion_backward(a.view(), s.view(), weight, weight, out.view(), da.view(),
                                ds.view(), last_axes<2>(dw.view().slice(0, 0, 1)),
                                last_axes<2>(dw.view().slice(0, 1, 1)), 1e-6, more...);
    return std::array{out.values<double>(), da.values<double>(), ds.values<double>(),
                      dw.values<double>()};
  };
  auto const one = run(), three = run(heed::on{executor});
  for (std::size_t n = 0; n < one.size(); ++n) CHECK(support::same_bits(one[n], three[n]));

  // Squares that are no numbers, and rows of 0.
  a.fill([&](auto const& at) { return at[1] == 0 ? 1e200 : at[1] == 1 ? 0.0 : draw.normal(); });
  heed::weighted_rms_norm(a.view(), weight, out.view());
  for (index_t h = 0; h < 2; ++h)
    for (index_t d = 0; d < 9; ++d) {
      CHECK(out.view()(0, 0, h, d) == Approx(w.view()(0, 0, h, d)));
      CHECK(out.view()(0, 1, h, d) == 0);
    }
}

TEST_CASE("hymba: what does not fit is refused", "[mechanism][hymba]") {
  std::vector<float> numbers(200, 0.5f);
  auto const x = heed::bnhd(numbers.data(), 1, 5, 2, 3),
             less = heed::bnhd(numbers.data(), 1, 4, 2, 3);
  tensor_view<float, 2> const w(numbers.data(), {2, 3}), narrow(numbers.data(), {2, 2});
  CHECK_THROWS_WITH(
      heed::hymba_fusion(x, less, w, w, x),
      "heed: second has shape [1, 4, 2, 3]; expected that of the first, [1, 5, 2, 3]");
  CHECK_THROWS_WITH(heed::hymba_fusion(x, x, w, narrow, x),
                    "heed: second_weight has shape [2, 2]; expected [2, 3] (head, dim)");
  CHECK_THROWS_WITH(heed::weighted_rms_norm(x, w, x, -1),
                    "heed: rms_norm.epsilon is -1.000000; expected at least 0");
  CHECK(numbers == std::vector<float>(200, 0.5f));
}
