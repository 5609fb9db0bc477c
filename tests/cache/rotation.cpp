#include "support/error_rule.hpp"
#include "support/guarded.hpp"
#include "support/random.hpp"

#include <heed/cache/rotation.hpp>

#include <numbers>

// Rotation of rows against its definition, and what follows from R(a) R(b) = R(a + b).

using heed::index_t;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

/// The definition, from the specification.
reference::tensor<double, 4> rotated(reference::tensor<double, 4> rows, heed::rotary const& how,
                                     std::vector<index_t> const& by) {
  auto const [B, N, H, D] = rows.extents;
  index_t const r = how.dims == 0 ? D : how.dims;
  for (index_t b = 0; b < B; ++b)
    for (index_t i = 0; i < N; ++i)
      for (index_t h = 0; h < H; ++h)
        for (index_t m = 0; m < r / 2; ++m) {
          index_t const one = how.interleaved ? 2 * m : m,
                        two = how.interleaved ? 2 * m + 1 : m + r / 2;
          double const angle = double(by[static_cast<std::size_t>(i)]) *
                               std::pow(how.base, -2.0 * double(m) / double(r));
          double const x = rows(b, i, h, one), y = rows(b, i, h, two);
          rows(b, i, h, one) = x * std::cos(angle) - y * std::sin(angle);
          rows(b, i, h, two) = x * std::sin(angle) + y * std::cos(angle);
        }
  return rows;
}

template <class T>
guarded<T, 4> random_rows(support::random& draw, support::extents_of<4> const& extents) {
  guarded<T, 4> rows(extents, support::random_layout<4>(draw, extents, false));
  rows.fill([&](auto const&) { return T(static_cast<heed::compute_type<T>>(draw.normal())); });
  return rows;
}

heed::rotary random_rotary(support::random& draw, index_t dim) {
  return {.base = draw.one_in(2) ? 10000.0 : draw.uniform(10, 1e6),
          .dims = draw.one_in(2) ? 0 : 2 * draw.between(1, dim / 2),
          .interleaved = draw.one_in(2)};
}

template <class A, class B>
double largest_difference(A const& a, B const& b) {
  double largest = 0;
  for (std::size_t n = 0; n < a.values.size(); ++n)
    largest = std::max(largest, std::abs(double(a.values[n]) - double(b.values[n])));
  return largest;
}

}  // namespace

TEMPLATE_TEST_CASE("rotation is its definition", "[cache][quick]", double, float, Eigen::half,
                   Eigen::bfloat16) {
  for_each_seed("rotation", 100, [](seed_t seed) {
    support::random draw(seed);
    index_t const dim = 2 * draw.between(1, draw.one_in(5) ? 100 : 20);
    support::extents_of<4> const extents{draw.between(1, 2), draw.between(0, 9), draw.between(1, 3),
                                         dim};
    auto rows = random_rows<TestType>(draw, extents), turned = random_rows<TestType>(draw, extents);
    heed::rotary const how = random_rotary(draw, dim);
    std::vector<index_t> by;
    bool const alike = draw.one_in(2);
    for (index_t i = 0; i < extents[1]; ++i)
      by.push_back(alike && i > 0 ? by[0] : draw.between(-2000000, 2000000));
    turned.remember();
    auto const expected = rotated(rows.template values<double>(), how, by);
    if (alike && !by.empty())
      heed::rotate(how, rows.view(), turned.view(), by[0]);
    else
      heed::rotate(how, rows.view(), turned.view(), by);
    std::string complaint;
    if (!turned.untouched_outside()) complaint += "something else was written\n";
    // Each number is the sum of two products of rounded numbers below 8.
    double const bound = 32 * std::max(support::epsilon<TestType>(), 1e-14);
    if (largest_difference(turned.template values<double>(), expected) > bound)
      complaint += "rotation is wrong\n";
    heed::rotate(how, rows.view(), rows.view(), by);
    if (largest_difference(turned.template values<double>(), rows.template values<double>()) != 0)
      complaint += "rotation in place differs\n";
    return complaint;
  });
}

