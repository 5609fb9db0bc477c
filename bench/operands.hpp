#pragma once

#include "bench.hpp"

#include <heed/heed.hpp>

namespace heed_bench {

/// The shape of a problem of batch 1. Fields left at 0 follow from their neighbours.
struct shape {
  index_t dim;
  index_t queries;
  index_t keys = 0;       // as many as queries
  index_t value_dim = 0;  // dim
  index_t heads = 8;
  index_t key_heads = 0;  // heads
  bool bnhd = false;      // memory laid out [batch, position, head, dim] rather than [batch, head,
                          // position, dim]

  index_t key_count() const { return keys ? keys : queries; }
  index_t value_width() const { return value_dim ? value_dim : dim; }
  index_t key_head_count() const { return key_heads ? key_heads : heads; }

  template <class T>
  heed::tensor_view<T, 4> view(T* data, index_t positions, index_t head_count,
                               index_t width) const {
    return bnhd ? heed::bnhd(data, 1, positions, head_count, width)
                : heed::bhnd(data, 1, head_count, positions, width);
  }
};

/// Random operands of type T, with keys and values of type KV.
template <class T, class KV = T>
class operands {
 public:
  explicit operands(shape const& of)
      : shape_(of),
        query_(random_buffer<T>(of.queries * of.heads * of.dim, 1)),
        key_(random_buffer<KV>(of.key_count() * of.key_head_count() * of.dim, 2)),
        value_(random_buffer<KV>(of.key_count() * of.key_head_count() * of.value_width(), 3)),
        out_(of.queries * of.heads * of.value_width()) {}

  auto query() const {
    return shape_.view(query_.data(), shape_.queries, shape_.heads, shape_.dim);
  }
  auto key() const {
    return shape_.view(key_.data(), shape_.key_count(), shape_.key_head_count(), shape_.dim);
  }
  auto value() const {
    return shape_.view(value_.data(), shape_.key_count(), shape_.key_head_count(),
                       shape_.value_width());
  }
  auto out() const {
    return shape_.view(out_.data(), shape_.queries, shape_.heads, shape_.value_width());
  }

 private:
  shape shape_;
  buffer<T> query_;
  buffer<KV> key_, value_;
  buffer<T> out_;
};

/// The shape and the pattern as a row's name gives them.
inline std::string row_name(std::string_view verb, std::string_view element, shape const& of,
                            bool causal, std::string_view extra, int threads) {
  std::string name =
      label("softmax/" + std::string(verb) + "/" + std::string(element))("D", of.dim);
  if (of.value_width() != of.dim) name = label(name)("Dv", of.value_dim);
  name = label(name)("N", of.queries)("H", of.heads)("causal", causal ? 1 : 0);
  if (of.bnhd) name = label(name)("layout", "bnhd");
  if (!extra.empty()) name = name + "/" + std::string(extra);
  return label(name)("threads", threads);
}

}  // namespace heed_bench
