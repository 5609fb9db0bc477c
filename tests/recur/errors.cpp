#include "support/tensors.hpp"

#include <heed/parallel/eigen_pool.hpp>
#include <heed/recur/linear_attention.hpp>

#include <functional>
#include <stdexcept>

// Bad arguments: heed::error, whose message names the argument, its shape or value, and nothing is written.

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
                             dv = blank<float, 4>({2, 12, 2, 6}),
                             state = normal(draw, {2, 2, 8, 6});
  std::vector<float> memory = std::vector<float>(10000, -1.0f);

  template <int Rank>
  tensor_view<float, Rank> shaped(support::extents_of<Rank> const& extents) {
    return {memory.data(), extents};
  }

  /// Runs a call that must throw, and checks the message and that nothing was written.
  void expect(std::vector<std::string> const& words, std::function<void()> const& call) {
    for (auto* each : {&out, &dq, &dk, &dv, &state}) each->remember();
    auto const before = memory;
    std::string message;
    try {
      call();
    } catch (heed::error const& e) {
      message = e.what();
    }
    CHECK(message != "");
    for (std::string const& word : words)
      CHECK_THAT(message, Catch::Matchers::ContainsSubstring(word));
    CHECK((out.untouched() && dq.untouched() && dk.untouched() && dv.untouched() &&
           state.untouched()));
    CHECK(std::memcmp(memory.data(), before.data(), memory.size() * sizeof(float)) == 0);
  }

  template <class... I>
  void expect_forward(std::vector<std::string> const& words, I const&... ingredients) {
    expect(words, [&] {
      heed::linear_attention(q.view(), k.view(), v.view(), out.view(), ingredients...);
    });
  }
  template <class... I>
  void expect_backward(std::vector<std::string> const& words, I const&... ingredients) {
    expect(words, [&] {
      heed::linear_attention_backward(q.view(), k.view(), v.view(), std::as_const(out).view(),
                                      dout.view(), dq.view(), dk.view(), dv.view(), ingredients...);
    });
  }
  template <class Q, class K, class V, class O>
  void expect_operands(std::vector<std::string> const& words, Q query, K key, V value, O to) {
    expect(words, [&] { heed::linear_attention(query, key, value, to); });
  }
};

}  // namespace

TEST_CASE("recurrence: operands that do not fit are refused", "[recur][errors]") {
  arguments a;
  auto const q = a.q.view(), k = a.k.view(), v = a.v.view(), out = a.out.view();
  a.expect_operands({"key", "[1, 12, 2, 8]", "expected 2 for axis 0"}, q, k.slice(0, 0, 1), v, out);
  a.expect_operands({"value", "[2, 11, 2, 6]", "expected 12 for axis 1"}, q, k, v.slice(1, 0, 11),
                    out);
  a.expect_operands({"query", "[2, 10, 4, 8]", "key", "[2, 12, 2, 7]", "features"}, q,
                    k.slice(3, 0, 7), v, out);
  a.expect_operands({"out", "[2, 10, 4, 5]", "expected", "[2, 10, 4, 6]"}, q, k, v,
                    out.slice(3, 0, 5));
  a.expect_operands({"query", "4 heads", "divisor of the 3 heads of out"}, q, k, v,
                    out.slice(2, 0, 3));
  a.expect_operands({"key", "3 heads", "divisor"}, q, a.shaped<4>({2, 12, 3, 8}), v, out);
  a.expect_operands({"value", "0 heads", "divisor"}, q, k, a.shaped<4>({2, 12, 0, 6}), out);
  a.expect_operands({"key", "no memory"}, q, tensor_view<float, 4>(nullptr, {2, 12, 2, 8}), v, out);
  a.expect_operands({"out", "stride 0", "axis 1"}, q, k, v,
                    tensor_view<float, 4>(a.memory.data(), {2, 10, 4, 6}, {24, 0, 6, 1}));
  a.expect_operands({"negative", "key", "[2, -12, 2, 8]"}, q,
                    tensor_view<float, 4>(a.memory.data(), {2, -12, 2, 8}),
                    tensor_view<float, 4>(a.memory.data(), {2, -12, 2, 6}), out);
}

