#include "reference/feature_maps.hpp"

#include "support/error_rule.hpp"

#include <heed/recur/features/channel_softmax.hpp>
#include <heed/recur/features/cosine_reweighted.hpp>
#include <heed/recur/features/dpfp.hpp>
#include <heed/recur/features/elementwise.hpp>
#include <heed/recur/features/favor.hpp>
#include <heed/recur/features/polynomial.hpp>
#include <heed/recur/features/stable_exponential.hpp>

#include <cmath>
#include <random>

// Each feature map alone, on rows of any length and stride, against its definition.

using heed::feature_rows;
using heed::index_t;
using heed::side;
using heed::tensor_view;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

template <class T>
guarded<T, 2> some_rows(support::random& draw, index_t count, index_t width, double spread) {
  support::extents_of<2> const extents{count, width};
  guarded<T, 2> rows(extents, support::lay_out<2>(extents, {0, 1}, {draw.between(0, 5), 0}),
                     draw.between(0, 3));
  rows.fill([&](auto const&) { return static_cast<T>(spread * draw.normal()); });
  rows.remember();
  return rows;
}

template <class T>
feature_rows<T> view_of(guarded<T, 2>& rows, reference::feature_place const& first) {
  auto const view = rows.view();
  return {view.data(), view.stride(0), view.extent(0), view.extent(1),
          first.batch, first.head,     first.position};
}

/// How large the numbers are that a row's exponents are computed from: e^x is as exact as x is.
constexpr auto no_exponents = [](std::vector<double> const&) { return 0.0; };

/// The features and the gradient of some rows in the type T, against the definition; `variants` evaluate it
/// otherwise.
template <class T, class Map, class Definition, class Exponents, class... Variant>
std::string complaint_about(support::random& draw, Map const& map, Definition const& definition,
                            index_t dim, Exponents const& exponents_of,
                            Variant const&... variants) {
  using golden = std::conditional_t<std::is_same_v<T, double>, long double, double>;
  // So many rows, or none, that the largest error among their numbers is no chance.
  index_t const count = draw.one_in(10) ? 0 : draw.between(10, 40), F = map.features(dim);
  reference::feature_place const first{draw.one_in(2), draw.between(0, 1), draw.between(0, 2),
                                       draw.between(0, 3)};
  if (F != definition.count(dim)) return "the number of features is " + std::to_string(F) + "\n";
  auto x = some_rows<T>(draw, count, dim, 1), phi = some_rows<T>(draw, count, F, 1),
       dphi = some_rows<T>(draw, count, F, 1), dx = some_rows<T>(draw, count, dim, 1);
  side const of = first.of_query ? side::query : side::key;
  auto const rows = view_of(x, first);
  // Features and their gradients have one stride.
  support::extents_of<2> const extents{count, F};
  dphi = guarded<T, 2>(extents, {phi.view().strides(), 0, phi.view().stride(0) * count});
  dphi.fill([&](auto const&) { return static_cast<T>(draw.normal()); });
  dphi.remember();
  map.apply(of, rows, phi.view().data(), phi.view().stride(0));
  map.differentiate(of, rows, std::as_const(phi).view().data(), std::as_const(dphi).view().data(),
                    phi.view().stride(0), dx.view().data(), dx.view().stride(0));

  auto const evaluate = [&]<class U>(U, auto const& formula) {
    auto const from = x.template values<U>(), slope = dphi.template values<U>();
    std::pair all(reference::tensor<U, 2>({count, F}), reference::tensor<U, 2>({count, dim}));
    for (index_t r = 0; r < count; ++r) {
      auto place = first;
      place.position += r;
      auto const at = [](auto const& tensor, index_t row) {
        auto const width = tensor.extent(1);
        return std::vector<U>(tensor.values.begin() + row * width,
                              tensor.values.begin() + (row + 1) * width);
      };
      auto const values = formula.features(place, at(from, r));
      auto const slopes = formula.gradient(place, at(from, r), at(slope, r));
      for (index_t f = 0; f < F; ++f) all.first(r, f) = values[static_cast<std::size_t>(f)];
      for (index_t d = 0; d < dim; ++d) all.second(r, d) = slopes[static_cast<std::size_t>(d)];
    }
    return all;
  };
  auto const exact = evaluate(golden{}, definition);
  auto const naive = std::vector{evaluate(T{}, definition), evaluate(T{}, variants)...};
  std::vector<reference::tensor<T, 2>> naive_phi, naive_dx;
  for (auto const& [values, slopes] : naive) {
    naive_phi.push_back(values);
    naive_dx.push_back(slopes);
  }
  double const epsilon = support::epsilon<T>();
  double exponents = 0;
  for (index_t r = 0; r < count; ++r) {
    std::vector<double> row;
    for (index_t d = 0; d < dim; ++d) row.push_back(double(x.view()(r, d)));
    exponents = std::max(exponents, exponents_of(row));
  }
  auto const least = [&](auto const& tensor) {
    double largest = 0;
    for (auto each : tensor.values) largest = std::max(largest, std::abs(double(each)));
    return (1 + exponents) * largest;
  };
  return support::two_times_rule("phi", phi.template values<golden>(), exact.first, naive_phi,
                                 epsilon, least(exact.first)) +
         support::two_times_rule("dx", dx.template values<golden>(), exact.second, naive_dx,
                                 epsilon, least(exact.second)) +
         (x.untouched() && dphi.untouched() ? "" : "an input was written to\n") +
         (phi.untouched_outside() && dx.untouched_outside()
              ? ""
              : "memory outside a result was written to\n");
}

