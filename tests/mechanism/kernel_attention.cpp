#include "reference/kernel_attention.hpp"

#include "support/definition_check.hpp"
#include "support/tensors.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/based.hpp>
#include <heed/mechanism/cosformer.hpp>
#include <heed/mechanism/efficient_attention.hpp>
#include <heed/mechanism/fast_attention.hpp>

#include <optional>

// BASED, Fastmax, cosFormer and Efficient Attention against their weights, pair by pair.

using heed::index_t;
using heed::standardisation;
using heed::tensor_view;
using reference::kernel_call;
using support::definition_check;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

/// Operands of a few rows, and heads that are shared or not.
template <class T>
struct operands : definition_check<T> {
  using definition_check<T>::draw;
  index_t B, N, M, H, D, E, key_heads, value_heads;

  operands(seed_t seed, index_t most_dim, bool self = false, double spread = 1,
           index_t least_dim = 3)
      : definition_check<T>(seed) {
    B = draw.between(1, 2);
    // So many numbers that the largest error among them is no chance.
    N = draw.between(20, draw.one_in(8) ? 70 : 36);
    M = self || draw.one_in(3) ? N : draw.between(16, 36);
    H = draw.between(1, 2) * draw.between(1, 2);
    key_heads = draw.one_in(2) ? H : 1;
    value_heads = draw.one_in(2) ? H : 1;
    D = draw.between(least_dim, most_dim);
    E = draw.between(1, 12);
    auto const number = [&] { return spread * draw.normal(); };
    this->input("q", {B, N, H, D}, number);
    this->input("k", {B, M, key_heads, D}, number);
    this->input("v", {B, M, value_heads, E});
    this->output("out", {B, N, H, E});
  }

  index_t state_heads() const { return std::max(key_heads, value_heads); }

  /// f(first token, tokens) for pieces of the tokens, one by one or some.
  template <class F>
  void in_pieces(bool by_one, F const& f) {
    for (index_t first = 0; first < N;) {
      index_t const count = by_one ? 1 : draw.between(1, N - first);
      f(first, count);
      first += count;
    }
  }
  auto q(index_t first, index_t count) { return this->in(0).slice(1, first, count); }
  auto k(index_t first, index_t count) { return this->in(1).slice(1, first, count); }
  auto v(index_t first, index_t count) { return this->in(2).slice(1, first, count); }
  auto o(index_t first, index_t count) { return this->out(0).slice(1, first, count); }
};

template <class T>
guarded<heed::compute_type<T>, 4> zero_state(operands<T> const& p, index_t features,
                                             index_t columns) {
  auto state = support::blank<heed::compute_type<T>, 4>({p.B, p.state_heads(), features, columns});
  state.fill([](auto const&) { return heed::compute_type<T>(0); });
  return state;
}

/// Whether a number is one of those that the naive definition computes with.
template <class T, class U>
constexpr bool is_naive = std::is_same_v<U, T> || std::is_same_v<U, reference::traced<T>>;

/// A weight as a sum of features and as a function of q.k are rounded differently: either is naive.
template <class Compare>
std::string either(Compare compare) {
  std::string const complaint = compare(false);
  return complaint.empty() ? complaint : compare(true);
}

/// Fastmax and BASED.
template <class T>
struct fastmax_problem : operands<T> {
  heed::fastmax how;
  bool is_dense;
  bool is_based;

  explicit fastmax_problem(seed_t seed, bool self = false, bool based = false)
      : operands<T>(seed, 7, self), is_based(based) {
    using enum standardisation;
    auto& chance = this->draw;
    how.degree = chance.one_in(3) ? chance.between(1, 4) : 2;
    how.standardise = chance.one_of(std::array{none, by_deviation, by_largest_norm});
    how.scale = chance.one_in(2) ? 1 : chance.uniform(0.2, 1);
    // Odd polynomials have zeros.
    if (how.degree % 2 == 1) {
      how.standardise = by_largest_norm;
      how.scale = std::min(how.scale, 0.8);
    }
    if (based) how = {2, none, 1 / std::sqrt(static_cast<double>(this->D))};
    is_dense = chance.one_in(3);
  }

