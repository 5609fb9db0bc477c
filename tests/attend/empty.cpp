#include "support/tensors.hpp"

// A tensor may have no batch entry, no row, no key, no head or no dimension.

using heed::index_t;
using heed::tensor_view;
using support::blank;
using support::normal;

namespace {

struct shape {
  index_t B, N, M, H, D, Dv;
};

}  // namespace

TEST_CASE("empty: every axis, forward and backward", "[attend][quick]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  support::random draw(1);
  for (auto const& [B, N, M, H, D, Dv] : {shape{0, 30, 40, 2, 8, 8},
                                          {2, 0, 40, 2, 8, 8},
                                          {2, 30, 0, 2, 8, 8},
                                          {2, 3, 0, 2, 8, 8},
                                          {2, 30, 40, 0, 8, 8},
                                          {2, 30, 40, 2, 0, 8},
                                          {2, 3, 40, 2, 0, 8},
                                          {2, 30, 40, 2, 8, 0},
                                          {2, 3, 40, 2, 8, 0},
                                          {2, 0, 0, 2, 8, 8},
                                          {0, 0, 0, 0, 0, 0}}) {
    CAPTURE(B, N, M, H, D, Dv);
    auto const q = normal(draw, {B, N, H, D}), k = normal(draw, {B, M, H, D}),
               v = normal(draw, {B, M, H, Dv}), dout = normal(draw, {B, N, H, Dv});
    auto out = blank<float, 4>({B, N, H, Dv}), dq = blank<float, 4>({B, N, H, D}),
         dk = blank<float, 4>({B, M, H, D}), dv = blank<float, 4>({B, M, H, Dv});
    auto lse = blank<float, 3>({B, H, N}), sums = blank<float, 3>({B, H, M});
    auto top = blank<index_t, 4>({B, H, N, 2});
    heed::attention(q.view(), k.view(), v.view(), out.view(), heed::causal{},
                    heed::lse_into<float>{lse.view()}, heed::column_sums_into{sums.view()},
                    heed::top_keys_into<float>{top.view()});
    heed::attention_backward(q.view(), k.view(), v.view(), std::as_const(out).view(),
                             std::as_const(lse).view(), dout.view(), dq.view(), dk.view(),
                             dv.view(), heed::causal{});
    if (M == 0) {
      for (float x : out.values<float>().values) CHECK(x == 0);
      for (float x : lse.values<float>().values) CHECK(x == -infinity);
      for (index_t x : top.values<index_t>().values) CHECK(x == -1);
      for (float x : dq.values<float>().values) CHECK(x == 0);
    }
    if (N == 0) {
      for (float x : dk.values<float>().values) CHECK(x == 0);
      for (float x : dv.values<float>().values) CHECK(x == 0);
      for (float x : sums.values<float>().values) CHECK(x == 0);
    }
    if (D == 0 && N > 0 && Dv > 0)  // scores of 0: the mean
      CHECK(lse.view()(0, 0, N - 1) == Approx(std::log(40.)));
    for (float x : dk.values<float>().values) CHECK(std::isfinite(x));
    for (float x : dv.values<float>().values) CHECK(std::isfinite(x));
  }
}

TEST_CASE("empty: documents of no rows, of no keys, and no document", "[attend][quick]") {
  support::random draw(1);
  auto const q = normal(draw, {1, 20, 1, 8}), k = normal(draw, {1, 30, 1, 8});
  std::vector<index_t> const cu_q{0, 0, 12, 20, 20}, cu_k{0, 9, 9, 30, 30};
  auto const result =
      support::attend(q.view(), k.view(), k.view(), heed::documents{.queries = cu_q, .keys = cu_k});
  for (index_t i = 0; i < 20; ++i) {
    CHECK((result.lse(0, 0, i) == -std::numeric_limits<float>::infinity()) == (i < 12));
    CHECK((result.out(0, i, 0, 0) == 0) == (i < 12));
  }
  std::vector<index_t> const nothing{0};
  auto const none_q = normal(draw, {1, 0, 1, 8});
  CHECK_NOTHROW(support::attend(none_q.view(), none_q.view(), none_q.view(),
                                heed::documents{.queries = nothing, .keys = nothing}));
}
