#include "reference/kernel_attention.hpp"

#include "support/error_rule.hpp"
#include "support/identity.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/based.hpp>
#include <heed/mechanism/cosformer.hpp>
#include <heed/mechanism/efficient_attention.hpp>
#include <heed/mechanism/fast_attention.hpp>
#include <heed/recur/features/elementwise.hpp>

// What the specification says of BASED, Fastmax, cosFormer and Efficient Attention: limits in which they are one
// another, conserved sums, hazards, and what is refused.

using heed::index_t;
using heed::standardisation;
using heed::tensor_view;
using support::blank;
using support::guarded;

namespace {

template <class T = float>
struct plain {
  support::random draw{5};
  guarded<T, 4> q, k, v, out, dout, dq, dk, dv;

  plain(index_t N, index_t M, index_t D, index_t E, double spread = 1)
      : q(support::normal<T>(draw, {1, N, 2, D}, spread)),
        k(support::normal<T>(draw, {1, M, 2, D}, spread)),
        v(support::normal<T>(draw, {1, M, 2, E})),
        out(blank<T, 4>({1, N, 2, E})),
        dout(support::normal<T>(draw, {1, N, 2, E})),
        dq(blank<T, 4>(q.extents())),
        dk(blank<T, 4>(k.extents())),
        dv(blank<T, 4>(v.extents())) {}

  /// call(query, key, value, out).
  template <class Call>
  reference::tensor<T, 4> operator()(Call const& call) {
    call(std::as_const(q).view(), std::as_const(k).view(), std::as_const(v).view(), out.view());
    return out.template values<T>();
  }
  /// call(query, key, value, out, dout, dquery, dkey, dvalue).
  template <class Call>
  std::vector<T> gradients(Call const& call) {
    call(std::as_const(q).view(), std::as_const(k).view(), std::as_const(v).view(),
         std::as_const(out).view(), std::as_const(dout).view(), dq.view(), dk.view(), dv.view());
    std::vector<T> all;
    for (auto const& each :
         {dq.template values<T>(), dk.template values<T>(), dv.template values<T>()})
      all.insert(all.end(), each.values.begin(), each.values.end());
    return all;
  }
};

auto fast(heed::fastmax how) {
  return [how](auto... all) { heed::fast_attention(all..., how); };
}
constexpr auto efficient = [](auto... all) { heed::efficient_attention(all...); };
constexpr auto causal_efficient = [](auto... all) { heed::causal_efficient_attention(all...); };
constexpr auto based = [](auto... all) { heed::based_attention(all...); };
constexpr auto cosine = [](auto... all) { heed::cosformer(all...); };

template <class T>
double distance_from(double number, reference::tensor<T, 4> const& x) {
  double largest = 0;
  for (T each : x.values)
    largest = std::max(largest, std::isfinite(each) ? std::abs(double(each) - number) : 1e300);
  return largest;
}

}  // namespace

TEST_CASE("fastmax of degree 2 without standardisation is based", "[mechanism][fast_attention]") {
  plain<double> p(40, 40, 9, 5);
  auto const one = p(based);
  auto const other = p(fast({2, standardisation::none, 1.0 / 3}));
  CHECK(support::difference(one, other) < 1e-11);
}

TEST_CASE("fastmax of a high degree is softmax", "[mechanism][fast_attention]") {
  plain<double> p(30, 30, 2, 5);
  auto const exact =
      support::attend(p.q.view(), p.k.view(), p.v.view(), heed::causal{}, heed::scale{0.5}).out;
  double last = 1e300;
  for (index_t degree : {4, 8, 16}) {
    auto const got = p(fast({degree, standardisation::none, 0.5}));
    double const error = support::difference(got, exact);
    CHECK(error < last);
    last = error;
  }
  CHECK(last < 1e-6);
}

TEST_CASE("values of 1 give 1", "[mechanism][fast_attention][based][cosformer][efficient]") {
  plain<float> p(50, 50, 6, 3);
  p.v.fill([](auto const&) { return 1.f; });
  CHECK(distance_from(1, p(based)) < 3e-6);
  CHECK(distance_from(1, p(fast({}))) < 3e-6);
  CHECK(distance_from(1, p(fast({2, standardisation::by_largest_norm, 1}))) < 3e-6);
  CHECK(distance_from(1, p(fast({1, standardisation::by_largest_norm, 0.9}))) < 3e-6);
  CHECK(distance_from(1, p(efficient)) < 3e-6);
  CHECK(distance_from(1, p(causal_efficient)) < 3e-6);
  p.q.fill([](auto const&) { return 0.5f; });
  CHECK(distance_from(1, p([](auto... all) { heed::cosformer(all..., heed::dense{}); })) < 3e-6);
}

