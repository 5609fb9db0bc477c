#include "support/tensors.hpp"

#include <heed/mechanism/abc.hpp>
#include <heed/mechanism/flow_attention.hpp>
#include <heed/mechanism/lightnet.hpp>
#include <heed/mechanism/lizard.hpp>

#include <thread>

// What mechanisms with passes of their own compute has the same bits on any executor, and their passes leave their memory
// to be used again.

using heed::index_t;
using support::blank;
using support::guarded;

namespace {

/// Runs everything on threads of its own, in an order that is chance.
struct threads {
  index_t concurrency() const { return 3; }
  template <class F>
  void run(index_t n, F f) const {
    std::vector<std::thread> all;
    for (index_t i = 0; i < n; ++i) all.emplace_back([=] { f(i); });
    for (auto& each : all) each.join();
  }
};

struct operands {
  static constexpr index_t B = 2, N = 90, H = 2, D = 12, E = 10, m = 6;
  support::random draw{3};
  guarded<float, 4> q = support::normal(draw, {B, N, H, D}),
                    k = support::normal(draw, {B, N, H, D}),
                    v = support::normal(draw, {B, N, H, E}),
                    c = support::normal(draw, {B, N, H, m}),
                    gate = support::normal(draw, {B, N, H, 1}),
                    dout = support::normal(draw, {B, N, H, E});
  guarded<float, 4> out = blank<float, 4>({B, N, H, E}), dq = blank<float, 4>(q.extents()),
                    dk = blank<float, 4>(k.extents()), dv = blank<float, 4>(v.extents()),
                    dc = blank<float, 4>(c.extents()), dgate = blank<float, 4>(gate.extents());

  /// The results and gradients that f(*this) leaves.
  template <class F>
  std::vector<std::vector<float>> after(F const& f) {
    for (guarded<float, 4>* each : {&out, &dq, &dk, &dv, &dc, &dgate})
      each->fill([](auto const&) { return 0.0f; });
    f(*this);
    std::vector<std::vector<float>> all;
    for (guarded<float, 4>* each : {&out, &dq, &dk, &dv, &dc, &dgate})
      all.push_back(each->values<float>().values);
    return all;
  }
};

template <class F>
void check_same_bits(F const& f) {
  operands x;
  auto const serial = x.after([&](operands& p) { f(p, heed::serial{}); });
  CHECK(x.after([&](operands& p) { f(p, threads{}); }) == serial);
  CHECK(x.after([&](operands& p) { f(p, heed::serial{}); }) == serial);
}

}  // namespace

TEST_CASE("recurrences of several passes: the same bits on any executor",
          "[mechanism][same_bits]") {
  check_same_bits([](operands& p, auto const& on) {
    heed::lightnet(p.q.view(), p.k.view(), p.v.view(), p.out.view(), on);
    heed::lightnet_backward(p.q.view(), p.k.view(), p.v.view(), p.out.view(), p.dout.view(),
                            p.dq.view(), p.dk.view(), p.dv.view(), on);
  });
  check_same_bits([](operands& p, auto const& on) {
    heed::abc_attention(p.q.view(), p.k.view(), p.v.view(), p.c.view(), p.out.view(), on);
    heed::abc_attention_backward(p.q.view(), p.k.view(), p.v.view(), p.c.view(), p.out.view(),
                                 p.dout.view(), p.dq.view(), p.dk.view(), p.dv.view(), p.dc.view(),
                                 on);
  });
  check_same_bits([](operands& p, auto const& on) {
    heed::causal_flow_attention(p.q.view(), p.k.view(), p.v.view(), p.out.view(), on);
    heed::causal_flow_attention_backward(p.q.view(), p.k.view(), p.v.view(), p.out.view(),
                                         p.dout.view(), p.dq.view(), p.dk.view(), p.dv.view(), on);
  });
  check_same_bits([](operands& p, auto const& on) {
    heed::flow_attention(p.q.view(), p.k.view(), p.v.view(), p.out.view(), on);
    heed::flow_attention_backward(p.q.view(), p.k.view(), p.v.view(), p.out.view(), p.dout.view(),
                                  p.dq.view(), p.dk.view(), p.dv.view(), on);
  });
  check_same_bits([](operands& p, auto const& on) {
    using P = operands;
    support::random draw(4);
    auto w = support::normal(draw, {1, 1, P::D, 5}, 0.3), dw = blank<float, 4>({2, 1, P::D, 5});
    auto gated = blank<float, 4>(p.out.extents()), windowed = blank<float, 4>(p.out.extents());
    auto lse = blank<float, 3>({P::B, P::H, P::N});
    std::vector<float> alpha{0.5f, -1}, dalpha(2);
    heed::tensor_view<float, 3> const weights(w.view().data(), {1, P::D, 5});
    heed::lizard_parameters<float> const with{weights, weights, alpha, 7};
    heed::lizard_gradients<float> const to{
        {&dw.view()(0, 0, 0, 0), {1, P::D, 5}}, {&dw.view()(1, 0, 0, 0), {1, P::D, 5}}, dalpha};
    heed::lizard_branches<float> const branches{gated.view(), windowed.view(), lse.view()};
    heed::lizard_attention(p.q.view(), p.k.view(), p.v.view(), p.gate.view(), with, branches,
                           p.out.view(), on);
    heed::lizard_attention_backward(p.q.view(), p.k.view(), p.v.view(), p.gate.view(), with,
                                    branches, p.dout.view(), p.dq.view(), p.dk.view(), p.dv.view(),
                                    p.dgate.view(), to, on);
    for (index_t n = 0; n < P::m; ++n)
      p.dc.view()(0, n, 0, 0) = dw.view()(n % 2, 0, n, 0) + dalpha[static_cast<std::size_t>(n % 2)];
  });
}
