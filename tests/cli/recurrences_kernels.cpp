#include "cli/attention_files.hpp"
#include "reference/kernel_attention.hpp"
#include "reference/traced.hpp"

// The kernels of heed_conformance against their weights, pair by pair.

using cli::attention_files;
using cli::expected;
using cli::normal;
using cli::sandbox;
using heed::index_t;
using reference::tensor;
using support::for_each_seed;
using support::seed_t;

namespace {

/// A call of a kernel: operands of a few rows and keys, in files.
struct kernel_files : attention_files {
  bool causal;

  kernel_files(sandbox const& where, seed_t seed, std::string const& name, bool decodes)
      : attention_files(where, seed, name) {
    single = draw.one_in(2);
    batches = draw.between(1, 2);
    heads = 4;
    key_heads = 2;
    keys = draw.between(1, 20);
    rows = decodes ? keys : draw.between(1, 20);
    causal = decodes || draw.one_in(2);
    set("order", std::string(causal ? "causal" : "dense"));
  }

  /// Complains about the results and gradients, or about decoding.
  template <class Definition>
  std::string compare(Definition const& formula, bool decodes) {
    std::vector<tensor<double, 4>> const in{q, k, v};
    auto const out = formula(in)[0];
    if (decodes) return complaint(" verb=decode", expected{"o", out});
    save("do", dout);
    auto const slopes = reference::gradients_of(formula, in, {dout});
    return complaint("", expected{"o", out}, expected{"dq", slopes[0]}, expected{"dk", slopes[1]},
                     expected{"dv", slopes[2]});
  }
};

template <class Define>
void check(char const* name, Define const& define) {
  sandbox const box;
  for_each_seed(std::string("conformance of ") + name, 8, [&](seed_t seed) {
    bool const decodes = seed % 3 == 0;
    kernel_files c(box, seed, name, decodes);
    c.draw_operands(false);
    return define(c, decodes);
  });
}

}  // namespace

TEST_CASE("heed_conformance: kernelised", "[cli][recurrences]") {
  check("kernelised", [](kernel_files& c, bool decodes) {
    return c.compare(
        [causal = c.causal]<class U>(reference::tensors<U> const& in) {
          using std::exp;
          auto const elu = [](std::vector<U> row) {
            for (U& x : row) x = x > U(0) ? x + U(1) : exp(x);
            return row;
          };
          return reference::tensors<U>{reference::kernel_call{4, causal, 1e-6}.average(
              in[0], in[1], in[2], [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
                return reference::dot_of(elu(reference::row_of(in[0], b, i, hq)),
                                         elu(reference::row_of(in[1], b, j, hk)));
              })};
        },
        decodes);
  });
}

TEST_CASE("heed_conformance: based", "[cli][recurrences]") {
  check("based", [](kernel_files& c, bool decodes) {
    return c.compare(
        [causal = c.causal]<class U>(reference::tensors<U> const& in) {
          double const scale = 1 / std::sqrt(static_cast<double>(in[0].extent(3)));
          return reference::tensors<U>{reference::kernel_call{4, causal, 1e-12}.average(
              in[0], in[1], in[2], [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
                return reference::cut_exponential(
                    U(scale) * reference::dot_of(reference::row_of(in[0], b, i, hq),
                                                 reference::row_of(in[1], b, j, hk)),
                    2);
              })};
        },
        decodes);
  });
}

TEST_CASE("heed_conformance: cosformer", "[cli][recurrences]") {
  check("cosformer", [](kernel_files& c, bool decodes) {
    c.set("horizon", index_t{50});
    return c.compare(
        [causal = c.causal]<class U>(reference::tensors<U> const& in) {
          index_t const shift = causal ? in[1].extent(1) - in[0].extent(1) : 0;
          return reference::tensors<U>{reference::kernel_call{4, causal, 0, 1e-6}.average(
              in[0], in[1], in[2], [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
                return reference::cosine_weight(reference::row_of(in[0], b, i, hq),
                                                reference::row_of(in[1], b, j, hk), i + shift - j,
                                                50);
              })};
        },
        decodes);
  });
}

TEST_CASE("heed_conformance: fast_attention", "[cli][recurrences]") {
  check("fast_attention", [](kernel_files& c, bool decodes) {
    bool const by_norm = !decodes && c.draw.one_in(2);
    c.set("standardise", std::string(by_norm ? "by_largest_norm" : "by_deviation"));
    return c.compare(
        [causal = c.causal, by_norm]<class U>(reference::tensors<U> const& in) {
          auto const rows = [&](tensor<U, 4> const& x) {
            return by_norm ? reference::by_largest_norm(x)
                           : reference::rows_of_features(x, x.extent(3),
                                                         [](std::vector<U> const& row, index_t) {
                                                           return reference::by_deviation(row);
                                                         });
          };
          auto const q = rows(in[0]), k = rows(in[1]);
          return reference::tensors<U>{reference::kernel_call{4, causal}.average(
              q, k, in[2], [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
                return reference::cut_exponential(reference::dot_of(reference::row_of(q, b, i, hq),
                                                                    reference::row_of(k, b, j, hk)),
                                                  2);
              })};
        },
        decodes);
  });
}

TEST_CASE("heed_conformance: efficient_attention", "[cli][recurrences]") {
  check("efficient_attention", [](kernel_files& c, bool decodes) {
    return c.compare(
        [causal = c.causal]<class U>(reference::tensors<U> const& in) {
          return reference::tensors<U>{
              reference::efficient_attention(in[0], in[1], in[2], 4, causal)};
        },
        decodes);
  });
}

TEST_CASE("heed_conformance: performer", "[cli][recurrences]") {
  check("performer", [](kernel_files& c, bool decodes) {
    auto omega = normal<2>(c.draw, {c.draw.between(1, 12), c.dim});
    c.save("omega", omega);
    return c.compare(
        [causal = c.causal, omega]<class U>(reference::tensors<U> const& in) {
          return reference::tensors<U>{reference::performer(in[0], in[1], in[2], omega,
                                                            reference::kernel_call{4, causal},
                                                            causal ? 0 : 1e-4, false)};
        },
        decodes);
  });
}
