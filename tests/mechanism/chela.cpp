#include "reference/chela.hpp"
#include "reference/documents.hpp"
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
struct chela_problem : support::definition_check<T> {
  index_t B, N, H, D, E, brief, lasting;
  bool is_dense;
  std::vector<double> log_decays;
  reference::packing packed;

  explicit chela_problem(seed_t seed, bool whole = false) : support::definition_check<T>(seed) {
    auto& dice = this->draw;
    bool const is_packed = !whole && dice.one_in(3);
    B = is_packed ? 1 : dice.between(1, 2), N = dice.between(whole ? 2 : 1, 40);
    H = dice.between(1, 3), D = dice.between(1, 12), E = dice.between(1, 12);
    brief = dice.between(1, 4), lasting = dice.between(1, 50);
    is_dense = !whole && dice.one_in(3);
    if (!is_dense && dice.one_in(2))
      for (index_t h = 0; h < H; ++h) log_decays.push_back(std::log(dice.uniform(0.5, 1)));
    if (is_packed) {
      std::vector<index_t> const bounds{0, dice.between(0, N), N};
      packed = {bounds, bounds, {0, 7}, {}};
    }
    this->input("x", {B, N, H, D});
    this->input("short", {1, brief, H, D});
    this->input("long", {1, lasting, H, D}, [&] { return 0.3 * dice.normal(); });
    for (char const* name : {"a_q", "b_q", "a_k", "b_k"}) this->input(name, {1, 1, H, D});
    this->input("value", {B, N, dice.one_in(2) ? 1 : H, E});
    this->output("z", {B, N, H, D});
    this->output("out", {B, N, H, E});
  }

  auto taps(std::size_t n) const { return last_axes<3>(this->in(n)); }
  auto affine() const {
    auto const two = [&](std::size_t n) { return last_axes<2>(this->in(n)); };
    return heed::chela_affine{two(3), two(4), two(5), two(6)};
  }
  auto daffine() {
    auto const two = [&](std::size_t n) { return last_axes<2>(this->din(n)); };
    return heed::chela_affine{two(3), two(4), two(5), two(6)};
  }
  /// Calls f with the ingredients of a causal call.
  template <class F>
  void with_decay(F const& f) const {
    if (log_decays.empty())
      f(heed::chunk_size{16});
    else
      f(heed::fixed_decay(std::span<double const>(log_decays)));
  }
  /// Calls f with all ingredients.
  template <class F>
  void call(F const& f) const {
    auto const with = [&](auto const& kind) {
      packed.rows.empty() ? f(kind) : f(kind, heed::documents{packed.rows, packed.rows});
    };
    is_dense ? with(heed::dense{}) : with_decay(with);
  }
  template <class Cut, class... I>
  void forward_of(Cut const& of, I const&... all) {
    heed::chela(of(this->in(0)), taps(1), taps(2), affine(), of(this->in(7)), of(this->out(0)),
                of(this->out(1)), all...);
  }
  template <class Cut, class... I>
  void backward_of(Cut const& of, I const&... all) {
    heed::chela_backward(of(this->in(0)), taps(1), taps(2), affine(), of(this->in(7)),
                         of(this->saved(0)), of(this->dout(1)), of(this->dout(0)), of(this->din(0)),
                         last_axes<3>(this->din(1)), last_axes<3>(this->din(2)), daffine(),
                         of(this->din(7)), all...);
  }
  auto definition(bool newest_first) const {
    return [=, this]<class R>(reference::tensors<R> const& in) {
      return packed(in, [&](reference::tensors<R> const& own) {
        return reference::chela(own, log_decays, is_dense, newest_first);
      });
    };
  }
};

template <class T>
std::string chela(seed_t seed, bool backward) {
  chela_problem<T> p(seed);
  auto const whole = [](auto view) { return view; };
  p.call([&](auto const&... all) {
    p.forward_of(whole, all...);
    if (backward) p.backward_of(whole, all...);
  });
  return backward ? p.backward(p.definition(false), p.definition(true))
                  : p.forward(p.definition(false), p.definition(true));
}

