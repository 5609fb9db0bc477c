// Recurrences of queries, keys and values: at once, token by token, and their gradients.
#pragma once

#include "operand_call.hpp"

#include <cmath>

namespace conformance {

/// Queries, keys and values, and a result.
struct recurrence_operands : operand_call {
  operand<4> q, k, v;
  tensor<double, 4> out;

  recurrence_operands(arguments& from, std::vector<std::string_view> gradients = {})
      : operand_call(from, gradients, "q"),
        q(take<4>("q", "dq")),
        k(take<4>("k", "dk")),
        v(take<4>("v", "dv")),
        out({q.value.shape()[0], q.value.shape()[1], q.value.shape()[2], v.value.shape()[3]}) {}

  /// Heads of states, if gates and rates have no more.
  index_t state_heads() const { return std::max(k.value.shape()[2], v.value.shape()[2]); }
  tensor<double, 4> state(index_t features, index_t columns) const {
    return tensor<double, 4>({q.value.shape()[0], state_heads(), features, columns});
  }
  index_t dim() const { return k.value.shape()[3]; }
  index_t columns() const { return v.value.shape()[3]; }

  /// Token by token if decoding was asked for, else at once; true if gradients are to follow.
  template <class Whole, class Step>
  bool forward(Whole const& whole, Step const& step) {
    if (what == verb::decode) {
      require(q.value.shape()[1] == k.value.shape()[1],
              [] { return "decoding is of calls with as many keys as queries"; });
      for (index_t t = 0; t < q.value.shape()[1]; ++t) step(t, out.view().slice(1, t, 1));
    } else {
      whole();
    }
    given.output("o", out);
    return what == verb::backward;
  }
};

inline std::vector<parameter> recurrence_parameters(
    std::vector<operand_parameter> own, std::vector<parameter> more,
    std::string_view verbs = "forward|backward|decode") {
  std::vector<operand_parameter> operands{{"q", "dq", "[B, N, H, D]", "queries"},
                                          {"k", "dk", "[B, M, H_k, D]", "keys; H_k divides H"},
                                          {"v", "dv", "[B, M, H_v, D_v]", "values; H_v divides H"}};
  operands.insert(operands.end(), own.begin(), own.end());
  return operand_parameters(operands, "[B, N, H, D_v]", std::move(more), verbs);
}
inline parameter const scale_parameter{"scale", kind::number, "", "1/sqrt(D)", "factor of q.k"};

inline double scale_of(arguments const& given, index_t dim, double otherwise = 0) {
  if (given.has("scale")) return given.number("scale");
  return otherwise != 0 ? otherwise : 1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1)));
}

inline parameter optional_input(std::string_view name, std::string_view shape,
                                std::string_view meaning) {
  return {name, kind::input, shape, "none", meaning};
}
inline parameter gradient_of(std::string_view name, std::string_view shape) {
  return {name, kind::output, shape, "none", "gradient of the loss by the operand without d"};
}

}  // namespace conformance
