#include "reference/memories.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/linear.hpp>
#include <heed/mechanism/memora.hpp>
#include <heed/mechanism/moneta.hpp>
#include <heed/mechanism/yaad.hpp>

#include <array>
#include <limits>
#include <thread>

// Moneta, Yaad and Memora against their definition.

using heed::index_t;
using heed::tensor_view;
using reference::miras;
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

enum class kind { moneta, yaad, memora };

template <class T>
struct miras_problem {
  using compute = heed::compute_type<T>;
  using golden = std::conditional_t<std::is_same_v<compute, double>, long double, double>;

  support::random draw;
  kind what;
  index_t B, N, M, H, group, D, E, rates;
  bool packed;
  miras definition;
  heed::moneta_options moneta;
  heed::yaad_options yaad;
  heed::memora_options memora;
  std::vector<index_t> cu_rows{0}, cu_keys{0};
  guarded<T, 4> query, key, value, out, dout, dquery, dkey, dvalue, rate, drate;
  guarded<T, 3> retention, threshold, dretention, dthreshold;
  guarded<compute, 4> initial, final, dfinal, dinitial;

  /// With `gradients`, objectives whose slope is not too steep at 0, and memories that hardly pass near 0, where Moneta's
  /// norm makes any error large.
  miras_problem(kind k, seed_t seed, bool gradients = false) : draw(seed), what(k) {
    index_t const least = k == kind::moneta ? 4 : 1;
    bool const long_one = draw.one_in(8);
    packed = draw.one_in(4);
    B = packed ? 1 : draw.between(1, 2);
    M = long_one ? draw.between(60, 150) : draw.between(0, 20);
    N = draw.one_in(3) ? draw.between(0, 20) : M;
    H = draw.between(1, 2);
    group = draw.between(1, 2);
    D = draw.between(least, long_one ? least + 4 : 17);
    E = draw.between(least, long_one ? least + 4 : 17);
    index_t const chunk = draw.one_of(std::array<index_t, 7>{1, 1, 2, 5, 16, 70, 1000});
    definition.chunk = moneta.chunk = yaad.chunk = memora.chunk = chunk;
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
    double const root = 1 / std::sqrt(static_cast<double>(D));
    query = normal<T, 4>({B, N, H * group, D}, 1);
    key = normal<T, 4>({B, M, H, D}, root);
    value = normal<T, 4>({B, M, H, E}, 1);
    out = normal<T, 4>({B, N, H * group, E}, 1);
    dout = normal<T, 4>({B, N, H * group, E}, 1);
    dquery = normal<T, 4>({B, N, H * group, D}, 1);
    dkey = normal<T, 4>({B, M, H, D}, 1);
    dvalue = normal<T, 4>({B, M, H, E}, 1);
    rates = draw.one_in(2) ? 1 : E;
    // Stale gradients add up over a chunk, so that they are slower there.
    double const most = 0.5 / static_cast<double>(std::min(chunk, M + 1));
    rate = uniform<4>({B, M, H, rates}, 0, std::min(what == kind::moneta ? 0.05 : 0.2, 2 * most));
    drate = uniform<4>({B, M, H, rates}, 0, 1);
    retention = uniform<3>({B, M, H}, 1 - std::min(0.4, 2.0 / static_cast<double>(M + 1)), 1);
    threshold = uniform<3>({B, M, H}, 0.1, 4);
    dretention = uniform<3>({B, M, H}, 0, 1);
    dthreshold = uniform<3>({B, M, H}, 0, 1);
    for (auto* each : {&initial, &final, &dfinal, &dinitial})
      *each = normal<compute, 4>({sequences, H, D, E}, root);
    choose(gradients);
  }

