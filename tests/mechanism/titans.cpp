#include "reference/memories.hpp"
#include "support/error_rule.hpp"

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
  template <class U>
  tensors<U> defined(reference::summed order = {}) const {
    return reference::titans(inputs<U>(), sequences(), chunk, order);
  }
  template <class U>
  tensors<U> defined_gradients(reference::summed order = {}) const {
    tensors<U> slopes{dout.template values<U>()};
    for (auto* each : {&dfinal_weights, &dfinal_moving})
      for (auto const& layer : *each) slopes.push_back(layer.template values<U>());
    return reference::gradients_of<U>(
        [&](auto const& given) { return reference::titans(given, sequences(), chunk, order); },
        inputs<U>(), slopes);
  }

  std::string compare_forward() {
    auto const exact = defined<golden>();
    std::vector<tensors<compute>> naive;
    for (auto order : orders) naive.push_back(defined<compute>(order));
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
    auto const exact = defined_gradients<golden>();
    std::vector<tensors<compute>> naive;
    for (auto order : orders) naive.push_back(defined_gradients<compute>(order));
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
