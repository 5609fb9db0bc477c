#include "cli/attention_files.hpp"
#include "reference/combiner.hpp"
#include "reference/extra_keys.hpp"
#include "reference/gates.hpp"
#include "reference/halo.hpp"
#include "reference/local_aggregation.hpp"

// The mechanisms of heed_conformance that are more than a pattern, against their definitions.

using cli::attention_files;
using cli::expected;
using cli::normal;
using cli::sandbox;
using heed::index_t;
using reference::tensor;
using support::for_each_seed;
using support::seed_t;

namespace {

/// A call with operands of a few rows and keys.
struct random_files : attention_files {
  random_files(sandbox const& where, seed_t seed, std::string const& name, index_t most = 30)
      : attention_files(where, seed, name) {
    single = draw.one_in(2);
    batches = draw.between(1, 2);
    heads = 4;
    key_heads = 2;
    keys = draw.between(1, most);
    rows = draw.between(1, keys);
    keep = [](index_t, index_t, index_t, index_t) { return true; };
  }
};

/// d loss / d x by differences.
template <int Rank, class Loss>
tensor<double, Rank> slopes(tensor<double, Rank>& x, Loss loss) {
  constexpr double step = 1e-5;
  tensor<double, Rank> result(x.extents);
  for (std::size_t n = 0; n < x.values.size(); ++n) {
    double const middle = x.values[n];
    x.values[n] = middle + step;
    double const above = loss();
    x.values[n] = middle - step;
    result.values[n] = (above - loss()) / (2 * step);
    x.values[n] = middle;
  }
  return result;
}

double scale_of(attention_files const& c) {
  return c.definition.scale.value_or(1 / std::sqrt(static_cast<double>(c.dim)));
}

/// The gradients of q, k and v under a definition that is plain attention.
reference::gradients<double> gradients_of(attention_files const& c,
                                          reference::result<double> const& forward,
                                          tensor<double, 4> const& dout,
                                          tensor<double, 3> const& dlse = {}) {
  return reference::attention_backward(c.q, c.k, c.v, forward.out, forward.lse, dout, dlse,
                                       c.definition);
}

}  // namespace

TEST_CASE("heed_conformance: all_or_here", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of all_or_here", 10, [&](seed_t seed) {
    random_files c(box, seed, "all_or_here");
    index_t const recent = c.draw.between(1, 9), shift = c.rows - c.keys;
    auto const logits = normal<3>(c.draw, {c.batches, c.heads, c.rows});
    c.save("logits", logits);
    c.set("recent", recent);
    auto const row = [=](index_t b, index_t h, index_t p) { return logits(b, h, p + shift); };
    c.keep = [=](index_t b, index_t h, index_t p, index_t j) {
      return j <= p && (row(b, h, p) > 0 || p - j < recent);
    };
    c.draw_operands();
    auto const golden = reference::attention(c.q, c.k, c.v, c.definition);
    std::string complaint =
        c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse}) +
        c.complaint(" verb=decode", expected{"o", golden.out}, expected{"lse", golden.lse});
    auto const slope = gradients_of(c, golden, c.dout);
    auto all = c.definition, near = c.definition;
    all.keep_in_head = [](index_t, index_t, index_t p, index_t j) { return j <= p; };
    near.keep_in_head = [=](index_t, index_t, index_t p, index_t j) {
      return j <= p && p - j < recent;
    };
    auto const full = reference::attention(c.q, c.k, c.v, all).out,
               local = reference::attention(c.q, c.k, c.v, near).out;
    tensor<double, 3> dlogits(logits.extents);
    for (index_t b = 0; b < c.batches; ++b)
      for (index_t h = 0; h < c.heads; ++h)
        for (index_t i = 0; i < c.rows; ++i) {
          double const gate = 1 / (1 + std::exp(-logits(b, h, i)));
          for (index_t d = 0; d < full.extent(3); ++d)
            dlogits(b, h, i) +=
                gate * (1 - gate) * c.dout(b, i, h, d) * (full(b, i, h, d) - local(b, i, h, d));
        }
    c.save("do", c.dout);
    return complaint + c.complaint("", expected{"o", golden.out}, expected{"dq", slope.query},
                                   expected{"dk", slope.key}, expected{"dv", slope.value},
                                   expected{"dlogits", dlogits});
  });
}

