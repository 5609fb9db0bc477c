#pragma once

#include <heed/recur/memory/call.hpp>
#include <heed/recur/memory/chunk.hpp>
#include <heed/simd/activations.hpp>
#include <heed/simd/fma.hpp>

#include <array>

/// A memory that is a network of matrices with silu between them, and learns keys and values by gradient descent with
/// momentum and forgetting while it is read.
namespace heed {

/// The matrices of a network, or their momenta, or gradients: layer l is [sequences, heads, d_l, d_(l+1)], where d_0
/// is the head_dim of keys and the last d the one of values. A linear memory is one layer. At most 8.
template <class T>
class memory_layers {
 public:
  static constexpr std::size_t most = 8;

  memory_layers() = default;
  template <class... V>
    requires(sizeof...(V) >= 1 && sizeof...(V) <= most &&
             (std::is_convertible_v<V, tensor_view<T, 4>> && ...))
  memory_layers(V const&... layers) : views_{tensor_view<T, 4>(layers)...}, count_(sizeof...(V)) {}
  /// Layers of mutable numbers are also layers of constant ones.
  template <class U>
    requires(!std::is_same_v<U, T> && std::is_convertible_v<U (*)[], T (*)[]>)
  memory_layers(memory_layers<U> const& other) : count_(other.size()) {
    for (std::size_t l = 0; l < count_; ++l) views_[l] = other[l];
  }

  std::size_t size() const { return count_; }
  /// A view of nothing where there is no such layer.
  tensor_view<T, 4> const& operator[](std::size_t layer) const { return views_[layer]; }

 private:
  std::array<tensor_view<T, 4>, most> views_{};
  std::size_t count_ = 0;
};

namespace recur {

/// What a call of network_memory reads and writes. Layers that are not there are zeros to read and not written.
template <class T>
struct network_call {
  memory::operands<T> given;
  source<T> rate, momentum, forget;  // with one channel
  index_t chunk = 1;
  index_t absorbed =
      0;  // keys of the current chunk that the memory holds already, and `reference` does not
  memory_layers<T const> weights, moving, reference;
  memory_layers<T> final_weights, final_moving, final_reference;
};

/// What its backward pass reads and writes besides. A gate's sink without elements is not written.
template <class T>
struct network_gradients {
  source<T> out;
  sink<T> query, key, value, rate, momentum, forget;
  memory_layers<T const> final_weights, final_moving;
  memory_layers<T> weights, moving;
};

template <class T, class Arch = xsimd::default_arch>
class network_memory {
 public:
  using math = memory::products<T, Arch>;
  using batch = typename math::batch;
  using panel = memory::panel<T>;

  explicit network_memory(network_call<T> const& call) : call_(call), depth_(call.weights.size()) {
    width_[0] = call.given.dim;
    for (std::size_t l = 0; l < depth_; ++l) width_[l + 1] = call.weights[l].extent(3);
    widest_ = *std::max_element(width_.begin(), width_.begin() + static_cast<index_t>(depth_) + 1);
    index_t const longest =
        std::max(call.given.sequence.most_keys(), call.given.sequence.most_rows());
    together_ = std::max<index_t>(1, std::min({memory::most_together, call.chunk, longest}));
    // A chunk that does not end in the call may as well end right after it.
    chunk_ = std::min(call.chunk, call.absorbed + longest + 1);
  }

  /// The scratch memory that a worker needs.
  std::size_t bytes(bool backward) const {
    arena measure;
    room(measure, call_, *this, backward);
    return measure.used();
  }

