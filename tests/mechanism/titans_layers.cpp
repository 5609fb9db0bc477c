#include "reference/memories.hpp"
#include "support/error_rule.hpp"
#include "support/pattern_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/titans_layers.hpp>
#include <heed/softmax.hpp>

#include <thread>

// Titans' memory beside attention: the gate, what rows meet, and MAC, MAG and MAL as a whole.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using reference::tensors;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

struct threads {
  index_t concurrency() const { return 3; }
  template <class F>
  void run(index_t n, F f) const {
    std::vector<std::thread> all;
    for (index_t i = 0; i < n; ++i) all.emplace_back([=] { f(i); });
    for (auto& each : all) each.join();
  }
};

template <class T>
guarded<T, 2> weights(support::random& draw, index_t heads, index_t dim) {
  auto all = support::blank<T, 2>({heads, dim});
  all.fill([&](auto const&) { return static_cast<T>(draw.normal()); });
  return all;
}
template <class T, class E>
tensor<T, 4> of_head(guarded<E, 2> const& from) {
  auto const values = from.template values<T>();
  tensor<T, 4> result({1, 1, values.extent(0), values.extent(1)});
  result.values = values.values;
  return result;
}

}  // namespace

TEMPLATE_TEST_CASE("titans gate: the definition and its gradient", "[mechanism][titans]", double,
                   float) {
  using T = TestType;
  using golden = std::conditional_t<std::is_same_v<T, double>, long double, double>;
  for_each_seed("titans gate", 150, [](seed_t seed) {
    support::random draw(seed);
    support::extents_of<4> const shape{draw.between(1, 2), draw.between(0, 70), draw.between(1, 3),
                                       draw.between(2, 20)};
    auto const make = [&] {
      guarded<T, 4> all(shape, support::random_layout<4>(draw, shape, false));
      all.fill([&](auto const&) { return static_cast<T>(draw.normal()); });
      all.remember();
      return all;
    };
    auto y = make(), m = make(), out = make(), dout = make(), dy = make(), dm = make();
    index_t const hy = draw.one_in(2) ? 1 : shape[2], hm = draw.one_in(2) ? 1 : shape[2];
    auto wy = weights<T>(draw, hy, shape[3]), wm = weights<T>(draw, hm, shape[3]);
    auto dwy = weights<T>(draw, hy, shape[3]), dwm = weights<T>(draw, hm, shape[3]);
    auto const q = std::as_const(y).view(), k = std::as_const(m).view();
    heed::titans_gate(q, k, wy.view(), wm.view(), out.view());
    heed::titans_gate_backward(q, k, wy.view(), wm.view(), std::as_const(dout).view(), dy.view(),
                               dm.view(), dwy.view(), dwm.view(), 1e-6, threads{});
    auto const inputs = [&]<class U>(U) {
      return tensors<U>{y.template values<U>(), m.template values<U>(), of_head<U>(wy),
                        of_head<U>(wm)};
    };
    auto const gate = [](auto const& x) { return reference::titans_gate(x, 1e-6); };
    auto const exact =
        reference::gradients_of<golden>(gate, inputs(golden{}), {dout.template values<golden>()});
    auto moved = inputs(T{});
    for (auto& each : moved)
      for (T& x : each.values)
        x *= static_cast<T>(1 + (draw.one_in(2) ? 1 : -1) * support::epsilon<T>());
    std::vector<tensors<T>> naive{
        reference::gradients_of<T>(gate, inputs(T{}), {dout.template values<T>()}),
        reference::gradients_of<T>(gate, moved, {dout.template values<T>()})};
    // The sigmoid is exact to 3.6 eps, see simd/activations.hpp.
    double const epsilon = 4.6 * support::epsilon<T>();
    auto const rule = [&](char const* name, auto const& got, std::size_t n) {
      return support::two_times_rule(name, got, exact[n], std::vector{naive[0][n], naive[1][n]},
                                     epsilon);
    };
    return support::two_times_rule("out", out.template values<golden>(), gate(inputs(golden{}))[0],
                                   std::vector{gate(inputs(T{}))[0], gate(moved)[0]}, epsilon) +
           rule("dy", dy.template values<golden>(), 0) +
           rule("dm", dm.template values<golden>(), 1) +
           rule("dweight_y", of_head<golden>(dwy), 2) + rule("dweight_m", of_head<golden>(dwm), 3) +
           (out.untouched_outside() && dy.untouched_outside() ? ""
                                                              : "memory outside was written\n");
  });
}

