// A random attention problem: operands of any shape and layout, ingredients for heed with their
// definition for the reference, and the comparison of both.
//
//     problem<float> p(seed);
//     return p.forward(std::tuple{p.causal(), p.softcap(), p.entropy()});
//
// The braces of the tuple are what evaluates the ingredients in order.
#pragma once

#include "reference/attention.hpp"
#include "support/error_rule.hpp"
#include "support/guarded.hpp"
#include "support/random.hpp"

#include <heed/softmax.hpp>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace support {

struct shape_limits {
  index_t positions = 150;
  index_t dim = 80;
  double pairs_times_dim = 6e5;  // over all batches and heads
  bool packed = false;           // one batch entry that holds several documents
  index_t queries = 0;           // at most so many, if not 0
};

template <class Q, class K = Q, class V = K, class O = Q>
class problem {
 public:
  using compute = heed::compute_type<Q, K, V, O>;
  using golden = std::conditional_t<std::is_same_v<compute, double>, long double, double>;

  random draw;
  index_t B, N, M, H, key_heads, value_heads, D, Dv;
  guarded<Q, 4> query, dquery;
  guarded<K, 4> key, dkey;
  guarded<V, 4> value, dvalue;
  guarded<O, 4> out, dout;
  guarded<compute, 3> lse, dlse;
  reference::options definition;

  explicit problem(seed_t seed, shape_limits const& limits = {}) : draw(seed) {
    draw_shape(limits);
    lse = make<compute, 3>({B, H, N}, false);
    query = make<Q, 4>({B, N, H, D}, true);
    out = make<O, 4>({B, N, H, Dv}, false);
    key = make<K, 4>({B, M, key_heads, D}, true);
    value = make<V, 4>({B, M, value_heads, Dv}, true);
    if constexpr (std::is_same_v<K, V>)
      if (value_heads == key_heads && Dv <= D && draw.one_in(4))
        value_in_key_ = draw.between(0, D - Dv);
    double const spread = draw.one_in(4) ? 4 : draw.one_in(10) ? 30 : 1;
    fill_normal(query, spread);
    fill_normal(key, 1);
    fill_normal(value, draw.one_in(10) ? 100 : 1);
  }

  /// The values, which may be columns of the keys.
  tensor_view<V const, 4> values() const {
    if constexpr (std::is_same_v<K, V>)
      if (value_in_key_ >= 0) return key.view().slice(3, value_in_key_, Dv);
    return value.view();
  }

  // --- Ingredients: each goes into the definition and is returned for the call
  // -------------------------------

  heed::scale scale() {
    definition.scale = draw.uniform(-0.5, 0.5);
    if (!differentiate_) return {*definition.scale};
    return {*definition.scale, watch_number(
                                   "dscale", [](auto const& g) { return g.scale; },
                                   [](auto const& g) { return g.scale_terms; })};
  }

  heed::row_scale<compute> row_scale() {
    auto& factors = own<compute, 3>({B, H, N}, true);
    factors.fill([&](auto const&) { return static_cast<compute>(draw.uniform(0.2, 2)); });
    definition.row_scale = factors.template values<double>();
    if (!differentiate_) return {factors.view()};
    return {factors.view(),
            watch<compute, 3>("drow_scale", {B, H, N}, [](auto const& g) { return g.row_scale; })};
  }

  heed::softcap softcap() {
    double const cap = draw.uniform(0.5, 20);
    std::size_t const place = add(reference::softcap{cap});
    if (!differentiate_) return {cap};
    return {cap, watch_number(
                     "dcap", [place](auto const& g) { return g.modifiers[place].values[0]; },
                     [place](auto const& g) { return g.modifier_terms[place]; })};
  }

  heed::alibi<float> alibi() {
    auto& slopes = own<float, 1>({H}, false);
    slopes.fill([&](auto const& at) {
      return draw.one_in(3) ? static_cast<float>(draw.uniform(-0.1, 0.5))
                            : heed::alibi<float>::slope(at[0], H);
    });
    std::size_t const place = add(reference::alibi{slopes.template values<double>().values});
    if (!differentiate_) return heed::alibi<float>(slopes.view());
    return heed::alibi<float>(slopes.view(),
                              watch<float, 1>("dslopes", {H}, [this, place](auto const& g) {
                                auto gradient = g.modifiers[place];
                                using T = typename decltype(gradient.values)::value_type;
                                reference::tensor<T, 1> slopes_gradient({H});
                                slopes_gradient.values = gradient.values;
                                return slopes_gradient;
                              }));
  }