  /// One head of one sequence.
  void forward(index_t sequence, index_t head, std::byte* scratch, sink<T> const& out) const {
    arena memory(scratch);
    room own(memory, call_, *this, false);
    memory::sequence_place const at = call_.given.sequence[sequence];
    bool const one = at.keys == 1 && at.rows <= 1;
    load(own, sequence, head, one);
    read_first_rows(own, at, head, out);
    index_t inside = call_.absorbed;
    for (index_t t = 0; t < at.keys;) {
      index_t const count = tokens_from(t, inside, at.keys);
      if (inside == 0) begin_chunk(own, inside + count < chunk_);
      learn(own, at, head, t, count);
      memory::row_span const rows = memory::rows_after(at, t, count);
      if (count == 1) {
        for (index_t g = 0; g < std::max<index_t>(1, call_.given.group()); ++g)
          read_by_one(own, at, head, g, rows, out);
      } else {
        turn_inputs(own, count);
        for (index_t g = 0; g < call_.given.group(); ++g) {
          read(own, at, head, g, rows, own.rows);
          out.store(at.batch, head * call_.given.group() + g, at.first_row + rows.first, rows.count,
                    own.rows[depth_].data, own.rows[depth_].stride);
        }
        advance(own);
      }
      t += count;
      inside = (inside + count) % chunk_;
    }
    store(own, sequence, head, inside);
  }

  void backward(index_t sequence, index_t head, std::byte* scratch,
                network_gradients<T> const& to) const {
    arena memory(scratch);
    room own(memory, call_, *this, true);
    memory::sequence_place const at = call_.given.sequence[sequence];
    for (std::size_t l = 0; l < depth_; ++l) {
      own.load_gradient(*this, l, to.final_weights[l], sequence, head, own.after[l].weights);
      own.load_gradient(*this, l, to.final_moving[l], sequence, head, own.after[l].momentum);
      math::fill(width_[l], width_[l + 1], own.dreference[l]);
    }
    load(own, sequence, head, false);
    // The states at the starts of blocks of chunks, and then, block by block from the last, those of tiles.
    index_t const block = block_tokens(), blocks = (at.keys + block - 1) / block;
    for (index_t n = 0; n < blocks; ++n) {
      own.save(*this, own.block_starts, n, own.state);
      if (n + 1 < blocks) sweep(own, at, head, n * block, (n + 1) * block, false);
    }
    for (index_t n = blocks; n-- > 0;) {
      own.restore(*this, own.block_starts, n, own.state);
      index_t const first = n * block, last = std::min(at.keys, first + block);
      index_t const tiles = sweep(own, at, head, first, last, true);
      // Tiles again, from the last.
      index_t const per_chunk = (chunk_ + together_ - 1) / together_;
      for (index_t tile = tiles; tile-- > 0;) {
        index_t const in_chunk = tile % per_chunk * together_;
        index_t const t = first + tile / per_chunk * chunk_ + in_chunk;
        index_t const count = tokens_from(t, in_chunk, last);
        for (std::size_t l = 0; l < depth_; ++l) {
          own.state[l] = own.saved(*this, own.tile_starts, tile, l);
          own.reference[l] = own.saved(*this, own.tile_starts, tile - tile % per_chunk, l).weights;
        }
        tile_backward(own, at, head, t, count, in_chunk == 0, to);
      }
    }
    own.own_state();
    load(own, sequence, head, false);
    first_rows_backward(own, at, head, to);
    for (std::size_t l = 0; l < depth_; ++l) {
      memory::store_state(own.after[l].weights, to.weights[l], sequence, head);
      memory::store_state(own.after[l].momentum, to.moving[l], sequence, head);
    }
  }

 private:
  static constexpr std::size_t most = memory_layers<T>::most;
  using states = std::array<memory::layer_state<T>, most>;

  /// Scratch memory, laid out.
  struct room {
    states state, own;  // as it is before the tokens; where it lies if it is copied
    std::array<panel, most> reference, copied;  // what gradients are taken at, and where that lies
    std::array<memory::layer_rows<T>, most> layers;
    std::array<panel, most> slope;     // silu' of hidden rows
    std::array<panel, most + 1> rows;  // what each layer reads for queries
    panel values;
    memory::coefficients<T, Arch> c;
    memory::layer_chunk<T, Arch> chunk;
    T* turned = nullptr;  // for transposed products

    // Of the backward pass.
    states after;  // gradients of the state
    std::array<panel, most> dreference;
    std::array<panel, most> hidden, ahead;  // y and u of the keys' hidden rows
    std::array<panel, most> dinput, derror, row_slope;
    panel dy, dx;
    memory::coefficient_gradients<T, Arch> dc;
    T *block_starts = nullptr, *tile_starts = nullptr;