TEST_CASE("heed_conformance: duo_attention", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of duo_attention", 10, [&](seed_t seed) {
    random_files c(box, seed, "duo_attention");
    index_t const sinks = c.draw.between(0, 3), recent = c.draw.between(1, 9);
    tensor<double, 1> gates({c.key_heads});
    for (double& gate : gates.values) gate = float(c.draw.uniform(-0.3, 1.3));
    c.save("gates", gates);
    c.set("sinks", sinks);
    c.set("recent", recent);
    auto const streams = [=](index_t p, index_t j) {
      return j <= p && (j < sinks || p - j < recent);
    };
    c.keep = [=](index_t, index_t, index_t p, index_t j) { return streams(p, j); };
    c.draw_operands();
    auto const streamed = reference::attention(c.q, c.k, c.v, c.definition);
    auto other = c.definition;
    other.keep_in_head = [](index_t, index_t, index_t p, index_t j) { return j <= p; };
    tensor<double, 4> full = reference::attention(c.q, c.k, c.v, other).out;
    other.keep_in_head = [=](index_t, index_t h, index_t p, index_t j) {
      return gates(h / 2) > 0.5 ? j <= p : streams(p, j);
    };
    auto const deployed = reference::attention(c.q, c.k, c.v, other);
    std::string complaint =
        c.complaint(" deployed=true", expected{"o", deployed.out}, expected{"lse", deployed.lse}) +
        c.complaint(" verb=decode", expected{"o", deployed.out}, expected{"lse", deployed.lse});
    if (c.draw.one_in(2)) {
      full = normal<4>(c.draw, full.extents);  // a teacher's
      c.save("full", full);
    }
    tensor<double, 4> out(full.extents), dstreamed(full.extents);
    tensor<double, 1> dgates(gates.extents);
    for (index_t b = 0; b < c.batches; ++b)
      for (index_t i = 0; i < c.rows; ++i)
        for (index_t h = 0; h < c.heads; ++h)
          for (index_t d = 0; d < full.extent(3); ++d) {
            double const gate = std::clamp(gates(h / 2), 0.0, 1.0), slope = c.dout(b, i, h, d);
            double const difference = full(b, i, h, d) - streamed.out(b, i, h, d);
            out(b, i, h, d) = streamed.out(b, i, h, d) + gate * difference;
            dstreamed(b, i, h, d) = (1 - gate) * slope;
            if (gate > 0 && gate < 1) dgates(h / 2) += slope * difference;
          }
    auto const slope = gradients_of(c, streamed, dstreamed);
    complaint += c.complaint("", expected{"o", out});
    c.save("do", c.dout);
    return complaint + c.complaint("", expected{"dq", slope.query}, expected{"dk", slope.key},
                                   expected{"dv", slope.value}, expected{"dgates", dgates});
  });
}