  /// Random numbers, some of them -infinity; for bool, some of them false.
  template <class T>
  auto bias() {
    auto const one = [&](index_t extent) { return draw.one_in(3) ? index_t{1} : extent; };
    extents_of<4> const shape{one(B), one(H), one(N), one(M)};
    auto& numbers = own<T, 4>(shape, true);
    bool const hides = draw.one_in(2);
    double const infinity = std::numeric_limits<double>::infinity();
    numbers.fill([&](auto const&) {
      bool const hidden = hides && draw.one_in(5);
      if constexpr (std::is_same_v<T, bool>)
        return !hidden;
      else
        return T(static_cast<float>(hidden ? -infinity : draw.uniform(-3, 3)));
    });
    auto meaning = numbers.template values<double>();
    if (std::is_same_v<T, bool>)
      for (double& number : meaning.values) number = number != 0 ? 0 : -infinity;
    std::size_t const place = add(reference::bias{meaning});
    auto const view = std::as_const(numbers).view();
    if (!differentiate_) return heed::bias<T, compute>(view, {});
    return heed::bias<T, compute>(view, watch<compute, 4>("dbias", shape, [place](auto const& g) {
                                    return g.modifiers[place];
                                  }));
  }

  heed::softmax_with_sinks<float> sinks() {
    index_t const count = draw.between(1, 3);
    auto& logits = own<float, 2>({H, count}, false);
    bool const absent = draw.one_in(8);
    logits.fill([&](auto const&) {
      return absent ? -std::numeric_limits<float>::infinity()
                    : static_cast<float>(draw.uniform(-3, 3));
    });
    definition.sinks = logits.template values<double>();
    if (!differentiate_) return heed::softmax_with_sinks<float>(logits.view());
    return heed::softmax_with_sinks<float>(
        logits.view(),
        watch<float, 2>("dsinks", {H, count}, [](auto const& g) { return g.sinks; }));
  }

  heed::causal causal() {
    keep([](index_t, index_t p, index_t j) { return j <= p; });
    return {};
  }

  heed::sliding_window window() {
    auto const reach = [&] {
      return draw.one_in(4) ? heed::unbounded : draw.between(0, std::max<index_t>(M, 1));
    };
    heed::sliding_window const w{.left = reach(), .right = reach()};
    keep([w](index_t, index_t p, index_t j) { return in_window(w, p, j); });
    return w;
  }

  /// causal & (window | first keys)
  auto streaming() {
    heed::sliding_window const w{.left = draw.between(0, 40), .right = heed::unbounded};
    heed::first_keys const first{draw.between(0, 8)};
    keep([=](index_t, index_t p, index_t j) {
      return j <= p && (in_window(w, p, j) || j < first.count);
    });
    return heed::causal{} & (w | first);
  }

  /// Everything but a band, and the first keys.
  auto outside_window() {
    heed::sliding_window const w{.left = draw.between(0, 40), .right = draw.between(0, 40)};
    heed::first_keys const first{draw.between(0, 8)};
    keep([=](index_t, index_t p, index_t j) { return !in_window(w, p, j) || j < first.count; });
    return ~w | first;
  }

  /// One length a sequence: ask for documents first.
  heed::key_lengths key_lengths() {
    auto const& ends = definition.documents_of_keys;
    auto& lengths = own_indices(ends.empty() ? B : static_cast<index_t>(ends.size()) - 1);
    for (std::size_t b = 0; b < lengths.size(); ++b)
      lengths[b] = draw.between(0, ends.empty() ? M : ends[b + 1] - ends[b]);
    keep([&lengths](index_t sequence, index_t, index_t j) {
      return j < lengths[static_cast<std::size_t>(sequence)];
    });
    return {lengths};
  }

  heed::top_left top_left() {
    definition.align = reference::alignment::top_left;
    return {};
  }

  /// Ask for documents first.
  heed::query_positions query_positions() {
    index_t const packed = static_cast<index_t>(definition.documents_of_rows.size()) - 1;
    auto& positions = own<index_t, 2>({draw.one_in(2) ? 1 : packed > 0 ? packed : B, N}, false);
    positions.fill([&](auto const&) { return draw.between(-3, M + 3); });
    definition.positions = positions.template values<index_t>();
    return {positions.view()};
  }