    room(arena& memory, network_call<T> const& call, network_memory const& of, bool backward) {
      index_t const tokens = of.together_, wide = math::padded(of.widest_);
      auto const take = [&](index_t count, index_t columns) {
        return panel{memory.take<T>(count * math::padded(columns)), math::padded(columns)};
      };
      c.take(memory, tokens);
      chunk.take(memory, tokens, of.widest_, backward);
      turned = memory.take<T>(of.widest_ * std::max(wide, math::padded(tokens)));
      rows[0] = take(tokens, of.width_[0]);
      for (std::size_t l = 0; l < of.depth_; ++l) {
        index_t const in = of.width_[l], out = of.width_[l + 1];
        own[l] = {take(in, out), take(in, out)};
        copied[l] = take(in, out);
        layers[l] = {in, out, take(tokens, in), take(tokens, out), take(in, tokens), {}};
        slope[l] = take(tokens, out);
        rows[l + 1] = take(tokens, out);
        if (!backward) continue;
        layers[l].turned_error = take(out, tokens);
        after[l] = {take(in, out), take(in, out)};
        dreference[l] = take(in, out);
        hidden[l] = take(tokens, out);
        ahead[l] = take(tokens, out);
        dinput[l] = take(tokens, in);
        derror[l] = take(tokens, out);
        row_slope[l] = take(tokens, out);
      }
      values = take(tokens, of.width_[of.depth_]);
      own_state();
      if (!backward) return;
      dy = take(tokens, of.widest_);
      dx = take(tokens, of.widest_);
      dc.take(memory, tokens);
      index_t const keys = call.given.sequence.most_keys(), block = of.block_tokens();
      block_starts = memory.take<T>((keys + block - 1) / block * of.saved_size());
      tile_starts = memory.take<T>(of.tiles_of_block() * of.saved_size());
    }

    void own_state() { state = own; }

    memory::layer_state<T> saved(network_memory const& of, T* from, index_t n,
                                 std::size_t layer) const {
      T* at = from + n * of.saved_size();
      for (std::size_t l = 0; l < layer; ++l) at += 2 * of.matrix_size(l);
      index_t const stride = math::padded(of.width_[layer + 1]);
      return {{at, stride}, {at + of.matrix_size(layer), stride}};
    }
    void save(network_memory const& of, T* to, index_t n, states const& from) const {
      for (std::size_t l = 0; l < of.depth_; ++l) {
        auto const place = saved(of, to, n, l);
        math::copy(of.width_[l], of.width_[l + 1], from[l].weights, place.weights);
        math::copy(of.width_[l], of.width_[l + 1], from[l].momentum, place.momentum);
      }
    }
    void restore(network_memory const& of, T* from, index_t n, states& to) {
      own_state();
      for (std::size_t l = 0; l < of.depth_; ++l) {
        auto const place = saved(of, from, n, l);
        math::copy(of.width_[l], of.width_[l + 1], place.weights, to[l].weights);
        math::copy(of.width_[l], of.width_[l + 1], place.momentum, to[l].momentum);
      }
    }
    void load_gradient(network_memory const& of, std::size_t l, tensor_view<T const, 4> from,
                       index_t sequence, index_t head, panel to) const {
      memory::load_state<T, T const, Arch>(from, sequence, head, of.width_[l], of.width_[l + 1],
                                           to);
    }
  };

  index_t matrix_size(std::size_t l) const { return width_[l] * math::padded(width_[l + 1]); }
  index_t saved_size() const {
    index_t size = 0;
    for (std::size_t l = 0; l < depth_; ++l) size += 2 * matrix_size(l);
    return size;
  }

