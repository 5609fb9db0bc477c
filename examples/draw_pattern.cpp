// Draws which pairs of queries and keys a pattern keeps, as text, SVG or PGM.
//
//   draw_pattern sliding_window left=16 right=0
//   draw_pattern causal rows=24 keys=64 --svg causal.svg
//   draw_pattern --list
//
// Queries run downwards, keys to the right. Shaded behind the pairs is what a kernel makes of each tile: it
// skips some, runs full ones without a look at the pattern, and looks at pairs in partial ones only. To draw a
// pattern of your own, add a line to the table `catalogue`.

#include <heed/heed.hpp>
#include <heed/mechanism/all_or_here.hpp>
#include <heed/mechanism/block_attention.hpp>
#include <heed/mechanism/combiner.hpp>
#include <heed/mechanism/demonstration_blocks.hpp>
#include <heed/mechanism/dilated_neighborhood.hpp>
#include <heed/mechanism/elastic_spans.hpp>
#include <heed/mechanism/factorised.hpp>
#include <heed/mechanism/faithful_maps.hpp>
#include <heed/mechanism/fifo_memory.hpp>
#include <heed/mechanism/graph_windows.hpp>
#include <heed/mechanism/head_strides.hpp>
#include <heed/mechanism/inward_window.hpp>
#include <heed/mechanism/isolation.hpp>
#include <heed/mechanism/local_alignment.hpp>
#include <heed/mechanism/meta_tokens.hpp>
#include <heed/mechanism/modality.hpp>
#include <heed/mechanism/multi_axis.hpp>
#include <heed/mechanism/parallel_contexts.hpp>
#include <heed/mechanism/power_attention.hpp>
#include <heed/mechanism/sentinel_tokens.hpp>
#include <heed/mechanism/shifted_groups.hpp>
#include <heed/mechanism/shifted_windows.hpp>
#include <heed/mechanism/task_kv.hpp>
#include <heed/mechanism/text_queries.hpp>
#include <heed/mechanism/token_types.hpp>
#include <heed/neighborhood.hpp>
#include <heed/pattern/any_pattern.hpp>
#include <heed/sliding_window.hpp>
#include <heed/sparse.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using heed::any_pattern;
using heed::coverage;
using heed::grid_point;
using heed::index_t;
using heed::interval;
using heed::tensor_view;
using std::size_t;

/// Thrown for a command line that makes no sense.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// --- Patterns by name --------------------------------------------------------------------------

/// The parameters of a pattern: "left=16 right=0", some of them given by the user. It also keeps the lists that
/// the pattern refers to.
class arguments {
 public:
  /// How many queries and keys to draw, the position of the first query, and the query head of how many.
  index_t rows = 64, keys = 64, head = 0, heads = 4;
  std::optional<index_t> first = {};

  explicit arguments(std::string const& defaults) {
    std::istringstream words(defaults);
    for (std::string word; words >> word;) {
      size_t const equals = word.find('=');
      std::string const name = word.substr(0, equals), value = word.substr(equals + 1);
      if (name == "rows" || name == "keys") {
        set(name, value);
      } else {
        names_.push_back(name);
        values_[name] = value;
      }
    }
  }

  void set(std::string const& name, std::string const& value) {
    if (auto const place = values_.find(name); place != values_.end())
      place->second = value;
    else if (name == "rows")
      rows = number(name, value, 1, most);
    else if (name == "keys")
      keys = number(name, value, 1, most);
    else if (name == "head")
      head = number(name, value, 0, heads - 1);
    else if (name == "first")
      first = number(name, value, -most, most);
    else
      throw usage_error("there is no parameter \"" + name + "\"; there are " + names());
  }

  index_t operator[](std::string const& name) const { return number(name, values_.at(name)); }

  std::string const& text(std::string const& name) const { return values_.at(name); }
  double real(std::string const& name) const {
    std::string const& text = values_.at(name);
    char* end = nullptr;
    double const value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0') throw usage_error(name + " cannot be \"" + text + "\"");
    return value;
  }

  /// Numbers between commas.
  std::vector<index_t> list(std::string const& name) const {
    std::vector<index_t> numbers;
    std::istringstream words(values_.at(name));
    for (std::string word; std::getline(words, word, ',');) numbers.push_back(number(name, word));
    return numbers;
  }
  template <size_t d>
  grid_point<d> point(std::string const& name) const {
    std::vector<index_t> const numbers = list(name);
    if (numbers.size() != d)
      throw usage_error(name + " has " + std::to_string(numbers.size()) +
                        " numbers; expected one for each of " + std::to_string(d) + " axes");
    grid_point<d> point;
    std::ranges::copy(numbers, point.begin());
    return point;
  }

  /// A list stretched over `count` tokens: with two numbers the first half of them gets the first one.
  std::vector<index_t> spread(std::string const& name, index_t count) const {
    std::vector<index_t> const numbers = list(name);
    if (numbers.empty()) throw usage_error(name + " is empty");
    std::vector<index_t> stretched;
    for (index_t i = 0; i < count; ++i)
      stretched.push_back(numbers[size_t(i * std::ssize(numbers) / count)]);
    return stretched;
  }
  /// Whether each of `count` tokens is in a list.
  std::vector<index_t> marks(std::string const& name, index_t count) const {
    std::vector<index_t> marked(size_t(count), 0);
    for (index_t token : list(name))
      if (token >= 0 && token < count) marked[size_t(token)] = 1;
    return marked;
  }

  /// Numbers in memory that lives as long as these arguments.
  template <class T>
  std::span<T const> hold(std::vector<index_t> const& numbers) {
    std::shared_ptr<T[]> const held(new T[numbers.size()]);
    std::ranges::transform(numbers, held.get(), [](index_t x) { return static_cast<T>(x); });
    held_.push_back(held);
    return {held.get(), numbers.size()};
  }
  /// The same as a table that all heads share: [1, 1, …, count].
  template <class T, int rank>
  tensor_view<T const, rank> table(std::vector<index_t> const& numbers) {
    typename tensor_view<T const, rank>::index_array extents;
    extents.fill(1);
    extents[rank - 1] = std::ssize(numbers);
    return {hold<T>(numbers), extents};
  }
  /// What a pattern points to, for as long as these arguments live.
  template <class T>
  T const& own(T thing) {
    auto const held = std::make_shared<T const>(std::move(thing));
    held_.push_back(held);
    return *held;
  }

