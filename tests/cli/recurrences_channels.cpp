#include "cli/attention_files.hpp"
#include "reference/chela.hpp"
#include "reference/mega.hpp"
#include "reference/rat.hpp"

// The recurrences of channels of heed_conformance, and the layers made of them, against their definitions.

using cli::expected;
using cli::sandbox;
using heed::index_t;
using reference::tensor;
using support::for_each_seed;
using support::seed_t;

namespace {

/// Operands in files, with as many axes as they are said to have, and in memory with four.
struct operand_files : cli::attention_files {
  std::vector<std::string> names;
  reference::tensors<double> values;
  std::vector<int> ranks;

  operand_files(sandbox const& where, seed_t seed, std::string const& name)
      : attention_files(where, seed, name) {
    if (draw.one_in(3)) set("threads", index_t{2});
  }

  template <class Number>
  void add(char const* name, std::array<index_t, 4> const& shape, int rank, Number number) {
    tensor<double, 4> all(shape);
    for (double& each : all.values) each = number();
    values.push_back(all);
    names.push_back(name);
    ranks.push_back(rank);
    box.save(name, {shape.end() - rank, shape.end()}, all.values);
    call += " " + names.back() + "=" + names.back() + ".npy";
  }
  void add(char const* name, std::array<index_t, 4> const& shape, int rank = 4) {
    add(name, shape, rank, [&] { return draw.normal(); });
  }

  /// Complains about the result and the gradients of `formula`, or about decoding.
  template <class Definition>
  std::string compare(Definition const& formula, bool decodes) {
    auto const out = formula(values)[0];
    if (decodes && draw.one_in(2)) return complaint(" verb=decode", expected{"o", out});
    dout = tensor<double, 4>(out.extents);
    for (double& each : dout.values) each = draw.normal();
    box.save("do", {dout.extents.begin(), dout.extents.end()}, dout.values);
    call += " do=do.npy";
    auto const slopes = reference::gradients_of(formula, values, {dout});
    std::string all = complaint("", expected{"o", out});
    for (std::size_t n = 0; n < names.size(); ++n) {
      std::string const name = "d" + names[n];
      all += ranks[n] == 4   ? complaint("", expected{name.c_str(), slopes[n]})
             : ranks[n] == 3 ? complaint("", expected{name.c_str(), last_axes<3>(slopes[n])})
             : ranks[n] == 2 ? complaint("", expected{name.c_str(), last_axes<2>(slopes[n])})
                             : complaint("", expected{name.c_str(), last_axes<1>(slopes[n])});
    }
    return all;
  }

  template <int Rank>
  static tensor<double, Rank> last_axes(tensor<double, 4> const& from) {
    tensor<double, Rank> to;
    std::copy_n(from.extents.end() - Rank, Rank, to.extents.begin());
    to.values = from.values;
    return to;
  }
};

template <class Define>
void check(char const* name, Define const& define) {
  sandbox const box;
  for_each_seed(std::string("conformance of ") + name, 4, [&](seed_t seed) {
    operand_files c(box, seed, name);
    return define(c, c.draw.between(1, 2), c.draw.between(1, 12), c.draw.between(1, 3),
                  c.draw.between(1, 6));
  });
}

/// A state of zeros.
template <class R>
tensor<R, 4> none(tensor<R, 4> const& x, index_t rows) {
  return tensor<R, 4>({x.extent(0), x.extent(2), rows, x.extent(3)});
}

}  // namespace

TEST_CASE("heed_conformance: diagonal_scan", "[cli][recurrences]") {
  check("diagonal_scan", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    c.add("a", {B, N, H, D}, 4, [&] { return c.draw.uniform(); });
    c.add("x", {B, N, H, D});
    return c.compare(
        []<class R>(reference::tensors<R> const& in) {
          auto h = in[1];
          for (index_t b = 0; b < h.extent(0); ++b)
            for (index_t t = 1; t < h.extent(1); ++t)
              for (index_t n = 0; n < h.extent(2); ++n)
                for (index_t d = 0; d < h.extent(3); ++d)
                  h(b, t, n, d) = in[0](b, t, n, d) * h(b, t - 1, n, d) + in[1](b, t, n, d);
          return reference::tensors<R>{h};
        },
        true);
  });
}

