#include "support/error_rule.hpp"
#include "support/recurrence_parts.hpp"
#include "support/recurrence_problem.hpp"
#include "support/tensors.hpp"

// What makes other implementations return NaN, or read the future.

using heed::index_t;
using reference::tensor;
using support::blank;
using support::for_each_seed;
using support::guarded;
using support::normal;
using support::recurrence_problem;
using support::seed_t;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

template <int Rank>
bool all_finite(guarded<float, Rank> const& of) {
  for (float each : of.template values<float>().values)
    if (!std::isfinite(each)) return false;
  return true;
}

/// What a problem's calls write is all finite.
std::string complain_about_size(recurrence_problem<float> const& p) {
  std::string which;
  auto const look = [&](char const* name, auto const& of) {
    if (of.view().data() != nullptr && !all_finite(of)) which += std::string(name) + " ";
  };
  look("out", p.out), look("final", p.final), look("dquery", p.dquery), look("dkey", p.dkey);
  look("dvalue", p.dvalue), look("dlog_gate", p.dlog_gate), look("drate", p.drate);
  look("dlog_key_gate", p.dlog_key_gate), look("dlog_value_gate", p.dlog_value_gate);
  look("dinitial", p.dinitial);
  return which.empty() ? "" : which + "not finite\n";
}

}  // namespace

TEST_CASE("recurrence: what is finite gives what is finite", "[recur][hazards]") {
  for_each_seed("recurrence finite", 300, [](seed_t seed) {
    recurrence_problem<float> p(seed);
    // Gates of any size, rates and normalisers as they are.
    auto const gates = [&](auto& of) {
      if (of.view().data() != nullptr)
        of.fill([&](auto const&) {
          return p.draw.one_of(std::array{0.0f, -0.0f, -1e-30f, -1e-3f, -1.0f, -88.0f, -104.0f,
                                          -745.0f, -1e4f, -3e38f, -infinity});
        });
    };
    gates(p.log_gate), gates(p.log_key_gate), gates(p.log_value_gate);
    p.call().forward();
    p.call().backward();
    return p.with_shape(complain_about_size(p));
  });
}

TEST_CASE("recurrence: a cut forgets all that was before", "[recur][hazards]") {
  for_each_seed("recurrence cut", 200, [](seed_t seed) -> std::string {
    recurrence_problem<float> p(seed, {.positions = 120, .steps = true});
    auto const cut = [&](auto& of, index_t t) {
      auto const view = of.view();
      of.fill([&](auto const& at) {
        return at[1] == t ? -infinity : view.data()[support::offset(at, view.strides())];
      });
    };
    guarded<float, 3>* gate = p.log_gate.view().data() ? &p.log_gate : nullptr;
    guarded<float, 4>* key_gate = p.log_key_gate.view().data() ? &p.log_key_gate : nullptr;
    if (p.N < 2 || (!gate && !key_gate)) return {};
    index_t const t = p.draw.between(1, p.N - 1);
    if (gate) cut(*gate, t);
    if (key_gate) cut(*key_gate, t);
    p.call().forward();
    auto const whole = p.out.values<float>();
    auto const state = p.final.values<float>();
    // The rest alone, from no state.
    p.initial.fill([](auto const&) { return 0.0f; });
    auto rest = support::tokens_of(p.call(), t, p.N - t, t, p.N - t);
    rest.forward();
    double largest = 0;
    for (float each : whole.values)
      largest = std::max(largest, std::abs(static_cast<double>(each)));
    return p.with_shape(
        (support::difference(p.out.values<float>(), whole) <= 1e-5 * largest
             ? ""
             : "rows after the cut differ\n") +
        std::string(support::difference(p.final.values<float>(), state) <= 1e-5 * (1 + largest)
                        ? ""
                        : "the state differs\n"));
  });
}

