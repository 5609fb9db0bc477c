#pragma once

#include <heed/recur/memory/call.hpp>
#include <heed/recur/memory/chunk.hpp>
#include <heed/recur/memory/errors.hpp>
#include <heed/recur/memory/readings.hpp>

/// A memory that is a matrix, learns by the slope psi of any objective and is read through any map of its state:
///
///     e_t = W_ref^T k_t - v_t        X_t = alpha_t X_(t-1) - k_t (eta_t psi(e_t))^T        out_t = W_t^T q_t
///
/// W is a reading of the state X, and W_ref the one at the start of the current chunk.
namespace heed::recur {

/// What a call of matrix_memory reads and writes. A state that is not there is zeros to read and not written.
template <class T>
struct matrix_call {
  memory::operands<T> given;
  source<T> retention;  // with one channel
  source<T> rate;       // with one channel, or one for each of the value
  source<T> threshold;  // with one channel; without elements for objectives that have none
  index_t chunk = 1;
  index_t absorbed =
      0;  // keys of the current chunk that the state holds already, and `reference` does not
  tensor_view<T const, 4> initial, reference;
  tensor_view<T, 4> final, final_reference;
};

/// What its backward pass reads and writes besides. Sinks without elements are not written.
template <class T>
struct matrix_gradients {
  source<T> out;
  sink<T> query, key, value, retention, rate, threshold;
  tensor_view<T const, 4> final;
  tensor_view<T, 4> initial;
};

template <class T, template <class, class> class Error, template <class, class> class Reading,
          class Arch = xsimd::default_arch>
class matrix_memory {
 public:
  using math = memory::products<T, Arch>;
  using batch = typename math::batch;
  using panel = memory::panel<T>;
  using error_type = Error<T, Arch>;
  using reading_type = Reading<T, Arch>;

  matrix_memory(matrix_call<T> const& call, error_type const& error, reading_type const& reading)
      : call_(call),
        error_(error),
        reading_(reading),
        rows_(call.given.dim),
        columns_(call.given.value_dim) {
    index_t const longest =
        std::max(call.given.sequence.most_keys(), call.given.sequence.most_rows());
    together_ = std::max<index_t>(1, std::min({memory::most_together, call.chunk, longest}));
    // A chunk that does not end in the call may as well end right after it.
    chunk_ = std::min(call.chunk, call.absorbed + longest + 1);
  }

  /// The scratch memory that a worker needs.
  std::size_t bytes(bool backward) const {
    arena measure;
    room(measure, *this, backward);
    return measure.used();
  }

  /// One head of one sequence.
  void forward(index_t sequence, index_t head, std::byte* scratch, sink<T> const& out) const {
    arena memory(scratch);
    room own(memory, *this, false);
    memory::sequence_place const at = call_.given.sequence[sequence];
    load(own, sequence, head, at.keys == 1 && at.rows <= 1);
    read_first_rows(own, at, head, out);
    index_t inside = call_.absorbed;
    if (inside > 0) {
      memory::load_state<T, T const, Arch>(call_.reference, sequence, head, rows_, columns_,
                                           own.reference_state);
      prepare(own.reference_state, own.reference);
    }
    for (index_t t = 0; t < at.keys;) {
      index_t const count = tokens_from(t, inside, at.keys);
      if (inside == 0) begin_chunk(own, count < chunk_);
      learn(own, at, head, t, count);
      memory::row_span const rows = memory::rows_after(at, t, count);
      if (one_by_one(count)) {
        for (index_t j = 0; j < count; ++j) {
          index_t const row = j - (count - rows.count);
          take_up(own, at, head, j, row >= 0 ? rows.first + row : -1, out);
        }
      } else {
        read_together(own, at, head, count, rows, out);
        own.chunk.advance(own.c, {own.state, {}}, own.layer);
        own.current = false;
      }
      t += count;
      inside = (inside + count) % chunk_;
    }
    if (call_.final.data() != nullptr && own.state.data != &call_.final(sequence, head, 0, 0))
      memory::store_state(own.state, call_.final, sequence, head);
    if (inside > 0) memory::store_state(own.reference_state, call_.final_reference, sequence, head);
  }

