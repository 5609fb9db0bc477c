#include "reference/memories.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/linear.hpp>
#include <heed/mechanism/titans.hpp>

#include <array>
#include <limits>
#include <thread>

// The memory of Titans, a matrix or a network, against its definition.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using reference::tensors;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

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

template <class T>
struct titans_problem {
  using compute = heed::compute_type<T>;
  using golden = std::conditional_t<std::is_same_v<compute, double>, long double, double>;

  support::random draw;
  index_t B, N, M, H, group, D, E, chunk;
  std::vector<index_t> cu_rows{0}, cu_keys{0};
  bool packed;
  guarded<T, 4> query, key, value, out, dout, dquery, dkey, dvalue;
  guarded<T, 3> rate, momentum, forget, drate, dmomentum, dforget;
  std::vector<guarded<compute, 4>> weights, moving, final_weights, final_moving, dfinal_weights,
      dfinal_moving, dweights, dmoving;

  /// Gates of T = half are rounded, and so are all others of their type.
  explicit titans_problem(seed_t seed, bool narrow = false) : draw(seed) {
    bool const long_one = draw.one_in(8);
    packed = draw.one_in(4);
    B = packed ? 1 : draw.between(1, 2);
    M = long_one ? draw.between(60, 150) : draw.between(0, 20);
    N = draw.one_in(3) ? draw.between(0, 20) : M;
    H = draw.between(1, 2);
    group = draw.between(1, 2);
    D = draw.between(1, long_one ? 4 : 17);
    E = draw.between(1, long_one ? 4 : 17);
    chunk = draw.one_of(std::array<index_t, 7>{1, 1, 2, 5, 16, 70, 1000});
    index_t sequences = B;
    if (packed) {
      sequences = draw.between(1, 3);
      auto const cut = [&](std::vector<index_t>& cu, index_t all) {
        for (index_t s = 1; s < sequences; ++s) cu.push_back(draw.between(0, all));
        cu.push_back(all);
        std::sort(cu.begin(), cu.end());
      };
      cut(cu_rows, N);
      cut(cu_keys, M);
    }
    double const root = 0.7 / std::sqrt(static_cast<double>(D));
    query = normal<T, 4>({B, N, H * group, D}, 1);
    key = normal<T, 4>({B, M, H, D}, root);
    value = normal<T, 4>({B, M, H, E}, 0.7);
    dout = normal<T, 4>({B, N, H * group, E}, 1);
    out = normal<T, 4>({B, N, H * group, E}, 1);
    dquery = normal<T, 4>({B, N, H * group, D}, 1);
    dkey = normal<T, 4>({B, M, H, D}, 1);
    dvalue = normal<T, 4>({B, M, H, E}, 1);
    // Stale gradients add up over a chunk, so that they are slower there.
    double const most = std::min(0.3, 2.0 / static_cast<double>(std::min(chunk, M + 1)));
    rate = uniform(0.0, most);
    momentum = uniform(0, 0.7);
    forget = uniform(0, std::min(0.4, 2.0 / static_cast<double>(M + 1)));
    for (auto* each : {&drate, &dmomentum, &dforget}) *each = uniform(0, 1);
    index_t const depth = narrow ? 1 : draw.between(1, 3);
    for (index_t l = 0, in = D; l < depth; ++l) {
      index_t const next = l + 1 == depth ? E : draw.between(1, 11);
      double const spread = 1 / std::sqrt(static_cast<double>(std::max(in, next)));
      for (auto* each : {&weights, &moving, &final_weights, &final_moving, &dfinal_weights,
                         &dfinal_moving, &dweights, &dmoving})
        each->push_back(
            normal<compute, 4>({sequences, H, in, next}, each == &weights ? spread : 0.2 * spread));
      in = next;
    }
  }

  template <class X, int Rank>
  guarded<X, Rank> normal(support::extents_of<Rank> const& extents, double spread) {
    guarded<X, Rank> all(extents, support::random_layout<Rank>(draw, extents, false));
    all.fill([&](auto const&) { return support::convert<X>(spread * draw.normal()); });
    all.remember();
    return all;
  }
  guarded<T, 3> uniform(double low, double high) {
    support::extents_of<3> const extents{B, M, H};
    guarded<T, 3> all(extents, support::random_layout<3>(draw, extents, false));
    all.fill([&](auto const&) { return support::convert<T>(draw.uniform(low, high)); });
    all.remember();
    return all;
  }

