#include "support/problem.hpp"

// NaN and infinity in a key or value reach exactly the rows that meet it. Every other row has the
// bits it has without them, also where it shares a tile with rows that do.

using heed::index_t;
using support::for_each_seed;
using support::problem;
using support::seed_t;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// Which rows meet `key` of sequence `batch`, in every head; [batch, head, row].
template <class Problem>
reference::tensor<char, 3> rows_that_meet(Problem const& p, index_t batch, index_t key) {
  reference::tensor<char, 3> meets({p.B, p.H, p.N});
  auto const q = p.query.template values<double>();
  auto const k = p.key.template values<double>();
  reference::for_each_row(p.B, p.N, p.M, p.H, p.definition, [&](reference::row const& r) {
    index_t const j = key - r.first_key;
    if (r.batch != batch || j < 0 || j >= r.keys || !reference::kept(p.definition, r, j)) return;
    double const s = reference::score_steps(q, k, p.definition, r, j).back();
    meets(r.batch, r.head, r.index) = s != -std::numeric_limits<double>::infinity();
  });
  return meets;
}

template <class Problem, class... Ingredients>
std::string poison_one_key(Problem& p, std::tuple<Ingredients...> const& ingredients) {
  if (p.B == 0 || p.M == 0) return {};
  index_t const batch = p.draw.between(0, p.B - 1), key = p.draw.between(0, p.M - 1);
  auto const meets = rows_that_meet(p, batch, key);
  auto const run = [&] {
    std::apply(
        [&](auto const&... each) {
          heed::attention(p.query.view(), p.key.view(), p.value.view(), p.out.view(),
                          heed::lse_into{p.lse.view()}, each...);
        },
        ingredients);
    return std::pair{p.out.template values<float>(), p.lse.template values<float>()};
  };
  auto const [clean, clean_lse] = run();
  bool const in_key = p.draw.one_in(2);
  float const poison = p.draw.one_of(std::array{not_a_number, not_a_number, infinity, 1e30f});
  auto& poisoned = in_key ? p.key : p.value;
  auto const view = poisoned.view();
  for (index_t h = 0; h < view.extent(2); ++h)
    for (index_t d = 0; d < view.extent(3); ++d) view(batch, key, h, d) = poison;
  auto const [out, lse] = run();

  std::string complaint;
  for (index_t b = 0; b < p.B; ++b)
    for (index_t h = 0; h < p.H; ++h)
      for (index_t i = 0; i < p.N; ++i) {
        std::string const row = " in row " + std::to_string(i) + " of " + std::to_string(p.N) +
                                ", key " + std::to_string(key) + " of " + std::to_string(p.M) +
                                ", poison " + std::to_string(poison) +
                                (in_key ? " in the key\n" : " in the value\n");
        bool const met = meets(b, h, i);
        if (!met &&
            std::memcmp(&lse.values[static_cast<std::size_t>((b * p.H + h) * p.N + i)],
                        &clean_lse.values[static_cast<std::size_t>((b * p.H + h) * p.N + i)],
                        4) != 0)
          return "an lse changed that does not meet the poison" + row;
        for (index_t d = 0; d < p.Dv; ++d) {
          float const before = clean(b, i, h, d), after = out(b, i, h, d);
          if (!met && std::memcmp(&before, &after, sizeof(float)) != 0)
            return "a row changed that does not meet the poison" + row;
          if (met && std::isnan(poison) && !std::isnan(after)) return "NaN was lost" + row;
        }
      }
  return complaint;
}

support::shape_limits const small{.positions = 120, .dim = 20, .pairs_times_dim = 2e5};

// Memory shared between batch entries or heads would carry the poison elsewhere.
template <class T>
void unshare(T& p) {
  auto const own = [&](auto& tensor) {
    auto fresh =
        std::decay_t<decltype(tensor)>(tensor.extents(), support::packed<4>(tensor.extents()));
    auto const from = std::as_const(tensor).view();
    fresh.fill([&](auto const& at) { return from(at[0], at[1], at[2], at[3]); });
    tensor = std::move(fresh);
  };
  own(p.key);
  own(p.value);
}

}  // namespace

TEST_CASE("poison: under a pattern", "[attend][quick]") {
  for_each_seed("poison pattern", 500, [](seed_t seed) {
    problem<float> p(seed, small);
    unshare(p);
    return poison_one_key(p, std::tuple{p.streaming()});
  });
}

TEST_CASE("poison: under a window far from the diagonal, with alibi", "[attend]") {
  for_each_seed("poison window", 500, [](seed_t seed) {
    problem<float> p(seed, small);
    unshare(p);
    return poison_one_key(p, std::tuple{p.query_positions(), p.window(), p.alibi()});
  });
}