  void backward(index_t sequence, index_t head, std::byte* scratch,
                matrix_gradients<T> const& to) const {
    arena memory(scratch);
    room own(memory, *this, true);
    memory::sequence_place const at = call_.given.sequence[sequence];
    memory::load_state<T, T const, Arch>(to.final, sequence, head, rows_, columns_, own.dstate);
    math::fill(rows_, columns_, own.dreference);
    load(own, sequence, head, false);
    // The states at the starts of blocks, with the one at the start of the chunk; and then, block by block from the
    // last, those at the starts of steps.
    index_t const block = block_tokens(), blocks = (at.keys + block - 1) / block;
    math::copy(rows_, columns_, own.state, own.reference_state);
    for (index_t n = 0; n < blocks; ++n) {
      math::copy(rows_, columns_, own.state, own.block_state(*this, 2 * n));
      math::copy(rows_, columns_, own.reference_state, own.block_state(*this, 2 * n + 1));
      if (n + 1 < blocks) sweep(own, at, head, n * block, (n + 1) * block, false);
    }
    for (index_t n = blocks; n-- > 0;) {
      math::copy(rows_, columns_, own.block_state(*this, 2 * n), own.state);
      math::copy(rows_, columns_, own.block_state(*this, 2 * n + 1), own.reference_state);
      index_t const tiles =
          sweep(own, at, head, n * block, std::min(at.keys, (n + 1) * block), true);
      for (index_t i = tiles; i-- > 0;) {
        tile_place const& tile = own.tiles[i];
        panel const reference = tile.reference < 0 ? own.block_state(*this, 2 * n + 1)
                                                   : own.step_state(*this, tile.reference);
        tile_backward(own, at, head, tile, reference, to);
      }
    }
    load(own, sequence, head, false);
    first_rows_backward(own, at, head, to);
    memory::store_state(own.dstate, to.initial, sequence, head);
  }

 private:
  /// A state as it is read: W = matrix diag(factors).
  struct state_read {
    panel matrix, place;
    T* factors = nullptr;
  };
  /// Tokens that are worked on together: the first, where in its chunk, the numbers of the states kept before it and at
  /// the start of its chunk, the latter negative if that is in another block.
  struct tile_place {
    index_t first, count, inside, step, reference;
  };

  /// Scratch memory, laid out.
  struct room {
    panel state, own;       // as it is before the tokens; where it lies if it is copied
    panel reference_state;  // at the start of a chunk that is not at its end yet
    state_read reference, last;
    bool current = false;  // whether `last` is of the state
    memory::layer_rows<T> layer;
    memory::layer_chunk<T, Arch> chunk;
    memory::coefficients<T, Arch> c;
    panel values, errors, slopes, rates, rows, out;
    T* thresholds;

    // Of the backward pass.
    panel dstate, dreference, dweights, dinput, derror, drates, dy, dx;
    T dfactor = 0;
    T *dretention, *dthreshold, *turned, *blocks, *steps;
    memory::coefficient_gradients<T, Arch> dc;
    tile_place* tiles;

    room(arena& memory, matrix_memory const& of, bool backward) {
      index_t const tokens = of.together_, D = of.rows_, E = of.columns_;
      auto const take = [&](index_t count, index_t columns) {
        return panel{memory.take<T>(count * math::padded(columns)), math::padded(columns)};
      };
      own = take(D, E);
      state = own;
      reference_state = take(D, E);
      for (state_read* each : {&reference, &last})
        *each = {{}, take(reading_type::of_state ? 0 : D, E), memory.take<T>(math::padded(E))};
      layer = {D, E, take(tokens, D), take(tokens, E), take(D, tokens), {}};
      chunk.take(memory, tokens, std::max(D, E), backward);
      c.take(memory, tokens);
      for (panel* each : {&values, &errors, &slopes, &rates, &out}) *each = take(tokens, E);
      rows = take(tokens, D);
      thresholds = memory.take<T>(tokens);
      if (!backward) return;
      layer.turned_error = take(E, tokens);
      for (panel* each : {&dstate, &dreference, &dweights}) *each = take(D, E);
      for (panel* each : {&derror, &drates, &dy}) *each = take(tokens, E);
      for (panel* each : {&dinput, &dx}) *each = take(tokens, D);
      dretention = memory.take<T>(tokens);
      dthreshold = memory.take<T>(tokens);
      turned = memory.take<T>(E * math::padded(D));
      dc.take(memory, tokens);
      index_t const keys = of.call_.given.sequence.most_keys(), block = of.block_tokens();
      index_t const size = D * math::padded(E);
      blocks = memory.take<T>(2 * ((keys + block - 1) / block) * size);
      steps = memory.take<T>((of.steps_of_block() + 1) * size);
      tiles = memory.take<tile_place>(of.tiles_of_block());
    }