TEST_CASE("recurrence: rows without weights are 0", "[recur][hazards]") {
  support::random draw(1);
  // Queries whose features are all 0, and keys likewise.
  for (bool of_query : {true, false})
    for (double epsilon : {0.0, 1e-6}) {
      auto q = normal(draw, {1, 50, 2, 9}), k = normal(draw, {1, 50, 2, 9}),
           v = normal(draw, {1, 50, 2, 7});
      auto dout = normal(draw, {1, 50, 2, 7}), out = blank<float, 4>({1, 50, 2, 7});
      auto dq = blank<float, 4>(q.extents()), dk = blank<float, 4>(k.extents()),
           dv = blank<float, 4>(v.extents());
      auto start = blank<float, 4>({1, 2, 9, 8}), end = blank<float, 4>({1, 2, 9, 8});
      auto dstart = blank<float, 4>({1, 2, 9, 8}), dend = blank<float, 4>({1, 2, 9, 8});
      start.fill([](auto const&) { return 0.0f; });
      dend.fill([](auto const&) { return 0.0f; });
      auto& without = of_query ? q : k;
      auto const view = without.view();
      without.fill([&](auto const& at) {
        float const x = view(at[0], at[1], at[2], at[3]);
        return at[1] < 30 ? -std::abs(x) : x;
      });
      support::recurrence_call<float> c;
      c.query = std::as_const(q).view();
      c.key = std::as_const(k).view();
      c.value = std::as_const(v).view();
      c.out = out.view();
      c.map = support::test_features{support::test_features::relu_squared};
      c.normaliser = heed::normalised{.epsilon = epsilon};
      c.initial = std::as_const(start).view();
      c.final = end.view();
      c.dout = std::as_const(dout).view();
      c.dquery = dq.view();
      c.dkey = dk.view();
      c.dvalue = dv.view();
      c.dinitial = dstart.view();
      c.dfinal = std::as_const(dend).view();
      c.forward();
      c.backward();
      CHECK((all_finite(out) && all_finite(dq) && all_finite(dk) && all_finite(dv) &&
             all_finite(dstart)));
      auto const rows = out.values<float>();
      for (index_t i = 0; i < 30; ++i)
        for (index_t e = 0; e < 7; ++e) CHECK(rows(0, i, 1, e) == 0);
    }
}

TEST_CASE("recurrence: what is poisoned later does not reach what is before", "[recur][hazards]") {
  for_each_seed("recurrence poison", 600, [](seed_t seed) -> std::string {
    recurrence_problem<float> p(seed, {.positions = 150, .steps = true, .plain = true});
    if (p.N < 1 || p.B < 1) return {};
    p.call().forward();
    auto const clean = p.out.values<float>();
    index_t const t = p.draw.between(0, p.N - 1);
    float const poison = p.draw.one_of(std::array{not_a_number, infinity, -infinity, 1e30f});
    index_t const which = p.draw.between(0, 2);
    auto& poisoned = which == 0 ? p.key : which == 1 ? p.value : p.query;
    index_t const head = p.draw.between(0, poisoned.extents()[2] - 1),
                  column = p.draw.between(0, poisoned.extents()[3] - 1);
    poisoned.view()(0, t, head, column) = poison;
    p.call().forward();
    auto const out = p.out.values<float>();
    index_t const group = p.H / poisoned.extents()[2];
    bool met = false;
    for (index_t b = 0; b < p.B; ++b)
      for (index_t i = 0; i < p.N; ++i)
        for (index_t h = 0; h < p.H; ++h)
          for (index_t e = 0; e < p.E; ++e) {
            // A value's column is its own; a query's row is its own; a state has all columns of a key.
            bool const reached = b == 0 && h / group == head && (which == 2 ? i == t : i >= t) &&
                                 (which != 1 || e == column);
            float const was = clean(b, i, h, e), is = out(b, i, h, e);
            if (reached) {
              met = met || std::isnan(is);
            } else if (std::memcmp(&was, &is, sizeof(float)) != 0) {
              return p.with_shape("a number changed that does not meet the poison " +
                                  std::to_string(poison) + " of " +
                                  (which == 0   ? "key "
                                   : which == 1 ? "value "
                                                : "query ") +
                                  std::to_string(t) + " head " + std::to_string(head) + " column " +
                                  std::to_string(column) + ": row " + std::to_string(i) + " head " +
                                  std::to_string(h) + " column " + std::to_string(e) + " was " +
                                  std::to_string(was) + ", is " + std::to_string(is) + "\n");
            }
          }
    bool const shows = std::isnan(poison) &&
                       p.definition.rule == reference::update_rule::additive &&
                       !p.definition.map.map && p.definition.scale != 0;
    return met || !shows ? "" : p.with_shape("NaN was lost\n");
  });
}

