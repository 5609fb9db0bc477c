#include "reference/documents.hpp"
#include "reference/kernel_attention.hpp"

#include "support/definition_check.hpp"
#include "support/tensors.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/performer.hpp>

// Performer against its definition, and its causal form against the one without constants.

using heed::index_t;
using heed::tensor_view;
using reference::kernel_call;
using support::definition_check;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

heed::favor_projection drawn_projection(index_t features, index_t dim, seed_t seed) {
  std::mt19937_64 bits(seed);
  return heed::favor_projection::orthogonal(features, dim, bits);
}

template <class T>
struct performer_problem : definition_check<T> {
  using compute = heed::compute_type<T>;
  index_t B, N, M, H, D, E, m, key_heads, value_heads;
  double epsilon;
  heed::favor_projection omega;
  reference::packing packed;

  explicit performer_problem(seed_t seed, bool self = false)
      : definition_check<T>(seed), omega(drawn_projection(1, 1, 1)) {
    auto& chance = this->draw;
    bool const is_packed = !self && chance.one_in(3);
    B = is_packed ? 1 : chance.between(1, 2);
    N = chance.between(24, chance.one_in(8) ? 70 : 40);
    M = self || chance.one_in(3) ? N : chance.between(20, 40);
    H = chance.between(1, 2) * chance.between(1, 2);
    key_heads = chance.one_in(2) ? H : 1;
    value_heads = chance.one_in(2) ? H : 1;
    D = chance.between(4, 9);
    E = chance.between(1, 9);
    m = chance.between(6, 20);
    epsilon = chance.one_in(2) ? 1e-4 : chance.uniform(0, 0.01);
    omega = drawn_projection(m, D, seed);
    this->input("q", {B, N, H, D});
    this->input("k", {B, M, key_heads, D});
    this->input("v", {B, M, value_heads, E});
    this->output("out", {B, N, H, E});
    // Of one sequence or the other there may be no rows or keys.
    if (is_packed)
      packed = {{0, chance.between(0, N), N}, {0, chance.between(0, M), M}, {0}, {1, 2}};
  }
  /// Calls f with documents, if there are any.
  template <class F>
  void call(F const& f) const {
    packed.rows.empty() ? f() : f(heed::documents{packed.rows, packed.keys});
  }

  auto definition(bool causal, bool by_features) const {
    return
        [H = H, causal, by_features, epsilon = causal ? 0 : epsilon, packed = packed,
         matrix = support::read<double>(omega.matrix())]<class U>(reference::tensors<U> const& in) {
          constexpr bool is_naive =
              std::is_same_v<U, compute> || std::is_same_v<U, reference::traced<compute>>;
          return packed(in, [&](reference::tensors<U> const& own) {
            return reference::tensors<U>{reference::performer(own[0], own[1], own[2], matrix,
                                                              kernel_call{H, causal}, epsilon,
                                                              by_features && is_naive)};
          });
        };
  }
  /// The definition by pairs and that by sums of features are rounded differently: either is naive.
  std::string complain_forward(bool causal) {
    std::string const complaint = this->forward(definition(causal, false));
    return complaint.empty() ? complaint : this->forward(definition(causal, true));
  }
  std::string complain_backward(bool causal) {
    std::string const complaint = this->backward(definition(causal, false));
    return complaint.empty() ? complaint : this->backward(definition(causal, true));
  }
  auto features() const { return heed::favor{omega, epsilon}; }

  std::string dense(bool gradients) {
    call([&](auto const&... more) {
      heed::performer(this->in(0), this->in(1), this->in(2), this->out(0), features(), more...);
    });
    std::string const complaint = complain_forward(false);
    if (!gradients) return complaint;
    call([&](auto const&... more) {
      heed::performer_backward(this->in(0), this->in(1), this->in(2), this->saved(0), this->dout(0),
                               this->din(0), this->din(1), this->din(2), features(), more...);
    });
    return complaint + complain_backward(false);
  }
  std::string causal(bool gradients) {
    call([&](auto const&... more) {
      heed::causal_performer(this->in(0), this->in(1), this->in(2), this->out(0), omega, more...);
    });
    std::string const complaint = complain_forward(true);
    if (!gradients) return complaint;
    call([&](auto const&... more) {
      heed::causal_performer_backward(this->in(0), this->in(1), this->in(2), this->saved(0),
                                      this->dout(0), this->din(0), this->din(1), this->din(2),
                                      omega, more...);
    });
    return complaint + complain_backward(true);
  }