    panel block_state(matrix_memory const& of, index_t n) const {
      index_t const stride = math::padded(of.columns_);
      return {blocks + n * of.rows_ * stride, stride};
    }
    panel step_state(matrix_memory const& of, index_t n) const {
      index_t const stride = math::padded(of.columns_);
      return {steps + n * of.rows_ * stride, stride};
    }
  };

  index_t tokens_from(index_t t, index_t inside, index_t keys) const {
    return std::min({together_, keys - t, chunk_ - inside});
  }
  bool one_by_one(index_t count) const { return reading_.each_token() || count == 1; }

  /// The tokens between states that the backward pass keeps for good: about as many of these as of the others.
  index_t block_tokens() const {
    double const keys = static_cast<double>(std::max<index_t>(1, call_.given.sequence.most_keys()));
    double const step = reading_.each_token() ? 1 : static_cast<double>(together_);
    return std::max(together_, static_cast<index_t>(std::ceil(std::sqrt(keys * step))));
  }
  /// A tile ends where it is full, or at the end of its chunk or of the block.
  index_t tiles_of_block() const {
    return block_tokens() / together_ + block_tokens() / chunk_ + 3;
  }
  index_t steps_of_block() const {
    return reading_.each_token() ? block_tokens() : tiles_of_block();
  }

  /// A single token is taken up where the state lies, if that can be.
  void load(room& own, index_t sequence, index_t head, bool one) const {
    tensor_view<T, 4> const& to = call_.final;
    bool const in_place = one && to.data() != nullptr && call_.initial.data() == to.data() &&
                          call_.initial.strides() == to.strides() && to.stride(3) == 1 &&
                          to.extent(3) % math::lanes == 0;
    own.state = in_place ? panel{&to(sequence, head, 0, 0), to.stride(2)} : own.own;
    own.current = false;
    if (!in_place)
      memory::load_state<T, T const, Arch>(call_.initial, sequence, head, rows_, columns_,
                                           own.state);
  }

  void prepare(panel state, state_read& to) const {
    reading_.prepare(rows_, columns_, state, to.place, to.factors);
    to.matrix = reading_type::of_state ? state : to.place;
  }
  /// The state as the reference of a chunk that begins; it is copied if it changes before the chunk ends.
  void begin_chunk(room& own, bool lasts) const {
    if (own.current)
      std::swap(own.reference, own.last);
    else
      prepare(own.state, own.reference);
    own.current = false;
    if (lasts) math::copy(rows_, columns_, own.state, own.reference_state);
    if (reading_type::of_state) own.reference.matrix = lasts ? own.reference_state : own.state;
  }

  static void times(index_t count, index_t columns, T const* factors, panel rows) {
    for (index_t r = 0; r < count; ++r)
      for (index_t c = 0; c < math::padded(columns); c += math::lanes)
        (batch::load_unaligned(rows[r] + c) * batch::load_unaligned(factors + c))
            .store_unaligned(rows[r] + c);
  }

  /// Errors of the keys, their slopes, and those times the rates, which the state takes up.
  void learn(room& own, memory::sequence_place const& at, index_t head, index_t first,
             index_t count) const {
    index_t const position = at.first_key + first;
    call_.retention.copy(at.batch, head, position, count, own.c.keep, 1);
    if (call_.threshold.extents()[3] > 0)
      call_.threshold.copy(at.batch, head, position, count, own.thresholds, 1);
    else
      std::fill_n(own.thresholds, count, T(0));
    std::fill_n(own.c.rate, count, T(1));
    std::fill_n(own.c.momentum, count, T(0));
    memory::load_rows<T, Arch>(call_.rate, at.batch, head, position, count, own.rates);
    if (call_.rate.dim() == 1)
      for (index_t j = 0; j < count; ++j)
        std::fill_n(own.rates[j], math::padded(columns_), T(own.rates[j][0]));
    memory::load_rows<T, Arch>(call_.given.key, at.batch, head, position, count, own.layer.input);
    memory::load_rows<T, Arch>(call_.given.value, at.batch, head, position, count, own.values);
    math::template multiply<false>(count, rows_, columns_, own.layer.input.scalars(),
                                   own.reference.matrix, own.errors);
    times(count, columns_, own.reference.factors, own.errors);
    math::each(
        count, columns_, [](batch y, batch v) { return y - v; }, own.errors, own.values);
    for (index_t j = 0; j < count; ++j)
      error_.apply(columns_, own.errors[j], own.thresholds[j], own.slopes[j]);
    math::each(
        count, columns_, [](batch, batch psi, batch rate) { return psi * rate; }, own.layer.error,
        own.slopes, own.rates);
  }

