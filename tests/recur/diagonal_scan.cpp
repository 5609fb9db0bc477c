#include "reference/diagonal_scan.hpp"
#include "support/central_differences.hpp"
#include "support/error_rule.hpp"
#include "support/threads.hpp"

#include <heed/recur/diagonal_scan.hpp>

// h_t = a_t h_(t-1) + x_t against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

/// Real or complex operands of any layout. `Planes` is 2 for complex numbers, of which plane 1 is the imaginary part.
template <class E, int Planes, class S = float>
struct scan_problem {
  using compute = heed::compute_type<E, S>;
  using golden = std::conditional_t<std::is_same_v<compute, double>, long double, double>;
  template <class T>
  using number = std::conditional_t<Planes == 1, T, std::complex<T>>;

  support::random draw;
  index_t B, N, H, D, sequences;
  std::vector<index_t> bounds;
  bool logs;
  std::array<guarded<E, 4>, Planes> a, x, h, dh, da, dx;
  guarded<S, 4> initial, last, dlast, dinitial;
  reference::diagonal_scan definition;

  explicit scan_problem(seed_t seed, index_t most = 150) : draw(seed) {
    bool const packed = draw.one_in(3);
    B = packed ? 1 : draw.between(1, 3);
    N = draw.one_in(10) ? draw.between(0, 3) : draw.between(1, most);
    H = draw.between(1, 4);
    D = draw.one_in(3) ? draw.between(1, 3) : draw.between(1, 40);
    sequences = B;
    if (packed) {
      for (index_t n = draw.between(0, 3); n > 0; --n) bounds.push_back(draw.between(0, N));
      bounds.push_back(0);
      bounds.push_back(N);
      std::sort(bounds.begin(), bounds.end());
      sequences = static_cast<index_t>(bounds.size()) - 1;
    }
    definition.bounds = bounds;
    logs = Planes == 1 && draw.one_in(2);
    support::extents_of<4> const shape{B, N, H, D};
    for (auto* each : {&x, &h, &dh, &da, &dx})
      for (auto& plane : *each) plane = make<E>(shape, false);
    for (auto& plane : a) plane = make<E>(shape, true);
    double const longest = draw.one_in(2) ? 1 : 0.3;
    for (auto& plane : a)
      plane.fill([&](auto const&) {
        double const factor = longest * draw.uniform();
        if (logs)
          return draw.one_in(50) ? support::convert<E>(-std::numeric_limits<float>::infinity())
                                 : support::convert<E>(std::log(factor + 1e-3) - 1e-3);
        return support::convert<E>(Planes == 2 ? factor / 1.5 : factor);
      });
    for (auto* state : {&initial, &last, &dlast, &dinitial})
      *state = make<S>({sequences, H, Planes, D}, false);
    for (auto* each : {&h, &da, &dx})
      for (auto& plane : *each) plane.remember();
    last.remember();
    dinitial.remember();
  }

  template <class T>
  guarded<T, 4> make(support::extents_of<4> const& shape, bool shared) {
    guarded<T, 4> all(shape, support::random_layout<4>(draw, shape, shared));
    all.fill([&](auto const&) { return support::convert<T>(draw.normal()); });
    return all;
  }

  template <class T>
  tensor<number<T>, 4> values(std::array<guarded<E, 4>, Planes> const& planes, bool logged) const {
    auto const real = planes[0].template values<T>();
    tensor<number<T>, 4> all(real.extents);
    for (std::size_t n = 0; n < all.values.size(); ++n)
      all.values[n] = logged ? std::exp(real.values[n]) : real.values[n];
    if constexpr (Planes == 2) {
      auto const imaginary = planes[1].template values<T>();
      for (std::size_t n = 0; n < all.values.size(); ++n) all.values[n].imag(imaginary.values[n]);
    }
    return all;
  }
  template <class T>
  tensor<number<T>, 3> values(guarded<S, 4> const& state) const {
    auto const from = state.template values<T>();
    tensor<number<T>, 3> all({sequences, H, D});
    for (index_t s = 0; s < sequences; ++s)
      for (index_t n = 0; n < H; ++n)
        for (index_t d = 0; d < D; ++d) {
          if constexpr (Planes == 2)
            all(s, n, d) = {from(s, n, 0, d), from(s, n, 1, d)};
          else
            all(s, n, d) = from(s, n, 0, d);
        }
    return all;
  }
  template <class T, int Rank>
  static std::array<tensor<T, Rank>, Planes> split(tensor<T, Rank> const& all) {
    return {all};
  }
  template <class T, int Rank>
  static std::array<tensor<T, Rank>, 2> split(tensor<std::complex<T>, Rank> const& all) {
    std::array<tensor<T, Rank>, 2> parts{tensor<T, Rank>(all.extents),
                                         tensor<T, Rank>(all.extents)};
    for (std::size_t n = 0; n < all.values.size(); ++n) {
      parts[0].values[n] = all.values[n].real();
      parts[1].values[n] = all.values[n].imag();
    }
    return parts;
  }