TEST_CASE("recurrence: a poisoned gradient does not reach what is later", "[recur][hazards]") {
  for_each_seed("recurrence poisoned gradient", 400, [](seed_t seed) -> std::string {
    recurrence_problem<float> p(seed, {.positions = 150, .steps = true, .plain = true});
    if (p.N < 1 || p.B < 1) return {};
    auto const gradients = [&] {
      p.call().forward();
      p.call().backward();
      std::vector<std::pair<std::string, tensor<float, 4>>> all{
          {"dquery", p.dquery.values<float>()},
          {"dkey", p.dkey.values<float>()},
          {"dvalue", p.dvalue.values<float>()},
          {"dlog_key_gate", p.dlog_key_gate.values<float>()},
          {"dlog_value_gate", p.dlog_value_gate.values<float>()}};
      for (auto const& [name, of_tokens] : {std::pair{"dlog_gate", p.dlog_gate.values<float>()},
                                            {"drate", p.drate.values<float>()}}) {
        tensor<float, 4> one({of_tokens.extent(0), of_tokens.extent(1), of_tokens.extent(2), 1});
        one.values = of_tokens.values;
        all.emplace_back(name, one);
      }
      return all;
    };
    auto const clean = gradients();
    index_t const t = p.draw.between(0, p.N - 1), head = p.draw.between(0, p.H - 1);
    p.dout.view()(0, t, head, p.draw.between(0, p.E - 1)) =
        p.draw.one_of(std::array{not_a_number, infinity, -infinity});
    auto const poisoned = gradients();
    for (std::size_t n = 0; n < clean.size(); ++n) {
      auto const& [name, before] = clean[n];
      auto const& after = poisoned[n].second;
      index_t const group = std::max<index_t>(1, p.H / std::max<index_t>(before.extent(2), 1));
      for (index_t b = 0; b < before.extent(0); ++b)
        for (index_t i = 0; i < before.extent(1); ++i)
          for (index_t h = 0; h < before.extent(2); ++h)
            for (index_t d = 0; d < before.extent(3); ++d) {
              // A row of queries is its own; keys, gates and rates are met by all later rows.
              bool const reached = b == 0 && h == head / group && (n == 0 ? i == t : i <= t);
              float const was = before(b, i, h, d), is = after(b, i, h, d);
              if (!reached && std::memcmp(&was, &is, sizeof(float)) != 0)
                return p.with_shape(name + " changed at token " + std::to_string(i) +
                                    " from the gradient of row " + std::to_string(t) + "\n");
            }
    }
    return {};
  });
}

TEST_CASE("recurrence: NaN anywhere does no harm to memory", "[recur][hazards]") {
  for_each_seed("recurrence nan", 300, [](seed_t seed) {
    recurrence_problem<float> p(seed);
    auto const poison = [&](auto& of) {
      auto const view = of.view();
      if (view.data() != nullptr && p.draw.one_in(2))
        of.fill([&](auto const& at) {
          return p.draw.one_in(20) ? not_a_number
                                   : view.data()[support::offset(at, view.strides())];
        });
    };
    poison(p.query), poison(p.key), poison(p.value), poison(p.dout), poison(p.initial);
    poison(p.dfinal);
    p.remember();
    p.call().forward();
    p.call().backward();
    return p.with_shape(p.complain_about_memory());
  });
}

TEST_CASE("recurrence: without tokens, heads or dimensions", "[recur][hazards]") {
  for (auto const& [B, N, M, H, D, E] : {std::array<index_t, 6>{1, 0, 0, 1, 4, 4},
                                         {1, 5, 0, 2, 4, 4},
                                         {1, 0, 5, 2, 4, 4},
                                         {0, 5, 5, 2, 4, 4},
                                         {2, 5, 5, 2, 0, 4},
                                         {2, 5, 5, 2, 4, 0},
                                         {1, 5, 7, 2, 0, 0}}) {
    CAPTURE(B, N, M, H, D, E);
    support::random draw(1);
    auto q = normal(draw, {B, N, H, D}), k = normal(draw, {B, M, H, D}),
         v = normal(draw, {B, M, H, E}), dout = normal(draw, {B, N, H, E});
    auto start = normal(draw, {B, H, D, E}), dend = normal(draw, {B, H, D, E});
    auto out = blank<float, 4>({B, N, H, E}), dq = blank<float, 4>(q.extents()),
         dk = blank<float, 4>(k.extents()), dv = blank<float, 4>(v.extents()),
         end = blank<float, 4>(start.extents()), dstart = blank<float, 4>(start.extents());
    auto gate = blank<float, 3>({B, M, H}), dgate = blank<float, 3>({B, M, H});
    gate.fill([](auto const&) { return -0.5f; });
    for (bool fades : {false, true}) {
      support::recurrence_call<float> c;
      c.query = std::as_const(q).view();
      c.key = std::as_const(k).view();
      c.value = std::as_const(v).view();
      c.out = out.view();
      c.initial = std::as_const(start).view();
      c.final = end.view();
      c.dout = std::as_const(dout).view();
      c.dquery = dq.view();
      c.dkey = dk.view();
      c.dvalue = dv.view();
      c.dinitial = dstart.view();
      c.dfinal = std::as_const(dend).view();
      if (fades) c.log_gate = std::as_const(gate).view(), c.dlog_gate = dgate.view();
      c.forward();
      c.backward();
      CHECK((all_finite(out) && all_finite(dq) && all_finite(dk) && all_finite(dv) &&
             all_finite(end) && all_finite(dstart) && (!fades || all_finite(dgate))));
      if (M == 0) {
        // Nothing fades: the state is what it was.
        CHECK(support::same_bits(end.values<float>(), start.values<float>()));
      }
    }
  }
}