  /// How many tokens are worked on together, from token t on that is the `inside`th of its chunk.
  index_t tokens_from(index_t t, index_t inside, index_t keys) const {
    return std::min({together_, keys - t, chunk_ - inside});
  }
  /// The tokens between states that the backward pass keeps for good: whole chunks, about as many tiles as there are blocks.
  index_t block_tokens() const {
    index_t const keys = std::max<index_t>(1, call_.given.sequence.most_keys());
    index_t const per_chunk = (std::min(chunk_, keys) + together_ - 1) / together_;
    double const tiles = static_cast<double>((keys + chunk_ - 1) / chunk_ * per_chunk);
    auto const wanted = static_cast<index_t>(std::ceil(std::sqrt(tiles)));
    return (wanted + per_chunk - 1) / per_chunk * chunk_;
  }
  index_t tiles_of_block() const {
    index_t const keys = call_.given.sequence.most_keys();
    index_t const tokens = std::min(block_tokens(), keys);
    return (tokens + chunk_ - 1) / chunk_ *
           ((std::min(chunk_, std::max<index_t>(1, keys)) + together_ - 1) / together_);
  }

  /// Whether a single token can be taken up where the state lies.
  bool in_place(tensor_view<T const, 4> from, tensor_view<T, 4> to) const {
    return to.data() != nullptr && from.data() == to.data() && from.strides() == to.strides() &&
           to.stride(3) == 1 && to.extent(3) % math::lanes == 0;
  }
  static panel place_of(tensor_view<T, 4> view, index_t sequence, index_t head) {
    return {&view(sequence, head, 0, 0), view.stride(2)};
  }

  void load(room& own, index_t sequence, index_t head, bool one) const {
    own.own_state();
    own.reference = own.copied;
    for (std::size_t l = 0; l < depth_; ++l) {
      auto const look = [&](memory_layers<T const> const& from, memory_layers<T> const& to,
                            panel& place) {
        if (one && in_place(from[l], to[l]))
          place = place_of(to[l], sequence, head);
        else
          memory::load_state<T, T const, Arch>(from[l], sequence, head, width_[l], width_[l + 1],
                                               place);
      };
      look(call_.weights, call_.final_weights, own.state[l].weights);
      look(call_.moving, call_.final_moving, own.state[l].momentum);
      if (call_.absorbed > 0) look(call_.reference, call_.final_reference, own.reference[l]);
    }
  }
  void store(room const& own, index_t sequence, index_t head, index_t inside) const {
    auto const put = [&](panel from, tensor_view<T, 4> to) {
      if (to.data() != nullptr && from.data != &to(sequence, head, 0, 0))
        memory::store_state(from, to, sequence, head);
    };
    for (std::size_t l = 0; l < depth_; ++l) {
      put(own.state[l].weights, call_.final_weights[l]);
      put(own.state[l].momentum, call_.final_moving[l]);
      if (inside > 0) put(own.reference[l], call_.final_reference[l]);
    }
  }

  /// The reference of the chunk that begins: the weights where they lie, or a copy if they change before it ends.
  void begin_chunk(room& own, bool lasts) const {
    for (std::size_t l = 0; l < depth_; ++l) {
      own.reference[l] = lasts ? own.copied[l] : own.state[l].weights;
      if (lasts) math::copy(width_[l], width_[l + 1], own.state[l].weights, own.reference[l]);
    }
  }

  static batch silu(batch y) { return y * heed::simd::sigmoid(y); }
  static batch silu_slope(batch y) {
    batch const gate = heed::simd::sigmoid(y), one(T(1));
    return gate * simd::fma(y, one - gate, one);
  }
  static batch silu_curvature(batch y) {
    batch const gate = heed::simd::sigmoid(y), one(T(1));
    return gate * (one - gate) * simd::fma(y, one - gate - gate, one + one);
  }