/// The gradient of a definition against central differences.
template <class Definition>
std::string slope_complaint(support::random& draw, Definition const& definition, index_t dim) {
  reference::feature_place const at{draw.one_in(2), draw.between(0, 1), draw.between(0, 2),
                                    draw.between(0, 9)};
  std::vector<double> x(static_cast<std::size_t>(dim)),
      dphi(static_cast<std::size_t>(definition.count(dim)));
  for (double& each : x) each = draw.normal();
  for (double& each : dphi) each = draw.normal();
  auto const loss = [&] {
    auto const phi = definition.features(at, x);
    double sum = 0;
    for (std::size_t f = 0; f < phi.size(); ++f) sum += phi[f] * dphi[f];
    return sum;
  };
  auto const dx = definition.gradient(at, x, dphi);
  double largest = 0;
  for (std::size_t d = 0; d < x.size(); ++d) {
    double const before = x[d], step = 1e-6;
    x[d] = before + step;
    double const above = loss();
    x[d] = before - step;
    double const slope = (above - loss()) / (2 * step);
    x[d] = before;
    largest = std::max(largest, std::abs(slope - dx[d]) / (1 + std::abs(slope)));
  }
  return largest < 1e-6 ? ""
                        : "the definition's gradient is off by " + std::to_string(largest) + "\n";
}

template <class Map, class Definition>
void check_map(char const* name, Map const& map, Definition const& definition, index_t most = 40) {
  for_each_seed(name, 120, [&](seed_t seed) {
    support::random draw(seed);
    index_t const dim = draw.between(1, most);
    return complaint_about<float>(draw, map, definition, dim, no_exponents) +
           complaint_about<double>(draw, map, definition, dim, no_exponents) +
           slope_complaint(draw, definition, dim);
  });
}

/// sum_f a_f b_f for the features of two rows.
template <class Map>
double kernel(Map const& map, std::vector<double> const& q, std::vector<double> const& k) {
  auto const dim = static_cast<index_t>(q.size()), F = map.features(dim);
  std::vector<double> a(static_cast<std::size_t>(F)), b(a.size());
  map.apply(side::query, feature_rows<double>{q.data(), dim, 1, dim, 0, 0, 0}, a.data(), F);
  map.apply(side::key, feature_rows<double>{k.data(), dim, 1, dim, 0, 0, 0}, b.data(), F);
  double sum = 0;
  for (std::size_t f = 0; f < a.size(); ++f) sum += a[f] * b[f];
  return sum;
}

std::vector<double> normal_row(support::random& draw, index_t dim, double spread = 1) {
  std::vector<double> x(static_cast<std::size_t>(dim));
  for (double& each : x) each = spread * draw.normal();
  return x;
}
double product(std::vector<double> const& a, std::vector<double> const& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

reference::tensor<double, 2> matrix_of(heed::favor_projection const& projection) {
  return support::read<double>(projection.matrix());
}

}  // namespace

