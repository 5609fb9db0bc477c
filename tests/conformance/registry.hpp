// What heed_conformance can run: mechanisms, their parameters and the arguments of a run.
//
// A mechanism is one file that registers itself:
//
//     void run(arguments& given) { … }
//     mechanism_registration const softmax{{"softmax", {{"causal", kind::flag, "false", "keys after
//     …"}, …}, run}};
//
// Those that are patterns stand in one table, patterns.cpp.
#pragma once

#include "npy.hpp"

#include <heed/view/convert.hpp>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace conformance {

using heed::index_t;
using heed::require;

/// What an argument is. Integers are joined with commas; inputs and outputs are paths of .npy files.
enum class kind { flag, integer, integers, number, choice, input, output };

inline constexpr std::string_view required = "required";

struct parameter {
  std::string_view name;
  kind type;
  std::string_view of;             ///< the choices, joined with |, or the shape of the array
  std::string_view default_value;  ///< what a missing argument means; or `required`
  std::string_view meaning;

  std::string type_text() const;
};

class arguments;

struct mechanism {
  std::string_view name;
  std::vector<parameter> parameters;
  std::function<void(arguments&)> run;
};

/// Every mechanism, by name.
std::map<std::string_view, mechanism>& mechanisms();

struct mechanism_registration {
  explicit mechanism_registration(mechanism m) { mechanisms().emplace(m.name, std::move(m)); }
};

/// A tensor in memory of its own, packed.
template <class T, int Rank>
class tensor {
 public:
  using shape_type = std::array<index_t, static_cast<std::size_t>(Rank)>;

  tensor() = default;
  explicit tensor(shape_type const& shape) : shape_(shape) {
    index_t count = 1;
    for (index_t extent : shape) count *= extent;
    memory_ = std::make_unique<T[]>(static_cast<std::size_t>(count));
  }

  heed::tensor_view<T, Rank> view() const { return {memory_.get(), shape_}; }
  heed::tensor_view<T const, Rank> const_view() const { return view(); }
  T* data() const { return memory_.get(); }
  shape_type const& shape() const { return shape_; }

 private:
  shape_type shape_{};
  std::unique_ptr<T[]> memory_;
};

/// The arguments of one run, checked against the parameters of its mechanism.
class arguments {
 public:
  /// From the command line's key=value. Throws heed::error for what the mechanism does not know.
  arguments(mechanism const& what, std::vector<std::string_view> const& key_values);

  bool has(std::string_view name) const { return given_.contains(name); }
  bool flag(std::string_view name) const;
  index_t integer(std::string_view name) const;
  /// An argument of integers joined with commas.
  std::vector<index_t> list(std::string_view name) const;
  /// The same for each of d axes; one integer is that of all of them.
  template <std::size_t d>
  std::array<index_t, d> point(std::string_view name) const {
    std::vector<index_t> const numbers = list(name);
    require(numbers.size() == d || numbers.size() == 1, [&] {
      return std::string(name) + " has " + std::to_string(numbers.size()) +
             " integers; expected one, or one for each of " + std::to_string(d) + " axes";
    });
    std::array<index_t, d> at{};
    for (std::size_t a = 0; a < d; ++a) at[a] = numbers[numbers.size() == 1 ? 0 : a];
    return at;
  }
  /// Calls f with how many integers an argument has, 1 to 3, as a constant.
  template <class F>
  auto with_axes(std::string_view name, F const& f) const {
    std::size_t const axes = list(name).size();
    require(axes <= 3, [&] {
      return std::string(name) + " has " + std::to_string(axes) + " integers; expected 1 to 3";
    });
    if (axes == 1) return f(std::integral_constant<std::size_t, 1>());
    if (axes == 2) return f(std::integral_constant<std::size_t, 2>());
    return f(std::integral_constant<std::size_t, 3>());
  }
  double number(std::string_view name) const;
  std::string_view choice(std::string_view name) const;

