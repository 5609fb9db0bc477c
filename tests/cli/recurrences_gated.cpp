#include "cli/attention_files.hpp"
#include "reference/flow_attention.hpp"

// The recurrences with gates of heed_conformance, against their definitions.

using cli::expected;
using cli::sandbox;
using heed::index_t;
using reference::tensor;
using reference::tensors;
using support::for_each_seed;
using support::seed_t;

namespace {

/// Operands in files of their own shapes, and in memory with four axes.
struct gated_files : cli::attention_files {
  std::vector<std::string> names;
  std::vector<std::vector<index_t>> shapes;
  tensors<double> values;
  index_t B, N, H, D, E;

  gated_files(sandbox const& where, seed_t seed, std::string const& name)
      : attention_files(where, seed, name),
        B(draw.between(1, 2)),
        N(draw.between(2, 12)),
        H(draw.between(1, 3)),
        D(draw.between(2, 6)),
        E(draw.between(2, 6)) {
    if (draw.one_in(3)) set("threads", index_t{2});
    add("q", {B, N, H, D});
    add("k", {B, N, H, D});
    add("v", {B, N, H, E});
  }

  template <class Number>
  void add(char const* name, std::vector<index_t> const& shape, std::array<index_t, 4> const& four,
           Number number) {
    tensor<double, 4> all(four);
    for (double& each : all.values) each = number();
    box.save(name, shape, all.values);
    call += " " + std::string(name) + "=" + name + ".npy";
    values.push_back(all);
    names.push_back(name);
    shapes.push_back(shape);
  }
  void add(char const* name, std::array<index_t, 4> const& shape) {
    add(name, {shape.begin(), shape.end()}, shape, [&] { return draw.normal(); });
  }
  /// One number for each token and head.
  void add_tokens(char const* name, double low, double high) {
    add(name, {B, N, H}, {B, N, H, 1}, [=, this] { return draw.uniform(low, high); });
  }

  /// Complains about the result and the gradients of `formula`, or about decoding.
  template <class Definition>
  std::string compare(Definition const& formula, bool decodes = true) {
    auto const out = formula(values)[0];
    if (decodes && draw.one_in(2)) return complaint(" verb=decode", expected{"o", out});
    dout = cli::normal<4>(draw, out.extents);
    box.save_as<double>("do", dout);
    call += " do=do.npy";
    auto const slopes = reference::gradients_of(formula, values, {dout});
    std::string all = complaint("", expected{"o", out});
    for (std::size_t n = 0; n < names.size(); ++n) {
      std::string const name = "d" + names[n];
      auto const check = [&]<int Rank>(std::integral_constant<int, Rank>) {
        tensor<double, Rank> golden;
        std::copy(shapes[n].begin(), shapes[n].end(), golden.extents.begin());
        golden.values = slopes[n].values;
        all += complaint("", expected{name.c_str(), golden});
      };
      switch (shapes[n].size()) {
        case 1:
          check(std::integral_constant<int, 1>());
          break;
        case 2:
          check(std::integral_constant<int, 2>());
          break;
        case 3:
          check(std::integral_constant<int, 3>());
          break;
        default:
          check(std::integral_constant<int, 4>());
      }
    }
    return all;
  }
};

template <class Define>
void check(char const* name, Define const& define) {
  sandbox const box;
  for_each_seed(std::string("conformance of ") + name, 4, [&](seed_t seed) {
    gated_files c(box, seed, name);
    return define(c);
  });
}

}  // namespace

TEST_CASE("heed_conformance: delta_rule", "[cli][recurrences]") {
  check("delta_rule", [](gated_files& c) {
    bool const gated = c.draw.one_in(2), silu = c.draw.one_in(2);
    c.add_tokens("rate", 0, 1.5);
    if (gated) c.add_tokens("log_gate", -1, 0);
    c.set("silu", std::string(silu ? "true" : "false"));
    return c.compare([=, D = c.D]<class U>(tensors<U> const& in) {
      auto const unit = [&](tensor<U, 4> const& x) {
        return reference::unit_rows(silu ? each(x, reference::silu<U>) : x, 1e-12);
      };
      reference::recurrence_parts<U> parts;
      parts.scale = U(1 / std::sqrt(double(D)));
      parts.rate = in[3];
      if (gated) parts.log_gate = in[4];
      return tensors<U>{reference::gated_recurrence(unit(in[0]), unit(in[1]), in[2], parts)};
    });
  });
}

