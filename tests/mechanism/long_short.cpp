#include "reference/cab.hpp"
#include "support/compositions.hpp"

#include <heed/mechanism/long_short.hpp>

// Long-Short attention and the softmax over positions that it compresses keys by, against their definitions.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::definition_check;
using support::for_each_seed;
using support::in_orders;
using support::seed_t;
using support::view_of;

namespace {

template <class T>
void fill_zero(tensor_view<T, 4> all) {
  support::for_each_index(all.extents(), [&](auto const& at) {
    all.data()[support::offset(at, all.strides())] = T(0);
  });
}

/// Keys and values compressed, from logits.
template <class T>
struct compression_problem : definition_check<T> {
  index_t length;

  explicit compression_problem(seed_t seed, index_t least = 1) : definition_check<T>(seed) {
    support::random& chance = this->draw;
    index_t const B = chance.between(1, 2), H = chance.between(1, 3), D = chance.between(1, 20),
                  Dv = chance.between(1, 20), r = chance.between(1, 11),
                  M = chance.one_in(5) ? chance.between(100, 200) : chance.between(least, 40);
    length = chance.one_in(3) ? M : chance.between(least, M);
    double const spread = chance.one_in(3) ? 5 : 1;
    this->input("logits", {B, M, H, r}, [&] { return spread * chance.normal(); });
    this->input("k", {B, M, H, D});
    this->input("v", {B, M, H, Dv});
    this->output("compressed k", {B, M / length * r, H, D});
    this->output("compressed v", {B, M / length * r, H, Dv});
  }

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{reference::compressed(x[0], x[1], length),
                                   reference::compressed(x[0], x[2], length)};
    };
  }
  template <class... I>
  void forward_pass(I const&... run_on) {
    heed::compress_positions(this->in(0), this->in(1), this->in(2), length, this->out(0),
                             this->out(1), run_on...);
  }
  template <class... I>
  void backward_pass(I const&... run_on) {
    forward_pass();
    fill_zero(this->din(1));
    fill_zero(this->din(2));
    heed::compress_positions_backward(this->in(0), this->in(1), this->in(2), length, this->saved(0),
                                      this->saved(1), this->dout(0), this->dout(1), this->din(0),
                                      this->din(1), this->din(2), run_on...);
  }
};

/// The attention, from compressed rows.
template <class T>
struct long_short_problem : definition_check<T> {
  index_t N, H, window, length, r;
  bool causal;
  double scale;

  explicit long_short_problem(seed_t seed) : definition_check<T>(seed) {
    support::random& chance = this->draw;
    index_t const B = chance.between(1, 2), D = chance.between(4, 20), Dv = chance.between(4, 20);
    causal = chance.one_in(2);
    N = chance.between(8, 60);
    H = chance.one_in(2) ? 4 : 2;
    window = chance.between(1, 12);
    length = causal ? chance.between(1, N) : N;
    r = chance.between(1, 5);
    scale = chance.uniform(0.1, 0.4);
    index_t const heads = chance.one_in(2) ? H : 1;
    this->input("q", {B, N, H, D});
    this->input("k", {B, N, heads, D});
    this->input("v", {B, N, heads, Dv});
    this->input("compressed k", {B, N / length * r, heads, D});
    this->input("compressed v", {B, N / length * r, heads, Dv});
    this->output("out", {B, N, H, Dv});
  }

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{
          reference::long_short(x[0], x[1], x[2], x[3], x[4], window, causal, length, r, scale)};
    };
  }
  template <class F>
  void call(F f) const {
    causal ? f(heed::causal_long_short{window, length, r}) : f(heed::long_short{window});
  }
  template <class... I>
  void forward_pass(I const&... more) {
    call([&](auto const& how) {
      heed::long_short_attention(how, this->in(0), this->in(1), this->in(2), this->in(3),
                                 this->in(4), this->out(0), heed::scale{scale}, more...);
    });
  }
  template <class... I>
  void backward_pass(I const&... more) {
    auto const [B, rows, heads, Dv] = this->out(0).extents();
    tensor<heed::compute_type<T>, 3> lse({B, heads, rows});
    forward_pass(heed::lse_into{view_of(lse)});
    call([&](auto const& how) {
      heed::long_short_attention_backward(how, this->in(0), this->in(1), this->in(2), this->in(3),
                                          this->in(4), this->saved(0), view_of(std::as_const(lse)),
                                          this->dout(0), this->din(0), this->din(1), this->din(2),
                                          this->din(3), this->din(4), heed::scale{scale}, more...);
    });
  }
};

}  // namespace