TEST_CASE("cosformer with a far horizon is linear attention of relu", "[mechanism][cosformer]") {
  plain<double> p(30, 30, 6, 4);
  heed::normalised const by{.epsilon = 0, .at_least = 1e-6};
  auto const limit = p([&](auto... all) { heed::linear_attention(all..., heed::relu{}, by); });
  CHECK(support::difference(
            p([](auto... all) { heed::cosformer(all..., heed::cosine_horizon{100000000}); }),
            limit) < 1e-9);
  CHECK(support::difference(p(cosine), limit) > 1e-3);
}

TEST_CASE("cosformer: rows without a positive number give 0", "[mechanism][cosformer]") {
  plain<float> p(20, 20, 6, 4);
  p.q.fill([](auto const& at) { return at[1] % 2 == 0 ? -1.f : 1.f; });
  auto const out = p(cosine);
  for (index_t i = 0; i < 20; i += 2)
    for (index_t e = 0; e < 4; ++e) CHECK(out(0, i, 0, e) == 0);
  p.k.fill([](auto const&) { return -1.f; });
  CHECK(distance_from(0, p(cosine)) == 0);
}

TEST_CASE("fastmax stays within the largest norm", "[mechanism][fast_attention]") {
  // Rows of any size: |s| <= 1.
  for (double spread : {1e-20, 1.0, 1e15}) {
    plain<float> p(20, 20, 6, 4, spread);
    auto const out = p(fast({1, standardisation::by_largest_norm, 0.9}));
    CHECK(distance_from(0, out) < 10);
    for (double each : p.gradients([](auto... all) {
           heed::fast_attention_backward(all...,
                                         heed::fastmax{1, standardisation::by_largest_norm, 0.9});
         }))
      CHECK(std::isfinite(each));
  }
  plain<float> p(20, 20, 6, 4);
  for (auto* each : {&p.q, &p.k}) each->fill([](auto const&) { return 0.f; });
  // Rows of 0 have equal weights, whatever the standardisation.
  plain<float> mean(20, 20, 6, 4);
  for (auto how :
       {standardisation::none, standardisation::by_deviation, standardisation::by_largest_norm}) {
    auto const out = p(fast({2, how, 1}));
    auto const v = p.v.values<float>();
    float sum = 0;
    for (index_t j = 0; j < 20; ++j) sum += v(0, j, 1, 2) / 20;
    CHECK(out(0, 19, 1, 2) == Approx(sum).margin(1e-6));
    for (double each : p.gradients([&](auto... all) {
           heed::fast_attention_backward(all..., heed::fastmax{2, how, 1});
         }))
      CHECK(std::isfinite(each));
  }
}

TEST_CASE("efficient attention by length is a product", "[mechanism][efficient]") {
  plain<double> p(30, 30, 6, 4);
  auto const out = p([](auto... all) { heed::efficient_attention_by_length(all...); });
  auto const q = p.q.values<double>(), k = p.k.values<double>(), v = p.v.values<double>();
  for (index_t i = 0; i < 30; ++i) {
    double sum = 0;
    for (index_t j = 0; j < 30; ++j)
      for (index_t d = 0; d < 6; ++d) sum += q(0, i, 1, d) * k(0, j, 1, d) * v(0, j, 1, 2) / 30;
    CHECK(out(0, i, 1, 2) == Approx(sum).margin(1e-12));
  }
}

TEST_CASE("efficient attention: the last causal row sees all keys", "[mechanism][efficient]") {
  plain<double> p(30, 30, 6, 4);
  auto const all = p(efficient), causal = p(causal_efficient);
  for (index_t e = 0; e < 4; ++e)
    CHECK(causal(0, 29, 1, e) == Approx(all(0, 29, 1, e)).epsilon(1e-12));
}