  template <class Got, class G>
  std::string compare(char const* name, Got const& got, G const& exact, auto const& naive,
                      double epsilon) const {
    auto const golden_parts = split(exact);
    auto const naive_parts = split(naive);
    std::string complaint;
    for (std::size_t p = 0; p < Planes; ++p)
      complaint += support::two_times_rule(name, got[p], golden_parts[p],
                                           std::vector{naive_parts[p]}, epsilon);
    return complaint;
  }
  auto read(std::array<guarded<E, 4>, Planes> const& planes) const {
    std::array<tensor<golden, 4>, Planes> all;
    for (std::size_t p = 0; p < Planes; ++p) all[p] = planes[p].template values<golden>();
    return all;
  }

  /// Views, as many as there are planes.
  auto view(std::array<guarded<E, 4>, Planes>& planes) const {
    if constexpr (Planes == 1)
      return planes[0].view();
    else
      return heed::complex_view(planes[0].view(), planes[1].view());
  }
  template <class F>
  void call(F f) const {
    heed::documents const packed{bounds, bounds};
    if constexpr (Planes == 1) {
      if (logs && !bounds.empty()) return f(heed::in_logs{}, packed);
      if (logs) return f(heed::in_logs{});
    }
    if (!bounds.empty()) return f(packed);
    f();
  }

  template <class T>
  auto define() const {
    tensor<number<T>, 3> end;
    auto const a_values = values<T>(a, logs);
    auto const out = definition.forward(a_values, values<T>(x, false), values<T>(initial), end);
    return std::pair(out, end);
  }

  template <class... More>
  std::string forward(More const&... more) {
    call([&](auto const&... own) {
      heed::diagonal_scan(view(a), view(x), view(h), own..., heed::initial_state(initial.view()),
                          heed::final_state{last.view()}, more...);
    });
    auto const exact = define<golden>();
    auto const naive = define<compute>();
    return compare("h", read(h), exact.first, naive.first, support::epsilon<E>()) +
           compare("final state", split(values<golden>(last)), exact.second, naive.second,
                   support::epsilon<S>()) +
           (h[0].untouched_outside() && last.untouched_outside()
                ? ""
                : "memory outside the results was written to\n");
  }

  std::string backward() {
    call([&](auto const&... own) {
      heed::diagonal_scan(view(a), view(x), view(h), own..., heed::initial_state(initial.view()));
      heed::diagonal_scan_backward(view(a), view(h), view(dh), view(da), view(dx), own...,
                                   heed::initial_state(initial.view(), dinitial.view()),
                                   heed::final_state_gradient(dlast.view()));
    });
    // From the h that the backward pass was given, rounded as it is.
    auto const of = [&]<class T>(T) {
      auto const factors = values<T>(a, logs);
      auto all = definition.backward(factors, values<T>(h, false), values<T>(initial),
                                     values<T>(dh, false), values<T>(dlast));
      if (logs)
        for (std::size_t n = 0; n < factors.values.size(); ++n)
          all.da.values[n] *= factors.values[n];
      return all;
    };
    auto const exact = of(golden{});
    auto const naive = of(compute{});
    return compare("dx", read(dx), exact.dx, naive.dx, support::epsilon<E>()) +
           compare("da", read(da), exact.da, naive.da, support::epsilon<E>()) +
           compare("dh0", split(values<golden>(dinitial)), exact.dh0, naive.dh0,
                   support::epsilon<S>()) +
           (da[0].untouched_outside() && dx[0].untouched_outside() && dinitial.untouched_outside()
                ? ""
                : "memory outside a gradient was written to\n");
  }
};

}  // namespace

TEMPLATE_TEST_CASE("diagonal scan: the definition", "[recur][diagonal_scan][quick]", double, float,
                   Eigen::half, Eigen::bfloat16) {
  for_each_seed("diagonal scan", 200,
                [](seed_t seed) { return scan_problem<TestType, 1>(seed).forward(); });
  for_each_seed("complex diagonal scan", 100,
                [](seed_t seed) { return scan_problem<TestType, 2>(seed).forward(); });
}

TEMPLATE_TEST_CASE("diagonal scan: the gradients", "[recur][diagonal_scan]", double, float,
                   Eigen::bfloat16) {
  for_each_seed("diagonal scan backward", 200,
                [](seed_t seed) { return scan_problem<TestType, 1>(seed).backward(); });
  for_each_seed("complex diagonal scan backward", 100,
                [](seed_t seed) { return scan_problem<TestType, 2>(seed).backward(); });
}