  struct states {
    guarded<compute, 4> state;
    guarded<compute, 2> largest;
  };
  states begin() const {
    states all{support::blank<compute, 4>({B, std::max(key_heads, value_heads), m, E + 1}),
               support::blank<compute, 2>({B, key_heads})};
    all.state.fill([](auto const&) { return compute(0); });
    all.largest.fill([](auto const&) { return -std::numeric_limits<compute>::infinity(); });
    return all;
  }
  std::string in_pieces() {
    states now = begin();
    bool const by_one = this->draw.one_in(2);
    for (index_t first = 0; first < N;) {
      index_t const count = by_one ? 1 : this->draw.between(1, N - first);
      auto const piece = [&](auto view) { return view.slice(1, first, count); };
      if (by_one)
        heed::causal_performer_step(piece(this->in(0)), piece(this->in(1)), piece(this->in(2)),
                                    piece(this->out(0)), now.state.view(),
                                    heed::running_maximum{now.largest.view()}, omega);
      else
        heed::causal_performer(piece(this->in(0)), piece(this->in(1)), piece(this->in(2)),
                               piece(this->out(0)), omega, heed::state{now.state.view()},
                               heed::running_maximum{now.largest.view()});
      first += count;
    }
    return complain_forward(true);
  }

  /// The gradients of two calls, the second of which goes on where the first has stopped.
  std::string backward_in_two() {
    states now = begin();
    index_t const cut = this->draw.between(1, N - 1);
    auto const first = [&](auto view) { return view.slice(1, 0, cut); };
    auto const second = [&](auto view) { return view.slice(1, cut, N - cut); };
    heed::running_maximum const maximum{now.largest.view()};
    heed::causal_performer(first(this->in(0)), first(this->in(1)), first(this->in(2)),
                           first(this->out(0)), omega, heed::state{now.state.view()}, maximum);
    auto before = begin();
    before.largest.fill(
        [&](auto const& at) { return std::as_const(now.largest).view()(at[0], at[1]); });
    auto slope = support::blank<compute, 4>(now.state.extents());
    auto final = support::blank<compute, 4>(now.state.extents());
    auto const middle = std::as_const(now.state).view();
    heed::causal_performer(second(this->in(0)), second(this->in(1)), second(this->in(2)),
                           second(this->out(0)), omega, heed::initial_state(middle),
                           heed::final_state{final.view()}, maximum);
    heed::causal_performer_backward(
        second(this->in(0)), second(this->in(1)), second(this->in(2)), second(this->saved(0)),
        second(this->dout(0)), second(this->din(0)), second(this->din(1)), second(this->din(2)),
        omega, heed::initial_state(middle, slope.view()),
        heed::running_maximum{before.largest.view()});
    auto const zero = begin();
    auto of_zero = begin();
    heed::causal_performer_backward(first(this->in(0)), first(this->in(1)), first(this->in(2)),
                                    first(this->saved(0)), first(this->dout(0)),
                                    first(this->din(0)), first(this->din(1)), first(this->din(2)),
                                    omega, heed::initial_state(zero.state.view()),
                                    heed::final_state_gradient(std::as_const(slope).view()),
                                    heed::running_maximum{of_zero.largest.view()});
    return complain_forward(true) + complain_backward(true);
  }
};

/// Operands of one head, for identities.
struct plain {
  support::random draw;
  guarded<float, 4> q, k, v, out;

  plain(index_t N, index_t M, index_t D, index_t E, double spread = 1)
      : draw(static_cast<seed_t>(100 * N + M)),
        q(support::normal(draw, {1, N, 1, D}, spread)),
        k(support::normal(draw, {1, M, 1, D}, spread)),
        v(support::normal(draw, {1, M, 1, E})),
        out(support::blank<float, 4>({1, N, 1, E})) {}
};

}  // namespace

TEST_CASE("performer: the definition and its gradients", "[mechanism][performer]") {
  for_each_seed("performer", 40,
                [](seed_t seed) { return performer_problem<float>(seed).dense(seed % 2 == 0); });
  for_each_seed("performer in double", 20,
                [](seed_t seed) { return performer_problem<double>(seed).dense(true); });
}

TEST_CASE("performer: causal, its gradients and pieces", "[mechanism][performer]") {
  for_each_seed("causal performer", 40, [](seed_t seed) {
    return performer_problem<float>(seed).causal(seed % 2 == 0) +
           performer_problem<float>(seed, true).in_pieces();
  });
  for_each_seed("causal performer in double", 20, [](seed_t seed) {
    return performer_problem<double>(seed).causal(true) +
           performer_problem<double>(seed, true).backward_in_two();
  });
}