TEST_CASE("heed_conformance: causal_convolution", "[cli][recurrences]") {
  check("causal_convolution", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    bool const silu = c.draw.one_in(2);
    c.add("x", {B, N, H, D});
    c.add("weights", {1, c.draw.between(1, 6), H, D}, 3);
    c.add("bias", {1, 1, H, D}, 2);
    c.set("silu", std::string(silu ? "true" : "false"));
    return c.compare(
        [silu]<class R>(reference::tensors<R> const& in) {
          tensor<R, 4> last;
          return reference::tensors<R>{reference::causal_convolution<R>(
              {}, in[0], in[1], in[2], none(in[0], in[1].extent(1) - 1), silu, last)};
        },
        true);
  });
}

TEST_CASE("heed_conformance: selective_scan", "[cli][recurrences]") {
  check("selective_scan", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    index_t const n = c.draw.between(1, 4);
    c.add("u", {B, N, H, D});
    c.add("step", {B, N, H, D});
    c.add("a", {1, H, D, n}, 3, [&] { return -c.draw.uniform(); });
    c.add("b", {B, N, 1, n});
    c.add("c", {B, N, 1, n});
    c.add("skip", {1, 1, H, D}, 2);
    c.add("z", {B, N, H, D});
    c.add("bias", {1, 1, H, D}, 2);
    return c.compare(
        []<class R>(reference::tensors<R> const& in) {
          auto step = in[1];
          for (index_t b = 0; b < step.extent(0); ++b)
            for (index_t t = 0; t < step.extent(1); ++t)
              for (index_t h = 0; h < step.extent(2); ++h)
                for (index_t d = 0; d < step.extent(3); ++d)
                  step(b, t, h, d) = reference::softplus(step(b, t, h, d) + in[7](0, 0, h, d));
          auto const initial = none(in[0], in[2].extent(3));
          tensor<R, 4> last;
          return reference::tensors<R>{reference::selective_scan<R>(
              {}, {in[0], step, in[2], in[3], in[4], in[5], in[6], initial}, last)};
        },
        true);
  });
}

TEST_CASE("heed_conformance: state_space_dual", "[cli][recurrences]") {
  check("state_space_dual", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    index_t const n = c.draw.between(1, 4);
    c.add("x", {B, N, H, D});
    c.add("b", {B, N, 1, n});
    c.add("c", {B, N, 1, n});
    // The definition has one number each at the end.
    auto const of = [&](std::array<index_t, 4> const& shape, int rank, char const* name, double low,
                        double high) {
      c.add(name, shape, rank, [&] { return c.draw.uniform(low, high); });
    };
    of({1, B, N, H}, 3, "step", 0, 1);
    of({1, 1, 1, H}, 1, "rate", -2, 0);
    of({1, 1, 1, H}, 1, "skip", -1, 1);
    c.accuracy = 1e-10;
    return c.compare(
        [=]<class R>(reference::tensors<R> const& in) {
          tensor<R, 4> step({B, N, H, 1}), rate({B, N, H, 1}), skip({1, 1, H, 1});
          for (index_t h = 0; h < H; ++h) {
            skip(0, 0, h, 0) = in[5](0, 0, 0, h);
            for (index_t b = 0; b < B; ++b)
              for (index_t t = 0; t < N; ++t) {
                step(b, t, h, 0) = in[3](0, b, t, h);
                rate(b, t, h, 0) = in[4](0, 0, 0, h);
              }
          }
          auto out = reference::state_space_dual<R>(
              {}, {in[0], step, in[1], in[2], skip, none(in[0], n), rate});
          out.resize(1);
          return out;
        },
        true);
  });
}

TEST_CASE("heed_conformance: s4d", "[cli][recurrences]") {
  check("s4d", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    index_t const n = c.draw.between(1, 3);
    c.add("u", {B, N, H, D});
    c.add("log_step", {1, 1, H, D}, 2, [&] { return c.draw.uniform(-3, 0); });
    c.add("skip", {1, 1, H, D}, 2);
    for (char const* name : {"decay", "frequency", "c_re", "c_im"}) c.add(name, {1, H, D, n}, 3);
    return c.compare(
        [n]<class R>(reference::tensors<R> in) {
          in.push_back(none(in[0], 2 * n));
          auto out = reference::s4d<R>({}, in);
          out.resize(1);
          return out;
        },
        true);
  });
}

