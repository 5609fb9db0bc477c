#pragma once

#include "reference/tensor.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

/// Linear recurrences, token by token in plain loops, with their gradients; and the same results from sums over pairs,
/// as a second definition. T is the type of all numbers and all sums.
namespace reference {

/// Where a row that features are made of stands: its batch entry and head in its own tensor, and its position in its
/// sequence; queries that read in order stand where the last key that they read does.
struct feature_place {
  bool of_query;
  index_t batch, head, position;
};

/// The feature map that changes nothing. Every map has these three functions.
struct identity_features {
  index_t count(index_t dim) const { return dim; }
  template <class T>
  std::vector<T> features(feature_place const&, std::vector<T> const& x) const {
    return x;
  }
  /// d loss / d x, from d loss / d features.
  template <class T>
  std::vector<T> gradient(feature_place const&, std::vector<T> const&,
                          std::vector<T> const& dfeatures) const {
    return dfeatures;
  }
};

enum class update_rule { additive, delta, exact_delta };

/// What a call reads. Those that it does without have no elements and extents of 0.
template <class T>
struct recurrence_operands {
  tensor<T, 4> query, key, value;
  tensor<T, 3> log_gate;        // [batch, key, heads]
  tensor<T, 4> log_key_gate;    // [batch, key, heads, features]
  tensor<T, 4> log_value_gate;  // [batch, key, heads, value channels]
  tensor<T, 3> rate;            // [batch, key, heads]
  tensor<T, 4> initial;         // [sequence, state head, features, columns]
};

template <class T>
struct recurrence_result {
  tensor<T, 4> out;
  tensor<T, 4> state;  // the final states
};

/// Named as the operands.
template <class T>
struct recurrence_gradients {
  tensor<T, 4> query, key, value;
  tensor<T, 3> log_gate;
  tensor<T, 4> log_key_gate, log_value_gate;
  tensor<T, 3> rate;
  tensor<T, 4> initial;
  /// The gradient of a log gate is also the sum over all later tokens of phi(q) . dphi(q) - phi(k) . dphi(k), and that of a
  /// value's of o do - v dv: the largest of these products, for one gate, for those of features and of channels.
  T gate_terms = 0, key_gate_terms = 0, value_gate_terms = 0;
};

/// (1 - e^(-rate size)) / size and its derivatives by rate and by size.
template <class T>
struct exact_rate {
  T value, by_rate, by_size;

  exact_rate(T rate, T size) {
    using std::exp, std::expm1;
    T const x = rate * size;
    by_rate = exp(-x);
    if (x < T(1e-3)) {
      // The series, as long as it is more exact than the formula.
      value = rate * (1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6)))));
      by_size = -rate * rate / 2 *
                (1 - x * 2 / 3 * (1 - x * 3 / 8 * (1 - x * 4 / 15 * (1 - x * 5 / 24))));
    } else {
      value = -expm1(-x) / size;
      by_size = (x * by_rate + expm1(-x)) / (size * size);
    }
  }
};

/// S_t = diag(e^g) S_{t-1} diag(e^h) + phi(k_t) u_t^T, where u_t is v_t; or, with a delta rule, the rate times the
/// difference of v_t and what the decayed state returns for the key. Row i of out reads phi(scale q_i)^T S after key i + (keys - rows), or the initial state
/// if there is none; or it reads the final state, if `dense`. Normalised, a value has one more column that is 1, and a
/// row is divided by what it reads there plus epsilon, or by at_least if that is more; 0 / 0 is 0.
///
/// Head h of the H of out uses head h n / H of a tensor with n heads. There are as many states as the largest number of
/// heads among the tensors over keys.
template <class Map = identity_features>
struct recurrence {
  double scale = 1;
  bool normalised = false;
  double epsilon = 1e-6;
  double at_least = -std::numeric_limits<double>::infinity();
  bool dense = false;
  index_t heads = 0;  // of out; as many as the queries or the states have, if 0
  update_rule rule = update_rule::additive;
  std::vector<index_t> query_offsets, key_offsets;  // of documents, if any
  Map map{};

