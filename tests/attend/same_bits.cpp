#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/parallel/eigen_pool.hpp>
#include <heed/parallel/openmp.hpp>

// The same numbers give the same bits, whoever computes them and whatever is computed beside them.

using heed::index_t;
using heed::tensor_view;
using support::blank;
using support::for_each_seed;
using support::normal;
using support::same_bits;
using support::seed_t;

namespace {

/// Claims to be able to run several calls at once and runs them one by one, the last first.
struct backwards {
  index_t workers;
  index_t concurrency() const { return workers; }
  template <class F>
  void run(index_t n, F f) {
    for (index_t i = n; i-- > 0;) f(i);
  }
};

/// Operands of a call and everything it can return.
struct call {
  support::random draw;
  support::guarded<float, 4> query, key, value, out, dout, dquery, dkey, dvalue;
  support::guarded<float, 3> lse, sums;
  support::guarded<float, 4> added, dadded;
  support::guarded<float, 1> slopes, dslopes;
  double dcap = 0;

  call(seed_t seed, index_t B, index_t N, index_t M, index_t H, index_t shared_heads)
      : draw(seed),
        query(normal(draw, {B, N, H, 40})),
        key(normal(draw, {B, M, shared_heads, 40})),
        value(normal(draw, {B, M, shared_heads, 24})),
        out(blank<float, 4>({B, N, H, 24})),
        dout(normal(draw, {B, N, H, 24})),
        dquery(blank<float, 4>(query.extents())),
        dkey(blank<float, 4>(key.extents())),
        dvalue(blank<float, 4>(value.extents())),
        lse(blank<float, 3>({B, H, N})),
        sums(blank<float, 3>({B, H, M})),
        added(normal(draw, {1, H, N, M})),
        dadded(blank<float, 4>({1, H, N, M})),
        slopes(blank<float, 1>({H})),
        dslopes(blank<float, 1>({H})) {
    slopes.fill([&](auto const&) { return static_cast<float>(draw.uniform(0, 0.1)); });
  }

  template <class Executor>
  void run(Executor const& executor) {
    auto const pattern =
        heed::causal{} & (heed::sliding_window{.left = 90, .right = 0} | heed::first_keys{3});
    heed::attention(query.view(), key.view(), value.view(), out.view(), pattern, executor,
                    heed::softcap{5}, heed::alibi{slopes.view()}, heed::bias{added.view()},
                    heed::lse_into<float>{lse.view()}, heed::column_sums_into{sums.view()});
    heed::attention_backward(
        query.view(), key.view(), value.view(), out.view(), lse.view(), dout.view(), dquery.view(),
        dkey.view(), dvalue.view(), pattern, executor, heed::softcap{5, &dcap},
        heed::alibi{slopes.view(), dslopes.view()}, heed::bias{added.view(), dadded.view()});
  }

  auto results() const {
    return std::tuple{
        out.values<float>(),    lse.values<float>(),     sums.values<float>(),
        dquery.values<float>(), dkey.values<float>(),    dvalue.values<float>(),
        dadded.values<float>(), dslopes.values<float>(), reference::tensor<double, 1>({1}, dcap)};
  }
};

/// Which results differ, by name.
template <class Results>
std::string differing(Results const& a, Results const& b) {
  char const* const names[] = {"out",    "lse",   "column sums", "dquery", "dkey",
                               "dvalue", "dbias", "dslopes",     "dcap"};
  std::string which;
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    ((which += same_bits(std::get<I>(a), std::get<I>(b)) ? "" : std::string(names[I]) + " "), ...);
  }
  (std::make_index_sequence<std::tuple_size_v<Results>>{});
  return which;
}

}  // namespace