TEST_CASE("heed_conformance: ema", "[cli][recurrences]") {
  check("ema", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    index_t const n = c.draw.between(1, 3);
    c.add("x", {B, N, H, D});
    for (char const* name : {"delta", "alpha", "beta", "gamma"}) c.add(name, {1, H, D, n}, 3);
    c.add("omega", {1, 1, H, D}, 2);
    return c.compare(
        []<class R>(reference::tensors<R> const& in) {
          auto out = reference::moving_averages<R>({}, in, 1, nullptr, nullptr, false);
          for (index_t b = 0; b < out.extent(0); ++b)
            for (index_t t = 0; t < out.extent(1); ++t)
              for (index_t h = 0; h < out.extent(2); ++h)
                for (index_t d = 0; d < out.extent(3); ++d)
                  out(b, t, h, d) = out(b, t, h, d) + in[5](0, 0, h, d) * in[0](b, t, h, d);
          return reference::tensors<R>{out};
        },
        true);
  });
}

TEST_CASE("heed_conformance: mega", "[cli][recurrences]") {
  check("mega", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    using reference::mega_function;
    reference::mega_context const context{c.draw.one_in(2), c.draw.between(0, 5), {}};
    auto const function = c.draw.one_of(
        std::array{mega_function::softmax, mega_function::laplace, mega_function::relu_squared});
    c.add("q", {B, N, H, D});
    c.add("k", {B, N, 1, D});
    c.add("v", {B, N, H, D + 1});
    c.add("table", {1, 1, 1, 2 * N - 1}, 1);
    c.set("causal", std::string(context.causal ? "true" : "false"));
    c.set("block", context.block);
    c.set("function", std::string(function == mega_function::softmax   ? "softmax"
                                  : function == mega_function::laplace ? "laplace"
                                                                       : "relu_squared"));
    return c.compare(
        [=]<class R>(reference::tensors<R> const& in) {
          return reference::tensors<R>{reference::mega(function, context, in, false)};
        },
        false);
  });
}

TEST_CASE("heed_conformance: rat", "[cli][recurrences]") {
  check("rat", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    index_t const size = c.draw.between(1, 5);
    auto const gate = [&] { return c.draw.uniform(); };
    c.add("q", {B, N, H, 2 * D});
    c.add("k", {B, N, H, 2 * D});
    c.add("v", {B, N, 1, 2 * D});
    c.add("forget", {B, N, H, 2 * D}, 4, gate);
    c.add("gate", {B, N, H, 2 * D}, 4, gate);
    c.set("chunk", size);
    return c.compare(
        [size]<class R>(reference::tensors<R> const& in) {
          return reference::tensors<R>{reference::rat(in, size, false)};
        },
        true);
  });
}

TEST_CASE("heed_conformance: chela", "[cli][recurrences]") {
  check("chela", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    bool const is_dense = c.draw.one_in(3);
    c.add("x", {B, N, H, D});
    c.add("short", {1, 3, H, D}, 3);
    c.add("long", {1, c.draw.between(1, 9), H, D}, 3);
    for (char const* name : {"a_q", "b_q", "a_k", "b_k"}) c.add(name, {1, 1, H, D}, 2);
    c.add("v", {B, N, H, D + 1});
    c.set("dense", std::string(is_dense ? "true" : "false"));
    return c.compare(
        [is_dense]<class R>(reference::tensors<R> const& in) {
          return reference::tensors<R>{reference::chela(in, {}, is_dense, false)[1]};
        },
        !is_dense);
  });
}

TEST_CASE("heed_conformance: hymba_fusion", "[cli][recurrences]") {
  check("hymba_fusion", [](operand_files& c, index_t B, index_t N, index_t H, index_t D) {
    c.add("attention", {B, N, H, D});
    c.add("state_space", {B, N, H, D});
    c.add("w1", {1, 1, H, D}, 2);
    c.add("w2", {1, 1, H, D}, 2);
    return c.compare(
        []<class R>(reference::tensors<R> const& in) {
          auto out = reference::weighted_rms(in[0], in[2], 1e-6);
          auto const other = reference::weighted_rms(in[1], in[3], 1e-6);
          for (std::size_t n = 0; n < out.values.size(); ++n)
            out.values[n] = (out.values[n] + other.values[n]) / R(2);
          return reference::tensors<R>{out};
        },
        false);
  });
}