  void choose(bool gradients) {
    if (what == kind::moneta) {
      moneta.p = definition.p = gradients ? draw.one_of(std::array{2.0, 3.0, 2.5})
                                          : draw.one_of(std::array{2.0, 3.0, 1.5, 2.5});
      moneta.q = definition.q = draw.one_of(std::array{4.0, 2.0, 3.0, 2.7});
      moneta.smooth = draw.one_in(3);
      moneta.exact = definition.exact = draw.one_in(2);
      definition.error = moneta.smooth ? miras::smooth_power : miras::power;
      definition.read = miras::norm;
    } else if (what == kind::yaad) {
      yaad.beyond = draw.one_of(
          std::array{heed::yaad_beyond::sign, heed::yaad_beyond::unit, heed::yaad_beyond::each});
      definition.error = yaad.beyond == heed::yaad_beyond::sign   ? miras::huber
                         : yaad.beyond == heed::yaad_beyond::unit ? miras::huber_unit
                                                                  : miras::huber_each;
    } else {
      memora.total = definition.total = draw.one_of(std::array{1.0, 7.0});
      memora.each_channel = draw.one_in(2);
      definition.read = memora.each_channel ? miras::softmax_rows : miras::softmax;
    }
  }

  template <class X, int Rank>
  guarded<X, Rank> normal(support::extents_of<Rank> const& extents, double spread) {
    guarded<X, Rank> all(extents, support::random_layout<Rank>(draw, extents, false));
    all.fill([&](auto const&) { return support::convert<X>(spread * draw.normal()); });
    all.remember();
    return all;
  }
  template <int Rank>
  guarded<T, Rank> uniform(support::extents_of<Rank> const& extents, double low, double high) {
    guarded<T, Rank> all(extents, support::random_layout<Rank>(draw, extents, false));
    all.fill([&](auto const&) { return support::convert<T>(draw.uniform(low, high)); });
    all.remember();
    return all;
  }

  heed::miras_gates<T> gates(bool gradients) {
    if (gradients) return {retention.view(), rate.view(), dretention.view(), drate.view()};
    return {retention.view(), rate.view()};
  }
  heed::yaad_threshold<T> thresholds() { return {threshold.view(), dthreshold.view()}; }

  void forward() {
    auto const run = [&](auto const&... all) {
      auto const q = std::as_const(query).view();
      auto const k = std::as_const(key).view(), v = std::as_const(value).view();
      if (what == kind::moneta)
        heed::moneta(q, k, v, out.view(), gates(false), moneta, all...);
      else if (what == kind::yaad)
        heed::yaad(q, k, v, out.view(), gates(false), thresholds(), yaad, all...);
      else
        heed::memora(q, k, v, out.view(), gates(false), memora, all...);
    };
    heed::initial_state const start(std::as_const(initial).view());
    heed::final_state const end{final.view()};
    if (packed)
      run(start, end, heed::documents{cu_rows, cu_keys});
    else
      run(start, end);
  }
  void backward() {
    auto const run = [&](auto const&... all) {
      auto const q = std::as_const(query).view();
      auto const k = std::as_const(key).view(), v = std::as_const(value).view(),
                 d = std::as_const(dout).view();
      auto const dq = dquery.view(), dk = dkey.view(), dv = dvalue.view();
      if (what == kind::moneta)
        heed::moneta_backward(q, k, v, d, dq, dk, dv, gates(true), moneta, all...);
      else if (what == kind::yaad)
        heed::yaad_backward(q, k, v, d, dq, dk, dv, gates(true), thresholds(), yaad, all...);
      else
        heed::memora_backward(q, k, v, d, dq, dk, dv, gates(true), memora, all...);
    };
    heed::initial_state const start(std::as_const(initial).view(), dinitial.view());
    heed::final_state_gradient const end(std::as_const(dfinal).view());
    if (packed)
      run(start, end, heed::documents{cu_rows, cu_keys});
    else
      run(start, end);
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
    return {query.template values<U>(),  key.template values<U>(),  value.template values<U>(),
            with_channel<U>(retention),  rate.template values<U>(), with_channel<U>(threshold),
            initial.template values<U>()};
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
    return reference::memorise(of, sequences(), definition, order);
  }
  template <class U>
  tensors<U> defined_gradients(tensors<U> const& of, reference::summed order = {}) const {
    return reference::gradients_of<U>(
        [&](auto const& given) {
          return reference::memorise(given, sequences(), definition, order);
        },
        of, tensors<U>{dout.template values<U>(), dfinal.template values<U>()});
  }

