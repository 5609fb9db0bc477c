#include "reference/attention.hpp"
#include "reference/combiner.hpp"
#include "support/central_differences.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/combiner_axial.hpp>
#include <heed/mechanism/combiner_axial_cache.hpp>

// Attention through summaries of rows and columns of a grid, against its definition.

using heed::index_t;
using reference::tensor;
using support::for_each_seed;
using support::gradient_complaint;
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

template <class E>
struct grid_problem {
  support::random draw;
  heed::combiner_grid grid;
  index_t B, H;
  guarded<E, 4> query, key, value, out;
  guarded<E, 3> lse;

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
    lse = support::blank<E, 3>({B, H, N});
  }
  guarded<E, 4> make(support::extents_of<4> const& extents) {
    guarded<E, 4> tensor(extents, support::random_layout<4>(draw, extents, false));
    tensor.fill([&](auto const&) { return E(draw.normal()); });
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
    return reference::combiner(query.template values<T>(), key.template values<T>(),
                               value.template values<T>(), T(scale()),
                               static_cast<reference::pool>(grid.pool),
                               reference::combiner_axial(grid.columns, which.name));
  }

  /// Complains of gradients that are not what central differences of the definition say.
  std::string gradients(variant const& which) {
    run(which);
    auto dout = make(out.extents()), dquery = make(query.extents()), dkey = make(key.extents()),
         dvalue = make(value.extents());
    heed::combiner_attention_backward(
        grid, std::as_const(query).view(), std::as_const(key).view(), std::as_const(value).view(),
        std::as_const(out).view(), std::as_const(lse).view(), std::as_const(dout).view(),
        dquery.view(), dkey.view(), dvalue.view(), heed::scale{scale()});
    auto const loss = [&] {
      return reference::weighted_sum(dout.template values<double>(), defined<double>(which).out);
    };
    return gradient_complaint(draw, "dquery", query, dquery, loss) +
           gradient_complaint(draw, "dkey", key, dkey, loss) +
           gradient_complaint(draw, "dvalue", value, dvalue, loss);
  }
};

}  // namespace

TEST_CASE("combiner on grids: the definition", "[mechanism][combiner]") {
  for_each_seed("combiner grids", 150, [](seed_t seed) {
    grid_problem<float> p(seed);
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

TEST_CASE("combiner on grids: gradients", "[mechanism][combiner]") {
  for_each_seed("combiner grids backward", 6, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 4), columns = draw.between(1, 4);
    std::string complaint;
    for (auto pool : {heed::pooling::max, heed::pooling::sum, heed::pooling::mean})
      for (variant const& which : variants) {
        grid_problem<double> p(seed, rows, columns);
        p.grid.pool = pool;
        if (std::string const wrong = p.gradients(which); !wrong.empty())
          complaint += which.name + ", pooling " + std::to_string(int(pool)) + ": " + wrong;
      }
    return complaint;
  });
}

TEST_CASE("combiner on grids: one row or one column is exact attention", "[mechanism][combiner]") {
  for_each_seed("combiner lines", 40, [](seed_t seed) {
    std::string complaint;
    for (bool one_row : {true, false}) {
      grid_problem<float> p(seed, one_row ? 1 : 9, one_row ? 9 : 1);
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
  grid_problem<float> p(5, 4, 5);
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

TEST_CASE("combiner on grids: decoding is the whole grid, row by row", "[mechanism][combiner]") {
  for_each_seed("combiner grids decode", 60, [](seed_t seed) {
    std::string complaint;
    for (variant const& which : {variants[0], variants[1]}) {
      grid_problem<double> p(seed);
      p.run(which);
      auto const key_shape = p.key.extents(), value_shape = p.value.extents();
      index_t const columns = p.grid.columns, closed = (p.grid.rows - 1) * columns,
                    summary_heads = p.grid.key == heed::summary_key::own ? key_shape[2] : p.H;
      auto queries = p.make({p.B, columns, p.H, key_shape[3]}),
           open_keys = p.make({p.B, columns, key_shape[2], key_shape[3]}),
           open_values = p.make({p.B, columns, value_shape[2], value_shape[3]}),
           keys = p.make({p.B, closed, summary_heads, key_shape[3]}),
           values = p.make({p.B, closed, p.H, value_shape[3]}), out = p.make(p.out.extents());
      heed::combiner_axial_cache<double> cache(
          p.grid, queries.view(), heed::kv_cache<double>(open_keys.view(), open_values.view()),
          heed::kv_cache<double>(keys.view(), values.view()));
      auto const step = [&](index_t i) {
        cache.step(p.query.view().slice(1, i, 1), p.key.view().slice(1, i, 1),
                   p.value.view().slice(1, i, 1), out.view().slice(1, i, 1),
                   heed::scale{p.scale()});
      };
      for (index_t i = 0; i < p.grid.rows * columns; ++i) step(i);
      if (!(support::difference(p.out.values<double>(), out.values<double>()) < 1e-12))
        complaint += which.name + ": decoding differs\n";
      CHECK_THROWS_WITH(step(0), "heed: the grid of " + std::to_string(p.grid.rows) + " rows and " +
                                     std::to_string(columns) + " columns is full");
    }
    return complaint;
  });
}

TEST_CASE("combiner on grids: caches that do not fit are refused", "[mechanism][combiner]") {
  double memory[64];
  auto const room = [&](index_t count) {
    auto const view = heed::bnhd(memory, 1, count, 1, 2);
    return heed::kv_cache<double>(view, view);
  };
  auto const make = [&](heed::combiner_grid grid, index_t open, index_t summaries) {
    heed::combiner_axial_cache<double>(grid, heed::bnhd(memory, 1, 3, 1, 2), room(open),
                                       room(summaries));
  };
  make({4, 3}, 3, 9);
  CHECK_THROWS_WITH(
      make({4, 3}, 3, 8),
      "heed: combiner_axial_cache got room for 3 queries, for 0 of 3 and for 0 of 8 "
      "summaries; expected room for 3 of the open row and for 9 summaries, all empty");
  CHECK_THROWS_AS(make({4, 3}, 2, 9), heed::error);
  CHECK_THROWS_WITH(
      make({4, 3, heed::combiner_axis::vertical}, 3, 9),
      "heed: combiner_axial_cache decodes by rows; expected a row-major combiner_grid");
}

TEST_CASE("combiner on grids: what does not fit is refused", "[mechanism][combiner]") {
  grid_problem<float> p(6, 4, 5);
  p.grid.rows = 3;
  CHECK_THROWS_WITH(p.run(variants[0]), "heed: query has shape " +
                                            heed::shape_text(p.query.extents()) +
                                            "; expected 15 positions, those of the grid");
}