TEST_CASE("performer: documents and their states are calls of their own",
          "[mechanism][performer]") {
  performer_problem<float> p(4, true);
  index_t const cut = 7, N = p.N;
  index_t const bounds[] = {0, cut, N};
  // Each with a state of its own, the largest key in the first.
  auto const first_entry = [](auto view) { return view.slice(0, 0, 1); };
  auto const q = first_entry(p.in(0)), k = first_entry(p.in(1)), v = first_entry(p.in(2)),
             dout = first_entry(p.dout(0));
  struct results {
    guarded<float, 4> out, dq, dk, dv, state, final, dstate, dfinal;
    guarded<float, 2> largest, before;
  };
  auto const make = [&] {
    support::random draw(1);
    auto const blank = [](auto view) { return support::blank<float, 4>(view.extents()); };
    support::extents_of<4> const shape{2, std::max(p.key_heads, p.value_heads), p.m, p.E + 1};
    results all{blank(dout),
                blank(q),
                blank(k),
                blank(v),
                support::normal(draw, shape),
                support::blank<float, 4>(shape),
                support::blank<float, 4>(shape),
                support::normal(draw, shape),
                support::blank<float, 2>({2, p.key_heads}),
                support::blank<float, 2>({2, p.key_heads})};
    for (auto* each : {&all.largest, &all.before})
      each->fill([](auto const& at) { return float(at[0]) * 0.3f; });
    return all;
  };
  auto const run = [&](results& r, index_t first, index_t count, index_t sequence, index_t of,
                       auto const&... more) {
    auto const rows = [&](auto view) { return view.slice(1, first, count); };
    auto const own = [&](auto view) { return view.slice(0, sequence, of); };
    heed::causal_performer(rows(q), rows(k), rows(v), rows(r.out.view()), p.omega,
                           heed::initial_state(own(std::as_const(r.state).view())),
                           heed::final_state{own(r.final.view())},
                           heed::running_maximum{own(r.largest.view())}, more...);
    heed::causal_performer_backward(
        rows(q), rows(k), rows(v), rows(r.out.view()), rows(dout), rows(r.dq.view()),
        rows(r.dk.view()), rows(r.dv.view()), p.omega,
        heed::initial_state(own(std::as_const(r.state).view()), own(r.dstate.view())),
        heed::final_state_gradient(own(std::as_const(r.dfinal).view())),
        heed::running_maximum{own(r.before.view())}, more...);
  };
  results together = make(), apart = make();
  run(together, 0, N, 0, 2, heed::documents{bounds, bounds});
  run(apart, 0, cut, 0, 1);
  run(apart, cut, N - cut, 1, 1);
  for (auto each :
       {&results::out, &results::dq, &results::dk, &results::dv, &results::final, &results::dstate})
    CHECK(support::same_bits((together.*each).values<float>(), (apart.*each).values<float>()));
  CHECK(support::same_bits(together.largest.values<float>(), apart.largest.values<float>()));
}

TEST_CASE("performer: a common shift of keys' exponents cancels", "[mechanism][performer]") {
  // With epsilon 0 the last row of the causal form is the row over all keys, whose constants differ.
  plain p(40, 40, 8, 5);
  auto const omega = drawn_projection(32, 8, 1);
  heed::performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), heed::favor{omega, 0});
  auto const all = p.out.values<float>();
  heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), omega);
  auto const causal = p.out.values<float>();
  for (index_t e = 0; e < 5; ++e)
    CHECK(causal(0, 39, 0, e) == Approx(all(0, 39, 0, e)).epsilon(1e-5));
  // Values of 1 give 1.
  p.v.fill([](auto const&) { return 1.f; });
  for (bool dense : {false, true}) {
    if (dense)
      heed::performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), heed::favor{omega});
    else
      heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), omega);
    for (float x : p.out.values<float>().values) CHECK(x == Approx(1).epsilon(1e-5));
  }
}

TEST_CASE("performer: estimates softmax attention", "[mechanism][performer]") {
  plain p(12, 30, 8, 4, 0.6);
  auto const exact = support::attend(p.q.view(), p.k.view(), p.v.view()).out;
  auto const error = [&](index_t features) {
    auto const omega = drawn_projection(features, 8, 3);
    heed::performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), heed::favor{omega, 0});
    return support::difference(p.out.values<float>(), exact);
  };
  double const coarse = error(64), fine = error(16384);
  CHECK(fine < 0.06);
  CHECK(fine < coarse / 3);
}