TEST_CASE("titans: what the rows of a segment meet", "[mechanism][titans]") {
  for_each_seed("titans context", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const P = draw.between(0, 9), C = draw.between(1, 30);
    heed::place const where{.rows = C, .keys = P + 2 * C};
    return support::check_pattern(draw, heed::titans_context{P, C}, where,
                                  [=](index_t position, index_t key) {
                                    index_t const row = position - P - C;
                                    return key < P ||
                                           (key < P + C ? key - P <= row : key - P - C <= row);
                                  },
                                  {.exact_tiles = false});
  });
}

TEST_CASE("titans: MAC, segment by segment", "[mechanism][titans]") {
  // A model of width D with one head: every projection is a matrix; rows of X, persistent rows, one linear memory.
  for_each_seed("titans mac", 20, [](seed_t seed) -> std::string {
    support::random draw(seed);
    index_t const D = draw.between(1, 9), C = draw.between(1, 6), P = draw.between(0, 3),
                  segments = draw.between(1, 3), N = C * segments;
    auto const normal = [&](index_t rows, index_t columns, double spread) {
      return support::normal<double>(draw, {1, rows, 1, columns}, spread);
    };
    double const root = 1 / std::sqrt(static_cast<double>(D));
    auto x = normal(N, D, 1), persistent = normal(P, D, 1);
    auto const start = normal(D, D, root);
    std::array<guarded<double, 4>, 7> w;
    for (auto& each : w) each = normal(D, D, root);
    auto wy = weights<double>(draw, 1, D), wm = weights<double>(draw, 1, D);
    auto gates =
        std::array{support::blank<double, 3>({1, N, 1}), support::blank<double, 3>({1, N, 1}),
                   support::blank<double, 3>({1, N, 1})};
    for (auto& gate : gates) gate.fill([&](auto const&) { return draw.uniform(0, 0.3); });
    auto const project = [&](tensor<double, 4> const& rows, std::size_t which) {
      tensor<double, 4> result(rows.extents, 0.0);
      for (index_t i = 0; i < rows.extent(1); ++i)
        for (index_t d = 0; d < D; ++d)
          for (index_t e = 0; e < D; ++e)
            result(0, i, 0, e) += rows(0, i, 0, d) * w[which].view()(0, d, 0, e);
      return result;
    };
    auto const rows_of = [](tensor<double, 4> const& from, index_t first, index_t count) {
      tensor<double, 4> result({1, count, 1, from.extent(3)});
      for (index_t i = 0; i < count; ++i)
        for (index_t d = 0; d < from.extent(3); ++d) result(0, i, 0, d) = from(0, first + i, 0, d);
      return result;
    };
    auto const joined = [&](tensor<double, 4> const& h, tensor<double, 4> const& of_x) {
      tensor<double, 4> all = persistent.values<double>();
      for (auto const* each : {&h, &of_x})
        all.values.insert(all.values.end(), each->values.begin(), each->values.end());
      all.extents[1] += h.extent(1) + of_x.extent(1);
      return all;
    };
    auto const view = [](tensor<double, 4>& of) {
      return tensor_view<double, 4>(of.values.data(), of.extents);
    };

    auto const run = [&](tensor<double, 4> const& input) {
      tensor<double, 4> out({1, N, 1, D});
      auto memory = support::blank<double, 4>({1, 1, D, D}),
           moving = support::blank<double, 4>({1, 1, D, D});
      memory.fill([&](auto const& at) { return std::as_const(start).view()(0, at[2], 0, at[3]); });
      moving.fill([](auto const&) { return 0.0; });
      heed::titans_memory<double> const kept(heed::memory_layers<double>(memory.view()),
                                             heed::memory_layers<double>(moving.view()));
      for (index_t s = 0; s < segments; ++s) {
        auto of_x = rows_of(input, s * C, C);
        auto q1 = project(of_x, 0);
        tensor<double, 4> h({1, C, 1, D}), y = h, m = h, o = h;
        heed::titans_recall(view(q1), view(h), kept);
        auto all = joined(h, of_x);
        auto q2 = project(of_x, 1), k2 = project(all, 2), v2 = project(all, 3);
        heed::attention(view(q2), view(k2), view(v2), view(y), heed::titans_context{P, C});
        auto q3 = project(y, 4), k3 = project(y, 5), v3 = project(y, 6);
        auto const gate = [&](std::size_t n) { return gates[n].view().slice(1, s * C, C); };
        heed::titans(view(q3), view(k3), view(v3), view(m),
                     heed::titans_gates(gate(0), gate(1), gate(2)), kept, C,
                     heed::final_memory{kept});
        heed::titans_gate(view(y), view(m), wy.view(), wm.view(), view(o));
        for (index_t i = 0; i < C; ++i)
          for (index_t d = 0; d < D; ++d) out(0, s * C + i, 0, d) = o(0, i, 0, d);
      }
      return out;
    };
    auto const got = run(x.values<double>());

    // The same in plain loops.
    auto memory = reference::detail::matrix<double>(
        static_cast<std::size_t>(D), std::vector<double>(static_cast<std::size_t>(D)));
    auto moving = memory;
    for (index_t d = 0; d < D; ++d)
      for (index_t e = 0; e < D; ++e)
        memory[static_cast<std::size_t>(d)][static_cast<std::size_t>(e)] =
            std::as_const(start).view()(0, d, 0, e);
    double largest = 0;
    for (index_t s = 0; s < segments; ++s) {
      auto const of_x = rows_of(x.values<double>(), s * C, C), q1 = project(of_x, 0);
      tensor<double, 4> h({1, C, 1, D}), y({1, C, 1, D}, 0.0), m = h;
      auto const recall = [&](tensor<double, 4> const& q, index_t i, tensor<double, 4>& to) {
        for (index_t e = 0; e < D; ++e) {
          to(0, i, 0, e) = 0;
          for (index_t d = 0; d < D; ++d)
            to(0, i, 0, e) +=
                memory[static_cast<std::size_t>(d)][static_cast<std::size_t>(e)] * q(0, i, 0, d);
        }
      };
      for (index_t i = 0; i < C; ++i) recall(q1, i, h);
      auto const all = joined(h, of_x), q2 = project(of_x, 1), k2 = project(all, 2),
                 v2 = project(all, 3);
      for (index_t i = 0; i < C; ++i) {
        double sum = 0;
        for (index_t j = 0; j < P + 2 * C; ++j) {
          if (j >= P && (j - P) % C > i) continue;
          double score = 0;
          for (index_t d = 0; d < D; ++d) score += q2(0, i, 0, d) * k2(0, j, 0, d) * root;
          sum += std::exp(score);
          for (index_t d = 0; d < D; ++d) y(0, i, 0, d) += std::exp(score) * v2(0, j, 0, d);
        }
        for (index_t d = 0; d < D; ++d) y(0, i, 0, d) /= sum;
      }
      auto const q3 = project(y, 4), k3 = project(y, 5), v3 = project(y, 6);
      auto const reference_memory = memory;
      for (index_t i = 0; i < C; ++i) {
        auto const gradient = reference::detail::learn<double>(
            {reference_memory}, {D, D}, reference::detail::row_of(k3, 0, i, 0),
            reference::detail::row_of(v3, 0, i, 0), reference::summed::forwards);
        for (std::size_t d = 0; d < memory.size(); ++d)
          for (std::size_t e = 0; e < memory.size(); ++e) {
            moving[d][e] = gates[1].view()(0, s * C + i, 0) * moving[d][e] -
                           gates[0].view()(0, s * C + i, 0) * gradient[0][d][e];
            memory[d][e] = (1 - gates[2].view()(0, s * C + i, 0)) * memory[d][e] + moving[d][e];
          }
        recall(q3, i, m);
      }
      auto const o =
          reference::titans_gate<double>({y, m, of_head<double>(wy), of_head<double>(wm)}, 1e-6)[0];
      for (index_t i = 0; i < C; ++i)
        for (index_t d = 0; d < D; ++d)
          largest = std::max(largest, std::abs(o(0, i, 0, d) - got(0, s * C + i, 0, d)));
    }
    if (!(largest < 1e-10)) return "off by " + std::to_string(largest);

    // No row depends on a later one.
    index_t const changed = draw.between(0, N - 1);
    auto other = x.values<double>();
    for (index_t d = 0; d < D; ++d) other(0, changed, 0, d) += 1;
    auto const after = run(other);
    for (index_t i = 0; i < changed; ++i)
      for (index_t d = 0; d < D; ++d)
        if (after(0, i, 0, d) != got(0, i, 0, d)) return "a row depends on a later one";
    return "";
  });
}

