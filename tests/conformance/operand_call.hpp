// Mechanisms with operands of their own names: each an input, with a gradient of its shape as an output.
#pragma once

#include "attention_call.hpp"

namespace conformance {

/// An operand and d loss / d operand.
template <int Rank>
struct operand {
  std::string_view gradient;
  tensor<double, Rank> value, slope;

  auto in() const { return value.const_view(); }
  auto to() const { return slope.view(); }
  /// Token t alone, of a tensor [batch, position, ...].
  auto at(index_t t) const { return in().slice(1, t, 1); }
};

class operand_call {
 public:
  operand_call(arguments& from, std::vector<std::string_view> const& gradients,
               std::string_view first)
      : given(from), what(verb_of(from, gradients)), pool_(threads_of(from)), run_on{pool_} {
    given.set_output_type(given.array(first).type);
  }

  template <int Rank>
  operand<Rank> take(std::string_view name, std::string_view gradient) {
    operand<Rank> one{gradient, given.input<double, Rank>(name), {}};
    one.slope = tensor<double, Rank>(one.value.shape());
    return one;
  }
  /// The gradient of the result.
  tensor<double, 4> dout(std::string_view name = "do") {
    require(given.has(name), [&] { return "the backward pass needs " + std::string(name) + "="; });
    return given.input<double, 4>(name);
  }
  template <int... Ranks>
  void write(operand<Ranks> const&... operands) {
    (given.output(operands.gradient, operands.slope), ...);
  }

  arguments& given;
  verb what;

 private:
  Eigen::ThreadPool pool_;

 public:
  heed::on<Eigen::ThreadPool> run_on;
};

/// Operands, their gradients, o, do and how it runs.
struct operand_parameter {
  std::string_view name, gradient, shape, meaning;
};
inline std::vector<parameter> operand_parameters(std::vector<operand_parameter> const& operands,
                                                 std::string_view result,
                                                 std::vector<parameter> own,
                                                 std::string_view verbs) {
  std::vector<parameter> all;
  for (auto const& each : operands)
    all.push_back({each.name, kind::input, each.shape, required, each.meaning});
  for (parameter& each : own) all.push_back(std::move(each));
  all.push_back({"o", kind::output, result, "none", "the result, in the type of the first file"});
  all.push_back({"do", kind::input, result, "none", "gradient of the loss by o"});
  for (auto const& each : operands)
    if (!each.gradient.empty())
      all.push_back({each.gradient, kind::output, each.shape, "none",
                     "gradient of the loss by the operand without d"});
  all.push_back({"threads", kind::integer, "", "1", "threads of the pool that it runs on"});
  all.push_back({"verb", kind::choice, verbs, "forward, or backward with do=", "what to do"});
  return all;
}

}  // namespace conformance