TEST_CASE("heed_conformance: extra_keys", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of extra_keys", 10, [&](seed_t seed) {
    random_files c(box, seed, "extra_keys");
    reference::extra_key_options how;
    if (c.draw.one_in(2)) {
      index_t const left = c.draw.between(-1, 9), right = c.draw.between(-1, 9);
      c.set("left", left);
      c.set("right", right);
      how.keep = [=](index_t p, index_t j) {
        return (left < 0 || p - left <= j) && (right < 0 || j <= p + right);
      };
    } else {
      std::vector<reference::axis> axes;
      std::vector<index_t> canvas, window;
      c.keys = 1;
      for (index_t axis = c.draw.between(1, 2); axis > 0; --axis) {
        canvas.push_back(c.draw.between(1, 6));
        window.push_back(c.draw.between(1, canvas.back()));
        axes.push_back({canvas.back(), window.back(), 1, 1, false});
        c.keys *= canvas.back();
      }
      c.rows = c.keys;
      c.set("canvas", canvas);
      c.set("window", window);
      how.keep = [=](index_t p, index_t j) { return reference::neighborhood_keeps(axes, p, j); };
    }
    how.keep_extra = [](index_t, index_t) { return true; };
    c.draw_operands();
    how.scale = c.definition.scale;
    index_t const extra = c.draw.between(0, 6);
    auto const key = normal<4>(c.draw, {c.batches, extra, 2, c.dim}),
               value = normal<4>(c.draw, {c.batches, extra, 4, c.v.extent(3)});
    how.log_weight = normal<3>(c.draw, {c.batches, c.heads, extra});
    c.save("extra_k", key);
    c.save("extra_v", value);
    c.save("log_weights", how.log_weight);
    reference::with_extra_keys<double> const all(c.q, c.k, c.v, key, value, how);
    auto const golden = reference::attention(c.q, all.key, all.value, all.how);
    std::string complaint = c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse});
    auto const slope = reference::attention_backward(c.q, all.key, all.value, golden.out,
                                                     golden.lse, c.dout, c.dlse, all.how);
    auto const dk = reference::shared_gradient(slope.key, 0, c.k),
               dv = reference::shared_gradient(slope.value, 0, c.v),
               dextra_k = reference::shared_gradient(slope.key, c.keys, key),
               dextra_v = reference::shared_gradient(slope.value, c.keys, value);
    tensor<double, 3> dweights(how.log_weight.extents);
    for (index_t b = 0; b < c.batches; ++b)
      for (index_t h = 0; h < c.heads; ++h)
        for (index_t t = 0; t < extra; ++t)
          dweights(b, h, t) = slope.modifiers[0](b, h, 0, c.keys + t);
    c.save("do", c.dout);
    c.save("dlse", c.dlse);
    return complaint + c.complaint("", expected{"dq", slope.query}, expected{"dk", dk},
                                   expected{"dv", dv}, expected{"dextra_k", dextra_k},
                                   expected{"dextra_v", dextra_v},
                                   expected{"dlog_weights", dweights});
  });
}

TEST_CASE("heed_conformance: razor_attention", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of razor_attention", 10, [&](seed_t seed) {
    random_files c(box, seed, "razor_attention");
    index_t const sinks = c.draw.between(0, 3), recent = c.draw.between(1, 9);
    auto const retrieval = c.flags(c.heads);
    c.set("sinks", sinks);
    c.set("recent", recent);
    c.save("retrieval", {c.heads}, retrieval);
    c.draw_operands();
    tensor<double, 4> out(c.dout.extents);
    tensor<double, 3> lse(c.dlse.extents);
    for (index_t b = 0; b < c.batches; ++b)
      for (index_t h = 0; h < c.heads; ++h)
        for (index_t i = 0; i < c.rows; ++i) {
          index_t const p = i + c.keys - c.rows;
          auto const weight = [&](auto const& key) {
            double score = 0;
            for (index_t d = 0; d < c.dim; ++d) score += c.q(b, i, h, d) * key(d);
            return std::exp(scale_of(c) * score);
          };
          double total = 0, dropped = 0;
          tensor<double, 1> key({c.dim}), value({c.v.extent(3)});
          for (index_t j = 0; j <= p; ++j) {
            bool const kept = retrieval[static_cast<std::size_t>(h)] || j < sinks || p - j < recent;
            double const w = kept ? weight([&](index_t d) { return c.k(b, j, h / 2, d); }) : 0;
            total += w;
            dropped += kept ? 0 : 1;
            for (index_t d = 0; d < c.dim && !kept; ++d) key(d) += c.k(b, j, h / 2, d);
            for (index_t d = 0; d < value.extent(0); ++d) {
              if (kept) out(b, i, h, d) += w * c.v(b, j, h / 2, d);
              if (!kept) value(d) += c.v(b, j, h / 2, d);
            }
          }
          if (dropped > 0) {
            double const w = dropped * weight([&](index_t d) { return key(d) / dropped; });
            total += w;
            for (index_t d = 0; d < value.extent(0); ++d) out(b, i, h, d) += w * value(d) / dropped;
          }
          lse(b, h, i) = std::log(total);
          for (index_t d = 0; d < value.extent(0); ++d) out(b, i, h, d) /= total;
        }
    return c.complaint("", expected{"o", out}, expected{"lse", lse});
  });
}