  heed::titans_gates<T> gates(bool gradients = false) {
    if (gradients)
      return {rate.view(),  momentum.view(),  forget.view(),
              drate.view(), dmomentum.view(), dforget.view()};
    return {rate.view(), momentum.view(), forget.view()};
  }
  static heed::memory_layers<compute> layers(std::vector<guarded<compute, 4>>& of) {
    if (of.size() == 1) return {of[0].view()};
    if (of.size() == 2) return {of[0].view(), of[1].view()};
    return {of[0].view(), of[1].view(), of[2].view()};
  }
  heed::titans_memory<compute> start() { return {layers(weights), layers(moving)}; }
  heed::titans_memory<compute> final() { return {layers(final_weights), layers(final_moving)}; }

  template <class... I>
  void with_documents(auto const& call, I const&... ingredients) {
    if (packed)
      call(ingredients..., heed::documents{cu_rows, cu_keys});
    else
      call(ingredients...);
  }

  template <class... I>
  void forward(I const&... ingredients) {
    with_documents(
        [&](auto const&... all) {
          heed::titans(std::as_const(query).view(), std::as_const(key).view(),
                       std::as_const(value).view(), out.view(), gates(), start(), chunk,
                       heed::final_memory{final()}, all...);
        },
        ingredients...);
  }
  template <class... I>
  void backward(I const&... ingredients) {
    with_documents(
        [&](auto const&... all) {
          heed::titans_backward(
              std::as_const(query).view(), std::as_const(key).view(), std::as_const(value).view(),
              std::as_const(dout).view(), dquery.view(), dkey.view(), dvalue.view(), gates(true),
              start(), heed::titans_memory<compute>(layers(dweights), layers(dmoving)), chunk,
              heed::final_memory_gradient(heed::titans_memory<compute const>(
                  layers(dfinal_weights), layers(dfinal_moving))),
              all...);
        },
        ingredients...);
  }

  std::vector<reference::memory_sequence> sequences() const {
    std::vector<reference::memory_sequence> all;
    if (!packed)
      for (index_t b = 0; b < B; ++b) all.push_back({b, 0, N, 0, M});
    else
      for (std::size_t s = 0; s + 1 < cu_rows.size(); ++s)
        all.push_back(
            {0, cu_rows[s], cu_rows[s + 1] - cu_rows[s], cu_keys[s], cu_keys[s + 1] - cu_keys[s]});
    return all;
  }
  template <class U>
  static tensor<U, 4> with_channel(guarded<T, 3> const& gate) {
    auto const values = gate.template values<U>();
    tensor<U, 4> result({values.extent(0), values.extent(1), values.extent(2), 1});
    result.values = values.values;
    return result;
  }
  template <class U>
  tensors<U> inputs() const {
    tensors<U> all{query.template values<U>(), key.template values<U>(),
                   value.template values<U>(), with_channel<U>(rate),
                   with_channel<U>(momentum),  with_channel<U>(forget)};
    for (auto* each : {&weights, &moving})
      for (auto const& layer : *each) all.push_back(layer.template values<U>());
    return all;
  }
  /// A hidden layer goes through sigmoid, which simd/activations.hpp states to be exact to 3.6 eps.
  template <class U>
  double rounding() const {
    return support::epsilon<U>() +
           3.6 * static_cast<double>(weights.size() - 1) * support::epsilon<compute>();
  }

  static constexpr std::array orders{reference::summed::forwards, reference::summed::backwards,
                                     reference::summed::in_pairs,
                                     reference::summed::from_chunk_start};
  /// Inputs that were rounded otherwise, where errors that cancel by luck do not.
  tensors<compute> rounded_otherwise() const {
    tensors<compute> all = inputs<compute>();
    support::random up(1);
    for (auto& each : all)
      for (compute& x : each.values)
        x *= 1 + (up.one_in(2) ? 1 : -1) * std::numeric_limits<compute>::epsilon();
    return all;
  }
  template <class U>
  tensors<U> defined(tensors<U> const& of, reference::summed order = {}) const {
    return reference::titans(of, sequences(), chunk, order);
  }
  template <class U>
  tensors<U> defined_gradients(tensors<U> const& of, reference::summed order = {}) const {
    tensors<U> slopes{dout.template values<U>()};
    for (auto* each : {&dfinal_weights, &dfinal_moving})
      for (auto const& layer : *each) slopes.push_back(layer.template values<U>());
    return reference::gradients_of<U>(
        [&](auto const& given) { return reference::titans(given, sequences(), chunk, order); }, of,
        slopes);
  }

