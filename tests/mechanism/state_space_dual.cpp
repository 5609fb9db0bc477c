#include "reference/state_space.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/selective_scan.hpp>
#include <heed/mechanism/state_space_dual.hpp>

// Mamba-2 as linear attention, against its definition as a selective scan.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

template <class E>
tensor_view<E, 3> tokens(tensor_view<E, 4> view) {
  return heed::recur::without_channels(view);
}
template <class E>
tensor_view<E, 1> heads(tensor_view<E, 4> view) {
  return {view.data(), {view.extent(2)}, {view.stride(2)}};
}

template <class T>
support::guarded<T, 4> filled(support::random& draw, support::extents_of<4> const& extents,
                              double low, double high) {
  support::guarded<T, 4> all(extents, support::packed<4>(extents));
  all.fill([&](auto const&) { return static_cast<T>(draw.uniform(low, high)); });
  return all;
}

template <class T>
std::string dual(seed_t seed, index_t most, bool backward) {
  using golden = typename support::definition_check<T>::golden;
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const N = draw.one_in(8) ? draw.between(0, 3) : draw.between(1, most);
  support::drawn_sequences const all(draw, N);
  index_t const B = all.batches, H = draw.between(1, 4), n = draw.between(1, 20),
                P = draw.between(1, 24);
  index_t groups = draw.between(1, H);
  while (H % groups != 0) --groups;
  support::extents_of<4> const state{all.count(), H, n, P};
  check.input("x", {B, N, H, P});
  check.input("step", {B, N, H, 1}, [&] { return draw.uniform(0, 2); });
  check.input("B", {B, N, groups, n});
  check.input("C", {B, N, groups, n});
  check.input("skip", {1, 1, H, 1});
  check.input("initial", state);
  check.output("out", {B, N, H, P});
  check.output("final", state);
  auto rate = filled<T>(draw, {1, 1, H, 1}, draw.one_in(2) ? -3 : -0.1, 0);
  auto drate = filled<T>(draw, {1, 1, H, 1}, 0, 0);
  all.call([&](auto const&... packed) {
    if (backward)
      heed::state_space_dual_backward(
          check.in(0), tokens(check.in(1)), heads(rate.view()), check.in(2), check.in(3),
          check.dout(0), check.din(0), tokens(check.din(1)), heads(drate.view()), check.din(2),
          check.din(3), packed..., heed::head_skip(heads(check.in(4)), heads(check.din(4))),
          heed::initial_state(check.in(5), check.din(5)),
          heed::final_state_gradient(check.dout(1)));
    else
      heed::state_space_dual(check.in(0), tokens(check.in(1)), heads(rate.view()), check.in(2),
                             check.in(3), check.out(0), packed...,
                             heed::head_skip(heads(check.in(4))), heed::initial_state(check.in(5)),
                             heed::final_state{check.out(1)});
  });
  auto const with_rates = [&]<class R>(reference::tensors<R> in) {
    in.emplace_back(in[1].extents);
    for (index_t b = 0; b < B; ++b)
      for (index_t t = 0; t < N; ++t)
        for (index_t h = 0; h < H; ++h) in.back()(b, t, h, 0) = R(rate.view()(0, 0, h, 0));
    return in;
  };
  auto const definition = [&]<class R>(reference::tensors<R> const& in) {
    return reference::state_space_dual(all, in.size() == 7 ? in : with_rates(in));
  };
  auto const by_pairs = [&]<class R>(reference::tensors<R> const& in) {
    return reference::state_space_dual_by_pairs(all, in.size() == 7 ? in : with_rates(in));
  };
  if (!backward) return check.forward(definition, by_pairs);

  // One number is the sum of many: its rounding is measured by the sizes of what the gradient of log gates is the
  // difference of, queries and
  // keys times their gradients.
  auto const operands = [&]<class R>(R, bool sizes) {
    std::pair<reference::tensors<R>, reference::tensors<R>> all_of;
    for (std::size_t i = 0; i < 6; ++i) all_of.first.push_back(support::read<R>(check.in(i)));
    for (std::size_t i = 0; i < 2; ++i) all_of.second.push_back(support::read<R>(check.dout(i)));
    all_of.first = with_rates(all_of.first);
    if (sizes)
      for (auto* tensors : {&all_of.first, &all_of.second})
        for (auto& tensor : *tensors)
          if (&tensor != &all_of.first.back())
            for (R& number : tensor.values) number = std::abs(number);
    return all_of;
  };
  auto const sum_rates = [&]<class R>(R) {
    auto const [in, slopes] = operands(R{}, false);
    auto const each = reference::gradients_of(definition, in, slopes).back();
    reference::tensor<R, 4> sum({1, 1, H, 1});
    for (index_t b = 0; b < B; ++b)
      for (index_t t = 0; t < N; ++t)
        for (index_t h = 0; h < H; ++h) sum(0, 0, h, 0) += each(b, t, h, 0);
    return sum;
  };
  auto const [in, slopes] = operands(double{}, true);
  auto const products = reference::gradients_of(definition, in, slopes);
  double terms = 0;
  for (std::size_t i : {2u, 3u, 5u}) terms += reference::weighted_sum(in[i], products[i]);
  return check.backward(definition, by_pairs) +
         support::two_times_rule("rate", drate.template values<golden>(), sum_rates(golden{}),
                                 std::vector{sum_rates(T{})}, support::epsilon<T>(), terms);
}

}  // namespace

