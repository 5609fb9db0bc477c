// heed_conformance run PATTERN: attention with one of the patterns that a table below makes.
#include "attention_call.hpp"
#include "pattern_arguments.hpp"

#include <heed/mechanism/all_or_here.hpp>
#include <heed/mechanism/benchmark_masks.hpp>
#include <heed/mechanism/block_attention.hpp>
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
#include <heed/pattern/by_place.hpp>
#include <heed/pattern/halo.hpp>
#include <heed/pattern/packed_canvases.hpp>
#include <heed/sliding_window.hpp>
#include <heed/sparse.hpp>

namespace conformance {

template void attention_call<double>::attend(heed::any_pattern const&);
template void attention_call<double>::differentiate(heed::any_pattern const&);
template void attention_call<double>::decode(std::function<decoding_step<double>(index_t)> const&);

namespace {

using heed::any_pattern;
using heed::tensor_view;

/// How a pattern is decoded, if it is.
enum class decoding {
  none,
  growing,  ///< a cache holds the keys up to the query's position
  whole     ///< a cache holds all keys, and the query stands at its position
};

struct pattern_entry {
  std::string_view name;
  decoding decodes;
  std::vector<parameter> parameters;
  any_pattern (*make)(pattern_arguments&);
};

// --- Calls -----------------------------------------------------------------------------------------------------------

template <class T>
class pattern_call {
 public:
  pattern_call(arguments& given, pattern_entry const& entry)
      : call_(given), entry_(entry), bias_({1, 1, 1, 1}) {
    if (given.has("bias")) bias_ = given.input<T, 4>("bias");
    if (given.has("table")) table_ = given.input<T, 2>("table");
  }

  void forward() {
    pattern_arguments made = arguments_of_call();
    any_pattern const pattern = entry_.make(made);
    with_ingredients(made, [&](auto const&... more) { call_.attend(pattern, more...); });
  }

  void backward() {
    pattern_arguments made = arguments_of_call();
    any_pattern const pattern = entry_.make(made);
    call_.read_gradients();
    if (call_.given.has("dbias")) dbias_ = tensor<T, 4>(bias_.shape());
    if (call_.given.has("dtable")) dtable_ = tensor<T, 2>(table_.shape());
    with_ingredients(made, [&](auto const&... more) {
      call_.attend(pattern, more...);
      call_.differentiate(pattern, more...);
    });
    call_.write_gradients();
    if (call_.given.has("dbias")) call_.given.output("dbias", dbias_);
    if (call_.given.has("dtable")) call_.given.output("dtable", dtable_);
  }

  void decode() {
    forward();  // checks the whole call before parts of it are taken
    index_t const rows = call_.rows(), keys = call_.keys();
    bool const top_left = call_.given.has("align") && call_.given.choice("align") == "top_left";
    std::optional<pattern_arguments> made;  // what the pattern of a step points to
    call_.decode([&](index_t row) {
      made.emplace(arguments_of_call());
      index_t const position = row + (top_left ? 0 : keys - rows);
      made->grows = entry_.decodes == decoding::growing;
      made->row = row;
      made->shape.rows = 1;
      if (made->grows)
        made->shape.keys = std::max<index_t>(position + 1, 0);
      else
        made->first_position = position - row;
      decoding_step<T> step{entry_.make(*made), position, made->shape.keys};
      if (call_.given.has("bias")) {
        step.bias = bias_.const_view();
        if (step.bias.extent(2) > 1) step.bias = step.bias.slice(2, row, 1);
        if (step.bias.extent(3) > 1) step.bias = step.bias.slice(3, 0, step.keys);
      }
      return step;
    });
  }

  void write() { call_.write_results(); }

 private:
  pattern_arguments arguments_of_call() {
    return pattern_arguments(
        call_.given, {call_.batches(), call_.batches(), call_.heads(), call_.rows(), call_.keys()},
        heed::attend::panel_lanes<T>);
  }

  template <class F>
  void with_ingredients(pattern_arguments const& made, F const& f) {
    auto const with = [&](auto const&... modifiers) {
      if (made.order)
        f(made.order, modifiers...);
      else if (made.top_left)
        f(heed::top_left{}, modifiers...);
      else
        f(modifiers...);
    };
    if (made.relative)
      f(made.order, heed::relative_bias(*made.relative, table_.const_view(), dtable_.view()));
    else if (call_.given.has("bias"))
      with(heed::bias(bias_.const_view(), dbias_.view()));
    else
      with();
  }