  std::string compare_forward() {
    auto const exact = defined(inputs<golden>());
    std::vector<tensor<compute, 4>> naive_out, naive_final;
    auto const add = [&](tensors<compute> const& naive) {
      naive_out.push_back(naive[0]);
      naive_final.push_back(naive[1]);
    };
    add(defined(rounded_otherwise()));
    for (auto order : orders) add(defined(inputs<compute>(), order));
    return support::two_times_rule("out", out.template values<golden>(), exact[0], naive_out,
                                   support::epsilon<T>()) +
           support::two_times_rule("final", final.template values<golden>(), exact[1], naive_final,
                                   support::epsilon<compute>()) +
           (out.untouched_outside() && final.untouched_outside() ? ""
                                                                 : "memory outside was written\n") +
           (initial.untouched() ? "" : "the initial state was written\n");
  }
  std::string compare_backward() {
    auto const exact = defined_gradients(inputs<golden>());
    std::vector<tensors<compute>> naive{defined_gradients(rounded_otherwise())};
    for (auto order : orders) naive.push_back(defined_gradients(inputs<compute>(), order));
    auto const rule = [&](char const* name, auto const& got, std::size_t n) {
      std::vector<tensor<compute, 4>> all;
      for (auto const& each : naive) all.push_back(each[n]);
      return support::two_times_rule(name, got, exact[n], all, support::epsilon<T>());
    };
    return rule("dquery", dquery.template values<golden>(), 0) +
           rule("dkey", dkey.template values<golden>(), 1) +
           rule("dvalue", dvalue.template values<golden>(), 2) +
           rule("dretention", with_channel<golden>(dretention), 3) +
           rule("drate", drate.template values<golden>(), 4) +
           (what == kind::yaad ? rule("dthreshold", with_channel<golden>(dthreshold), 5) : "") +
           rule("dinitial", dinitial.template values<golden>(), 6);
  }
  std::string with_shape(std::string const& complaint) const {
    if (complaint.empty()) return complaint;
    return complaint + "B " + std::to_string(B) + " N " + std::to_string(N) + " M " +
           std::to_string(M) + " heads " + std::to_string(H) + " x " + std::to_string(group) +
           " D " + std::to_string(D) + " E " + std::to_string(E) + " chunk " +
           std::to_string(definition.chunk) + " rates " + std::to_string(rates) + " p " +
           std::to_string(definition.p) + " q " + std::to_string(definition.q) + " smooth " +
           std::to_string(moneta.smooth) + " exact " + std::to_string(definition.exact) +
           " beyond " + std::to_string(static_cast<int>(yaad.beyond)) +
           (packed ? " packed\n" : "\n");
  }
};

template <class T>
void check_forward(char const* name, kind what) {
  for_each_seed(name, 300, [&](seed_t seed) {
    miras_problem<T> p(what, seed);
    p.forward();
    return p.with_shape(p.compare_forward());
  });
}
template <class T>
void check_backward(char const* name, kind what, int waived = 0) {
  for_each_seed(
      name, 150,
      [&](seed_t seed) {
        miras_problem<T> p(what, seed, true);
        p.backward();
        return p.with_shape(p.compare_backward());
      },
      waived);
}

}  // namespace

TEMPLATE_TEST_CASE("moneta: the definition", "[mechanism][miras]", double, float) {
  check_forward<TestType>("moneta", kind::moneta);
}
TEMPLATE_TEST_CASE("yaad: the definition", "[mechanism][miras]", double, float) {
  check_forward<TestType>("yaad", kind::yaad);
}
TEMPLATE_TEST_CASE("memora: the definition", "[mechanism][miras]", double, float) {
  check_forward<TestType>("memora", kind::memora);
}
TEMPLATE_TEST_CASE("moneta: the gradient", "[mechanism][miras]", double, float) {
  check_backward<TestType>("moneta backward", kind::moneta, support::luck);
}
TEMPLATE_TEST_CASE("yaad: the gradient", "[mechanism][miras]", double, float) {
  check_backward<TestType>("yaad backward", kind::yaad, support::luck);
}
TEMPLATE_TEST_CASE("memora: the gradient", "[mechanism][miras]", double, float) {
  check_backward<TestType>("memora backward", kind::memora, support::luck);
}

