#include "cli/attention_files.hpp"
#include "reference/agent.hpp"
#include "reference/cab.hpp"
#include "reference/sea.hpp"

// Attention of heed_conformance through landmarks, samples, agents and compressed positions, against the definitions.

using cli::attention_files;
using cli::expected;
using cli::normal;
using cli::sandbox;
using heed::index_t;
using reference::tensor;
using reference::tensors;
using support::for_each_seed;
using support::seed_t;

namespace {

struct composition_files : attention_files {
  index_t N = draw.between(1, 20), D = draw.between(2, 8), E = draw.between(1, 8);
  double own_scale = draw.uniform(0.1, 0.4);
  tensor<double, 4> of_q = normal<4>(draw, {2, N, 4, D}), of_k = normal<4>(draw, {2, N, 2, D}),
                    of_v = normal<4>(draw, {2, N, 2, E}), slope = normal<4>(draw, {2, N, 4, E});

  composition_files(sandbox const& where, seed_t seed, std::string const& name,
                    bool has_scale = true)
      : attention_files(where, seed, name) {
    single = draw.one_in(2);
    save("q", of_q);
    save("k", of_k);
    save("v", of_v);
    if (has_scale) set("scale", own_scale);
    if (draw.one_in(3)) set("threads", index_t{2});
  }

  /// Results and gradients by q, k and v, and by what else the definition is given.
  template <class Definition, class... More>
  std::string check(Definition const& defined, tensors<double> const& more,
                    More const&... expected_of) {
    tensors<double> inputs{of_q, of_k, of_v};
    inputs.insert(inputs.end(), more.begin(), more.end());
    auto const golden = defined(inputs)[0];
    std::string forward = complaint("", expected{"o", golden});
    save("do", slope);
    auto const gradients = reference::gradients_of(defined, inputs, {slope});
    return forward + complaint("", expected{"o", golden}, expected{"dq", gradients[0]},
                               expected{"dk", gradients[1]}, expected{"dv", gradients[2]},
                               expected_of(gradients)...);
  }
};

}  // namespace

TEST_CASE("heed_conformance: nystrom", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of nystrom", 6, [&](seed_t seed) {
    composition_files c(box, seed, "nystrom");
    index_t const m = c.draw.between(1, 6);
    c.set("landmarks", m);
    tensor<double, 2> const filter = normal<2>(c.draw, {3, 2});
    c.save("filter", filter);
    tensor<double, 4> taps({1, 3, 2, 1});
    taps.values = filter.values;
    tensor<double, 2> dfilter({3, 2});
    return c.check(
        [&]<class U>(tensors<U> const& x) {
          return tensors<U>{reference::filtered(
              reference::nystrom(x[0], x[1], x[2], m, c.own_scale), x[2], x[3])};
        },
        {taps},
        [&](tensors<double> const& g) {
          dfilter.values = g[3].values;
          return expected{"dfilter", dfilter};
        });
  });
}

TEST_CASE("heed_conformance: lara", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of lara", 6, [&](seed_t seed) {
    composition_files c(box, seed, "lara");
    index_t const samples = c.draw.between(1, 6);
    c.set("samples", samples);
    auto const noise = normal<4>(c.draw, {2, std::min(samples, c.N), 4, c.D});
    c.save("noise", noise);
    return c.check(
        [&]<class U>(tensors<U> const& x) {
          tensor<U, 4> drawn(noise.extents);
          for (std::size_t n = 0; n < noise.values.size(); ++n)
            drawn.values[n] = U(noise.values[n]);
          return tensors<U>{reference::lara(x[0], x[1], x[2], samples, drawn, c.own_scale)};
        },
        {});
  });
}

TEST_CASE("heed_conformance: probsparse", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of probsparse", 6, [&](seed_t seed) {
    composition_files c(box, seed, "probsparse");
    index_t const count = c.draw.between(0, c.N), U = c.draw.between(1, 4);
    bool const causal = c.draw.one_in(2);
    tensor<index_t, 4> samples({1, 1, c.N, U});
    for (index_t& each : samples.values) each = c.draw.between(0, c.N - 1);
    c.save("samples", {c.N, U}, samples.values);
    c.set("rows", count);
    if (causal) c.set("causal", std::string("true"));
    tensor<index_t, 3> rows({2, 4, count});
    for (index_t b = 0; b < 2; ++b)
      for (index_t h = 0; h < 4; ++h) {
        auto const chosen = reference::probsparse_rows(c.of_q, c.of_k, samples, count, b, h);
        for (index_t n = 0; n < count; ++n) rows(b, h, n) = chosen[std::size_t(n)];
      }
    auto const selected = rows.as<double>();
    return c.check(
        [&]<class T>(tensors<T> const& x) {
          return tensors<T>{reference::probsparse(x[0], x[1], x[2], rows, causal, c.own_scale)};
        },
        {},
        [&](tensors<double> const&) {
          return expected{"selected", selected};
        });
  });
}