  template <class T>
  recurrence_result<T> forward(recurrence_operands<T> const& x) const {
    recurrence_result<T> result = blank(x);
    for_each_state(x, [&](lane<T> const& at) {
      std::vector<T> state = initial_state(x, at);
      read(x, at, -1, state, result.out);
      for (index_t t = 0; t < at.keys; ++t) {
        update(x, at, t, state);
        read(x, at, t, state, result.out);
      }
      store(at, state, result.state);
    });
    return result;
  }

  /// forward() in chunks of some tokens, within which a triangular system is solved for what is written (the UT form);
  /// without value gates. Its rounding is not that of forward(), which erases errors of the state token by token.
  template <class T>
  recurrence_result<T> chunked(recurrence_operands<T> const& x, index_t tokens) const {
    recurrence_result<T> result = blank(x);
    for_each_state(x, [&](lane<T> const& at) {
      std::vector<T> state = initial_state(x, at);
      read(x, at, -1, state, result.out);
      for (index_t first = 0; first < at.keys; first += tokens) {
        std::vector<std::vector<T>> written;
        // Keys, and what is left of the state that the chunk began with, as they have faded at each token.
        struct moment {
          std::vector<std::vector<T>> keys;
          std::vector<T> start;
        };
        std::vector<moment> faded;
        // What vector a reads, from the state and from what was written.
        auto const reads = [&](std::vector<T> a, moment const& now, std::size_t count) {
          std::vector<T> sums(static_cast<std::size_t>(at.columns), T(0));
          for (std::size_t j = 0; j < count; ++j) {
            T const score = dot(a, now.keys[j]);
            for (std::size_t c = 0; c < sums.size(); ++c) sums[c] += score * written[j][c];
          }
          for (std::size_t f = 0; f < a.size(); ++f) a[f] *= now.start[f];
          std::vector<T> const before = product(at, a, state);
          for (std::size_t c = 0; c < sums.size(); ++c) sums[c] += before[c];
          return sums;
        };
        index_t const last = std::min(first + tokens, at.keys);
        for (index_t t = first; t < last; ++t) {
          token<T> const by = token_at(x, at, t);
          std::vector<T> const rows = exp_of(by.log_rows);
          moment now = faded.empty()
                           ? moment{{}, std::vector<T>(static_cast<std::size_t>(at.features), T(1))}
                           : faded.back();
          for (std::size_t f = 0; f < rows.size(); ++f) {
            now.start[f] *= rows[f];
            for (auto& key : now.keys) key[f] *= rows[f];
          }
          std::vector<T> write = by.value;
          if (rule != update_rule::additive) {
            std::vector<T> const returned = reads(by.key, now, written.size());
            for (std::size_t c = 0; c < write.size(); ++c)
              write[c] = by.rate * (write[c] - returned[c]);
          }
          written.push_back(write);
          now.keys.push_back(by.key);
          faded.push_back(now);
        }
        for (index_t t = first; t < last; ++t)
          for_each_reader(x, at, t, [&](row const& r) {
            auto const count = static_cast<std::size_t>(t - first) + 1;
            finish(at, r, reads(query_features(x, at, r), faded[count - 1], count), result.out);
          });
        moment const& end = faded.back();
        for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
          state[n] *= end.start[static_cast<std::size_t>(f)];
          for (std::size_t j = 0; j < written.size(); ++j)
            state[n] +=
                end.keys[j][static_cast<std::size_t>(f)] * written[j][static_cast<std::size_t>(c)];
        });
      }
      store(at, state, result.state);
    });
    return result;
  }

  /// The gradients of a loss, from its gradients by out and by the final states (or none).
  template <class T>
  recurrence_gradients<T> backward(recurrence_operands<T> const& x, tensor<T, 4> const& out,
                                   tensor<T, 4> const& dout,
                                   tensor<T, 4> const& dstate = {}) const {
    recurrence_gradients<T> d{
        tensor<T, 4>(x.query.extents),        tensor<T, 4>(x.key.extents),
        tensor<T, 4>(x.value.extents),        tensor<T, 3>(x.log_gate.extents),
        tensor<T, 4>(x.log_key_gate.extents), tensor<T, 4>(x.log_value_gate.extents),
        tensor<T, 3>(x.rate.extents),         tensor<T, 4>(blank(x).state.extents)};
    for_each_state(x, [&](lane<T> const& at) {
      std::vector<std::vector<T>> states{initial_state(x, at)};
      for (index_t t = 0; t < at.keys; ++t) {
        states.push_back(states.back());
        update(x, at, t, states.back());
      }
      std::vector<T> later(states[0].size(), T(0));  // d loss / d the state after key t
      if (!dstate.values.empty())
        for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
          later[n] = dstate(at.sequence, at.head, f, c);
        });
      for (index_t t = at.keys; t-- > 0;) {
        auto const after = static_cast<std::size_t>(t) + 1;
        read_backward(x, at, t, states[after], out, dout, d, later);
        update_backward(x, at, t, states[after - 1], d, later);
      }
      read_backward(x, at, -1, states[0], out, dout, d, later);
      store(at, later, d.initial);
    });
    return d;
  }

  /// forward() by sums over pairs of a query and a key, column by column; with a delta rule, what is written is the
  /// solution of a triangular system. No state is formed but the last.
  template <class T>
  recurrence_result<T> parallel(recurrence_operands<T> const& x) const {
    recurrence_result<T> result = blank(x);
    for_each_state(x, [&](lane<T> const& at) {
      std::vector<T> const first = initial_state(x, at);
      std::vector<token<T>> tokens;
      for (index_t t = 0; t < at.keys; ++t) tokens.push_back(token_at(x, at, t));
      std::vector<std::vector<T>> written(tokens.size());
      // sum_f a_f b_f times the gates of column c after key `after` up to key `last`.
      auto const decayed = [&](std::vector<T> const& a, auto const& b, index_t after, index_t last,
                               index_t c) {
        T sum = 0;
        for (index_t f = 0; f < at.features; ++f) {
          T log_decay = 0;
          for (index_t s = after + 1; s <= last; ++s)
            log_decay +=
                tokens[static_cast<std::size_t>(s)].log_rows[static_cast<std::size_t>(f)] +
                tokens[static_cast<std::size_t>(s)].log_columns[static_cast<std::size_t>(c)];
          sum += a[static_cast<std::size_t>(f)] * b(f) * std::exp(log_decay);
        }
        return sum;
      };
      // What vector a reads in column c from the state after key `last`, without what keys from `before` on wrote.
      auto const reads = [&](std::vector<T> const& a, index_t last, index_t before, index_t c) {
        T sum = decayed(
            a, [&](index_t f) { return first[entry(at, f, c)]; }, -1, last, c);
        for (index_t j = 0; j < before; ++j) {
          auto const& key = tokens[static_cast<std::size_t>(j)].key;
          sum += written[static_cast<std::size_t>(j)][static_cast<std::size_t>(c)] *
                 decayed(
                     a, [&](index_t f) { return key[static_cast<std::size_t>(f)]; }, j, last, c);
        }
        return sum;
      };
      for (index_t t = 0; t < at.keys; ++t)
        for (index_t c = 0; c < at.columns; ++c) {
          token<T> const& by = tokens[static_cast<std::size_t>(t)];
          T const value = by.value[static_cast<std::size_t>(c)];
          written[static_cast<std::size_t>(t)].push_back(
              rule == update_rule::additive ? value : by.rate * (value - reads(by.key, t, t, c)));
        }
      for_each_row(x, at, [&](row const& r) {
        std::vector<T> const query = query_features(x, at, r);
        index_t const last = dense ? at.keys - 1 : std::max<index_t>(r.position, -1);
        std::vector<T> sums;
        for (index_t c = 0; c < at.columns; ++c) sums.push_back(reads(query, last, last + 1, c));
        finish(at, r, sums, result.out);
      });
      std::vector<T> state(first.size());
      for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
        std::vector<T> unit(static_cast<std::size_t>(at.features), T(0));
        unit[static_cast<std::size_t>(f)] = 1;
        state[n] = reads(unit, at.keys - 1, at.keys, c);
      });
      store(at, state, result.state);
    });
    return result;
  }

 private:
  /// One state of one sequence.
  template <class T>
  struct lane {
    index_t sequence, batch, head;
    index_t first_row, rows, first_key, keys;  // of the sequence
    index_t heads;                             // of states
    index_t features, columns;                 // of a state
  };
  /// A row of out, and the position that it reads at.
  struct row {
    index_t index, head, position;
  };

  template <class T>
  static index_t state_heads(recurrence_operands<T> const& x) {
    return std::max({x.key.extent(2), x.value.extent(2), x.log_gate.extent(2),
                     x.log_key_gate.extent(2), x.log_value_gate.extent(2), x.rate.extent(2)});
  }
  template <class T>
  index_t out_heads(recurrence_operands<T> const& x) const {
    return heads > 0 ? heads : std::max(x.query.extent(2), state_heads(x));
  }
  index_t sequences(index_t batches) const {
    return key_offsets.empty() ? batches : static_cast<index_t>(key_offsets.size()) - 1;
  }

  template <class T>
  recurrence_result<T> blank(recurrence_operands<T> const& x) const {
    index_t const columns = x.value.extent(3) + (normalised ? 1 : 0);
    return {tensor<T, 4>({x.query.extent(0), x.query.extent(1), out_heads(x), x.value.extent(3)}),
            tensor<T, 4>({sequences(x.query.extent(0)), state_heads(x), map.count(x.key.extent(3)),
                          columns})};
  }

  template <class T, class Visit>
  void for_each_state(recurrence_operands<T> const& x, Visit visit) const {
    bool const documents = !key_offsets.empty();
    for (index_t s = 0; s < sequences(x.query.extent(0)); ++s) {
      auto const n = static_cast<std::size_t>(s);
      lane<T> at{.sequence = s,
                 .batch = documents ? 0 : s,
                 .head = 0,
                 .first_row = documents ? query_offsets[n] : 0,
                 .rows = documents ? query_offsets[n + 1] - query_offsets[n] : x.query.extent(1),
                 .first_key = documents ? key_offsets[n] : 0,
                 .keys = documents ? key_offsets[n + 1] - key_offsets[n] : x.key.extent(1),
                 .heads = state_heads(x),
                 .features = map.count(x.key.extent(3)),
                 .columns = x.value.extent(3) + (normalised ? 1 : 0)};
      for (; at.head < at.heads; ++at.head) visit(std::as_const(at));
    }
  }

  template <class T>
  static std::size_t entry(lane<T> const& at, index_t f, index_t c) {
    return static_cast<std::size_t>(f * at.columns + c);
  }
  template <class T, class Visit>
  static void for_each_entry(lane<T> const& at, Visit visit) {
    for (index_t f = 0; f < at.features; ++f)
      for (index_t c = 0; c < at.columns; ++c) visit(f, c, entry(at, f, c));
  }
  template <class T>
  static std::vector<T> initial_state(recurrence_operands<T> const& x, lane<T> const& at) {
    std::vector<T> state(static_cast<std::size_t>(at.features * at.columns), T(0));
    if (!x.initial.values.empty())
      for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
        state[n] = x.initial(at.sequence, at.head, f, c);
      });
    return state;
  }
  template <class T>
  static void store(lane<T> const& at, std::vector<T> const& state, tensor<T, 4>& to) {
    for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
      to(at.sequence, at.head, f, c) = state[n];
    });
  }

  /// The rows that read this state.
  template <class T, class Visit>
  void for_each_row(recurrence_operands<T> const& x, lane<T> const& at, Visit visit) const {
    index_t const group = out_heads(x) / at.heads;
    for (index_t i = 0; i < at.rows; ++i)
      for (index_t h = at.head * group; h < (at.head + 1) * group; ++h)
        visit(row{at.first_row + i, h, dense ? i : i + at.keys - at.rows});
  }
  /// Those among them that read it after key t, or at the start for t = -1.
  template <class T, class Visit>
  void for_each_reader(recurrence_operands<T> const& x, lane<T> const& at, index_t t,
                       Visit visit) const {
    for_each_row(x, at, [&](row const& r) {
      if ((dense ? at.keys - 1 : std::max<index_t>(r.position, -1)) == t) visit(r);
    });
  }

  template <class T>
  static index_t head_of(lane<T> const& at, index_t heads) {
    return at.head * heads / at.heads;
  }
  template <class T>
  static std::vector<T> vector_at(tensor<T, 4> const& x, index_t b, index_t i, index_t h) {
    std::vector<T> row;
    for (index_t d = 0; d < x.extent(3); ++d) row.push_back(x(b, i, h, d));
    return row;
  }

  template <class T>
  static feature_place key_place(recurrence_operands<T> const& x, lane<T> const& at, index_t t) {
    return {false, at.batch, head_of(at, x.key.extent(2)), t};
  }
  template <class T>
  std::vector<T> key_features(recurrence_operands<T> const& x, lane<T> const& at, index_t t) const {
    feature_place const place = key_place(x, at, t);
    return map.features(place, vector_at(x.key, at.batch, at.first_key + t, place.head));
  }
  template <class T>
  feature_place query_place(recurrence_operands<T> const& x, lane<T> const& at,
                            row const& r) const {
    return {true, at.batch, r.head * x.query.extent(2) / out_heads(x), r.position};
  }
  template <class T>
  std::vector<T> scaled_query(recurrence_operands<T> const& x, lane<T> const& at,
                              row const& r) const {
    std::vector<T> query = vector_at(x.query, at.batch, r.index, query_place(x, at, r).head);
    for (T& each : query) each *= static_cast<T>(scale);
    return query;
  }
  template <class T>
  std::vector<T> query_features(recurrence_operands<T> const& x, lane<T> const& at,
                                row const& r) const {
    return map.features(query_place(x, at, r), scaled_query(x, at, r));
  }

  template <class T>
  T rate(recurrence_operands<T> const& x, lane<T> const& at, index_t t,
         std::vector<T> const& key) const {
    T const given = x.rate(at.batch, at.first_key + t, head_of(at, x.rate.extent(2)));
    return rule == update_rule::exact_delta ? exact_rate<T>(given, dot(key, key)).value : given;
  }

  /// What a key does to a state.
  template <class T>
  struct token {
    std::vector<T> key, value;
    std::vector<T> log_rows, log_columns;  // gates of features and of columns
    T rate = 1;
  };
  template <class T>
  token<T> token_at(recurrence_operands<T> const& x, lane<T> const& at, index_t t) const {
    index_t const i = at.first_key + t;
    token<T> all;
    all.key = key_features(x, at, t);
    all.value = vector_at(x.value, at.batch, i, head_of(at, x.value.extent(2)));
    all.log_rows.resize(all.key.size(), T(0));
    all.log_columns.resize(all.value.size(), T(0));
    if (x.log_key_gate.extent(2) > 0)
      all.log_rows = vector_at(x.log_key_gate, at.batch, i, head_of(at, x.log_key_gate.extent(2)));
    if (x.log_value_gate.extent(2) > 0)
      all.log_columns =
          vector_at(x.log_value_gate, at.batch, i, head_of(at, x.log_value_gate.extent(2)));
    if (x.log_gate.extent(2) > 0)
      for (T& each : all.log_rows)
        each += x.log_gate(at.batch, i, head_of(at, x.log_gate.extent(2)));
    if (normalised) {
      all.value.push_back(T(1));
      all.log_columns.push_back(T(0));
    }
    if (rule != update_rule::additive) all.rate = rate(x, at, t, all.key);
    return all;
  }

  template <class T>
  static T dot(std::vector<T> const& a, std::vector<T> const& b) {
    T sum = 0;
    for (std::size_t n = 0; n < a.size(); ++n) sum += a[n] * b[n];
    return sum;
  }
  template <class T>
  static std::vector<T> exp_of(std::vector<T> logs) {
    using std::exp;
    for (T& each : logs) each = exp(each);
    return logs;
  }
  template <class T>
  static void decay(lane<T> const& at, token<T> const& by, std::vector<T>& state) {
    std::vector<T> const rows = exp_of(by.log_rows), columns = exp_of(by.log_columns);
    for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
      state[n] *= rows[static_cast<std::size_t>(f)] * columns[static_cast<std::size_t>(c)];
    });
  }
  /// a^T state.
  template <class T>
  static std::vector<T> product(lane<T> const& at, std::vector<T> const& a,
                                std::vector<T> const& state) {
    std::vector<T> sums(static_cast<std::size_t>(at.columns), T(0));
    for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
      sums[static_cast<std::size_t>(c)] += a[static_cast<std::size_t>(f)] * state[n];
    });
    return sums;
  }
  /// The value, less what the decayed state returns for the key if the rule is a delta rule.
  template <class T>
  std::vector<T> error_of(lane<T> const& at, token<T> const& by,
                          std::vector<T> const& state) const {
    std::vector<T> error = by.value;
    if (rule == update_rule::additive) return error;
    std::vector<T> const returned = product(at, by.key, state);
    for (std::size_t c = 0; c < error.size(); ++c) error[c] -= returned[c];
    return error;
  }
  template <class T>
  void update(recurrence_operands<T> const& x, lane<T> const& at, index_t t,
              std::vector<T>& state) const {
    token<T> const by = token_at(x, at, t);
    decay(at, by, state);
    std::vector<T> const error = error_of(at, by, state);
    for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
      state[n] +=
          by.key[static_cast<std::size_t>(f)] * (by.rate * error[static_cast<std::size_t>(c)]);
    });
  }

  /// What a row is divided by.
  template <class T>
  T divisor(T sum) const {
    return std::max(sum + static_cast<T>(epsilon), static_cast<T>(at_least));
  }
  template <class T>
  void finish(lane<T> const& at, row const& r, std::vector<T> const& sums,
              tensor<T, 4>& out) const {
    T const by = normalised ? divisor(sums.back()) : T(1);
    for (index_t c = 0; c < out.extent(3); ++c)
      out(at.batch, r.index, r.head, c) = by == 0 ? T(0) : sums[static_cast<std::size_t>(c)] / by;
  }
  template <class T>
  void read(recurrence_operands<T> const& x, lane<T> const& at, index_t t,
            std::vector<T> const& state, tensor<T, 4>& out) const {
    for_each_reader(x, at, t, [&](row const& r) {
      finish(at, r, product(at, query_features(x, at, r), state), out);
    });
  }
  template <class T>
  void read_backward(recurrence_operands<T> const& x, lane<T> const& at, index_t t,
                     std::vector<T> const& state, tensor<T, 4> const& out, tensor<T, 4> const& dout,
                     recurrence_gradients<T>& d, std::vector<T>& later) const {
    for_each_reader(x, at, t, [&](row const& r) {
      std::vector<T> const query = query_features(x, at, r);
      std::vector<T> dsums = vector_at(dout, at.batch, r.index, r.head);
      if (normalised) {
        T const sum = product(at, query, state).back(), by = divisor(sum);
        bool const bounded = sum + static_cast<T>(epsilon) < static_cast<T>(at_least);
        T dby = 0;
        for (index_t c = 0; c < out.extent(3); ++c)
          dby -= dout(at.batch, r.index, r.head, c) * out(at.batch, r.index, r.head, c);
        dsums.push_back(bounded ? T(0) : dby);
        for (T& each : dsums) each = by == 0 ? T(0) : each / by;
      }
      std::vector<T> dfeatures(query.size(), T(0));
      for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
        dfeatures[static_cast<std::size_t>(f)] += state[n] * dsums[static_cast<std::size_t>(c)];
        later[n] += query[static_cast<std::size_t>(f)] * dsums[static_cast<std::size_t>(c)];
      });
      note_terms(query, dfeatures, d);
      std::vector<T> const sums = product(at, query, state);
      for (std::size_t c = 0; c < sums.size(); ++c)
        d.value_gate_terms = std::max(d.value_gate_terms, std::abs(sums[c] * dsums[c]));
      feature_place const place = query_place(x, at, r);
      std::vector<T> dquery = map.gradient(place, scaled_query(x, at, r), dfeatures);
      for (T& each : dquery) each *= static_cast<T>(scale);
      add(dquery, d.query, at.batch, r.index, place.head);
    });
  }

  /// From the gradient by the state after key t to the gradient by the state before it.
  template <class T>
  void update_backward(recurrence_operands<T> const& x, lane<T> const& at, index_t t,
                       std::vector<T> const& before, recurrence_gradients<T>& d,
                       std::vector<T>& later) const {
    index_t const i = at.first_key + t;
    token<T> const by = token_at(x, at, t);
    std::vector<T> state = before;
    decay(at, by, state);
    std::vector<T> const error = error_of(at, by, state);
    // With R the gradient by the state after the key: dvalue = rate R^T key, dkey = rate R error, drate = key^T R error.
    std::vector<T> dkey(by.key.size(), T(0)), dvalue(error.size(), T(0));
    T drate = 0;
    for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
      T const k = by.key[static_cast<std::size_t>(f)], u = error[static_cast<std::size_t>(c)];
      dkey[static_cast<std::size_t>(f)] += by.rate * later[n] * u;
      dvalue[static_cast<std::size_t>(c)] += by.rate * later[n] * k;
      drate += k * later[n] * u;
    });
    if (rule != update_rule::additive) {
      // The error has the decayed state and the key in it.
      for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
        dkey[static_cast<std::size_t>(f)] -= state[n] * dvalue[static_cast<std::size_t>(c)];
        later[n] -= by.key[static_cast<std::size_t>(f)] * dvalue[static_cast<std::size_t>(c)];
      });
      index_t const h = head_of(at, x.rate.extent(2));
      if (rule == update_rule::exact_delta) {
        exact_rate<T> const exact(x.rate(at.batch, i, h), dot(by.key, by.key));
        for (std::size_t f = 0; f < dkey.size(); ++f)
          dkey[f] += 2 * drate * exact.by_size * by.key[f];
        drate *= exact.by_rate;
      }
      d.rate(at.batch, i, h) += drate;
    }
    note_terms(by.key, dkey, d);
    for (std::size_t c = 0; c < dvalue.size(); ++c)
      d.value_gate_terms = std::max(d.value_gate_terms, std::abs(by.value[c] * dvalue[c]));
    feature_place const place = key_place(x, at, t);
    add(map.gradient(place, vector_at(x.key, at.batch, i, place.head), dkey), d.key, at.batch, i,
        place.head);
    add(dvalue, d.value, at.batch, i, head_of(at, x.value.extent(2)));
    std::vector<T> drows(dkey.size(), T(0)), dcolumns(dvalue.size(), T(0));
    T dgate = 0;
    for_each_entry(at, [&](index_t f, index_t c, std::size_t n) {
      T const dlog = later[n] * state[n];
      drows[static_cast<std::size_t>(f)] += dlog;
      dcolumns[static_cast<std::size_t>(c)] += dlog;
      dgate += dlog;
    });
    if (x.log_gate.extent(2) > 0)
      d.log_gate(at.batch, i, head_of(at, x.log_gate.extent(2))) += dgate;
    if (x.log_key_gate.extent(2) > 0)
      add(drows, d.log_key_gate, at.batch, i, head_of(at, x.log_key_gate.extent(2)));
    if (x.log_value_gate.extent(2) > 0)
      add(dcolumns, d.log_value_gate, at.batch, i, head_of(at, x.log_value_gate.extent(2)));
    decay(at, by, later);
  }

  template <class T>
  static void note_terms(std::vector<T> const& phi, std::vector<T> const& dphi,
                         recurrence_gradients<T>& d) {
    d.gate_terms = std::max(d.gate_terms, std::abs(dot(phi, dphi)));
    for (std::size_t f = 0; f < phi.size(); ++f)
      d.key_gate_terms = std::max(d.key_gate_terms, std::abs(phi[f] * dphi[f]));
  }

  /// Adds as much of a row as the tensor holds.
  template <class T>
  static void add(std::vector<T> const& row, tensor<T, 4>& to, index_t b, index_t i, index_t h) {
    for (index_t e = 0; e < to.extent(3); ++e) to(b, i, h, e) += row[static_cast<std::size_t>(e)];
  }
};

}  // namespace reference