  void load_queries(room& own, memory::sequence_place const& at, index_t head, index_t g,
                    memory::row_span rows) const {
    memory::load_rows<T, Arch>(call_.given.query, at.batch, head * call_.given.group() + g,
                               at.first_row + rows.first, rows.count, own.rows);
  }

  /// Takes token j of the tile up and reads a row after it, if that is not negative.
  void take_up(room& own, memory::sequence_place const& at, index_t head, index_t j, index_t row,
               sink<T> const& out) const {
    memory::layer_rows<T> const token{
        rows_, columns_, own.layer.input.from_row(j), own.layer.error.from_row(j), {}, {}};
    index_t const group = call_.given.group();
    bool const reads = row >= 0 && group > 0;
    if (reads) load_queries(own, at, head, 0, {row, 1});
    bool const at_once = reads && reading_type::of_state;
    memory::layer_chunk<T, Arch>::advance_by_one(own.c.keep[j], T(0), T(1), {own.state, {}}, token,
                                                 at_once ? own.rows.data : nullptr, own.out.data);
    own.current = false;
    if (!reads) return;
    if (reading_.each_token()) {
      prepare(own.state, own.last);
      own.current = true;
    }
    state_read const& through = reading_.each_token() ? own.last : own.reference;
    for (index_t g = 0; g < group; ++g) {
      if (g > 0) load_queries(own, at, head, g, {row, 1});
      if (g > 0 || !at_once)
        math::template multiply<false>(1, rows_, columns_, own.rows.scalars(),
                                       reading_type::of_state ? own.state : through.matrix,
                                       own.out);
      times(1, columns_, through.factors, own.out);
      out.store(at.batch, head * group + g, at.first_row + row, 1, own.out.data, own.out.stride);
    }
  }

  void turn_inputs(room& own, index_t count) const {
    own.layer.turned_input.stride = math::padded(count);
    math::transpose(count, rows_, own.layer.input, own.layer.turned_input);
  }

  /// Rows that are read through the reference's factors, in closed form.
  void read_together(room& own, memory::sequence_place const& at, index_t head, index_t count,
                     memory::row_span rows, sink<T> const& out) const {
    own.c.compute(count);
    turn_inputs(own, count);
    for (index_t g = 0; g < call_.given.group(); ++g) {
      load_queries(own, at, head, g, rows);
      own.chunk.read(own.c, {own.state, {}}, own.layer, rows.count, own.rows, own.out);
      times(rows.count, columns_, own.reference.factors, own.out);
      out.store(at.batch, head * call_.given.group() + g, at.first_row + rows.first, rows.count,
                own.out.data, own.out.stride);
    }
  }

  /// Rows that stand before the first key read the initial state.
  void read_first_rows(room& own, memory::sequence_place const& at, index_t head,
                       sink<T> const& out) const {
    index_t const before = std::max<index_t>(0, at.rows - at.keys);
    if (before == 0) return;
    prepare(own.state, own.last);
    own.current = true;
    for (index_t g = 0; g < call_.given.group(); ++g)
      for (index_t i = 0; i < before; i += together_) {
        index_t const count = std::min(together_, before - i);
        load_queries(own, at, head, g, {i, count});
        math::template multiply<false>(count, rows_, columns_, own.rows.scalars(), own.last.matrix,
                                       own.out);
        times(count, columns_, own.last.factors, own.out);
        out.store(at.batch, head * call_.given.group() + g, at.first_row + i, count, own.out.data,
                  own.out.stride);
      }
  }

  // --- backward ---------------------------------------------------------------------------------