TEST_CASE("same bits: any executor, any number of threads", "[attend][threads][quick]") {
  struct shape {
    index_t B, N, M, H, shared_heads;
  };
  for (auto const& [B, N, M, H, shared_heads] : {shape{1, 300, 300, 1, 1},
                                                 {2, 70, 150, 4, 2},
                                                 {3, 33, 20, 6, 1},
                                                 {1, 1, 1500, 4, 2},
                                                 {2, 5, 700, 2, 2}}) {
    call work(static_cast<seed_t>(N), B, N, M, H, shared_heads);
    work.run(heed::serial{});
    auto const expected = work.results();
    CAPTURE(B, N, M, H);
    work.run(heed::serial{});
    CHECK(differing(work.results(), expected) == "");
    for (index_t workers : {1, 2, 3, 7}) {
      backwards executor{workers};
      work.run(heed::on{executor});
      CHECK(differing(work.results(), expected) == "");
    }
    for (int threads : {1, 2, 3, 5}) {
      Eigen::ThreadPool pool(threads);
      for (int repeat = 0; repeat < 3; ++repeat) {
        work.run(heed::on{pool});
        CHECK(differing(work.results(), expected) == "");
      }
    }
#ifdef _OPENMP
    work.run(heed::openmp{3});
    CHECK(differing(work.results(), expected) == "");
#endif
  }
}

TEST_CASE("same bits: batch entries, documents and heads by themselves or together",
          "[attend][quick]") {
  for (auto const& [N, M] : {std::pair<index_t, index_t>{70, 130}, {4, 600}}) {
    support::random draw(7);
    index_t const H = 4;
    auto const q = normal(draw, {3, N, H, 40}), k = normal(draw, {3, M, 2, 40}),
               v = normal(draw, {3, M, 2, 24});
    auto const together = support::attend(q.view(), k.view(), v.view(), heed::causal{});
    tensor_view<float const, 4> const out(together.out.values.data(), together.out.extents);
    tensor_view<float const, 3> const lse(together.lse.values.data(), together.lse.extents);
    for (index_t b = 0; b < 3; ++b) {
      auto const alone = support::attend(q.view().slice(0, b, 1), k.view().slice(0, b, 1),
                                         v.view().slice(0, b, 1), heed::causal{});
      CHECK(same_bits(alone.out, support::read<float>(out.slice(0, b, 1))));
      CHECK(same_bits(alone.lse, support::read<float>(lse.slice(0, b, 1))));
    }
    for (index_t h = 0; h < H; ++h) {
      auto const alone = support::attend(q.view().slice(2, h, 1), k.view().slice(2, h / 2, 1),
                                         v.view().slice(2, h / 2, 1), heed::causal{});
      CHECK(same_bits(alone.out, support::read<float>(out.slice(2, h, 1))));
    }
    // The batch entries one behind the other, as documents.
    std::vector<index_t> const cu_q{0, N, 2 * N, 3 * N}, cu_k{0, M, 2 * M, 3 * M};
    auto const flat = [](auto const& t) {
      auto const view = t.view();
      return tensor_view<float const, 4>(view.data(),
                                         {1, 3 * view.extent(1), view.extent(2), view.extent(3)});
    };
    auto const packed = support::attend(flat(q), flat(k), flat(v), heed::causal{},
                                        heed::documents{.queries = cu_q, .keys = cu_k});
    CHECK(packed.out.values == together.out.values);
  }
}

