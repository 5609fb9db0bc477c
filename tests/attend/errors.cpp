#include "support/tensors.hpp"

#include <functional>

// Bad arguments: heed::error, whose message names the argument and its shape, and nothing is
// written.

using heed::index_t;
using heed::tensor_view;
using support::blank;
using support::normal;

namespace {

struct arguments {
  support::random draw{1};
  support::guarded<float, 4> q = normal(draw, {2, 10, 4, 8}), k = normal(draw, {2, 12, 2, 8}),
                             v = normal(draw, {2, 12, 2, 6}), out = blank<float, 4>({2, 10, 4, 6}),
                             dout = normal(draw, {2, 10, 4, 6}),
                             dq = blank<float, 4>({2, 10, 4, 8}),
                             dk = blank<float, 4>({2, 12, 2, 8}),
                             dv = blank<float, 4>({2, 12, 2, 6});
  support::guarded<float, 3> lse = blank<float, 3>({2, 4, 10});
  std::vector<float> memory = std::vector<float>(10000, 0.f);

  template <int Rank>
  tensor_view<float, Rank> shaped(support::extents_of<Rank> const& extents) {
    return {memory.data(), extents};
  }

  /// Runs a call that must throw, and checks the message and that nothing was written.
  void expect(std::vector<std::string> const& words, std::function<void()> const& call) {
    for (auto* each : {&out, &dq, &dk, &dv}) each->remember();
    lse.remember();
    std::string message;
    try {
      call();
    } catch (heed::error const& e) {
      message = e.what();
    }
    CHECK(message != "");
    for (std::string const& word : words)
      CHECK_THAT(message, Catch::Matchers::ContainsSubstring(word));
    CHECK(
        (out.untouched() && dq.untouched() && dk.untouched() && dv.untouched() && lse.untouched()));
  }

  template <class... I>
  void expect_forward(std::vector<std::string> const& words, I const&... ingredients) {
    expect(words, [&] {
      heed::attention(q.view(), k.view(), v.view(), out.view(), heed::lse_into<float>{lse.view()},
                      ingredients...);
    });
  }
  template <class... I>
  void expect_backward(std::vector<std::string> const& words, I const&... ingredients) {
    expect(words, [&] {
      heed::attention_backward(q.view(), k.view(), v.view(), std::as_const(out).view(),
                               std::as_const(lse).view(), dout.view(), dq.view(), dk.view(),
                               dv.view(), ingredients...);
    });
  }
};

}  // namespace

TEST_CASE("errors: operands that do not fit", "[attend][quick]") {
  arguments x;
  auto const forward = [&](std::vector<std::string> const& words, auto q, auto k, auto v,
                           auto out) {
    x.expect(words, [&] { heed::attention(q, k, v, out, heed::lse_into<float>{x.lse.view()}); });
  };
  auto const q = x.q.view(), k = x.k.view(), v = x.v.view(), out = x.out.view();
  forward({"key", "[3, 12, 2, 8]", "2"}, q, x.shaped<4>({3, 12, 2, 8}), v, out);
  forward({"key", "[2, 12, 2, 7]", "8"}, q, x.shaped<4>({2, 12, 2, 7}), v, out);
  forward({"key", "[2, 12, 3, 8]", "4"}, q, x.shaped<4>({2, 12, 3, 8}), v, out);
  forward({"key", "[2, 12, 0, 8]"}, q, x.shaped<4>({2, 12, 0, 8}), v, out);
  forward({"value", "[2, 11, 2, 6]", "12"}, q, k, x.shaped<4>({2, 11, 2, 6}), out);
  forward({"value", "[1, 12, 2, 6]", "2"}, q, k, x.shaped<4>({1, 12, 2, 6}), out);
  forward({"value", "[2, 12, 8, 6]", "4"}, q, k, x.shaped<4>({2, 12, 8, 6}), out);
  forward({"out", "[2, 10, 4, 8]", "[2, 10, 4, 6]"}, q, k, v, x.shaped<4>({2, 10, 4, 8}));
  forward({"out", "[2, 9, 4, 6]", "[2, 10, 4, 6]"}, q, k, v, x.shaped<4>({2, 9, 4, 6}));
  forward({"-1"}, tensor_view<float, 4>(x.memory.data(), {2, -1, 4, 8}), k, v, out);
  forward({"out", "stride"}, q, k, v,
          tensor_view<float, 4>(x.memory.data(), {2, 10, 4, 6}, {240, 24, 0, 1}));
}