TEST_CASE("diagonal scan: a state in double has it compute in double", "[recur][diagonal_scan]") {
  for_each_seed("diagonal scan of doubles", 50,
                [](seed_t seed) { return scan_problem<float, 1, double>(seed).forward(); });
}

TEST_CASE("diagonal scan: segments of long sequences", "[recur][diagonal_scan]") {
  for_each_seed("long diagonal scan", 15,
                [](seed_t seed) { return scan_problem<float, 1>(seed, 5000).forward(); });
  for_each_seed("long diagonal scan backward", 15,
                [](seed_t seed) { return scan_problem<float, 1>(seed, 5000).backward(); });
  for_each_seed("long complex diagonal scan", 10,
                [](seed_t seed) { return scan_problem<float, 2>(seed, 3000).forward(); });
  for_each_seed("long complex diagonal scan backward", 10,
                [](seed_t seed) { return scan_problem<float, 2>(seed, 3000).backward(); });
}

TEST_CASE("diagonal scan: a million tokens", "[recur][diagonal_scan]") {
  index_t const N = 1'000'000;
  support::random draw(5);
  std::vector<float> a(N), x(N), h(N);
  for (float& each : a) each = static_cast<float>(0.9 + 0.1 * draw.uniform());
  for (float& each : x) each = static_cast<float>(draw.normal());
  heed::diagonal_scan(heed::bnhd(a.data(), 1, N, 1, 1), heed::bnhd(x.data(), 1, N, 1, 1),
                      heed::bnhd(h.data(), 1, N, 1, 1));
  double exact = 0, error = 0, size = 0, naive_error = 0;
  float naive = 0;
  for (std::size_t t = 0; t < h.size(); ++t) {
    exact = double(a[t]) * exact + double(x[t]);
    naive = a[t] * naive + x[t];
    error = std::max(error, std::abs(double(h[t]) - exact));
    naive_error = std::max(naive_error, std::abs(double(naive) - exact));
    size = std::max(size, std::abs(exact));
  }
  CHECK(error <= 2 * naive_error + 2 * support::epsilon<float>() * size);
}

TEST_CASE("diagonal scan: the same bits for any executor", "[recur][diagonal_scan]") {
  for (seed_t seed : {1u, 2u, 3u, 4u}) {
    scan_problem<float, 1> p(seed, 4000);
    p.N = 0;  // only the views below
    index_t const n = 4000, d = seed % 2 == 0 ? 3 : 40;
    auto const make = [&](double low, double high) {
      auto all = support::guarded<float, 4>({1, n, 1, d}, support::packed<4>({1, n, 1, d}));
      all.fill([&](auto const&) { return float(p.draw.uniform(low, high)); });
      return all;
    };
    auto a = make(0.5, 1), x = make(-1, 1), h = make(0, 1), dh = make(-1, 1), da = make(0, 1),
         dx = make(0, 1);
    auto const run = [&](auto const&... more) {
      heed::diagonal_scan(a.view(), x.view(), h.view(), more...);
      heed::diagonal_scan_backward(a.view(), h.view(), dh.view(), da.view(), dx.view(), more...);
      return std::array{h.values<float>(), da.values<float>(), dx.values<float>()};
    };
    auto const one = run();
    support::threads executor;
    auto const three = run(heed::on{executor});
    for (std::size_t n_ = 0; n_ < 3; ++n_) CHECK(support::same_bits(one[n_], three[n_]));
  }
}

TEST_CASE("diagonal scan: states passed on", "[recur][diagonal_scan]") {
  // Cut anywhere, and step by step, it is the same recurrence.
  support::random draw(11);
  index_t const N = 90, H = 2, D = 13;
  auto const make = [&](double low, double high) {
    auto all = support::guarded<double, 4>({2, N, H, D}, support::packed<4>({2, N, H, D}));
    all.fill([&](auto const&) { return draw.uniform(low, high); });
    return all;
  };
  auto a = make(0, 1), x = make(-1, 1), whole = make(0, 0), parts = make(0, 0), steps = make(0, 0);
  auto state = support::guarded<double, 4>({2, H, 1, D}, support::packed<4>({2, H, 1, D}));
  auto const reset = [&] { state.fill([](auto const&) { return 0.0; }); };
  heed::diagonal_scan(a.view(), x.view(), whole.view());
  reset();
  for (auto [first, count] : {std::pair(0, 31), {31, 0}, {31, 59}})
    heed::diagonal_scan(a.view().slice(1, first, count), x.view().slice(1, first, count),
                        parts.view().slice(1, first, count), heed::state{state.view()});
  reset();
  for (index_t t = 0; t < N; ++t)
    heed::diagonal_scan(a.view().slice(1, t, 1), x.view().slice(1, t, 1),
                        steps.view().slice(1, t, 1), heed::state{state.view()});
  CHECK(support::same_bits(whole.values<double>(), parts.values<double>()));
  CHECK(support::same_bits(whole.values<double>(), steps.values<double>()));
  // In place.
  heed::diagonal_scan(a.view(), x.view(), x.view());
  CHECK(support::same_bits(whole.values<double>(), x.values<double>()));
}

