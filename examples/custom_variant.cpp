// A pattern and a score modifier of one's own: forward, backward, and a check of the gradient.
//
// The pattern is dilated: a query meets every third key before it. The modifier dampens large
// scores, s -> s / sqrt(1 + s^2 / bound^2). Neither needs anything of heed but the signature of its
// functions.

#include <heed/heed.hpp>

#include <xsimd/xsimd.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

/// Which pairs meet. This one function is all a pattern must have; heed/pattern/pattern.hpp names
/// three more that make one fast.
struct dilated {
  heed::index_t step;

  bool keep(heed::index_t query, heed::index_t key) const {
    return key <= query && (query - key) % step == 0;
  }
};

/// How a pair is scored, for a SIMD register of scores at a time.
struct dampen {
  double bound;

  template <class Batch>
  Batch apply(Batch score, Batch /*query*/, Batch /*key*/) const {
    return score / xsimd::sqrt(stretch(score));
  }
  /// d modified / d score, for the backward pass.
  template <class Batch>
  Batch slope(Batch score, Batch /*modified*/) const {
    return 1 / (stretch(score) * xsimd::sqrt(stretch(score)));
  }

 private:
  template <class Batch>
  Batch stretch(Batch score) const {
    using number = typename Batch::value_type;
    return 1 + score * score * number(1 / (bound * bound));
  }
};

int main() {
  constexpr heed::index_t batch = 1, positions = 40, heads = 2, dim = 12;
  constexpr auto size = static_cast<std::size_t>(batch * positions * heads * dim);

  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  auto random_tensor = [&] {
    std::vector<double> numbers(size);
    for (double& number : numbers) number = normal(random);
    return numbers;
  };
  std::vector<double> query = random_tensor(), key = random_tensor(), value = random_tensor();
  std::vector<double> const loss_weights = random_tensor();
  std::vector<double> out(size), dquery(size), dkey(size), dvalue(size);
  std::vector<double> lse(static_cast<std::size_t>(batch * heads * positions));

  auto view = [&](auto& numbers) {
    return heed::bnhd(numbers.data(), batch, positions, heads, dim);
  };
  heed::tensor_view<double, 3> const lse_view(lse.data(), {batch, heads, positions});
  dilated const every_third{3};
  dampen const dampened{2.0};

  // The loss is a weighted sum of everything that comes out, so that loss_weights is d loss / d
  // out.
  auto loss = [&] {
    heed::attention(view(query), view(key), view(value), view(out), every_third, dampened,
                    heed::lse_into{lse_view});
    double sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += loss_weights[i] * out[i];
    return sum;
  };
  std::printf("loss %.6f\n", loss());
  heed::attention_backward(view(query), view(key), view(value), view(out), lse_view,
                           view(loss_weights), view(dquery), view(dkey), view(dvalue), every_third,
                           dampened);

  // The same gradients from the definition: how much does the loss move with one number?
  auto largest_difference = [&](std::vector<double>& input, std::vector<double> const& gradient) {
    double const step = 1e-5;
    double largest = 0;
    for (std::size_t i = 0; i < size; i += 7) {
      double const original = input[i];
      input[i] = original + step;
      double const above = loss();
      input[i] = original - step;
      double const below = loss();
      input[i] = original;
      largest = std::max(largest, std::abs((above - below) / (2 * step) - gradient[i]));
    }
    return largest;
  };

  bool good = true;
  auto check = [&](char const* name, std::vector<double>& input,
                   std::vector<double> const& gradient) {
    double const difference = largest_difference(input, gradient);
    std::printf("gradient of the %s  differs from central differences by %.1e at most\n", name,
                difference);
    good = good && difference < 1e-7;
  };
  check("query", query, dquery);
  check("key  ", key, dkey);
  check("value", value, dvalue);
  std::printf(good ? "The gradients agree.\n" : "The gradients do NOT agree.\n");
  return good ? 0 : 1;
}
