#include "reference/attention.hpp"
#include "support/guarded.hpp"
#include "support/random.hpp"

#include <heed/attend/merge.hpp>

#include <array>
#include <span>
#include <utility>
#include <vector>

// Merging partial results: against the definition, at the edges, and its gradient.

using heed::index_t;
using heed::tensor_view;
using support::guarded;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Machine epsilon as the distance from 1 to the next number. (Eigen 3.4 has an eighth of it for
/// half.)
template <class T>
constexpr double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
template <>
constexpr double epsilon<Eigen::half> = 0x1p-10;
template <>
constexpr double epsilon<Eigen::bfloat16> = 0x1p-7;

/// Complains unless every |got - golden| <= bound; infinities must be the same.
template <int Rank>
std::string compare(std::string const& name, reference::tensor<double, Rank> const& got,
                    reference::tensor<double, Rank> const& golden, double bound) {
  for (std::size_t i = 0; i < golden.values.size(); ++i)
    if (!(got.values[i] == golden.values[i] || std::abs(got.values[i] - golden.values[i]) <= bound))
      return name + " element " + std::to_string(i) + " is " + std::to_string(got.values[i]) +
             ", not " + std::to_string(golden.values[i]) + "\n";
  return "";
}

template <class T>
struct merge_problem {
  using number = heed::compute_type<T>;

  support::random draw;
  index_t B, N, H, D;
  std::vector<guarded<T, 4>> outs, douts;
  std::vector<guarded<number, 3>> lses, dlses;
  guarded<T, 4> out, dout;
  guarded<number, 3> lse, dlse;
  std::vector<heed::partial_attention<T const>> parts;
  std::vector<heed::partial_attention<T>> gradients;

  explicit merge_problem(support::seed_t seed)
      : draw(seed),
        B(draw.between(0, 3)),
        N(draw.between(0, 9)),
        H(draw.between(1, 4)),
        D(draw.between(0, 150)) {
    index_t const count = draw.between(1, 5);
    double const spread = draw.one_in(3) ? 50 : 2;
    for (index_t p = 0; p < count; ++p) {
      outs.push_back(make<T, 4>({B, N, H, D}, true));
      lses.push_back(make<number, 3>({B, H, N}, true));
      douts.push_back(make<T, 4>({B, N, H, D}, false));
      dlses.push_back(make<number, 3>({B, H, N}, false));
      lses.back().fill([&](auto const&) {
        return draw.one_in(4) ? number(-infinity) : static_cast<number>(spread * draw.normal());
      });
      normal(outs.back());
      parts.push_back({std::as_const(outs.back()).view(), std::as_const(lses.back()).view()});
      gradients.push_back({douts.back().view(), dlses.back().view()});
    }
    out = make<T, 4>({B, N, H, D}, false);
    lse = make<number, 3>({B, H, N}, false);
    dout = make<T, 4>({B, N, H, D}, true);
    dlse = make<number, 3>({B, H, N}, true);
    normal(dout);
    normal(dlse);
  }

  template <class U, int Rank>
  guarded<U, Rank> make(support::extents_of<Rank> const& extents, bool shared) {
    return {extents, support::random_layout<Rank>(draw, extents, shared)};
  }
  template <class U, int Rank>
  void normal(guarded<U, Rank>& tensor) {
    tensor.fill([&](auto const&) { return support::convert<U>(draw.normal()); });
  }

  std::vector<reference::part<double>> definition() const {
    std::vector<reference::part<double>> all;
    for (std::size_t p = 0; p < outs.size(); ++p)
      all.push_back({outs[p].template values<double>(), lses[p].template values<double>()});
    return all;
  }

  // Draws are below 6 in size. A weight w = exp(-x) has the relative error x epsilon, and x exp(-x)
  // < 1.
  static constexpr double largest = 6;

  std::string run() {
    heed::merge_attention(parts, out.view(), lse.view());
    auto const golden = reference::merge(definition());
    return compare("out", out.template values<double>(), golden.out, 16 * epsilon<T> * largest) +
           compare("lse", lse.template values<double>(), golden.lse, 4 * epsilon<number> * 400);
  }

  std::string run_backward() {
    heed::merge_attention(parts, out.view(), lse.view());
    auto const view = [](auto const& tensor) { return tensor.view(); };
    bool const with_dlse = draw.one_in(2);
    heed::merge_attention_backward(
        parts, view(std::as_const(out)), view(std::as_const(lse)), view(std::as_const(dout)),
        with_dlse ? view(std::as_const(dlse)) : tensor_view<number const, 3>(), gradients);
    auto const golden = reference::merge_backward<double>(
        definition(), {out.template values<double>(), lse.template values<double>()},
        dout.template values<double>(),
        with_dlse ? dlse.template values<double>() : reference::tensor<double, 3>());
    double const size = largest + static_cast<double>(D) * largest * 2 * largest;
    std::string complaint;
    for (std::size_t p = 0; p < outs.size(); ++p)
      complaint += compare("dout of a part", douts[p].template values<double>(), golden[p].out,
                           16 * epsilon<T> * largest) +
                   compare("dlse of a part", dlses[p].template values<double>(), golden[p].lse,
                           static_cast<double>(D + 16) * epsilon<number> * size);
    return complaint;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("merge: the definition", "[attend][merge]", double, float, Eigen::half,
                   Eigen::bfloat16) {
  support::for_each_seed("merge", 250,
                         [](support::seed_t seed) { return merge_problem<TestType>(seed).run(); });
}

TEMPLATE_TEST_CASE("merge: the gradient", "[attend][merge]", double, float, Eigen::half,
                   Eigen::bfloat16) {
  support::for_each_seed("merge backward", 250, [](support::seed_t seed) {
    return merge_problem<TestType>(seed).run_backward();
  });
}

TEST_CASE("merge: parts without keys are not read", "[attend][merge]") {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  std::array<float, 4> const full{1, 2, 3, 4}, poison{nan, nan, nan, nan};
  std::array<float, 2> const lse_full{0.5f, -float(infinity)},
      lse_none{-float(infinity), -float(infinity)};
  auto const part = [](auto const& out, auto const& lse) {
    return heed::partial_attention{heed::bnhd(out.data(), 1, 2, 1, 2),
                                   tensor_view<float const, 3>(lse.data(), {1, 1, 2})};
  };
  std::array const parts{part(poison, lse_none), part(full, lse_full), part(poison, lse_none)};
  std::array<float, 4> out;
  std::array<float, 2> lse;
  auto const out_view = heed::bnhd(out.data(), 1, 2, 1, 2);
  tensor_view<float, 3> const lse_view(lse.data(), {1, 1, 2});
  heed::merge_attention(parts, out_view, lse_view);
  CHECK(out == std::array<float, 4>{1, 2, 0, 0});  // alone: the same bits
  CHECK(lse == lse_full);

  std::array<std::array<float, 4>, 3> dout;
  std::array<std::array<float, 2>, 3> dlse;
  std::vector<heed::partial_attention<float>> gradients;
  for (std::size_t p = 0; p < 3; ++p)
    gradients.push_back(
        {heed::bnhd(dout[p].data(), 1, 2, 1, 2), tensor_view<float, 3>(dlse[p].data(), {1, 1, 2})});
  heed::merge_attention_backward(parts, out_view, lse_view, heed::bnhd(full.data(), 1, 2, 1, 2),
                                 lse_view, gradients);
  CHECK(dout[0] == std::array<float, 4>{});
  CHECK(dout[1] == std::array<float, 4>{1, 2, 0, 0});
  CHECK(dlse[0] == std::array<float, 2>{});
  CHECK(dlse[1] == std::array<float, 2>{0.5f, 0});

  heed::merge_attention(std::span<heed::partial_attention<float const> const>(), out_view,
                        lse_view);
  CHECK(out == std::array<float, 4>{});
  CHECK(lse == lse_none);
}

TEST_CASE("merge: into one of its parts", "[attend][merge]") {
  std::vector<float> a(100, 1.0f), b(100, 3.0f), apart(100);
  float lse_a = 0, lse_b = std::log(3.0f), lse = 0;
  auto const part = [](std::vector<float>& out, float& value) {
    return heed::partial_attention{heed::bnhd(out.data(), 1, 1, 1, 100),
                                   tensor_view<float, 3>(&value, {1, 1, 1})};
  };
  std::array const parts{part(a, lse_a), part(b, lse_b)};
  heed::merge_attention(parts, heed::bnhd(apart.data(), 1, 1, 1, 100),
                        tensor_view<float, 3>(&lse, {1, 1, 1}));
  heed::merge_attention(parts, parts[1].out, parts[1].lse);
  CHECK(b == apart);
  CHECK(lse_b == lse);
  CHECK(apart[99] == Approx(2.5f));
  CHECK(lse == Approx(std::log(4.0f)));
}

TEST_CASE("merge: what does not fit is refused", "[attend][merge]") {
  std::vector<float> memory(1000, 7.0f);
  auto const out = [&](index_t n, index_t d) { return heed::bnhd(memory.data(), 2, n, 3, d); };
  auto const lse = [&](index_t n) { return tensor_view<float, 3>(memory.data(), {2, 3, n}); };
  auto const part = [&](index_t n, index_t d, index_t m) {
    return heed::partial_attention<float>{out(n, d), lse(m)};
  };
  std::vector const good{part(4, 5, 4), part(4, 5, 4)};
  for (auto const& bad : {part(3, 5, 4), part(4, 6, 4), part(4, 5, 3)}) {
    std::vector const parts{good[0], bad};
    CHECK_THROWS_AS(heed::merge_attention(parts, out(4, 5), lse(4)), heed::error);
    CHECK_THROWS_AS(
        heed::merge_attention_backward(parts, out(4, 5), lse(4), out(4, 5), lse(4), good),
        heed::error);
    CHECK_THROWS_AS(
        heed::merge_attention_backward(good, out(4, 5), lse(4), out(4, 5), lse(4), parts),
        heed::error);
  }
  CHECK_THROWS_AS(heed::merge_attention(good, out(4, 5), lse(3)), heed::error);
  CHECK_THROWS_AS(heed::merge_attention_backward(good, out(4, 5), lse(4), out(4, 5), lse(3), good),
                  heed::error);
  CHECK_THROWS_AS(heed::merge_attention_backward(good, out(4, 5), lse(4), out(4, 6), lse(4), good),
                  heed::error);
  CHECK_THROWS_AS(heed::merge_attention_backward(good, out(4, 5), lse(4), out(4, 5), lse(4),
                                                 std::vector{good[0]}),
                  heed::error);
  CHECK(memory == std::vector<float>(1000, 7.0f));
}