TEST_CASE("titans: MAG and MAL, persistent rows in front", "[mechanism][titans]") {
  support::random draw(3);
  index_t const P = 3, N = 20, D = 6, W = 4;
  auto const normal = [&](index_t rows) {
    return support::normal<double>(draw, {1, rows, 1, D}, 0.4);
  };
  auto q = normal(P + N), k = normal(P + N), v = normal(P + N), y = normal(P + N),
       m = normal(P + N), out = normal(P + N), layer = normal(P + N);
  auto gate = support::blank<double, 3>({1, P + N, 1});
  gate.fill([](auto const&) { return 0.2; });
  auto start = support::normal<double>(draw, {1, 1, D, D}, 0.4);
  auto wy = weights<double>(draw, 1, D), wm = weights<double>(draw, 1, D);
  heed::titans_memory<double> const memory(heed::memory_layers<double>(start.view()));
  heed::titans_gates const gates(gate.view(), gate.view(), gate.view());
  auto const run = [&] {
    heed::attention(q.view(), k.view(), v.view(), y.view(), heed::titans_window(P, W));
    heed::titans(q.view(), k.view(), v.view(), m.view(), gates, memory, 8);
    heed::titans_gate(y.view(), m.view(), wy.view(), wm.view(), out.view());
    heed::attention(m.view(), m.view(), m.view(), layer.view(), heed::titans_window(P, W));
  };
  run();
  // A row of attention meets W rows and P.
  index_t const row = P + 10;
  double sum = 0, first = 0;
  for (index_t j = 0; j <= row; ++j) {
    if (j >= P && j <= row - W) continue;
    double score = 0;
    for (index_t d = 0; d < D; ++d) score += q.view()(0, row, 0, d) * k.view()(0, j, 0, d);
    double const weight = std::exp(score / std::sqrt(static_cast<double>(D)));
    sum += weight;
    first += weight * v.view()(0, j, 0, 0);
  }
  CHECK(y.view()(0, row, 0, 0) == Approx(first / sum).epsilon(1e-10));
  // A change of row 9 of X reaches no earlier row, and through the memory and the layer all later ones.
  auto const before = out.values<double>(), layer_before = layer.values<double>();
  for (index_t d = 0; d < D; ++d) v.view()(0, P + 9, 0, d) += 1;
  run();
  for (index_t i = 0; i < P + N; ++i) {
    bool const later = i >= P + 9;
    CHECK((out.view()(0, i, 0, 0) != before(0, i, 0, 0)) == later);
    CHECK((layer.view()(0, i, 0, 0) != layer_before(0, i, 0, 0)) == later);
  }
  // And one of P reaches all rows that follow it.
  auto const with_p = out.values<double>();
  for (index_t d = 0; d < D; ++d) v.view()(0, 0, 0, d) += 1;
  run();
  for (index_t i = P; i < P + N; ++i) CHECK(out.view()(0, i, 0, 0) != with_p(0, i, 0, 0));
}

