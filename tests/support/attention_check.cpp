#include "support/attention_check.hpp"

#include "reference/attention.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/parallel/eigen_pool.hpp>

namespace support {
namespace {

template <class T>
struct results {
  reference::tensor<T, 4> out;
  reference::tensor<T, 3> lse;
  reference::tensor<T, 4> dquery, dkey, dvalue;
};

struct operands_of_case {
  guarded<float, 4> query, key, value, dout;
};

template <class... Ingredients>
results<float> run(operands_of_case const& x, Ingredients const&... ingredients) {
  auto out = blank<float, 4>(x.dout.view().extents());
  index_t const rows = x.query.view().extent(1), heads = x.query.view().extent(2);
  auto lse = blank<float, 3>({x.query.view().extent(0), heads, rows});
  auto dquery = blank<float, 4>(x.query.view().extents());
  auto dkey = blank<float, 4>(x.key.view().extents());
  auto dvalue = blank<float, 4>(x.value.view().extents());
  heed::attention(x.query.view(), x.key.view(), x.value.view(), out.view(),
                  heed::lse_into<float>{lse.view()}, ingredients...);
  heed::attention_backward(x.query.view(), x.key.view(), x.value.view(), out.view(), lse.view(),
                           x.dout.view(), dquery.view(), dkey.view(), dvalue.view(),
                           ingredients...);
  return {out.values<float>(), lse.values<float>(), dquery.values<float>(), dkey.values<float>(),
          dvalue.values<float>()};
}

template <class T>
results<T> define(operands_of_case const& x, attention_case const& what,
                  reference::evaluation order) {
  reference::options o;
  o.order = order;
  index_t const shift = what.order ? what.keys - what.rows : 0;
  o.keep_in_head = [&what, shift](index_t batch, index_t head, index_t position, index_t key) {
    return what.keep(batch, head, position - shift, key);
  };
  auto const q = x.query.values<T>(), k = x.key.values<T>(), v = x.value.values<T>(),
             dout = x.dout.values<T>();
  auto forward = reference::attention<T>(q, k, v, o);
  auto backward = reference::attention_backward<T>(q, k, v, forward.out, forward.lse, dout, {}, o);
  return {forward.out, forward.lse, backward.query, backward.key, backward.value};
}

std::string compare(results<float> const& got, results<double> const& golden,
                    std::vector<results<float>> const& naive) {
  constexpr double eps = std::numeric_limits<float>::epsilon();
  auto const all = [&](auto member) {
    std::vector<std::decay_t<decltype(naive[0].*member)>> parts;
    for (auto const& each : naive) parts.push_back(each.*member);
    return parts;
  };
  using r = results<float>;
  using g = results<double>;
  return two_times_rule("out", got.out, golden.out, all(&r::out), eps) +
         two_times_rule("lse", got.lse, golden.lse, all(&r::lse), eps, 1) +
         two_times_rule("dquery", got.dquery, golden.*(&g::dquery), all(&r::dquery), eps) +
         two_times_rule("dkey", got.dkey, golden.dkey, all(&r::dkey), eps) +
         two_times_rule("dvalue", got.dvalue, golden.dvalue, all(&r::dvalue), eps);
}

/// The last rows alone, decoded, against those rows of the definition.
std::string decode_complaint(random& draw, operands_of_case const& x, attention_case const& what,
                             results<double> const& golden,
                             std::vector<results<float>> const& naive) {
  index_t const few = draw.between(1, std::min<index_t>(8, what.rows)), first = what.rows - few;
  auto const view = x.query.view();
  heed::tensor_view<float const, 4> const query(
      view.data() + first * view.stride(1), {view.extent(0), few, view.extent(2), view.extent(3)},
      view.strides());
  auto const got = attend(query, heed::tensor_view<float const, 4>(x.key.view()),
                          heed::tensor_view<float const, 4>(x.value.view()), what.pattern);
  auto const last = [&](auto const& all) {
    auto part = all;
    part.extents[1] = few;
    part.values.resize(static_cast<std::size_t>(what.batches * few * what.heads * all.extent(3)));
    for (index_t b = 0; b < what.batches; ++b)
      for (index_t i = 0; i < few; ++i)
        for (index_t h = 0; h < what.heads; ++h)
          for (index_t d = 0; d < all.extent(3); ++d) part(b, i, h, d) = all(b, first + i, h, d);
    return part;
  };
  std::vector<reference::tensor<float, 4>> parts;
  for (auto const& each : naive) parts.push_back(last(each.out));
  return two_times_rule("decoded out", got.out, last(golden.out), parts,
                        std::numeric_limits<float>::epsilon());
}

}  // namespace

std::string attention_complaint(std::uint64_t seed, attention_case const& what) {
  random draw(seed);
  index_t const dim = draw.between(1, 40), value_dim = draw.between(1, 40);
  operands_of_case const x{
      normal<float>(draw, {what.batches, what.rows, what.heads, dim}),
      normal<float>(draw, {what.batches, what.keys, what.key_heads, dim}),
      normal<float>(draw, {what.batches, what.keys, what.key_heads, value_dim}),
      normal<float>(draw, {what.batches, what.rows, what.heads, value_dim})};
  results<double> const golden = define<double>(x, what, {});
  std::vector<results<float>> naive;
  for (auto const& order : reference::evaluations) naive.push_back(define<float>(x, what, order));

  static Eigen::ThreadPool pool(2);
  results<float> got, parallel;
  std::string complaint;
  if (what.order) {
    got = run(x, what.pattern, what.order);
    parallel = run(x, what.pattern, what.order, heed::on{pool});
  } else {
    got = run(x, what.pattern);
    parallel = run(x, what.pattern, heed::on{pool});
    if (what.decodes) complaint += decode_complaint(draw, x, what, golden, naive);
  }
  complaint += compare(got, golden, naive);
  if (!same_bits(got.out, parallel.out) || !same_bits(got.lse, parallel.lse) ||
      !same_bits(got.dquery, parallel.dquery) || !same_bits(got.dkey, parallel.dkey) ||
      !same_bits(got.dvalue, parallel.dvalue))
    complaint += "two threads give other bits than one\n";
  if (!complaint.empty())
    complaint += std::to_string(what.rows) + " rows, " + std::to_string(what.keys) + " keys, " +
                 std::to_string(what.heads) + " heads, head_dim " + std::to_string(dim) + "\n";
  return complaint;
}

}  // namespace support