TEST_CASE("feature maps: one number at a time", "[recur][features]") {
  check_map("elu_plus_one", heed::elu_plus_one{}, reference::elu_plus_one{});
  check_map("relu", heed::relu{}, reference::relu{});
  check_map("squared_relu", heed::squared_relu{}, reference::squared_relu{});
  check_map("exponential", heed::exponential{}, reference::exponential{});
  check_map("silu", heed::silu{}, reference::silu{});
  check_map("sigmoid", heed::sigmoid{}, reference::sigmoid{});
}

TEST_CASE("feature maps: the softmax of a row", "[recur][features]") {
  check_map("channel_softmax", heed::channel_softmax{}, reference::channel_softmax{});
}

TEST_CASE("feature maps: stable exponentials", "[recur][features]") {
  std::vector<float> shift{1.5f, -1, 0.5f, 2, 0, 3};
  auto const of = [&](index_t b, index_t h) {
    return double(shift[static_cast<std::size_t>(b * 3 + h)]);
  };
  check_map("stable_exponential",
            heed::stable_exponential(tensor_view<float const, 2>(shift.data(), {2, 3})),
            reference::stable_exponential{of});
  check_map("stable_exponential without shift", heed::stable_exponential<>{},
            reference::stable_exponential{[](index_t, index_t) { return 0.0; }});
}

TEST_CASE("feature maps: dpfp", "[recur][features]") {
  // Beyond 2 dim the roll begins anew.
  for (index_t nu : {1, 2, 3, 7})
    check_map("dpfp", heed::dpfp{nu}, reference::dpfp{nu}, nu == 7 ? 4 : 20);
}

TEST_CASE("feature maps: polynomials", "[recur][features]") {
  check_map("taylor", heed::taylor{}, reference::taylor{}, 20);
  check_map("polynomial 1", heed::polynomial{1, 0.7}, reference::polynomial{1, 0.7}, 20);
  check_map("polynomial 2", heed::polynomial{2, 1.3}, reference::polynomial{2, 1.3}, 20);
  check_map("polynomial 3", heed::polynomial{3, 0.4}, reference::polynomial{3, 0.4}, 9);
  check_map("polynomial 5", heed::polynomial{5, 0.5}, reference::polynomial{5, 0.5}, 4);
  CHECK(heed::taylor::features(16) == 1 + 16 + 16 * 17 / 2);
  CHECK(heed::polynomial{3, 1}.features(5) == 56);
}

TEST_CASE("feature maps: the kernel of a polynomial", "[recur][features]") {
  support::random draw(1);
  for (index_t degree : {1, 2, 3, 4, 6})
    for (index_t dim : {1, 2, 5, 9}) {
      auto const q = normal_row(draw, dim), k = normal_row(draw, dim);
      double const s = 0.6 * product(q, k);
      double expected = 0, term = 1;
      for (index_t l = 0; l <= degree; ++l) {
        expected += term;
        term *= s / static_cast<double>(l + 1);
      }
      CHECK(kernel(heed::polynomial{degree, 0.6}, q, k) == Approx(expected).margin(1e-12));
    }
  for (int n = 0; n < 200; ++n) {
    auto const q = normal_row(draw, 16, 3), k = normal_row(draw, 16, 3);
    double const s = product(q, k) / 4, got = kernel(heed::taylor{}, q, k);
    CHECK(got == Approx(1 + s + s * s / 2).epsilon(1e-10));
    CHECK(got >= 0.5 - 1e-9);
  }
}

TEST_CASE("feature maps: cosine reweighting", "[recur][features]") {
  check_map("cosine_reweighted", heed::cosine_reweighted{60}, reference::cosine_reweighted{60});
  check_map("cosine_reweighted after others", heed::cosine_reweighted{60, 3},
            reference::cosine_reweighted{60, 3});
}