  auto definition(bool by_features) const {
    return [how = how, by_features, epsilon = is_based ? 1e-12 : 0.0, causal = !is_dense,
            H = this->H]<class U>(reference::tensors<U> const& in) {
      auto const standardised = [&](reference::tensor<U, 4> x) {
        if (how.standardise == standardisation::by_largest_norm) return by_largest_norm(x);
        if (how.standardise == standardisation::by_deviation)
          for (index_t b = 0; b < x.extent(0); ++b)
            for (index_t i = 0; i < x.extent(1); ++i)
              for (index_t h = 0; h < x.extent(2); ++h) {
                auto const row = reference::by_deviation(reference::row_of(x, b, i, h));
                for (index_t d = 0; d < x.extent(3); ++d)
                  x(b, i, h, d) = row[static_cast<std::size_t>(d)];
              }
        return x;
      };
      auto const q = standardised(in[0]), k = standardised(in[1]);
      kernel_call const call{H, causal, epsilon};
      if (by_features && is_naive<heed::compute_type<T>, U>) {
        auto const features = [&](reference::tensor<U, 4> const& x) {
          return rows_of_features(x, heed::polynomial{how.degree, 1}.features(x.extent(3)),
                                  [&](std::vector<U> const& row, index_t) {
                                    return reference::cut_exponential_features(row, how.scale,
                                                                               how.degree);
                                  });
        };
        return reference::tensors<U>{call.average_of_features(features(q), features(k), in[2])};
      }
      return reference::tensors<U>{
          call.average(q, k, in[2], [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
            U const product =
                reference::dot_of(reference::row_of(q, b, i, hq), reference::row_of(k, b, j, hk));
            return reference::cut_exponential(U(how.scale) * product, how.degree);
          })};
    };
  }

  template <class F>
  void with_ingredients(F const& f) {
    if (is_dense)
      f(how, heed::dense{});
    else
      f(how);
  }
  template <class... I>
  void forward(I const&... more) {
    if (is_based && is_dense)
      heed::based_attention(this->in(0), this->in(1), this->in(2), this->out(0), heed::dense{},
                            more...);
    else if (is_based)
      heed::based_attention(this->in(0), this->in(1), this->in(2), this->out(0), more...);
    else
      with_ingredients([&](auto const&... own) {
        heed::fast_attention(this->in(0), this->in(1), this->in(2), this->out(0), own..., more...);
      });
  }
  template <class... I>
  void backward(I const&... more) {
    auto const run = [&](auto call) {
      call(this->in(0), this->in(1), this->in(2), this->saved(0), this->dout(0), this->din(0),
           this->din(1), this->din(2));
    };
    if (is_based && is_dense)
      run([&](auto... all) { heed::based_attention_backward(all..., heed::dense{}, more...); });
    else if (is_based)
      run([&](auto... all) { heed::based_attention_backward(all..., more...); });
    else
      with_ingredients([&](auto const&... own) {
        run([&](auto... all) { heed::fast_attention_backward(all..., own..., more...); });
      });
  }
  std::string compare(bool gradients) {
    forward();
    std::string const complaint =
        either([&](bool way) { return definition_check<T>::forward(definition(way)); });
    if (!gradients) return complaint;
    backward();
    return complaint +
           either([&](bool way) { return definition_check<T>::backward(definition(way)); });
  }
  std::string in_pieces_too() {
    is_dense = false;
    if (how.standardise == standardisation::by_largest_norm) {
      how.standardise = standardisation::by_deviation;
      how.degree = 2;
    }
    auto state = zero_state(*this, heed::polynomial{how.degree, 1}.features(this->D), this->E + 1);
    bool const by_one = this->draw.one_in(2);
    this->in_pieces(by_one, [&](index_t first, index_t count) {
      auto const run = [&](auto call) {
        call(this->q(first, count), this->k(first, count), this->v(first, count),
             this->o(first, count));
      };
      if (is_based)
        run([&](auto... all) {
          by_one ? heed::based_attention_step(all..., state.view())
                 : heed::based_attention(all..., heed::state{state.view()});
        });
      else
        run([&](auto... all) {
          by_one ? heed::fast_attention_step(all..., state.view(), how)
                 : heed::fast_attention(all..., heed::state{state.view()}, how);
        });
    });
    return either([&](bool way) { return definition_check<T>::forward(definition(way)); });
  }
};

template <class T>
struct cosformer_problem : operands<T> {
  index_t horizon = 0;
  bool is_dense;

  explicit cosformer_problem(seed_t seed, bool self = false) : operands<T>(seed, 16, self, 1, 6) {
    auto& chance = this->draw;
    if (chance.one_in(2)) horizon = std::max(this->N, this->M) + chance.between(0, 30);
    is_dense = chance.one_in(3);
  }