TEST_CASE("efficient attention: numbers of any size, and no keys", "[mechanism][efficient]") {
  plain<float> p(30, 30, 6, 4, 1e4);
  for (auto const& out : {p(efficient), p(causal_efficient)}) CHECK(distance_from(0, out) < 10);
  for (double each : p.gradients([](auto... all) { heed::efficient_attention_backward(all...); }))
    CHECK(std::isfinite(each));
  plain<float> none(5, 0, 6, 4);
  CHECK(distance_from(0, none(efficient)) == 0);
  CHECK(distance_from(0, none(causal_efficient)) == 0);
  none.gradients([](auto... all) { heed::efficient_attention_backward(all...); });
  CHECK(distance_from(0, none.dq.values<float>()) == 0);
}

TEST_CASE("kernels of one row, one key or one channel", "[mechanism]") {
  // Where nothing is long, sums are short: close to the definition in double.
  for (index_t N : {0, 1, 2, 3})
    for (index_t M : {0, 1, 2, 3})
      for (index_t D : {1, 2}) {
        plain<double> p(N, M, D, 2);
        auto const q = p.q.values<double>(), k = p.k.values<double>(), v = p.v.values<double>();
        reference::kernel_call const call{2, true, 1e-12};
        auto const right =
            call.average(q, k, v, [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
              return reference::cut_exponential(reference::dot_of(reference::row_of(q, b, i, hq),
                                                                  reference::row_of(k, b, j, hk)) /
                                                    std::sqrt(static_cast<double>(D)),
                                                2);
            });
        CHECK(support::difference(p(based), right) < 1e-12);
        if (M > 0)
          CHECK(support::difference(p(efficient),
                                    reference::efficient_attention(q, k, v, 2, false)) < 1e-12);
        CHECK(support::difference(p(causal_efficient),
                                  reference::efficient_attention(q, k, v, 2, true)) < 1e-12);
        for (auto const& all :
             {p.gradients([](auto... each) { heed::based_attention_backward(each...); }),
              p.gradients([](auto... each) { heed::efficient_attention_backward(each...); }),
              p.gradients([](auto... each) { heed::causal_efficient_attention_backward(each...); }),
              p.gradients([](auto... each) { heed::cosformer_backward(each...); }),
              p.gradients([](auto... each) { heed::fast_attention_backward(each...); })})
          for (double each : all) CHECK(std::isfinite(each));
      }
}

TEST_CASE("kernels of half and bfloat16", "[mechanism]") {
  plain<Eigen::half> p(30, 30, 6, 4);
  plain<float> same(30, 30, 6, 4);
  auto const rounded = [](auto const& tensor) { return tensor.template values<float>(); };
  for (auto const& [to, from] :
       {std::pair(&same.q, &p.q), std::pair(&same.k, &p.k), std::pair(&same.v, &p.v)}) {
    auto const values = rounded(*from);
    to->fill([&](auto const& at) { return values(at[0], at[1], at[2], at[3]); });
  }
  auto const close = [&](auto const& call) {
    p(call);
    return support::difference(rounded(p.out), same(call)) < 2e-3;
  };
  CHECK(close(based));
  CHECK(close(fast({2, standardisation::by_largest_norm, 1})));
  CHECK(close(cosine));
  CHECK(close(efficient));
  CHECK(close(causal_efficient));
}

TEST_CASE("kernels: the same bits on any executor", "[mechanism]") {
  auto const check = [](auto const& forward, auto const& backward) {
    plain<float> one(70, 70, 6, 4), other(70, 70, 6, 4);
    auto const a = one([&](auto... all) { forward(heed::serial{}, all...); });
    auto const b = other([&](auto... all) { forward(support::threads{}, all...); });
    CHECK(a.values == b.values);
    CHECK(one.gradients([&](auto... all) { backward(heed::serial{}, all...); }) ==
          other.gradients([&](auto... all) { backward(support::threads{}, all...); }));
  };
  heed::fastmax const by_norm{2, standardisation::by_largest_norm, 1};
  check([&](auto on, auto... all) { heed::fast_attention(all..., by_norm, on); },
        [&](auto on, auto... all) { heed::fast_attention_backward(all..., by_norm, on); });
  check([](auto on, auto... all) { heed::efficient_attention(all..., on); },
        [](auto on, auto... all) { heed::efficient_attention_backward(all..., on); });
  check([](auto on, auto... all) { heed::causal_efficient_attention(all..., on); },
        [](auto on, auto... all) { heed::causal_efficient_attention_backward(all..., on); });
  check([](auto on, auto... all) { heed::cosformer(all..., on); },
        [](auto on, auto... all) { heed::cosformer_backward(all..., on); });
}