namespace {

/// One token after the other through the step, in double.
struct decoded {
  tensor<double, 4> out;
  tensor<double, 4> state;
};

template <class Step>
decoded decode(miras_problem<double>& p, index_t tokens, Step step) {
  auto state =
      support::guarded<double, 4>(p.initial.extents(), support::packed<4>(p.initial.extents()));
  auto reference =
      support::guarded<double, 4>(p.initial.extents(), support::packed<4>(p.initial.extents()));
  auto const start = p.initial.values<double>();
  std::size_t n = 0;
  state.fill([&](auto const&) { return start.values[n++]; });
  heed::miras_state<double> carried{state.view(), reference.view()};
  for (index_t t = 0; t < p.M; t += tokens) {
    index_t const count = std::min(tokens, p.M - t);
    auto const cut = [&](auto const& view) { return view.slice(1, t, count); };
    heed::miras_gates<double> const gates(tensor_view<double const, 3>(cut(p.retention.view())),
                                          cut(p.rate.view()));
    step(cut(std::as_const(p.query).view()), cut(std::as_const(p.key).view()),
         cut(std::as_const(p.value).view()), cut(p.out.view()), gates,
         heed::yaad_threshold<double>(cut(p.threshold.view())), carried);
  }
  return {p.out.values<double>(), state.values<double>()};
}

}  // namespace

TEST_CASE("miras: steps of any size are the whole", "[mechanism][miras]") {
  for (kind const what : {kind::moneta, kind::yaad, kind::memora})
    for_each_seed("miras steps", 60, [&](seed_t seed) -> std::string {
      miras_problem<double> p(what, seed);
      if (p.packed || p.N != p.M) return "";
      p.forward();
      auto const out = p.out.values<double>(), final = p.final.values<double>();
      double size = 1;
      for (auto const* each : {&out, &final})
        for (double x : each->values) size = std::max(size, std::abs(static_cast<double>(x)));
      for (index_t tokens : {index_t{1}, index_t{3}, p.M + 1}) {
        auto const got = decode(p, tokens,
                                [&](auto q, auto k, auto v, auto o, auto const& gates,
                                    auto const& threshold, auto& carried) {
                                  if (what == kind::moneta)
                                    heed::moneta_step(q, k, v, o, gates, p.moneta, carried);
                                  else if (what == kind::yaad)
                                    heed::yaad_step(q, k, v, o, gates, threshold, p.yaad, carried);
                                  else
                                    heed::memora_step(q, k, v, o, gates, p.memora, carried);
                                });
        double largest = 0;
        for (std::size_t n = 0; n < out.values.size(); ++n)
          largest = std::max(largest, std::abs(static_cast<double>(got.out.values[n]) -
                                               static_cast<double>(out.values[n])));
        for (std::size_t n = 0; n < final.values.size(); ++n)
          largest = std::max(largest, std::abs(static_cast<double>(got.state.values[n]) -
                                               static_cast<double>(final.values[n])));
        if (!(largest <= 1e-10 * size))
          return p.with_shape("steps of " + std::to_string(tokens) + " are off by " +
                              std::to_string(largest) + "\n");
      }
      return "";
    });
}

namespace {

/// Plain float tensors of a call with as many rows as keys.
struct plain_call {
  support::random draw{7};
  index_t B = 2, N, H = 2, D, E;
  guarded<double, 4> query, key, value, out, other, state, rate;
  guarded<double, 3> retention, threshold, log_gate, beta;