  /// Draws self-attention of so many tokens, whatever rows and keys say.
  void tokens(index_t count) {
    if (count < 1 || count > most)
      throw usage_error("there are " + std::to_string(count) + " tokens; expected 1 to " +
                        std::to_string(most));
    rows = keys = count;
  }

 private:
  static index_t number(std::string const& name, std::string const& text,
                        index_t least = -(index_t{1} << 24), index_t most = index_t{1} << 24) {
    index_t value = 0;
    auto const [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (problem != std::errc{} || end != text.data() + text.size() || value < least || value > most)
      throw usage_error(name + " cannot be \"" + text + "\"");
    return value;
  }
  std::string names() const {
    std::string all;
    for (std::string const& name : names_) all += name + ", ";
    return all + "rows, keys, first and head";
  }

  static constexpr index_t most = 4096;  // tokens that can be drawn

  std::vector<std::string> names_;
  std::map<std::string, std::string> values_;
  std::vector<std::shared_ptr<void const>> held_;
};

/// A table of all pairs.
struct pair_table {
  std::span<bool const> kept;
  index_t keys;

  bool keep(index_t query, index_t key) const { return kept[size_t(query * keys + key)]; }
  coverage cover(interval queries, interval among) const {
    index_t pairs = 0;
    for (index_t i = queries.first; i < queries.last; ++i)
      for (index_t j = among.first; j < among.last; ++j) pairs += keep(i, j) ? 1 : 0;
    return pairs == 0                               ? coverage::none
           : pairs == queries.size() * among.size() ? coverage::all
                                                    : coverage::some;
  }
};

/// A pattern over the slots of an arrangement as it is between tokens: what kernels see as plain tiles is scattered
/// here.
template <heed::arrangement Order>
pair_table between_tokens(arguments& given, Order const& order,
                          any_pattern const& pattern = heed::dense{}) {
  index_t const rows = given.rows, keys = given.keys;
  order.check({.batches = 1, .sequences = 1, .heads = 1, .rows = rows, .keys = keys});
  heed::any_arrangement const erased(order);
  std::vector<index_t> kept(size_t(rows * keys), 0);
  for (index_t group = 0; group < order.groups(); ++group) {
    heed::place const where{
        .rows = order.rows(group), .keys = order.keys(group), .order = &erased, .group = group};
    auto const bound = pattern.bind(where);
    for (index_t query = 0; query < where.rows; ++query)
      for (index_t key = 0; key < where.keys; ++key)
        if (where.row(query) >= 0 && where.key_row(key) >= 0 && bound.keep(query, key))
          kept[size_t(where.row(query) * keys + where.key_row(key))] = 1;
  }
  return {given.hold<bool>(kept), keys};
}

template <size_t d>
any_pattern on_canvas(arguments& given, heed::neighborhood<d> const& around) {
  given.tokens(heed::grid_size(around.canvas));
  heed::neighborhood_order<d> const order(around, 24);
  return between_tokens(given, order, order.pattern());
}
template <size_t d>
any_pattern neighborhood(arguments& given) {
  heed::neighborhood<d> around{.canvas = given.point<d>("canvas"),
                               .window = given.point<d>("window"),
                               .stride = given.point<d>("stride"),
                               .dilation = given.point<d>("dilation")};
  grid_point<d> const causal = given.point<d>("causal");
  for (size_t axis = 0; axis < d; ++axis) around.causal[axis] = causal[axis] != 0;
  return on_canvas(given, around);
}
/// True with the probability `density`, the same for the same seed.
std::vector<index_t> drawn(arguments const& given, index_t count) {
  std::mt19937 random(static_cast<std::mt19937::result_type>(given["seed"]));
  double const density = given.real("density");
  if (!(density >= 0 && density <= 1)) throw usage_error("density is outside 0 to 1");
  std::bernoulli_distribution kept(density);
  std::vector<index_t> numbers;
  for (index_t n = 0; n < count; ++n) numbers.push_back(kept(random) ? 1 : 0);
  return numbers;
}

/// "110,011": which labels of keys each label of queries meets.
tensor_view<bool const, 2> admitted(arguments& given) {
  std::vector<index_t> all;
  index_t rows = 0;
  std::istringstream lines(given.text("admitted"));
  for (std::string line; std::getline(lines, line, ','); ++rows)
    for (char c : line) all.push_back(c == '1');
  if (rows == 0 || std::ssize(all) % rows != 0)
    throw usage_error("the rows of admitted differ in length");
  return {given.hold<bool>(all), {rows, std::ssize(all) / rows}};
}

/// Words of one letter for each token, as numbers: "gls" for g, l, s.
std::vector<index_t> letters(arguments const& given, std::string const& name, std::string_view of) {
  std::vector<index_t> numbers;
  for (char c : given.text(name)) {
    if (of.find(c) == of.npos)
      throw usage_error(name + " has a letter other than those of " + std::string(of));
    numbers.push_back(index_t(of.find(c)));
  }
  return numbers;
}

std::span<index_t const> boundaries(arguments& given) {
  std::vector<index_t> const starts = given.list("documents");
  if (!starts.empty()) given.tokens(starts.back());
  return given.hold<index_t>(starts);
}
heed::slices slices_of(arguments& given, heed::benchmark::mask mask) {
  return given.own(std::move(mask)).as_slices();
}

/// A line of the catalogue.
struct entry {
  char const* name;
  char const* parameters;  // with what they are unless given
  char const* summary;
  std::function<any_pattern(arguments&)> make;
};

std::vector<entry> const catalogue{
    // By distance
    {"dense", "", "every query meets every key", [](arguments&) { return heed::dense{}; }},
    {"causal", "", "the keys up to the query's own position",
     [](arguments&) { return heed::causal{}; }},
    {"sliding_window", "left=16 right=0", "the keys within reach on either side, -1 for no end",
     [](arguments& a) {
       return heed::sliding_window{a["left"], a["right"]};
     }},
    {"dilated_window", "left=24 right=24 step=4", "every step-th key of a window",
     [](arguments& a) {
       return heed::dilated_window{a["left"], a["right"], a["step"]};
     }},
    {"key_offsets", "differences=-16,-8,-4,-2,0", "differences between a key and a query",
     [](arguments& a) {
       auto sorted = a.list("differences");
       std::ranges::sort(sorted);
       std::vector<interval> all;
       for (index_t d : sorted)
         if (!all.empty() && all.back().last >= d)
           all.back().last = d + 1;
         else
           all.push_back({d, d + 1});
       return heed::key_offsets{a.own(all)};
     }},
    {"streaming", "sinks=4 recent=16", "the first keys and the most recent ones",
     [](arguments& a) {
       return heed::streaming{a["sinks"], a["recent"]};
     }},
    {"streaming_heads", "sinks=4,4,0,0 recent=-1,16,8,32", "the same with numbers for each head",
     [](arguments& a) {
       return heed::streaming_heads{a.table<index_t, 2>(a.list("sinks")),
                                    a.table<index_t, 2>(a.list("recent"))};
     }},
    {"elastic_span", "alpha=0 beta=0.4 rows=512 keys=512",
     "a span that grows with the length, in multiples of 64",
     [](arguments& a) { return heed::elastic_span(a.real("alpha"), a.real("beta"), a.keys); }},
    {"elastic_span_in_blocks", "alpha=0 beta=0.4 rows=512 keys=512", "its form for kernels",
     [](arguments& a) {
       return heed::elastic_span_in_blocks(
           heed::elastic_span(a.real("alpha"), a.real("beta"), a.keys));
     }},
    {"global_tokens", "count=4 reach=8", "the first tokens meet all, the others a window",
     [](arguments& a) {
       return heed::global_tokens{a["count"], a["reach"]};
     }},
    {"local_monotone", "radius=6", "the keys around the query's own number",
     [](arguments& a) {
       a.first = a.first.value_or(0);
       return heed::local_monotone(a["radius"]);
     }},
    {"local_predictive", "centres=4,20,12,40,60,30 radius=6",
     "the keys around a place that each query predicts",
     [](arguments& a) {
       a.first = a.first.value_or(0);
       return heed::local_predictive(a.table<float, 3>(a.spread("centres", a.rows)),
                                     a.real("radius"));
     }},
    {"prefix_lm", "prefix=20", "a prefix for all, the rest causally",
     [](arguments& a) { return heed::prefix_lm(a["prefix"]); }},

    // By key and by row
    {"first_keys", "count=8", "the leading keys, whatever the query",
     [](arguments& a) { return heed::first_keys{a["count"]}; }},
    {"key_lengths", "length=40", "padding: only so many keys exist",
     [](arguments& a) { return heed::key_lengths{a.hold<index_t>({a["length"]})}; }},
    {"key_set", "kept=0,1,2,20,21,40,41,42,43", "some keys for all queries, marked",
     [](arguments& a) { return heed::key_set{a.table<bool, 3>(a.marks("kept", a.keys))}; }},
    {"key_list", "keys_listed=0,1,2,20,21,40,41,42,43", "the same, as a list",
     [](arguments& a) { return heed::key_list{a.table<index_t, 3>(a.list("keys_listed"))}; }},
    {"periodic_keys", "period=8 first=6 count=2", "some places of every period",
     [](arguments& a) {
       return heed::periodic_keys{a["period"], a["first"], a["count"]};
     }},
    {"lifetimes", "lives=6,40,12,6,64,6,6,20",
     "each key from its own query on, for so many queries",
     [](arguments& a) {
       auto const lives = a.list("lives");
       if (lives.empty()) throw usage_error("lives is empty");
       std::vector<index_t> ends;
       for (index_t j = 0; j < a.keys; ++j) ends.push_back(j + lives[size_t(j) % lives.size()]);
       return heed::lifetimes{a.table<index_t, 3>(ends)};
     }},
    {"row_ranges", "first=0,0,8,16,24,40 last=8,24,24,40,56,64", "one range of keys for each row",
     [](arguments& a) {
       return heed::row_ranges{a.table<index_t, 3>(a.spread("first", a.rows)),
                               a.table<index_t, 3>(a.spread("last", a.rows))};
     }},
    {"chosen_rows", "rows_chosen=3,20,21,22,50", "every key for some of the rows",
     [](arguments& a) {
       return heed::chosen_rows{a.table<bool, 3>(a.marks("rows_chosen", a.rows))};
     }},
    {"labels", "labels=0,1,2,1,3 admitted=1000,1100,1010,1111", "which kinds of token meet which",
     [](arguments& a) {
       return heed::labels{a.table<int, 3>(a.spread("labels", a.rows)),
                           a.table<int, 3>(a.spread("labels", a.keys)), admitted(a)};
     }},

    // In blocks and written down
    {"by_blocks", "left=2 right=1 size=8", "a window of whole blocks",
     [](arguments& a) {
       return heed::by_blocks{heed::sliding_window{a["left"], a["right"]}, a["size"]};
     }},
    {"by_segments", "starts=0,12,30,36", "tokens meet those of their own segment: documents",
     [](arguments& a) {
       return heed::by_segments{heed::sliding_window{0, 0}, a.table<index_t, 2>(a.list("starts"))};
     }},
    {"block_table", "size=8 density=0.25 seed=1", "blocks of a table",
     [](arguments& a) {
       index_t const size = std::max<index_t>(1, a["size"]), rows = (a.rows + size - 1) / size,
                     keys = (a.keys + size - 1) / size;
       return heed::block_table{
           {a.hold<bool>(drawn(a, rows * keys)), {1, 1, rows, keys}}, {size}, {size}};
     }},
    {"block_rows", "size=8 density=0.25 seed=1", "the same as lists",
     [](arguments& a) {
       index_t const size = std::max<index_t>(1, a["size"]), rows = (a.rows + size - 1) / size,
                     keys = (a.keys + size - 1) / size;
       auto const kept = drawn(a, rows * keys);
       std::vector<index_t> offsets{0}, columns;
       for (index_t r = 0; r < rows; ++r) {
         for (index_t c = 0; c < keys; ++c)
           if (kept[size_t(r * keys + c)] != 0) columns.push_back(c);
         offsets.push_back(std::ssize(columns));
       }
       return heed::block_rows{
           a.table<index_t, 3>(offsets), a.hold<index_t>(columns), keys, {size}, {size}};
     }},
    {"slices", "list=0,20,0,20,1,20,44,20,64,3,44,64,0,64,2",
     "rectangles: rows, keys, and 0 full, 1 causal, 2 inverse, 3 both",
     [](arguments& a) {
       auto const numbers = a.list("list");
       if (numbers.size() % 5 != 0)
         throw usage_error("list is not five numbers for each rectangle");
       std::vector<heed::slice> all;
       for (size_t n = 0; n + 4 < numbers.size(); n += 5)
         all.push_back({{numbers[n], numbers[n + 1]},
                        {numbers[n + 2], numbers[n + 3]},
                        static_cast<heed::slice_type>(std::clamp<index_t>(numbers[n + 4], 0, 3))});
       return heed::slices{a.own(all)};
     }},
    {"column_ranges", "hidden_from=20,20,44,44,64",
     "each key is hidden from a row on, and from earlier queries",
     [](arguments& a) {
       std::vector<index_t> ranges;
       for (index_t from : a.spread("hidden_from", a.keys))
         ranges.insert(ranges.end(), {from, a.rows});
       return heed::column_ranges{{a.hold<index_t>(ranges), {1, 1, a.keys, 2}}, true};
     }},
    {"bool_mask", "density=0.3 seed=1", "a boolean for each pair",
     [](arguments& a) {
       return heed::bool_mask{{a.hold<bool>(drawn(a, a.rows * a.keys)), {1, 1, a.rows, a.keys}}};
     }},
    {"bit_mask", "density=0.3 seed=1", "a bit for each pair",
     [](arguments& a) {
       auto const pairs = drawn(a, a.rows * a.keys);
       std::vector<index_t> bytes((pairs.size() + 7) / 8, 0);
       for (size_t t = 0; t < pairs.size(); ++t) bytes[t / 8] |= pairs[t] << t % 8;
       return heed::bit_mask{a.hold<std::uint8_t>(bytes)};
     }},
    {"mask_of", "factor=5", "a function: here (query * key) % factor = 0",
     [](arguments& a) {
       return heed::mask_of([f = std::max<index_t>(1, a["factor"])](index_t query, index_t key) {
         return query * key % f == 0;
       });
     }},

    {"classified", "factor=16 block=8", "a function whose empty and full blocks were found before",
     [](arguments& a) {
       auto const near =
           heed::mask_of([f = std::max<index_t>(1, a["factor"])](index_t query, index_t key) {
             return query / f == key / f || key < 4;
           });
       index_t const block = a["block"];
       return heed::classified(near, a.own(heed::classify(near, a.rows, a.keys, {block, block})));
     }},

    // Groups of tokens in language models
    {"block_attention", "starts=0,16,30,52",
     "blocks blind to each other, and a question that meets all",
     [](arguments& a) { return heed::block_attention(a.table<index_t, 2>(a.list("starts"))); }},
    {"parallel_contexts", "starts=0,6,24,40,54", "shared tokens, pieces beside each other, a tail",
     [](arguments& a) { return heed::parallel_contexts(a.table<index_t, 2>(a.list("starts"))); }},
    {"demonstration_blocks", "starts=0,8,20,28,36,48,56 anchors=1 reach=2",
     "anchors, the blocks before, the own",
     [](arguments& a) {
       return heed::demonstration_blocks(a.table<index_t, 2>(a.list("starts")), a["anchors"],
                                         a["reach"]);
     }},
    {"shifted_groups", "size=16 shifted_from=1 sinks=0 wrap=0",
     "causal groups, shifted by half in some heads",
     [](arguments& a) {
       return heed::shifted_groups{.size = a["size"],
                                   .shifted_from = a["shifted_from"],
                                   .sinks = a["sinks"],
                                   .wrap = a["wrap"] != 0};
     }},
    {"chunks_with_memory", "chunk=8 memory=16 rows=32",
     "gated rows of earlier chunks, then the chunk itself",
     [](arguments& a) {
       return heed::chunks_with_memory{a["chunk"], a["memory"]};
     }},

    {"share_question", "documents=0,20,44,64", "causal documents, of which the first is met by all",
     [](arguments& a) { return slices_of(a, heed::benchmark::share_question(boundaries(a))); }},
    {"causal_document", "documents=0,20,44,64", "causal documents",
     [](arguments& a) { return slices_of(a, heed::benchmark::causal_document(boundaries(a))); }},
    {"full_document", "documents=0,20,44,64", "documents",
     [](arguments& a) { return slices_of(a, heed::benchmark::full_document(boundaries(a))); }},
    {"causal_blockwise", "documents=0,20,44,64", "causal documents, of which the last meets all",
     [](arguments& a) { return slices_of(a, heed::benchmark::causal_blockwise(boundaries(a))); }},
    {"prefix_lm_document", "documents=0,20,44,64 prefix=10",
     "causal documents with a prefix in each",
     [](arguments& a) {
       return slices_of(a, heed::benchmark::prefix_lm_document(boundaries(a), a["prefix"]));
     }},
    {"block_causal_document", "documents=0,24,64 block=8", "documents, causal in blocks",
     [](arguments& a) {
       return slices_of(a, heed::benchmark::block_causal_document(boundaries(a), a["block"]));
     }},
    {"global_window", "reach=8", "a window, and twice as many global tokens as it reaches",
     [](arguments& a) { return slices_of(a, heed::benchmark::global_window(a.keys, a["reach"])); }},

    // Far reaching
    {"strided", "step=8", "every step-th key before the query",
     [](arguments& a) { return heed::strided(a["step"]); }},
    {"power_of_two_keys", "", "the keys whose distance is a power of two",
     [](arguments&) { return heed::power_of_two_keys; }},
    {"power_attention", "block=4 window=2 sinks=1", "the same in blocks, with a window and sinks",
     [](arguments& a) { return heed::power_attention(a["block"], a["window"], a["sinks"]); }},
    {"factorised_fixed", "length=16 count=4 variants=1",
     "the own block, and summary places of every block",
     [](arguments& a) {
       return heed::factorised_fixed({a["length"], a["count"], a["variants"]});
     }},
    {"combiner_fixed", "block=8", "what a query meets directly; all else through summaries",
     [](arguments& a) { return heed::combiner_fixed{.block = a["block"]}.direct(); }},
    {"combiner_log_sparse", "", "the same where summaries form a tree",
     [](arguments&) { return heed::combiner_log_sparse{}.direct(); }},
    {"head_strides", "stride=4", "each head every stride-th key",
     [](arguments& a) { return heed::head_strides{a["stride"]}; }},
    {"head_parts", "parts=4", "each head a part of the keys",
     [](arguments& a) { return heed::head_parts{a["parts"]}; }},

    // Marked tokens
    {"all_or_here", "everywhere=10,11,12,40 recent=8",
     "rows with a gate meet all, the others what is recent",
     [](arguments& a) {
       return heed::all_or_here(a.table<float, 3>(a.marks("everywhere", a.rows)), a["recent"]);
     }},
    {"task_kv", "sinks=2 recent=8 middle=14,15,23,31,40 far=1,0,0,0",
     "sinks, recent keys and chosen ones, in heads that are not far",
     [](arguments& a) {
       std::vector<index_t> far = a.list("far"), middle;
       for (index_t h = 0; h < std::ssize(far); ++h)
         std::ranges::copy(a.list("middle"), std::back_inserter(middle));
       index_t const heads = std::ssize(far), count = heads == 0 ? 0 : std::ssize(middle) / heads;
       return heed::task_kv{{a["sinks"], a["recent"]},
                            {a.hold<index_t>(middle), {1, heads, count}},
                            a.table<bool, 2>(far)};
     }},
    {"token_types", "types=gllsglslls window=2", "global, local and sliding keys",
     [](arguments& a) {
       auto const types = letters(a, "types", "gls");
       a.tokens(std::ssize(types));
       return a.own(heed::token_types(a.table<heed::token_type, 3>(types), a["window"])).pattern();
     }},
    {"sentinel_tokens", "markers=xx(xxx)xx(x(xx)xx)xxxx",
     "spans in brackets, of which the closing one remains",
     [](arguments& a) {
       auto const markers = letters(a, "markers", "x()");
       a.tokens(std::ssize(markers));
       return a.own(heed::sentinel_tokens(a.hold<heed::marker>(markers))).pattern();
     }},
    {"meta_tokens", "meta=7,15,23,31,39,47,55,63", "attention among the marked tokens alone",
     [](arguments& a) { return heed::meta_tokens(a.table<bool, 3>(a.marks("meta", a.keys))); }},
    {"text_queries", "visual=0,0,1,1,0", "visual tokens are keys and no queries",
     [](arguments& a) { return heed::text_queries(a.table<bool, 3>(a.spread("visual", a.keys))); }},
    {"blind_visual_tokens", "visual=0,0,1,1,0", "visual tokens do not meet each other",
     [](arguments& a) {
       return heed::blind_visual_tokens(a.table<bool, 3>(a.spread("visual", a.keys)));
     }},
    {"faithful_patches", "prefix=5 kept=12,13,20,21,22,29,30,31,38",
     "the prefix and the kept patches",
     [](arguments& a) {
       return heed::faithful_patches(a.table<bool, 3>(a.marks("kept", a.keys)), a["prefix"]);
     }},

    {"self_modal", "modality=0,1,0,1,1", "keys of the query's own modality",
     [](arguments& a) { return heed::self_modal(a.table<int, 3>(a.spread("modality", a.keys))); }},
    {"cross_modal", "modality=0,1,0,1,1", "keys of the other modalities, and the own key",
     [](arguments& a) { return heed::cross_modal(a.table<int, 3>(a.spread("modality", a.keys))); }},
    {"isolation", "regions=0,1,1,3,2,2,0,4",
     "subjects of a picture that do not see each other, by bits",
     [](arguments& a) {
       return a.own(heed::isolation(a.hold<std::uint64_t>(a.spread("regions", a.rows)))).pattern();
     }},
    {"graph_windows",
     "nodes=8,12,16,20,24,28,32,36,40,44 density=0.2 seed=1 hops=1 bidirectional=0",
     "text, and nodes of a graph that meet along its edges",
     [](arguments& a) {
       auto const nodes = a.list("nodes");
       index_t const count = std::ssize(nodes);
       tensor_view<bool const, 2> const edges(a.hold<bool>(drawn(a, count * count)),
                                              {count, count});
       return a.own(heed::graph_windows(nodes, edges, a["hops"], a["bidirectional"] != 0))
           .pattern();
     }},

    // Pictures and films
    {"neighborhood_1d", "canvas=64 window=9 stride=1 dilation=1 causal=0",
     "the keys around the query, moved inward at borders", neighborhood<1>},
    {"neighborhood_2d", "canvas=8,8 window=3,3 stride=1,1 dilation=1,1 causal=0,0",
     "the same on two axes, row-major", neighborhood<2>},
    {"neighborhood_3d", "canvas=4,4,4 window=2,3,3 stride=1,1,1 dilation=1,1,1 causal=1,0,0",
     "the same on three", neighborhood<3>},
    {"dilated_neighborhood", "canvas=8,8 window=3 dilation=2",
     "a neighborhood of every dilation-th token",
     [](arguments& a) {
       return on_canvas(
           a, heed::dilated_neighborhood(a.point<2>("canvas"), a["window"], a["dilation"]));
     }},
    {"inward_window", "canvas=2,6,6 reach=1,2", "a film: all frames, and a window on each",
     [](arguments& a) {
       return on_canvas(a, heed::inward_window(a.point<3>("canvas"), a.point<2>("reach")));
     }},
    {"shifted_windows", "canvas=8,8 window=4,4 shifted=1",
     "windows side by side, shifted by half in every other layer",
     [](arguments& a) {
       a.tokens(heed::grid_size(a.point<2>("canvas")));
       return between_tokens(a, heed::shifted_windows<2>(a.point<2>("canvas"), a.point<2>("window"),
                                                         a["shifted"] != 0));
     }},
    {"window_partition", "canvas=8,8 window=4,4 shift=0,0", "windows side by side",
     [](arguments& a) {
       a.tokens(heed::grid_size(a.point<2>("canvas")));
       return between_tokens(a,
                             heed::window_partition<2>{a.point<2>("canvas"), a.point<2>("window"),
                                                       a.point<2>("shift")});
     }},
    {"grid_partition", "canvas=8,8 cells=4,4", "tokens spread evenly over the picture",
     [](arguments& a) {
       a.tokens(heed::grid_size(a.point<2>("canvas")));
       return between_tokens(a, heed::grid_partition<2>{a.point<2>("canvas"), a.point<2>("cells")});
     }},
    {"multi_axis_block", "canvas=8,8 size=4", "windows, of the two in a block of MaxViT",
     [](arguments& a) {
       a.tokens(heed::grid_size(a.point<2>("canvas")));
       return between_tokens(a, heed::multi_axis_block(a.point<2>("canvas"), a["size"]));
     }},
    {"multi_axis_grid", "canvas=8,8 size=4", "and the other one, a grid",
     [](arguments& a) {
       a.tokens(heed::grid_size(a.point<2>("canvas")));
       return between_tokens(a, heed::multi_axis_grid(a.point<2>("canvas"), a["size"]));
     }},
    {"axial", "canvas=8,8 axis=0", "the tokens of one row or column",
     [](arguments& a) {
       a.tokens(heed::grid_size(a.point<2>("canvas")));
       return between_tokens(a, heed::axial<2>{a.point<2>("canvas"), a["axis"]});
     }},
    {"halo", "canvas=8,8 block=4,4 halo=1,1", "the own block and a rim around it",
     [](arguments& a) {
       a.tokens(heed::grid_size(a.point<2>("canvas")));
       heed::halo_order<2> const order({.canvas = a.point<2>("canvas"),
                                        .block = a.point<2>("block"),
                                        .halo = a.point<2>("halo")},
                                       24);
       return between_tokens(a, order, order.pattern());
     }},
};

// --- Looking at a pattern ----------------------------------------------------------------------

/// What a pattern says of all pairs and tiles.
struct picture {
  std::string title;
  index_t rows, keys, tile;
  std::vector<bool> kept = {};         // rows x keys
  std::vector<coverage> classes = {};  // of the tiles, row by row
  index_t pairs = 0;