  /// What the reference says of the keys: inputs and error rows of all layers.
  void learn(room& own, memory::sequence_place const& at, index_t head, index_t first,
             index_t count, bool keep_for_backward = false) const {
    auto const gate = [&](source<T> const& from, T* to) {
      from.copy(at.batch, head, at.first_key + first, count, to, 1);
    };
    gate(call_.rate, own.c.rate);
    gate(call_.momentum, own.c.momentum);
    gate(call_.forget, own.c.keep);
    for (index_t t = 0; t < count; ++t) own.c.keep[t] = 1 - own.c.keep[t];
    if (count > 1 || keep_for_backward) own.c.compute(count);

    index_t const position = at.first_key + first;
    memory::load_rows<T, Arch>(call_.given.key, at.batch, head, position, count,
                               own.layers[0].input);
    memory::load_rows<T, Arch>(call_.given.value, at.batch, head, position, count, own.values);
    for (std::size_t l = 0; l < depth_; ++l) {
      memory::layer_rows<T>& layer = own.layers[l];
      math::template multiply<false>(count, layer.inputs, layer.outputs, layer.input.scalars(),
                                     own.reference[l], layer.error);
      if (l + 1 == depth_) {
        math::each(
            count, layer.outputs, [](batch y, batch v) { return y - v; }, layer.error, own.values);
        break;
      }
      if (keep_for_backward) math::copy(count, layer.outputs, layer.error, own.hidden[l]);
      math::each(
          count, layer.outputs, [](batch, batch y) { return silu(y); }, own.layers[l + 1].input,
          layer.error);
      math::each(
          count, layer.outputs, [](batch, batch y) { return silu_slope(y); }, own.slope[l],
          layer.error);
    }
    for (std::size_t l = depth_ - 1; l-- > 0;) {
      memory::layer_rows<T> const &layer = own.layers[l], &next = own.layers[l + 1];
      math::multiply_transposed(count, next.outputs, next.inputs, next.error, own.reference[l + 1],
                                layer.error, own.turned);
      if (keep_for_backward) math::copy(count, layer.outputs, layer.error, own.ahead[l]);
      math::each(
          count, layer.outputs, [](batch u, batch slope) { return u * slope; }, layer.error,
          own.slope[l]);
    }
  }

  void turn_inputs(room& own, index_t count) const {
    for (std::size_t l = 0; l < depth_; ++l) {
      memory::layer_rows<T>& layer = own.layers[l];
      layer.turned_input.stride = math::padded(count);
      math::transpose(count, layer.inputs, layer.input, layer.turned_input);
    }
  }
  void advance(room& own) const {
    for (std::size_t l = 0; l < depth_; ++l) own.chunk.advance(own.c, own.state[l], own.layers[l]);
  }

  void load_queries(room& own, memory::sequence_place const& at, index_t head, index_t g,
                    memory::row_span rows) const {
    memory::load_rows<T, Arch>(call_.given.query, at.batch, head * call_.given.group() + g,
                               at.first_row + rows.first, rows.count, own.rows[0]);
  }

  /// Rows of one head of queries through the layers; the last panel gets the result.
  void read(room& own, memory::sequence_place const& at, index_t head, index_t g,
            memory::row_span rows, std::array<panel, most + 1>& through,
            bool keep_for_backward = false) const {
    load_queries(own, at, head, g, rows);
    for (std::size_t l = 0; l < depth_; ++l) {
      own.chunk.read(own.c, own.state[l], own.layers[l], rows.count, through[l], through[l + 1]);
      if (l + 1 == depth_) break;
      if (keep_for_backward)
        math::each(
            rows.count, width_[l + 1], [](batch, batch y) { return silu_slope(y); },
            own.row_slope[l], through[l + 1]);
      math::each(
          rows.count, width_[l + 1], [](batch y) { return silu(y); }, through[l + 1]);
    }
  }

  /// Takes a single token up, with the first head of queries, and reads what it left with the others.
  void read_by_one(room& own, memory::sequence_place const& at, index_t head, index_t g,
                   memory::row_span rows, sink<T> const& out) const {
    bool const reads = rows.count > 0 && g < call_.given.group();
    if (reads) load_queries(own, at, head, g, rows);
    for (std::size_t l = 0; l < depth_; ++l) {
      if (g == 0)
        memory::layer_chunk<T, Arch>::advance_by_one(
            own.c.keep[0], own.c.momentum[0], own.c.rate[0], own.state[l], own.layers[l],
            reads ? own.rows[l].data : nullptr, own.rows[l + 1].data);
      else if (reads)
        math::template multiply<false>(1, width_[l], width_[l + 1], own.rows[l].scalars(),
                                       own.state[l].weights, own.rows[l + 1]);
      if (reads && l + 1 < depth_)
        math::each(
            1, width_[l + 1], [](batch y) { return silu(y); }, own.rows[l + 1]);
    }
    if (reads)
      out.store(at.batch, head * call_.given.group() + g, at.first_row + rows.first, 1,
                own.rows[depth_].data, own.rows[depth_].stride);
  }

