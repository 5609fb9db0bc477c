// Descriptors from a fuzzer: shapes, strides, heads, gates and states of recurrences, forward, backward and step. Every call
// must either throw heed::error or compute, and the sanitizers decide whether it stayed in its memory.
#include "input.hpp"

#include <heed/linear.hpp>

#include <limits>

namespace {

using namespace fuzz;

/// Numbers for tokens: gates of every strength, none above 0 but now and then.
struct gates {
  tensor<float> numbers;

  gates(input& in, std::array<index_t, 4> const& extents) : numbers(in, extents, true) {
    float const least = in.number(0, 3) == 0 ? -300.f : -1.f;
    for (std::size_t i = 0; i < numbers.memory.size(); ++i)
      numbers.memory[i] = i % 13 == 5 ? least : -0.1f * static_cast<float>(i % 7);
    if (in.number(0, 15) == 0)
      numbers.memory[0] = in.number(0, 1) ? -std::numeric_limits<float>::infinity() : 0.5f;
  }

  tensor_view<float, 3> scalars() const {
    auto const& e = numbers.view.extents();
    auto const& s = numbers.view.strides();
    return {numbers.view.data(), {e[0], e[1], e[2]}, {s[0], s[1], s[2]}};
  }
};

struct shape {
  index_t B, N, M, H, D, E, states;
};

template <class Q, class K, class... Ingredients>
void call(input& in, shape const& of, index_t columns, Ingredients const&... ingredients) {
  auto const [B, N, M, H, D, E, states] = of;
  index_t const readers = in.around(H, 0, 4);
  tensor<Q> query(in, {B, N, in.number(0, 1) ? H : in.around(1, 0, 3), D}, true),
      out(in, {B, N, readers, in.around(E, 0, 9)}, in.number(0, 31) == 0);
  tensor<K> key(in, {B, M, states, in.around(D, 0, 9)}, true),
      value(in, {B, in.around(M, 0, 9), in.number(0, 1) ? states : 1, E}, true);
  index_t const sequences = in.around(B, 0, 3);
  tensor<float> state(in, {sequences, states, D, in.around(columns, 0, 20)}, false);
  heed::chunk_size const chunk{in.around(in.number(1, 70), 0, 90)};
  heed::linear_attention(query.view, key.view, value.view, out.view, heed::state{state.view}, chunk,
                         ingredients...);
  if (in.number(0, 1) == 0) return;
  tensor<Q> dout(in, out.view.extents(), true), dquery(in, query.view.extents(), false);
  tensor<K> dkey(in, key.view.extents(), false),
      dvalue(in, value.view.extents(), in.number(0, 31) == 0);
  tensor<float> dstate(in, state.view.extents(), false);
  heed::linear_attention_backward(
      query.view, key.view, value.view, out.view, dout.view, dquery.view, dkey.view, dvalue.view,
      heed::initial_state{state.view, dstate.view}, chunk, ingredients...);
}

void run(input in) {
  index_t const states = in.number(0, 3);
  shape const of{.B = in.number(0, 2),
                 .N = in.number(0, 70),
                 .M = in.number(0, 140),
                 .H = states * in.number(1, 2),
                 .D = in.number(0, 20),
                 .E = in.number(0, 20),
                 .states = states};
  auto const tokens = [&](index_t channels) {
    return gates(in, {in.around(of.B, 0, 3), in.around(of.M, 0, 140), states, channels});
  };
  switch (in.number(0, 6)) {
    case 0: {
      gates const g = tokens(1);
      return call<float, float>(in, of, of.E, heed::decay{g.scalars()});
    }
    case 1: {
      gates const g = tokens(in.around(of.D, 0, 9)), dg = tokens(of.D);
      return call<float, Eigen::half>(in, of, of.E,
                                      heed::key_decay{g.numbers.view, dg.numbers.view});
    }
    case 2: {
      gates const g = tokens(1), h = tokens(in.around(of.E, 0, 9)), dh = tokens(of.E);
      return call<float, float>(in, of, of.E, heed::decay{g.scalars()},
                                heed::value_decay{h.numbers.view, dh.numbers.view});
    }
    case 3: {
      gates const r = tokens(1), g = tokens(1), dr = tokens(1);
      return call<float, float>(in, of, of.E, heed::exact_delta{r.scalars(), dr.scalars()},
                                heed::decay{g.scalars()});
    }
    case 4: {
      gates const r = tokens(1), g = tokens(of.D);
      return call<float, Eigen::bfloat16>(in, of, of.E, heed::delta{r.scalars()},
                                          heed::key_decay{g.numbers.view});
    }
    case 5:
      return call<float, float>(in, of, of.E + 1, heed::dense{}, heed::normalised{});
    default: {
      index_t const count = in.number(0, 5);
      auto rows = in.list(count, in.around(0, -1, 0), of.N),
           keys = in.list(in.around(count, 0, 5), 0, of.M);
      if (in.number(0, 7) != 0) {
        rows.push_back(0), keys.push_back(0);
        rows.push_back(of.N), keys.push_back(of.M);
        std::sort(rows.begin(), rows.end());
        std::sort(keys.begin(), keys.end());
      }
      gates const g = tokens(1), dg = tokens(1);
      return call<float, float>(in, of, of.E + 1, heed::normalised{},
                                heed::decay{g.scalars(), dg.scalars()},
                                heed::documents{.queries = rows, .keys = keys});
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  try {
    run(input(data, size));
  } catch (heed::error const&) {
    // What a bad descriptor is for.
  }
  return 0;
}