TEST_CASE("recurrence: gates and rates that do not fit are refused", "[recur][errors]") {
  arguments a;
  a.expect_forward({"decay.log_gate", "[2, 11, 2", "expected 12 for axis 1"},
                   heed::decay(a.shaped<3>({2, 11, 2})));
  a.expect_forward({"decay.log_gate", "[2, 12, 3", "a divisor of the 4 heads of out"},
                   heed::decay(a.shaped<3>({2, 12, 3})));
  a.expect_forward({"key_decay.log_gate", "[2, 12, 2, 6]", "expected 8 for axis 3"},
                   heed::key_decay(a.shaped<4>({2, 12, 2, 6})));
  a.expect_forward({"value_decay.log_gate", "[2, 12, 2, 8]", "expected 6 for axis 3"},
                   heed::value_decay(a.shaped<4>({2, 12, 2, 8})));
  a.expect_forward({"delta.rate", "[1, 12, 2", "expected 2 for axis 0"},
                   heed::delta(a.shaped<3>({1, 12, 2})));
  a.expect_forward({"decay.log_gate", "dense"}, heed::decay(a.shaped<3>({2, 12, 2})),
                   heed::dense{});
  a.expect_forward({"delta.rate", "dense"}, heed::delta(a.shaped<3>({2, 12, 2})), heed::dense{});
  a.expect_forward({"value_decay", "delta rule"}, heed::value_decay(a.shaped<4>({2, 12, 2, 6})),
                   heed::delta(a.shaped<3>({2, 12, 2})));
  a.expect_forward({"value_decay", "normalised"}, heed::value_decay(a.shaped<4>({2, 12, 2, 6})),
                   heed::normalised{});
}

TEST_CASE("recurrence: numbers that gates and rates cannot be", "[recur][errors]") {
  constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (index_t where : {0, 17, 47}) {
    for (float bad : {0.25f, infinity, not_a_number}) {
      arguments a;
      a.memory[static_cast<std::size_t>(where)] = bad;
      std::string const value = std::to_string(static_cast<double>(bad)).substr(0, 3);
      a.expect_forward({"decay.log_gate", "[2, 12, 2", value, "at most 0"},
                       heed::decay(a.shaped<3>({2, 12, 2})));
      a.expect_forward({"key_decay.log_gate", "[2, 12, 2, 8]", value, "at most 0"},
                       heed::key_decay(a.shaped<4>({2, 12, 2, 8})));
      a.expect_forward({"value_decay.log_gate", value, "at most 0"},
                       heed::value_decay(a.shaped<4>({2, 12, 2, 6})));
      a.expect_backward({"decay.log_gate", value, "at most 0"},
                        heed::decay(a.shaped<3>({2, 12, 2})));
    }
    for (float bad : {infinity, -infinity, not_a_number}) {
      arguments a;
      a.memory[static_cast<std::size_t>(where)] = bad;
      a.expect_forward({"delta.rate", "finite"}, heed::delta(a.shaped<3>({2, 12, 2})));
    }
  }
  arguments a;
  a.expect_forward({"exact_delta.rate", "-1", "at least 0"},
                   heed::exact_delta(a.shaped<3>({2, 12, 2})));
  std::vector<float> const logs{-1, 0.5f};
  a.expect_forward({"decay.log_gate", "0.5", "at most 0"},
                   heed::fixed_decay(std::span<float const>(logs)));
}

TEST_CASE("recurrence: a gate that cuts is no error", "[recur][errors]") {
  arguments a;
  a.memory[5] = -std::numeric_limits<float>::infinity();
  CHECK_NOTHROW(heed::linear_attention(a.q.view(), a.k.view(), a.v.view(), a.out.view(),
                                       heed::decay(a.shaped<3>({2, 12, 2}))));
}

TEST_CASE("recurrence: states that do not fit are refused", "[recur][errors]") {
  arguments a;
  a.expect_forward({"initial state", "[2, 4, 8, 6]", "[2, 2, 8, 6]"},
                   heed::initial_state(a.shaped<4>({2, 4, 8, 6})));
  a.expect_forward({"final state", "[2, 2, 8, 7]", "[2, 2, 8, 6]"},
                   heed::final_state<float>{a.shaped<4>({2, 2, 8, 7})});
  a.expect_forward({"state", "[2, 2, 8, 6]", "[2, 2, 8, 7]"}, heed::state<float>{a.state.view()},
                   heed::normalised{});
  a.expect_forward({"final state", "stride 0"}, heed::final_state<float>{tensor_view<float, 4>(
                                                    a.memory.data(), {2, 2, 8, 6}, {0, 48, 6, 1})});
  a.expect_backward({"final_state_gradient", "[2, 2, 8, 5]"},
                    heed::final_state_gradient(a.shaped<4>({2, 2, 8, 5})));
  a.expect_backward({"initial_state.gradient", "[2, 2, 7, 6]"},
                    heed::initial_state(a.state.view(), a.shaped<4>({2, 2, 7, 6})));
  // A gate with more heads than keys and values has as many states.
  a.expect_forward({"state", "[2, 2, 8, 6]", "[2, 4, 8, 6]"}, heed::state<float>{a.state.view()},
                   heed::decay(a.shaped<3>({2, 12, 4})));
}