  /// Rows that stand before the first key read the initial memory.
  void read_first_rows(room& own, memory::sequence_place const& at, index_t head,
                       sink<T> const& out) const {
    own.c.tokens = 0;
    index_t const before = std::max<index_t>(0, at.rows - at.keys);
    for (index_t g = 0; g < call_.given.group(); ++g)
      for (index_t i = 0; i < before; i += together_) {
        memory::row_span const rows{i, std::min(together_, before - i)};
        read(own, at, head, g, rows, own.rows);
        out.store(at.batch, head * call_.given.group() + g, at.first_row + i, rows.count,
                  own.rows[depth_].data, own.rows[depth_].stride);
      }
  }

  // --- backward ---------------------------------------------------------------------------------

  /// Takes the state from token `first` to `last`; may save it before each tile. Returns the number of tiles.
  index_t sweep(room& own, memory::sequence_place const& at, index_t head, index_t first,
                index_t last, bool save) const {
    index_t tiles = 0, inside = 0;
    for (index_t t = first; t < last; ++tiles) {
      index_t const count = tokens_from(t, inside, last);
      if (save) own.save(*this, own.tile_starts, tiles, own.state);
      if (inside == 0) begin_chunk(own, count < chunk_);
      learn(own, at, head, t, count);
      if (count == 1)
        for (std::size_t l = 0; l < depth_; ++l)
          memory::layer_chunk<T, Arch>::advance_by_one(own.c.keep[0], own.c.momentum[0],
                                                       own.c.rate[0], own.state[l], own.layers[l],
                                                       nullptr, nullptr);
      else
        advance(own);
      t += count;
      inside = (inside + count) % chunk_;
    }
    return tiles;
  }

  void read_backward(room& own, memory::sequence_place const& at, index_t head, index_t g,
                     memory::row_span rows, network_gradients<T> const& to) const {
    if (rows.count == 0) return;
    read(own, at, head, g, rows, own.rows, true);
    index_t const query_head = head * call_.given.group() + g;
    panel dy = own.dy, dx = own.dx;
    memory::load_rows<T, Arch>(to.out, at.batch, query_head, at.first_row + rows.first, rows.count,
                               dy);
    for (std::size_t l = depth_; l-- > 0;) {
      own.chunk.read_backward(own.c, own.state[l], own.layers[l], rows.count, own.rows[l], dy, dx,
                              own.after[l], own.dc, own.dinput[l], own.derror[l]);
      if (l > 0)
        math::each(
            rows.count, width_[l], [](batch d, batch slope) { return d * slope; }, dx,
            own.row_slope[l - 1]);
      std::swap(dx, dy);
    }
    to.query.store(at.batch, query_head, at.first_row + rows.first, rows.count, dy.data, dy.stride);
  }

  void first_rows_backward(room& own, memory::sequence_place const& at, index_t head,
                           network_gradients<T> const& to) const {
    own.c.tokens = 0;
    index_t const before = std::max<index_t>(0, at.rows - at.keys);
    for (index_t g = 0; g < call_.given.group(); ++g)
      for (index_t i = 0; i < before; i += together_)
        read_backward(own, at, head, g, {i, std::min(together_, before - i)}, to);
  }