TEST_CASE("heed_conformance: efla", "[cli][recurrences]") {
  check("efla", [](gated_files& c) {
    c.add_tokens("rate", 0.1, 2);
    return c.compare([D = c.D]<class U>(tensors<U> const& in) {
      reference::recurrence_parts<U> parts;
      parts.scale = U(1 / std::sqrt(double(D)));
      parts.rate = in[3];
      parts.exact = true;
      return tensors<U>{
          reference::gated_recurrence(reference::unit_rows(in[0], 1e-12), in[1], in[2], parts)};
    });
  });
}

TEST_CASE("heed_conformance: gated_linear_attention", "[cli][recurrences]") {
  check("gated_linear_attention", [](gated_files& c) {
    c.add("gate", {c.B, c.N, c.H, c.D});
    return c.compare([D = c.D]<class U>(tensors<U> const& in) {
      reference::recurrence_parts<U> parts;
      parts.scale = U(1 / std::sqrt(double(D)));
      parts.log_gate = each(in[3], [](U const& x) { return -reference::softplus(-x) / U(16); });
      return tensors<U>{reference::gated_recurrence(in[0], in[1], in[2], parts)};
    });
  });
}

TEST_CASE("heed_conformance: transnormer", "[cli][recurrences]") {
  check("transnormer", [](gated_files& c) {
    bool const turns = c.draw.one_in(2);
    c.add("gate", {c.B, c.N, c.H, c.E});
    if (turns) c.add("theta", {1, c.D}, {1, 1, 1, c.D}, [&] { return c.draw.uniform(0.01, 1); });
    tensor<double, 1> decays({c.H});
    for (double& each : decays.values) each = float(c.draw.uniform(-1, 0));
    c.save("log_decays", decays);
    return c.compare([=, B = c.B, N = c.N, H = c.H]<class U>(tensors<U> const& in) {
      auto const features = [&](tensor<U, 4> const& x) {
        auto const phi = each(x, reference::silu<U>);
        return turns ? reference::turned(phi, in[4], true, {}, 0) : phi;
      };
      reference::recurrence_parts<U> parts;
      parts.log_gate = tensor<U, 4>({B, N, H, 1});
      for (std::size_t n = 0; n < parts.log_gate.values.size(); ++n)
        parts.log_gate.values[n] = U(decays.values[n % static_cast<std::size_t>(H)]);
      auto const o = reference::gated_recurrence(features(in[0]), features(in[1]), in[2], parts);
      return tensors<U>{each(reference::rms_rows(o, 1e-6, true), in[3],
                             [](U const& x, U const& gate) { return x * gate; })};
    });
  });
}

TEST_CASE("heed_conformance: lightnet", "[cli][recurrences]") {
  check("lightnet", [](gated_files& c) {
    bool const single = c.draw.one_in(2);
    c.set("order", std::string(single ? "single_scan" : "causal"));
    return c.compare(
        [=]<class U>(tensors<U> const& in) {
          auto const q = each(in[0], reference::silu<U>);
          if (!single) {
            auto const shares = reference::running_shares(in[1], {});
            reference::recurrence_parts<U> parts;
            parts.log_gate = shares.second;
            return tensors<U>{reference::gated_recurrence(q, shares.first, in[2], parts)};
          }
          auto const state = reference::into_slots(reference::position_softmax(in[1], {}), in[2]);
          tensor<U, 4> out(in[2].extents);
          for (index_t b = 0; b < out.extent(0); ++b)
            for (index_t i = 0; i < out.extent(1); ++i)
              for (index_t h = 0; h < out.extent(2); ++h)
                for (index_t e = 0; e < out.extent(3); ++e)
                  for (index_t d = 0; d < q.extent(3); ++d)
                    out(b, i, h, e) += q(b, i, h, d) * state(b, d, h, e);
          return tensors<U>{out};
        },
        !single);
  });
}

TEST_CASE("heed_conformance: flow_attention", "[cli][recurrences]") {
  check("flow_attention", [](gated_files& c) {
    bool const causal = c.draw.one_in(2);
    c.set("order", std::string(causal ? "causal" : "dense"));
    c.set("clamp", 0.8);
    return c.compare(
        [=]<class U>(tensors<U> const& in) {
          reference::flow const flow{0.8, false};
          return tensors<U>{causal ? flow.causal(in[0], in[1], in[2], false)
                                   : flow.normal(in[0], in[1], in[2])};
        },
        causal);
  });
}

TEST_CASE("heed_conformance: gated_slot_attention", "[cli][recurrences]") {
  check("gated_slot_attention", [](gated_files& c) {
    index_t const m = c.draw.between(1, 5);
    c.add("strength", {c.B, c.N, c.H, m});
    c.add("log_gate", {c.B, c.N, c.H, m}, {c.B, c.N, c.H, m},
          [&] { return c.draw.uniform(-1, 0); });
    return c.compare([D = c.D]<class U>(tensors<U> const& in) {
      reference::recurrence_parts<U> parts;
      parts.scale = U(1 / std::sqrt(double(D)));
      return tensors<U>{reference::slot_attention(in[0], in[1], in[2], in[3], in[4], parts, false)};
    });
  });
}

