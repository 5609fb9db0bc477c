// A language model made of nothing but attention. Nothing is trained.
//
// To guess the next character of a text, look for the places where the text read like this before,
// and see which characters followed there. That is one head of softmax attention:
//
//   query i  what the text looks like at character i: a sum of random vectors, one for its last
//            character, one for its last two, and so on up to its last eight
//   key j    the same for an earlier character. The more of their pasts agree, the higher the
//   score. value j  the character that followed, as a row of zeros with a single 1: what comes out
//   of
//            attention is a probability for every character.
//
// The program reads a text this way with every mechanism in the table `mechanisms` below, and then
// goes on writing by itself, one query at a time against a cache of keys and values. Mechanisms with
// a state instead of the past learn the same keys and values, and forget the rest.

#include <heed/heed.hpp>
#include <heed/linear.hpp>
#include <heed/mechanism/based.hpp>
#include <heed/mechanism/gated_slot_attention.hpp>
#include <heed/mechanism/performer.hpp>
#include <heed/mechanism/titans.hpp>
#include <heed/parallel/eigen_pool.hpp>
#include <heed/recur/features/elementwise.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <unistd.h>

#ifndef HEED_SOURCE_DIR
#define HEED_SOURCE_DIR "."
#endif

namespace {

using heed::index_t;
using heed::tensor_view;
using std::size_t;

using bytes = std::string_view;
using pool = Eigen::ThreadPool;

// --- How a place in a text is described --------------------------------------------------------

constexpr index_t head_dim = 64;

/// The last `length` characters have a random vector of this amplitude. A score grows by the square
/// of it, and whoever agrees in a longer context agrees in all the shorter ones too.
struct context {
  size_t length;
  float amplitude;
};
constexpr context contexts[] = {{1, 5}, {2, 3}, {3, 3}, {4, 2}, {6, 2}, {8, 3}};

/// The score of two places that agree in all contexts. Others score by what they share, give or
/// take the noise of 64 dimensions.
constexpr double sharpness = 20;

constexpr unsigned char byte(char c) {
  return static_cast<unsigned char>(c);
}

constexpr std::uint64_t scramble(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// Writes the unit vector that describes the end of `past`. Every head draws its own random
/// vectors.
void embed(bytes past, index_t head, std::span<float, head_dim> vector) {
  std::ranges::fill(vector, 0.f);
  std::uint64_t hash = scramble(static_cast<std::uint64_t>(head));
  size_t length = 0;
  for (auto [full_length, amplitude] : contexts) {
    if (full_length > past.size()) break;
    while (length < full_length) hash = scramble(hash ^ byte(past[past.size() - ++length]));
    std::uint64_t const signs = scramble(~hash);
    for (size_t d = 0; d < vector.size(); ++d)
      vector[d] += (signs >> d & 1) != 0 ? amplitude : -amplitude;
  }
  float square = 0;
  for (float x : vector) square += x * x;
  if (square == 0) return;
  for (float& x : vector) x /= std::sqrt(square);
}

// --- What attention reads ----------------------------------------------------------------------

/// The characters of a text, numbered from 0.
class alphabet {
 public:
  explicit alphabet(bytes text) {
    std::array<bool, 256> seen{};
    for (char c : text) seen[byte(c)] = true;
    for (size_t code = 0; code < seen.size(); ++code)
      if (seen[code]) {
        number_[code] = index_t(characters_.size());
        characters_ += static_cast<char>(code);
      }
  }

  index_t size() const { return index_t(characters_.size()); }
  index_t number(char c) const { return number_[byte(c)]; }
  char character(size_t number) const { return characters_[number]; }

 private:
  std::array<index_t, 256> number_{};
  std::string characters_;
};

/// A text as queries, keys and values. There is a key for every character but the last: its value
/// is the character after it.
template <class Element>
struct memory {
  index_t length, heads, symbols;
  std::vector<float> queries;
  std::vector<Element> keys, values;

  memory(bytes text, alphabet const& letters, index_t head_count)
      : length(index_t(text.size())),
        heads(head_count),
        symbols(letters.size()),
        queries(size_t(length * heads * head_dim)),
        values(size_t((length - 1) * symbols)) {
    for (index_t i = 0; i < length; ++i)
      for (index_t head = 0; head < heads; ++head)
        embed(text.substr(0, size_t(i) + 1), head,
              std::span<float, head_dim>(&query_view()(0, i, head, 0), head_dim));
    keys.reserve(queries.size());
    for (float x : queries) keys.push_back(static_cast<Element>(x));
    for (index_t j = 0; j + 1 < length; ++j)
      values[size_t(j * symbols + letters.number(text[size_t(j) + 1]))] = Element(1);
  }

  tensor_view<float, 4> query_view() {
    return heed::bnhd(queries.data(), 1, length, heads, head_dim);
  }
  tensor_view<Element, 4> key_view() { return heed::bnhd(keys.data(), 1, length, heads, head_dim); }
  tensor_view<Element, 4> value_view() {
    return heed::bnhd(values.data(), 1, length - 1, 1, symbols);
  }

  /// What queries [first, first + count) find: one row of next characters for each query and head.
  ///
  /// At character i nothing after i is known, so that the last key is i - 1, whose value is
  /// character i. Hence one key fewer than queries; and as the last query stands at the last key,
  /// heed::causal is right.
  template <class... Ingredients>
  void look(index_t first, index_t count, std::vector<float>& found,
            Ingredients const&... ingredients) {
    found.resize(size_t(count * heads * symbols));
    index_t const known = first + count - 1;
    heed::attention(query_view().slice(1, first, count), key_view().slice(1, 0, known),
                    value_view().slice(1, 0, known),
                    heed::bnhd(found.data(), 1, count, heads, symbols), heed::scale{sharpness},
                    ingredients...);
  }
};

// --- A state instead of a past -----------------------------------------------------------------

/// Has some keys and values learned and some queries answered, in order; what is carried on belongs to it.
using recurrence = std::function<void(
    tensor_view<float const, 4> query, tensor_view<float const, 4> key,
    tensor_view<float const, 4> value, tensor_view<float, 4> out, pool& threads)>;

/// Makes one with an empty state.
using recurrence_maker = std::function<recurrence(index_t symbols)>;

/// What a recurrence finds for some queries after others. Every call learns the keys that are new: before its first query
/// all but those that the queries bring along, one each. What comes out may be negative, and add up to more than 1: that is
/// no probability yet.
void look_through(recurrence const& state, index_t& learned, memory<float>& past, index_t first,
                  index_t count, std::vector<float>& found, pool& threads) {
  index_t const symbols = past.symbols, known = first + count - 1, before = first - 1;
  auto const run = [&](index_t query, index_t keys, float* out) {
    if (keys > 0)
      state(past.query_view().slice(1, query, keys), past.key_view().slice(1, learned, keys),
            past.value_view().slice(1, learned, keys), heed::bnhd(out, 1, keys, 1, symbols),
            threads);
    learned += keys;
  };
  index_t const earlier = std::max<index_t>(before - learned, 0);
  found.assign(size_t(std::max(count, earlier) * symbols), 0.f);
  run(learned, earlier, found.data());
  found.assign(size_t(count * symbols), 0.f);
  // The first query of a text knows nothing.
  index_t const unanswered = count - (known - learned);
  run(first + unanswered, known - learned, found.data() + unanswered * symbols);
  for (auto row = found.begin(); row != found.end(); row += symbols) {
    float sum = 0;
    for (auto x = row; x != row + symbols; ++x) sum += * x = std::max(*x, 0.f);
    if (sum > 1) std::for_each(row, row + symbols, [=](float& x) { x /= sum; });
  }
}

/// A state of zeros, for one head.
struct empty_state {
  std::vector<float> numbers;
  tensor_view<float, 4> view;

  empty_state(index_t rows, index_t columns)
      : numbers(size_t(rows * columns)), view(numbers.data(), {1, 1, rows, columns}) {}
};

/// The same number for every token and channel.
auto constantly(float number) {
  auto const held = std::make_shared<float>(number);
  return [held](index_t tokens) {
    return tensor_view<float const, 3>(held.get(), {1, tokens, 1}, {0, 0, 0});
  };
}

/// linear_attention; its state has as many rows as there are features, and a column more if it is normalised.
template <class... Ingredients>
recurrence_maker linear(index_t features, bool normalised, Ingredients... ingredients) {
  return [=](index_t symbols) -> recurrence {
    auto const held = std::make_shared<empty_state>(features, symbols + normalised);
    return [=](auto query, auto key, auto value, auto out, pool& threads) {
      heed::linear_attention(query, key, value, out, heed::state{held->view}, heed::on{threads},
                             ingredients...);
    };
  };
}

/// The delta rule and its relatives: this share of what is wrong with a key's value is put right.
recurrence_maker delta_rule(float share, float log_gate) {
  return [=](index_t symbols) -> recurrence {
    auto const held = std::make_shared<empty_state>(head_dim, symbols);
    auto const rate = constantly(share), gate = constantly(log_gate);
    return [=](auto query, auto key, auto value, auto out, pool& threads) {
      index_t const tokens = key.extent(1);
      heed::linear_attention(query, key, value, out, heed::delta{rate(tokens)},
                             heed::decay{gate(tokens)}, heed::state{held->view}, heed::on{threads});
    };
  };
}
recurrence_maker error_free(float share) {
  return [=](index_t symbols) -> recurrence {
    auto const held = std::make_shared<empty_state>(head_dim, symbols);
    auto const rate = constantly(share);
    return [=](auto query, auto key, auto value, auto out, pool& threads) {
      heed::linear_attention(query, key, value, out, heed::exact_delta{rate(key.extent(1))},
                             heed::state{held->view}, heed::on{threads});
    };
  };
}

/// Random features of exp(sharpness q.k): queries and keys are of the size that makes it so.
recurrence performer(index_t symbols) {
  constexpr index_t features = 256;
  struct carried {
    empty_state state;
    heed::favor_projection projection;
    float largest = -std::numeric_limits<float>::infinity();
    std::vector<float> query = {}, key = {};

    carried(index_t count, std::mt19937_64 random)
        : state(features, count + 1),
          projection(heed::favor_projection::orthogonal(features, head_dim, random)) {}
  };
  auto const held = std::make_shared<carried>(symbols, std::mt19937_64(1));
  return [held](auto query, auto key, auto value, auto out, pool& threads) {
    auto const sharpened = [](tensor_view<float const, 4> from, std::vector<float>& to) {
      float const size = std::sqrt(float(sharpness) * std::sqrt(float(head_dim)));
      to.resize(size_t(from.size()));
      std::transform(from.data(), from.data() + from.size(), to.begin(),
                     [=](float x) { return size * x; });
      return tensor_view<float const, 4>(to.data(), from.extents());
    };
    heed::causal_performer(sharpened(query, held->query), sharpened(key, held->key), value, out,
                           held->projection, heed::state{held->state.view},
                           heed::running_maximum{tensor_view<float, 2>(&held->largest, {1, 1})},
                           heed::on{threads});
  };
}

/// 64 slots; six signs of a key say which one it is written to.
recurrence gated_slots(index_t symbols) {
  constexpr index_t slots = 64;
  struct carried {
    empty_state keys, values;
    std::vector<float> numbers = {}, gate = {}, strength = {};
  };
  auto const held =
      std::make_shared<carried>(carried{empty_state(head_dim, slots), empty_state(slots, symbols)});
  return [held](auto query, auto key, auto value, auto out, pool& threads) {
    index_t const tokens = key.extent(1);
    auto const view = [&](std::vector<float>& all) {
      all.resize(size_t(tokens * slots));
      return heed::bnhd(all.data(), 1, tokens, 1, slots);
    };
    auto const numbers = view(held->numbers);
    std::ranges::fill(held->numbers, 8.f);  // kept as they are
    for (index_t j = 0; j < tokens; ++j) {
      index_t slot = 0;
      for (index_t d = 0; d < 6; ++d) slot = 2 * slot + (key(0, j, 0, d) > 0);
      numbers(0, j, 0, slot) = 0;
    }
    heed::slot_gates(numbers, view(held->gate), view(held->strength), heed::on{threads});
    heed::gated_slot_attention(
        query, key, value, view(held->strength), view(held->gate), out, heed::scale{sharpness},
        heed::slot_state{held->keys.view, held->values.view}, heed::on{threads});
  };
}

/// A matrix that learns by gradient descent with momentum, eight tokens at a time.
recurrence titans(index_t symbols) {
  struct carried {
    empty_state weights, momentum, reference;
    heed::titans_state<float> state = {};
  };
  auto const state = [=] { return empty_state(head_dim, symbols); };
  auto const held = std::make_shared<carried>(carried{state(), state(), state()});
  held->state.memory.weights = {held->weights.view};
  held->state.memory.momentum = {held->momentum.view};
  held->state.reference = {held->reference.view};
  auto const rate = constantly(0.1f), momentum = constantly(0.3f), forget = constantly(1e-4f);
  return [=](auto query, auto key, auto value, auto out, pool& threads) {
    index_t const tokens = key.extent(1);
    heed::titans_step(query, key, value, out,
                      heed::titans_gates(rate(tokens), momentum(tokens), forget(tokens)),
                      held->state, 8, heed::on{threads});
  };
}

// --- From what was found to a probability ------------------------------------------------------

/// How often each byte occurred so far, with half an occurrence for free.
class frequencies {
 public:
  void add(char c) {
    ++count_[byte(c)];
    ++total_;
  }
  double operator()(char c) const { return (count_[byte(c)] + 0.5) / (total_ + 0.5 * 256); }

 private:
  std::array<double, 256> count_{};
  double total_ = 0;
};

/// This much of the prediction goes by plain frequencies, and so does whatever attention leaves
/// over (where it met no key, or gave weight to a sink): no character is impossible, and all sum
/// to 1.
constexpr double share_of_frequencies = 0.025;

/// The predicted probability of a character. `found`: a row for each head; the heads vote equally.
double probability(std::span<float const> found, alphabet const& letters,
                   frequencies const& frequency, char c) {
  auto const symbols = size_t(letters.size());
  auto const heads = double(found.size() / symbols);
  double votes = 0, all_votes = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    all_votes += double(found[i]);
    if (i % symbols == size_t(letters.number(c))) votes += double(found[i]);
  }
  double const trust = (1 - share_of_frequencies) / heads;
  return trust * votes + (1 - trust * all_votes) * frequency(c);
}

// --- Patterns for a text -----------------------------------------------------------------------

/// Patterns are made for a whole text, of which a call reads some rows. Positions are the same: the query at character
/// i stands at key i - 1, whose value it knows.
struct of_whole_text {
  heed::any_pattern pattern;
  index_t tokens;
  std::shared_ptr<void const> tables = {};  // what the pattern points into