TEST_CASE("titans: recall and its gradient", "[mechanism][titans]") {
  for_each_seed("titans recall", 50, [](seed_t seed) -> std::string {
    support::random draw(seed);
    index_t const B = draw.between(1, 2), N = draw.between(0, 9), H = draw.between(1, 2),
                  D = draw.between(1, 6), F = draw.between(1, 6), E = draw.between(1, 6);
    auto query = support::normal<double>(draw, {B, N, 2 * H, D}),
         out = support::normal<double>(draw, {B, N, 2 * H, E}),
         dout = support::normal<double>(draw, {B, N, 2 * H, E}),
         dquery = support::normal<double>(draw, {B, N, 2 * H, D}),
         first = support::normal<double>(draw, {B, H, D, F}),
         second = support::normal<double>(draw, {B, H, F, E}),
         dfirst = support::normal<double>(draw, {B, H, D, F}),
         dsecond = support::normal<double>(draw, {B, H, F, E});
    heed::titans_memory<double> const memory(
        heed::memory_layers<double>(first.view(), second.view())),
        dmemory(heed::memory_layers<double>(dfirst.view(), dsecond.view()));
    heed::titans_recall(query.view(), out.view(), memory);
    heed::titans_recall_backward(query.view(), dout.view(), dquery.view(), memory, dmemory);
    std::vector<reference::memory_sequence> sequences;
    for (index_t b = 0; b < B; ++b) sequences.push_back({b, 0, N, 0, 0});
    auto const none = [&](index_t dim) { return tensor<double, 4>({B, 0, H, dim}); };
    tensors<double> const inputs{query.values<double>(),
                                 none(D),
                                 none(E),
                                 none(1),
                                 none(1),
                                 none(1),
                                 first.values<double>(),
                                 second.values<double>(),
                                 tensor<double, 4>(first.extents(), 0.0),
                                 tensor<double, 4>(second.extents(), 0.0)};
    auto const define = [&](auto const& x) { return reference::titans(x, sequences, 1); };
    tensors<double> slopes{dout.values<double>()};
    for (std::size_t n = 6; n < 10; ++n)
      slopes.push_back(tensor<double, 4>(inputs[n].extents, 0.0));
    auto const exact = reference::gradients_of<double>(define, inputs, slopes);
    double const off = std::max({support::difference(out.values<double>(), define(inputs)[0]),
                                 support::difference(dquery.values<double>(), exact[0]),
                                 support::difference(dfirst.values<double>(), exact[6]),
                                 support::difference(dsecond.values<double>(), exact[7])});
    return off < 1e-12 ? "" : "off by " + std::to_string(off);
  });
}
