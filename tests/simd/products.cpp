#include "support/catch.hpp"

#include <heed/simd/dot.hpp>
#include <heed/simd/mask.hpp>
#include <heed/simd/multiply.hpp>
#include <heed/simd/transpose.hpp>

#include <vector>

// Small whole numbers, so that every sum is exact in any order.

namespace {

using arch = xsimd::default_arch;
using heed::index_t;
using shape = heed::simd::tile_shape<float, arch>;
using numbers = std::vector<float, xsimd::aligned_allocator<float, 64>>;

numbers whole_numbers(index_t count, index_t period) {
  numbers list(static_cast<std::size_t>(count));
  for (index_t i = 0; i < count; ++i)
    list[static_cast<std::size_t>(i)] = static_cast<float>(i * 7 % period - period / 2);
  return list;
}
float at(numbers const& list, index_t i) {
  return list[static_cast<std::size_t>(i)];
}

}  // namespace

TEST_CASE("multiply: scalars times lanes, off every tile", "[simd][quick]") {
  constexpr index_t width = 3 * shape::lanes;
  for (index_t rows : {1, 5, 13}) {
    index_t const depth = 9;
    numbers const a = whole_numbers(rows * depth, 11), b = whole_numbers(depth * width, 5);
    numbers c = whole_numbers((rows + 1) * width, 3);
    numbers const before = c;
    heed::simd::multiply<3, true, arch>(rows, depth,
                                        heed::simd::scalar_rows<float>{a.data(), depth, 1},
                                        b.data(), width, c.data(), width);
    for (index_t r = 0; r <= rows; ++r)
      for (index_t lane = 0; lane < width; ++lane) {
        float sum = at(before, r * width + lane);
        for (index_t k = 0; r < rows && k < depth; ++k)
          sum += at(a, r * depth + k) * at(b, k * width + lane);
        CHECK(at(c, r * width + lane) == sum);
      }
  }
}

TEST_CASE("multiply_rows, multiply_columns: rows that lie anywhere", "[simd][quick]") {
  constexpr index_t width = 3 * shape::lanes;
  for (index_t rows : {1, 5, 13}) {
    index_t const depth = 9;
    numbers const a = whole_numbers(rows * depth, 11);
    std::vector<float const*> pointers;
    for (index_t r = 0; r < rows; ++r) pointers.push_back(a.data() + (rows - 1 - r) * depth);
    auto const element = [&](index_t r, index_t k) { return at(a, (rows - 1 - r) * depth + k); };

    numbers const b = whole_numbers(depth * width, 5), weights = whole_numbers(rows * width, 7);
    numbers products = whole_numbers(rows * width, 3), sums = whole_numbers(depth * width, 3);
    numbers const before = sums;
    heed::simd::multiply_rows<3, arch>(rows, depth, pointers.data(), b.data(), width,
                                       products.data(), width);
    heed::simd::multiply_columns<3, arch>(depth, rows, pointers.data(), weights.data(), width,
                                          sums.data(), width);
    for (index_t lane = 0; lane < width; ++lane) {
      for (index_t r = 0; r < rows; ++r) {
        float sum = 0;
        for (index_t k = 0; k < depth; ++k) sum += element(r, k) * at(b, k * width + lane);
        CHECK(at(products, r * width + lane) == sum);
      }
      for (index_t k = 0; k < depth; ++k) {
        float sum = at(before, k * width + lane);
        for (index_t r = 0; r < rows; ++r) sum += element(r, k) * at(weights, r * width + lane);
        CHECK(at(sums, k * width + lane) == sum);
      }
    }
  }
}

TEST_CASE("hide_unset: bits are lanes", "[simd][quick]") {
  auto const check = []<class T>(T) {
    using batch = xsimd::batch<T, arch>;
    auto const of = [](auto count) {
      constexpr std::size_t registers = count;
      for (std::uint64_t bits : {0x0ull, 0x1ull, 0xa5a5ull, 0x5a00ffffull, 0xc3a5f00fff0005aull}) {
        batch scores[registers];
        for (batch& score : scores) score = batch(T(2));
        heed::simd::hide_unset(scores, bits);
        for (std::size_t r = 0; r < registers; ++r) {
          alignas(64) T lanes[batch::size];
          scores[r].store_aligned(lanes);
          for (std::size_t lane = 0; lane < batch::size; ++lane)
            CHECK(lanes[lane] == ((bits >> (r * batch::size + lane) & 1) != 0
                                      ? T(2)
                                      : -std::numeric_limits<T>::infinity()));
        }
      }
    };
    of(std::integral_constant<std::size_t, 1>{});
    of(std::integral_constant<std::size_t, 3>{});
  };
  check(float{});
  check(double{});
}