  heed::documents documents() {
    index_t const count = draw.between(1, 6);
    auto cumulative = [&](index_t total) -> std::vector<index_t>& {
      auto& ends = own_indices(count + 1);
      for (index_t& end : ends) end = draw.between(0, total);
      ends.front() = 0;
      ends.back() = total;
      std::sort(ends.begin(), ends.end());
      return ends;
    };
    auto& rows = cumulative(N);
    auto& keys = cumulative(M);
    definition.documents_of_rows = rows;
    definition.documents_of_keys = keys;
    return {.queries = rows, .keys = keys};
  }

  // --- Observers: checked with the rest
  // ------------------------------------------------------------------------

  heed::row_max_into<compute> row_max() {
    return {observe<3>(
        "row max", {B, H, N}, [](auto const& r) { return r.row_max; },
        [](auto const&) { return 0; })};
  }
  heed::entropy_into<compute> entropy() {
    // A difference is as exact as its terms.
    return {observe<3>(
        "entropy", {B, H, N}, [](auto const& r) { return r.entropy; },
        [](auto const& r) {
          double largest = 1;
          for (golden x : r.lse.values)
            if (std::isfinite(x)) largest = std::max(largest, static_cast<double>(std::abs(x)));
          return largest;
        })};
  }
  heed::column_sums_into<compute> column_sums() {
    auto const sums = observe<3>(
        "column sums", {B, H, M}, [](auto const& r) { return r.column_sums; },
        [](auto const&) { return 0; });
    if (draw.one_in(2)) return heed::column_sums_into<compute>(sums);
    auto& weights = own<compute, 3>({B, H, N}, true);
    weights.fill([&](auto const&) { return static_cast<compute>(draw.uniform(-1, 1)); });
    definition.row_weights = weights.template values<double>();
    return heed::column_sums_into<compute>(sums, weights.view());
  }
  heed::top_keys_into<compute> top_keys() {
    index_t const count = draw.between(1, 9);
    auto& indices = own<index_t, 4>({B, H, N, count}, false);
    auto& weights = own<compute, 4>({B, H, N, count}, false);
    outputs_.push_back([&indices] { return indices.untouched_outside(); });
    outputs_.push_back([&weights] { return weights.untouched_outside(); });
    forward_checks_.push_back([&](auto const& exact, auto const&) {
      return complain_about_top_keys(exact, indices.template values<index_t>(),
                                     weights.template values<golden>());
    });
    return {indices.view(), weights.view()};
  }

  // --- The comparisons
  // --------------------------------------------------------------------------------------------

  template <class... Ingredients>
  std::string forward(std::tuple<Ingredients...> const& ingredients) {
    remember(query, key, value, out, lse);
    std::apply(
        [&](auto const&... each) {
          heed::attention(std::as_const(query).view(), std::as_const(key).view(), values(),
                          out.view(), heed::lse_into{lse.view()}, each...);
        },
        ingredients);

    auto const exact = defined<golden>();
    std::vector<reference::result<compute>> naive;
    for (auto order : reference::evaluations) naive.push_back(defined<compute>(order));
    std::string complaint =
        compare<O>("out", out.view(), exact, naive, [](auto const& r) { return r.out; }) +
        compare<compute>(
            "lse", lse.view(), exact, naive, [](auto const& r) { return r.lse; }, 1);
    for (auto const& check : forward_checks_) complaint += check(exact, naive);
    return with_shape(
        complaint + complain_about_memory(unwritten(query, key, value), written_inside(out, lse)));
  }

  /// Call before asking for ingredients: they then carry gradients, which backward() checks.
  void differentiate() { differentiate_ = true; }