/// What a problem keeps between calls, or a gradient by it.
template <class T>
struct kept_parts {
  support::guarded<T, 4> brief, lasting, memory;

  explicit kept_parts(chela_problem<T> const& p)
      : brief(zeros({p.B, p.H, p.brief - 1, p.D})),
        lasting(zeros({p.B, p.H, p.lasting - 1, p.D})),
        memory(zeros({p.B, p.H, p.D, p.E})) {}
  static support::guarded<T, 4> zeros(support::extents_of<4> const& extents) {
    support::guarded<T, 4> all(extents, support::packed<4>(extents));
    all.fill([](auto const&) { return T(0); });
    return all;
  }
  template <template <class> class As>
  As<T> as() {
    return {brief.view(), lasting.view(), memory.view()};
  }
  void take(kept_parts& other) {
    for (auto part : {&kept_parts::brief, &kept_parts::lasting, &kept_parts::memory})
      heed::copy_elements((other.*part).view(), (this->*part).view());
  }
};

/// Two calls, the second of which goes on from the first, and their gradients, which add up for filters and factors.
template <class T>
std::string chela_in_two(seed_t seed) {
  chela_problem<T> p(seed, true);
  kept_parts<T> now(p), begun(p), middle(p), slope(p);
  index_t const cut = p.draw.between(1, p.N - 1);
  auto const first = [&](auto view) { return view.slice(1, 0, cut); };
  auto const second = [&](auto view) { return view.slice(1, cut, p.N - cut); };
  p.with_decay([&](auto const& kind) {
    p.forward_of(first, kind, now.template as<heed::chela_state>());
    middle.take(now);
    p.forward_of(second, kind, now.template as<heed::chela_state>());
    p.backward_of(second, kind, middle.template as<heed::chela_state>(),
                  slope.template as<heed::chela_state_gradient>());
    std::vector<T> of_second;
    auto const each_parameter = [&](auto const& f) {
      for (std::size_t n = 1; n < 7; ++n)
        support::for_each_index(p.din(n).extents(),
                                [&](auto const& at) { f(p.din(n)(at[0], at[1], at[2], at[3])); });
    };
    each_parameter([&](T& x) { of_second.push_back(x); });
    p.backward_of(first, kind, begun.template as<heed::chela_state>(),
                  slope.template as<heed::chela_final_gradient>());
    std::size_t n = 0;
    each_parameter([&](T& x) { x += of_second[n++]; });
  });
  return p.forward(p.definition(false), p.definition(true)) +
         p.backward(p.definition(false), p.definition(true));
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

TEMPLATE_TEST_CASE("chela: two parts and their gradients are the whole", "[mechanism][chela]",
                   double, float) {
  for_each_seed("chela in two", 40, [](seed_t seed) { return chela_in_two<TestType>(seed); });
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
  index_t const bounds[] = {0, 2, 5};
  auto const history = heed::bnhd(numbers.data(), 2, 3, 2, 3).swap_axes(1, 2);
  CHECK_THROWS_WITH(
      heed::chela(x, taps(2), taps(2), affine, x, x, x, heed::chela_state{history, history, x},
                  heed::documents{bounds, bounds}),
      "heed: chela_state.memory has shape [1, 5, 2, 3]; expected that of the linear "
      "attention's state, [2, 2, 3, 3]");
  affine.key_bias = tensor_view<float, 2>(numbers.data(), {2, 2});
  CHECK_THROWS_WITH(
      heed::chela(x, taps(2), taps(2), affine, x, x, x),
      "heed: chela_affine has numbers of shape [2, 2]; expected [2, 3] (head, dim), and memory");
  CHECK(numbers == std::vector<float>(300, 0.5f));
}