  bool keeps(index_t row, index_t key) const { return kept[size_t(row * keys + key)]; }
  coverage tile_of(index_t row, index_t key) const {
    return classes[size_t(row / tile * ((keys + tile - 1) / tile) + key / tile)];
  }
  index_t tiles(coverage which) const { return index_t(std::ranges::count(classes, which)); }
  double share() const { return 100 * double(pairs) / (double(rows) * double(keys)); }
};

picture look_at(any_pattern const& unbound, arguments const& given, index_t tile) {
  index_t const rows = given.rows, keys = given.keys;
  unbound.check({.batches = 1, .sequences = 1, .heads = given.heads, .rows = rows, .keys = keys});
  heed::place const where{.head = given.head, .rows = rows, .keys = keys};
  auto const pattern = unbound.bind(where);
  index_t const first = given.first.value_or(keys - rows);

  picture seen{.title = {}, .rows = rows, .keys = keys, .tile = tile};
  seen.kept.resize(size_t(rows * keys));
  for (index_t row = 0; row < rows; ++row)
    for (index_t key = 0; key < keys; ++key)
      if (pattern.keep(first + row, key)) {
        seen.kept[size_t(row * keys + key)] = true;
        ++seen.pairs;
      }

  // The word of a pattern about tiles is trusted by every kernel. Here it is not.
  for (index_t row = 0; row < rows; row += tile)
    for (index_t key = 0; key < keys; key += tile) {
      interval const down{row, std::min(row + tile, rows)}, along{key, std::min(key + tile, keys)};
      coverage const said = pattern.cover({first + down.first, first + down.last}, along);
      for (index_t i = down.first; i < down.last; ++i)
        for (index_t j = along.first; j < along.last; ++j)
          if (said != coverage::some && seen.keeps(i, j) != (said == coverage::all))
            throw std::logic_error("cover() and keep() disagree about query row " +
                                   std::to_string(i) + " and key " + std::to_string(j));
      seen.classes.push_back(said);
    }

  // Nor are the keys that one or several queries may meet, and the number of pairs, which is counted by masks.
  for (index_t const panel : {index_t{1}, tile})
    for (index_t row = 0; row < rows; row += panel) {
      interval const down{row, std::min(row + panel, rows)};
      index_t end = 0;
      for (;;) {
        interval const run = next_run(pattern, {first + down.first, first + down.last}, end, keys);
        index_t const start = run.empty() ? keys : run.first;
        for (index_t i = down.first; i < down.last; ++i)
          for (index_t j = end; j < start; ++j)
            if (seen.keeps(i, j))
              throw std::logic_error("next_keys() and keep() disagree about query row " +
                                     std::to_string(i) + " and key " + std::to_string(j));
        if (run.empty()) break;
        end = run.last;
      }
    }
  if (first == keys - rows && heed::kept_pairs(unbound, where) != seen.pairs)
    throw std::logic_error("kept_pairs() and keep() disagree");
  return seen;
}

std::string summary(picture const& seen) {
  std::ostringstream text;
  text.precision(3);
  text << seen.title << "\n"
       << seen.pairs << " of " << seen.rows << " x " << seen.keys << " pairs kept, " << seen.share()
       << " %; tiles of " << seen.tile << ": " << seen.tiles(coverage::none) << " skipped, "
       << seen.tiles(coverage::some) << " partial, " << seen.tiles(coverage::all) << " full\n";
  return text.str();
}

// --- Text --------------------------------------------------------------------------------------

/// One character for two queries, one above the other.
char const* symbol(picture const& seen, index_t row, index_t key) {
  bool const pair = row + 1 < seen.rows;
  bool const above = seen.keeps(row, key), below = pair && seen.keeps(row + 1, key);
  coverage const tile = seen.tile_of(row, key);
  bool const same_tile = !pair || seen.tile_of(row + 1, key) == tile;
  if (same_tile && tile == coverage::all && below == pair) return "▓";
  if (above && below) return "█";
  if (above) return "▀";
  if (below) return "▄";
  return same_tile && tile == coverage::none ? " " : "·";
}

std::string as_text(picture const& seen) {
  std::string text = summary(seen);
  for (index_t row = 0; row < seen.rows; row += 2) {
    for (index_t key = 0; key < seen.keys; ++key) text += symbol(seen, row, key);
    text += '\n';
  }
  return text + "▓ in a full tile   █ ▀ ▄ in a partial tile   · hidden in one   blank: skipped\n";
}

// --- PGM ---------------------------------------------------------------------------------------

std::string as_pgm(picture const& seen) {
  std::string bytes =
      "P5\n" + std::to_string(seen.keys) + " " + std::to_string(seen.rows) + "\n255\n";
  for (index_t row = 0; row < seen.rows; ++row)
    for (index_t key = 0; key < seen.keys; ++key) {
      coverage const tile = seen.tile_of(row, key);
      int const shade = seen.keeps(row, key) ? (tile == coverage::all ? 96 : 0)
                                             : (tile == coverage::none ? 255 : 216);
      bytes += static_cast<char>(static_cast<unsigned char>(shade));
    }
  return bytes;
}

// --- SVG ---------------------------------------------------------------------------------------

/// The cells of which `chosen` is true as one path of few rectangles: equal runs of cells in rows that follow
/// one another are joined.
template <class Chosen>
std::string path(picture const& seen, char const* style, Chosen chosen) {
  struct rectangle {
    index_t x, y, width, height;
  };
  std::vector<rectangle> all, open;
  for (index_t row = 0; row < seen.rows; ++row) {
    std::vector<rectangle> next;
    for (index_t key = 0; key < seen.keys; ++key) {
      index_t const start = key;
      while (key < seen.keys && chosen(row, key)) ++key;
      if (key == start) continue;
      rectangle run{start, row, key - start, 1};
      auto const above = std::ranges::find_if(
          open, [&](rectangle const& r) { return r.x == run.x && r.width == run.width; });
      if (above != open.end()) {
        run = {run.x, above->y, run.width, above->height + 1};
        open.erase(above);
      }
      next.push_back(run);
    }
    all.insert(all.end(), open.begin(), open.end());
    open = std::move(next);
  }
  all.insert(all.end(), open.begin(), open.end());
  if (all.empty()) return {};

  std::ostringstream text;
  text << "<path class=\"" << style << "\" d=\"";
  index_t x = 0, y = 0;
  for (rectangle const& r : all) {
    text << 'm' << r.x - x << ' ' << r.y - y << 'h' << r.width << 'v' << r.height << 'h' << -r.width
         << 'z';
    x = r.x, y = r.y;
  }
  text << "\"/>\n";
  return text.str();
}

std::string cells(picture const& seen) {
  auto in = [&](coverage which) {
    return [&seen, which](index_t row, index_t key) { return seen.tile_of(row, key) == which; };
  };
  std::ostringstream text;
  text << "<rect class=\"skip\" width=\"" << seen.keys << "\" height=\"" << seen.rows << "\"/>\n"
       << path(seen, "partial", in(coverage::some)) << path(seen, "full", in(coverage::all))
       << path(seen, "kept", [&](index_t row, index_t key) {
            return seen.keeps(row, key) && seen.tile_of(row, key) != coverage::all;
          });
  return text.str();
}

std::string escaped(std::string_view text) {
  std::string safe;
  for (char c : text) safe += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
  return safe;
}

constexpr char const* style = R"(<style>
text { font: 11px ui-monospace, monospace; fill: #24292f }
.share { fill: #6e7781 }
path, rect { shape-rendering: crispEdges }
.skip { fill: #f0f2f4 } .partial { fill: #fbdcc4 } .full { fill: #f08c4b } .kept { fill: #c2410c }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .share { fill: #8b949e }
.skip { fill: #21262d } .partial { fill: #4a2a16 } .full { fill: #d9622b } .kept { fill: #ff9d5c }
}
</style>
)";

std::string svg_start(double width, double height) {
  std::ostringstream text;
  text << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << width << "\" height=\"" << height
       << "\" viewBox=\"0 0 " << width << ' ' << height << "\">\n"
       << style;
  return text.str();
}

std::string percent(picture const& seen) {
  std::ostringstream text;
  text.precision(seen.share() < 99.5 ? 2 : 3);
  text << seen.share() << " %";
  return text.str();
}

std::string as_svg(picture const& seen) {
  double const scale = std::max(1., 512. / double(std::max(seen.rows, seen.keys)));
  double const margin = 8, caption = 40;
  std::ostringstream text;
  text << svg_start(std::max(420., double(seen.keys) * scale) + 2 * margin,
                    double(seen.rows) * scale + caption + margin)
       << "<text x=\"" << margin << "\" y=\"16\">" << escaped(seen.title)
       << "</text>\n<text class=\"share\" x=\"" << margin << "\" y=\"31\">" << percent(seen)
       << " of " << seen.rows << " × " << seen.keys << " pairs; tiles of " << seen.tile << ": "
       << seen.tiles(coverage::none) << " skipped, " << seen.tiles(coverage::some) << " partial, "
       << seen.tiles(coverage::all) << " full</text>\n<g transform=\"translate(" << margin << ' '
       << caption << ") scale(" << scale << ")\">\n"
       << cells(seen) << "</g>\n</svg>\n";
  return text.str();
}

/// Several pictures side by side, with captions below.
std::string as_strip(std::vector<picture> const& pictures) {
  constexpr size_t columns = 6;
  constexpr double side = 128, step = side + 16, line = side + 44;
  size_t const lines = (pictures.size() + columns - 1) / columns;
  std::ostringstream text;
  text << svg_start(double(columns) * step, double(lines) * line);
  for (size_t n = 0; n < pictures.size(); ++n) {
    picture const& seen = pictures[n];
    double const scale = side / double(std::max(seen.rows, seen.keys));
    text << "<g transform=\"translate(" << double(n % columns) * step + 8 << ' '
         << double(n / columns) * line + 8 << ")\">\n<g transform=\"scale(" << scale << ")\">\n"
         << cells(seen) << "</g>\n<text y=\"" << side + 14 << "\">" << escaped(seen.title)
         << "</text><text class=\"share\" y=\"" << side + 28 << "\">" << percent(seen)
         << "</text>\n</g>\n";
  }
  text << "</svg>\n";
  return text.str();
}

// --- The program -------------------------------------------------------------------------------

constexpr char const* usage = R"(Draws which pairs of queries and keys a pattern keeps.

  draw_pattern PATTERN [PARAMETER=VALUE...] [options]

Parameters are those of the pattern (see --list; a list is numbers between commas), and
  rows, keys         how many queries and keys to draw (default 64)
  first              the position of the first query (default keys - rows: the last query at the last key)
  head               the query head, 0 to 3, for patterns that differ by head (default 0)

  --text             into the terminal (the default)
  --svg FILE         a drawing
  --pgm FILE         a picture of one pixel for each pair
  --tile N           the side of the tiles that are shaded (default 8)
  --list             the patterns, what they keep and their parameters
  --strip FILE       a dozen patterns side by side, as SVG
  --help             this
)";

entry const& find(std::string const& name) {
  for (entry const& each : catalogue)
    if (each.name == name) return each;
  throw usage_error("there is no pattern \"" + name + "\"; --list names them all");
}

/// "sliding_window", {"left=16", "right=0"} as a picture.
picture draw(std::string const& name, std::vector<std::string> const& settings, index_t tile) {
  entry const& chosen = find(name);
  arguments given(chosen.parameters);
  std::string title = name;
  for (std::string const& setting : settings) {
    size_t const equals = setting.find('=');
    if (equals == std::string::npos)
      throw usage_error("\"" + setting + "\" is not of the form parameter=value");
    given.set(setting.substr(0, equals), setting.substr(equals + 1));
    title += " " + setting;
  }
  any_pattern const pattern = chosen.make(given);
  picture seen = look_at(pattern, given, tile);
  seen.title = title;
  return seen;
}

std::string strip() {
  struct pose {
    char const* caption;
    char const* name;
    std::vector<std::string> settings;
  };
  std::vector<pose> const poses{
      {"sliding_window", "sliding_window", {"left=15"}},
      {"streaming", "streaming", {"sinks=4", "recent=12"}},
      {"global_tokens", "global_tokens", {"count=4", "reach=6"}},
      {"prefix_lm", "prefix_lm", {"prefix=20"}},
      {"documents", "causal_document", {"documents=0,12,30,36,64"}},
      {"block_attention", "block_attention", {"starts=0,16,32,48"}},
      {"power_attention", "power_attention", {"block=4", "window=1", "sinks=1"}},
      {"factorised_fixed", "factorised_fixed", {"length=16", "count=2"}},
      {"dilated_window", "dilated_window", {"left=24", "right=24", "step=4"}},
      {"neighborhood<2>", "neighborhood_2d", {}},
      {"shifted_windows", "shifted_windows", {}},
      {"block_table", "block_table", {"density=0.2"}},
  };
  std::vector<picture> pictures;
  for (pose const& each : poses) {
    pictures.push_back(draw(each.name, each.settings, 8));
    pictures.back().title = each.caption;
  }
  return as_strip(pictures);
}

void write(std::string const& path, std::string const& content) {
  errno = 0;
  std::ofstream file(path, std::ios::binary);
  file << content;
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path + ": " + std::strerror(errno));
}

void run(std::vector<std::string> const& words) {
  std::string name, svg, pgm;
  std::vector<std::string> settings;
  index_t tile = 8;
  bool text = false;
  for (size_t i = 0; i < words.size(); ++i) {
    std::string const& word = words[i];
    auto value = [&]() -> std::string const& {
      if (++i == words.size()) throw usage_error(word + " needs a value");
      return words[i];
    };
    if (word == "--help" || word == "-h") {
      std::fputs(usage, stdout);
      return;
    } else if (word == "--list") {
      for (entry const& each : catalogue)
        std::printf("%-28s %s\n%-28s   %s\n", each.name, each.summary, "", each.parameters);
      return;
    } else if (word == "--strip") {
      return write(value(), strip());
    } else if (word == "--text") {
      text = true;
    } else if (word == "--svg") {
      svg = value();
    } else if (word == "--pgm") {
      pgm = value();
    } else if (word == "--tile") {
      tile = arguments("--tile=" + value())["--tile"];
      if (tile < 1) throw usage_error("--tile cannot be " + std::to_string(tile));
    } else if (word.starts_with("-")) {
      throw usage_error("there is no option " + word);
    } else if (name.empty()) {
      name = word;
    } else {
      settings.push_back(word);
    }
  }
  if (name.empty()) throw usage_error("which pattern? --list names them all");

  picture const seen = draw(name, settings, tile);
  if (!svg.empty()) write(svg, as_svg(seen));
  if (!pgm.empty()) write(pgm, as_pgm(seen));
  bool const only_files = !text && !(svg.empty() && pgm.empty());
  std::fputs((only_files ? summary(seen) : as_text(seen)).c_str(), stdout);
}

}  // namespace

int main(int argument_count, char** words) {
  try {
    run({words + 1, words + argument_count});
    return EXIT_SUCCESS;
  } catch (usage_error const& problem) {
    std::fprintf(stderr, "draw_pattern: %s. Try --help.\n", problem.what());
    return 2;
  } catch (heed::error const& problem) {
    std::fprintf(stderr, "draw_pattern: %s\n", problem.what());
    return 2;
  } catch (std::exception const& problem) {
    std::fprintf(stderr, "draw_pattern: %s\n", problem.what());
    return EXIT_FAILURE;
  }
}