TEST_CASE("errors: a shape without memory", "[attend][quick]") {
  arguments x;
  auto const forward = [&](std::vector<std::string> const& words, auto q, auto k, auto v,
                           auto out) {
    x.expect(words, [&] { heed::attention(q, k, v, out, heed::lse_into<float>{x.lse.view()}); });
  };
  auto const q = x.q.view(), k = x.k.view(), v = x.v.view(), out = x.out.view();
  forward({"query", "[2, 10, 4, 8]"}, tensor_view<float, 4>(nullptr, {2, 10, 4, 8}), k, v, out);
  forward({"key", "[2, 12, 2, 8]"}, q, tensor_view<float, 4>(nullptr, {2, 12, 2, 8}), v, out);
  forward({"out", "[2, 10, 4, 6]"}, q, k, v, tensor_view<float, 4>(nullptr, {2, 10, 4, 6}));
}

TEST_CASE("errors: ingredients that do not fit", "[attend][quick]") {
  arguments x;
  x.expect_forward({"bias", "[2, 4, 9, 12]", "[2, 4, 10, 12]"},
                   heed::bias{x.shaped<4>({2, 4, 9, 12})});
  x.expect_forward({"bias", "[3, 1, 1, 1]"}, heed::bias{x.shaped<4>({3, 1, 1, 1})});
  x.expect_forward({"slopes", "[3]", "4"}, heed::alibi{x.shaped<1>({3})});
  x.expect_forward({"logits", "[5, 2]", "4"}, heed::softmax_with_sinks{x.shaped<2>({5, 2})});
  x.expect_forward({"softcap", "-1"}, heed::softcap{-1});
  x.expect_forward({"softcap"}, heed::softcap{0});
  x.expect_forward({"softcap"}, heed::softcap{std::numeric_limits<double>::quiet_NaN()});
  x.expect_forward({"row_scale", "[2, 4, 9]", "[2, 4, 10]"},
                   heed::row_scale<float>{tensor_view<float const, 3>(x.shaped<3>({2, 4, 9}))});
  x.expect_forward({"row_max", "[2, 10, 4]", "[2, 4, 10]"},
                   heed::row_max_into<float>{x.shaped<3>({2, 10, 4})});
  x.expect_forward({"entropy", "[1, 4, 10]", "[2, 4, 10]"},
                   heed::entropy_into<float>{x.shaped<3>({1, 4, 10})});
  x.expect_forward({"column_sums", "[2, 4, 10]", "[2, 4, 12]"},
                   heed::column_sums_into{x.shaped<3>({2, 4, 10})});
  x.expect_forward({"row weights", "[2, 4, 12]", "[2, 4, 10]"},
                   heed::column_sums_into<float>{x.shaped<3>({2, 4, 12}), x.shaped<3>({2, 4, 12})});
  std::vector<index_t> indices(1000);
  x.expect_forward(
      {"top_keys", "[2, 4, 9, 3]", "[2, 4, 10, 3]"},
      heed::top_keys_into<float>{tensor_view<index_t, 4>(indices.data(), {2, 4, 9, 3})});

  std::vector<index_t> const one{5}, beyond{5, 13}, negative{-1, 5};
  x.expect_forward({"key_lengths", "1", "2"}, heed::key_lengths{one});
  x.expect_forward({"key_lengths", "13", "12"}, heed::key_lengths{beyond});
  x.expect_forward({"key_lengths", "-1"}, heed::key_lengths{negative} & heed::causal{});
  x.expect_forward({"key_lengths", "13"}, heed::causal{} | ~heed::key_lengths{beyond});
  std::vector<index_t> positions(20, 0);
  x.expect_forward({"query_positions", "[3, 10]"},
                   heed::query_positions{tensor_view<index_t const, 2>(positions.data(), {3, 10})});
  x.expect_forward({"query_positions", "[1, 9]"},
                   heed::query_positions{tensor_view<index_t const, 2>(positions.data(), {1, 9})});
  positions[4] = index_t{1} << 40;
  x.expect_forward({"query_positions"},
                   heed::query_positions{tensor_view<index_t const, 2>(positions.data(), {1, 10})});
}