  std::string compare_forward() {
    auto const exact = defined(inputs<golden>());
    std::vector<tensors<compute>> naive{defined(rounded_otherwise())};
    for (auto order : orders) naive.push_back(defined(inputs<compute>(), order));
    auto const naive_of = [&](std::size_t n) {
      std::vector<tensor<compute, 4>> all;
      for (auto const& each : naive) all.push_back(each[n]);
      return all;
    };
    // Numbers below the least normal one are evenly spaced.
    double const least = std::is_same_v<T, Eigen::half> ? 0x1p-14 : 0;
    auto const rule = [&](std::string const& name, auto& got, std::size_t n, double epsilon) {
      return support::two_times_rule(name, got.template values<golden>(), exact[n], naive_of(n),
                                     epsilon, least) +
             (got.untouched_outside() ? "" : name + " was written to outside\n");
    };
    std::string complaint = rule("out", out, 0, rounding<T>());
    std::size_t n = 1;
    for (auto* each : {&final_weights, &final_moving})
      for (auto& layer : *each)
        complaint += rule("final " + std::to_string(n), layer, n, rounding<compute>()), ++n;
    return complaint;
  }
  std::string compare_backward() {
    auto const exact = defined_gradients(inputs<golden>());
    std::vector<tensors<compute>> naive{defined_gradients(rounded_otherwise())};
    for (auto order : orders) naive.push_back(defined_gradients(inputs<compute>(), order));
    auto const naive_of = [&](std::size_t n) {
      std::vector<tensor<compute, 4>> all;
      for (auto const& each : naive) all.push_back(each[n]);
      return all;
    };
    auto const rule = [&](std::string const& name, auto const& got, std::size_t n, double epsilon) {
      return support::two_times_rule(name, got, exact[n], naive_of(n), epsilon);
    };
    double const epsilon = rounding<T>();
    std::string complaint = rule("dquery", dquery.template values<golden>(), 0, epsilon) +
                            rule("dkey", dkey.template values<golden>(), 1, epsilon) +
                            rule("dvalue", dvalue.template values<golden>(), 2, epsilon) +
                            rule("drate", with_channel<golden>(drate), 3, epsilon) +
                            rule("dmomentum", with_channel<golden>(dmomentum), 4, epsilon) +
                            rule("dforget", with_channel<golden>(dforget), 5, epsilon);
    std::size_t n = 6;
    for (auto* each : {&dweights, &dmoving})
      for (auto& layer : *each)
        complaint += rule("d start " + std::to_string(n), layer.template values<golden>(), n,
                          rounding<compute>()),
            ++n;
    return complaint.empty() ? "" : complaint + shape();
  }
  std::string shape() const {
    return "B " + std::to_string(B) + " N " + std::to_string(N) + " M " + std::to_string(M) +
           " heads " + std::to_string(H) + " x " + std::to_string(group) + " D " +
           std::to_string(D) + " E " + std::to_string(E) + " chunk " + std::to_string(chunk) +
           " layers " + std::to_string(weights.size()) + (packed ? " packed\n" : "\n");
  }
};

}  // namespace

TEMPLATE_TEST_CASE("titans: the definition", "[mechanism][titans]", double, float, Eigen::half) {
  for_each_seed("titans", 300, [](seed_t seed) {
    titans_problem<TestType> p(seed);
    p.forward();
    std::string const complaint = p.compare_forward();
    return complaint.empty() ? "" : complaint + p.shape();
  });
}

TEMPLATE_TEST_CASE("titans: the gradient", "[mechanism][titans]", double, float) {
  for_each_seed("titans backward", 150, [](seed_t seed) {
    titans_problem<TestType> p(seed);
    p.backward();
    return p.compare_backward();
  });
}

