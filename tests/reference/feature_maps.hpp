#pragma once

#include "reference/recurrence.hpp"

#include <functional>

/// Feature maps and their gradients, in plain loops.
namespace reference {

/// A map of one number at a time, by a function and its derivative: f(x) and slope(x).
template <class Function>
struct each_number {
  index_t count(index_t dim) const { return dim; }
  template <class T>
  std::vector<T> features(feature_place const&, std::vector<T> x) const {
    for (T& each : x) each = Function::value(each);
    return x;
  }
  template <class T>
  std::vector<T> gradient(feature_place const&, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> dx;
    for (std::size_t d = 0; d < x.size(); ++d) dx.push_back(Function::slope(x[d]) * dphi[d]);
    return dx;
  }
};

struct elu_plus_one : each_number<elu_plus_one> {
  template <class T>
  static T value(T x) {
    return x > 0 ? x + 1 : std::exp(x);
  }
  template <class T>
  static T slope(T x) {
    return x > 0 ? T(1) : std::exp(x);
  }
};
struct relu : each_number<relu> {
  template <class T>
  static T value(T x) {
    return x > 0 ? x : T(0);
  }
  template <class T>
  static T slope(T x) {
    return x > 0 ? T(1) : T(0);
  }
};
struct squared_relu : each_number<squared_relu> {
  template <class T>
  static T value(T x) {
    return x > 0 ? x * x : T(0);
  }
  template <class T>
  static T slope(T x) {
    return x > 0 ? 2 * x : T(0);
  }
};
struct exponential : each_number<exponential> {
  template <class T>
  static T value(T x) {
    return std::exp(x);
  }
  template <class T>
  static T slope(T x) {
    return std::exp(x);
  }
};
struct sigmoid : each_number<sigmoid> {
  template <class T>
  static T value(T x) {
    return 1 / (1 + std::exp(-x));
  }
  template <class T>
  static T slope(T x) {
    return value(x) * value(-x);
  }
};
struct silu : each_number<silu> {
  template <class T>
  static T value(T x) {
    return x * sigmoid::value(x);
  }
  template <class T>
  static T slope(T x) {
    return sigmoid::value(x) * (1 + x * sigmoid::value(-x));
  }
};

/// e^(k - shift(batch, head)) of a key; e^(q - max q) of a query, the maximum differentiated too.
struct stable_exponential {
  std::function<double(index_t batch, index_t head)> shift;

  index_t count(index_t dim) const { return dim; }
  template <class T>
  std::vector<T> features(feature_place const& at, std::vector<T> const& x) const {
    T const least = at.of_query ? *std::max_element(x.begin(), x.end())
                                : static_cast<T>(shift(at.batch, at.head));
    std::vector<T> phi;
    for (T each : x) phi.push_back(std::exp(each - least));
    return phi;
  }
  template <class T>
  std::vector<T> gradient(feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> const phi = features(at, x);
    std::vector<T> dx;
    T sum = 0;
    for (std::size_t d = 0; d < x.size(); ++d) {
      dx.push_back(phi[d] * dphi[d]);
      sum += dx.back();
    }
    if (at.of_query)
      dx[static_cast<std::size_t>(std::max_element(x.begin(), x.end()) - x.begin())] -= sum;
    return dx;
  }
};

/// softmax over the channels of a row.
struct channel_softmax {
  index_t count(index_t dim) const { return dim; }
  template <class T>
  std::vector<T> features(feature_place const&, std::vector<T> const& x) const {
    T const most = *std::max_element(x.begin(), x.end());
    std::vector<T> phi;
    T sum = 0;
    for (T each : x) phi.push_back(std::exp(each - most)), sum += phi.back();
    for (T& each : phi) each /= sum;
    return phi;
  }
  template <class T>
  std::vector<T> gradient(feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> const phi = features(at, x);
    T mean = 0;
    for (std::size_t d = 0; d < x.size(); ++d) mean += phi[d] * dphi[d];
    std::vector<T> dx;
    for (std::size_t d = 0; d < x.size(); ++d) dx.push_back(phi[d] * (dphi[d] - mean));
    return dx;
  }
};

/// r_i r_(i - s mod 2 dim) for s = 1..nu, r = [relu(x), relu(-x)].
struct dpfp {
  index_t nu = 1;

  index_t count(index_t dim) const { return 2 * dim * nu; }
  template <class T>
  std::vector<T> features(feature_place const&, std::vector<T> const& x) const {
    std::vector<T> const r = halves(x);
    std::vector<T> phi;
    for (index_t s = 1; s <= nu; ++s)
      for (std::size_t i = 0; i < r.size(); ++i) phi.push_back(r[i] * r[rolled(i, s, r.size())]);
    return phi;
  }
  template <class T>
  std::vector<T> gradient(feature_place const&, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> const r = halves(x);
    std::vector<T> dr(r.size(), T(0)), dx;
    for (index_t s = 1; s <= nu; ++s)
      for (std::size_t i = 0; i < r.size(); ++i) {
        std::size_t const other = rolled(i, s, r.size());
        T const each = dphi[static_cast<std::size_t>(s - 1) * r.size() + i];
        dr[i] += each * r[other];
        dr[other] += each * r[i];
      }
    for (std::size_t d = 0; d < x.size(); ++d)
      dx.push_back(x[d] > 0 ? dr[d] : x[d] < 0 ? -dr[d + x.size()] : T(0));
    return dx;
  }