TEST_CASE("poison: hidden by a bool bias", "[attend][quick]") {
  for_each_seed("poison bool", 500, [](seed_t seed) {
    problem<float> p(seed, small);
    unshare(p);
    return poison_one_key(p, std::tuple{p.bias<bool>()});
  });
}

TEST_CASE("poison: hidden by -infinity, softcap", "[attend]") {
  for_each_seed("poison bias", 500, [](seed_t seed) {
    problem<float> p(seed, small);
    unshare(p);
    return poison_one_key(p, std::tuple{p.causal(), p.softcap(), p.bias<float>()});
  });
}

TEST_CASE("poison: in padding and in other documents", "[attend][quick]") {
  for_each_seed("poison documents", 500, [](seed_t seed) {
    auto limits = small;
    limits.packed = true;
    problem<float> p(seed, limits);
    unshare(p);
    auto const documents = p.documents();
    return poison_one_key(p, std::tuple{documents, p.key_lengths()});
  });
}

TEST_CASE("poison: in decode", "[attend][quick]") {
  for_each_seed("poison decode", 500, [](seed_t seed) {
    auto limits = small;
    limits.queries = 8;
    limits.positions = 700;
    problem<float> p(seed, limits);
    unshare(p);
    return poison_one_key(p, std::tuple{p.streaming(), p.bias<bool>()});
  });
}

TEST_CASE("poison: keys that nobody meets do not reach a gradient", "[attend][quick]") {
  int poisoned_cases = 0;
  for_each_seed("poison backward", 400, [&](seed_t seed) -> std::string {
    problem<float> p(seed, small);
    unshare(p);
    if (p.B == 0 || p.M == 0 || p.N == 0) return {};
    auto const lengths = p.key_lengths();
    auto const ingredients = std::tuple{p.top_left(), lengths & p.window(), p.bias<bool>()};
    support::guarded<float, 4> dquery(p.query.extents(), support::packed<4>(p.query.extents())),
        dkey(p.key.extents(), support::packed<4>(p.key.extents())),
        dvalue(p.value.extents(), support::packed<4>(p.value.extents())),
        dout(p.out.extents(), support::packed<4>(p.out.extents()));
    dout.fill([&](auto const&) { return static_cast<float>(p.draw.normal()); });
    auto const run = [&] {
      std::apply(
          [&](auto const&... each) {
            heed::attention(p.query.view(), p.key.view(), p.value.view(), p.out.view(),
                            heed::lse_into{p.lse.view()}, each...);
            heed::attention_backward(p.query.view(), p.key.view(), p.value.view(), p.out.view(),
                                     p.lse.view(), dout.view(), dquery.view(), dkey.view(),
                                     dvalue.view(), each...);
          },
          ingredients);
      return std::tuple{dquery.values<float>(), dkey.values<float>(), dvalue.values<float>()};
    };
    auto const clean = run();
    index_t const batch = p.draw.between(0, p.B - 1);
    std::vector<index_t> unseen;
    for (index_t j = 0; j < p.M; ++j) {
      auto const meets = rows_that_meet(p, batch, j);
      bool seen = false;
      for (char each : meets.values) seen |= each != 0;
      if (!seen) unseen.push_back(j);
    }
    if (unseen.empty()) return {};
    ++poisoned_cases;
    for (index_t j : unseen)
      for (auto* tensor : {&p.key, &p.value}) {
        auto const view = tensor->view();
        for (index_t h = 0; h < view.extent(2); ++h)
          for (index_t d = 0; d < view.extent(3); ++d)
            view(batch, j, h, d) = p.draw.one_in(2) ? not_a_number : infinity;
      }
    auto const dirty = run();
    std::string complaint;
    if (!support::same_bits(std::get<0>(clean), std::get<0>(dirty)))
      complaint += "dquery changed\n";
    if (!support::same_bits(std::get<1>(clean), std::get<1>(dirty))) complaint += "dkey changed\n";
    if (!support::same_bits(std::get<2>(clean), std::get<2>(dirty)))
      complaint += "dvalue changed\n";
    for (index_t j : unseen)
      for (index_t h = 0; h < p.key_heads; ++h)
        for (index_t d = 0; d < p.D; ++d)
          if (std::get<1>(dirty)(batch, j, h, d) != 0)
            complaint = "dkey of a key that nobody meets is not 0\n";
    return complaint;
  });
  if (std::getenv("HEED_TEST_SEED") == nullptr && std::getenv("HEED_TEST_CASES") == nullptr)
    CHECK(poisoned_cases >= 100);
}