TEST_CASE("heed_conformance: long_short", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of long_short", 6, [&](seed_t seed) {
    composition_files c(box, seed, "long_short");
    bool const causal = c.draw.one_in(2);
    index_t const r = c.draw.between(1, 3), window = c.draw.between(1, 5),
                  length = causal ? c.draw.between(1, 6) : c.N;
    auto const logits = normal<4>(c.draw, {2, c.N, 2, r});
    c.save("logits", logits);
    c.set("window", window);
    if (causal) {
      c.set("causal", std::string("true"));
      c.set("length", length);
    }
    auto const definition = [&]<class U>(tensors<U> const& x) {
      return tensors<U>{reference::long_short(
          x[0], x[1], x[2], reference::compressed(x[3], x[1], length),
          reference::compressed(x[3], x[2], length), window, causal, length, r, c.own_scale)};
    };
    std::string decoded;
    if (causal)
      decoded = c.complaint(
          " verb=decode",
          expected{"o", definition(tensors<double>{c.of_q, c.of_k, c.of_v, logits})[0]});
    return decoded + c.check(definition, {logits}, [](tensors<double> const& g) {
      return expected{"dlogits", g[3]};
    });
  });
}

TEST_CASE("heed_conformance: agent_attention", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of agent_attention", 6, [&](seed_t seed) {
    composition_files c(box, seed, "agent_attention");
    index_t const n = c.draw.between(1, 5);
    double const second = c.draw.uniform(0.1, 0.4);
    auto const agents = normal<4>(c.draw, {2, n, 4, c.D}), b1 = normal<4>(c.draw, {1, 4, n, c.N}),
               b2 = normal<4>(c.draw, {1, 4, c.N, n});
    c.save("agents", agents);
    c.save("b1", b1);
    c.save("b2", b2);
    c.set("second_scale", second);
    return c.check(
        [&]<class U>(tensors<U> const& x) {
          return tensors<U>{
              reference::agent_attention(x[0], x[1], x[2], x[3], x[4], x[5], c.own_scale, second)};
        },
        {agents, b1, b2},
        [](tensors<double> const& g) {
          return expected{"dagents", g[3]};
        },
        [](tensors<double> const& g) {
          return expected{"db1", g[4]};
        },
        [](tensors<double> const& g) {
          return expected{"db2", g[5]};
        });
  });
}

TEST_CASE("heed_conformance: agent_bias", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of agent_bias", 4, [&](seed_t seed) {
    attention_files c(box, seed, "agent_bias");
    index_t const h = c.draw.between(1, 9), w = c.draw.between(1, 9);
    auto const table = normal<4>(c.draw, {2, 3, 4, 5});
    auto const rows = normal<3>(c.draw, {2, 3, h}), columns = normal<3>(c.draw, {2, 3, w});
    auto const of_class = normal<2>(c.draw, {2, 3});
    c.save("table", table);
    c.save("rows", rows);
    c.save("columns", columns);
    c.save("of_class", of_class);
    c.set("grid", std::vector<index_t>{h, w});
    c.set("class_token", std::string("true"));
    auto const with_axes = [](auto const& from, tensor<double, 4>::index_array const& extents) {
      tensor<double, 4> to(extents);
      to.values = from.values;
      return to;
    };
    return c.complaint("", expected{"o", reference::agent_bias(table, with_axes(rows, {1, 2, 3, h}),
                                                               with_axes(columns, {1, 2, 3, w}),
                                                               with_axes(of_class, {1, 1, 2, 3}))});
  });
}

TEST_CASE("heed_conformance: sea_estimator", "[cli][mechanisms]") {
  sandbox const box;
  for_each_seed("conformance of sea_estimator", 4, [&](seed_t seed) {
    composition_files c(box, seed, "sea_estimator", false);
    tensor<double, 2> const omega = normal<2>(c.draw, {5, c.D}),
                            positions = normal<2>(c.draw, {c.N, 3});
    c.save("omega", omega);
    bool const causal = c.draw.one_in(2);
    if (causal) c.save("positions", positions);
    auto const rows = causal ? positions : reference::stretched_identity<double>(c.N, c.D);
    tensor<double, 4> e({1, rows.extent(0), 1, rows.extent(1)});
    e.values = rows.values;
    c.slope = normal<4>(c.draw, {2, c.N, 4, rows.extent(1) + c.E});
    auto const definition = [&]<class U>(tensors<U> const& x) {
      return tensors<U>{reference::sea_context(x[0], x[1], x[2], x[3], omega, causal)};
    };
    std::string decoded;
    if (causal)
      decoded = c.complaint(
          " verb=decode", expected{"o", definition(tensors<double>{c.of_q, c.of_k, c.of_v, e})[0]});
    return decoded + c.check(definition, {e});
  });
}