  heed::bound_any_pattern bind(heed::place where) const {
    where.rows = where.keys = tokens;
    return pattern.bind(where);
  }
  void check(heed::call_shape shape) const {
    shape.rows = shape.keys = tokens;
    pattern.check(shape);
  }
};

using pattern_maker = std::function<of_whole_text(bytes text)>;

/// Patterns may be for more tokens than there are, so that groups and blocks come out even.
index_t tokens_of(bytes text) {
  constexpr index_t step = 4096;
  return (index_t(text.size()) + step - 1) / step * step;
}

/// The most recent `count` keys.
heed::sliding_window last(index_t count) {
  return {.left = count - 1, .right = 0};
}

template <class T>
tensor_view<T const, 3> by_token(T const* numbers, index_t tokens) {
  return {numbers, {1, 1, tokens}};
}

/// The older the sparser: all of the last 384 keys, then every 4th, every 16th and every 64th.
auto sparser_with_age() {
  return last(384) | (last(1536) & heed::periodic_keys{4}) |
         (last(6144) & heed::periodic_keys{16}) | (heed::causal{} & heed::periodic_keys{64});
}

/// The query's own key, and one in 18, drawn at random.
of_whole_text one_in_18(bytes text) {
  index_t const tokens = tokens_of(text);
  std::shared_ptr<bool[]> const drawn(new bool[size_t(tokens)]);
  std::mt19937_64 random(1);
  for (index_t j = 0; j < tokens; ++j) drawn[j] = random() % 18 == 0;
  return {heed::scattered_keys(by_token(drawn.get(), tokens)), tokens, drawn};
}

/// Blocks of 64: a query's own up to itself, the one before, and 15 drawn at random.
of_whole_text random_blocks(bytes text) {
  constexpr index_t size = 64;
  index_t const tokens = tokens_of(text), count = tokens / size;
  struct lists {
    std::vector<index_t> offsets{0}, columns;
  };
  auto const kept = std::make_shared<lists>();
  std::mt19937_64 random(1);
  for (index_t row = 0; row < count; ++row) {
    std::vector<index_t> columns{row, std::max<index_t>(row - 1, 0)};
    for (int n = 0; n < 15; ++n) columns.push_back(index_t(random() % size_t(row + 1)));
    std::ranges::sort(columns);
    kept->columns.insert(kept->columns.end(), columns.begin(),
                         std::unique(columns.begin(), columns.end()));
    kept->offsets.push_back(index_t(kept->columns.size()));
  }
  return {heed::causal{} & heed::block_rows{.offsets = by_token(kept->offsets.data(), count + 1),
                                            .columns = kept->columns,
                                            .column_count = count,
                                            .rows = {size},
                                            .keys = {size}},
          tokens, kept};
}

/// Where sections start: after the first line end that comes 1024 characters or more after the last one.
std::vector<index_t> section_starts(bytes text) {
  std::vector<index_t> starts{0};
  for (size_t end = 1023; (end = text.find('\n', end)) < text.size(); end += 1024)
    starts.push_back(index_t(end + 1));
  return starts;
}

/// The same, up to the end.
std::vector<index_t> section_bounds(bytes text) {
  std::vector<index_t> bounds = section_starts(text);
  bounds.push_back(tokens_of(text));
  return bounds;
}

of_whole_text sections_apart(bytes text) {
  auto const mask = std::make_shared<heed::benchmark::mask>(
      heed::benchmark::causal_document(section_bounds(text)));
  return {mask->as_slices(), tokens_of(text), mask};
}

of_whole_text first_section_shared(bytes text) {
  auto const mask = std::make_shared<heed::benchmark::mask>(
      heed::benchmark::share_question(section_bounds(text)));
  return {mask->as_slices(), tokens_of(text), mask};
}

/// The last quarter is one section, and meets all of those before.
of_whole_text tail_sees_all(bytes text) {
  std::vector<index_t> bounds = section_bounds(text);
  std::erase_if(bounds, [&](index_t start) {
    return start > index_t(text.size()) * 3 / 4 && start != bounds.back();
  });
  auto const mask =
      std::make_shared<heed::benchmark::mask>(heed::benchmark::causal_blockwise(bounds));
  return {mask->as_slices(), tokens_of(text), mask};
}

/// Own section, the one before, and the first.
of_whole_text demonstrations(bytes text) {
  auto const starts = std::make_shared<std::vector<index_t>>(section_starts(text));
  tensor_view<index_t const, 2> const view(starts->data(), {1, index_t(starts->size())});
  return {heed::demonstration_blocks(view, 1, 1), tokens_of(text), starts};
}

/// Of earlier sections only the last key is left.
of_whole_text closed_sections(bytes text) {
  std::vector<index_t> const bounds = section_bounds(text);
  std::vector<heed::marker> markers(size_t(bounds.back()));
  for (size_t n = 0; n + 1 < bounds.size(); ++n) {
    markers[size_t(bounds[n])] = heed::marker::open;
    markers[size_t(bounds[n + 1] - 1)] = heed::marker::close;
  }
  auto const spans = std::make_shared<heed::sentinel_tokens>(markers);
  return {spans->pattern(), bounds.back(), spans};
}

/// The keys whose character is the one that the query read last.
of_whole_text same_character(bytes text) {
  constexpr index_t kinds = 32;
  static constexpr auto same = [] {
    std::array<bool, kinds * kinds> admitted{};
    for (size_t kind = 0; kind < kinds; ++kind) admitted[kind * (kinds + 1)] = true;
    return admitted;
  }();
  index_t const tokens = tokens_of(text);
  auto const read = std::make_shared<std::vector<int>>(size_t(tokens + 1));
  for (size_t i = 0; i < text.size(); ++i) (*read)[i] = byte(text[i]) % kinds;
  return {heed::causal{} & heed::labels{by_token(read->data() + 1, tokens),
                                        by_token(read->data(), tokens),
                                        {same.data(), {kinds, kinds}}},
          tokens, read};
}

/// Line ends are met by all later queries, spaces up to the end of their line, others by the next 1024 queries.
of_whole_text typed_characters(bytes text) {
  index_t const tokens = tokens_of(text);
  std::vector<heed::token_type> types(size_t(tokens), heed::token_type::sliding);
  for (size_t i = 0; i < text.size(); ++i)
    if (text[i] == '\n')
      types[i] = heed::token_type::global;
    else if (text[i] == ' ')
      types[i] = heed::token_type::local;
  auto const lives =
      std::make_shared<heed::token_types>(by_token(types.data(), tokens), index_t{1024});
  return {lives->pattern(), tokens, lives};
}

/// The first query of each line meets all keys, the others the last 1024.
of_whole_text all_at_line_starts(bytes text) {
  index_t const tokens = tokens_of(text);
  auto const gates = std::make_shared<std::vector<float>>(size_t(tokens), -1.f);
  for (size_t i = 1; i < text.size(); ++i)
    if (text[i] == '\n') (*gates)[i - 1] = 1;  // where the query stands that has read it
  return {heed::all_or_here(by_token(gates->data(), tokens), 1024), tokens, gates};
}

/// Four heads with spans of their own, 1024 keys on average.
of_whole_text four_spans(bytes text) {
  struct numbers {
    index_t sinks[4], recent[4];
  };
  auto const spans = std::make_shared<numbers>();
  double const constant[] = {128, 512, 0, 0}, growing[] = {0, 0, 1. / 32, 3. / 40};
  tensor_view<index_t, 2> const sinks(spans->sinks, {1, 4}), recent(spans->recent, {1, 4});
  heed::elastic_spans({constant, {4}}, {growing, {4}}, index_t(text.size()), sinks, recent);
  return {heed::streaming_heads{sinks, recent}, tokens_of(text), spans};
}

// --- Reading a text with one mechanism ---------------------------------------------------------

/// A bar on stderr for runs that take a while, where someone watches.
class progress_bar {
 public:
  explicit progress_bar(std::string name) : name_(std::move(name)) {}
  progress_bar(progress_bar const&) = delete;
  progress_bar& operator=(progress_bar const&) = delete;
  ~progress_bar() {
    if (shown_) std::fprintf(stderr, "\r\033[K");
  }