  plain_call(index_t n, index_t d, index_t e) : N(n), D(d), E(e) {
    auto const normal = [&](index_t dim, double spread) {
      return support::normal<double>(draw, {B, N, H, dim}, spread);
    };
    query = normal(D, 1);
    key = normal(D, 0.5 / std::sqrt(static_cast<double>(D)));
    value = normal(E, 1);
    out = normal(E, 1);
    other = normal(E, 1);
    state = support::normal<double>(draw, {B, H, D, E}, 0.2);
    rate = uniform<4>({B, N, H, 1}, 0, 1);
    retention = uniform<3>({B, N, H}, 0.5, 1);
    threshold = uniform<3>({B, N, H}, 0, 1);
    log_gate = uniform<3>({B, N, H}, 0, 1);
    beta = uniform<3>({B, N, H}, 0, 1);
  }
  template <int Rank>
  guarded<double, Rank> uniform(support::extents_of<Rank> const& extents, double low, double high) {
    auto all = support::blank<double, Rank>(extents);
    all.fill([&](auto const&) { return draw.uniform(low, high); });
    return all;
  }
  heed::miras_gates<double> gates() { return {retention.view(), rate.view()}; }

  /// The gated delta rule with rates factor eta / alpha, values alpha v and gates log alpha.
  tensor<double, 4> delta_rule(double factor) {
    auto scaled = support::blank<double, 4>(value.extents());
    for (index_t b = 0; b < B; ++b)
      for (index_t i = 0; i < N; ++i)
        for (index_t h = 0; h < H; ++h) {
          double const alpha = retention.view()(b, i, h);
          beta.view()(b, i, h) = factor * rate.view()(b, i, h, 0) / alpha;
          log_gate.view()(b, i, h) = std::log(alpha);
          for (index_t e = 0; e < E; ++e)
            scaled.view()(b, i, h, e) = alpha * value.view()(b, i, h, e);
        }
    heed::linear_attention(query.view(), key.view(), scaled.view(), other.view(),
                           heed::decay(log_gate.view()), heed::delta(beta.view()),
                           heed::initial_state(state.view()));
    return other.values<double>();
  }
  double difference_to(tensor<double, 4> const& expected) {
    return support::difference(out.values<double>(), expected);
  }
};

}  // namespace

TEST_CASE("miras: what is the gated delta rule", "[mechanism][miras]") {
  plain_call c(37, 9, 11);
  heed::initial_state const start(c.state.view());
  heed::moneta(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(),
               {.p = 2, .q = 2}, start);
  CHECK(c.difference_to(c.delta_rule(2)) < 1e-12);

  c.threshold.fill([](auto const&) { return std::numeric_limits<double>::infinity(); });
  for (auto const beyond :
       {heed::yaad_beyond::sign, heed::yaad_beyond::unit, heed::yaad_beyond::each}) {
    heed::yaad(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(),
               heed::yaad_threshold(c.threshold.view()), {.beyond = beyond}, start);
    CHECK(c.difference_to(c.delta_rule(1)) < 1e-12);
  }
}

TEST_CASE("yaad: thresholds", "[mechanism][miras]") {
  // A first token and no state: e = -v.
  plain_call c(1, 2, 3);
  auto const run = [&](heed::yaad_beyond beyond) {
    for (index_t e = 0; e < 3; ++e) c.value.view()(0, 0, 0, e) = e == 0 ? 3 : e == 1 ? -4 : 0;
    c.threshold.fill([](auto const&) { return 2.0; });
    c.rate.fill([](auto const&) { return 1.0; });
    c.query.fill([](auto const& at) { return at[3] == 0 ? 1.0 : 0.0; });
    c.key.fill([](auto const& at) { return at[3] == 0 ? 1.0 : 0.0; });
    heed::yaad(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(),
               heed::yaad_threshold(c.threshold.view()), {.beyond = beyond});
    return std::array{c.out.view()(0, 0, 0, 0), c.out.view()(0, 0, 0, 1), c.out.view()(0, 0, 0, 2)};
  };
  CHECK(run(heed::yaad_beyond::sign) == std::array{2.0, -2.0, 0.0});
  auto const unit = run(heed::yaad_beyond::unit);
  CHECK(unit[0] == Approx(1.2));
  CHECK(unit[1] == Approx(-1.6));
  CHECK(unit[2] == 0);
  CHECK(run(heed::yaad_beyond::each) == std::array{2.0, -2.0, 0.0});
  c.value.view()(0, 0, 0, 0) = 1;
  heed::yaad(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(),
             heed::yaad_threshold(c.threshold.view()), {.beyond = heed::yaad_beyond::each});
  CHECK(c.out.view()(0, 0, 0, 0) == 1);
}