TEST_CASE("errors: documents that do not fit", "[attend][quick]") {
  arguments x;
  std::vector<index_t> const rows{0, 4, 10}, keys{0, 7, 12};
  x.expect_forward({"documents", "2"},
                   heed::documents{.queries = rows, .keys = keys});  // batch extent 2
  auto const packed = [&](std::vector<index_t> const& queries,
                          std::vector<index_t> const& of_keys) {
    x.expect({"documents"}, [&] {
      heed::attention(x.q.view().slice(0, 0, 1), x.k.view().slice(0, 0, 1),
                      x.v.view().slice(0, 0, 1), x.out.view().slice(0, 0, 1),
                      heed::documents{.queries = queries, .keys = of_keys});
    });
  };
  packed({0, 4, 9}, keys);
  packed({0, 4, 11}, keys);
  packed({1, 4, 10}, keys);
  packed({0, 12, 10}, keys);
  packed({0, 10}, keys);
  packed(rows, {0, 13, 12});
  packed(rows, {0, 7, 11});
  packed(rows, {0, -1, 12});
  packed({}, {});
}

TEST_CASE("errors: backward", "[attend][quick]") {
  arguments x;
  auto const backward = [&](std::vector<std::string> const& words, auto lse, auto dout, auto dq,
                            auto dk, auto dv) {
    x.expect(words, [&] {
      heed::attention_backward(x.q.view(), x.k.view(), x.v.view(), std::as_const(x.out).view(), lse,
                               dout, dq, dk, dv);
    });
  };
  auto const lse = x.lse.view();
  auto const dout = x.dout.view(), dq = x.dq.view(), dk = x.dk.view(), dv = x.dv.view();
  backward({"lse", "[2, 10, 4]", "[2, 4, 10]"}, x.shaped<3>({2, 10, 4}), dout, dq, dk, dv);
  backward({"dout", "[2, 10, 4, 5]"}, lse, x.shaped<4>({2, 10, 4, 5}), dq, dk, dv);
  backward({"dquery", "[2, 9, 4, 8]"}, lse, dout, x.shaped<4>({2, 9, 4, 8}), dk, dv);
  backward({"dkey", "[2, 12, 4, 8]"}, lse, dout, dq, x.shaped<4>({2, 12, 4, 8}), dv);
  backward({"dvalue", "[2, 12, 2, 8]"}, lse, dout, dq, dk, x.shaped<4>({2, 12, 2, 8}));
  backward({"dkey", "stride"}, lse, dout, dq,
           tensor_view<float, 4>(x.memory.data(), {2, 12, 2, 8}, {192, 16, 0, 1}), dv);
  x.expect_backward({"lse_gradient", "[2, 4, 9]"},
                    heed::lse_gradient<float>{x.shaped<3>({2, 4, 9})});
  x.expect_backward({"gradient", "bias", "[1, 1, 1, 12]"},
                    heed::bias{x.shaped<4>({2, 1, 10, 12}), x.shaped<4>({1, 1, 1, 12})});
  x.expect_backward({"gradient", "slopes", "[3]"}, heed::alibi{x.shaped<1>({4}), x.shaped<1>({3})});
  x.expect_backward({"gradient", "[4, 1]"},
                    heed::softmax_with_sinks{x.shaped<2>({4, 2}), x.shaped<2>({4, 1})});
}

TEST_CASE("errors: caches", "[attend][quick]") {
  arguments x;
  auto const keys = x.shaped<4>({1, 10, 2, 8}), values = x.shaped<4>({1, 10, 2, 6});
  CHECK_THROWS_AS((heed::kv_cache<float>{keys, x.shaped<4>({1, 9, 2, 6})}), heed::error);
  CHECK_THROWS_AS((heed::kv_cache<float>{keys, values, 11}), heed::error);
  heed::kv_cache<float> cache{keys, values, 8};
  auto const k = normal(x.draw, {1, 3, 2, 8}), v = normal(x.draw, {1, 3, 2, 6});
  CHECK_THROWS_AS(cache.append(k.view(), v.view()), heed::error);
  CHECK(cache.length() == 8);
}