  template <class... Ingredients>
  std::string backward(std::tuple<Ingredients...> const& ingredients) {
    dquery = make<Q, 4>({B, N, H, D}, false);
    dkey = make<K, 4>({B, M, key_heads, D}, false);
    dvalue = make<V, 4>({B, M, value_heads, Dv}, false);
    dout = make<O, 4>({B, N, H, Dv}, true);
    dlse = make<compute, 3>({B, H, N}, true);
    fill_normal(dout, 1);
    fill_normal(dlse, draw.one_in(3) ? 0 : 1);
    // A gradient is a function of the saved result, so all evaluations start from the same one.
    auto const saved = defined<golden>();
    out.fill([&](auto const& at) { return store<O>(saved.out(at[0], at[1], at[2], at[3])); });
    lse.fill([&](auto const& at) { return static_cast<compute>(saved.lse(at[0], at[1], at[2])); });

    remember(query, key, value, out, lse, dout, dlse, dquery, dkey, dvalue);
    std::apply(
        [&](auto const&... each) {
          heed::attention_backward(std::as_const(query).view(), std::as_const(key).view(), values(),
                                   std::as_const(out).view(), std::as_const(lse).view(),
                                   std::as_const(dout).view(), dquery.view(), dkey.view(),
                                   dvalue.view(), heed::lse_gradient{std::as_const(dlse).view()},
                                   each...);
        },
        ingredients);

    auto const exact = defined_backward<golden>();
    std::vector<reference::gradients<compute>> naive;
    for (auto order : reference::evaluations) naive.push_back(defined_backward<compute>(order));
    std::string complaint = compare_backward(exact, naive);
    // A score's gradient is a difference, which the definition may have exactly where a row meets one key only; and a
    // gradient of few numbers may be as good by luck.
    if (!complaint.empty()) {
      for (seed_t otherwise : {seed_t{1}, seed_t{2}, seed_t{3}})
        naive.push_back(defined_backward<compute>({}, otherwise));
      complaint = compare_backward(exact, naive);
    }
    return with_shape(complaint +
                      complain_about_memory(unwritten(query, key, value, out, lse, dout, dlse),
                                            written_inside(dquery, dkey, dvalue)));
  }

  template <class T>
  reference::result<T> defined(reference::evaluation order = {}) const {
    reference::options options = definition;
    options.order = order;
    return reference::attention(query.template values<T>(), key.template values<T>(),
                                read<T>(values()), options);
  }

 private:
  /// The gradients by the definition; with a seed, of operands that were rounded otherwise.
  template <class T>
  reference::gradients<T> defined_backward(reference::evaluation order = {},
                                           std::optional<seed_t> otherwise = {}) const {
    reference::options options = definition;
    options.order = order;
    random draw_error(otherwise.value_or(0));
    auto const operand = [&](auto tensor) {
      if (otherwise) round_otherwise(draw_error, tensor);
      return tensor;
    };
    auto const q = operand(query.template values<T>()), k = operand(key.template values<T>()),
               v = operand(read<T>(values())), saved = operand(out.template values<T>());
    return reference::attention_backward(q, k, v, saved, operand(lse.template values<T>()),
                                         dout.template values<T>(), dlse.template values<T>(),
                                         options);
  }

  template <class Exact, class Naive>
  std::string compare_backward(Exact const& exact, Naive const& naive) const {
    std::string complaint =
        compare<Q>("dquery", dquery.view(), exact, naive, [](auto const& g) { return g.query; }) +
        compare<K>("dkey", dkey.view(), exact, naive, [](auto const& g) { return g.key; }) +
        compare<V>("dvalue", dvalue.view(), exact, naive, [](auto const& g) { return g.value; });
    for (auto const& check : backward_checks_) complaint += check(exact, naive);
    return complaint;
  }

  void draw_shape(shape_limits const& limits) {
    auto const length = [&] {
      switch (draw.between(0, 9)) {
        case 0:
          return draw.between(0, 1);
        case 1:
          return index_t{1};
        case 2:
        case 3:
        case 4:
          return draw.between(2, 20);
        default:
          return draw.between(21, limits.positions);
      }
    };
    auto const dim = [&] {
      if (draw.one_in(6)) return draw.one_of(std::array<index_t, 6>{8, 16, 32, 64, 96, 128});
      return draw.between(1, limits.dim);
    };
    B = limits.packed ? 1 : draw.one_in(40) ? 0 : draw.between(1, 3);
    N = limits.queries > 0 ? draw.between(1, limits.queries) : length();
    M = length();
    H = draw.between(1, 6);
    // The error of a few numbers is a matter of luck, for the definition too.
    while (B > 0 && N > 0 && B * N * H < 12) ++H;
    auto const divisor_of_heads = [&] {
      index_t heads = draw.between(1, H);
      while (H % heads != 0) --heads;
      return draw.one_in(3) ? H : heads;
    };
    key_heads = divisor_of_heads();
    value_heads = draw.one_in(2) ? key_heads : divisor_of_heads();
    D = dim();
    Dv = draw.one_in(2) ? D : dim();
    while (static_cast<double>(std::max<index_t>(B, 1) * N * H) *
               static_cast<double>(M * (D + Dv)) >
           limits.pairs_times_dim) {
      index_t& longest = N > M ? N : M;
      longest = longest * 3 / 4;
    }
  }

