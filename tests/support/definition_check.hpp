// Functions of tensors of rank 4 against a definition written once for any type of number: results by the 2x rule,
// gradients by the 2x rule against those of the definition.
#pragma once

#include "reference/traced.hpp"
#include "support/error_rule.hpp"
#include "support/random.hpp"

#include <heed/view/element.hpp>

#include <deque>

namespace support {

/// The operands, results and gradients of one random call. Tensors have random layouts and red zones.
///
///     definition_check<float> check(seed);
///     check.input("q", {1, n, 2, 8});
///     check.output("out", {1, n, 2, 8});
///     heed::mechanism(check.in(0), check.out(0));
///     return check.forward(definition);       // definition(tensors of numbers) returns tensors of results
template <class T>
class definition_check {
 public:
  using compute = heed::compute_type<T>;
  using golden = std::conditional_t<std::is_same_v<compute, double>, long double, double>;

  random draw;

  explicit definition_check(seed_t seed) : draw(seed) {}

  /// A further input, of normal numbers or of what `number()` returns; its gradient has its shape.
  template <class Number>
  void input(char const* name, extents_of<4> const& extents, Number number) {
    inputs_.push_back(make(name, extents));
    inputs_.back().values.fill([&](auto const&) { return convert<T>(number()); });
    inputs_.back().values.remember();
    gradients_.push_back(make(name, extents));
  }
  void input(char const* name, extents_of<4> const& extents) {
    input(name, extents, [&] { return draw.normal(); });
  }
  /// A further result, and a gradient of the loss by it.
  void output(char const* name, extents_of<4> const& extents) {
    outputs_.push_back(make(name, extents));
    slopes_.push_back(make(name, extents));
    slopes_.back().values.fill([&](auto const&) { return convert<T>(draw.normal()); });
    slopes_.back().values.remember();
  }

  tensor_view<T const, 4> in(std::size_t n) const { return inputs_[n].values.view(); }
  tensor_view<T, 4> out(std::size_t n) { return outputs_[n].values.view(); }
  tensor_view<T const, 4> saved(std::size_t n) const { return outputs_[n].values.view(); }
  tensor_view<T const, 4> dout(std::size_t n) const { return slopes_[n].values.view(); }
  tensor_view<T, 4> din(std::size_t n) { return gradients_[n].values.view(); }

  /// Complains about the results. `others` are the definition again, summed in other orders: the error of one order is a
  /// matter of luck where there is little to sum, or where much of it cancels. For the latter they and the definition are
  /// also taken of inputs that were rounded otherwise.
  template <class Definition, class... Others>
  std::string forward(Definition const& definition, Others const&... others) {
    std::vector<reference::tensors<compute>> naive;
    for (auto const& inputs : inputs_in_several_roundings())
      for (auto const& results : {definition(inputs), others(inputs)...}) naive.push_back(results);
    return compare(outputs_, definition(values<golden>(inputs_)), naive);
  }

  /// Complains about the gradients of the loss sum dout . out.
  template <class Definition, class... Others>
  std::string backward(Definition const& definition, Others const&... others) {
    std::vector<reference::tensors<compute>> naive;
    auto const slopes = values<compute>(slopes_);
    for (auto const& inputs : inputs_in_several_roundings())
      for (auto const& gradients : {reference::gradients_of(definition, inputs, slopes),
                                    reference::gradients_of(others, inputs, slopes)...})
        naive.push_back(gradients);
    return compare(
        gradients_,
        reference::gradients_of(definition, values<golden>(inputs_), values<golden>(slopes_)),
        naive);
  }

 private:
  struct named {
    std::string name;
    guarded<T, 4> values;
  };

  named make(char const* name, extents_of<4> const& extents) {
    named made{name, guarded<T, 4>(extents, random_layout<4>(draw, extents, false))};
    made.values.fill([](auto const&) { return poison<T>(); });
    made.values.remember();
    return made;
  }

  template <class U>
  static reference::tensors<U> values(std::deque<named> const& all) {
    reference::tensors<U> result;
    for (named const& each : all) result.push_back(each.values.template values<U>());
    return result;
  }

  /// The inputs as they are, and with every number moved by an epsilon of itself, up or down.
  std::vector<reference::tensors<compute>> inputs_in_several_roundings() const {
    std::vector all(4, values<compute>(inputs_));
    random up(1);
    for (std::size_t n = 1; n < all.size(); ++n)
      for (auto& input : all[n])
        for (compute& x : input.values)
          x *= 1 + (up.one_in(2) ? 1 : -1) * std::numeric_limits<compute>::epsilon();
    return all;
  }

  std::string compare(std::deque<named>& got, reference::tensors<golden> const& exact,
                      std::vector<reference::tensors<compute>> const& naive) {
    std::string complaint;
    for (std::size_t n = 0; n < got.size(); ++n) {
      std::vector<reference::tensor<compute, 4>> in_each_order;
      for (auto const& all : naive) in_each_order.push_back(all[n]);
      complaint += two_times_rule(got[n].name, got[n].values.template values<golden>(), exact[n],
                                  in_each_order, epsilon<T>());
      if (!got[n].values.untouched_outside())
        complaint += "memory outside " + got[n].name + " was written to\n";
    }
    for (named& each : inputs_)
      if (!each.values.untouched()) complaint += each.name + " was written to\n";
    return complaint;
  }

  std::deque<named> inputs_, outputs_, slopes_, gradients_;
};

}  // namespace support
