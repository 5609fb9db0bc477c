// An arrangement against its promises: every query token in one slot, every key token in at most one, runs that agree
// with one another.
#pragma once

#include <heed/pattern/place.hpp>

#include <string>
#include <vector>

namespace support {

/// The tokens at the slots of a group, by slot; negative where a slot is padding.
struct arranged_group {
  std::vector<heed::index_t> queries, keys;
};

/// The token at each slot of each group; complains about runs that contradict each other, and about the longest run not
/// being given to those who ask along the way.
template <class Arrangement>
std::vector<arranged_group> slots_of(Arrangement const& order, std::string& complaint) {
  using heed::index_t;
  using heed::interval;
  std::vector<arranged_group> groups;
  auto const read = [&](char const* what, index_t group, index_t slots, auto run_at) {
    std::vector<index_t> tokens;
    for (index_t slot = 0; slot < slots; ++slot) {
      heed::token_run const run = run_at(slot);
      bool good = run.size > 0 && slot + run.size <= slots;
      if (good && run.size > 1) {
        // What remains of the run.
        heed::token_run const next = run_at(slot + 1);
        good = next.size == run.size - 1 && next.padding() == run.padding() &&
               (run.padding() || next.first == run.first + run.step);
      }
      if (!good && complaint.size() < 500)
        complaint += std::string(what) + "_run(" + std::to_string(group) + ", " +
                     std::to_string(slot) + ") is " + std::to_string(run.size) + " tokens from " +
                     std::to_string(run.first) + "\n";
      tokens.push_back(run.first < 0 ? index_t{-1} : run.first);
    }
    return tokens;
  };
  for (index_t g = 0; g < order.groups(); ++g)
    groups.push_back(
        {read("query", g, order.rows(g), [&](index_t slot) { return order.query_run(g, slot); }),
         read("key", g, order.keys(g), [&](index_t slot) { return order.key_run(g, slot); })});
  return groups;
}

/// Complains unless every query token stands in one slot, and every key token in at most one, in exactly one if
/// `all_keys`.
inline std::string check_tokens(std::vector<arranged_group> const& groups, heed::index_t rows,
                                heed::index_t keys, bool all_keys = true) {
  auto const count = [&](char const* what, heed::index_t tokens, bool all, auto member) {
    std::vector<int> seen(static_cast<std::size_t>(tokens), 0);
    for (auto const& group : groups)
      for (heed::index_t token : group.*member) {
        if (token >= tokens) return std::string(what) + " beyond the tokens\n";
        if (token >= 0) ++seen[static_cast<std::size_t>(token)];
      }
    for (std::size_t t = 0; t < seen.size(); ++t)
      if (seen[t] > 1 || (all && seen[t] == 0))
        return std::string(what) + " token " + std::to_string(t) + " stands in " +
               std::to_string(seen[t]) + " slots\n";
    return std::string();
  };
  return count("query", rows, true, &arranged_group::queries) +
         count("key", keys, all_keys, &arranged_group::keys);
}

}  // namespace support