  void tile_backward(room& own, memory::sequence_place const& at, index_t head, index_t t,
                     index_t count, bool begins_chunk, network_gradients<T> const& to) const {
    learn(own, at, head, t, count, true);
    turn_inputs(own, count);
    own.dc.clear(count);
    for (std::size_t l = 0; l < depth_; ++l) {
      memory::layer_rows<T>& layer = own.layers[l];
      layer.turned_error.stride = math::padded(count);
      math::transpose(count, layer.outputs, layer.error, layer.turned_error);
      own.chunk.advance_backward(own.c, own.state[l], layer, own.after[l], own.dc, own.dinput[l],
                                 own.derror[l]);
    }
    memory::row_span const rows = memory::rows_after(at, t, count);
    for (index_t g = 0; g < call_.given.group(); ++g) read_backward(own, at, head, g, rows, to);

    own.dc.compute(own.c);
    for (index_t j = 0; j < count; ++j) own.dc.keep[j] = -own.dc.keep[j];
    index_t const position = at.first_key + t;
    auto const store_gate = [&](sink<T> const& into, T const* numbers) {
      if (into.extents()[3] > 0) into.store(at.batch, head, position, count, numbers, 1);
    };
    store_gate(to.rate, own.dc.rate);
    store_gate(to.momentum, own.dc.momentum);
    store_gate(to.forget, own.dc.keep);

    learn_backward(own, count, begins_chunk);
    to.key.store(at.batch, head, position, count, own.dinput[0].data, own.dinput[0].stride);
    panel const de = own.derror[depth_ - 1];
    math::each(
        count, width_[depth_], [](batch d) { return -d; }, de);
    to.value.store(at.batch, head, position, count, de.data, de.stride);
    if (!begins_chunk || chunk_ <= together_) return;
    for (std::size_t l = 0; l < depth_; ++l) {
      math::each(
          width_[l], width_[l + 1], [](batch sum, batch more) { return sum + more; },
          own.after[l].weights, own.dreference[l]);
      math::fill(width_[l], width_[l + 1], own.dreference[l]);
    }
  }

  /// learn() backwards, from dinput and derror: the second derivatives of the network. Leaves d loss / d key in
  /// dinput[0] and d loss / d error in the last derror.
  void learn_backward(room& own, index_t count, bool begins_chunk) const {
    auto const target = [&](std::size_t l) {
      return begins_chunk ? own.after[l].weights : own.dreference[l];
    };
    // Error rows were made from the last layer to the first: d_l = (W_(l+1) d_(l+1)) silu'(y_l).
    for (std::size_t l = 0; l + 1 < depth_; ++l) {
      memory::layer_rows<T> const& next = own.layers[l + 1];
      panel const du = own.dy, dy = own.hidden[l];
      math::each(
          count, width_[l + 1], [](batch, batch dd, batch slope) { return dd * slope; }, du,
          own.derror[l], own.slope[l]);
      math::each(
          count, width_[l + 1],
          [](batch y, batch dd, batch u) { return dd * u * silu_curvature(y); }, dy, own.derror[l],
          own.ahead[l]);
      math::template multiply<true>(next.inputs, count, next.outputs, du.transposed_scalars(),
                                    next.error, target(l + 1));
      math::template multiply<true>(count, next.inputs, next.outputs, du.scalars(),
                                    own.reference[l + 1], own.derror[l + 1]);
    }
    // Inputs were made from the first to the last; hidden now holds what is known of d loss / d y.
    for (std::size_t l = depth_; l-- > 0;) {
      memory::layer_rows<T> const& layer = own.layers[l];
      panel const dy = l + 1 == depth_ ? own.derror[l] : own.hidden[l];
      math::template multiply<true>(layer.inputs, count, layer.outputs,
                                    layer.input.transposed_scalars(), dy, target(l));
      math::multiply_transposed(count, layer.outputs, layer.inputs, dy, own.reference[l], own.dx,
                                own.turned);
      math::each(
          count, layer.inputs, [](batch sum, batch more) { return sum + more; }, own.dinput[l],
          own.dx);
      if (l > 0)
        math::each(
            count, layer.inputs,
            [](batch sum, batch d, batch slope) { return simd::fma(d, slope, sum); },
            own.hidden[l - 1], own.dinput[l], own.slope[l - 1]);
    }
  }

  network_call<T> const& call_;
  std::size_t depth_;
  index_t chunk_ = 1;
  std::array<index_t, most + 1> width_{};
  index_t widest_ = 0;
  index_t together_ = 1;
};

}  // namespace recur
}  // namespace heed