TEST_CASE("diagonal scan: the operator of its segments is associative", "[recur][diagonal_scan]") {
  // (a1, x1) o (a2, x2) = (a1 a2, a2 x1 + x2): a scan of pairs that were joined is every second state.
  support::random draw(12);
  index_t const N = 64;
  std::vector<double> a(N), x(N), h(N), joined_a(N / 2), joined_x(N / 2), joined(N / 2);
  for (double& each : a) each = draw.uniform();
  for (double& each : x) each = draw.normal();
  for (std::size_t t = 0; t < joined_a.size(); ++t) {
    joined_a[t] = a[2 * t] * a[2 * t + 1];
    joined_x[t] = a[2 * t + 1] * x[2 * t] + x[2 * t + 1];
  }
  auto const scan = [](std::vector<double>& f, std::vector<double>& in, std::vector<double>& to) {
    auto const n = static_cast<index_t>(f.size());
    heed::diagonal_scan(heed::bnhd(f.data(), 1, n, 1, 1), heed::bnhd(in.data(), 1, n, 1, 1),
                        heed::bnhd(to.data(), 1, n, 1, 1));
  };
  scan(a, x, h);
  scan(joined_a, joined_x, joined);
  for (std::size_t t = 0; t < joined.size(); ++t)
    CHECK(joined[t] == Approx(h[2 * t + 1]).epsilon(1e-14));
}

TEST_CASE("diagonal scan: std::complex is viewed where it lies", "[recur][diagonal_scan]") {
  support::random draw(13);
  std::vector<std::complex<double>> a(60), x(60), h(60);
  for (auto& each : a) each = std::polar(draw.uniform(), draw.uniform(-3, 3));
  for (auto& each : x) each = {draw.normal(), draw.normal()};
  auto const view = [](std::vector<std::complex<double>>& all) {
    return heed::complex_view(heed::bnhd(all.data(), 1, 20, 1, 3));
  };
  heed::diagonal_scan(view(a), view(x), view(h));
  for (std::size_t d = 0; d < 3; ++d) {
    std::complex<double> state = 0;
    for (std::size_t t = 0; t < 20; ++t) {
      state = a[3 * t + d] * state + x[3 * t + d];
      CHECK(std::abs(h[3 * t + d] - state) < 1e-14);
    }
  }
}

TEST_CASE("diagonal scan: factors that grow do not make a zero state NaN",
          "[recur][diagonal_scan]") {
  index_t const N = 3000;
  std::vector<float> a(N, 2.0f), x(N, 0.0f), h(N, 7.0f);
  heed::diagonal_scan(heed::bnhd(a.data(), 1, N, 1, 1), heed::bnhd(x.data(), 1, N, 1, 1),
                      heed::bnhd(h.data(), 1, N, 1, 1));
  CHECK(h == std::vector<float>(N, 0.0f));
}

TEST_CASE("diagonal scan: what does not fit is refused", "[recur][diagonal_scan]") {
  std::vector<float> numbers(100, 0.25f);
  auto const view = [&](index_t n) { return heed::bnhd(numbers.data(), 2, n, 2, 3); };
  std::vector<index_t> const bounds{0, 4};
  CHECK_THROWS_WITH(heed::diagonal_scan(view(4), view(5), view(5)),
                    "heed: a has shape [2, 4, 2, 3]; expected that of x, [2, 5, 2, 3]");
  CHECK_THROWS_WITH(heed::diagonal_scan(view(4), view(4), view(5)),
                    "heed: h has shape [2, 5, 2, 3]; expected that of x, [2, 4, 2, 3]");
  CHECK_THROWS_WITH(heed::diagonal_scan(view(4), view(4), view(4), heed::in_logs{}),
                    "heed: a holds 0.250000 at [0, 0, 0, 0]; expected log gates of at most 0");
  CHECK_THROWS_WITH(
      heed::diagonal_scan(view(4), view(4), view(4),
                          heed::state{heed::bnhd(numbers.data(), 2, 2, 3, 1)}),
      "heed: state has shape [2, 2, 3, 1]; expected [2, 2, 1, 3] (sequence, head, state row, dim)");
  CHECK_THROWS_WITH(heed::diagonal_scan(view(4), view(4), view(4), heed::documents{bounds, bounds}),
                    "heed: documents need tensors of one batch entry; these have 2");
  CHECK_THROWS_WITH(heed::diagonal_scan_backward(view(4), view(4), view(4), view(3), view(4)),
                    "heed: da has shape [2, 3, 2, 3]; expected that of h, [2, 4, 2, 3]");
  CHECK(numbers == std::vector<float>(100, 0.25f));
}