 private:
  template <class T>
  static std::vector<T> halves(std::vector<T> const& x) {
    std::vector<T> r;
    for (T each : x) r.push_back(each > 0 ? each : T(0));
    for (T each : x) r.push_back(each < 0 ? -each : T(0));
    return r;
  }
  static std::size_t rolled(std::size_t i, index_t by, std::size_t size) {
    auto const n = static_cast<index_t>(size);
    return static_cast<std::size_t>(((static_cast<index_t>(i) - by) % n + n) % n);
  }
};

/// The products of up to `degree` channels of sqrt(scale) x, non-decreasing lists of channels in lexicographic
/// order, each divided by the roots of the factorials of how often a channel occurs.
struct polynomial {
  index_t degree = 2;
  double scale = 1;

  index_t count(index_t dim) const {
    index_t number = 0;
    for_lists(dim, [&](auto const&) { ++number; });
    return number;
  }
  template <class T>
  std::vector<T> features(feature_place const&, std::vector<T> const& x) const {
    std::vector<T> phi;
    T const root = std::sqrt(static_cast<T>(scale));
    for_lists(static_cast<index_t>(x.size()), [&](std::vector<std::size_t> const& channels) {
      T product = weight<T>(channels);
      for (std::size_t c : channels) product *= root * x[c];
      phi.push_back(product);
    });
    return phi;
  }
  template <class T>
  std::vector<T> gradient(feature_place const&, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> dx(x.size(), T(0));
    T const root = std::sqrt(static_cast<T>(scale));
    std::size_t n = 0;
    for_lists(static_cast<index_t>(x.size()), [&](std::vector<std::size_t> const& channels) {
      for (std::size_t one = 0; one < channels.size(); ++one) {
        T product = weight<T>(channels) * root * dphi[n];
        for (std::size_t other = 0; other < channels.size(); ++other)
          if (other != one) product *= root * x[channels[other]];
        dx[channels[one]] += product;
      }
      ++n;
    });
    return dx;
  }

 private:
  template <class Visit>
  void for_lists(index_t dim, Visit visit) const {
    std::vector<std::size_t> channels;
    std::function<void(index_t, std::size_t)> const extend = [&](index_t left, std::size_t from) {
      if (left == 0) return visit(channels);
      for (std::size_t c = from; c < static_cast<std::size_t>(dim); ++c) {
        channels.push_back(c);
        extend(left - 1, c);
        channels.pop_back();
      }
    };
    for (index_t l = 0; l <= degree; ++l) extend(l, 0);
  }
  template <class T>
  static T weight(std::vector<std::size_t> const& channels) {
    T factorials = 1;
    index_t run = 0;
    for (std::size_t n = 0; n < channels.size(); ++n) {
      run = n > 0 && channels[n] == channels[n - 1] ? run + 1 : 1;
      factorials *= static_cast<T>(run);
    }
    return 1 / std::sqrt(factorials);
  }
};

/// polynomial of degree 2 with scale dim^-1/2.
struct taylor {
  index_t count(index_t dim) const { return 1 + dim + dim * (dim + 1) / 2; }
  template <class T>
  std::vector<T> features(feature_place const& at, std::vector<T> const& x) const {
    return of(x).features(at, x);
  }
  template <class T>
  std::vector<T> gradient(feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    return of(x).gradient(at, x, dphi);
  }

 private:
  template <class T>
  static polynomial of(std::vector<T> const& x) {
    return {2, 1 / std::sqrt(static_cast<double>(x.size()))};
  }
};

/// [u sin(pi p / 2 horizon), u cos(pi p / 2 horizon)], u = relu(x), positions counted from 1.
struct cosine_reweighted {
  double horizon;
  index_t tokens_before = 0;

  index_t count(index_t dim) const { return 2 * dim; }
  template <class T>
  std::vector<T> features(feature_place const& at, std::vector<T> const& x) const {
    std::vector<T> phi;
    for (bool cosine : {false, true})
      for (T each : x) phi.push_back(each > 0 ? each * factor<T>(at, cosine) : T(0));
    return phi;
  }
  template <class T>
  std::vector<T> gradient(feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> dx;
    for (std::size_t d = 0; d < x.size(); ++d)
      dx.push_back(x[d] > 0
                       ? dphi[d] * factor<T>(at, false) + dphi[d + x.size()] * factor<T>(at, true)
                       : T(0));
    return dx;
  }