TEST_CASE("memora: positive entries of a fixed sum, and the form of logarithms",
          "[mechanism][miras]") {
  plain_call c(9, 4, 5);
  auto last = support::blank<double, 4>(c.state.extents());
  for (bool const each_channel : {false, true}) {
    heed::memora(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(),
                 {.total = 3, .each_channel = each_channel}, heed::initial_state(c.state.view()),
                 heed::final_state{last.view()});
    // W <- total Softmax(alpha log W - eta k e^T), kept as weights.
    double largest = 0;
    for (index_t b = 0; b < c.B; ++b)
      for (index_t h = 0; h < c.H; ++h) {
        double w[4][5];
        auto const normalise = [&] {
          for (index_t first = 0; first < (each_channel ? 5 : 1); ++first) {
            double sum = 0;
            for (index_t d = 0; d < 4; ++d)
              for (index_t e = 0; e < 5; ++e)
                if (!each_channel || e == first) sum += w[d][e];
            for (index_t d = 0; d < 4; ++d)
              for (index_t e = 0; e < 5; ++e)
                if (!each_channel || e == first) w[d][e] *= 3 / sum;
          }
        };
        for (index_t d = 0; d < 4; ++d)
          for (index_t e = 0; e < 5; ++e) w[d][e] = std::exp(c.state.view()(b, h, d, e));
        normalise();
        for (index_t t = 0; t < c.N; ++t) {
          double error[5];
          for (index_t e = 0; e < 5; ++e) {
            error[e] = -c.value.view()(b, t, h, e);
            for (index_t d = 0; d < 4; ++d) error[e] += w[d][e] * c.key.view()(b, t, h, d);
          }
          for (index_t d = 0; d < 4; ++d)
            for (index_t e = 0; e < 5; ++e)
              w[d][e] = std::exp(c.retention.view()(b, t, h) * std::log(w[d][e]) -
                                 c.rate.view()(b, t, h, 0) * error[e] * c.key.view()(b, t, h, d));
          normalise();
          double sum = 0;
          for (index_t e = 0; e < 5; ++e) {
            double read = 0;
            for (index_t d = 0; d < 4; ++d) {
              read += w[d][e] * c.query.view()(b, t, h, d);
              sum += w[d][e];
              CHECK(w[d][e] > 0);
            }
            largest = std::max(largest, std::abs(read - c.out.view()(b, t, h, e)));
          }
          CHECK(sum == Approx(each_channel ? 15.0 : 3.0));
        }
      }
    CHECK(largest < 1e-12);
  }
}

TEST_CASE("miras: hazards", "[mechanism][miras]") {
  plain_call c(6, 3, 4);
  // Moneta begins at 0, where its norm is 0; keys of 0 keep it there.
  c.key.fill([](auto const& at) { return at[1] < 3 ? 0.0 : 0.5; });
  heed::moneta(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(), {});
  for (index_t t = 0; t < 3; ++t) CHECK(c.out.view()(0, t, 0, 0) == 0);
  for (double x : c.out.values<double>().values) CHECK(std::isfinite(x));

  // Numbers whose fourth powers leave the range of float, either way.
  for (float const size : {1e-12f, 1e12f}) {
    auto const one = [](index_t dim) { return support::extents_of<4>{1, 1, 1, dim}; };
    auto x = support::blank<float, 4>(one(2)), k = support::blank<float, 4>(one(2)),
         v = support::blank<float, 4>(one(2)), o = support::blank<float, 4>(one(2)),
         state = support::blank<float, 4>({1, 1, 2, 2}), zero = support::blank<float, 4>(one(1));
    auto kept = support::blank<float, 3>({1, 1, 1});
    x.fill([](auto const&) { return 1.0f; });
    k.fill([](auto const&) { return 0.0f; });
    v.fill([](auto const&) { return 0.0f; });
    zero.fill([](auto const&) { return 0.0f; });
    kept.fill([](auto const&) { return 1.0f; });
    state.fill([&](auto const&) { return size; });
    heed::moneta(x.view(), k.view(), v.view(), o.view(),
                 heed::miras_gates<float>(kept.view(), zero.view()), {},
                 heed::initial_state(state.view()));
    // |A|_4 = 4^(1/4) size, so that W = 1 / (2 size).
    CHECK(o.view()(0, 0, 0, 0) == Approx(1 / size));
  }

  // Memora's logits far below 0, and far apart.
  for (double const logit : {-2000.0, 2000.0}) {
    c.state.fill([&](auto const& at) { return at[2] == 0 ? logit : logit - 1000; });
    heed::memora(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(), {},
                 heed::initial_state(c.state.view()));
    for (double x : c.out.values<double>().values) CHECK(std::isfinite(x));
  }
}