  template <class T, int Rank>
  guarded<T, Rank> make(extents_of<Rank> const& extents, bool shared) {
    layout<Rank> where;
    if constexpr (Rank == 1)
      where = packed<1>(extents);
    else
      where = random_layout<Rank>(draw, extents, shared);
    return {extents, where, draw.between(0, 15)};
  }

  /// A tensor that lives as long as the problem.
  template <class T, int Rank>
  guarded<T, Rank>& own(extents_of<Rank> const& extents, bool input) {
    auto const tensor = std::make_shared<guarded<T, Rank>>(make<T, Rank>(extents, input));
    owned_.push_back(tensor);
    remember_.push_back([tensor] { tensor->remember(); });
    if (input) inputs_.push_back([tensor] { return tensor->untouched(); });
    return *tensor;
  }
  std::vector<index_t>& own_indices(index_t count) {
    return indices_.emplace_back(static_cast<std::size_t>(count));
  }

  template <class T>
  static T store(golden x) {
    return T(static_cast<heed::compute_type<T>>(x));
  }
  template <class T, int Rank>
  void fill_normal(guarded<T, Rank>& tensor, double spread) {
    tensor.fill(
        [&](auto const&) { return T(static_cast<heed::compute_type<T>>(spread * draw.normal())); });
  }

  std::size_t add(reference::modifier modifier) {
    definition.modifiers.push_back(std::move(modifier));
    return definition.modifiers.size() - 1;
  }

  /// Patterns asked for one after the other are meant to be combined with &.
  void keep(std::function<bool(index_t, index_t, index_t)> also) {
    if (!definition.keep) {
      definition.keep = std::move(also);
      return;
    }
    definition.keep = [first = std::move(definition.keep), second = std::move(also)](
                          index_t s, index_t p, index_t j) {
      return first(s, p, j) && second(s, p, j);
    };
  }
  static bool in_window(heed::sliding_window const& w, index_t p, index_t j) {
    return (w.left < 0 || j >= p - w.left) && (w.right < 0 || j <= p + w.right);
  }

  /// The 2x rule for what `select` takes from the definition, stored in elements of type Stored.
  template <class Stored, class View, class Exact, class Naive, class Select>
  static std::string compare(char const* name, View got, Exact const& exact,
                             std::vector<Naive> const& naive, Select select, double least = 0) {
    std::vector<decltype(select(naive[0]))> selected;
    for (auto const& each : naive) selected.push_back(select(each));
    return two_times_rule(name, read<golden>(got), select(exact), selected, epsilon<Stored>(),
                          least);
  }

  /// A tensor for heed to write, compared with what `select` takes from the definition.
  template <int Rank, class Select, class Least>
  tensor_view<compute, Rank> observe(char const* name, extents_of<Rank> const& extents,
                                     Select select, Least least) {
    auto& tensor = own<compute, Rank>(extents, false);
    outputs_.push_back([&tensor] { return tensor.untouched_outside(); });
    forward_checks_.push_back([=, &tensor](auto const& exact, auto const& naive) {
      return compare<compute>(name, tensor.view(), exact, naive, select, least(exact));
    });
    return tensor.view();
  }
  template <class T, int Rank, class Select>
  tensor_view<T, Rank> watch(char const* name, extents_of<Rank> const& extents, Select select) {
    auto& tensor = own<T, Rank>(extents, false);
    outputs_.push_back([&tensor] { return tensor.untouched_outside(); });
    backward_checks_.push_back([=, &tensor](auto const& exact, auto const& naive) {
      return compare<T>(name, tensor.view(), exact, naive, select);
    });
    return tensor.view();
  }
  template <class Select, class Terms>
  double* watch_number(char const* name, Select select, Terms terms) {
    auto const number = std::make_shared<double>(std::numeric_limits<double>::quiet_NaN());
    backward_checks_.push_back([=](auto const& exact, auto const& naive) {
      return compare<compute>(
          name, tensor_view<double, 1>(number.get(), {1}), exact, naive,
          [=](auto const& g) {
            auto const x = select(g);
            return reference::tensor<std::remove_const_t<decltype(x)>, 1>({1}, x);
          },
          static_cast<double>(terms(exact)));
    });
    owned_.push_back(number);
    return number.get();
  }