 private:
  template <class T>
  T factor(feature_place const& at, bool cosine) const {
    auto const p = static_cast<T>(at.position + 1 + tokens_before);
    T const angle = T(1.57079632679489661923L) * p / static_cast<T>(horizon);
    return cosine ? std::cos(angle) : std::sin(angle);
  }
};

/// omega x / dim^1/4; the several ways of computing it round differently.
template <class T>
std::vector<T> favor_products(tensor<double, 2> const& omega, std::vector<T> const& x,
                              int way = 0) {
  T const shrink = 1 / std::sqrt(std::sqrt(static_cast<T>(x.size())));
  std::vector<T> products;
  for (index_t f = 0; f < omega.extent(0); ++f) {
    T sum = 0;
    for (std::size_t n = 0; n < x.size(); ++n) {
      std::size_t const d = way == 2 ? x.size() - 1 - n : n;
      sum += static_cast<T>(omega(f, static_cast<index_t>(d))) * (way > 0 ? x[d] : shrink * x[d]);
    }
    products.push_back(way > 0 ? shrink * sum : sum);
  }
  return products;
}

/// max(omega x', 0) + epsilon.
struct favor_relu {
  tensor<double, 2> omega;
  double epsilon = 1e-3;
  int way = 0;

  index_t count(index_t) const { return omega.extent(0); }
  template <class T>
  std::vector<T> features(feature_place const&, std::vector<T> const& x) const {
    std::vector<T> phi = favor_products(omega, x, way);
    for (T& each : phi) each = (each > 0 ? each : T(0)) + static_cast<T>(epsilon);
    return phi;
  }
  template <class T>
  std::vector<T> gradient(feature_place const&, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> const products = favor_products(omega, x, way);
    T const shrink = 1 / std::sqrt(std::sqrt(static_cast<T>(x.size())));
    std::vector<T> dx(x.size(), T(0));
    for (std::size_t f = 0; f < products.size(); ++f)
      for (std::size_t d = 0; d < x.size(); ++d)
        if (products[f] > 0)
          dx[d] += shrink * dphi[f] *
                   static_cast<T>(omega(static_cast<index_t>(f), static_cast<index_t>(d)));
    return dx;
  }
};

/// m^-1/2 (exp(omega x' - |x'|^2 / 2 - c) + epsilon); c is the largest product of a query, and key_shift of a key.
/// With `bare_queries` they do without |x'|^2 / 2.
struct favor_positive {
  tensor<double, 2> omega;
  std::function<double(feature_place const&)> key_shift;
  double epsilon = 1e-4;
  bool bare_queries = false;
  int way = 0;

  index_t count(index_t) const { return omega.extent(0); }
  template <class T>
  std::vector<T> features(feature_place const& at, std::vector<T> const& x) const {
    std::vector<T> phi = powers(at, x);
    for (T& each : phi)
      each = (each + static_cast<T>(epsilon)) / std::sqrt(static_cast<T>(phi.size()));
    return phi;
  }
  template <class T>
  std::vector<T> gradient(feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> const power = powers(at, x);
    T const shrink = 1 / std::sqrt(std::sqrt(static_cast<T>(x.size())));
    T const root = std::sqrt(static_cast<T>(power.size()));
    std::vector<T> dx(x.size(), T(0));
    T sum = 0;
    for (std::size_t f = 0; f < power.size(); ++f) {
      T const each = dphi[f] * power[f] / root;
      sum += each;
      for (std::size_t d = 0; d < x.size(); ++d) {
        auto const by_row = static_cast<T>(omega(static_cast<index_t>(f), static_cast<index_t>(d)));
        dx[d] += each * (way == 0 && has_square(at) ? by_row - shrink * x[d] : by_row);
      }
    }
    for (std::size_t d = 0; d < x.size(); ++d)
      dx[d] = shrink * (way == 0 || !has_square(at) ? dx[d] : dx[d] - sum * (shrink * x[d]));
    return dx;
  }

 private:
  bool has_square(feature_place const& at) const { return !at.of_query || !bare_queries; }
  template <class T>
  std::vector<T> powers(feature_place const& at, std::vector<T> const& x) const {
    std::vector<T> products = favor_products(omega, x, way);
    T const root = std::sqrt(std::sqrt(static_cast<T>(x.size())));
    T square = 0;  // |x'|^2 / 2
    for (T each : x) square += way > 0 ? each * each : (each / root) * (each / root) / 2;
    if (way > 0) square /= 2 * std::sqrt(static_cast<T>(x.size()));
    T const less = has_square(at) ? square : T(0);
    T const c = at.of_query ? *std::max_element(products.begin(), products.end())
                            : static_cast<T>(key_shift(at));
    for (T& each : products)
      each = way == 0   ? std::exp(each - less - c)
             : way == 1 ? std::exp(each - (less + c))
                        : std::exp(each) / std::exp(less + c);
    return products;
  }
};

}  // namespace reference