  /// Takes the state from token `first` to `last`; may keep it before each step, and after the last one, and list the tiles.
  /// Returns their number.
  index_t sweep(room& own, memory::sequence_place const& at, index_t head, index_t first,
                index_t last, bool keep) const {
    index_t inside = first % chunk_, tiles = 0, steps = 0, reference = -1;
    own.current = false;
    if (inside > 0) prepare(own.reference_state, own.reference);
    auto const keep_state = [&] {
      if (keep) math::copy(rows_, columns_, own.state, own.step_state(*this, steps++));
    };
    for (index_t t = first; t < last;) {
      index_t const count = tokens_from(t, inside, last);
      if (inside == 0) {
        begin_chunk(own, count < chunk_);
        reference = steps;
      }
      if (keep) own.tiles[tiles++] = {t, count, inside, steps, reference};
      learn(own, at, head, t, count);
      if (one_by_one(count)) {
        for (index_t j = 0; j < count; ++j) {
          if (j == 0 || reading_.each_token()) keep_state();
          take_up(own, at, head, j, -1, {});
        }
      } else {
        keep_state();
        own.c.compute(count);
        own.chunk.advance(own.c, {own.state, {}}, own.layer);
      }
      t += count;
      inside = (inside + count) % chunk_;
    }
    keep_state();
    return tiles;
  }

  /// What a row's gradient gives to its query and to the weights it read, W = through.matrix diag(through.factors).
  void read_backward(room& own, memory::sequence_place const& at, index_t head, index_t g,
                     memory::row_span rows, state_read const& through,
                     matrix_gradients<T> const& to) const {
    index_t const query_head = head * call_.given.group() + g;
    load_queries(own, at, head, g, rows);
    memory::load_rows<T, Arch>(to.out, at.batch, query_head, at.first_row + rows.first, rows.count,
                               own.dy);
    math::template multiply<true>(rows_, rows.count, columns_, own.rows.transposed_scalars(),
                                  own.dy, own.dweights);
    times(rows.count, columns_, through.factors, own.dy);
    math::multiply_transposed(rows.count, columns_, rows_, own.dy, through.matrix, own.dx,
                              own.turned);
    to.query.store(at.batch, query_head, at.first_row + rows.first, rows.count, own.dx.data,
                   own.dx.stride);
  }

  void first_rows_backward(room& own, memory::sequence_place const& at, index_t head,
                           matrix_gradients<T> const& to) const {
    index_t const before = std::max<index_t>(0, at.rows - at.keys);
    if (before == 0) return;
    prepare(own.state, own.last);
    math::fill(rows_, columns_, own.dweights);
    for (index_t g = 0; g < call_.given.group(); ++g)
      for (index_t i = 0; i < before; i += together_)
        read_backward(own, at, head, g, {i, std::min(together_, before - i)}, own.last, to);
    reading_.differentiate(rows_, columns_, own.state, own.last.matrix, own.last.factors,
                           own.dweights, T(0), own.dstate);
  }

  /// Tokens that are read through weights of their own, from the last: gradients of the state, the slopes times rates and
  /// the keys.
  void tokens_backward(room& own, memory::sequence_place const& at, index_t head,
                       tile_place const& tile, memory::row_span rows,
                       matrix_gradients<T> const& to) const {
    for (index_t j = tile.count; j-- > 0;) {
      panel const after = own.step_state(*this, tile.step + j + 1),
                  before = own.step_state(*this, tile.step + j);
      index_t const row = j - (tile.count - rows.count);
      if (row >= 0) {
        prepare(after, own.last);
        math::fill(rows_, columns_, own.dweights);
        for (index_t g = 0; g < call_.given.group(); ++g)
          read_backward(own, at, head, g, {rows.first + row, 1}, own.last, to);
        reading_.differentiate(rows_, columns_, after, own.last.matrix, own.last.factors,
                               own.dweights, T(0), own.dstate);
      }
      own.dretention[j] = math::dot(rows_, columns_, own.dstate, before);
      math::template multiply<false>(1, rows_, columns_, own.layer.input.from_row(j).scalars(),
                                     own.dstate, own.derror.from_row(j));
      math::multiply_transposed(1, columns_, rows_, own.layer.error.from_row(j), own.dstate,
                                own.dinput.from_row(j), own.turned);
      batch const keep(own.c.keep[j]);
      math::each(
          rows_, columns_, [&](batch d) { return keep * d; }, own.dstate);
    }
    auto const negate = [](batch d) { return -d; };
    math::each(tile.count, columns_, negate, own.derror);
    math::each(tile.count, rows_, negate, own.dinput);
  }

