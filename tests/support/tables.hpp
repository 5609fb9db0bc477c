// Numbers for rows or keys, broadcast or not, with any strides: the parameters of patterns.
#pragma once

#include "support/random.hpp"

#include <heed/pattern/place.hpp>

#include <memory>
#include <vector>

namespace support {

using heed::index_t;

/// A tensor [batch, head, n] in which an extent may be 1, to share, and with gaps in memory.
template <class T>
class numbers {
 public:
  template <class Draw>
  numbers(random& draw, index_t batches, index_t heads, index_t count, Draw number) {
    index_t const B = draw.one_in(2) ? 1 : batches, H = draw.one_in(2) ? 1 : heads;
    index_t const step = draw.one_in(4) ? 2 : 1;
    index_t const head = count * step + draw.between(0, 3), batch = head * H + draw.between(0, 3);
    memory_ = std::make_unique<T[]>(static_cast<std::size_t>(batch * B) + 1);
    view_ = {memory_.get(), {B, H, count}, {batch, head, step}};
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h)
        for (index_t n = 0; n < count; ++n) view_(b, h, n) = static_cast<T>(number(n));
  }

  heed::tensor_view<T const, 3> view() const { return view_; }

  T operator()(index_t batch, index_t head, index_t n) const {
    return view_(view_.extent(0) == 1 ? 0 : batch, view_.extent(1) == 1 ? 0 : head, n);
  }

 private:
  std::unique_ptr<T[]> memory_;
  heed::tensor_view<T, 3> view_;
};

/// Tokens in an order of one's own: slot s of the only group is token order[s], or none if that is below 0.
struct shuffled {
  std::vector<index_t> order;

  index_t groups() const { return 1; }
  index_t rows(index_t) const { return static_cast<index_t>(order.size()); }
  index_t keys(index_t) const { return static_cast<index_t>(order.size()); }
  heed::token_run query_run(index_t, index_t slot) const {
    return {order[static_cast<std::size_t>(slot)], 1};
  }
  heed::token_run key_run(index_t group, index_t slot) const { return query_run(group, slot); }
};

/// Every second token of `count` from the last one down, with padding between.
inline shuffled every_second(index_t count) {
  shuffled result;
  for (index_t token = count - 1; token >= 0; token -= 2) {
    result.order.push_back(token);
    result.order.push_back(-1);
  }
  return result;
}

/// A place among `batches` and `heads`, maybe one of several sequences that are packed in tensors of `rows` and `keys`.
inline heed::place place_within(random& draw, index_t batches, index_t heads, index_t rows,
                                index_t keys) {
  heed::place where{.batch = draw.between(0, batches - 1),
                    .head = draw.between(0, heads - 1),
                    .rows = rows,
                    .keys = keys};
  where.sequence = where.batch;
  if (batches == 1 && draw.one_in(2)) {
    where.first_row = draw.between(0, rows);
    where.first_key = draw.between(0, keys - 1);
    where.rows = draw.between(0, rows - where.first_row);
    where.keys = draw.between(1, keys - where.first_key);
    where.sequence = 1;
  }
  return where;
}

}  // namespace support
