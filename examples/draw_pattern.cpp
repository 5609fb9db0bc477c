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
#include <heed/pattern/any_pattern.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
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
using heed::index_t;
using heed::interval;
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
  /// How many queries and keys to draw, the position of the first query, and the query head.
  index_t rows = 64, keys = 64, head = 0;
  std::optional<index_t> first = {};

  explicit arguments(std::string const& defaults) {
    std::istringstream words(defaults);
    for (std::string word; words >> word;) {
      size_t const equals = word.find('=');
      names_.push_back(word.substr(0, equals));
      values_[names_.back()] = word.substr(equals + 1);
    }
  }

  void set(std::string const& name, std::string const& value) {
    constexpr index_t most = 4096;
    if (auto const place = values_.find(name); place != values_.end())
      place->second = value;
    else if (name == "rows")
      rows = number(name, value, 1, most);
    else if (name == "keys")
      keys = number(name, value, 1, most);
    else if (name == "head")
      head = number(name, value, 0, most);
    else if (name == "first")
      first = number(name, value, -most, most);
    else
      throw usage_error("there is no parameter \"" + name + "\"; there are " + names());
  }

  index_t operator[](std::string const& name) const { return number(name, values_.at(name)); }

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

  /// Numbers that live as long as these arguments.
  template <class T>
  std::span<T const> hold(std::vector<T> numbers) {
    auto const held = std::make_shared<std::vector<T> const>(std::move(numbers));
    held_.push_back(held);
    return *held;
  }

  /// Self-attention of so many tokens, whatever rows and keys say.
  void tokens(index_t count) { rows = keys = count; }

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

  std::vector<std::string> names_;
  std::map<std::string, std::string> values_;
  std::vector<std::shared_ptr<void const>> held_;
};

/// A line of the catalogue.
struct entry {
  char const* name;
  char const* parameters;  // with what they are unless given
  char const* summary;
  std::function<any_pattern(arguments&)> make;
};

// One line each is what makes a table.
// clang-format off
std::vector<entry> const catalogue{
    // Bands and columns
    {"dense", "", "every query meets every key", [](arguments&) { return heed::dense{}; }},
    {"causal", "", "the keys up to the query's own position", [](arguments&) { return heed::causal{}; }},
    {"sliding_window", "left=16 right=0", "the keys within reach on either side, -1 for no end",
     [](arguments& a) { return heed::sliding_window{a["left"], a["right"]}; }},
    {"first_keys", "count=8", "the leading keys, whatever the query",
     [](arguments& a) { return heed::first_keys{a["count"]}; }},
    {"key_lengths", "length=40", "padding: only so many keys exist",
     [](arguments& a) { return heed::key_lengths{a.hold(std::vector{a["length"]})}; }},
};
// clang-format on

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
  unbound.check(
      {.batches = 1, .sequences = 1, .heads = given.head + 1, .rows = rows, .keys = keys});
  auto const pattern = unbound.bind({.head = given.head, .rows = rows, .keys = keys});
  index_t const first = given.first.value_or(keys - rows);

  picture seen{.title = {}, .rows = rows, .keys = keys, .tile = tile};
  seen.kept.resize(size_t(rows * keys));
  for (index_t row = 0; row < rows; ++row)
    for (index_t key = 0; key < keys; ++key)
      if (pattern.keep(first + row, key)) {
        seen.kept[size_t(row * keys + key)] = true;
        ++seen.pairs;
      }

  // The word of a pattern about a tile is trusted by every kernel. Here it is not.
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

  // And so for the keys that one or several queries may meet.
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
  head               the query head, for patterns that differ by head (default 0)

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
      {"causal", "causal", {}},
      {"sliding_window", "sliding_window", {"left=15"}},
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