TEST_CASE("miras: errors", "[mechanism][miras]") {
  plain_call c(6, 3, 4);
  auto const before = c.out.values<double>();
  auto const run = [&](heed::miras_gates<double> const& gates, heed::moneta_options const& options,
                       auto const&... all) {
    heed::moneta(c.query.view(), c.key.view(), c.value.view(), c.out.view(), gates, options,
                 all...);
  };
  CHECK_THROWS_WITH(run(c.gates(), {.p = 0.5}),
                    "heed: moneta has p = 0.500000 and q = 4.000000; expected both at least 1");
  CHECK_THROWS_WITH(run(c.gates(), {.chunk = 0}),
                    "heed: a memory has chunks of 0 tokens; expected at least 1");
  auto const three = support::blank<double, 3>({2, 5, 2});
  CHECK_THROWS_WITH(run(heed::miras_gates<double>(three.view(), c.rate.view()), {}),
                    "heed: retention has shape [2, 5, 2, 1]; expected [2, 6, 2, 1]");
  auto const state = support::blank<double, 4>({2, 2, 4, 3});
  CHECK_THROWS_WITH(run(c.gates(), {}, heed::initial_state(state.view())),
                    "heed: initial_state has shape [2, 2, 4, 3]; expected [2, 2, 3, 4]");
  c.retention.view()(1, 4, 0) = 1.5;
  CHECK_THROWS_WITH(run(c.gates(), {}),
                    "heed: retention holds 1.500000 at [1, 4, 0, 0]; expected numbers from 0 to 1");
  c.retention.view()(1, 4, 0) = 0.5;
  c.rate.view()(1, 4, 0, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(run(c.gates(), {}),
                    Catch::Matchers::StartsWith("heed: rate holds nan at [1, 4, 0, 0]"));
  c.rate.view()(1, 4, 0, 0) = 0.5;
  CHECK_THROWS_WITH(heed::memora(c.query.view(), c.key.view(), c.value.view(), c.out.view(),
                                 c.gates(), {.total = 0}),
                    "heed: memora has a total of 0.000000; expected above 0");
  heed::miras_state<double> carried{c.state.view(), c.state.view(), 7};
  CHECK_THROWS_WITH(heed::memora_step(c.query.view(), c.key.view(), c.value.view(), c.out.view(),
                                      c.gates(), {.chunk = 4}, carried),
                    "heed: state.absorbed is 7; expected 0 to 3, within a chunk");
  CHECK(support::same_bits(c.out.values<double>(), before));
}

TEST_CASE("miras: the same bits on threads", "[mechanism][miras]") {
  plain_call c(50, 8, 6);
  threads const run_on;
  heed::initial_state const start(c.state.view());
  auto const twice = [&](auto const& call) {
    call(heed::serial{});
    auto const once = c.out.values<double>();
    call(run_on);
    CHECK(support::same_bits(once, c.out.values<double>()));
  };
  twice([&](auto const& where) {
    heed::moneta(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(), {}, start,
                 where);
  });
  twice([&](auto const& where) {
    heed::memora(c.query.view(), c.key.view(), c.value.view(), c.out.view(), c.gates(),
                 {.chunk = 16}, start, where);
  });
}
