#include "cli/attention_files.hpp"
#include "reference/memories.hpp"

// The memories of heed_conformance that learn while they are read, against their definitions.

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

/// Numbers in [low, high] that are the same in both precisions.
tensor<double, 3> uniform(support::random& draw, tensor<double, 3>::index_array const& shape,
                          double low, double high) {
  tensor<double, 3> t(shape);
  for (double& x : t.values) x = static_cast<float>(draw.uniform(low, high));
  return t;
}
tensor<double, 4> with_channel(tensor<double, 3> const& from) {
  tensor<double, 4> to({from.extent(0), from.extent(1), from.extent(2), 1});
  to.values = from.values;
  return to;
}
tensor<double, 3> without(tensor<double, 4> const& from) {
  tensor<double, 3> to({from.extent(0), from.extent(1), from.extent(2)});
  to.values = from.values;
  return to;
}
tensor<double, 4> scaled(tensor<double, 4> of, double factor) {
  for (double& x : of.values) x = static_cast<float>(factor * x);
  return of;
}

struct memory_files : attention_files {
  index_t N = draw.between(1, 12), D = draw.between(1, 6), E = draw.between(1, 6),
          chunk = draw.between(1, 5);
  tensor<double, 4> q = normal<4>(draw, {2, N, 2, D}),
                    k = scaled(normal<4>(draw, {2, N, 1, D}), 0.5),
                    v = normal<4>(draw, {2, N, 1, E}), dout = normal<4>(draw, {2, N, 2, E});

  memory_files(sandbox const& where, seed_t seed, std::string const& name)
      : attention_files(where, seed, name) {
    single = draw.one_in(2);
    save("q", q);
    save("k", k);
    save("v", v);
    set("chunk", chunk);
  }
  std::vector<reference::memory_sequence> sequences() const {
    return {{0, 0, N, 0, N}, {1, 0, N, 0, N}};
  }
  tensor<double, 3> gate(char const* name, double low, double high) {
    auto const all = uniform(draw, {2, N, 1}, low, high);
    save(name, all);
    return all;
  }
};

}  // namespace

TEST_CASE("heed_conformance: titans", "[cli][recurrences]") {
  sandbox const box;
  for_each_seed("conformance of titans", 10, [&](seed_t seed) {
    memory_files c(box, seed, "titans");
    auto const rate = c.gate("rate", 0, 0.3), momentum = c.gate("momentum", 0, 0.6),
               forget = c.gate("forget", 0, 0.3);
    bool const two = c.draw.one_in(2);
    index_t const F = two ? c.draw.between(1, 5) : c.E;
    tensors<double> inputs{
        c.q, c.k, c.v, with_channel(rate), with_channel(momentum), with_channel(forget)};
    auto const layer = [&](char const* name, index_t in, index_t out) {
      inputs.push_back(scaled(normal<4>(c.draw, {2, 1, in, out}), 0.4));
      c.save(name, inputs.back());
    };
    layer("w1", c.D, F);
    if (two) layer("w2", F, c.E);
    layer("m1", c.D, F);
    if (two) layer("m2", F, c.E);
    auto const define = [&](auto const& x) { return reference::titans(x, c.sequences(), c.chunk); };
    auto const exact = define(inputs);
    std::string complaint =
        c.complaint("", expected{"o", exact[0]}, expected{"last_w1", exact[1]}) +
        c.complaint(" verb=decode", expected{"o", exact[0]},
                    expected{"last_m1", exact[two ? 3 : 2]});
    c.save("do", c.dout);
    tensors<double> slopes{c.dout};
    for (std::size_t n = 1; n < exact.size(); ++n)
      slopes.push_back(tensor<double, 4>(exact[n].extents, 0.0));
    auto const gradients = reference::gradients_of<double>(define, inputs, slopes);
    complaint += c.complaint(
        " threads=2", expected{"dq", gradients[0]}, expected{"dk", gradients[1]},
        expected{"dv", gradients[2]}, expected{"drate", without(gradients[3])},
        expected{"dmomentum", without(gradients[4])}, expected{"dforget", without(gradients[5])},
        expected{"dw1", gradients[6]}, expected{"dm1", gradients[two ? 8 : 7]});
    if (two) complaint += c.complaint("", expected{"dw2", gradients[7]});
    return complaint;
  });
}

TEST_CASE("heed_conformance: moneta, yaad, memora", "[cli][recurrences]") {
  sandbox const box;
  for_each_seed("conformance of miras", 15, [&](seed_t seed) {
    char const* const names[] = {"moneta", "yaad", "memora"};
    std::size_t const which = seed % 3;
    memory_files c(box, seed, names[which]);
    reference::miras how;
    how.chunk = c.chunk;
    auto const retention = c.gate("retention", 0.8, 1), rate = c.gate("rate", 0, 0.1);
    auto const state = normal<4>(c.draw, {2, 1, c.D, c.E});
    c.save("state", state);
    tensor<double, 3> threshold({2, c.N, 1}, 1.0);
    if (which == 0) {
      how.error = reference::miras::power;
      how.read = reference::miras::norm;
      how.exact = c.draw.one_in(2);
      if (!how.exact) c.set("chunk_norm", "true");
    } else if (which == 1) {
      how.error = reference::miras::huber_unit;
      c.set("beyond", "unit");
      threshold = c.gate("threshold", 0.5, 3);
    } else {
      how.read = reference::miras::softmax;
      how.total = 2;
      c.set("total", how.total);
    }
    tensors<double> const inputs{
        c.q, c.k, c.v, with_channel(retention), with_channel(rate), with_channel(threshold), state};
    auto const define = [&](auto const& x) { return reference::memorise(x, c.sequences(), how); };
    auto const exact = define(inputs);
    c.accuracy = 1e-9;  // Moneta divides by a norm that may be small
    std::string complaint =
        c.complaint("", expected{"o", exact[0]}, expected{"last", exact[1]}) +
        c.complaint(" verb=decode", expected{"o", exact[0]}, expected{"last", exact[1]});
    c.save("do", c.dout);
    auto const gradients = reference::gradients_of<double>(
        define, inputs, {c.dout, tensor<double, 4>(state.extents, 0.0)});
    complaint +=
        c.complaint("", expected{"dq", gradients[0]}, expected{"dk", gradients[1]},
                    expected{"dv", gradients[2]}, expected{"dretention", without(gradients[3])},
                    expected{"drate", without(gradients[4])}, expected{"dstate", gradients[6]});
    if (which == 1) complaint += c.complaint("", expected{"dthreshold", without(gradients[5])});
    return complaint;
  });
}