TEST_CASE("same bits: any layout", "[attend][quick]") {
  for_each_seed("layouts", 200, [](seed_t seed) -> std::string {
    support::random draw(seed);
    index_t const B = draw.between(1, 2),
                  N = draw.one_in(3) ? draw.between(1, 8) : draw.between(9, 60),
                  M = draw.between(1, 150), H = 2 * draw.between(1, 2), D = draw.between(1, 70),
                  Dv = draw.between(1, 70);
    auto const q = normal(draw, {B, N, H, D}), k = normal(draw, {B, M, 2, D}),
               v = normal(draw, {B, M, 2, Dv}), dout = normal(draw, {B, N, H, Dv});
    auto const laid_out = [&](auto const& from) {
      support::guarded<float, 4> copy(from.extents(),
                                      support::random_layout<4>(draw, from.extents(), false),
                                      draw.between(0, 15));
      auto const view = from.view();
      copy.fill([&](auto const& at) { return view(at[0], at[1], at[2], at[3]); });
      return copy;
    };
    auto const q2 = laid_out(q), k2 = laid_out(k), v2 = laid_out(v), dout2 = laid_out(dout);
    auto out2 = laid_out(dout), dq2 = laid_out(q), dk2 = laid_out(k), dv2 = laid_out(v);
    support::guarded<float, 3> lse2({B, H, N}, support::random_layout<3>(draw, {B, H, N}, false));

    auto const plain = support::attend(q.view(), k.view(), v.view(), heed::causal{});
    heed::attention(q2.view(), k2.view(), v2.view(), out2.view(), heed::causal{},
                    heed::lse_into<float>{lse2.view()});
    if (!same_bits(plain.out, out2.values<float>()) || !same_bits(plain.lse, lse2.values<float>()))
      return "forward";

    auto dq = blank<float, 4>(q.extents()), dk = blank<float, 4>(k.extents()),
         dv = blank<float, 4>(v.extents());
    heed::attention_backward(
        q.view(), k.view(), v.view(),
        tensor_view<float const, 4>(plain.out.values.data(), plain.out.extents),
        tensor_view<float const, 3>(plain.lse.values.data(), plain.lse.extents), dout.view(),
        dq.view(), dk.view(), dv.view(), heed::causal{});
    heed::attention_backward(q2.view(), k2.view(), v2.view(), std::as_const(out2).view(),
                             std::as_const(lse2).view(), dout2.view(), dq2.view(), dk2.view(),
                             dv2.view(), heed::causal{});
    if (!same_bits(dq.values<float>(), dq2.values<float>())) return "dquery";
    if (!same_bits(dk.values<float>(), dk2.values<float>())) return "dkey";
    if (!same_bits(dv.values<float>(), dv2.values<float>())) return "dvalue";
    return {};
  });
}

TEST_CASE("same bits: strides of 0", "[attend][quick]") {
  support::random draw(3);
  for (index_t N : {3, 40}) {
    auto const q = normal(draw, {2, N, 4, 16}), k = normal(draw, {1, 70, 1, 16}),
               v = normal(draw, {1, 70, 1, 16});
    auto const shared = [](auto const& t) {
      auto const view = t.view();
      return tensor_view<float const, 4>(view.data(), {2, view.extent(1), 4, view.extent(3)},
                                         {0, view.stride(1), 0, view.stride(3)});
    };
    auto const copied = [](auto const& t) {
      auto copy = blank<float, 4>({2, t.extents()[1], 4, t.extents()[3]});
      auto const view = t.view();
      copy.fill([&](auto const& at) { return view(0, at[1], 0, at[3]); });
      return copy;
    };
    auto const k_copy = copied(k), v_copy = copied(v);
    auto const a = support::attend(q.view(), shared(k), shared(v)),
               b = support::attend(q.view(), k_copy.view(), v_copy.view());
    CHECK(same_bits(a.out, b.out));
    CHECK(same_bits(a.lse, b.lse));
    // All keys one key, all numbers of a query one number.
    tensor_view<float const, 4> const one_key(k.view().data(), {2, 70, 4, 16}, {0, 0, 0, 1}),
        flat_query(q.view().data(), {2, N, 4, 16},
                   {q.view().stride(0), q.view().stride(1), q.view().stride(2), 0});
    auto const key = support::read<float>(one_key), query = support::read<float>(flat_query);
    auto const c = support::attend(flat_query, one_key, shared(v)),
               d = support::attend(tensor_view<float const, 4>(query.values.data(), query.extents),
                                   tensor_view<float const, 4>(key.values.data(), key.extents),
                                   shared(v));
    CHECK(same_bits(c.out, d.out));
  }
}