TEST_CASE("heed_conformance: combiner", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of combiner", 30, [&](seed_t seed) {
    random_files c(box, seed, "combiner", 12);
    std::string const variants[] = {"fixed",    "log_sparse", "row_major",
                                    "vertical", "horizontal", "mixture"};
    std::string const variant = c.draw.one_of(variants);
    auto const pool = c.draw.between(0, 2);
    std::string const pools[] = {"max", "sum", "mean"};
    c.set("variant", variant);
    c.set("pool", pools[pool]);
    bool const causal = variant != "fixed" || c.draw.one_in(2);
    reference::combiner_partition spans = reference::combiner_log_sparse();
    c.rows = c.keys;
    if (variant == "fixed") {
      index_t const block = c.draw.between(1, 5);
      c.set("block", block);
      c.set("causal", std::string(causal ? "true" : "false"));
      spans = reference::combiner_fixed(c.rows, block, causal);
    } else if (variant != "log_sparse") {
      index_t const rows = c.draw.between(1, 4), columns = c.draw.between(1, 4);
      bool const weighted = variant == "row_major" && c.draw.one_in(2);
      c.rows = c.keys = rows * columns;
      c.set("rows", rows);
      c.set("columns", columns);
      if (weighted) c.set("summary_key", std::string("weighted_sum"));
      spans = reference::combiner_axial(columns, weighted ? "row_major_wsum" : variant);
    }
    c.set("scale", 0.2);
    c.draw_operands(false);
    auto const define = [&] {
      return reference::combiner(c.q, c.k, c.v, 0.2, static_cast<reference::pool>(pool), spans);
    };
    auto const golden = define();
    std::string complaint = c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse});
    if ((variant == "fixed" && causal) || variant == "row_major")
      complaint +=
          c.complaint(" verb=decode", expected{"o", golden.out}, expected{"lse", golden.lse});
    auto const loss = [&] { return reference::weighted_sum(c.dout, define().out); };
    auto const dq = slopes(c.q, loss), dk = slopes(c.k, loss), dv = slopes(c.v, loss);
    c.accuracy = 1e-6;
    c.save("do", c.dout);
    complaint += c.complaint("", expected{"dq", dq}, expected{"dk", dk}, expected{"dv", dv});
    return complaint;
  });
}