TEST_CASE("feature maps: random features", "[recur][features]") {
  std::mt19937_64 bits(3);
  for (index_t dim : {1, 3, 8, 20})
    for (index_t m : {1, 7, 16, 50}) {
      auto const omega = heed::favor_projection::orthogonal(m, dim, bits);
      for_each_seed("favor", 20, [&](seed_t seed) {
        support::random draw(seed + static_cast<seed_t>(100 * dim + m));
        reference::tensor<double, 3> shift({2, 50, 3});
        for (double& c : shift.values) c = double(float(draw.normal()));
        auto const of = [&](reference::feature_place const& at) {
          return shift(at.batch, at.position, at.head);
        };
        tensor_view<double const, 3> const view(shift.values.data(), {2, 50, 3});
        auto const exponents_of = [&](std::vector<double> const& row) {
          double largest = 0;
          for (double each : reference::favor_products(matrix_of(omega), row))
            largest = std::max(largest, std::abs(each));
          return largest + product(row, row) / (2 * std::sqrt(static_cast<double>(row.size()))) / 2;
        };
        auto const both = [&](auto const& map, auto const& definition) {
          auto second = definition, third = definition;
          second.way = 1;
          third.way = 2;
          return complaint_about<float>(draw, map, definition, dim, exponents_of, second, third) +
                 complaint_about<double>(draw, map, definition, dim, exponents_of, second, third);
        };
        return both(heed::favor_relu{omega}, reference::favor_relu{matrix_of(omega)}) +
               both(heed::favor_positive<double>{omega, view},
                    reference::favor_positive{matrix_of(omega), of}) +
               both(heed::favor_positive<double>{omega, view, 0},
                    reference::favor_positive{matrix_of(omega), of, 0, true}) +
               slope_complaint(draw, reference::favor_relu{matrix_of(omega)}, dim);
      });
    }
}

TEST_CASE("feature maps: numbers of any size", "[recur][features]") {
  // What overflows in e^x does not where a row's or head's constant is taken away first.
  std::vector<float> const x{300, -300, 299, 0, 1e30f, -1e30f, 5, -5};
  std::vector<float> largest{300, 1e30f}, phi(8), dx(8), ones(8, 1);
  feature_rows<float> const rows{x.data(), 4, 2, 4, 0, 0, 0};
  heed::stable_exponential const of_head(tensor_view<float const, 2>(largest.data(), {1, 2}));
  for (side of : {side::query, side::key}) {
    of_head.apply(of, rows, phi.data(), 4);
    CHECK(phi[0] == 1);
    CHECK(phi[1] == 0);
    CHECK(phi[2] == Approx(std::exp(-1.f)));
    of_head.differentiate(of, rows, phi.data(), ones.data(), 4, dx.data(), 4);
    CHECK(dx[2] == phi[2]);
  }
  heed::channel_softmax::apply(side::query, rows, phi.data(), 4);
  CHECK(phi[0] == Approx(1 / (1 + std::exp(-1.f))));
  CHECK(phi[4] == 1);
  CHECK(phi[5] == 0);
  heed::elu_plus_one::apply(side::query, rows, phi.data(), 4);
  CHECK(phi[1] == 0);
  CHECK(phi[4] == 1e30f);
  heed::sigmoid::apply(side::query, rows, phi.data(), 4);
  CHECK(phi[4] == 1);
  CHECK(phi[5] == 0);
  heed::silu::apply(side::query, rows, phi.data(), 4);
  CHECK(phi[4] == 1e30f);
  CHECK(phi[5] == 0);
}

TEST_CASE("feature maps: the largest of the keys", "[recur][features]") {
  std::vector<float> key{1, 2, 9, 4, -3, -2, -7, -4};
  std::vector<float> largest(2);
  heed::largest_of_keys(heed::bhnd(key.data(), 1, 2, 2, 2),
                        tensor_view<float, 2>(largest.data(), {1, 2}));
  CHECK(largest == std::vector<float>{9, -2});
  heed::largest_of_keys(heed::bhnd(key.data(), 1, 2, 0, 2),
                        tensor_view<float, 2>(largest.data(), {1, 2}));
  CHECK(largest == std::vector<float>{0, 0});
  CHECK_THROWS_WITH(heed::largest_of_keys(heed::bhnd(key.data(), 1, 2, 2, 2),
                                          tensor_view<float, 2>(largest.data(), {2, 1})),
                    "heed: largest has shape [2, 1]; expected [1, 2] (batch, heads), those of key "
                    "of shape [1, 2, 2, 2]");
}

