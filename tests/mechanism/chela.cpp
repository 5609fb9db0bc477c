#include "reference/chela.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/chela.hpp>

// CHELA against plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

template <class T>
std::string chela(seed_t seed, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const B = draw.between(1, 2), N = draw.between(1, 40), H = draw.between(1, 3),
                D = draw.between(1, 12), E = draw.between(1, 12);
  bool const is_dense = draw.one_in(3);
  std::vector<double> log_decays;
  if (!is_dense && draw.one_in(2))
    for (index_t h = 0; h < H; ++h) log_decays.push_back(std::log(draw.uniform(0.5, 1)));
  check.input("x", {B, N, H, D});
  check.input("short", {1, draw.between(1, 4), H, D});
  check.input("long", {1, draw.between(1, 50), H, D}, [&] { return 0.3 * draw.normal(); });
  for (char const* name : {"a_q", "b_q", "a_k", "b_k"}) check.input(name, {1, 1, H, D});
  check.input("value", {B, N, draw.one_in(2) ? 1 : H, E});
  check.output("z", {B, N, H, D});
  check.output("out", {B, N, H, E});
  auto const two = [](auto view) { return last_axes<2>(view); };
  auto const three = [](auto view) { return last_axes<3>(view); };
  heed::chela_affine const given{two(check.in(3)), two(check.in(4)), two(check.in(5)),
                                 two(check.in(6))};
  auto const call = [&](auto const&... more) {
    heed::chela(check.in(0), three(check.in(1)), three(check.in(2)), given, check.in(7),
                check.out(0), check.out(1), more...);
    if (backward)
      heed::chela_backward(check.in(0), three(check.in(1)), three(check.in(2)), given, check.in(7),
                           check.saved(0), check.dout(1), check.dout(0), check.din(0),
                           three(check.din(1)), three(check.din(2)),
                           heed::chela_affine{two(check.din(3)), two(check.din(4)),
                                              two(check.din(5)), two(check.din(6))},
                           check.din(7), more...);
  };
  if (is_dense)
    call(heed::dense{});
  else if (log_decays.empty())
    call(heed::chunk_size{16});
  else
    call(heed::fixed_decay(std::span<double const>(log_decays)));
  auto const in_order = [&]<class R>(reference::tensors<R> const& in) {
    return reference::chela(in, log_decays, is_dense, false);
  };
  auto const backwards = [&]<class R>(reference::tensors<R> const& in) {
    return reference::chela(in, log_decays, is_dense, true);
  };
  return backward ? check.backward(in_order, backwards) : check.forward(in_order, backwards);
}

support::guarded<double, 4> filled(support::random& draw, support::extents_of<4> const& extents) {
  support::guarded<double, 4> all(extents, support::packed<4>(extents));
  all.fill([&](auto const&) { return draw.normal(); });
  return all;
}

double largest_difference(auto const& a, auto const& b) {
  double largest = 0;
  for (std::size_t n = 0; n < a.values.size(); ++n)
    largest = std::max(largest, std::abs(a.values[n] - b.values[n]));
  return largest;
}

}  // namespace

TEMPLATE_TEST_CASE("chela: the definition", "[mechanism][chela][quick]", double, float) {
  for_each_seed("chela", 100, [](seed_t seed) { return chela<TestType>(seed, false); });
}

TEMPLATE_TEST_CASE("chela: the gradients", "[mechanism][chela]", double, float) {
  for_each_seed("chela backward", 40, [](seed_t seed) { return chela<TestType>(seed, true); });
}

