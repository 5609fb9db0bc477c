// Patterns of heed_conformance and their definitions: what a case draws, and how it is checked.
#pragma once

#include "cli/attention_files.hpp"

#include <map>

namespace cli {

struct pattern_test {
  std::string name;
  void (*draw)(attention_files&);
};

inline void square(attention_files& c) {
  c.rows = c.keys;
}

/// A predicate over a position and a key.
template <class F>
auto on_pairs(F f) {
  return [=](index_t, index_t, index_t p, index_t j) { return f(p, j); };
}

/// Numbers for batch entries and heads, in a file that may lack axes or share them.
template <class T>
struct table {
  std::vector<T> values;
  index_t batches = 1, heads = 1, count = 0;

  T operator()(index_t batch, index_t head, index_t n) const {
    index_t const row = (batches == 1 ? 0 : batch) * heads + (heads == 1 ? 0 : head);
    return values[static_cast<std::size_t>(row * count + n)];
  }
};
template <class T, class Draw>
table<T> draw_table(attention_files& c, std::string const& name, index_t count, Draw number,
                    index_t heads) {
  table<T> all;
  all.count = count;
  std::vector<index_t> shape{count};
  if (!c.draw.one_in(3)) {
    all.heads = c.draw.one_in(2) ? heads : 1;
    shape = {all.heads, count};
    if (c.draw.one_in(2)) {
      all.batches = c.draw.one_in(2) ? c.batches : 1;
      shape = {all.batches, all.heads, count};
    }
  }
  for (index_t row = 0; row < all.batches * all.heads; ++row)
    for (index_t n = 0; n < count; ++n) all.values.push_back(number(n));
  c.save(name, shape, all.values);
  return all;
}
inline table<bool> draw_flags(attention_files& c, std::string const& name, index_t count) {
  return draw_table<bool>(
      c, name, count, [&](index_t) { return c.draw.one_in(2); }, c.heads);
}
inline table<index_t> draw_numbers(attention_files& c, std::string const& name, index_t count,
                                   index_t low, index_t high) {
  return draw_table<index_t>(
      c, name, count, [&](index_t) { return c.draw.between(low, high); }, c.heads);
}

/// Sorted numbers from 0 to `last`, the first 0.
inline std::vector<index_t> draw_starts(attention_files& c, index_t count, index_t last) {
  std::vector<index_t> starts = c.numbers(count - 1, 0, last);
  starts.push_back(0);
  std::sort(starts.begin(), starts.end());
  return starts;
}
inline std::vector<index_t> lengths_of(std::vector<index_t> const& starts, index_t end) {
  std::vector<index_t> lengths;
  for (std::size_t s = 0; s < starts.size(); ++s)
    lengths.push_back((s + 1 < starts.size() ? starts[s + 1] : end) - starts[s]);
  return lengths;
}
/// Sometimes causal, for entries that have the flag.
template <class F>
inline void perhaps_causal(attention_files& c, F keep) {
  bool const causal = c.draw.one_in(2);
  if (causal) c.set("causal", std::string("true"));
  c.keep = [=](index_t b, index_t h, index_t p, index_t j) {
    return keep(b, h, p, j) && (!causal || j <= p);
  };
}

/// The verbs of each mechanism that can be listed.
inline std::map<std::string, std::string> listed_verbs(sandbox const& box) {
  std::istringstream lines(box.run("list").out);
  std::map<std::string, std::string> verbs;
  for (std::string line; std::getline(lines, line);) {
    std::vector<std::string> fields;
    std::istringstream parts(line);
    for (std::string field; std::getline(parts, field, '\t');) fields.push_back(field);
    if (fields.at(1) == "verb") verbs[fields[0]] = fields.at(2);
  }
  return verbs;
}

/// Calls f(head, row, key, row of the table, entry) for the pairs that meet.
template <class F>
void each_entry(attention_files const& c, reference::tensor<double, 2> const& table, F f) {
  for (index_t h = 0; h < c.heads; ++h)
    for (index_t i = 0; i < c.rows; ++i)
      for (index_t j = 0; j < c.keys; ++j)
        if (c.keep(0, h, i, j)) f(h, i, j, table.extent(0) == 1 ? 0 : h, c.entry(i, j));
}

inline std::string check(sandbox const& box, pattern_test const& test, support::seed_t seed,
                         std::string const& verbs) {
  attention_files c(box, seed, test.name);
  c.single = c.draw.one_in(2);
  c.batches = c.draw.between(1, 2);
  c.keys = c.draw.between(1, 40);
  c.rows = c.draw.one_in(3) ? c.keys : c.draw.between(1, 40);
  test.draw(c);
  c.draw_operands();
  bool const biased = c.draw.one_in(3);
  if (biased) {
    auto const one = [&](index_t extent) { return c.draw.one_in(2) ? 1 : extent; };
    auto const bias = normal<4>(c.draw, {one(c.batches), one(c.heads), one(c.rows), one(c.keys)});
    c.save("bias", bias);
    c.definition.modifiers.push_back(reference::bias{bias});
  }
  reference::tensor<double, 2> table;
  if (!biased && c.entries > 0) {
    table = normal<2>(c.draw, {c.draw.one_in(2) ? 1 : c.heads, c.entries});
    c.save("table", table);
    reference::bias numbers{reference::tensor<double, 4>({1, c.heads, c.rows, c.keys})};
    each_entry(c, table, [&](index_t h, index_t i, index_t j, index_t row, index_t entry) {
      numbers.values(0, h, i, j) = table(row, entry);
    });
    c.definition.modifiers.push_back(numbers);
  }
  auto const golden = reference::attention(c.q, c.k, c.v, c.definition);
  std::string complaint = c.complaint("", expected{"o", golden.out}, expected{"lse", golden.lse});
  if (verbs.find("decode") != verbs.npos)
    complaint +=
        c.complaint(" verb=decode", expected{"o", golden.out}, expected{"lse", golden.lse});
  c.save("do", c.dout);
  bool const with_dlse = c.draw.one_in(2);
  if (with_dlse) c.save("dlse", c.dlse);
  auto const slopes = reference::attention_backward(
      c.q, c.k, c.v, golden.out, golden.lse, c.dout,
      with_dlse ? c.dlse : reference::tensor<double, 3>(), c.definition);
  if (biased)
    complaint += c.complaint("", expected{"dq", slopes.query}, expected{"dk", slopes.key},
                             expected{"dv", slopes.value}, expected{"dbias", slopes.modifiers[0]});
  else if (!table.values.empty()) {
    reference::tensor<double, 2> dtable(table.extents);
    each_entry(c, table, [&](index_t h, index_t i, index_t j, index_t row, index_t entry) {
      dtable(row, entry) += slopes.modifiers[0](0, h, i, j);
    });
    complaint += c.complaint("", expected{"dq", slopes.query}, expected{"dk", slopes.key},
                             expected{"dv", slopes.value}, expected{"dtable", dtable});
  } else
    complaint += c.complaint("", expected{"dq", slopes.query}, expected{"dk", slopes.key},
                             expected{"dv", slopes.value});
  return complaint;
}

/// Forward, decode where there is such, and backward of each pattern, on random cases.
inline void check_patterns(std::vector<pattern_test> const& tests) {
  sandbox const box;
  auto const verbs = listed_verbs(box);
  for (pattern_test const& test : tests) {
    REQUIRE(verbs.contains(test.name));
    support::for_each_seed("conformance of " + test.name, 6, [&](support::seed_t seed) {
      return check(box, test, seed, verbs.at(test.name));
    });
  }
}

}  // namespace cli
