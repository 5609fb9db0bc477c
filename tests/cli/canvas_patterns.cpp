#include "cli/pattern_test.hpp"
#include "reference/patterns/neighborhood.hpp"

// The patterns of canvases, as heed_conformance runs them.

using namespace cli;

namespace {

/// A predicate over coordinates of each axis, as one on tokens.
template <class F>
auto on_axes(std::vector<index_t> canvas, F f) {
  return [=](index_t, index_t, index_t q, index_t k) {
    auto const x = reference::coordinates_of(q, canvas), y = reference::coordinates_of(k, canvas);
    for (std::size_t a = 0; a < canvas.size(); ++a)
      if (!f(a, x[a], y[a])) return false;
    return true;
  };
}

std::vector<index_t> draw_canvas(attention_files& c, std::size_t axes, index_t most) {
  std::vector<index_t> canvas = c.numbers(static_cast<index_t>(axes), 1, most);
  c.stands_at_row = true;
  c.keys = 1;
  for (index_t extent : canvas) c.keys *= extent;
  c.rows = c.keys;
  return canvas;
}

/// A table of relative positions: row-major over the axes, steps of `apart`, the difference 0 in the middle.
void with_table(attention_files& c, std::vector<index_t> canvas, std::vector<index_t> window,
                std::vector<index_t> apart, bool key_first = false) {
  c.entries = 1;
  for (index_t each : window) c.entries *= 2 * each - 1;
  c.entry = [=](index_t q, index_t k) {
    auto const x = reference::coordinates_of(q, canvas), y = reference::coordinates_of(k, canvas);
    index_t entry = 0;
    for (std::size_t a = 0; a < canvas.size(); ++a) {
      index_t const steps = (x[a] - y[a]) / apart[a];
      entry = entry * (2 * window[a] - 1) + (key_first ? -steps : steps) + window[a] - 1;
    }
    return entry;
  };
}

std::vector<pattern_test> const tests{
    {"local_monotone",
     [](attention_files& c) {
       index_t const radius = c.draw.between(0, 12);
       c.set("radius", radius);
       c.stands_at_row = true;
       c.keep = on_pairs([=](index_t t, index_t s) { return std::abs(s - t) <= radius; });
     }},
    {"neighborhood",
     [](attention_files& c) {
       auto const canvas = draw_canvas(c, static_cast<std::size_t>(c.draw.between(1, 3)), 6);
       std::vector<reference::axis> axes;
       std::vector<index_t> window, stride, dilation, causal;
       for (index_t length : canvas) {
         reference::axis a{.length = length};
         a.dilation = c.draw.one_in(2) ? 1 : c.draw.between(1, length);
         a.window = c.draw.between(1, length / a.dilation);
         a.stride = c.draw.one_in(2) ? 1 : c.draw.between(1, a.window);
         a.causal = c.draw.one_in(3);
         axes.push_back(a);
         window.push_back(a.window);
         stride.push_back(a.stride);
         dilation.push_back(a.dilation);
         causal.push_back(a.causal);
       }
       c.set("canvas", canvas);
       c.set("window", window);
       c.set("stride", stride);
       c.set("dilation", dilation);
       c.set("causal", causal);
       with_table(c, canvas, window, dilation, true);
       c.keep = on_pairs(
           [=](index_t q, index_t k) { return reference::neighborhood_keeps(axes, q, k); });
     }},
    {"packed_canvases",
     [](attention_files& c) {
       auto const axes = static_cast<std::size_t>(c.draw.between(1, 2));
       std::vector<index_t> const window = c.numbers(static_cast<index_t>(axes), 1, 3);
       index_t const count = c.draw.between(1, 3);
       std::vector<index_t> extents, first{0};
       std::vector<std::vector<reference::axis>> canvases;
       for (index_t n = 0; n < count; ++n) {
         canvases.emplace_back();
         index_t tokens = 1;
         for (std::size_t a = 0; a < axes; ++a) {
           extents.push_back(c.draw.between(window[a], 6));
           tokens *= extents.back();
           canvases.back().push_back({extents.back(), window[a], 1, 1, false});
         }
         first.push_back(first.back() + tokens);
       }
       c.rows = c.keys = first.back();
       c.stands_at_row = true;
       c.save("canvases", {count, static_cast<index_t>(axes)}, extents);
       c.set("window", window);
       c.keep = on_pairs([=](index_t q, index_t k) {
         for (std::size_t n = 0; n < canvases.size(); ++n)
           if (q < first[n + 1])
             return k >= first[n] && k < first[n + 1] &&
                    reference::neighborhood_keeps(canvases[n], q - first[n], k - first[n]);
         return false;
       });
     }},
    {"dilated_neighborhood",
     [](attention_files& c) {
       auto const canvas = draw_canvas(c, 2, 8);
       index_t const least = std::min(canvas[0], canvas[1]), dilation = c.draw.between(1, least),
                     window = c.draw.between(1, least / dilation);
       c.set("canvas", canvas);
       c.set("window", window);
       c.set("dilation", dilation);
       std::vector<reference::axis> const axes{{canvas[0], window, 1, dilation, false},
                                               {canvas[1], window, 1, dilation, false}};
       with_table(c, canvas, {window, window}, {dilation, dilation}, true);
       c.keep = on_pairs(
           [=](index_t q, index_t k) { return reference::neighborhood_keeps(axes, q, k); });
     }},
    {"inward_window",
     [](attention_files& c) {
       auto const canvas = draw_canvas(c, 3, 5);
       auto const reach = c.numbers(2, 0, 3);
       bool const clipped = c.draw.one_in(2);
       c.set("canvas", canvas);
       c.set("reach", reach);
       if (clipped) c.set("border", std::string("clipped"));
       c.keep = on_axes(canvas, [=](std::size_t a, index_t y, index_t z) {
         if (a == 0) return true;
         index_t const d = reach[a - 1], L = canvas[a];
         if (clipped) return std::abs(y - z) <= d;
         return 2 * d + 1 >= L || (y - d - std::max<index_t>(0, d + y - L + 1) <= z &&
                                   z <= y + d + std::max<index_t>(0, d - y));
       });
     }},
    {"window_partition",
     [](attention_files& c) {
       auto const canvas = draw_canvas(c, static_cast<std::size_t>(c.draw.between(1, 3)), 7);
       std::vector<index_t> window, shift;
       for (std::size_t a = 0; a < canvas.size(); ++a) {
         window.push_back(c.draw.between(1, 6));
         shift.push_back(c.draw.between(0, window.back() - 1));
       }
       c.set("canvas", canvas);
       c.set("window", window);
       c.set("shift", shift);
       with_table(c, canvas, window, std::vector<index_t>(canvas.size(), 1));
       c.keep = on_axes(canvas, [=](std::size_t a, index_t y, index_t z) {
         return reference::window_number(y, window[a], shift[a]) ==
                reference::window_number(z, window[a], shift[a]);
       });
     }},
    {"shifted_windows",
     [](attention_files& c) {
       auto const canvas = draw_canvas(c, 2, 9);
       index_t const window = c.draw.between(1, 5);
       bool const shifted = c.draw.one_in(2);
       c.set("canvas", canvas);
       c.set("window", window);
       c.set("shifted", std::string(shifted ? "true" : "false"));
       with_table(c, canvas, {window, window}, {1, 1});
       c.keep = on_axes(canvas, [=](std::size_t a, index_t y, index_t z) {
         index_t const shift = shifted && canvas[a] > window ? window / 2 : 0;
         return reference::window_number(y, window, shift) ==
                reference::window_number(z, window, shift);
       });
     }},
    {"grid_partition",
     [](attention_files& c) {
       std::vector<index_t> const cells = c.numbers(2, 1, 4), apart = c.numbers(2, 1, 3);
       std::vector<index_t> const canvas{cells[0] * apart[0], cells[1] * apart[1]};
       c.stands_at_row = true;
       c.rows = c.keys = canvas[0] * canvas[1];
       c.set("canvas", canvas);
       c.set("cells", cells);
       with_table(c, canvas, cells, apart);
       c.keep = on_axes(canvas, [=](std::size_t a, index_t y, index_t z) {
         return y % apart[a] == z % apart[a];
       });
     }},
    {"multi_axis",
     [](attention_files& c) {
       index_t const size = c.draw.between(1, 4);
       std::vector<index_t> const apart = c.numbers(2, 1, 3);
       std::vector<index_t> const canvas{size * apart[0], size * apart[1]};
       bool const grid = c.draw.one_in(2);
       c.stands_at_row = true;
       c.rows = c.keys = canvas[0] * canvas[1];
       c.set("canvas", canvas);
       c.set("size", size);
       c.set("layer", std::string(grid ? "grid" : "block"));
       with_table(c, canvas, {size, size}, grid ? apart : std::vector<index_t>{1, 1});
       c.keep = on_axes(canvas, [=](std::size_t a, index_t y, index_t z) {
         return grid ? y % apart[a] == z % apart[a] : y / size == z / size;
       });
     }},
    {"axial",
     [](attention_files& c) {
       auto const canvas = draw_canvas(c, 3, 5);
       auto const axis = static_cast<std::size_t>(c.draw.between(0, 2));
       c.set("canvas", canvas);
       c.set("axis", static_cast<index_t>(axis));
       c.keep = on_axes(canvas,
                        [=](std::size_t a, index_t y, index_t z) { return a == axis || y == z; });
     }},
    {"halo", [](attention_files& c) {
       std::vector<index_t> canvas, queries, block, halo, stride;
       c.rows = c.keys = 1;
       for (int a = 0; a < 2; ++a) {
         stride.push_back(c.draw.between(1, 2));
         block.push_back(stride.back() * c.draw.between(1, 3));
         canvas.push_back(block.back() * c.draw.between(1, 3));
         halo.push_back(c.draw.between(0, 3));
         queries.push_back(canvas.back() / stride.back());
         c.rows *= queries.back();
         c.keys *= canvas.back();
       }
       c.stands_at_row = true;
       c.set("canvas", canvas);
       c.set("block", block);
       c.set("halo", halo);
       c.set("query_stride", stride);
       c.keep = on_pairs([=](index_t q, index_t k) {
         auto const x = reference::coordinates_of(q, queries),
                    y = reference::coordinates_of(k, canvas);
         for (std::size_t a = 0; a < 2; ++a)
           if (!reference::halo_keeps(canvas[a], block[a], halo[a], stride[a], x[a], y[a]))
             return false;
         return true;
       });
     }}};

}  // namespace

TEST_CASE("heed_conformance: patterns of canvases", "[cli][patterns]") {
  check_patterns(tests);
}
