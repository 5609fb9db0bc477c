#include "reference/attention.hpp"
#include "reference/combiner.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/combiner_axial.hpp>

// Attention through summaries of rows and columns of a grid, against its definition.

using heed::index_t;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

struct variant {
  std::string name;
  heed::combiner_axis axis;
  heed::summary_key key = heed::summary_key::own;
};

std::array<variant, 5> const variants{
    {{"row_major", heed::combiner_axis::row_major},
     {"row_major_wsum", heed::combiner_axis::row_major, heed::summary_key::weighted_sum},
     {"vertical", heed::combiner_axis::vertical},
     {"horizontal", heed::combiner_axis::horizontal},
     {"mixture", heed::combiner_axis::mixture}}};

struct grid_problem {
  support::random draw;
  heed::combiner_grid grid;
  index_t B, H;
  guarded<float, 4> query, key, value, out;
  guarded<float, 3> lse;

  explicit grid_problem(seed_t seed, index_t rows = 0, index_t columns = 0)
      : draw(seed), B(draw.between(1, 2)), H(draw.one_in(2) ? 2 : 4) {
    grid.rows = rows > 0 ? rows : draw.between(1, 7);
    grid.columns = columns > 0 ? columns : draw.between(1, 7);
    grid.pool =
        draw.one_of(std::array{heed::pooling::max, heed::pooling::sum, heed::pooling::mean});
    index_t const D = draw.between(1, 9), Dv = draw.between(1, 9), N = grid.rows * grid.columns;
    auto const shared = [&] { return draw.one_in(2) ? H : index_t{2}; };
    query = make({B, N, H, D});
    key = make({B, N, shared(), D});
    value = make({B, N, shared(), Dv});
    out = make({B, N, H, Dv});
    lse = support::blank<float, 3>({B, H, N});
  }
  guarded<float, 4> make(support::extents_of<4> const& extents) {
    guarded<float, 4> tensor(extents, support::random_layout<4>(draw, extents, false));
    tensor.fill([&](auto const&) { return float(draw.normal()); });
    return tensor;
  }
  double scale() const { return grid.pool == heed::pooling::sum ? 0.1 : 0.4; }

  void run(variant const& which) {
    grid.axis = which.axis;
    grid.key = which.key;
    heed::combiner_attention(grid, std::as_const(query).view(), std::as_const(key).view(),
                             std::as_const(value).view(), out.view(), heed::scale{scale()},
                             heed::lse_into{lse.view()});
  }
  template <class T>
  reference::combiner_result<T> defined(variant const& which) const {
    return reference::combiner(query.values<T>(), key.values<T>(), value.values<T>(), T(scale()),
                               static_cast<reference::pool>(grid.pool),
                               reference::combiner_axial(grid.columns, which.name));
  }
};

}  // namespace

TEST_CASE("combiner on grids: the definition", "[mechanism][combiner]") {
  for_each_seed("combiner grids", 150, [](seed_t seed) {
    grid_problem p(seed);
    std::string complaint;
    for (variant const& which : variants) {
      p.run(which);
      auto const exact = p.defined<double>(which);
      // Of a handful of terms the error of the definition may be 0; values and scores are of size 1 to 10.
      if (!(support::difference(p.out.values<double>(), exact.out) < 1e-5))
        complaint += which.name + ": out differs\n";
      if (!(support::difference(p.lse.values<double>(), exact.lse) < 1e-5))
        complaint += which.name + ": lse differs\n";
    }
    return complaint;
  });
}

TEST_CASE("combiner on grids: one row or one column is exact attention", "[mechanism][combiner]") {
  for_each_seed("combiner lines", 40, [](seed_t seed) {
    std::string complaint;
    for (bool one_row : {true, false}) {
      grid_problem p(seed, one_row ? 1 : 9, one_row ? 9 : 1);
      reference::options causal;
      causal.scale = p.scale();
      causal.keep = [](index_t, index_t i, index_t j) { return j <= i; };
      auto const exact = reference::attention(p.query.values<double>(), p.key.values<double>(),
                                              p.value.values<double>(), causal);
      for (variant const& which : variants) {
        p.run(which);
        if (!(support::difference(p.out.values<double>(), exact.out) < 1e-5))
          complaint += which.name + (one_row ? ": one row\n" : ": one column\n");
      }
    }
    return complaint;
  });
}

TEST_CASE("combiner on grids: weights are shares of every visible key", "[mechanism][combiner]") {
  grid_problem p(5, 4, 5);
  for (variant const& which : variants) {
    auto const exact = p.defined<double>(which);
    for (index_t i = 0; i < 20; ++i) {
      double sum = 0;
      for (index_t j = 0; j < 20; ++j) {
        CHECK((exact.weights(0, 0, i, j) > 0) == (j <= i));
        sum += exact.weights(0, 0, i, j);
      }
      CHECK(sum == Approx(1));
    }
  }
}

TEST_CASE("combiner on grids: what does not fit is refused", "[mechanism][combiner]") {
  grid_problem p(6, 4, 5);
  p.grid.rows = 3;
  CHECK_THROWS_WITH(p.run(variants[0]), "heed: query has shape " +
                                            heed::shape_text(p.query.extents()) +
                                            "; expected 15 positions, those of the grid");
}