TEST_CASE("transpose: both orders of walking, ragged ends", "[simd][quick]") {
  for (index_t rows : {1, 4, 11})
    for (index_t columns : {1, 8, 13}) {
      numbers const from = whole_numbers(rows * columns, 101);
      numbers to(static_cast<std::size_t>(rows * columns));
      heed::simd::transpose<arch>(rows, columns, from.data(), columns, to.data(), rows);
      for (index_t r = 0; r < rows; ++r)
        for (index_t c = 0; c < columns; ++c)
          CHECK(at(to, c * rows + r) == at(from, r * columns + c));
    }
}

TEST_CASE("dot_rows and add_weighted_rows", "[simd][quick]") {
  constexpr int queries = 2;
  index_t const depth = 2 * shape::lanes, keys = shape::lanes + 3;
  numbers const query = whole_numbers(queries * depth, 9), rows = whole_numbers(keys * depth, 7);
  numbers one(static_cast<std::size_t>(keys)), both(static_cast<std::size_t>(queries * keys)),
      sums(static_cast<std::size_t>(depth));
  heed::simd::dot_pairs<arch>(query.data(), 0, rows.data(), depth, keys, depth, one.data(), 1);
  heed::simd::dot_rows<queries, arch>(query.data(), depth, rows.data(), depth, keys, depth,
                                      both.data(), keys);
  heed::simd::add_weighted_rows<arch>(one.data(), rows.data(), depth, keys, depth, sums.data());
  for (index_t q = 0; q < queries; ++q)
    for (index_t k = 0; k < keys; ++k) {
      float sum = 0;
      for (index_t d = 0; d < depth; ++d) sum += at(query, q * depth + d) * at(rows, k * depth + d);
      CHECK(at(both, q * keys + k) == sum);
      if (q == 0) CHECK(at(one, k) == sum);
    }
  for (index_t d = 0; d < depth; ++d) {
    float sum = 0;
    for (index_t k = 0; k < keys; ++k) sum += at(one, k) * at(rows, k * depth + d);
    CHECK(at(sums, d) == sum);
  }
}

TEST_CASE("dot_pairs and add_weighted_pairs: rows with a partner each", "[simd][quick]") {
  index_t const depth = 2 * shape::lanes, apart = depth + 5, pairs = shape::lanes + 3, step = 3;
  numbers const query = whole_numbers(pairs * depth, 9), rows = whole_numbers(pairs * apart, 7),
                before = whole_numbers(pairs * depth, 5);
  numbers scores(static_cast<std::size_t>(pairs * step), -1.f), sums = before;
  heed::simd::dot_pairs<arch>(query.data(), depth, rows.data(), apart, pairs, depth, scores.data(),
                              step);
  for (index_t k = 0; k < pairs; ++k) {
    float sum = 0;
    for (index_t d = 0; d < depth; ++d) sum += at(query, k * depth + d) * at(rows, k * apart + d);
    CHECK(at(scores, k * step) == sum);
    CHECK(at(scores, k * step + 1) == -1.f);
  }
  heed::simd::add_weighted_pairs<arch>(scores.data(), step, rows.data(), apart, pairs, depth,
                                       sums.data(), depth);
  for (index_t k = 0; k < pairs; ++k)
    for (index_t d = 0; d < depth; ++d)
      CHECK(at(sums, k * depth + d) ==
            at(before, k * depth + d) + at(scores, k * step) * at(rows, k * apart + d));
}

TEST_CASE("multiply converts stored lanes", "[simd][quick]") {
  index_t const rows = 5, depth = 7;
  numbers const a = whole_numbers(rows * depth, 5), b = whole_numbers(depth * shape::lanes, 3);
  std::vector<Eigen::half> stored;
  for (float number : b) stored.push_back(Eigen::half(number));
  numbers exact(static_cast<std::size_t>(rows * shape::lanes)), converted(exact.size());
  heed::simd::scalar_rows<float> const left{a.data(), depth, 1};
  heed::simd::multiply<1, false, arch>(rows, depth, left, b.data(), shape::lanes, exact.data(),
                                       shape::lanes);
  heed::simd::multiply<1, false, arch>(rows, depth, left, stored.data(), shape::lanes,
                                       converted.data(), shape::lanes);
  CHECK(exact == converted);
}