  template <class... Tensors>
  void remember(Tensors&... tensors) {
    (tensors.remember(), ...);
    for (auto const& each : remember_) each();
  }

  template <class... Tensors>
  static bool unwritten(Tensors&... tensors) {
    return (tensors.untouched() && ...);
  }
  template <class... Tensors>
  static bool written_inside(Tensors&... tensors) {
    return (tensors.untouched_outside() && ...);
  }
  std::string complain_about_memory(bool inputs_unwritten, bool inside) {
    for (auto const& untouched : inputs_) inputs_unwritten = untouched() && inputs_unwritten;
    for (auto const& untouched_outside : outputs_) inside = untouched_outside() && inside;
    return std::string(inputs_unwritten ? "" : "an input was written to\n") +
           (inside ? "" : "memory outside a result was written to\n");
  }

  /// The keys must be the top ones up to the rounding of scores, in order, without repetition.
  std::string complain_about_top_keys(reference::result<golden> const& exact,
                                      reference::tensor<index_t, 4> const& indices,
                                      reference::tensor<golden, 4> const& weights) {
    std::string complaint;
    auto const q = query.template values<golden>();
    auto const k = key.template values<golden>();
    golden const infinity = std::numeric_limits<golden>::infinity();
    reference::for_each_row(B, N, M, H, definition, [&](reference::row const& r) {
      std::vector<std::pair<golden, index_t>> scores;  // sorted: largest first, then lowest index
      for (index_t j = 0; j < r.keys; ++j) {
        if (!reference::kept(definition, r, j)) continue;
        golden const s = reference::score_steps(q, k, definition, r, j).back();
        if (s > -infinity) scores.emplace_back(-s, r.first_key + j);
      }
      std::sort(scores.begin(), scores.end());
      golden size = 1;
      for (auto const& [negated, j] : scores) size = std::max(size, std::abs(negated));
      golden const close = 64 * static_cast<golden>(epsilon<compute>()) * size;
      std::vector<index_t> seen;
      for (index_t t = 0; t < indices.extent(3); ++t) {
        index_t const j = indices(r.batch, r.head, r.index, t);
        golden const weight = weights(r.batch, r.head, r.index, t);
        auto const rank = static_cast<std::size_t>(t);
        if (rank >= scores.size()) {
          if (j != -1 || weight != 0) complaint += "an unused top key slot is not (-1, 0)\n";
          continue;
        }
        auto const found = std::find_if(scores.begin(), scores.end(),
                                        [&](auto const& s) { return s.second == j; });
        golden const expected = -scores[rank].first;
        if (found == scores.end() || std::find(seen.begin(), seen.end(), j) != seen.end() ||
            std::abs(-found->first - expected) > close ||
            std::abs(weight - std::exp(-found->first - exact.lse(r.batch, r.head, r.index))) >
                4 * close) {
          complaint += "top key " + std::to_string(t) + " of row " + std::to_string(r.index) +
                       " is " + std::to_string(j) + ", not " + std::to_string(scores[rank].second) +
                       "\n";
        }
        seen.push_back(j);
      }
    });
    return complaint;
  }

  std::string with_shape(std::string const& complaint) const {
    if (complaint.empty()) return {};
    auto const text = [](auto const& view) {
      return heed::shape_text(view.extents()) + " strides " + heed::shape_text(view.strides());
    };
    return complaint + "query " + text(query.view()) + "\nkey " + text(key.view()) + "\nvalue " +
           text(values()) + (value_in_key_ >= 0 ? " (in the keys)" : "") + "\nout " +
           text(out.view()) + "\n";
  }

  using forward_check = std::function<std::string(reference::result<golden> const&,
                                                  std::vector<reference::result<compute>> const&)>;
  using backward_check = std::function<std::string(
      reference::gradients<golden> const&, std::vector<reference::gradients<compute>> const&)>;

  index_t value_in_key_ = -1;  // the first of its columns, if the values are in the keys
  bool differentiate_ = false;
  std::vector<std::shared_ptr<void>> owned_;
  std::deque<std::vector<index_t>> indices_;
  std::vector<std::function<void()>> remember_;
  std::vector<std::function<bool()>> inputs_, outputs_;
  std::vector<forward_check> forward_checks_;
  std::vector<backward_check> backward_checks_;
};

}  // namespace support