TEST_CASE("kernels of documents are those of their parts", "[mechanism]") {
  plain<float> p(40, 40, 6, 4), parts(40, 40, 6, 4);
  std::vector<index_t> const offsets{0, 13, 13, 40};
  heed::documents const packed{offsets, offsets};
  auto const check = [&](auto const& whole, auto const& part) {
    auto const all = p(whole);
    for (auto [first, count] : {std::pair<index_t, index_t>{0, 13}, {13, 27}})
      part(parts.q.view().slice(1, first, count), parts.k.view().slice(1, first, count),
           parts.v.view().slice(1, first, count), parts.out.view().slice(1, first, count));
    CHECK(support::difference(all, parts.out.values<float>()) < 2e-6);
  };
  heed::cosine_horizon const far{60};
  check([&](auto... all) { heed::based_attention(all..., packed); }, based);
  check([&](auto... all) { heed::fast_attention(all..., packed); }, fast({}));
  check([&](auto... all) { heed::cosformer(all..., packed, far); },
        [&](auto... all) { heed::cosformer(all..., far); });
  check([&](auto... all) { heed::cosformer(all..., packed, far, heed::dense{}); },
        [&](auto... all) { heed::cosformer(all..., far, heed::dense{}); });
  check([&](auto... all) { heed::efficient_attention(all..., packed); }, efficient);
  check([&](auto... all) { heed::causal_efficient_attention(all..., packed); }, causal_efficient);
}

TEST_CASE("kernels: what does not fit is refused", "[mechanism]") {
  plain<float> p(9, 9, 6, 4);
  CHECK_THROWS_WITH(p([](auto... all) { heed::cosformer(all..., heed::cosine_horizon{8}); }),
                    "heed: cosine_horizon has 8 positions and 0 tokens before; expected at least 9 "
                    "positions for 9 queries and 9 keys");
  CHECK_THROWS_WITH(p([](auto... all) {
                      heed::cosformer(all..., heed::cosine_horizon{12, 4});
                    }),
                    "heed: cosine_horizon has 12 positions and 4 tokens before; expected at least "
                    "13 positions for 9 queries and 9 keys");
  auto state = blank<float, 4>({1, 2, 28, 5});
  auto const one = [](auto& tensor) { return tensor.view().slice(1, 0, 1); };
  CHECK_THROWS_WITH(
      heed::fast_attention_step(one(p.q), one(p.k), one(p.v), one(p.out), state.view(),
                                heed::fastmax{2, standardisation::by_largest_norm, 1}),
      "heed: a step of fast_attention by_largest_norm: that of all rows is not known");
  CHECK_THROWS_WITH(heed::cosformer_step(one(p.q), one(p.k), one(p.v), one(p.out), state.view(),
                                         heed::cosine_horizon{0, 3}),
                    "heed: a step of cosformer needs cosine_horizon.positions");
  std::vector<index_t> const offsets{0, 4, 9};
  CHECK_THROWS_WITH(p([&](auto... all) {
                      heed::fast_attention(all..., heed::documents{offsets, offsets},
                                           heed::fastmax{2, standardisation::by_largest_norm, 1});
                    }),
                    "heed: fastmax of documents by_largest_norm: call for each of them");
  CHECK_THROWS_WITH(p(fast({0, standardisation::none, 1})),
                    "heed: polynomial has degree 0 and scale 1.000000; expected at least 1, and a "
                    "number above 0");
  std::vector<double> total(100);
  auto memory = blank<float, 4>({1, 2, 6, 4});
  CHECK_THROWS_WITH(p([&](auto... all) {
                      heed::causal_efficient_attention(
                          all..., heed::state{memory.view()},
                          heed::running_log_total{tensor_view<double, 3>(total.data(), {1, 1, 6})});
                    }),
                    "heed: running_log_total has shape [1, 1, 6]; expected [sequences, key heads, "
                    "head_dim], [1, 2, 6]");
}