TEST_CASE("titans: steps of any size are the whole", "[mechanism][titans]") {
  for_each_seed("titans steps", 100, [](seed_t seed) -> std::string {
    titans_problem<double> p(seed);
    if (p.packed || p.N != p.M) return "";
    p.forward();
    auto const whole = p.out.values<double>();
    std::vector<tensor<double, 4>> ends;
    for (auto* each : {&p.final_weights, &p.final_moving})
      for (auto& layer : *each) ends.push_back(layer.values<double>());
    for (index_t tokens : {index_t{1}, index_t{3}, p.M + 1}) {
      // Memories that are packed are worked on where they lie if their rows are whole registers.
      std::vector<guarded<double, 4>> weights, moving, reference;
      for (std::size_t l = 0; l < p.weights.size(); ++l) {
        auto const packed = [&](guarded<double, 4> const& from) {
          auto const values = from.values<double>();
          auto copy = support::blank<double, 4>(from.extents());
          std::size_t n = 0;
          copy.fill([&](auto const&) { return values.values[n++]; });
          return copy;
        };
        weights.push_back(packed(p.weights[l]));
        moving.push_back(packed(p.moving[l]));
        reference.push_back(packed(p.weights[l]));
      }
      using problem = titans_problem<double>;
      heed::titans_state<double> state{{problem::layers(weights), problem::layers(moving)},
                                       problem::layers(reference)};
      for (index_t t = 0; t < p.M; t += tokens) {
        index_t const count = std::min(tokens, p.M - t);
        auto const cut = [&](auto const& view) { return view.slice(1, t, count); };
        heed::titans_step(
            cut(p.query.view()), cut(p.key.view()), cut(p.value.view()), cut(p.out.view()),
            heed::titans_gates(cut(p.rate.view()), cut(p.momentum.view()), cut(p.forget.view())),
            state, p.chunk);
      }
      double largest = support::difference(p.out.values<double>(), whole);
      for (std::size_t l = 0; l < weights.size(); ++l) {
        largest = std::max(largest, support::difference(weights[l].values<double>(), ends[l]));
        largest = std::max(
            largest, support::difference(moving[l].values<double>(), ends[l + weights.size()]));
      }
      if (!(largest < 1e-12)) return "steps are off by " + std::to_string(largest) + p.shape();
    }
    return "";
  });
}

TEST_CASE("titans: what is the delta rule, and gated", "[mechanism][titans]") {
  for_each_seed("titans as the delta rule", 40, [](seed_t seed) -> std::string {
    titans_problem<double> p(seed, true);
    if (p.packed) return "";
    bool const gated = p.draw.one_in(2);
    p.momentum.fill([](auto const&) { return 0.0; });
    if (!gated) p.forget.fill([](auto const&) { return 0.0; });
    auto rate = support::blank<double, 3>(p.rate.extents()),
         log_gate = support::blank<double, 3>(p.rate.extents());
    auto value = support::blank<double, 4>(p.value.extents()),
         other = support::blank<double, 4>(p.out.extents());
    value.fill([&](auto const& at) {
      return p.value.view()(at[0], at[1], at[2], at[3]) *
             (1 - p.forget.view()(at[0], at[1], at[2]));
    });
    rate.fill([&](auto const& at) {
      return p.rate.view()(at[0], at[1], at[2]) / (1 - p.forget.view()(at[0], at[1], at[2]));
    });
    log_gate.fill(
        [&](auto const& at) { return std::log1p(-p.forget.view()(at[0], at[1], at[2])); });
    heed::titans(p.query.view(), p.key.view(), p.value.view(), p.out.view(), p.gates(),
                 heed::titans_memory<double>(titans_problem<double>::layers(p.weights)), 1);
    heed::initial_state const start(std::as_const(p.weights[0]).view());
    if (gated)
      heed::linear_attention(p.query.view(), p.key.view(), value.view(), other.view(),
                             heed::delta(rate.view()), heed::decay(log_gate.view()), start);
    else
      heed::linear_attention(p.query.view(), p.key.view(), value.view(), other.view(),
                             heed::delta(rate.view()), start);
    double const off = support::difference(p.out.values<double>(), other.values<double>());
    return off < 1e-12 ? "" : "off by " + std::to_string(off) + " " + p.shape();
  });
}

TEST_CASE("titans: reading without learning", "[mechanism][titans]") {
  titans_problem<double> p(5);
  auto const key = p.key.view().slice(1, 0, 0);
  auto const none = p.rate.view().slice(1, 0, 0);
  std::vector<index_t> const rows{0, p.N}, keys{0, 0};
  auto const weights = p.weights[0].view().slice(0, 0, 1);
  auto values = support::blank<double, 4>({1, p.N, p.H * p.group, weights.extent(3)});
  heed::titans(p.query.view().slice(0, 0, 1), key.slice(0, 0, 1),
               tensor_view<double, 4>(nullptr, {1, 0, p.H, weights.extent(3)}), values.view(),
               heed::titans_gates(none.slice(0, 0, 1), none.slice(0, 0, 1), none.slice(0, 0, 1)),
               heed::titans_memory<double>(heed::memory_layers<double>(weights)), 1);
  double largest = 0;
  for (index_t i = 0; i < p.N; ++i)
    for (index_t h = 0; h < p.H * p.group; ++h)
      for (index_t e = 0; e < weights.extent(3); ++e) {
        double sum = 0;
        for (index_t d = 0; d < p.D; ++d)
          sum += weights(0, h / p.group, d, e) * p.query.view()(0, i, h, d);
        largest = std::max(largest, std::abs(sum - values.view()(0, i, h, e)));
      }
  CHECK(p.N > 0);
  CHECK(largest < 1e-12);
}