  void show(double share) {
    if (!watched_ || seconds_since(start_) < 0.5) return;
    constexpr int width = 40;
    std::string bar(size_t(share * width), '#');
    bar.resize(width, '.');
    std::fprintf(stderr, "\r%-32s [%s] %3.0f%%", name_.c_str(), bar.c_str(), 100 * share);
    shown_ = true;
  }

  using clock = std::chrono::steady_clock;
  static double seconds_since(clock::time_point start) {
    return std::chrono::duration<double>(clock::now() - start).count();
  }

 private:
  std::string name_;
  clock::time_point start_ = clock::now();
  bool watched_ = isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
};

struct reading {
  double bits_per_character;
  double seconds;
  double characters;
  double pairs;
  double operations;
  double share_visited;
  bool is_causal;
};

/// Whether two patterns keep the same of the first pairs.
bool agree(of_whole_text const& a, of_whole_text const& b, index_t heads, index_t count) {
  for (index_t head = 0; head < heads; ++head) {
    heed::bound_any_pattern const in_a = a.bind({.head = head}), in_b = b.bind({.head = head});
    for (index_t query = 0; query < count; ++query)
      for (index_t key = 0; key < count; ++key)
        if (in_a.keep(query, key) != in_b.keep(query, key)) return false;
  }
  return true;
}

/// What queries [first, first + count) of a text find, one call after the other from the first on.
template <class Element>
using look = std::function<void(memory<Element>& past, index_t first, index_t count,
                                std::vector<float>& found)>;

/// Whether predictions stay the same, to the bit, when everything after them is replaced. `make` makes a look for a text.
template <class Element, class MakeLook>
bool is_causal(bytes text, alphabet const& letters, index_t heads, MakeLook const& make) {
  std::string const passage(text.substr(0, 2048));
  auto const half = passage.size() / 2;
  std::string const other =
      passage.substr(0, half) + std::string(passage.size() - half, letters.character(0));
  std::vector<float> before, after;
  auto const read = [&](std::string const& changed, std::vector<float>& found) {
    memory<Element> past(changed, letters, heads);
    look<Element>(make(passage))(past, 0, past.length, found);
  };
  read(passage, before);
  read(other, after);
  return std::memcmp(before.data(), after.data(),
                     half * size_t(heads * letters.size()) * sizeof(float)) == 0;
}

/// Calls f(first, count) for the queries that predict a text from its character `warm_up` on: query i predicts i + 1.
template <class F>
void for_each_chunk(bytes text, index_t warm_up, F f) {
  constexpr index_t chunk = 4096;
  index_t const last = index_t(text.size()) - 1;
  for (index_t first = warm_up - 1; first < last; first += chunk)
    f(first, std::min(chunk, last - first));
}

/// Predicts every character of the text from those before it, and counts from `warm_up` on.
template <class Element, class MakeLook>
reading read_with(std::string const& name, bytes text, index_t warm_up, index_t heads,
                  MakeLook const& make) {
  alphabet const letters(text);
  reading result{};
  result.is_causal = is_causal<Element>(text, letters, heads, make);

  memory<Element> past(text, letters, heads);
  look<Element> const find = make(text);
  frequencies frequency;
  for (char c : text.substr(0, size_t(warm_up) - 1)) frequency.add(c);

  progress_bar progress(name);
  std::vector<float> found;
  double bits = 0;
  for_each_chunk(text, warm_up, [&](index_t first, index_t count) {
    auto const start = progress_bar::clock::now();
    find(past, first, count, found);
    result.seconds += progress_bar::seconds_since(start);

    size_t const row = found.size() / size_t(count);
    for (index_t i = first; i < first + count; ++i) {
      auto const here = size_t(i);
      frequency.add(text[here]);
      bits -= std::log2(probability(std::span(found).subspan(size_t(i - first) * row, row), letters,
                                    frequency, text[here + 1]));
    }
    auto const done = double(first + count), all = double(past.length);
    progress.show(done * done / (all * all));
  });
  result.characters = double(past.length - warm_up);
  result.bits_per_character = bits / result.characters;
  return result;
}

/// Whether a pattern that is made for a text does not see its future: it is the same when that is replaced.
bool is_causal(bytes text, alphabet const& letters, index_t heads, pattern_maker const& make) {
  std::string passage(text.substr(0, 2048));
  auto const half = index_t(passage.size() / 2);
  of_whole_text const before = make(passage);
  std::ranges::fill(passage.begin() + half, passage.end(), letters.character(0));
  return agree(before, make(passage), heads, half - 1);
}

/// The same with attention, and what of it there was to compute.
template <class Element, class... Ingredients>
reading read_with_attention(std::string const& name, bytes text, index_t warm_up, pool& threads,
                            index_t heads, pattern_maker const& make,
                            Ingredients const&... ingredients) {
  alphabet const letters(text);
  reading result = read_with<Element>(name, text, warm_up, heads, [&](bytes of) {
    return [&, pattern = make(of)](memory<Element>& past, index_t first, index_t count,
                                   std::vector<float>& found) {
      past.look(first, count, found, pattern, heed::on{threads}, ingredients...);
    };
  });
  result.is_causal = result.is_causal && is_causal(text, letters, heads, make);

  of_whole_text const pattern = make(text);
  double earlier_keys = 0;
  for_each_chunk(text, warm_up, [&](index_t first, index_t count) {
    result.pairs +=
        double(heed::kept_pairs(pattern, heed::call_shape{1, 1, heads, count, first + count - 1}));
    for (index_t i = first; i < first + count; ++i) earlier_keys += double(i * heads);
  });
  result.operations = result.pairs * 2 * double(head_dim + letters.size());
  result.share_visited = result.pairs / earlier_keys;
  return result;
}

/// A row of the table: a name, and the ingredients of attention. Without them, a line above a group of rows.
struct mechanism {
  std::string name;
  std::function<reading(bytes text, index_t warm_up, pool& threads)> run = {};
};

/// The pattern is made for each text.
template <class Element = float, index_t heads = 1, class... Ingredients>
mechanism row(std::string name, pattern_maker make, Ingredients... ingredients) {
  return {name, [=](bytes text, index_t warm_up, pool& threads) {
            return read_with_attention<Element>(name, text, warm_up, threads, heads, make,
                                                ingredients...);
          }};
}

/// The same pattern for all texts.
template <class Element = float, index_t heads = 1, heed::pattern Pattern, class... Ingredients>
mechanism row(std::string name, Pattern pattern, Ingredients... ingredients) {
  pattern_maker const make = [=](bytes text) { return of_whole_text{pattern, tokens_of(text)}; };
  return row<Element, heads>(name, make, ingredients...);
}

/// A state instead of the past.
mechanism state_row(std::string name, recurrence_maker make) {
  return {name, [=](bytes text, index_t warm_up, pool& threads) {
            auto const make_look = [&](bytes) -> look<float> {
              return [&threads, state = make(alphabet(text).size()), learned = index_t{0}](
                         memory<float>& past, index_t first, index_t count,
                         std::vector<float>& found) mutable {
                look_through(state, learned, past, first, count, found, threads);
              };
            };
            return read_with<float>(name, text, warm_up, 1, make_look);
          }};
}

constexpr float recency[] = {1.f / 16000};
constexpr float doubt[] = {12.5f};
constexpr float fades[] = {-1.f / 2000};
constexpr index_t sinks_of[] = {0, 64}, recent_of[] = {heed::unbounded, 960};  // two heads

std::vector<mechanism> mechanisms() {
  tensor_view<float const, 1> const slopes(recency, {1});
  tensor_view<float const, 2> const sinks(doubt, {1, 1});
  heed::streaming_heads const one_streams{{sinks_of, {1, 2}}, {recent_of, {1, 2}}};
  heed::causal const causal;
  std::span<float const> const fading(fades);
  return {
      row("the whole past", causal),
      row("the last 256", last(256)),
      row("the last 1024", last(1024)),
      row("the last 4096", last(4096)),
      row("first 1024 and last 1024", causal & (last(1024) | heed::first_keys{1024})),

      {"by distance or place, about 1024 keys a query:"},
      row("64 sinks and the last 960", heed::streaming{.sinks = 64, .recent = 960}),
      row("the nearest 1/18", heed::nearest_share{17. / 18}),
      row("every 4th of the last 4096", heed::dilated_window{.left = 4095, .right = 0, .step = 4}),
      row("every 18th", heed::strided(18)),
      row("one in 18 at random", one_in_18),
      row("the last 512 and every 36th",
          heed::factorised_local(512) | heed::factorised_strided(36)),
      row("own 1024 and ends of the others", heed::factorised_fixed({.length = 1024, .count = 32})),
      row("the older the sparser", sparser_with_age()),
      row("1, 2, 4, 8, ... back", heed::power_of_two_keys),
      row("the same in blocks of 128", heed::power_attention(128, 2, 1)),
      row("random blocks of 64", random_blocks),

      {"by sections of about 1024 characters:"},
      row("each for itself", sections_apart),
      row("and its last key for later ones", closed_sections),
      row("and the first for all", first_section_shared),
      row("and the first, and one before", demonstrations),
      row("and all for the last quarter", tail_sees_all),

      {"by what was read:"},
      row("after the same character", same_character),
      row("line ends stay, spaces leave", typed_characters),
      row("all for line starts, or 1024", all_at_line_starts),

      {"a state instead of the past:"},
      state_row("linear, squares of relu",
                linear(head_dim, true, heed::squared_relu{}, heed::normalised{})),
      state_row("BASED: 1 + s + s^2 / 2",
                linear(heed::taylor::features(head_dim), true, heed::taylor{},
                       heed::based_normaliser, heed::scale{48})),
      state_row("Performer, 256 features", performer),
      state_row("retention: fades in 2000", linear(head_dim, false, heed::fixed_decay(fading))),
      state_row("gated slots, 64 of them", gated_slots),
      state_row("the delta rule", delta_rule(0.15f, 0)),
      state_row("the gated delta rule", delta_rule(0.15f, -1e-4f)),
      state_row("EFLA: its exact steps", error_free(0.15f)),
      state_row("Titans: a matrix in training", titans),

      {"several heads, voting:"},
      row<float, 2>("two", causal),
      row<float, 2>("one, and one of 64 + 960", one_streams),
      row<float, 2>("groups of 2048, one shifted",
                    heed::shifted_groups{.size = 2048, .shifted_from = 1}),
      row<float, 4>("four spans, 1024 on average", four_spans),
      row<float, 4>("four, every 4th key each", causal & heed::head_strides{4}),

      {"scores, weights and numbers:"},
      row("alibi: the nearer the better", causal, heed::alibi{slopes}),
      row("softcap: scores below 30", causal, heed::softcap{30}),
      row("sink: free to stay undecided", causal, heed::softmax_with_sinks{sinks}),
      row("the last 1024, and a sink", last(1024), heed::softmax_with_sinks{sinks}),
      row<Eigen::half>("keys and values in half", causal),
      row<Eigen::bfloat16>("keys and values in bfloat16", causal),
  };
}

// --- Writing on --------------------------------------------------------------------------------

/// Draws a character. A temperature below 1 favours the likely ones.
char draw(std::span<float const> found, alphabet const& letters, frequencies const& frequency,
          double temperature, std::mt19937_64& random) {
  std::vector<double> weights;
  for (index_t n = 0; n < letters.size(); ++n)
    weights.push_back(std::pow(probability(found, letters, frequency, letters.character(size_t(n))),
                               1 / temperature));
  return letters.character(
      std::discrete_distribution<size_t>(weights.begin(), weights.end())(random));
}

struct writing {
  double characters_per_second;
  float difference;  // between the first step and the same prediction made by reading
};

/// Prints `length` characters that could follow `text`.
writing write_on(std::string text, size_t length, double temperature, std::uint64_t seed,
                 pool& threads) {
  alphabet const letters(text);
  index_t const symbols = letters.size();
  memory<float> past(text, letters, 1);
  frequencies frequency;
  for (char c : text) frequency.add(c);

  auto const capacity = text.size() + length;
  std::vector<float> keys(capacity * size_t(head_dim));
  std::vector<float> values(capacity * size_t(symbols));
  heed::kv_cache cache(heed::bnhd(keys.data(), 1, index_t(capacity), 1, head_dim),
                       heed::bnhd(values.data(), 1, index_t(capacity), 1, symbols));
  cache.append(past.key_view().slice(1, 0, past.length - 1), past.value_view());

  std::array<float, head_dim> here;
  auto const here_view = heed::bnhd(here.data(), 1, 1, 1, head_dim);
  auto const row = size_t(symbols);
  std::vector<float> found(row), chosen(row);
  std::mt19937_64 random(seed);

  // What reading the last few characters at once says about the next one.
  index_t const few = 32;
  std::vector<float> read;
  past.look(past.length - few, few, read, heed::causal{}, heed::on{threads});
  writing result{};

  auto const start = progress_bar::clock::now();
  for (size_t written = 0; written < length; ++written) {
    embed(text, 0, here);
    heed::attention(here_view, cache, heed::bnhd(found.data(), 1, 1, 1, symbols),
                    heed::scale{sharpness}, heed::causal{}, heed::on{threads});
    if (written == 0)
      for (size_t i = 0; i < row; ++i)
        result.difference =
            std::max(result.difference, std::abs(found[i] - read[read.size() - row + i]));
    char const next = draw(found, letters, frequency, temperature, random);
    std::putchar(next);
    std::fflush(stdout);

    // The query of this place is a key from now on, and its value is what was chosen.
    std::ranges::fill(chosen, 0.f);
    chosen[size_t(letters.number(next))] = 1;
    cache.append(here_view, heed::bnhd(chosen.data(), 1, 1, 1, symbols));
    frequency.add(next);
    text += next;
  }
  result.characters_per_second = double(length) / progress_bar::seconds_since(start);
  return result;
}

// --- What to compare with ----------------------------------------------------------------------

/// Bits per character of a code that knows only how frequent each character is.
double order_0_entropy(bytes text) {
  std::array<double, 256> count{};
  for (char c : text) ++count[byte(c)];
  double bits = 0;
  for (double n : count)
    if (n > 0) bits -= n * std::log2(n / double(text.size()));
  return bits / double(text.size());
}

/// The bits that `gzip -9` needs, or 0 if it cannot be run.
double gzip_bits(bytes text) {
  std::FILE* const file = std::tmpfile();
  if (file == nullptr) return 0;
  std::fwrite(text.data(), 1, text.size(), file);
  std::rewind(file);
  std::string const command =
      "(gzip -9 -c </dev/fd/" + std::to_string(fileno(file)) + " | wc -c) 2>/dev/null";
  long size = 0;
  if (std::FILE* const pipe = popen(command.c_str(), "r")) {
    if (std::fscanf(pipe, "%ld", &size) != 1) size = 0;
    pclose(pipe);
  }
  std::fclose(file);
  return 8.0 * double(size);
}

// --- The program -------------------------------------------------------------------------------

constexpr char const* usage = R"(A language model made of nothing but attention.