  auto definition(bool by_features) const {
    double const m = static_cast<double>(horizon > 0 ? horizon : std::max(this->N, this->M));
    return [m, by_features, causal = !is_dense,
            H = this->H]<class U>(reference::tensors<U> const& in) {
      index_t const shift = causal ? in[1].extent(1) - in[0].extent(1) : 0;
      kernel_call const call{H, causal, 0, 1e-6};
      if (by_features && is_naive<heed::compute_type<T>, U>) {
        auto const features = [&](reference::tensor<U, 4> const& x, index_t first) {
          return rows_of_features(x, 2 * x.extent(3), [&](std::vector<U> const& row, index_t i) {
            return reference::cosine_features(row, i + first, m);
          });
        };
        return reference::tensors<U>{
            call.average_of_features(features(in[0], shift), features(in[1], 0), in[2])};
      }
      return reference::tensors<U>{call.average(
          in[0], in[1], in[2], [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
            return reference::cosine_weight(reference::row_of(in[0], b, i, hq),
                                            reference::row_of(in[1], b, j, hk), i + shift - j, m);
          })};
    };
  }
  std::string compare(bool gradients) {
    auto const run = [&](auto call) {
      heed::cosine_horizon const at{horizon, 0};
      if (is_dense)
        call(at, heed::dense{});
      else if (horizon > 0)
        call(at);
      else
        call();
    };
    run([&](auto const&... own) {
      heed::cosformer(this->in(0), this->in(1), this->in(2), this->out(0), own...);
    });
    std::string complaint =
        either([&](bool way) { return definition_check<T>::forward(definition(way)); });
    if (!gradients) return complaint;
    run([&](auto const&... own) {
      heed::cosformer_backward(this->in(0), this->in(1), this->in(2), this->saved(0), this->dout(0),
                               this->din(0), this->din(1), this->din(2), own...);
    });
    return complaint +
           either([&](bool way) { return definition_check<T>::backward(definition(way)); });
  }
  std::string in_pieces_too() {
    is_dense = false;
    horizon = this->N + 5;
    auto state = zero_state(*this, 2 * this->D, this->E + 1);
    bool const by_one = this->draw.one_in(2);
    this->in_pieces(by_one, [&](index_t first, index_t count) {
      heed::cosine_horizon const at{horizon, first};
      if (by_one)
        heed::cosformer_step(this->q(first, 1), this->k(first, 1), this->v(first, 1),
                             this->o(first, 1), state.view(), at);
      else
        heed::cosformer(this->q(first, count), this->k(first, count), this->v(first, count),
                        this->o(first, count), heed::state{state.view()}, at);
    });
    return either([&](bool way) { return definition_check<T>::forward(definition(way)); });
  }
};

template <class T>
std::string efficient_complaint(seed_t seed) {
  operands<T> p(seed, 16, false, seed % 3 == 0 ? 4 : 1);
  heed::efficient_attention(p.in(0), p.in(1), p.in(2), p.out(0));
  auto const definition = [H = p.H]<class U>(reference::tensors<U> const& in) {
    return reference::tensors<U>{reference::efficient_attention(in[0], in[1], in[2], H, false)};
  };
  std::string const complaint = p.forward(definition);
  heed::efficient_attention_backward(p.in(0), p.in(1), p.in(2), p.saved(0), p.dout(0), p.din(0),
                                     p.din(1), p.din(2));
  return complaint + p.backward(definition);
}

/// The causal form: the definition, its gradients, and pieces.
template <class T>
std::string causal_efficient_complaint(seed_t seed) {
  operands<T> p(seed, 12, seed % 2 == 0, seed % 3 == 0 ? 4 : 1);
  auto const definition = [H = p.H]<class U>(reference::tensors<U> const& in) {
    return reference::tensors<U>{reference::efficient_attention(in[0], in[1], in[2], H, true)};
  };
  heed::causal_efficient_attention(p.in(0), p.in(1), p.in(2), p.out(0));
  std::string complaint = p.forward(definition);
  heed::causal_efficient_attention_backward(p.in(0), p.in(1), p.in(2), p.saved(0), p.dout(0),
                                            p.din(0), p.din(1), p.din(2));
  complaint += p.backward(definition);
  if (seed % 2 != 0) return complaint;
  auto state = zero_state(p, p.D, p.E);
  auto total = support::blank<double, 3>({p.B, p.key_heads, p.D});
  total.fill([](auto const&) { return -std::numeric_limits<double>::infinity(); });
  heed::running_log_total const so_far{total.view()};
  bool const by_one = p.draw.one_in(2);
  p.in_pieces(by_one, [&](index_t first, index_t count) {
    if (by_one)
      heed::causal_efficient_attention_step(p.q(first, 1), p.k(first, 1), p.v(first, 1),
                                            p.o(first, 1), state.view(), so_far);
    else
      heed::causal_efficient_attention(p.q(first, count), p.k(first, count), p.v(first, count),
                                       p.o(first, count), heed::state{state.view()}, so_far);
  });
  return complaint + p.forward(definition);
}