TEST_CASE("performer: no future key is seen", "[mechanism][performer]") {
  plain p(30, 30, 6, 4);
  auto const omega = drawn_projection(16, 6, 1);
  heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), omega);
  auto const before = p.out.values<float>();
  // A key of huge features would move a maximum over all keys.
  for (index_t d = 0; d < 6; ++d) p.k.view()(0, 20, 0, d) *= 30;
  heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), omega);
  auto const after = p.out.values<float>();
  for (index_t i = 0; i < 20; ++i)
    for (index_t e = 0; e < 4; ++e) CHECK(after(0, i, 0, e) == before(0, i, 0, e));
}

TEST_CASE("performer: numbers of any size", "[mechanism][performer]") {
  auto const omega = drawn_projection(16, 6, 1);
  for (double spread : {30.0, 1e3, 1e6}) {
    plain p(30, 30, 6, 4, spread);
    auto slopes = support::normal(p.draw, {1, 30, 1, 4});
    auto dq = support::blank<float, 4>({1, 30, 1, 6});
    auto dk = support::blank<float, 4>({1, 30, 1, 6});
    auto dv = support::blank<float, 4>({1, 30, 1, 4});
    auto const finite = [](guarded<float, 4> const& tensor) {
      for (float x : tensor.values<float>().values)
        if (!std::isfinite(x)) return false;
      return true;
    };
    heed::performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), heed::favor{omega});
    CHECK(finite(p.out));
    heed::performer_backward(p.q.view(), p.k.view(), p.v.view(), p.out.view(), slopes.view(),
                             dq.view(), dk.view(), dv.view(), heed::favor{omega});
    CHECK((finite(dq) && finite(dk) && finite(dv)));
    heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), omega);
    CHECK(finite(p.out));
    heed::causal_performer_backward(p.q.view(), p.k.view(), p.v.view(), p.out.view(), slopes.view(),
                                    dq.view(), dk.view(), dv.view(), omega);
    CHECK((finite(dq) && finite(dk) && finite(dv)));
  }
}

TEST_CASE("performer: the same bits on any executor", "[mechanism][performer]") {
  for (bool causal : {false, true}) {
    performer_problem<float> p(9), other(9);
    auto const run = [&](auto& problem, auto const& run_on) {
      if (causal) {
        heed::causal_performer(problem.in(0), problem.in(1), problem.in(2), problem.out(0),
                               problem.omega, run_on);
        heed::causal_performer_backward(problem.in(0), problem.in(1), problem.in(2),
                                        problem.saved(0), problem.dout(0), problem.din(0),
                                        problem.din(1), problem.din(2), problem.omega, run_on);
      } else {
        heed::performer(problem.in(0), problem.in(1), problem.in(2), problem.out(0),
                        problem.features(), run_on);
        heed::performer_backward(problem.in(0), problem.in(1), problem.in(2), problem.saved(0),
                                 problem.dout(0), problem.din(0), problem.din(1), problem.din(2),
                                 problem.features(), run_on);
      }
    };
    run(p, heed::serial{});
    run(other, support::threads{});
    CHECK(support::same_bits(support::read<float>(p.out(0)), support::read<float>(other.out(0))));
    for (std::size_t n = 0; n < 3; ++n)
      CHECK(support::same_bits(support::read<float>(p.din(n)), support::read<float>(other.din(n))));
  }
}

TEST_CASE("performer: what does not fit is refused", "[mechanism][performer]") {
  plain p(4, 5, 6, 3);
  auto const omega = drawn_projection(8, 7, 1), fits = drawn_projection(8, 6, 1);
  CHECK_THROWS_WITH(
      heed::performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), heed::favor{omega}),
      "heed: a favor_projection is for 7 channels; those of query and key are 6 and 6");
  auto state = support::blank<float, 4>({1, 1, 8, 4});
  std::vector<float> largest(4);
  CHECK_THROWS_WITH(
      heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), fits,
                             heed::state{state.view()},
                             heed::running_maximum{tensor_view<float, 2>(largest.data(), {1, 2})}),
      "heed: running_maximum has shape [1, 2]; expected [1, 1] (sequence, head of the keys)");
  index_t const rows[] = {0, 2, 4}, keys[] = {0, 2, 5};
  CHECK_THROWS_WITH(
      heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view(), fits,
                             heed::state{state.view()},
                             heed::running_maximum{tensor_view<float, 2>(largest.data(), {2, 1})},
                             heed::documents{rows, keys}),
      "heed: a state or running_maximum has shape [1, 1, 8, 4]; expected 2 sequences (axis 0)");
  CHECK_THROWS_WITH(
      heed::causal_performer(p.q.view(), p.k.view(), p.v.view(), p.out.view().slice(1, 0, 3), fits,
                             heed::documents{rows, keys}),
      "heed: a tensor has shape [1, 3, 1, 3]; expected 4 positions (axis 1)");
}
