// Causal attention of five words, in the fewest lines: what does each word look at?

#include <heed/heed.hpp>

#include <cstdio>

int main() {
  char const* const words[] = {"the", "cat", "and", "the", "dog"};
  constexpr heed::index_t count = 5, dim = 2;

  // One embedding a word serves as its query and its key: articles, nouns and others point apart.
  float const embedding[count][dim] = {{4, 0}, {0, 4}, {-2, -2}, {4, 0}, {0, 4}};
  // With the identity for values, what comes out is the weights themselves.
  float identity[count][count] = {}, weights[count][count];
  for (auto i = 0; i < count; ++i) identity[i][i] = 1;

  // [batch, position, head, dim]: one batch entry, one head.
  auto const words_view = heed::bnhd(&embedding[0][0], 1, count, 1, dim);
  heed::attention(words_view, words_view, heed::bnhd(&identity[0][0], 1, count, 1, count),
                  heed::bnhd(&weights[0][0], 1, count, 1, count), heed::causal{});

  for (auto i = 0; i < count; ++i) {
    std::printf("%-4s looks at", words[i]);
    for (auto j = 0; j <= i; ++j) std::printf("  %s %3.0f%%", words[j], 100 * weights[i][j]);
    std::printf("\n");
  }
}