TEMPLATE_TEST_CASE("state-space duality: the definition", "[mechanism][state_space_dual][quick]",
                   double, float) {
  for_each_seed("state-space duality", 100,
                [](seed_t seed) { return dual<TestType>(seed, 90, false); });
}

TEMPLATE_TEST_CASE("state-space duality: the gradients", "[mechanism][state_space_dual]", double,
                   float) {
  for_each_seed("state-space duality backward", 40,
                [](seed_t seed) { return dual<TestType>(seed, 60, true); });
}

TEST_CASE("state-space duality: steps are chunks are the selective scan",
          "[mechanism][state_space_dual]") {
  support::random draw(5);
  index_t const B = 2, N = 150, H = 4, P = 9, n = 12;
  auto x = filled<double>(draw, {B, N, H, P}, -1, 1),
       step = filled<double>(draw, {B, N, H, 1}, 0, 1),
       rate = filled<double>(draw, {1, 1, H, 1}, -2, 0),
       write = filled<double>(draw, {B, N, 2, n}, -1, 1),
       read = filled<double>(draw, {B, N, 2, n}, -1, 1),
       out = filled<double>(draw, {B, N, H, P}, 0, 0),
       skip = filled<double>(draw, {1, 1, H, 1}, -1, 1),
       state = filled<double>(draw, {B, H, n, P}, 0, 0);
  heed::head_skip const with_skip(heads(skip.view()));
  auto const whole = [&](auto const&... more) {
    heed::state_space_dual(x.view(), tokens(step.view()), heads(rate.view()), write.view(),
                           read.view(), out.view(), with_skip, more...);
    return out.values<double>();
  };
  auto const chunks = whole();
  auto const close = [](auto const& a, auto const& b) {
    double largest = 0;
    for (std::size_t i = 0; i < a.values.size(); ++i)
      largest = std::max(largest, std::abs(a.values[i] - b.values[i]));
    return largest < 1e-12;
  };
  CHECK(close(chunks, whole(heed::chunk_size{7})));
  for (index_t t = 0; t < N; ++t) {
    auto const at = [&](auto& of) { return of.view().slice(1, t, 1); };
    heed::state_space_dual_step(at(x), tokens(at(step)), heads(rate.view()), at(write), at(read),
                                at(out), state.view(), with_skip);
  }
  CHECK(close(chunks, out.values<double>()));
  support::threads executor;
  auto const threaded = whole(heed::on{executor});
  CHECK(support::same_bits(chunks, threaded));
  CHECK(support::same_bits(chunks, whole()));

  // One rate for all channels, and the same steps: strides of 0.
  tensor_view<double, 4> const steps(step.view().data(), {B, N, H, P},
                                     {step.view().stride(0), step.view().stride(1), 1, 0});
  heed::selective_scan(
      x.view(), steps, tensor_view<double, 3>(rate.view().data(), {H, P, n}, {1, 0, 0}),
      write.view(), read.view(), out.view(),
      heed::skip_input(tensor_view<double, 2>(skip.view().data(), {H, P}, {1, 0})));
  CHECK(close(chunks, out.values<double>()));
}

TEST_CASE("state-space duality: what does not fit is refused", "[mechanism][state_space_dual]") {
  std::vector<float> numbers(200, 0.5f), rates(2, -1.0f);
  auto const x = heed::bnhd(numbers.data(), 1, 5, 2, 3), w = heed::bnhd(numbers.data(), 1, 5, 1, 4);
  auto const step = [&](index_t n) { return tensor_view<float, 3>(numbers.data(), {1, n, 2}); };
  auto const rate = [&](index_t h) { return tensor_view<float, 1>(rates.data(), {h}); };
  CHECK_THROWS_WITH(heed::state_space_dual(x, step(4), rate(2), w, w, x),
                    "heed: step has shape [1, 4, 2]; expected [1, 5, 2] (batch, position, head)");
  CHECK_THROWS_WITH(heed::state_space_dual(x, step(5), rate(1), w, w, x),
                    "heed: rate has shape [1]; expected [2] (head)");
  rates[1] = 0.5f;
  CHECK_THROWS_WITH(heed::state_space_dual(x, step(5), rate(2), w, w, x),
                    "heed: rate of shape [2] holds 0.500000 at batch entry 0, position 0; expected "
                    "rates of at most 0");
  rates[1] = -0.5f;
  numbers[3] = -0.5f;
  CHECK_THROWS_WITH(heed::state_space_dual(x, step(5), rate(2), w, w, x),
                    "heed: step of shape [1, 5, 2] holds -0.500000 at batch entry 0, position 0; "
                    "expected steps of at least 0");
  numbers[3] = 0.5f;
  CHECK(numbers == std::vector<float>(200, 0.5f));
}