TEST_CASE("heed_conformance: key_alignment", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of key_alignment", 10, [&](seed_t seed) {
    random_files c(box, seed, "key_alignment", 8);
    c.keep = [](index_t, index_t, index_t p, index_t j) { return j <= p; };
    auto const visual = c.flags(c.batches * c.keys);
    c.save("visual", {c.batches, c.keys}, visual);
    c.draw_operands();
    index_t const D = c.dim;
    c.v = normal<4>(c.draw, {c.batches, c.keys, c.key_heads, D});
    c.dout = normal<4>(c.draw, {c.batches, c.rows, c.heads, D});
    if (c.single)
      c.box.save_as<float>("v", c.v);
    else
      c.box.save_as<double>("v", c.v);
    auto rho = normal<1>(c.draw, {D});
    auto mix = normal<2>(c.draw, {D, D});
    c.save("rho", rho);
    c.save("mix", mix);
    auto const is_visual = [&](index_t b, index_t i) {
      return bool(visual[static_cast<std::size_t>(b * c.keys + i)]);
    };
    auto const align = [&] {
      tensor<double, 4> aligned = c.k;
      for (index_t b = 0; b < c.batches; ++b)
        for (index_t h = 0; h < c.key_heads; ++h) {
          auto const unit = [&](index_t i) {
            tensor<double, 1> u({D});
            double square = 0;
            for (index_t d = 0; d < D; ++d) square += std::pow(c.k(b, i, h, d) + 1e-6, 2);
            for (index_t d = 0; d < D; ++d) u(d) = (c.k(b, i, h, d) + 1e-6) / std::sqrt(square);
            return u;
          };
          tensor<double, 2> G({D, D});
          for (index_t i = 0; i < c.keys; ++i)
            for (index_t d = 0; d < D && !is_visual(b, i); ++d)
              for (index_t e = 0; e < D; ++e) G(d, e) += unit(i)(d) * c.v(b, i, h, e);
          for (index_t d = 0; d < D; ++d) {
            double square = 0;
            for (index_t e = 0; e < D; ++e) square += G(d, e) * G(d, e);
            for (index_t e = 0; e < D && square > 0; ++e) G(d, e) /= std::sqrt(square);
          }
          for (index_t i = 0; i < c.keys; ++i) {
            if (!is_visual(b, i)) continue;
            auto const u = unit(i);
            tensor<double, 1> x({D});
            for (index_t e = 0; e < D; ++e) {
              for (index_t d = 0; d < D; ++d) x(e) += rho(e) * u(d) * G(d, e);
              x(e) += c.k(b, i, h, e);
            }
            for (index_t e = 0; e < D; ++e) {
              aligned(b, i, h, e) = 0;
              for (index_t d = 0; d < D; ++d) aligned(b, i, h, e) += mix(e, d) * x(d);
            }
          }
        }
      return aligned;
    };
    auto const aligned = align();
    auto const golden = reference::attention(c.q, aligned, c.v, c.definition);
    std::string complaint =
        c.complaint("", expected{"aligned", aligned}, expected{"o", golden.out},
                    expected{"lse", golden.lse}) +
        c.complaint(" verb=decode", expected{"o", golden.out}, expected{"lse", golden.lse});
    auto const loss = [&] {
      return reference::weighted_sum(c.dout,
                                     reference::attention(c.q, align(), c.v, c.definition).out);
    };
    auto const dq = slopes(c.q, loss), dk = slopes(c.k, loss), dv = slopes(c.v, loss);
    auto const drho = slopes(rho, loss);
    auto const dmix = slopes(mix, loss);
    c.accuracy = 1e-4;  // keys of one channel may be near 0, where their direction turns
    c.save("do", c.dout);
    return complaint + c.complaint("", expected{"dq", dq}, expected{"dk", dk}, expected{"dv", dv},
                                   expected{"drho", drho}, expected{"dmix", dmix});
  });
}

TEST_CASE("heed_conformance: local_aggregation", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of local_aggregation", 10, [&](seed_t seed) {
    attention_files c(box, seed, "local_aggregation");
    c.single = c.draw.one_in(2);
    std::vector<index_t> grid, window;
    reference::aggregation exact{{1, 1, 1}, {1, 1, 1}};
    auto const axes = static_cast<std::size_t>(c.draw.between(1, 3));
    index_t tokens = 1, offsets = 1;
    for (std::size_t a = 3 - axes; a < 3; ++a) {
      grid.push_back(exact.grid[a] = c.draw.between(1, 6));
      window.push_back(exact.window[a] = 2 * c.draw.between(0, 2) + 1);
      tokens *= grid.back();
      offsets *= window.back();
    }
    auto const v = normal<4>(c.draw, {2, tokens, 3, 5}), dout = normal<4>(c.draw, v.extents);
    auto const weights = normal<3>(
        c.draw, {offsets, c.draw.one_in(2) ? 1 : v.extent(2), c.draw.one_in(2) ? 1 : v.extent(3)});
    c.set("grid", grid);
    c.set("window", window);
    c.save("v", v);
    c.save("weights", weights);
    auto const out = exact.forward(v, weights);
    tensor<double, 4> dv;
    tensor<double, 3> dweights;
    exact.backward(v, weights, dout, dv, dweights);
    std::string const complaint = c.complaint("", expected{"o", out});
    c.save("do", dout);
    return complaint + c.complaint("", expected{"dv", dv}, expected{"dweights", dweights});
  });
}

