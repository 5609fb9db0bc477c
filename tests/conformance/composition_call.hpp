// Mechanisms that are made of several calls of attention, and return no lse.
#pragma once

#include "attention_call.hpp"

namespace conformance {

/// The parameters of attention without lse, with those of a mechanism between operands and the rest.
inline std::vector<parameter> composition_parameters(std::vector<parameter> own,
                                                     std::string_view verbs = "forward|backward") {
  auto all = attention_parameters(verbs, std::move(own));
  std::erase_if(all, [](parameter const& p) { return p.name == "lse" || p.name == "dlse"; });
  return all;
}

/// Reads do, and makes room for dq, dk and dv.
inline void read_dout(attention_call<double>& call) {
  require(call.given.has("do"), [] { return "the backward pass needs do="; });
  call.dout = call.given.input<double, 4>("do");
  call.dquery = tensor<double, 4>(call.query.shape());
  call.dkey = tensor<double, 4>(call.key.shape());
  call.dvalue = tensor<double, 4>(call.value.shape());
}

/// An input, or an empty tensor.
template <int Rank>
tensor<double, Rank> input_if_given(arguments& given, std::string_view name) {
  return given.has(name) ? given.input<double, Rank>(name) : tensor<double, Rank>();
}

}  // namespace conformance