TEST_CASE("recurrence: gradients that do not fit are refused", "[recur][errors]") {
  arguments a;
  auto const call = [&](auto dout, auto dq, auto dk, auto dv) {
    heed::linear_attention_backward(a.q.view(), a.k.view(), a.v.view(), std::as_const(a.out).view(),
                                    dout, dq, dk, dv);
  };
  auto const dout = a.dout.view(), dq = a.dq.view(), dk = a.dk.view(), dv = a.dv.view();
  a.expect({"dout", "[2, 10, 4, 5]"}, [&] { call(dout.slice(3, 0, 5), dq, dk, dv); });
  a.expect({"dquery", "[2, 9, 4, 8]"}, [&] { call(dout, dq.slice(1, 0, 9), dk, dv); });
  a.expect({"dkey", "[2, 12, 1, 8]"}, [&] { call(dout, dq, dk.slice(2, 0, 1), dv); });
  a.expect({"dvalue", "stride 0"}, [&] {
    call(dout, dq, dk, tensor_view<float, 4>(a.memory.data(), {2, 12, 2, 6}, {0, 12, 6, 1}));
  });
  a.expect_backward({"decay.gradient", "[2, 12, 1"},
                    heed::decay(a.shaped<3>({2, 12, 2}), a.shaped<3>({2, 12, 1})));
  a.expect_backward({"key_decay.gradient", "[2, 12, 2, 7]"},
                    heed::key_decay(a.shaped<4>({2, 12, 2, 8}), a.shaped<4>({2, 12, 2, 7})));
  a.expect_backward({"delta.gradient", "stride 0"},
                    heed::delta(a.shaped<3>({2, 12, 2}),
                                tensor_view<float, 3>(a.memory.data(), {2, 12, 2}, {24, 2, 0})));
}

TEST_CASE("recurrence: documents, chunks and steps that do not fit are refused",
          "[recur][errors]") {
  arguments a;
  std::vector<index_t> const rows{0, 4, 10}, keys{0, 4, 12}, wrong{0, 4, 11};
  a.expect_forward({"documents", "one batch entry"}, heed::documents{rows, keys});
  a.expect({"documents.keys", "end at 12"}, [&] {
    heed::linear_attention(a.q.view().slice(0, 0, 1), a.k.view().slice(0, 0, 1),
                           a.v.view().slice(0, 0, 1), a.out.view().slice(0, 0, 1),
                           heed::documents{rows, wrong});
  });
  for (index_t chunk : {index_t{0}, index_t{-3}, index_t{1} << 20})
    a.expect_forward({"chunk_size", std::to_string(chunk)}, heed::chunk_size{chunk});
  a.expect({"step", "[2, 10, 4, 8]", "one position"}, [&] {
    heed::linear_attention_step(a.q.view(), a.k.view(), a.v.view(), a.out.view(), a.state.view());
  });
  a.expect({"state", "[2, 1, 8, 6]"}, [&] {
    heed::linear_attention_step(a.q.view().slice(1, 0, 1), a.k.view().slice(1, 0, 1),
                                a.v.view().slice(1, 0, 1), a.out.view().slice(1, 0, 1),
                                a.state.view().slice(1, 0, 1));
  });
}

namespace {

/// Gives up at a position.
struct unfinished_map {
  index_t last;

  index_t features(index_t dim) const { return dim; }
  template <class T>
  void apply(heed::side, heed::feature_rows<T> const& x, T* phi, index_t stride) const {
    if (x.first_position + x.count > last) throw std::runtime_error("no features here");
    for (index_t r = 0; r < x.count; ++r) std::copy_n(x[r], x.dim, phi + r * stride);
  }
  template <class T>
  void differentiate(heed::side, heed::feature_rows<T> const& x, T const*, T const* dphi,
                     index_t stride, T* dx, index_t dx_stride) const {
    for (index_t r = 0; r < x.count; ++r) std::copy_n(dphi + r * stride, x.dim, dx + r * dx_stride);
  }
};

}  // namespace

TEST_CASE("recurrence: what a feature map throws reaches the caller, and nobody waits for more",
          "[recur][errors][threads]") {
  static Eigen::ThreadPool pool(4);
  heed::on<Eigen::ThreadPool> const threads{pool};
  support::random draw(3);
  auto const x = normal(draw, {1, 300, 1, 8});
  auto out = blank<float, 4>(x.extents()), dq = blank<float, 4>(x.extents()),
       dk = blank<float, 4>(x.extents()), dv = blank<float, 4>(x.extents());
  for (index_t last : {0, 7, 100, 299}) {
    unfinished_map const map{last};
    heed::chunk_size const chunk{4};
    CHECK_THROWS_AS(
        heed::linear_attention(x.view(), x.view(), x.view(), out.view(), map, chunk, threads),
        std::runtime_error);
    CHECK_THROWS_AS(
        heed::linear_attention_backward(x.view(), x.view(), x.view(), x.view(), x.view(), dq.view(),
                                        dk.view(), dv.view(), map, chunk, threads),
        std::runtime_error);
  }
}