TEST_CASE("heed_conformance: local_predictive", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of local_predictive", 10, [&](seed_t seed) {
    random_files c(box, seed, "local_predictive", 8);
    double const radius = c.draw.uniform(1, 9);
    tensor<double, 3> centres({c.draw.one_in(2) ? 1 : c.batches, c.heads, c.rows});
    for (double& centre : centres.values) centre = float(double(c.keys) * c.draw.uniform());
    c.save("centres", centres);
    c.set("radius", radius);
    c.draw_operands();
    auto const define = [&] {
      tensor<double, 4> out(c.dout.extents);
      for (index_t b = 0; b < c.batches; ++b)
        for (index_t h = 0; h < c.heads; ++h)
          for (index_t t = 0; t < c.rows; ++t) {
            double const p = centres(centres.extent(0) == 1 ? 0 : b, h, t);
            double total = 0;
            for (index_t s = 0; s < c.keys; ++s) {
              if (std::abs(double(s) - p) > radius) continue;
              double score = 0;
              for (index_t d = 0; d < c.dim; ++d) score += c.q(b, t, h, d) * c.k(b, s, h / 2, d);
              double const weight = std::exp(scale_of(c) * score);
              total += weight;
              for (index_t d = 0; d < out.extent(3); ++d)
                out(b, t, h, d) += weight * std::exp(-2 * std::pow((double(s) - p) / radius, 2)) *
                                   c.v(b, s, h / 2, d);
            }
            for (index_t d = 0; d < out.extent(3) && total > 0; ++d) out(b, t, h, d) /= total;
          }
      return out;
    };
    auto const out = define();
    std::string const complaint = c.complaint("", expected{"o", out});
    auto const loss = [&] { return reference::weighted_sum(c.dout, define()); };
    auto const dq = slopes(c.q, loss), dk = slopes(c.k, loss), dv = slopes(c.v, loss);
    auto const dcentres = slopes(centres, loss);
    c.accuracy = 1e-6;
    c.save("do", c.dout);
    return complaint + c.complaint("", expected{"dq", dq}, expected{"dk", dk}, expected{"dv", dv},
                                   expected{"dcentres", dcentres});
  });
}

TEST_CASE("heed_conformance: locality_dial", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of locality_dial", 10, [&](seed_t seed) {
    random_files c(box, seed, "locality_dial");
    auto const groups = c.numbers(c.keys, 0, 2);
    double const lambda = c.draw.one_in(4) ? 0 : c.draw.uniform();
    c.save("groups", {c.keys}, groups);
    c.set("lambda", lambda);
    c.draw_operands();
    auto const differ = [&](index_t i, index_t j) {
      return groups[static_cast<std::size_t>(i + c.keys - c.rows)] !=
             groups[static_cast<std::size_t>(j)];
    };
    reference::bias dial{tensor<double, 4>({1, 1, c.rows, c.keys})};
    for (index_t i = 0; i < c.rows; ++i)
      for (index_t j = 0; j < c.keys; ++j)
        dial.values(0, 0, i, j) = differ(i, j) ? std::log(1 - lambda) : 0;
    c.definition.modifiers.push_back(dial);
    auto const golden = reference::attention(c.q, c.k, c.v, c.definition);
    std::string const complaint =
        c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse});
    auto const slope = gradients_of(c, golden, c.dout, c.dlse);
    tensor<double, 1> dlambda({1});
    for (index_t i = 0; i < c.rows; ++i)
      for (index_t j = 0; j < c.keys; ++j)
        dlambda(0) -= differ(i, j) ? slope.modifiers[0](0, 0, i, j) / (1 - lambda) : 0;
    c.accuracy = 1e-9;
    c.save("do", c.dout);
    c.save("dlse", c.dlse);
    return complaint + c.complaint("", expected{"dq", slope.query}, expected{"dk", slope.key},
                                   expected{"dv", slope.value}, expected{"dlambda", dlambda});
  });
}