TEST_CASE("orthogonal projections", "[recur][features]") {
  std::mt19937_64 bits(7);
  auto const omega = heed::favor_projection::orthogonal(13, 5, bits, heed::row_lengths::root_dim);
  auto const matrix = matrix_of(omega);
  for (index_t a = 0; a < 13; ++a)
    for (index_t b = 0; b <= a; ++b) {
      double sum = 0;
      for (index_t d = 0; d < 5; ++d) sum += matrix(a, d) * matrix(b, d);
      if (a == b) CHECK(sum == Approx(5));
      if (a != b && a / 5 == b / 5) CHECK(std::abs(sum) < 1e-12);
    }
  // The same bits, the same matrix.
  std::mt19937_64 again(7);
  CHECK(matrix_of(heed::favor_projection::orthogonal(13, 5, again, heed::row_lengths::root_dim))
            .values == matrix.values);
}

TEST_CASE("random features estimate the softmax kernel without bias", "[recur][features]") {
  // Without the signs of the triangular factor the estimate is some 17 % off for three channels; the first row of
  // each block would stand wrong. Here the error of the mean is below 1 %.
  support::random draw(5);
  std::vector<double> const q = normal_row(draw, 3), k = normal_row(draw, 3);
  auto const squares = (product(q, q) + product(k, k)) / (2 * std::sqrt(3.0));
  std::mt19937_64 bits(11);
  double sum = 0, of_first = 0;
  constexpr int draws = 40000;
  for (int n = 0; n < draws; ++n) {
    auto const matrix =
        matrix_of(heed::favor_projection::orthogonal(3, 3, bits, heed::row_lengths::chi));
    auto const a = reference::favor_products(matrix, q), b = reference::favor_products(matrix, k);
    for (std::size_t f = 0; f < 3; ++f) sum += std::exp(a[f] + b[f] - squares) / 3;
    of_first += std::exp(a[0] + b[0] - squares);
  }
  double const expected = std::exp(product(q, k) / std::sqrt(3.0));
  CHECK(sum / draws == Approx(expected).epsilon(0.02));
  CHECK(of_first / draws == Approx(expected).epsilon(0.03));
}

TEST_CASE("feature maps: what does not fit is refused", "[recur][features]") {
  heed::recurrence_shape shape;
  shape.batches = 2;
  shape.key_heads = 3;
  shape.query_dim = shape.key_dim = 5;
  shape.rows = 4;
  shape.keys = 7;
  std::vector<float> numbers(100);
  std::mt19937_64 bits(1);
  CHECK_THROWS_WITH(heed::dpfp{0}.check(shape), "heed: dpfp.nu is 0; expected at least 1");
  CHECK_THROWS_WITH(heed::cosine_reweighted{6}.check(shape),
                    "heed: cosine_reweighted.horizon is 6; expected the number of positions, 7, "
                    "or more");
  CHECK_THROWS_WITH((heed::polynomial{0, 1}.check(shape)),
                    "heed: polynomial has degree 0 and scale 1.000000; expected at least 1, and a "
                    "number above 0");
  CHECK_THROWS_WITH((heed::polynomial{200, 1}.check(shape)),
                    "heed: polynomial of degree 200 has 2872408791 features of 5 channels; "
                    "expected at most 4194304");
  CHECK_THROWS_WITH(
      heed::stable_exponential(tensor_view<float const, 2>(numbers.data(), {2, 2})).check(shape),
      "heed: stable_exponential.shift has shape [2, 2]; expected [1 or 2, 1 or 3] (batch, heads "
      "of the keys)");
  auto const omega = heed::favor_projection::orthogonal(4, 6, bits);
  CHECK_THROWS_WITH(heed::favor_relu{omega}.check(shape),
                    "heed: a favor_projection is for 6 channels; those of query and key are 5 and "
                    "5");
  auto const fits = heed::favor_projection::orthogonal(4, 5, bits);
  CHECK_THROWS_WITH(
      (heed::favor_positive<float>{fits, {numbers.data(), {2, 7, 2}}}.check(shape)),
      "heed: favor_positive.key_shift has shape [2, 7, 2]; expected [2, 7, 3] (batch, position, "
      "heads of the keys)");
  CHECK_THROWS_WITH(heed::favor_projection(tensor_view<float const, 2>(numbers.data(), {0, 5})),
                    "heed: a favor_projection has shape [0, 5]; expected at least one feature and "
                    "channel");
}