  attention_call<T> call_;
  pattern_entry const& entry_;
  tensor<T, 4> bias_, dbias_;
  tensor<T, 2> table_, dtable_;
};

template <class T>
void run_as(arguments& given, pattern_entry const& entry, verb what) {
  pattern_call<T> call(given, entry);
  if (what == verb::forward)
    call.forward();
  else if (what == verb::backward)
    call.backward();
  else
    call.decode();
  call.write();
}

void run(arguments& given, pattern_entry const& entry) {
  std::string const file_type = given.array("q").type;
  require(file_type == "f4" || file_type == "f8",
          [&] { return "q has elements of type " + file_type + "; expected float32 or float64"; });
  verb const what = verb_of(given, {"dbias", "dtable"});
  for (std::string_view of : {"bias", "table"}) {
    std::string const gradient = "d" + std::string(of);
    require(!given.has(gradient) || given.has(of),
            [&] { return gradient + " is given; expected " + std::string(of) + " too"; });
  }
  require(!given.has("bias") || !given.has("table"),
          [] { return "bias and table are given; expected one of them"; });
  bool const in_double = given.has("type") ? given.choice("type") == "f64" : file_type == "f8";
  if (in_double)
    run_as<double>(given, entry, what);
  else
    run_as<float>(given, entry, what);
}

// --- Patterns --------------------------------------------------------------------------------------------------------

// What many of them have.
parameter const causal_flag{"causal", kind::flag, "", "false",
                            "hide keys after the query's position"};

/// The pattern, and causal if asked for.
template <class P>
any_pattern perhaps_causal(pattern_arguments const& a, P const& pattern) {
  if (a.flag("causal")) return pattern & heed::causal{};
  return pattern;
}

// Scores of canvases may add a number for each relative position.
parameter const relative_table{
    "table", kind::input, "[H|1, entries]", "none",
    "added to scores: a number for each relative position, row-major over the axes, "
    "query - key or, of neighborhoods, key - query"};
parameter const drelative_table{"dtable", kind::output, "[H|1, entries]", "none",
                                "gradient of the loss by table"};

/// Reads the entries of an arrangement for `table`, if it is given.
template <class A, std::size_t d>
void read_table(pattern_arguments& a, A const& order, heed::relative_positions<d> const& entries) {
  if (a.given.has("table")) a.relative = &a.keep(heed::relative_index(order, entries));
}

/// Windows and grids: everything in a group meets.
template <class A, std::size_t d>
any_pattern groups_of(pattern_arguments& a, A const& order, heed::grid_point<d> const& window) {
  a.arrange(order);
  read_table(a, order, heed::window_table<d>(window));
  return heed::dense{};
}

template <std::size_t d>
any_pattern around(pattern_arguments& a, heed::neighborhood<d> const& parameters) {
  heed::neighborhood_order<d> const order(parameters, a.lanes);
  a.arrange(order);
  heed::relative_positions<d> entries{.key_first = true};
  for (std::size_t axis = 0; axis < d; ++axis) entries.reach[axis] = parameters.window[axis] - 1;
  read_table(a, order, entries);
  return order.pattern();
}
template <std::size_t d>
any_pattern around(pattern_arguments& a, heed::halo_blocks<d> const& parameters) {
  heed::halo_order<d> const order(parameters, a.lanes);
  a.arrange(order);
  return order.pattern();
}

parameter const canvas{"canvas", kind::integers, "", required,
                       "the extents of one to three axes; N and M are their product"};

/// How an axis is cut into blocks: by a size, or by bounds.
heed::block_cut cut_by(pattern_arguments& a, std::string_view size, std::string_view bounds) {
  if (a.given.has(bounds)) return {.bounds = a.numbers<index_t, 3>(bounds)};
  return {.size = a.integer(size)};
}
parameter const row_size{"row_size", kind::integer, "", "0", "rows of a block"};
parameter const key_size{"key_size", kind::integer, "", "0", "keys of a block"};
parameter const row_bounds{
    "row_bounds", kind::input, "[B|1, H|1, blocks + 1]", "none",
    "instead of row_size: where blocks begin and end; leading axes may be left out"};
parameter const key_bounds{
    "key_bounds", kind::input, "[B|1, H|1, blocks + 1]", "none",
    "instead of key_size: where blocks begin and end; leading axes may be left out"};

parameter const starts{"starts", kind::input, "[B|1, S]", required,
                       "where segments start: 0 first, not decreasing"};

heed::benchmark::mask benchmark_mask(pattern_arguments& a) {
  namespace masks = heed::benchmark;
  std::string_view const which = a.given.choice("mask");
  index_t const n = a.shape.keys;
  std::array<index_t, 2> const one_document{0, n};
  auto const documents = a.given.has("boundaries") ? a.list<index_t>("boundaries")
                                                   : std::span<index_t const>(one_document);
  if (which == "full") return masks::full(n);
  if (which == "causal") return masks::causal(n);
  if (which == "full_document") return masks::full_document(documents);
  if (which == "causal_document") return masks::causal_document(documents);
  if (which == "share_question") return masks::share_question(documents);
  if (which == "causal_blockwise") return masks::causal_blockwise(documents);
  if (which == "prefix_lm_causal") return masks::prefix_lm_causal(n, a.integer("prefix"));
  if (which == "prefix_lm_document")
    return masks::prefix_lm_document(documents, a.integer("prefix"));
  if (which == "window") return masks::window(n, a.integer("reach"));
  if (which == "causal_window") return masks::causal_window(n, a.integer("reach"));
  if (which == "global_window") return masks::global_window(n, a.integer("reach"));
  return masks::block_causal_document(documents, a.integer("block"));
}

std::vector<pattern_entry> const& entries() {
  static std::vector<pattern_entry> const all{
      // Positions.
      {"sliding_window",
       decoding::whole,
       {{"left", kind::integer, "", "-1", "keys before the query's position; -1: all"},
        {"right", kind::integer, "", "-1", "keys after the query's position; -1: all"},
        {"align", kind::choice, "bottom_right|top_left", "bottom_right",
         "whether the last query stands at the last key or the first at the first"}},
       [](pattern_arguments& a) -> any_pattern {
         a.top_left = a.given.choice("align") == "top_left";
         for (std::string_view side : {"left", "right"})
           require(a.integer(side) >= -1, [&] {
             return std::string(side) + " is " + std::to_string(a.integer(side)) +
                    "; expected -1 (unbounded) or more";
           });
         return heed::sliding_window{a.integer("left"), a.integer("right")};
       }},
      {"first_keys",
       decoding::whole,
       {{"count", kind::integer, "", required, "leading keys that are met"}},
       [](pattern_arguments& a) -> any_pattern { return heed::first_keys{a.integer("count")}; }},
      {"key_lengths",
       decoding::whole,
       {{"lengths", kind::input, "[B]", required, "the keys that each batch entry has"},
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(a, heed::key_lengths{a.list<index_t>("lengths")});
       }},
      {"prefix_lm",
       decoding::whole,
       {{"prefix", kind::integer, "", "0", "keys that all queries meet"},
        {"prefixes", kind::input, "[B]", "none", "instead of prefix: one for each batch entry"}},
       [](pattern_arguments& a) -> any_pattern {
         if (a.given.has("prefixes")) return heed::prefix_lm(a.list<index_t>("prefixes"));
         return heed::prefix_lm(a.integer("prefix"));
       }},
      {"streaming",
       decoding::growing,
       {{"sinks", kind::integer, "", "0", "leading keys that are met"},
        {"recent", kind::integer, "", "-1", "latest keys, the query's own included; -1: all"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::streaming{a.integer("sinks"), a.integer("recent")};
       }},
      {"streaming_heads",
       decoding::growing,
       {{"sinks", kind::input, "[B|1, H|1]", required, "leading keys that are met"},
        {"recent", kind::input, "[B|1, H|1]", required,
         "latest keys, the query's own included; -1: all"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::streaming_heads{a.numbers<index_t, 2>("sinks"),
                                      a.numbers<index_t, 2>("recent")};
       }},
      {"global_tokens",
       decoding::whole,
       {{"count", kind::integer, "", required, "leading tokens that meet all and are met by all"},
        {"reach", kind::integer, "", required, "keys on either side that others meet"},
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(a, heed::global_tokens{a.integer("count"), a.integer("reach")});
       }},
      {"dilated_window",
       decoding::whole,
       {{"left", kind::integer, "", "-1", "reach before the query's position, in tokens; -1: all"},
        {"right", kind::integer, "", "-1", "reach after it; -1: all"},
        {"step", kind::integer, "", "1", "how far keys are apart"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::dilated_window{a.integer("left"), a.integer("right"), a.integer("step")};
       }},
      {"residues",
       decoding::none,
       {{"left", kind::integer, "", "-1", "reach before the query's position, in tokens; -1: all"},
        {"right", kind::integer, "", "-1", "reach after it; -1: all"},
        {"step", kind::integer, "", "1",
         "how far keys are apart: dilated_window, tokens regrouped"}},
       [](pattern_arguments& a) -> any_pattern {
         heed::residues const apart{a.integer("step"), a.shape.rows, a.shape.keys};
         a.arrange(apart);
         auto const steps = [&](index_t reach) { return reach < 0 ? reach : reach / apart.step; };
         return apart.pattern(
             heed::sliding_window{steps(a.integer("left")), steps(a.integer("right"))});
       }},
      {"key_offsets",
       decoding::whole,
       {{"offsets", kind::input, "[n, 2]", required,
         "sorted intervals [first, last) of key - query position"},
        causal_flag},
       [](pattern_arguments& a) {
         auto const pairs = a.numbers<index_t, 2>("offsets");
         require(pairs.extent(1) == 2, [&] {
           return "offsets has shape " + heed::shape_text(pairs.extents()) + "; expected [n, 2]";
         });
         std::vector<heed::interval> list;
         for (index_t n = 0; n < pairs.extent(0); ++n) list.push_back({pairs(n, 0), pairs(n, 1)});
         return perhaps_causal(a, heed::key_offsets{a.keep(list)});
       }},

      // Keys, rows and kinds.
      {"key_set",
       decoding::whole,
       {{"kept", kind::input, "[B|1, H|1, M]", required,
         "of bool: the keys that are met; leading axes may be left out"},
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(a, heed::key_set{a.by_key<bool>("kept")});
       }},
      {"key_list",
       decoding::whole,
       {{"keys", kind::input, "[B|1, H|1, n]", required,
         "the keys that are met, sorted, -1 behind the last; leading axes may be left out"},
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(a, heed::key_list{a.numbers<index_t, 3>("keys")});
       }},
      {"chosen_rows",
       decoding::growing,
       {{"chosen", kind::input, "[B|1, H|1, N]", required,
         "of bool: the rows that meet all keys up to their own, the others none; leading axes may "
         "be left "
         "out"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::causal{} & heed::chosen_rows{a.by_row<bool>("chosen")};
       }},
      {"periodic_keys",
       decoding::whole,
       {{"period", kind::integer, "", required, "keys of a period"},
        {"first", kind::integer, "", "0", "the first place of each that is met"},
        {"count", kind::integer, "", "1", "how many places are met"},
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(
             a, heed::periodic_keys{a.integer("period"), a.integer("first"), a.integer("count")});
       }},
      {"row_ranges",
       decoding::whole,
       {{"first", kind::input, "[B|1, H|1, N]", required,
         "the first key of each row; leading axes may be left out"},
        {"last", kind::input, "[B|1, H|1, N]", required, "behind the last key of each row"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::row_ranges{a.by_row<index_t>("first"), a.by_row<index_t>("last"),
                                 a.first_position};
       }},
      {"labels",
       decoding::whole,
       {{"queries", kind::input, "[B|1, H|1, N]", required,
         "the label of each row; leading axes may be left out"},
        {"keys", kind::input, "[B|1, H|1, M]", required, "the label of each key"},
        {"admitted", kind::input, "[query labels, key labels]", required,
         "of bool: which labels meet"},
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(a, heed::labels{a.by_row<int>("queries"), a.by_key<int>("keys"),
                                               a.numbers<bool, 2>("admitted"), a.first_position});
       }},
      {"lifetimes",
       decoding::growing,
       {{"ends", kind::input, "[B|1, H|1, M]", required,
         "key j is met by the positions j to ends - 1; leading axes may be left out"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::lifetimes{a.by_key<index_t>("ends")};
       }},

      // Tables.
      {"slices",
       decoding::whole,
       {{"list", kind::input, "[n, 5]", required,
         "rectangles: first and last row, first and last key (last: behind it), type; 0 full, 1 "
         "causal, 2 inverse, 3 both"},
        {"offsets", kind::input, "[B + 1]", "none", "where the slices of each batch entry begin"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const rows = a.numbers<index_t, 2>("list");
         require(rows.extent(1) == 5, [&] {
           return "list has shape " + heed::shape_text(rows.extents()) + "; expected [n, 5]";
         });
         std::vector<heed::slice> list;
         for (index_t n = 0; n < rows.extent(0); ++n) {
           require(rows(n, 4) >= 0 && rows(n, 4) <= 3, [&] {
             return "list has a slice of type " + std::to_string(rows(n, 4)) + "; expected 0 to 3";
           });
           list.push_back({{rows(n, 0), rows(n, 1)},
                           {rows(n, 2), rows(n, 3)},
                           static_cast<heed::slice_type>(rows(n, 4))});
         }
         return heed::slices{
             a.keep(list),
             a.given.has("offsets") ? a.list<index_t>("offsets") : std::span<index_t const>(),
             a.first_position};
       }},
      {"column_ranges",
       decoding::whole,
       {{"columns", kind::input, "[B|1, H|1, M, 4|2]", required,
         "of each key LTS, LTE, UTS, UTE; or two of them; leading axes may be left out"},
        causal_flag},
       [](pattern_arguments& a) -> any_pattern {
         return heed::column_ranges{a.numbers<index_t, 4>("columns"), a.flag("causal"),
                                    a.first_position};
       }},
      {"block_table",
       decoding::whole,
       {{"kept", kind::input, "[B|1, H|1, block rows, block columns]", required,
         "of bool: the blocks that are met; leading axes may be left out"},
        row_size,
        key_size,
        row_bounds,
        key_bounds,
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(
             a, heed::block_table{a.numbers<bool, 4>("kept"), cut_by(a, "row_size", "row_bounds"),
                                  cut_by(a, "key_size", "key_bounds"), a.first_position});
       }},
      {"block_rows",
       decoding::whole,
       {{"offsets", kind::input, "[B|1, H|1, block rows + 1]", required,
         "where the columns of each block row begin; leading axes may be left out"},
        {"columns", kind::input, "[n]", required, "the block columns, increasing in each row"},
        {"column_count", kind::integer, "", required, "the number of block columns"},
        row_size,
        key_size,
        row_bounds,
        key_bounds,
        {"inner", kind::input, "any shape", "none",
         "of bool: which pairs of the listed blocks are met, n row_size key_size of them"},
        {"inner_layout", kind::choice, "by_block|by_row", "by_block", "how they lie in memory"}},
       [](pattern_arguments& a) -> any_pattern {
         heed::block_rows table{a.numbers<index_t, 3>("offsets"),
                                a.list<index_t>("columns"),
                                a.integer("column_count"),
                                cut_by(a, "row_size", "row_bounds"),
                                cut_by(a, "key_size", "key_bounds"),
                                {},
                                a.first_position};
         if (a.given.has("inner")) {
           index_t const expected = static_cast<index_t>(table.columns.size()) *
                                    a.integer("row_size") * a.integer("key_size");
           npy::array const& inner = a.given.array("inner");
           require(inner.size() == expected && inner.type == "b1", [&] {
             return "inner has shape " + heed::shape_text(inner.shape) + " and type " + inner.type +
                    "; expected " + std::to_string(expected) + " of bool";
           });
           tensor<bool, 1> kept({expected});
           for (index_t n = 0; n < expected; ++n)
             kept.data()[n] = inner.bytes[static_cast<std::size_t>(n)] != 0;
           bool const by_row = a.given.choice("inner_layout") == "by_row";
           table.inner = {a.keep(std::move(kept)).data(),
                          by_row ? heed::inner_layout::by_row : heed::inner_layout::by_block};
         }
         return table;
       }},
      {"bool_mask",
       decoding::whole,
       {{"kept", kind::input, "[B|1, H|1, N, M]", required,
         "of bool: the pairs that meet; leading axes may be left out"},
        causal_flag},
       [](pattern_arguments& a) {
         return perhaps_causal(a, heed::bool_mask{a.numbers<bool, 4>("kept"), a.first_position});
       }},
      {"bit_mask",
       decoding::whole,
       {{"bytes", kind::input, "[n]", required,
         "of uint8: bit t % 8 of byte t / 8 is that of the pair t = row M + key"},
        {"offsets", kind::input, "[B + 1]", "none",
         "where the bytes of each batch entry begin; without, all have the same"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::bit_mask{
             a.list<std::uint8_t>("bytes"),
             a.given.has("offsets") ? a.list<index_t>("offsets") : std::span<index_t const>(),
             a.first_position};
       }},
      {"block_lists",
       decoding::none,
       {{"kv_num_blocks", kind::input, "[B|1, H|1, block rows]", required,
         "how many blocks meet in part"},
        {"kv_indices", kind::input, "[B|1, H|1, block rows, n]", required, "their columns"},
        {"full_kv_num_blocks", kind::input, "[B|1, H|1, block rows]", "none",
         "how many blocks meet whole"},
        {"full_kv_indices", kind::input, "[B|1, H|1, block rows, n]", "none", "their columns"},
        {"row_size", kind::integer, "", "128", "rows of a block"},
        {"key_size", kind::integer, "", "128", "keys of a block"},
        {"kept", kind::input, "[B|1, H|1, N, M]", required,
         "of bool, asked in the blocks that meet in part; leading axes may be left out"}},
       [](pattern_arguments& a) -> any_pattern {
         heed::block_list_views const lists{a.numbers<int, 3>("kv_num_blocks"),
                                            a.numbers<int, 4>("kv_indices"),
                                            a.optional_numbers<int, 3>("full_kv_num_blocks"),
                                            a.optional_numbers<int, 4>("full_kv_indices")};
         heed::block_classes const& classes = a.keep(heed::classes_of(
             lists, a.shape.rows, a.shape.keys, {a.integer("row_size"), a.integer("key_size")}));
         return heed::classified(heed::bool_mask{a.numbers<bool, 4>("kept")}, classes);
       }},
      {"benchmark_mask",
       decoding::whole,
       {{"mask", kind::choice,
         "full|causal|full_document|causal_document|share_question|causal_blockwise|prefix_lm_"
         "causal|"
         "prefix_lm_document|window|causal_window|global_window|block_causal_document",
         required, "which one of the benchmark's masks; as many queries as keys"},
        {"boundaries", kind::input, "[G + 1]", "one document", "of the documents: 0 first, N last"},
        {"prefix", kind::integer, "", "0", "keys that all queries of a document meet"},
        {"reach", kind::integer, "", "0", "of the windows"},
        {"block", kind::integer, "", "1024", "tokens of a block of block_causal_document"},
        {"form", kind::choice, "slices|column_ranges", "slices", "what the mask is made into"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const& mask = a.keep(benchmark_mask(a));
         if (a.given.choice("form") == "column_ranges") {
           auto ranges = mask.as_column_ranges();
           ranges.first_position = a.first_position;
           return ranges;
         }
         auto slices = mask.as_slices();
         slices.first_position = a.first_position;
         return slices;
       }},

      // Groups of tokens in language models.
      {"shifted_groups",
       decoding::none,
       {{"size", kind::integer, "", required, "tokens of a group, even, a divisor of N"},
        {"shifted_from", kind::integer, "", "0", "heads from this one on are shifted"},
        {"shifted", kind::input, "[H]", "none", "of bool, instead of shifted_from"},
        {"sinks", kind::integer, "", "0", "leading tokens that all queries meet"},
        {"wrap", kind::flag, "", "false", "the half groups at both ends are one"}},
       [](pattern_arguments& a) -> any_pattern {
         heed::shifted_groups groups{a.integer("size"), a.integer("shifted_from"),
                                     a.integer("sinks"), a.flag("wrap")};
         if (a.given.has("shifted")) groups.shifted = a.list<bool>("shifted");
         return groups;
       }},
      {"block_attention",
       decoding::growing,
       {starts},
       [](pattern_arguments& a) -> any_pattern {
         return heed::block_attention(a.numbers<index_t, 2>("starts"));
       }},
      {"parallel_contexts",
       decoding::growing,
       {starts,
        {"selected", kind::input, "[B|1, H|1, S]", "none",
         "of bool: the pieces that the tail meets; leading axes may be left out"},
        {"selected_by_row", kind::input, "[B|1, H|1, N, S]", "none",
         "of bool: the pieces that each row of the tail meets; leading axes may be left out"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const segments = a.numbers<index_t, 2>("starts");
         if (a.given.has("selected_by_row")) {
           auto selected = a.numbers<bool, 4>("selected_by_row");
           if (a.grows) selected = selected.slice(2, a.row, 1);
           return heed::parallel_contexts(segments, selected);
         }
         if (a.given.has("selected"))
           return heed::parallel_contexts(segments, a.numbers<bool, 3>("selected"));
         return heed::parallel_contexts(segments);
       }},
      {"demonstration_blocks",
       decoding::growing,
       {starts,
        {"anchors", kind::integer, "", "1", "leading blocks that all meet"},
        {"reach", kind::integer, "", "2", "blocks before its own that a query meets"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::demonstration_blocks(a.numbers<index_t, 2>("starts"), a.integer("anchors"),
                                           a.integer("reach"));
       }},
      {"chunks_with_memory",
       decoding::none,
       {{"chunk", kind::integer, "", required, "tokens of a chunk"},
        {"memory", kind::integer, "", "-1",
         "gated rows that a chunk meets; -1: all. Keys are the N gated rows, then the N rows"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::chunks_with_memory{a.integer("chunk"), a.integer("memory")};
       }},

      // Long-range patterns.
      {"power_of_two_keys",
       decoding::growing,
       {},
       [](pattern_arguments&) -> any_pattern { return heed::power_of_two_keys; }},
      {"power_attention",
       decoding::growing,
       {{"block", kind::integer, "", "256", "tokens of a block"},
        {"window", kind::integer, "", "5", "blocks nearby, the query's own included"},
        {"sinks", kind::integer, "", "1", "leading blocks"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::power_attention(a.integer("block"), a.integer("window"), a.integer("sinks"));
       }},
      {"factorised",
       decoding::growing,
       {{"part", kind::choice, "local|strided|fixed|local_and_strided", required,
         "one part, or two in one head"},
        {"length", kind::integer, "", required, "keys of the local part; the stride; of a block"},
        {"count", kind::integer, "", "1", "fixed: summary places of a block"},
        {"variants", kind::integer, "", "1", "fixed: head h reads the places number h % variants"}},
       [](pattern_arguments& a) -> any_pattern {
         std::string_view const part = a.given.choice("part");
         index_t const length = a.integer("length");
         require(length >= 1,
                 [&] { return "length is " + std::to_string(length) + "; expected 1 or more"; });
         if (part == "local") return heed::factorised_local(length);
         if (part == "strided") return heed::factorised_strided(length);
         if (part == "fixed")
           return heed::factorised_fixed({length, a.integer("count"), a.integer("variants")});
         return heed::factorised_local(length) | heed::factorised_strided(length);
       }},
      {"head_strides",
       decoding::whole,
       {{"stride", kind::integer, "", "4", "head h meets every stride-th key from h % stride on"}},
       [](pattern_arguments& a) -> any_pattern { return heed::head_strides{a.integer("stride")}; }},
      {"head_parts",
       decoding::whole,
       {{"parts", kind::integer, "", "4", "head h meets part h % parts of the keys"}},
       [](pattern_arguments& a) -> any_pattern { return heed::head_parts{a.integer("parts")}; }},

      // Kinds of tokens.
      {"token_types",
       decoding::growing,
       {{"types", kind::input, "[B|1, H_k|1, M]", required,
         "of each key: 0 global, 1 local, 2 sliding; leading axes may be left out"},
        {"window", kind::integer, "", required, "queries after its own that meet a sliding key"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const numbers = a.by_key<index_t>("types");
         index_t const key_heads = std::max<index_t>(numbers.extent(1), 1);
         tensor<heed::token_type, 3> types(numbers.extents());
         for (index_t b = 0; b < numbers.extent(0); ++b)
           for (index_t h = 0; h < numbers.extent(1); ++h)
             for (index_t j = 0; j < numbers.extent(2); ++j) {
               require(numbers(b, h, j) >= 0 && numbers(b, h, j) <= 2, [&] {
                 return "types holds " + std::to_string(numbers(b, h, j)) + "; expected 0 to 2";
               });
               types.view()(b, h, j) = static_cast<heed::token_type>(numbers(b, h, j));
             }
         heed::token_types const& lives =
             a.keep(heed::token_types(types.const_view(), a.integer("window"),
                                      key_heads == 1 ? 1 : a.shape.heads / key_heads));
         return lives.pattern();
       }},
      {"meta_tokens",
       decoding::growing,
       {{"meta", kind::input, "[B|1, H|1, M]", required,
         "of bool: the meta tokens; leading axes may be left out"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::meta_tokens(a.by_key<bool>("meta"));
       }},
      {"sentinel_tokens",
       decoding::whole,
       {{"markers", kind::input, "[M] or [B, M]", required,
         "of each token: 0 none, 1 opens a span, 2 closes one"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const numbers = a.numbers<index_t, 2>("markers");
         using pattern = decltype(std::declval<heed::sentinel_tokens>().pattern());
         std::vector<pattern> patterns;
         for (index_t b = 0; b < numbers.extent(0); ++b) {
           std::vector<heed::marker> markers;
           for (index_t i = 0; i < numbers.extent(1); ++i) {
             require(numbers(b, i) >= 0 && numbers(b, i) <= 2, [&] {
               return "markers holds " + std::to_string(numbers(b, i)) + "; expected 0 to 2";
             });
             markers.push_back(static_cast<heed::marker>(numbers(b, i)));
           }
           patterns.push_back(a.keep(heed::sentinel_tokens(markers)).pattern());
         }
         if (patterns.size() == 1) return patterns[0];
         return heed::by_sequence<pattern>{a.keep(patterns)};
       }},
      {"nearest_share",
       decoding::growing,
       {{"ratio", kind::number, "", required, "the share of the past that is left out"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::nearest_share{a.given.number("ratio")};
       }},
      {"scattered_keys",
       decoding::growing,
       {{"kept", kind::input, "[B|1, H|1, M]", required,
         "of bool: the keys that later queries meet; leading axes may be left out"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::scattered_keys(a.by_key<bool>("kept"));
       }},
      {"text_queries",
       decoding::growing,
       {{"visual", kind::input, "[B|1, H|1, M]", required,
         "of bool: the visual tokens, whose rows meet nothing; leading axes may be left out"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::text_queries(a.by_key<bool>("visual"));
       }},
      {"blind_visual_tokens",
       decoding::growing,
       {{"visual", kind::input, "[B|1, H|1, M]", required,
         "of bool: the visual tokens, whose rows meet text and themselves; leading axes may be "
         "left out"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::blind_visual_tokens(a.by_key<bool>("visual"));
       }},
      {"modality",
       decoding::growing,
       {{"mask", kind::choice, "self|cross", required,
         "keys of the query's own modality, or of the others and its own key"},
        {"modality", kind::input, "[B|1, H|1, M]", required,
         "of each token, 0 to 63; leading axes may be left out"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const numbers = a.by_key<int>("modality");
         if (a.given.choice("mask") == "self") return heed::self_modal(numbers);
         return heed::cross_modal(numbers);
       }},
      {"isolation",
       decoding::none,
       {{"regions", kind::input, "[P]", required,
         "of each token of the picture, by bits, the regions that it lies in"},
        {"references", kind::input, "[S, P]", "none",
         "of bool: the masks of S reference images, whose keys lie before the picture's"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const numbers = a.list<index_t>("regions");
         std::vector<std::uint64_t> regions;
         for (index_t bits : numbers) regions.push_back(static_cast<std::uint64_t>(bits));
         std::vector<std::span<bool const>> images;
         if (a.given.has("references")) {
           auto const masks = a.numbers<bool, 2>("references");
           for (index_t s = 0; s < masks.extent(0); ++s)
             images.emplace_back(masks.data() + s * masks.extent(1),
                                 static_cast<std::size_t>(masks.extent(1)));
         }
         return a.keep(heed::isolation(regions, images)).pattern();
       }},
      {"graph_windows",
       decoding::whole,
       {{"nodes", kind::input, "[V]", required, "the positions of node tokens, increasing"},
        {"adjacency", kind::input, "[V, V]", required, "of bool: from row to column"},
        {"hops", kind::integer, "", "1", "steps within which nodes meet"},
        {"bidirectional", kind::flag, "", "false", "nodes meet later ones too"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const nodes = a.list<index_t>("nodes");
         return a
             .keep(heed::graph_windows(nodes, a.numbers<bool, 2>("adjacency"), a.integer("hops"),
                                       a.flag("bidirectional")))
             .pattern();
       }},
      {"faithful_patches",
       decoding::none,
       {{"kept", kind::input, "[B|1, H|1, M]", required,
         "of bool: the patches that are met; leading axes may be left out"},
        {"prefix", kind::integer, "", "0", "leading tokens that are met"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::faithful_patches(a.by_key<bool>("kept"), a.integer("prefix"));
       }},

      // Heads.
      {"elastic_spans",
       decoding::growing,
       {{"alpha", kind::input, "[H]", required, "of each head: the span is alpha + beta length"},
        {"beta", kind::input, "[H]", required, "of each head"},
        {"length", kind::integer, "", required, "tokens of the input, those to come included"}},
       [](pattern_arguments& a) -> any_pattern {
         auto const alpha = a.numbers<double, 1>("alpha"), beta = a.numbers<double, 1>("beta");
         auto const& sinks = a.keep(tensor<index_t, 2>({1, alpha.extent(0)}));
         auto const& recent = a.keep(tensor<index_t, 2>({1, alpha.extent(0)}));
         heed::elastic_spans(alpha, beta, a.integer("length"), sinks.view(), recent.view());
         return heed::streaming_heads{sinks.const_view(), recent.const_view()};
       }},
      {"elastic_span_in_blocks",
       decoding::growing,
       {{"alpha", kind::number, "", required, "the span is alpha + beta length"},
        {"beta", kind::number, "", required, "the same for all heads"},
        {"length", kind::integer, "", required, "tokens of the input, those to come included"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::elastic_span_in_blocks(heed::elastic_span(
             a.given.number("alpha"), a.given.number("beta"), a.integer("length")));
       }},
      {"task_kv",
       decoding::whole,
       {{"sinks", kind::integer, "", "0", "leading keys that near heads meet"},
        {"recent", kind::integer, "", required, "latest keys that near heads meet"},
        {"middle", kind::input, "[B|1, H|1, n]", required,
         "the other keys that near heads meet, sorted, -1 behind the last; leading axes may be "
         "left out"},
        {"far", kind::input, "[B|1, H]", required, "of bool: the heads that meet all keys"}},
       [](pattern_arguments& a) -> any_pattern {
         return heed::task_kv{{a.integer("sinks"), a.integer("recent")},
                              a.numbers<index_t, 3>("middle"),
                              a.numbers<bool, 2>("far")};
       }},
      {"local_monotone",
       decoding::none,
       {{"radius", kind::integer, "", "10", "keys on either side of the row's own number"}},
       [](pattern_arguments& a) -> any_pattern {
         a.top_left = true;
         return heed::local_monotone(a.integer("radius"));
       }},

      // Canvases.
      {"neighborhood",
       decoding::none,
       {canvas,
        {"window", kind::integers, "", required, "keys along each axis, or along all"},
        {"stride", kind::integers, "", "1", "queries that share a window"},
        {"dilation", kind::integers, "", "1", "how far keys are apart"},
        {"causal", kind::integers, "", "0", "1 for axes that end at the query"},
        relative_table,
        drelative_table},
       [](pattern_arguments& a) {
         return a.given.with_axes(
             "canvas", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
               heed::neighborhood<d> parameters{a.point<d>("canvas"), a.point<d>("window"),
                                                a.point<d>("stride"), a.point<d>("dilation")};
               auto const causal = a.point<d>("causal");
               for (std::size_t axis = 0; axis < d; ++axis)
                 parameters.causal[axis] = causal[axis] != 0;
               return around(a, parameters);
             });
       }},
      {"packed_canvases",
       decoding::none,
       {{"canvases", kind::input, "[n, 1 to 3]", required,
         "the extents of several canvases, whose tokens lie one canvas after the other"},
        {"window", kind::integers, "", required, "keys along each of as many axes"},
        {"stride", kind::integers, "", "1", "queries that share a window"},
        {"dilation", kind::integers, "", "1", "how far keys are apart"}},
       [](pattern_arguments& a) {
         return a.given.with_axes(
             "window", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
               auto const canvases = a.numbers<index_t, 2>("canvases");
               require(canvases.extent(1) == d, [&] {
                 return "canvases has shape " + heed::shape_text(canvases.extents()) +
                        "; expected an extent for each of the " + std::to_string(d) +
                        " integers of window";
               });
               std::vector<heed::neighborhood_order<d>> orders;
               for (index_t n = 0; n < canvases.extent(0); ++n) {
                 heed::neighborhood<d> one{.window = a.point<d>("window"),
                                           .stride = a.point<d>("stride"),
                                           .dilation = a.point<d>("dilation")};
                 for (std::size_t axis = 0; axis < d; ++axis)
                   one.canvas[axis] = canvases(n, static_cast<index_t>(axis));
                 orders.emplace_back(one, a.lanes);
               }
               return any_pattern(a.arrange(heed::packed_canvases(std::move(orders))).pattern());
             });
       }},
      {"dilated_neighborhood",
       decoding::none,
       {{"canvas", kind::integers, "", required, "height, width"},
        {"window", kind::integer, "", required, "keys along each axis"},
        {"dilation", kind::integer, "", "1", "how far keys are apart"},
        relative_table,
        drelative_table},
       [](pattern_arguments& a) {
         return around(a, heed::dilated_neighborhood(a.point<2>("canvas"), a.integer("window"),
                                                     a.integer("dilation")));
       }},
      {"inward_window",
       decoding::none,
       {{"canvas", kind::integers, "", required, "frames, height, width"},
        {"reach", kind::integers, "", required, "along height and width"},
        {"border", kind::choice, "inward|clipped", "inward",
         "whether windows move inward at the border or end there"}},
       [](pattern_arguments& a) {
         if (a.given.choice("border") == "clipped")
           return around(a, heed::clipped_window(a.point<3>("canvas"), a.point<2>("reach")));
         return around(a, heed::inward_window(a.point<3>("canvas"), a.point<2>("reach")));
       }},
      {"window_partition",
       decoding::none,
       {canvas,
        {"window", kind::integers, "", required, "tokens along each axis, or along all"},
        {"shift", kind::integers, "", "0", "where the first whole window begins"},
        relative_table,
        drelative_table},
       [](pattern_arguments& a) {
         return a.given.with_axes(
             "canvas", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
               heed::window_partition<d> const windows{a.point<d>("canvas"), a.point<d>("window"),
                                                       a.point<d>("shift")};
               return groups_of(a, windows, windows.window);
             });
       }},
      {"shifted_windows",
       decoding::none,
       {canvas,
        {"window", kind::integers, "", required, "tokens along each axis, or along all"},
        {"shifted", kind::flag, "", "false", "by half a window along axes that have several"},
        relative_table,
        drelative_table},
       [](pattern_arguments& a) {
         return a.given.with_axes(
             "canvas", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
               auto const windows = heed::shifted_windows<d>(
                   a.point<d>("canvas"), a.point<d>("window"), a.flag("shifted"));
               return groups_of(a, windows, windows.window);
             });
       }},
      {"grid_partition",
       decoding::none,
       {canvas,
        {"cells", kind::integers, "", required,
         "tokens of a grid along each axis, or along all; they divide the canvas"},
        relative_table,
        drelative_table},
       [](pattern_arguments& a) {
         return a.given.with_axes(
             "canvas", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
               heed::grid_partition<d> const grids{a.point<d>("canvas"), a.point<d>("cells")};
               return groups_of(a, grids, grids.cells);
             });
       }},
      {"multi_axis",
       decoding::none,
       {{"canvas", kind::integers, "", required, "height, width"},
        {"size", kind::integer, "", required, "of a window or grid along both axes"},
        {"layer", kind::choice, "block|grid", required, "windows, or grids spread over the canvas"},
        relative_table,
        drelative_table},
       [](pattern_arguments& a) -> any_pattern {
         auto const of = a.point<2>("canvas"), window = heed::all_axes<2>(a.integer("size"));
         if (a.given.choice("layer") == "block")
           return groups_of(a, heed::multi_axis_block(of, window[0]), window);
         return groups_of(a, heed::multi_axis_grid(of, window[0]), window);
       }},
      {"axial",
       decoding::none,
       {canvas, {"axis", kind::integer, "", required, "the axis along which tokens meet"}},
       [](pattern_arguments& a) {
         return a.given.with_axes(
             "canvas", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
               a.arrange(heed::axial<d>{a.point<d>("canvas"), a.integer("axis")});
               return any_pattern(heed::dense{});
             });
       }},
      {"halo",
       decoding::none,
       {{"canvas", kind::integers, "", required, "the extents of one to three axes of keys"},
        {"block", kind::integers, "", required, "tokens of a block along each axis, or along all"},
        {"halo", kind::integers, "", required, "keys around it"},
        {"query_stride", kind::integers, "", "1", "how far queries are apart"}},
       [](pattern_arguments& a) {
         return a.given.with_axes("canvas", [&]<std::size_t d>(
                                                std::integral_constant<std::size_t, d>) {
           return around(a, heed::halo_blocks<d>{a.point<d>("canvas"), a.point<d>("block"),
                                                 a.point<d>("halo"), a.point<d>("query_stride")});
         });
       }},
  };
  return all;
}

bool const registered = [] {
  for (pattern_entry const& entry : entries()) {
    std::vector<parameter> own = entry.parameters;
    own.push_back({"bias", kind::input, "[B|1, H|1, N|1, M|1]", "none", "added to scores"});
    own.push_back(
        {"dbias", kind::output, "[B|1, H|1, N|1, M|1]", "none", "gradient of the loss by bias"});
    own.push_back({"type", kind::choice, "f64|f32", "that of q's file",
                   "what q, k and v are converted to before the call"});
    std::string_view const verbs =
        entry.decodes == decoding::none ? "forward|backward" : "forward|backward|decode";
    mechanisms().emplace(entry.name,
                         mechanism{entry.name, attention_parameters(verbs, std::move(own)),
                                   [&entry](arguments& given) { run(given, entry); }});
  }
  return true;
}();

}  // namespace
}  // namespace conformance