TEST_CASE("heed_conformance: adaptive_heads", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of adaptive_heads", 10, [&](seed_t seed) {
    random_files c(box, seed, "adaptive_heads");
    index_t const sinks = c.draw.between(0, 3), recent = c.draw.between(1, 6);
    double const threshold = c.draw.uniform();
    c.set("sinks", sinks);
    c.set("recent", recent);
    c.set("threshold", threshold);
    c.draw_operands();
    auto const score = [&](index_t b, index_t i, index_t h, auto const& key) {
      double sum = 0;
      for (index_t d = 0; d < c.dim; ++d) sum += c.q(b, i, h, d) * key(d);
      return scale_of(c) * sum;
    };
    tensor<double, 3> far({c.batches, c.heads, c.rows});
    for (index_t b = 0; b < c.batches; ++b)
      for (index_t h = 0; h < c.heads; ++h)
        for (index_t i = 0; i < c.rows; ++i) {
          index_t const p = i + c.keys - c.rows;
          double near = 0, mean = 0, square = 0, others = 0;
          for (index_t j = 0; j < c.keys; ++j) {
            double const s = score(b, i, h, [&](index_t d) { return c.k(b, j, h / 2, d); });
            bool const local = j < sinks || p - j < recent;
            if (j <= p && local) near += std::exp(s);
            if (j <= p && !local) others += 1;
            mean += s / double(c.keys);
            square += s * s / double(c.keys);
          }
          double const bulk = others * std::exp(mean + (square - mean * mean) / 2);
          far(b, h, i) = others > 0 && near / (near + bulk) < threshold;
        }
    index_t const shift = c.rows - c.keys;
    c.definition.keep_in_head = [=](index_t b, index_t h, index_t p, index_t j) {
      return j <= p && (far(b, h, p + shift) > 0 || j < sinks || p - j < recent);
    };
    auto const golden = reference::attention(c.q, c.k, c.v, c.definition);
    std::string const complaint =
        c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse},
                    expected{"reaches_far", far}) +
        c.complaint(" verb=decode", expected{"o", golden.out}, expected{"lse", golden.lse},
                    expected{"reaches_far", far});
    auto const slope = gradients_of(c, golden, c.dout, c.dlse);
    c.save("do", c.dout);
    c.save("dlse", c.dlse);
    return complaint + c.complaint("", expected{"dq", slope.query}, expected{"dk", slope.key},
                                   expected{"dv", slope.value});
  });
}

TEST_CASE("heed_conformance: halo_attention", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of halo_attention", 10, [&](seed_t seed) {
    random_files c(box, seed, "halo_attention");
    reference::halo_options how;
    std::vector<index_t> canvas, block, halo, stride;
    c.rows = c.keys = 1;
    for (int a = 0; a < 2; ++a) {
      stride.push_back(c.draw.between(1, 2));
      block.push_back(stride.back() * c.draw.between(1, 2));
      canvas.push_back(block.back() * c.draw.between(1, 2));
      halo.push_back(c.draw.between(0, 2));
      how.axes.push_back({canvas.back(), block.back(), halo.back(), stride.back()});
      c.rows *= how.axes.back().queries();
      c.keys *= canvas.back();
    }
    c.set("canvas", canvas);
    c.set("block", block);
    c.set("halo", halo);
    c.set("query_stride", stride);
    how.zero = c.draw.one_in(2);
    how.scale_positions = c.draw.one_in(2);
    c.set("border", std::string(how.zero ? "zero" : "mask"));
    if (how.scale_positions) c.set("scale_positions", std::string("true"));
    c.draw_operands();
    how.scale = scale_of(c);
    std::vector<tensor<double, 2>> vectors;
    for (auto const& axis : how.axes)
      vectors.push_back(normal<2>(c.draw, {2 * axis.window() - 1, c.dim}));
    c.save("row_vectors", vectors[0]);
    c.save("column_vectors", vectors[1]);
    auto const golden =
        reference::halo_attention<double>(c.q, c.k, c.v, vectors, c.dout, c.dlse, how);
    std::string const complaint =
        c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse});
    c.save("do", c.dout);
    c.save("dlse", c.dlse);
    return complaint + c.complaint("", expected{"dq", golden.dquery}, expected{"dk", golden.dkey},
                                   expected{"dv", golden.dvalue},
                                   expected{"drow_vectors", golden.dvectors[0]},
                                   expected{"dcolumn_vectors", golden.dvectors[1]});
  });
}