  /// Whether some output was asked for.
  bool writes() const;

  /// The array in an input's file; read once.
  npy::array const& array(std::string_view name);

  /// An input as a tensor of T: floating-point numbers from such, integers from integers, bool from
  /// bool. An axis of extent 1 is added in place `missing_axis` if the file's array has one axis
  /// less, or as many as `most_missing`.
  template <class T, int Rank>
  tensor<T, Rank> input(std::string_view name, std::optional<int> missing_axis = {},
                        std::size_t most_missing = 1) {
    npy::array const& from = array(name);
    std::vector<index_t> shape = from.shape;
    if (missing_axis && shape.size() + most_missing >= static_cast<std::size_t>(Rank))
      while (shape.size() < static_cast<std::size_t>(Rank))
        shape.insert(shape.begin() + *missing_axis, 1);
    require(shape.size() == static_cast<std::size_t>(Rank), [&] {
      return std::string(name) + " has shape " + heed::shape_text(from.shape) + "; expected " +
             std::string(find(name).of);
    });
    constexpr char expected = std::is_same_v<T, bool> ? 'b' : std::is_integral_v<T> ? 'i' : 'f';
    char const type = from.type[0] == 'u' ? 'i' : from.type[0];
    require(type == expected, [&] {
      return std::string(name) + " has elements of type " + from.type + "; expected " +
             (expected == 'b'   ? "bool"
              : expected == 'i' ? "integers"
                                : "float32 or float64");
    });
    typename tensor<T, Rank>::shape_type extents{};
    std::copy_n(shape.begin(), Rank, extents.begin());
    tensor<T, Rank> to(extents);
    from.with_elements([&](auto const* element) {
      using file_type = std::remove_cvref_t<decltype(*element)>;
      for (index_t i = 0; i < from.size(); ++i) {
        if constexpr (std::is_same_v<T, bool>)
          to.data()[i] = element[i] != file_type(0);
        else if constexpr (std::is_integral_v<T>)
          to.data()[i] = static_cast<T>(element[i]);
        else if constexpr (std::is_floating_point_v<file_type>)
          to.data()[i] = heed::convert_element<T>(element[i]);
      }
    });
    return to;
  }

  /// Integers of rank 1: lengths and offsets.
  std::vector<index_t> integers(std::string_view name);

  /// Takes what an output's file will hold, of this shape; nothing if the output was not asked for.
  template <class T, int Rank>
  void output(std::string_view name, tensor<T, Rank> const& from,
              std::vector<index_t> const& shape) {
    if (!has(name)) return;
    npy::array to{output_type_, shape, {}};
    auto const count = static_cast<std::size_t>(to.size());
    auto const store = [&]<class File>(File) {
      to.bytes.resize(count * sizeof(File));
      for (std::size_t i = 0; i < count; ++i) {
        auto const element = static_cast<File>(from.data()[i]);
        std::memcpy(&to.bytes[i * sizeof(File)], &element, sizeof(File));
      }
    };
    if (output_type_ == "f8")
      store(double{});
    else
      store(float{});
    outputs_.emplace_back(std::string(value(name)), std::move(to));
  }
  template <class T, int Rank>
  void output(std::string_view name, tensor<T, Rank> const& from) {
    output(name, from, {from.shape().begin(), from.shape().end()});
  }

  /// Files are written in this type, "f4" or "f8".
  void set_output_type(std::string type) { output_type_ = std::move(type); }

  /// Writes all outputs, or none.
  void write_outputs() const;

 private:
  parameter const& find(std::string_view name) const;
  std::string_view value(std::string_view name) const;

  mechanism const& mechanism_;
  std::map<std::string_view, std::string_view> given_;
  std::map<std::string_view, npy::array> arrays_;
  std::vector<std::pair<std::string, npy::array>> outputs_;
  std::string output_type_ = "f8";
};

}  // namespace conformance
