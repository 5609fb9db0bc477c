#include "reference/attention.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/locality_dial.hpp>
#include <heed/pattern/labels.hpp>

// The dial between all keys and those of the query's group, against a bias that says the same.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

struct dial_problem {
  support::random draw;
  index_t B = 2, N, M, H = 4;
  guarded<float, 4> query, key, value, out, dout, dquery, dkey, dvalue;
  guarded<float, 3> lse;
  guarded<int, 3> groups;
  double lambda, dlambda = 0;

  explicit dial_problem(seed_t seed) : draw(seed), N(draw.between(1, 40)), M(draw.between(N, 50)) {
    query = support::normal(draw, {B, N, H, 5});
    key = support::normal(draw, {B, M, 2, 5});
    value = support::normal(draw, {B, M, 2, 6});
    dout = support::normal(draw, {B, N, H, 6});
    out = support::blank<float, 4>({B, N, H, 6});
    dquery = support::blank<float, 4>({B, N, H, 5});
    dkey = support::blank<float, 4>({B, M, 2, 5});
    dvalue = support::blank<float, 4>({B, M, 2, 6});
    lse = support::blank<float, 3>({B, H, N});
    groups = support::blank<int, 3>({draw.one_in(2) ? 1 : B, draw.one_in(2) ? 1 : H, M});
    index_t const many = draw.between(1, 5);
    groups.fill([&](auto const&) { return static_cast<int>(draw.between(0, many - 1)); });
    lambda = draw.one_in(4) ? 0 : draw.one_in(3) ? 1 : draw.uniform();
  }
  bool same(index_t b, index_t h, index_t i, index_t j) const {
    auto const view = groups.view();
    b %= view.extent(0);
    h %= view.extent(1);
    return view(b, h, i + M - N) == view(b, h, j);
  }
  reference::options defined() const {
    reference::bias dial{tensor<double, 4>({B, H, N, M})};
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h)
        for (index_t i = 0; i < N; ++i)
          for (index_t j = 0; j < M; ++j)
            dial.values(b, h, i, j) = std::log(1 - lambda + lambda * (same(b, h, i, j) ? 1 : 0));
    reference::options o;
    o.modifiers.push_back(dial);
    return o;
  }
  heed::locality_dial dial() {
    return {std::as_const(groups).view(), lambda, lambda < 1 ? &dlambda : nullptr};
  }

  std::string run() {
    heed::attention(std::as_const(query).view(), std::as_const(key).view(),
                    std::as_const(value).view(), out.view(), dial(), heed::lse_into{lse.view()});
    heed::attention_backward(std::as_const(query).view(), std::as_const(key).view(),
                             std::as_const(value).view(), std::as_const(out).view(),
                             std::as_const(lse).view(), std::as_const(dout).view(), dquery.view(),
                             dkey.view(), dvalue.view(), dial());
    auto const of = [&]<class T>(T, reference::evaluation order) {
      auto o = defined();
      o.order = order;
      auto const q = query.values<T>(), k = key.values<T>(), v = value.values<T>();
      auto forward = reference::attention<T>(q, k, v, o);
      auto backward = reference::attention_backward<T>(q, k, v, forward.out, forward.lse,
                                                       dout.values<T>(), {}, o);
      return std::array{forward.out, backward.query, backward.key, backward.value,
                        backward.modifiers[0]};
    };
    auto const exact = of(0.0, {});
    std::vector<std::array<tensor<float, 4>, 5>> naive;
    for (auto order : reference::evaluations) naive.push_back(of(0.0f, order));
    std::array const got{out.values<double>(), dquery.values<double>(), dkey.values<double>(),
                         dvalue.values<double>()};
    char const* const names[] = {"out", "dquery", "dkey", "dvalue"};
    std::string complaint;
    for (std::size_t n = 0; n < got.size(); ++n) {
      std::vector<tensor<float, 4>> each;
      for (auto const& evaluation : naive) each.push_back(evaluation[n]);
      complaint +=
          support::two_times_rule(names[n], got[n], exact[n], each, support::epsilon<float>());
    }
    if (lambda < 1) {
      // dlambda = sum ds ([same] - 1) / (1 - lambda + lambda [same]).
      double sum = 0, size = 0;
      for (index_t b = 0; b < B; ++b)
        for (index_t h = 0; h < H; ++h)
          for (index_t i = 0; i < N; ++i)
            for (index_t j = 0; j < M; ++j) {
              double const slope = same(b, h, i, j) ? 0 : -1 / (1 - lambda);
              sum += exact[4](b, h, i, j) * slope;
              size += std::abs(exact[4](b, h, i, j) * slope);
            }
      if (std::abs(dlambda - sum) > 1e-5 * std::max(1.0, size))
        complaint +=
            "dlambda is " + std::to_string(dlambda) + ", not " + std::to_string(sum) + "\n";
    }
    return complaint;
  }
};

}  // namespace

TEST_CASE("locality dial: the definition and its gradient", "[mechanism][locality_dial]") {
  for_each_seed("locality dial", 150, [](seed_t seed) { return dial_problem(seed).run(); });
}

TEST_CASE("locality dial: at 0 all keys, at 1 those of the group", "[mechanism][locality_dial]") {
  dial_problem p(5);
  index_t const N = p.N;
  auto const keys = std::as_const(p.key).view().slice(1, 0, N),
             values = std::as_const(p.value).view().slice(1, 0, N);
  std::vector<int> groups(static_cast<std::size_t>(N));
  for (std::size_t n = 0; n < groups.size(); ++n) groups[n] = static_cast<int>(n % 3);
  tensor_view<int const, 3> const of(groups.data(), {1, 1, N});
  bool const own[] = {true, false, false, false, true, false, false, false, true};
  heed::labels const same_group{of, of, tensor_view<bool const, 2>(own, {3, 3})};
  auto const query = std::as_const(p.query).view();
  auto const at = [&](double lambda) {
    return support::attend(query, keys, values, heed::locality_dial{of, lambda});
  };
  CHECK(support::difference(at(0).out, support::attend(query, keys, values).out) < 4e-6);
  CHECK(support::difference(at(1).out, support::attend(query, keys, values, same_group).out) <
        4e-6);
}

TEST_CASE("locality dial: what does not fit is refused", "[mechanism][locality_dial]") {
  dial_problem p(6);
  auto const groups = std::as_const(p.groups).view();
  heed::call_shape const shape{.batches = 2, .sequences = 2, .heads = 4, .rows = p.N, .keys = p.M};
  CHECK_THROWS_WITH(heed::check_against(heed::locality_dial{groups, 1.5}, shape),
                    "heed: locality_dial is at 1.500000; expected 0 to 1");
  heed::call_shape more = shape;
  more.rows = p.M + 1;
  CHECK_THROWS_AS(heed::check_against(heed::locality_dial{groups, 0.5}, more), heed::error);
}
