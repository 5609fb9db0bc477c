// A random call of a mechanism: its files, its arguments, and its definition.
#pragma once

#include "cli/sandbox.hpp"
#include "reference/attention.hpp"

#include <functional>

namespace cli {

/// A case of a mechanism that draws its own parameters, and operands that fit them.
class attention_files {
 public:
  attention_files(sandbox const& where, support::seed_t seed, std::string const& name)
      : box(where), draw(seed), call("run " + name) {}

  sandbox const& box;
  support::random draw;
  std::string call;

  // The shape, for the mechanism to change.
  index_t batches = 1, rows = 0, keys = 0, heads = 2, key_heads = 1;
  /// Whether a pair meets, p being row + keys - rows, or the row with `stands_at_row`.
  std::function<bool(index_t batch, index_t head, index_t p, index_t key)> keep;
  bool stands_at_row = false;
  /// If it may have a table of relative positions: its size, and the entry of a pair that meets.
  index_t entries = 0;
  std::function<index_t(index_t row, index_t key)> entry;

  /// Adds arguments.
  void set(std::string const& name, index_t number) {
    call += " " + name + "=" + std::to_string(number);
  }
  void set(std::string const& name, std::string const& text) { call += " " + name + "=" + text; }
  void set(std::string const& name, double number) {
    std::ostringstream text;
    text.precision(17);
    text << number;
    set(name, text.str());
  }
  void set(std::string const& name, std::vector<index_t> const& numbers) {
    std::string text;
    for (index_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
    set(name, text);
  }
  /// Adds arguments that are arrays, in files.
  void save(std::string const& name, std::vector<index_t> shape,
            std::vector<index_t> const& numbers) {
    if (draw.one_in(2))
      box.save(name, std::move(shape), std::vector<std::int64_t>(numbers.begin(), numbers.end()));
    else
      box.save(name, std::move(shape), std::vector<std::int32_t>(numbers.begin(), numbers.end()));
    call += " " + name + "=" + name + ".npy";
  }
  void save(std::string const& name, std::vector<index_t> shape, std::vector<bool> const& flags) {
    box.save(name, std::move(shape), std::vector<std::uint8_t>(flags.begin(), flags.end()));
    call += " " + name + "=" + name + ".npy";
  }
  template <int Rank>
  void save(std::string const& name, reference::tensor<double, Rank> const& numbers) {
    if (single)
      box.save_as<float>(name, numbers);
    else
      box.save_as<double>(name, numbers);
    call += " " + name + "=" + name + ".npy";
  }

  std::vector<bool> flags(index_t count, std::ptrdiff_t one_in = 2) {
    std::vector<bool> all;
    for (index_t n = 0; n < count; ++n) all.push_back(draw.one_in(one_in));
    return all;
  }
  std::vector<index_t> numbers(index_t count, index_t low, index_t high) {
    std::vector<index_t> all;
    for (index_t n = 0; n < count; ++n) all.push_back(draw.between(low, high));
    return all;
  }

  /// Draws operands of the shape, and perhaps a scale.
  void draw_operands(bool scaled = true) {
    dim = draw.between(1, 12);
    index_t const value_dim = draw.between(1, 12);
    q = normal<4>(draw, {batches, rows, heads, dim});
    k = normal<4>(draw, {batches, keys, key_heads, dim});
    v = normal<4>(draw, {batches, keys, key_heads, value_dim});
    dout = normal<4>(draw, {batches, rows, heads, value_dim});
    dlse = normal<3>(draw, {batches, heads, rows});
    save("q", q);
    save("k", k);
    save("v", v);
    definition.align =
        stands_at_row ? reference::alignment::top_left : reference::alignment::bottom_right;
    definition.keep_in_head = keep;
    if (scaled && draw.one_in(3)) {
      definition.scale = draw.uniform(-1, 1);
      set("scale", *definition.scale);
    }
    if (draw.one_in(3)) set("threads", index_t{2});
  }

  double tolerance() const { return single ? std::max(1e-4, accuracy) : accuracy; }
  double accuracy = 1e-11;  ///< of a definition, where it is a difference of others

  /// Runs the call, and says which of its outputs are not as expected.
  template <class... Expected>
  std::string complaint(std::string const& more, Expected const&... expected) const {
    std::string arguments = call + more;
    auto const ask = [&](auto const& output) {
      // In steps: g++ 12 warns of the sum.
      arguments.append(" ").append(output.name).append("=").append(output.name).append(".npy");
    };
    (ask(expected), ...);
    auto const done = box.run(arguments);
    if (done.status != 0) return done.err + " after " + arguments + "\n";
    std::string differ;
    auto const compare = [&](auto const& output) {
      if (!close(box.load<std::decay_t<decltype(output)>::rank>(output.name), output.golden,
                 tolerance()))
        differ += std::string(output.name) + " ";
    };
    (compare(expected), ...);
    return differ.empty() ? "" : differ + "differ after " + arguments + "\n";
  }

  bool single = false;
  index_t dim = 1;
  reference::options definition;
  reference::tensor<double, 4> q, k, v, dout;
  reference::tensor<double, 3> dlse;
};

/// An output and what it should hold.
template <int Rank>
struct expected {
  static constexpr int rank = Rank;
  char const* name;
  reference::tensor<double, Rank> const& golden;
};
template <int Rank>
expected(char const*, reference::tensor<double, Rank> const&) -> expected<Rank>;

}  // namespace cli