TEMPLATE_TEST_CASE("compressed positions: the definition", "[mechanism][long_short]", double, float,
                   Eigen::half) {
  for_each_seed("compressed positions", 150, [](seed_t seed) {
    compression_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEMPLATE_TEST_CASE("compressed positions: the gradient", "[mechanism][long_short]", double, float) {
  for_each_seed("compressed positions backward", 80, [](seed_t seed) {
    compression_problem<TestType> p(seed, 8);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
  });
}

TEST_CASE("compressed positions: the gradient of short chunks", "[mechanism][long_short]") {
  for_each_seed("compressed positions backward, short chunks", 80, [](seed_t seed) {
    compression_problem<double> p(seed);
    p.backward_pass();
    return support::small_gradient_complaint(p, 3, p.definition(), 2);
  });
}

TEMPLATE_TEST_CASE("long-short: the definition", "[mechanism][long_short]", double, float) {
  for_each_seed("long-short", 150, [](seed_t seed) {
    long_short_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEMPLATE_TEST_CASE("long-short: the gradient", "[mechanism][long_short]", double, float) {
  for_each_seed("long-short backward", 80, [](seed_t seed) {
    long_short_problem<TestType> p(seed);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
  });
}

TEST_CASE("long-short: decoding says what reading says", "[mechanism][long_short]") {
  for_each_seed("long-short decoding", 40, [](seed_t seed) {
    support::random draw(seed);
    index_t const B = draw.between(1, 2), N = draw.between(1, 50), H = 4,
                  heads = draw.one_in(2) ? 4 : 2, D = draw.between(1, 16), E = draw.between(1, 16),
                  r = draw.between(1, 4);
    heed::causal_long_short const how{draw.between(1, 9), draw.between(1, 13), r};
    index_t const rows = N / how.length * r;
    auto const q = support::normal<float>(draw, {B, N, H, D}),
               k = support::normal<float>(draw, {B, N, heads, D}),
               v = support::normal<float>(draw, {B, N, heads, E}),
               logits = support::normal<float>(draw, {B, N, heads, r}, 4);
    auto ck = support::blank<float, 4>({B, rows, heads, D}),
         cv = support::blank<float, 4>({B, rows, heads, E}),
         out = support::blank<float, 4>({B, N, H, E}),
         stepped = support::blank<float, 4>({B, N, H, E});
    heed::compress_positions(logits.view(), k.view(), v.view(), how.length, ck.view(), cv.view());
    heed::long_short_attention(how, q.view(), k.view(), v.view(), std::as_const(ck).view(),
                               std::as_const(cv).view(), out.view());

    auto near_k = support::blank<float, 4>({B, how.window, heads, D}),
         near_v = support::blank<float, 4>({B, how.window, heads, E}),
         far_k = support::blank<float, 4>({B, rows, heads, D}),
         far_v = support::blank<float, 4>({B, rows, heads, E}),
         open = support::blank<float, 4>({B, heads, r, 2 + D + E});
    heed::long_short_cache<float> cache(how, heed::ring_cache(near_k.view(), near_v.view(), 0),
                                        heed::kv_cache(far_k.view(), far_v.view()), open.view());
    std::string complaint;
    for (index_t i = 0; i < N; ++i) {
      bool const closed =
          cache.step(q.view().slice(1, i, 1), k.view().slice(1, i, 1), v.view().slice(1, i, 1),
                     logits.view().slice(1, i, 1), stepped.view().slice(1, i, 1));
      if (closed != ((i + 1) % how.length == 0)) complaint = "a chunk closed at another time\n";
    }
    double const off = support::difference(out.values<float>(), stepped.values<float>());
    if (!(off < 1e-5)) complaint += "decoding is off by " + std::to_string(off) + "\n";
    return complaint;
  });
}

TEST_CASE("long-short: the future stays unseen, and so do other chunks' later rows",
          "[mechanism][long_short]") {
  support::random draw(8);
  index_t const N = 40, r = 3;
  heed::causal_long_short const how{5, 8, r};
  auto const run = [&](tensor<float, 4> const& x) {
    tensor<float, 4> ck({1, N / 8 * r, 2, 6}), cv = ck, out({1, N, 2, 6});
    tensor<float, 4> logits({1, N, 2, r});
    for (index_t i = 0; i < N; ++i)
      for (index_t h = 0; h < 2; ++h)
        for (index_t c = 0; c < r; ++c) logits(0, i, h, c) = 3 * x(0, i, h, c);
    heed::compress_positions(view_of(std::as_const(logits)), view_of(x), view_of(x), 8, view_of(ck),
                             view_of(cv));
    heed::long_short_attention(how, view_of(x), view_of(x), view_of(x), view_of(std::as_const(ck)),
                               view_of(std::as_const(cv)), view_of(out));
    return out;
  };
  tensor<float, 4> x({1, N, 2, 6});
  for (float& each : x.values) each = float(draw.normal());
  auto const before = run(x);
  for (index_t changed : {0, 7, 8, 20, 39}) {
    auto other = x;
    for (index_t h = 0; h < 2; ++h)
      for (index_t d = 0; d < 6; ++d) other(0, changed, h, d) = float(draw.normal());
    auto const after = run(other);
    for (index_t i = 0; i < N; ++i) {
      bool same = true;
      for (index_t h = 0; h < 2; ++h)
        for (index_t d = 0; d < 6; ++d) same &= before(0, i, h, d) == after(0, i, h, d);
      // A row sees its window, and what is in an earlier chunk.
      bool const sees = i >= changed && (i < changed + 5 || i / 8 > changed / 8);
      CHECK(same == !sees);
    }
  }
}

TEST_CASE("long-short: without compressed rows it is its window", "[mechanism][long_short]") {
  support::random draw(9);
  auto const q = support::normal<float>(draw, {1, 30, 2, 8}),
             none = support::normal<float>(draw, {1, 0, 2, 8});
  auto out = support::blank<float, 4>({1, 30, 2, 8});
  heed::long_short_attention(heed::causal_long_short{7, 64, 4}, q.view(), q.view(), q.view(),
                             none.view(), none.view(), out.view());
  auto const window =
      support::attend(q.view(), q.view(), q.view(), heed::sliding_window{.left = 6, .right = 0});
  CHECK(support::difference(out.values<float>(), window.out) < 1e-6);
  // A window of all, and not causal: full attention.
  heed::long_short_attention(heed::long_short{30}, q.view(), q.view(), q.view(), none.view(),
                             none.view(), out.view());
  CHECK(support::difference(out.values<float>(),
                            support::attend(q.view(), q.view(), q.view()).out) < 1e-6);
}

TEST_CASE("compressed positions: logits that overflow, or are all -infinity",
          "[mechanism][long_short]") {
  float const infinity = std::numeric_limits<float>::infinity();
  tensor<float, 4> logits({1, 4, 1, 3}), x({1, 4, 1, 2}), y({1, 3, 1, 2}), z = y;
  for (index_t i = 0; i < 4; ++i) {
    logits(0, i, 0, 0) = i == 2 ? 1e30f : -1e30f;  // one position
    logits(0, i, 0, 1) = -infinity;                // none
    logits(0, i, 0, 2) = 200;                      // all
    for (index_t d = 0; d < 2; ++d) x(0, i, 0, d) = float(4 * d + i);
  }
  heed::compress_positions(view_of(std::as_const(logits)), view_of(std::as_const(x)),
                           view_of(std::as_const(x)), 4, view_of(y), view_of(z));
  CHECK(y.values == std::vector<float>{2, 6, 0, 0, 1.5, 5.5});
  CHECK(z.values == y.values);
}

TEST_CASE("long-short: the same bits on any executor", "[mechanism][long_short]") {
  for_each_seed("long-short executor", 15, [](seed_t seed) {
    return support::executor_complaint<long_short_problem<float>>(seed, 5);
  });
  for_each_seed("compressed positions executor", 15, [](seed_t seed) {
    compression_problem<float> a(seed), b(seed);
    a.backward_pass();
    b.forward_pass(support::threads{});
    bool same =
        support::same_bits(support::read<float>(a.saved(0)), support::read<float>(b.saved(0)));
    b.backward_pass(support::threads{});
    for (std::size_t n = 0; n < 3; ++n)
      same &= support::same_bits(support::read<float>(a.din(n)), support::read<float>(b.din(n)));
    return std::string(same ? "" : "the result depends on the executor\n");
  });
}

TEST_CASE("long-short: what does not fit is refused", "[mechanism][long_short]") {
  std::vector<float> numbers(1000, 7.0f);
  auto const tokens = [&](index_t n, index_t dim = 3) {
    return heed::bnhd(numbers.data(), 1, n, 2, dim);
  };
  CHECK_THROWS_WITH(
      heed::long_short_attention(heed::causal_long_short{4, 5, 2}, tokens(12), tokens(12),
                                 tokens(12), tokens(6), tokens(6), tokens(12)),
      "heed: there are 6 compressed rows; expected 4, 2 for each whole chunk of 5 of 12 positions");
  CHECK_THROWS_WITH(heed::long_short_attention(heed::long_short{0}, tokens(12), tokens(12),
                                               tokens(12), tokens(6), tokens(6), tokens(12)),
                    "heed: block_neighbours has blocks of 0; expected at least 1");
  CHECK_THROWS_WITH(
      heed::compress_positions(tokens(9, 2), tokens(10), tokens(10), 5, tokens(4), tokens(4)),
      "heed: logits has shape [1, 9, 2, 2], key [1, 10, 2, 3], value [1, 10, 2, 3]; expected the "
      "same batch, positions and heads");
  CHECK_THROWS_WITH(
      heed::compress_positions(tokens(10, 2), tokens(10), tokens(10), 5, tokens(3), tokens(4)),
      "heed: compressed_key has shape [1, 3, 2, 3]; expected that of key with the compressed "
      "positions, [1, 4, 2, 3]");
  CHECK(numbers == std::vector<float>(1000, 7.0f));
}

namespace {

template <class T>
tensor_view<T, 2> last_two(tensor_view<T, 4> x) {
  return {x.data(), {x.extent(2), x.extent(3)}, {x.stride(2), x.stride(3)}};
}

/// Between its projections, the layer: keys and values normalised, compressed, and the compressed rows normalised too.
struct layer_problem : definition_check<double> {
  index_t N = 24, H = 2, D = 5, r = 3, length = 6, window = 4;
  heed::causal_long_short how{window, length, r};
  support::guarded<double, 4> k, v, ck, cv, normal_ck, normal_cv, dck, dcv, normal_dck, normal_dcv,
      dk, dv, spare;
  tensor<double, 3> lse{{1, H, N}};

  explicit layer_problem(seed_t seed) : definition_check<double>(seed) {
    for (char const* name : {"q", "k", "v"}) input(name, {1, N, H, D});
    input("logits", {1, N, H, r});
    for (char const* name : {"gain", "shift", "gain of rows", "shift of rows"})
      input(name, {1, 1, H, D});
    output("out", {1, N, H, D});
    for (auto* each : {&k, &v, &dk, &dv, &spare}) *each = support::blank<double, 4>({1, N, H, D});
    for (auto* each : {&ck, &cv, &normal_ck, &normal_cv, &dck, &dcv, &normal_dck, &normal_dcv})
      *each = support::blank<double, 4>({1, N / length * r, H, D});
  }
  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      auto const keys = reference::layer_norm(x[1], x[4], x[5]),
                 values = reference::layer_norm(x[2], x[4], x[5]);
      auto const rows = [&](tensor<U, 4> const& of) {
        return reference::layer_norm(reference::compressed(x[3], of, length), x[6], x[7]);
      };
      return reference::tensors<U>{reference::long_short(x[0], keys, values, rows(keys),
                                                         rows(values), window, true, length, r,
                                                         1 / std::sqrt(double(D)))};
    };
  }
  auto of_tokens() const { return heed::layer_norm{last_two(in(4)), last_two(in(5))}; }
  auto of_rows() const { return heed::layer_norm{last_two(in(6)), last_two(in(7))}; }
  void forward_pass() {
    heed::normalise_tokens(in(1), of_tokens(), k.view());
    heed::normalise_tokens(in(2), of_tokens(), v.view());
    heed::compress_positions(in(3), k.view(), v.view(), length, ck.view(), cv.view());
    heed::normalise_tokens(ck.view(), of_rows(), normal_ck.view());
    heed::normalise_tokens(cv.view(), of_rows(), normal_cv.view());
    heed::long_short_attention(how, in(0), k.view(), v.view(), normal_ck.view(), normal_cv.view(),
                               out(0), heed::lse_into{view_of(lse)});
  }
  void backward_pass() {
    forward_pass();
    heed::long_short_attention_backward(how, in(0), k.view(), v.view(), normal_ck.view(),
                                        normal_cv.view(), saved(0), view_of(std::as_const(lse)),
                                        dout(0), din(0), dk.view(), dv.view(), normal_dck.view(),
                                        normal_dcv.view());
    // Two uses of a norm: their gradients add up.
    tensor<double, 2> gain({H, D}), shift({H, D});
    heed::layer_norm const second{view_of(gain), view_of(shift)};
    auto const add = [&](std::size_t first) {
      for (index_t h = 0; h < H; ++h)
        for (index_t d = 0; d < D; ++d) {
          last_two(din(first))(h, d) += gain(h, d);
          last_two(din(first + 1))(h, d) += shift(h, d);
        }
    };
    heed::normalise_tokens_backward(ck.view(), of_rows(), normal_dck.view(), dck.view(),
                                    heed::layer_norm{last_two(din(6)), last_two(din(7))});
    heed::normalise_tokens_backward(cv.view(), of_rows(), normal_dcv.view(), dcv.view(), second);
    add(6);
    heed::compress_positions_backward(in(3), k.view(), v.view(), length, ck.view(), cv.view(),
                                      dck.view(), dcv.view(), din(3), dk.view(), dv.view());
    heed::normalise_tokens_backward(in(1), of_tokens(), dk.view(), din(1),
                                    heed::layer_norm{last_two(din(4)), last_two(din(5))});
    heed::normalise_tokens_backward(in(2), of_tokens(), dv.view(), din(2), second,
                                    support::threads{});
    add(4);
  }
};

}  // namespace

TEST_CASE("long-short: the layer", "[mechanism][long_short]") {
  for_each_seed("long-short layer", 20, [](seed_t seed) {
    layer_problem p(seed);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); }) +
           support::small_gradient_complaint(p, 8, p.definition());
  });
}

TEMPLATE_TEST_CASE("layer norm: the definition and its gradient", "[mechanism][long_short]", double,
                   float) {
  for_each_seed("layer norm", 60, [](seed_t seed) {
    definition_check<TestType> p(seed);
    index_t const B = p.draw.between(1, 2), N = p.draw.between(1, 70), H = p.draw.between(1, 3),
                  D = p.draw.between(4, 20);
    double const away = p.draw.one_in(3) ? 100 : 0;
    p.input("x", {B, N, H, D}, [&] { return away + p.draw.normal(); });
    p.input("gain", {1, 1, H, D});
    p.input("shift", {1, 1, H, D});
    p.output("out", {B, N, H, D});
    heed::layer_norm const norm{last_two(p.in(1)), last_two(p.in(2))};
    heed::normalise_tokens(p.in(0), norm, p.out(0));
    heed::normalise_tokens_backward(p.in(0), norm, p.dout(0), p.din(0),
                                    heed::layer_norm{last_two(p.din(1)), last_two(p.din(2))});
    auto const definition = []<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{reference::layer_norm(x[0], x[1], x[2])};
    };
    return in_orders(definition,
                     [&](auto const&... all) { return p.forward(all...) + p.backward(all...); });
  });
}