TEST_CASE("heed_conformance: abc", "[cli][recurrences]") {
  check("abc", [](gated_files& c) {
    bool const causal = c.draw.one_in(2);
    index_t const m = c.draw.between(1, 5);
    c.add("control", {c.B, c.N, c.H, m});
    if (!causal) c.add("value_control", {c.B, c.N, c.H, m});
    c.set("order", std::string(causal ? "causal" : "dense"));
    return c.compare(
        [=, D = c.D]<class U>(tensors<U> const& in) {
          double const scale = 1 / std::sqrt(double(D));
          if (causal) {
            reference::recurrence_parts<U> parts;
            parts.scale = U(scale);
            auto const shares = reference::running_shares(in[3], {});
            return tensors<U>{reference::slot_attention(in[0], in[1], in[2], shares.first,
                                                        shares.second, parts, false)};
          }
          return tensors<U>{reference::dense_attention(
              in[0], reference::into_slots(reference::position_softmax(in[3], {}), in[1]),
              reference::into_slots(reference::position_softmax(in[4], {}), in[2]), scale)};
        },
        causal);
  });
}

TEST_CASE("heed_conformance: lizard", "[cli][recurrences]") {
  check("lizard", [](gated_files& c) {
    index_t const W = c.draw.between(1, 4), window = c.draw.between(1, 8), H = c.H, D = c.D;
    auto const small = [&] { return 0.3 * c.draw.normal(); };
    c.add("gate", {c.B, c.N, H, 1});
    c.add("query_weights", {1, D, W}, {1, 1, D, W}, small);
    c.add("key_weights", {H, D, W}, {1, H, D, W}, small);
    c.add("alpha", {H}, {1, 1, H, 1}, small);
    c.add("sinks", {H, 2}, {1, 1, H, 2}, small);
    c.set("window", window);
    return c.compare([=]<class U>(tensors<U> const& in) {
      using std::exp;
      auto const features = [&](tensor<U, 4> const& x, tensor<U, 4> const& w) {
        tensor<U, 4> phi({x.extent(0), x.extent(1), H, 2 * W});
        for (index_t b = 0; b < x.extent(0); ++b)
          for (index_t i = 0; i < x.extent(1); ++i)
            for (index_t h = 0; h < H; ++h)
              for (index_t f = 0; f < W; ++f) {
                U y = 0;
                for (index_t d = 0; d < D; ++d)
                  y += x(b, i, h, d) * w(0, w.extent(1) == 1 ? 0 : h, d, f);
                phi(b, i, h, f) = exp(y);
                phi(b, i, h, f + W) = exp(-y);
              }
        return phi;
      };
      reference::recurrence_parts<U> parts;
      parts.log_gate = each(in[3], [](U const& x) { return -reference::softplus(-x); });
      auto const q = features(in[0], in[4]), k = features(in[1], in[5]);
      tensor<U, 4> out = reference::gated_recurrence(q, k, in[2], parts);
      tensor<U, 4> const sums = reference::gated_recurrence(
          q, k, tensor<U, 4>({in[0].extent(0), in[0].extent(1), H, 1}, U(1)), parts);
      for (index_t b = 0; b < out.extent(0); ++b)
        for (index_t i = 0; i < out.extent(1); ++i)
          for (index_t h = 0; h < H; ++h) {
            U total = exp(in[7](0, 0, h, 0)) + exp(in[7](0, 0, h, 1));
            std::vector<U> sum(static_cast<std::size_t>(out.extent(3)), U(0));
            for (index_t j = std::max<index_t>(0, i - window + 1); j <= i; ++j) {
              U score = 0;
              for (index_t d = 0; d < D; ++d)
                score += U(1 / std::sqrt(double(D))) * in[0](b, i, h, d) * in[1](b, j, h, d);
              total += exp(score);
              for (index_t e = 0; e < out.extent(3); ++e)
                sum[static_cast<std::size_t>(e)] += exp(score) * in[2](b, j, h, e);
            }
            for (index_t e = 0; e < out.extent(3); ++e)
              out(b, i, h, e) = out(b, i, h, e) / sums(b, i, h, 0) +
                                in[6](0, 0, h, 0) * sum[static_cast<std::size_t>(e)] / total;
          }
      return tensors<U>{out};
    });
  });
}