TEST_CASE("rotations compose, invert and keep what they should", "[cache][quick]") {
  for_each_seed("identities of rotation", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const dim = 2 * draw.between(1, 20);
    support::extents_of<4> const extents{1, 4, 2, dim};
    auto rows = random_rows<double>(draw, extents), other = random_rows<double>(draw, extents),
         a = random_rows<double>(draw, extents), b = random_rows<double>(draw, extents);
    heed::rotary const how = random_rotary(draw, dim);
    index_t const from = draw.between(-500, 500), to = draw.between(-500, 500);
    std::string complaint;
    auto const same = [&](auto const& x, auto const& y, char const* what) {
      if (largest_difference(x.template values<double>(), y.template values<double>()) > 1e-11)
        complaint += what;
    };
    heed::rotate(how, rows.view(), a.view(), from);
    heed::rotate(how, a.view(), a.view(), to);
    heed::rotate(how, rows.view(), b.view(), from + to);
    same(a, b, "R(b) R(a) is not R(a + b)\n");
    heed::rotate(how, b.view(), b.view(), -from - to);
    same(b, rows, "R(-a) R(a) changes rows\n");
    heed::rotate(how, rows.view(), b.view(), 0);
    if (largest_difference(b.values<double>(), rows.values<double>()) != 0)
      complaint += "R(0) changes rows\n";

    // Products depend on the difference of positions only.
    heed::rotate(how, rows.view(), a.view(), from);
    heed::rotate(how, other.view(), b.view(), to);
    auto const dot = [&](auto const& x, auto const& y) {
      double sum = 0;
      for (index_t d = 0; d < dim; ++d) sum += x.view()(0, 1, 0, d) * y.view()(0, 2, 1, d);
      return sum;
    };
    double const product = dot(a, b);
    heed::rotate(how, rows.view(), a.view(), from + 300);
    heed::rotate(how, other.view(), b.view(), to + 300);
    if (std::abs(dot(a, b) - product) > 1e-9)
      complaint += "products depend on absolute positions\n";

    // Interleaved pairs are halves after a permutation.
    heed::rotary halves = how, interleaved = how;
    halves.interleaved = false;
    interleaved.interleaved = true;
    index_t const dims = how.dims == 0 ? dim : how.dims;
    auto const permuted = [&](index_t d) { return d >= dims ? d : d % 2 * (dims / 2) + d / 2; };
    a.fill([&](auto const& at) { return rows.view()(at[0], at[1], at[2], permuted(at[3])); });
    heed::rotate(interleaved, a.view(), a.view(), to);
    heed::rotate(halves, rows.view(), b.view(), to);
    other.fill([&](auto const& at) { return b.view()(at[0], at[1], at[2], permuted(at[3])); });
    same(a, other, "interleaved pairs are not halves permuted\n");
    return complaint;
  });
}

TEST_CASE("a quarter turn", "[cache][quick]") {
  // Pair 0 turns by one radian a position; a base of (2 / pi)^2 turns pair 1 of four numbers by pi / 2.
  double rows[4] = {1, 1, 0, 0}, turned[4];
  heed::tensor_view<double, 4> const from(rows, {1, 1, 1, 4}), to(turned, {1, 1, 1, 4});
  heed::rotate({.base = 4 / (std::numbers::pi * std::numbers::pi)}, from, to, 1);
  CHECK(turned[0] == Approx(std::cos(1.0)));
  CHECK(turned[2] == Approx(std::sin(1.0)));
  CHECK(turned[1] == Approx(0).margin(1e-15));
  CHECK(turned[3] == Approx(1));
}

TEST_CASE("what cannot be rotated is refused", "[cache][quick]") {
  std::vector<float> memory(64);
  auto const rows = heed::bnhd(memory.data(), 1, 2, 1, 6);
  auto const shorter = heed::bnhd(memory.data(), 1, 1, 1, 6);
  CHECK_THROWS_WITH(
      heed::rotate({}, rows, shorter, 1),
      "heed: the rotated rows have shape [1, 1, 1, 6]; expected that of the rows, [1, 2, "
      "1, 6]");
  CHECK_THROWS_WITH(heed::rotate({.dims = 3}, rows, rows, 1),
                    "heed: rotary.dims is 3; expected an even number up to 6 (head_dim)");
  CHECK_THROWS_AS(heed::rotate({.dims = 8}, rows, rows, 1), heed::error);
  CHECK_THROWS_AS(heed::rotate({.base = 0}, rows, rows, 1), heed::error);
  auto const odd = heed::bnhd(memory.data(), 1, 2, 1, 5);
  CHECK_THROWS_AS(heed::rotate({}, odd, odd, 1), heed::error);
  std::vector<index_t> const by{1, 2, 3};
  CHECK_THROWS_WITH(heed::rotate({}, rows, rows, by),
                    "heed: rotate is given 3 distances; expected one for each of 2 positions");
}
