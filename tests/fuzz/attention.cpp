// Descriptors from a fuzzer: shapes, strides, patterns and index lists. Every call must either
// throw heed::error or compute, and the sanitizers decide whether it stayed in its memory.
#include "input.hpp"

#include <heed/heed.hpp>

namespace {

using namespace fuzz;

template <class Q, class K, class... Ingredients>
void call(input& in, std::array<index_t, 6> const& shape, Ingredients const&... ingredients) {
  auto const [B, N, M, H, D, Dv] = shape;
  index_t const key_heads = H > 0 && in.number(0, 1) ? 1 : H,
                value_heads = in.around(key_heads, 0, 4);
  tensor<Q> query(in, {B, N, H, D}, true),
      out(in, {in.around(B, 0, 3), N, H, in.around(Dv, 0, 9)}, in.number(0, 31) == 0);
  tensor<K> key(in, {B, M, key_heads, in.around(D, 0, 9)}, true),
      value(in, {B, in.around(M, 0, 9), value_heads, Dv}, true);
  std::vector<float> lse(static_cast<std::size_t>(B * H * N));
  tensor_view<float, 3> const lse_view(lse.data(), {B, H, N});
  heed::attention(query.view, key.view, value.view, out.view, heed::lse_into<float>{lse_view},
                  ingredients...);
  if (in.number(0, 1) == 0) return;
  tensor<Q> dout(in, out.view.extents(), true), dquery(in, query.view.extents(), false);
  tensor<K> dkey(in, key.view.extents(), false),
      dvalue(in, value.view.extents(), in.number(0, 31) == 0);
  heed::attention_backward(query.view, key.view, value.view, out.view, lse_view, dout.view,
                           dquery.view, dkey.view, dvalue.view, ingredients...);
}

void run(input in) {
  bool const packed = in.number(0, 3) == 0;
  index_t const B = packed ? in.around(1, 0, 3) : in.number(0, 2), N = in.number(0, 70),
                M = in.number(0, 140), H = in.number(0, 4), D = in.number(0, 20),
                Dv = in.number(0, 20);
  std::array<index_t, 6> const shape{B, N, M, H, D, Dv};
  heed::sliding_window const window{.left = in.number(-1, 90), .right = in.number(-1, 40)};
  heed::first_keys const first{in.number(-1, 9)};
  switch (in.number(0, 5)) {
    case 0:
      return call<float, float>(in, shape, heed::causal{} & (window | first));
    case 1:
      return call<float, Eigen::half>(in, shape, ~window | first,
                                      heed::softcap{double(in.number(-1, 9))});
    case 2: {
      auto const lengths =
          in.list(in.around(B, 0, 4), in.around(0, -2, 0), M + (in.number(0, 15) == 0));
      return call<float, float>(in, shape, heed::key_lengths{lengths} & window, heed::top_left{});
    }
    case 3: {
      index_t const count = in.number(0, 5);
      auto rows = in.list(count, in.around(0, -1, 0), N),
           keys = in.list(in.around(count, 0, 5), 0, M);
      if (in.number(0, 7) != 0) {
        rows.push_back(0), keys.push_back(0);
        rows.push_back(N), keys.push_back(M);
        std::sort(rows.begin(), rows.end());
        std::sort(keys.begin(), keys.end());
      }
      return call<float, float>(in, shape, heed::documents{.queries = rows, .keys = keys}, window);
    }
    case 4: {
      auto const positions = in.list(N, -20, 140);
      return call<float, Eigen::bfloat16>(in, shape, window,
                                          heed::query_positions{tensor_view<index_t const, 2>(
                                              positions.data(), {1, in.around(N, 0, 70)})});
    }
    default: {
      auto const extent = [&](index_t full) {
        return in.number(0, 1) ? index_t{1} : in.around(full, 0, 9);
      };
      tensor<float> bias(in, {extent(B), extent(H), extent(N), extent(M)}, true);
      std::vector<float> slopes(static_cast<std::size_t>(in.around(H, 0, 4)), 0.1f);
      return call<float, float>(
          in, shape, heed::causal{}, heed::bias{bias.view},
          heed::alibi{tensor_view<float, 1>(slopes.data(), {static_cast<index_t>(slopes.size())})});
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