  induction_lm [FILE] [options]

Reads FILE ("-": standard input; default: heed's own headers), predicts every character from those
before it with each of heed's mechanisms, and then writes on by itself.

  --max N            read at most N characters (default 32768)
  --threads N        worker threads (default: all of the machine's)
  --prompt TEXT      what to continue, as if it stood at the end of the text
  --length N         how many characters to write (default 600)
  --temperature T    how daring: 0.1 repeats the likeliest, 1 draws as predicted (default 0.7)
  --seed N           of the random draws (default 1)
  --help             this
)";

struct options {
  std::string file;
  size_t max = 32768;
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::optional<std::string> prompt;
  size_t length = 600;
  double temperature = 0.7;
  std::uint64_t seed = 1;
  bool help = false;
};

/// Thrown for a command line that makes no sense.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Number>
Number parse_number(std::string const& option, std::string const& text, double least, double most) {
  char* end = nullptr;
  double const number = std::strtod(text.c_str(), &end);
  bool const whole = std::is_floating_point_v<Number> || number == std::floor(number);
  // Written so that NaN fails too.
  if (text.empty() || *end != '\0' || !(number >= least && number <= most) || !whole)
    throw usage_error(option + " cannot be \"" + text + "\"");
  return static_cast<Number>(number);
}

options parse(int argument_count, char** arguments) {
  options given;
  for (int i = 1; i < argument_count; ++i) {
    std::string const argument = arguments[i];
    auto value = [&]() -> std::string {
      if (++i == argument_count) throw usage_error(argument + " needs a value");
      return arguments[i];
    };
    if (argument == "--help" || argument == "-h")
      given.help = true;
    else if (argument == "--max")
      given.max = parse_number<size_t>(argument, value(), 1, 1e9);
    else if (argument == "--threads")
      given.threads = parse_number<int>(argument, value(), 1, 4096);
    else if (argument == "--prompt")
      given.prompt = value();
    else if (argument == "--length")
      given.length = parse_number<size_t>(argument, value(), 0, 1e6);
    else if (argument == "--temperature")
      given.temperature = parse_number<double>(argument, value(), 0.01, 100);
    else if (argument == "--seed")
      given.seed = parse_number<std::uint64_t>(argument, value(), 0, 1e15);
    else if (argument.size() > 1 && argument[0] == '-')
      throw usage_error("there is no option " + argument);
    else if (!given.file.empty())
      throw usage_error("one file, please; got " + given.file + " and " + argument);
    else
      given.file = argument;
  }
  return given;
}

std::string read_stream(std::istream& stream) {
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::string read_file(std::filesystem::path const& path) {
  if (std::filesystem::is_directory(path))
    throw std::runtime_error(path.string() + " is a folder; expected a file");
  std::ifstream stream(path, std::ios::binary);
  if (!stream)
    throw std::runtime_error("cannot open " + path.string() + ": " + std::strerror(errno));
  return read_stream(stream);
}

/// heed's headers one after the other, in the order of their paths.
std::string read_headers() {
  namespace files = std::filesystem;
  files::path const folder = files::path(HEED_SOURCE_DIR) / "include";
  if (!files::is_directory(folder))
    throw std::runtime_error("heed's headers are no longer in " + folder.string() +
                             "; name a file to read instead");
  std::vector<files::path> headers;
  for (auto const& entry : files::recursive_directory_iterator(folder))
    if (entry.path().extension() == ".hpp") headers.push_back(entry.path());
  std::ranges::sort(headers);
  std::string text;
  for (auto const& header : headers) text += read_file(header);
  return text;
}

std::string read_text(std::string const& file) {
  if (file.empty()) return read_headers();
  if (file == "-") return read_stream(std::cin);
  return read_file(file);
}

int run(options const& given) {
  constexpr size_t shortest = 64;
  std::string text = read_text(given.file);
  std::string const source = given.file.empty()  ? "heed's headers"
                             : given.file == "-" ? "standard input"
                                                 : given.file;
  if (text.empty()) throw std::runtime_error(source + " is empty: there is nothing to learn from");
  if (text.size() < shortest || given.max < shortest)
    throw std::runtime_error(
        "the text is too short: " + std::to_string(std::min(text.size(), given.max)) +
        " characters; prediction needs at least " + std::to_string(shortest));

  size_t const whole = text.size();
  text.resize(std::min(whole, given.max));
  auto const warm_up = index_t(std::min<size_t>(4096, text.size() / 4));
  auto const counted = double(text.size()) - double(warm_up);
  bytes const start = bytes(text).substr(0, size_t(warm_up));
  pool threads(given.threads);

  std::printf("%s: ", source.c_str());
  if (text.size() < whole) std::printf("the first ");
  std::printf("%zu characters, predicted after %td of warm-up, with %d thread%s\n\n", text.size(),
              warm_up, given.threads, given.threads == 1 ? "" : "s");
  char const* const line = "%-32s %9.3f";
  std::printf("%-32s %9s %8s %9s %9s %8s %8s\n", "", "bits/char", "seconds", "chars/s", "Gpairs/s",
              "GFLOP/s", "visited");
  std::printf(line, "order-0 entropy", order_0_entropy(text));
  std::printf("\n");
  if (double const bits = gzip_bits(text); bits > 0) {
    std::printf(line, "gzip -9", (bits - gzip_bits(start)) / counted);
    std::printf("\n");
  }

  bool all_causal = true;
  for (mechanism const& each : mechanisms()) {
    if (!each.run) {
      std::printf("\n%s\n", each.name.c_str());
      continue;
    }
    std::fflush(stdout);
    reading const result = each.run(text, warm_up, threads);
    std::printf(line, each.name.c_str(), result.bits_per_character);
    std::printf(" %8.2f %9.0f", result.seconds, result.characters / result.seconds);
    if (result.pairs > 0)
      std::printf(" %9.2f %8.1f %7.1f%%", result.pairs / result.seconds * 1e-9,
                  result.operations / result.seconds * 1e-9, 100 * result.share_visited);
    std::printf("\n");
    if (!result.is_causal)
      std::printf("  ^ sees the future: replacing later characters changed it\n");
    all_causal = all_causal && result.is_causal;
  }
  std::printf("\n%s\n",
              all_causal
                  ? "None sees the future: with all later characters replaced, every prediction "
                    "stays the same to the bit."
                  : "A mechanism sees the future: its figure means nothing.");

  bool agrees = true;
  if (given.length > 0) {
    std::string const prompt = given.prompt.value_or(given.file.empty() ? "template <class " : "");
    // Without a prompt, the end of the text is shown as one.
    std::string const lead = prompt.empty() ? text.substr(text.size() - shortest) : prompt;
    std::printf("\n%s", lead.c_str());
    writing const done =
        write_on(text + prompt, given.length, given.temperature, given.seed, threads);
    std::printf("\n\n%zu characters written, %.0f a second, from a cache of %zu keys.\n",
                given.length, done.characters_per_second,
                text.size() + prompt.size() + given.length - 1);
    std::printf("The first agrees with what reading says to %.0e.\n", double(done.difference));
    agrees = done.difference < 1e-4f;
    if (!agrees) std::printf("That is far too much: decoding is broken.\n");
  }
  return all_causal && agrees ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argument_count, char** arguments) {
  try {
    options const given = parse(argument_count, arguments);
    if (given.help) {
      std::fputs(usage, stdout);
      return EXIT_SUCCESS;
    }
    return run(given);
  } catch (usage_error const& problem) {
    std::fprintf(stderr, "induction_lm: %s. Try --help.\n", problem.what());
    return 2;
  } catch (std::exception const& problem) {
    std::fprintf(stderr, "induction_lm: %s\n", problem.what());
    return EXIT_FAILURE;
  }
}