TEST_CASE("recurrence: a chunk longer than the sequence", "[recur][hazards]") {
  support::random draw(2);
  for (index_t N : {1, 3, 17}) {
    auto const q = normal(draw, {1, N, 1, 16}), k = normal(draw, {1, N, 1, 16}),
               v = normal(draw, {1, N, 1, 16});
    auto out = blank<float, 4>({1, N, 1, 16}), whole = blank<float, 4>({1, N, 1, 16});
    support::recurrence_call<float> c;
    c.query = q.view();
    c.key = k.view();
    c.value = v.view();
    c.out = out.view();
    c.chunk = 4096;
    c.forward();
    c.out = whole.view();
    c.chunk = N;
    c.forward();
    CHECK(support::same_bits(out.values<float>(), whole.values<float>()));
  }
}

TEST_CASE("recurrence: keys that no head reads move the state", "[recur][hazards]") {
  index_t const tokens = 70, heads = 2, dim = 3, columns = 4;
  support::random draw(3);
  auto const k = normal(draw, {1, tokens, heads, dim}),
             v = normal(draw, {1, tokens, heads, columns}),
             dend = normal(draw, {1, dim, heads, columns});
  for (bool dense : {false, true}) {
    auto const run = [&](index_t readers, index_t queries) {
      auto const q = normal(draw, {1, tokens, queries, dim});
      auto dout = blank<float, 4>({1, tokens, readers, columns});
      dout.fill([](auto const&) { return 0.0f; });
      auto out = blank<float, 4>({1, tokens, readers, columns}),
           dq = blank<float, 4>({1, tokens, queries, dim});
      auto end = blank<float, 4>({1, dim, heads, columns});
      auto dk = blank<float, 4>({1, tokens, heads, dim}),
           dv = blank<float, 4>({1, tokens, heads, columns});
      support::recurrence_call<float> c;
      c.query = q.view(), c.key = k.view(), c.value = v.view();
      c.out = out.view(), c.dout = std::as_const(dout).view();
      c.final = end.view(), c.dfinal = dend.view();
      c.dquery = dq.view(), c.dkey = dk.view(), c.dvalue = dv.view();
      c.dense = dense;
      c.forward();
      c.backward();
      // Queries of no head have no part in anything.
      if (readers == 0)
        CHECK(std::ranges::count(dq.values<float>().values, 0.0f) == dq.view().size());
      return std::array{end.values<float>(), dk.values<float>(), dv.values<float>()};
    };
    auto const read = run(heads, heads);
    for (index_t queries : {0, 1, 2}) {
      auto const alone = run(0, queries);
      for (std::size_t i = 0; i < alone.size(); ++i) CHECK(support::same_bits(alone[i], read[i]));
    }
  }
}

TEST_CASE("recurrence: a step that no head reads moves the state", "[recur][hazards]") {
  // Whole registers, whose state is worked on where it lies, and others.
  for (index_t columns : {64, 5}) {
    support::random draw(4);
    auto const k = normal(draw, {1, 1, 2, 3}), v = normal(draw, {1, 1, 2, columns}),
               before = normal(draw, {1, 2, 3, columns});
    auto const run = [&](index_t readers) {
      auto const q = normal(draw, {1, 1, readers, 3});
      auto out = blank<float, 4>({1, 1, readers, columns});
      auto after = blank<float, 4>({1, 2, 3, columns});
      after.fill([&](auto const& at) { return before.view()(at[0], at[1], at[2], at[3]); });
      support::recurrence_call<float> c;
      c.query = q.view(), c.key = k.view(), c.value = v.view();
      c.out = out.view();
      c.step(after.view());
      return after.values<float>();
    };
    CHECK(support::same_bits(run(0), run(2)));
  }
}
