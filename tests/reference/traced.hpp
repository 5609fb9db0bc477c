#pragma once

#include "reference/tensor.hpp"

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

/// Gradients of a definition that is written once, for any type of number: traced<T> is a number that remembers what it was
/// computed from, and the sum of chain rules over all it was used for is its gradient. (Reverse accumulation.)
namespace reference {

template <class T>
class traced {
 public:
  traced() = default;
  template <class U>
    requires std::is_arithmetic_v<U> traced(U value) : value_(static_cast<T>(value)) {}

    /// A number to differentiate by. The tape must live as long as what is computed from it.
    static traced variable(T value) {
      return traced(value, record(-1, 0, -1, 0));
    }
    static void forget() {
      tape().clear();
    }
    /// Adds d (weight . result) / d each to the slopes, which has one number for each step of the tape.
    static void accumulate(std::vector<T>& slopes) {
      for (std::size_t n = tape().size(); n-- > 0;) {
        step const& at = tape()[n];
        if (slopes[n] == T(0)) continue;
        if (at.a >= 0) slopes[static_cast<std::size_t>(at.a)] += slopes[n] * at.by_a;
        if (at.b >= 0) slopes[static_cast<std::size_t>(at.b)] += slopes[n] * at.by_b;
      }
    }
    static std::size_t steps() {
      return tape().size();
    }

    T value() const {
      return value_;
    }
    std::int64_t node() const {
      return node_;
    }

    /// f(x), where f has this value and slope.
    traced then(T value, T slope) const {
      return node_ < 0 ? traced(value) : traced(value, record(node_, slope, -1, 0));
    }

    friend traced operator+(traced a, traced b) {
      return both(a, b, a.value_ + b.value_, 1, 1);
    }
    friend traced operator-(traced a, traced b) {
      return both(a, b, a.value_ - b.value_, 1, -1);
    }
    friend traced operator*(traced a, traced b) {
      return both(a, b, a.value_ * b.value_, b.value_, a.value_);
    }
    friend traced operator/(traced a, traced b) {
      T const quotient = a.value_ / b.value_;
      return both(a, b, quotient, 1 / b.value_, -quotient / b.value_);
    }
    friend traced operator-(traced a) {
      return a.then(-a.value_, -1);
    }
    traced& operator+=(traced b) {
      return *this = *this + b;
    }
    traced& operator-=(traced b) {
      return *this = *this - b;
    }
    traced& operator*=(traced b) {
      return *this = *this * b;
    }
    traced& operator/=(traced b) {
      return *this = *this / b;
    }
    friend bool operator<(traced a, traced b) {
      return a.value_ < b.value_;
    }
    friend bool operator>(traced a, traced b) {
      return a.value_ > b.value_;
    }
    friend bool operator<=(traced a, traced b) {
      return a.value_ <= b.value_;
    }
    friend bool operator>=(traced a, traced b) {
      return a.value_ >= b.value_;
    }
    friend bool operator==(traced a, traced b) {
      return a.value_ == b.value_;
    }

    friend traced exp(traced x) {
      T const y = std::exp(x.value_);
      return x.then(y, y);
    }
    friend traced expm1(traced x) {
      return x.then(std::expm1(x.value_), std::exp(x.value_));
    }
    friend traced log(traced x) {
      return x.then(std::log(x.value_), 1 / x.value_);
    }
    friend traced log1p(traced x) {
      return x.then(std::log1p(x.value_), 1 / (1 + x.value_));
    }
    friend traced sqrt(traced x) {
      T const y = std::sqrt(x.value_);
      return x.then(y, 1 / (2 * y));
    }
    friend traced sin(traced x) {
      return x.then(std::sin(x.value_), std::cos(x.value_));
    }
    friend traced cos(traced x) {
      return x.then(std::cos(x.value_), -std::sin(x.value_));
    }
    friend traced abs(traced x) {
      return x.value_ < 0 ? -x : x;
    }

   private:
    struct step {
      std::int64_t a, b;
      T by_a, by_b;
    };

    traced(T value, std::int64_t node) : value_(value), node_(node) {}
    static std::vector<step>& tape() {
      static std::vector<step> all;
      return all;
    }
    static std::int64_t record(std::int64_t a, T by_a, std::int64_t b, T by_b) {
      tape().push_back({a, b, by_a, by_b});
      return static_cast<std::int64_t>(tape().size()) - 1;
    }
    static traced both(traced a, traced b, T value, T by_a, T by_b) {
      return a.node_ < 0 && b.node_ < 0 ? traced(value)
                                        : traced(value, record(a.node_, by_a, b.node_, by_b));
    }

    T value_ = 0;
    std::int64_t node_ = -1;
};

template <class T>
using tensors = std::vector<tensor<T, 4>>;

/// The gradients of the loss sum_n weights[n] . definition(inputs)[n] by each input.
template <class T, class Definition>
tensors<T> gradients_of(Definition const& definition, tensors<T> const& inputs,
                        tensors<T> const& weights) {
  using number = traced<T>;
  number::forget();
  tensors<number> variables;
  for (tensor<T, 4> const& input : inputs) {
    variables.emplace_back(input.extents);
    for (std::size_t n = 0; n < input.values.size(); ++n)
      variables.back().values[n] = number::variable(input.values[n]);
  }
  tensors<number> const outputs = definition(variables);
  std::vector<T> slopes(number::steps());
  for (std::size_t n = 0; n < outputs.size(); ++n)
    for (std::size_t i = 0; i < outputs[n].values.size(); ++i)
      if (std::int64_t const node = outputs[n].values[i].node(); node >= 0)
        slopes[static_cast<std::size_t>(node)] += weights[n].values[i];
  number::accumulate(slopes);
  tensors<T> result;
  for (tensor<number, 4> const& variable : variables) {
    result.emplace_back(variable.extents);
    for (std::size_t n = 0; n < variable.values.size(); ++n)
      result.back().values[n] = slopes[static_cast<std::size_t>(variable.values[n].node())];
  }
  number::forget();
  return result;
}

}  // namespace reference