TEST_CASE("titans: the same bits on threads, and no matter what is beside", "[mechanism][titans]") {
  for_each_seed("titans bits", 30, [](seed_t seed) -> std::string {
    titans_problem<float> p(seed), q(seed);
    if (p.N == 0 || p.M == 0) return "";
    p.forward();
    q.forward(threads{});
    p.backward();
    q.backward(threads{});
    bool same = support::same_bits(p.out.values<float>(), q.out.values<float>()) &&
                support::same_bits(p.dquery.values<float>(), q.dquery.values<float>()) &&
                support::same_bits(p.dkey.values<float>(), q.dkey.values<float>()) &&
                support::same_bits(p.dvalue.values<float>(), q.dvalue.values<float>()) &&
                support::same_bits(p.drate.values<float>(), q.drate.values<float>());
    for (std::size_t l = 0; l < p.weights.size(); ++l)
      same = same &&
             support::same_bits(p.final_weights[l].values<float>(),
                                q.final_weights[l].values<float>()) &&
             support::same_bits(p.dweights[l].values<float>(), q.dweights[l].values<float>());
    return same ? "" : "other bits on threads: " + p.shape();
  });
}

TEST_CASE("titans: errors", "[mechanism][titans]") {
  auto const rows = [](index_t n, index_t dim) {
    return support::blank<double, 4>({1, n, 2, dim});
  };
  auto query = rows(5, 3), key = rows(5, 3), value = rows(5, 4), out = rows(5, 4);
  auto gate = support::blank<double, 3>({1, 5, 2}), bad = support::blank<double, 3>({1, 5, 2});
  for (auto* each : {&query, &key, &value, &out}) each->fill([](auto const&) { return 0.5; });
  gate.fill([](auto const&) { return 0.5; });
  bad.fill([](auto const& at) { return at[1] == 3 ? 1.5 : 0.5; });
  auto first = support::blank<double, 4>({1, 2, 3, 6}),
       second = support::blank<double, 4>({1, 2, 6, 4});
  first.fill([](auto const&) { return 0.5; });
  second.fill([](auto const&) { return 0.5; });
  heed::titans_gates const gates(gate.view(), gate.view(), gate.view());
  heed::titans_memory<double> const memory(
      heed::memory_layers<double>(first.view(), second.view()));
  auto const run = [&](auto const& g, auto const& m, index_t chunk, auto const&... all) {
    heed::titans(query.view(), key.view(), value.view(), out.view(), g, m, chunk, all...);
  };
  CHECK_THROWS_WITH(run(gates, memory, 0),
                    "heed: titans has chunks of 0 tokens; expected at least 1");
  CHECK_THROWS_WITH(run(heed::titans_gates(gate.view(), bad.view(), gate.view()), memory, 1),
                    "heed: momentum holds 1.500000 at [0, 3, 0]; expected numbers from 0 to 1");
  CHECK_THROWS_WITH(
      run(heed::titans_gates(gate.view().slice(1, 0, 4), gate.view(), gate.view()), memory, 1),
      "heed: rate has shape [1, 4, 2]; expected [1, 5, 2] (batch, position, head), as key");
  CHECK_THROWS_WITH(
      run(gates, heed::titans_memory<double>(heed::memory_layers<double>(first.view())), 1),
      "heed: layer 0 of the memory has shape [1, 2, 3, 6]; expected [1, 2, 3, 4] (sequence, head, "
      "inputs, outputs)");
  CHECK_THROWS_WITH(run(gates, heed::titans_memory<double>(), 1),
                    "heed: titans has a memory without layers; expected 1 to 8");
  tensor_view<double, 4> const shared(first.view().data(), {1, 2, 3, 6}, {36, 0, 6, 1});
  CHECK_THROWS_WITH(
      run(gates, memory, 1,
          heed::final_memory{
              heed::titans_memory<double>(heed::memory_layers<double>(shared, second.view()))}),
      "heed: final_memory.weights[0] is written to, and has stride 0 along axis 1 of shape "
      "[1, 2, 3, 6]");
  heed::titans_state<double> state{memory, {}, 0};
  auto const step = [&](index_t chunk) {
    heed::titans_step(query.view(), key.view(), value.view(), out.view(), gates, state, chunk);
  };
  CHECK_THROWS_WITH(step(1),
                    "heed: state.memory.momentum has 0 layers; expected 2, as the memory's "
                    "weights");
  state.memory.momentum = memory.weights;
  CHECK_THROWS_WITH(step(2),
                    "heed: state.reference has 0 layers; expected 2, as the memory's weights");
  for (double x : out.values<double>().values) CHECK(x == 0.5);
}