TEST_CASE("heed_conformance: layer_router", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of layer_router", 10, [&](seed_t seed) {
    random_files c(box, seed, "layer_router");
    index_t const sinks = c.draw.between(0, 3), recent = c.draw.between(1, 6),
                  ends = c.draw.between(1, 10);
    c.set("sinks", sinks);
    c.set("recent", recent);
    c.set("ends", ends);
    c.keep = [=](index_t, index_t, index_t p, index_t j) {
      return j <= p && (j < sinks || p - j < recent);
    };
    c.draw_operands();
    std::vector<reference::dense_map> network;
    index_t const widths[] = {c.dim, 5, 4, 6, 3, 2};
    for (std::size_t n = 0; n < 5; ++n) {
      auto const weight = normal<2>(c.draw, {widths[n + 1], widths[n]});
      auto const bias = normal<1>(c.draw, {widths[n + 1]});
      c.save("w" + std::to_string(n + 1), weight);
      c.save("b" + std::to_string(n + 1), bias);
      reference::dense_map map{{}, bias.values};
      for (index_t o = 0; o < widths[n + 1]; ++o) {
        map.weight.emplace_back();
        for (index_t i = 0; i < widths[n]; ++i) map.weight.back().push_back(weight(o, i));
      }
      network.push_back(map);
    }
    double const temperature = c.draw.uniform(0.3, 2);
    auto const noise = normal<2>(c.draw, {c.batches, 2});
    c.save("noise", noise);
    c.set("temperature", temperature);
    auto const sparse = reference::attention(c.q, c.k, c.v, c.definition).out;
    auto causal = c.definition;
    causal.keep_in_head = [](index_t, index_t, index_t p, index_t j) { return j <= p; };
    auto const full = reference::attention(c.q, c.k, c.v, causal).out;
    tensor<double, 2> logits({c.batches, 2}), weights({c.batches, 2}), dlogits({c.batches, 2});
    tensor<double, 4> out = sparse;
    for (index_t b = 0; b < c.batches; ++b) {
      auto const z = reference::router(network, reference::router_summary(c.q, b, ends));
      double const low = std::exp((z[0] + noise(b, 0)) / temperature),
                   high = std::exp((z[1] + noise(b, 1)) / temperature);
      logits(b, 0) = z[0];
      logits(b, 1) = z[1];
      weights(b, 0) = low / (low + high);
      weights(b, 1) = high / (low + high);
      double slope = 0;
      for (index_t i = 0; i < c.rows; ++i)
        for (index_t h = 0; h < c.heads; ++h)
          for (index_t d = 0; d < out.extent(3); ++d) {
            if (high > low) out(b, i, h, d) = full(b, i, h, d);
            slope += c.dout(b, i, h, d) * (full(b, i, h, d) - sparse(b, i, h, d));
          }
      dlogits(b, 1) = weights(b, 0) * weights(b, 1) * slope / temperature;
      dlogits(b, 0) = -dlogits(b, 1);
    }
    std::string const complaint = c.complaint("", expected{"logits", logits},
                                              expected{"weights", weights}, expected{"o", out});
    c.save("do", c.dout);
    return complaint + c.complaint("", expected{"dlogits", dlogits});
  });
}

TEST_CASE("heed_conformance: soft_mask", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of soft_mask", 10, [&](seed_t seed) {
    random_files c(box, seed, "soft_mask");
    tensor<double, 2> m({c.batches, c.keys});
    for (double& each : m.values) each = c.draw.one_in(3) ? 1 : float(c.draw.uniform(0.01, 1));
    c.save("m", m);
    c.draw_operands();
    reference::bias numbers{tensor<double, 4>({c.batches, 1, 1, c.keys})};
    for (std::size_t n = 0; n < m.values.size(); ++n)
      numbers.values.values[n] = std::log(m.values[n] + 1e-10);
    c.definition.modifiers.push_back(numbers);
    auto const golden = reference::attention(c.q, c.k, c.v, c.definition);
    std::string const complaint =
        c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse});
    auto const slope = gradients_of(c, golden, c.dout);
    tensor<double, 2> dm(m.extents);
    for (std::size_t n = 0; n < m.values.size(); ++n)
      dm.values[n] = slope.modifiers[0].values[n] / (m.values[n] + 1e-10);
    c.save("do", c.dout);
    return complaint + c.complaint("", expected{"dq", slope.query}, expected{"dk", slope.key},
                                   expected{"dv", slope.value}, expected{"dm", dm});
  });
}