template <class T>
std::string by_length_complaint(seed_t seed) {
  operands<T> p(seed, 16);
  heed::efficient_attention_by_length(p.in(0), p.in(1), p.in(2), p.out(0));
  auto const definition = [H = p.H]<class U>(reference::tensors<U> const& in) {
    // q.k / sqrt(N M) is all there is of a weight.
    auto out = reference::tensor<U, 4>({in[0].extent(0), in[0].extent(1), H, in[2].extent(3)});
    double const pairs =
        static_cast<double>(in[0].extent(1) * std::max<index_t>(in[1].extent(1), 1));
    for (index_t b = 0; b < out.extent(0); ++b)
      for (index_t i = 0; i < out.extent(1); ++i)
        for (index_t h = 0; h < H; ++h)
          for (index_t j = 0; j < in[1].extent(1); ++j) {
            U const w = reference::dot_of(reference::row_of(in[0], b, i, h),
                                          reference::row_of(in[1], b, j, h * in[1].extent(2) / H));
            for (index_t e = 0; e < out.extent(3); ++e)
              out(b, i, h, e) += w * in[2](b, j, h * in[2].extent(2) / H, e) / U(std::sqrt(pairs));
          }
    return reference::tensors<U>{out};
  };
  std::string const complaint = p.forward(definition);
  heed::efficient_attention_by_length_backward(p.in(0), p.in(1), p.in(2), p.saved(0), p.dout(0),
                                               p.din(0), p.din(1), p.din(2));
  return complaint + p.backward(definition);
}

template <class Problem>
std::vector<float> results(Problem& p) {
  std::vector<float> all;
  for (auto const& each : {support::read<float>(p.out(0)), support::read<float>(p.din(0)),
                           support::read<float>(p.din(1)), support::read<float>(p.din(2))})
    all.insert(all.end(), each.values.begin(), each.values.end());
  return all;
}

}  // namespace

TEST_CASE("based: the definition, its gradients and pieces", "[mechanism][based]") {
  for_each_seed("based", 40, [](seed_t seed) {
    return fastmax_problem<float>(seed, false, true).compare(seed % 2 == 0) +
           fastmax_problem<float>(seed, true, true).in_pieces_too();
  });
  for_each_seed("based in double", 20, [](seed_t seed) {
    return fastmax_problem<double>(seed, false, true).compare(true);
  });
}

TEST_CASE("fastmax: the definition, its gradients and pieces", "[mechanism][fast_attention]") {
  for_each_seed("fastmax", 80, [](seed_t seed) {
    return fastmax_problem<float>(seed).compare(seed % 2 == 0) +
           fastmax_problem<float>(seed, true).in_pieces_too();
  });
  for_each_seed("fastmax in double", 30,
                [](seed_t seed) { return fastmax_problem<double>(seed).compare(true); });
}

TEST_CASE("cosformer: the definition, its gradients and pieces", "[mechanism][cosformer]") {
  for_each_seed("cosformer", 60, [](seed_t seed) {
    return cosformer_problem<float>(seed).compare(seed % 2 == 0) +
           cosformer_problem<float>(seed, true).in_pieces_too();
  });
  for_each_seed("cosformer in double", 30,
                [](seed_t seed) { return cosformer_problem<double>(seed).compare(true); });
}

TEST_CASE("efficient attention: the definition and its gradients", "[mechanism][efficient]") {
  for_each_seed("efficient attention", 20, efficient_complaint<float>);
  for_each_seed("efficient attention in double", 8, efficient_complaint<double>);
  for_each_seed("efficient attention by length", 60, by_length_complaint<float>);
  for_each_seed("causal efficient attention", 16, causal_efficient_complaint<float>);
  for_each_seed("causal efficient attention in double", 8, causal_efficient_complaint<double>);
}