  /// The same of tokens that are read through the factors of the reference.
  void together_backward(room& own, memory::sequence_place const& at, index_t head,
                         tile_place const& tile, memory::row_span rows,
                         matrix_gradients<T> const& to) const {
    index_t const count = tile.count;
    memory::layer_state<T> const state{own.step_state(*this, tile.step), {}},
        dstate{own.dstate, {}};
    own.c.compute(count);
    turn_inputs(own, count);
    own.layer.turned_error.stride = math::padded(count);
    math::transpose(count, columns_, own.layer.error, own.layer.turned_error);
    own.dc.clear(count);
    own.chunk.advance_backward(own.c, state, own.layer, dstate, own.dc, own.dinput, own.derror);
    for (index_t g = 0; g < call_.given.group() && rows.count > 0; ++g) {
      index_t const query_head = head * call_.given.group() + g;
      load_queries(own, at, head, g, rows);
      memory::load_rows<T, Arch>(to.out, at.batch, query_head, at.first_row + rows.first,
                                 rows.count, own.dy);
      own.chunk.read(own.c, state, own.layer, rows.count, own.rows, own.out);
      own.dfactor += math::dot(rows.count, columns_, own.dy, own.out);
      times(rows.count, columns_, own.reference.factors, own.dy);
      own.chunk.read_backward(own.c, state, own.layer, rows.count, own.rows, own.dy, own.dx, dstate,
                              own.dc, own.dinput, own.derror);
      to.query.store(at.batch, query_head, at.first_row + rows.first, rows.count, own.dx.data,
                     own.dx.stride);
    }
    own.dc.compute(own.c);
    std::copy_n(own.dc.keep, count, own.dretention);
  }

  void tile_backward(room& own, memory::sequence_place const& at, index_t head,
                     tile_place const& tile, panel reference, matrix_gradients<T> const& to) const {
    prepare(reference, own.reference);
    learn(own, at, head, tile.first, tile.count);
    memory::row_span const rows = memory::rows_after(at, tile.first, tile.count);
    if (reading_.each_token())
      tokens_backward(own, at, head, tile, rows, to);
    else
      together_backward(own, at, head, tile, rows, to);

    // Through rates, slopes and errors to values, keys and the reference.
    panel const de = own.dy;
    for (index_t j = 0; j < tile.count; ++j) {
      math::each(
          1, columns_, [](batch, batch d, batch psi) { return d * psi; }, own.drates.from_row(j),
          own.derror.from_row(j), own.slopes.from_row(j));
      math::each(
          1, columns_, [](batch d, batch rate) { return d * rate; }, own.derror.from_row(j),
          own.rates.from_row(j));
      own.dthreshold[j] =
          error_.differentiate(columns_, own.errors[j], own.thresholds[j], own.derror[j], de[j]);
    }
    math::template multiply<true>(rows_, tile.count, columns_, own.layer.input.transposed_scalars(),
                                  de, own.dreference);
    math::copy(tile.count, columns_, de, own.out);
    times(tile.count, columns_, own.reference.factors, own.out);
    math::multiply_transposed(tile.count, columns_, rows_, own.out, own.reference.matrix, own.dx,
                              own.turned);
    math::each(
        tile.count, rows_, [](batch sum, batch more) { return sum + more; }, own.dinput, own.dx);
    math::each(
        tile.count, columns_, [](batch d) { return -d; }, de);
    index_t const position = at.first_key + tile.first;
    to.key.store(at.batch, head, position, tile.count, own.dinput.data, own.dinput.stride);
    to.value.store(at.batch, head, position, tile.count, de.data, de.stride);
    auto const store = [&](sink<T> const& into, T const* numbers, index_t stride) {
      if (into.extents()[3] > 0) into.store(at.batch, head, position, tile.count, numbers, stride);
    };
    store(to.retention, own.dretention, 1);
    store(to.threshold, own.dthreshold, 1);
    if (call_.rate.dim() == 1)
      for (index_t j = 0; j < tile.count; ++j) {
        T sum = 0;
        for (index_t c = 0; c < columns_; ++c) sum += own.drates[j][c];
        own.drates[j][0] = sum;
      }
    store(to.rate, own.drates.data, own.drates.stride);
    if (tile.inside > 0) return;
    reading_.differentiate(rows_, columns_, reference, own.reference.matrix, own.reference.factors,
                           own.dreference, own.dfactor, own.dstate);
    math::fill(rows_, columns_, own.dreference);
    own.dfactor = 0;
  }

  matrix_call<T> const& call_;
  error_type error_;
  reading_type reading_;
  index_t rows_, columns_;
  index_t chunk_ = 1;
  index_t together_ = 1;
};

}  // namespace heed::recur
