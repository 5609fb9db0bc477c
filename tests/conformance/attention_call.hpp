// What every call of attention has: operands, results and gradients, from files and to files.
#pragma once

#include "registry.hpp"

#include <heed/cache/kv_cache.hpp>
#include <heed/parallel/eigen_pool.hpp>
#include <heed/pattern/any_pattern.hpp>
#include <heed/softmax.hpp>

#include <cmath>

namespace conformance {

enum class verb { forward, backward, decode };

/// The parameters of attention, with those of a mechanism between operands and the rest. `verbs` is the choice of
/// what can be done: "forward|backward|decode" or less.
std::vector<parameter> attention_parameters(std::string_view verbs, std::vector<parameter> own);

/// What to do. Throws heed::error unless something is to be written, and what belongs to the backward pass, that is do,
/// the gradients of the operands and `gradients`, is given with it only.
verb verb_of(arguments const& given, std::vector<std::string_view> const& gradients = {});

/// A step of decoding: the query's pattern and position, and how many keys are there.
template <class T>
struct decoding_step {
  heed::any_pattern pattern;
  index_t position;
  index_t keys;
  heed::tensor_view<T const, 4> bias = {};
};

/// Operands, results and gradients of one call, in the type T of its arithmetic.
template <class T>
class attention_call {
 public:
  explicit attention_call(arguments& given);

  /// Attention into `out` and `lse`, and its gradients by do and dlse, with further ingredients.
  template <class... Ingredients>
  void attend(Ingredients const&... ingredients);
  template <class... Ingredients>
  void differentiate(Ingredients const&... ingredients);

  /// Each query alone, from a cache that grows as the steps say.
  void decode(std::function<decoding_step<T>(index_t row)> const& step_of);

  /// Reads do and dlse.
  void read_gradients();
  /// Writes o and lse; and dq, dk and dv.
  void write_results();
  void write_gradients();

  index_t batches() const { return query.shape()[0]; }
  index_t rows() const { return query.shape()[1]; }
  index_t heads() const { return query.shape()[2]; }
  index_t keys() const { return key.shape()[1]; }

  arguments& given;
  tensor<T, 4> query, key, value, out;
  tensor<T, 3> lse;
  tensor<T, 4> dout, dquery, dkey, dvalue;
  tensor<T, 3> dlse;
  heed::scale scale;
  Eigen::ThreadPool pool;
};

/// The number of threads, in its range.
int threads_of(arguments const& given);

template <class T>
attention_call<T>::attention_call(arguments& arguments)
    : given(arguments),
      query(given.input<T, 4>("q")),
      key(given.input<T, 4>("k")),
      value(given.input<T, 4>("v")),
      out({batches(), rows(), heads(), value.shape()[3]}),
      lse({batches(), heads(), rows()}),
      scale{given.has("scale")
                ? given.number("scale")
                : 1 / std::sqrt(static_cast<double>(std::max<index_t>(query.shape()[3], 1)))},
      pool(threads_of(given)) {
  given.set_output_type(given.array("q").type);
}

template <class T>
template <class... Ingredients>
void attention_call<T>::attend(Ingredients const&... ingredients) {
  heed::attention(query.const_view(), key.const_view(), value.const_view(), out.view(),
                  heed::lse_into<T>{lse.view()}, scale, heed::on{pool}, ingredients...);
}

template <class T>
template <class... Ingredients>
void attention_call<T>::differentiate(Ingredients const&... ingredients) {
  heed::attention_backward(query.const_view(), key.const_view(), value.const_view(),
                           out.const_view(), lse.const_view(), dout.const_view(), dquery.view(),
                           dkey.view(), dvalue.view(), heed::lse_gradient<T>(dlse.const_view()),
                           scale, heed::on{pool}, ingredients...);
}

template <class T>
void attention_call<T>::decode(std::function<decoding_step<T>(index_t row)> const& step_of) {
  tensor<T, 4> const key_memory(key.shape()), value_memory(value.shape());
  heed::kv_cache cache(key_memory.view(), value_memory.view());
  for (index_t i = 0; i < rows(); ++i) {
    decoding_step<T> const step = step_of(i);
    if (index_t const fresh = step.keys - cache.length(); fresh > 0)
      cache.append(key.const_view().slice(1, cache.length(), fresh),
                   value.const_view().slice(1, cache.length(), fresh));
    heed::query_positions const stands{heed::tensor_view<index_t const, 2>(&step.position, {1, 1})};
    auto const attend_one = [&](auto const&... more) {
      heed::attention(query.const_view().slice(1, i, 1), cache, out.view().slice(1, i, 1),
                      heed::lse_into<T>{lse.view().slice(2, i, 1)}, scale, heed::on{pool},
                      step.pattern, stands, more...);
    };
    if (step.bias.data() == nullptr)
      attend_one();
    else
      attend_one(heed::bias(step.bias, heed::tensor_view<T, 4>()));
  }
}

template <class T>
void attention_call<T>::read_gradients() {
  require(given.has("do"), [] { return "the backward pass needs do="; });
  dout = given.input<T, 4>("do");
  dlse = given.has("dlse") ? given.input<T, 3>("dlse") : tensor<T, 3>(lse.shape());
  dquery = tensor<T, 4>(query.shape());
  dkey = tensor<T, 4>(key.shape());
  dvalue = tensor<T, 4>(value.shape());
}

template <class T>
void attention_call<T>::write_results() {
  given.output("o", out);
  given.output("lse", lse);
}

template <class T>
void attention_call<T>::write_gradients() {
  given.output("dq", dquery);
  given.output("dk", dkey);
  given.output("dv", dvalue);
}

// With a pattern alone it is compiled once, in patterns.cpp.
extern template void attention_call<double>::attend(heed::any_pattern const&);
extern template void attention_call<double>::differentiate(heed::any_pattern const&);
extern template void attention_call<double>::decode(
    std::function<decoding_step<double>(index_t)> const&);

}  // namespace conformance