TEST_CASE("chela: states, steps and the whole; delta filters; merged filters",
          "[mechanism][chela]") {
  support::random draw(4);
  index_t const B = 2, N = 45, H = 2, D = 6, E = 5;
  auto x = filled(draw, {B, N, H, D}), brief = filled(draw, {1, 3, H, D}),
       lasting = filled(draw, {1, 20, H, D}), numbers = filled(draw, {4, 1, H, D}),
       v = filled(draw, {B, N, H, E}), z = filled(draw, {B, N, H, D}),
       out = filled(draw, {B, N, H, E});
  auto const number = [&](index_t n) { return last_axes<2>(numbers.view().slice(0, n, 1)); };
  heed::chela_affine const affine{number(0), number(1), number(2), number(3)};
  auto const run = [&](auto const&... more) {
    heed::chela(x.view(), last_axes<3>(brief.view()), last_axes<3>(lasting.view()), affine,
                v.view(), z.view(), out.view(), more...);
    return out.values<double>();
  };
  auto const whole = run();
  support::threads executor;
  CHECK(support::same_bits(whole, run(heed::on{executor})));
  for (index_t most : {1, 17}) {
    auto inputs = filled(draw, {B, H, 2, D}), older = filled(draw, {B, H, 19, D}),
         memory = filled(draw, {B, H, D, E});
    for (auto* state : {&inputs, &older, &memory}) state->fill([](auto const&) { return 0.0; });
    for (index_t t = 0; t < N; t += most) {
      index_t const count = std::min(most, N - t);
      auto const at = [&](auto& all) { return all.view().slice(1, t, count); };
      heed::chela(at(x), last_axes<3>(brief.view()), last_axes<3>(lasting.view()), affine, at(v),
                  at(z), at(out), heed::chela_state{inputs.view(), older.view(), memory.view()});
    }
    double const size = 1e-13 * 1e3;  // results are up to some thousands
    CHECK(largest_difference(whole, out.values<double>()) < size);
  }

  // Filters of one tap of 1: linear attention of silu(silu(x)).
  auto one = filled(draw, {1, 1, H, D});
  one.fill([](auto const&) { return 1.0; });
  heed::chela(x.view(), last_axes<3>(one.view()), last_axes<3>(one.view()), affine, v.view(),
              z.view(), out.view());
  auto const twice = z.values<double>();
  for (index_t t = 0; t < N; ++t)
    CHECK(twice(0, t, 0, 0) ==
          Approx(reference::silu(reference::silu(x.view()(0, t, 0, 0)))).margin(1e-15));

  // Parallel branches are one filter.
  auto merged = filled(draw, {1, 20, H, D}), a = filled(draw, {B, N, H, D}),
       b = filled(draw, {B, N, H, D}), sum = filled(draw, {B, N, H, D});
  heed::merge_filters(last_axes<3>(brief.view()), last_axes<3>(lasting.view()),
                      last_axes<3>(merged.view()));
  heed::causal_convolution(x.view(), last_axes<3>(brief.view()), a.view());
  heed::causal_convolution(x.view(), last_axes<3>(lasting.view()), b.view());
  heed::causal_convolution(x.view(), last_axes<3>(merged.view()), sum.view());
  auto branches = a.values<double>();
  auto const other = b.values<double>();
  for (std::size_t n = 0; n < branches.values.size(); ++n) branches.values[n] += other.values[n];
  CHECK(largest_difference(branches, sum.values<double>()) < 1e-13);
}

TEST_CASE("chela: what does not fit is refused", "[mechanism][chela]") {
  std::vector<float> numbers(300, 0.5f);
  auto const x = heed::bnhd(numbers.data(), 1, 5, 2, 3);
  tensor_view<float, 2> const channel(numbers.data(), {2, 3});
  auto const taps = [&](index_t heads) {
    return tensor_view<float, 3>(numbers.data(), {4, heads, 3});
  };
  heed::chela_affine affine{channel, channel, channel, channel};
  CHECK_THROWS_WITH(
      heed::chela(x, taps(2), taps(1), affine, x, x, x),
      "heed: long_filter has shape [4, 1, 3]; expected [taps, 2, 3] (tap, head, dim)");
  CHECK_THROWS_WITH(heed::chela(x, taps(2), taps(2), affine, x, x, x, heed::chela_state{x, x, x}),
                    "heed: chela_state.short_inputs has shape [1, 5, 2, 3]; expected that of the "
                    "filter's history, [1, 2, 3, 3]");
  affine.key_bias = tensor_view<float, 2>(numbers.data(), {2, 2});
  CHECK_THROWS_WITH(
      heed::chela(x, taps(2), taps(2), affine, x, x, x),
      "heed: chela_affine has numbers of shape [2, 2]; expected [2, 3] (head, dim), and memory");
  CHECK(numbers == std::vector<float>(300, 0.5f));
}
