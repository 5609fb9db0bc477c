// Reads an endless stream of bytes with a memory that never grows, and predicts each one before it comes.
//
//   tail -f /var/log/syslog | stream gated_delta          yes | stream | head          cat /dev/urandom | stream linear
//
// Softmax attention needs all keys it has ever seen; linear attention and its relatives need a state. Here the state is an
// associative memory, as in induction_lm.cpp: a key is what the text looked like before a byte, its value that byte, and a
// query what the text looks like now. Every head describes the text by another number of last bytes, as a vector of random
// signs, and what it reads from its state is a vote for each of the 256 bytes. Votes are weighed by how well they have done.
//
// Bytes go through the mechanism in chunks, as many as there are at the time; the state that a chunk ends with is the one
// that the next begins with, so that it makes no difference how the stream is cut.

#include <heed/linear.hpp>
#include <heed/mechanism/based.hpp>
#include <heed/mechanism/delta_rule.hpp>
#include <heed/mechanism/efla.hpp>
#include <heed/mechanism/gated_linear_attention.hpp>
#include <heed/mechanism/gated_slot_attention.hpp>
#include <heed/mechanism/lightnet.hpp>
#include <heed/mechanism/lightning_attention.hpp>
#include <heed/mechanism/performer.hpp>
#include <heed/mechanism/titans.hpp>
#include <heed/parallel/eigen_pool.hpp>
#include <heed/recur/features/elementwise.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <unistd.h>

namespace {

using heed::index_t;
using heed::tensor_view;
using std::size_t;

using pool = Eigen::ThreadPool;
using clock_type = std::chrono::steady_clock;

// --- How a place in the stream is described ----------------------------------------------------

constexpr index_t heads = 4, symbols = 256, most_at_once = 256;

/// How many of the last bytes each head looks at.
constexpr std::array<size_t, heads> context_lengths{1, 2, 3, 5};

constexpr std::uint64_t scramble(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// The last bytes of the stream.
class recent_bytes {
 public:
  void add(unsigned char byte) {
    std::rotate(bytes_.rbegin(), bytes_.rbegin() + 1, bytes_.rend());
    bytes_.front() = byte;
  }

  /// A unit vector of random signs, the same whenever the last bytes are.
  void describe(index_t head, std::span<float> vector) const {
    std::uint64_t hash = scramble(static_cast<std::uint64_t>(head));
    for (size_t i = 0; i < context_lengths[size_t(head)]; ++i) hash = scramble(hash ^ bytes_[i]);
    float const size = 1 / std::sqrt(float(vector.size()));
    for (size_t d = 0; d < vector.size(); ++d)
      vector[d] = (hash >> (d % 64) & 1) != 0 ? size : -size;
  }

 private:
  std::array<unsigned char, 8> bytes_{};
};

// --- The mechanisms ----------------------------------------------------------------------------

/// What a mechanism reads and writes of some bytes: [1, bytes, heads, channels], values and bytes the same for all heads.
struct chunk {
  tensor_view<float const, 4> query, key, value;
  tensor_view<float, 4> out;
  std::span<unsigned char const> bytes;  // what each value stands for
  pool& threads;
};

/// Has the chunk learned and read; what is carried on belongs to it.
using reader = std::function<void(chunk const&)>;

struct mechanism {
  char const* name;
  char const* meaning;
  index_t dim;      // of queries and keys, at most 64
  float amplitude;  // their size
  std::function<reader(index_t dim)> make;
};

/// A state of `rows` x `columns` for each head.
struct state_memory {
  std::vector<float> numbers;
  tensor_view<float, 4> view;

  state_memory(index_t rows, index_t columns = symbols)
      : numbers(size_t(heads * rows * columns)), view(numbers.data(), {1, heads, rows, columns}) {}
};

/// A number for every byte and head, the same for all or made of the byte.
template <class F>
std::function<tensor_view<float const, 3>(chunk const&)> for_each_byte(F number) {
  auto const all = std::make_shared<std::vector<float>>(size_t(most_at_once));
  return [=](chunk const& now) {
    std::ranges::transform(now.bytes, all->begin(), number);
    return tensor_view<float const, 3>(all->data(), {1, index_t(now.bytes.size()), heads},
                                       {0, 1, 0});
  };
}

/// linear_attention with these ingredients; `columns` of the state are one more if it is normalised.
template <class... Ingredients>
reader linear(index_t features, index_t columns, Ingredients const&... ingredients) {
  auto const memory = std::make_shared<state_memory>(features, columns);
  return [=](chunk const& now) {
    heed::linear_attention(now.query, now.key, now.value, now.out, heed::state{memory->view},
                           heed::on{now.threads}, ingredients...);
  };
}

reader retention(index_t dim) {
  auto const decays = std::make_shared<std::array<float, heads>>();
  auto const memory = std::make_shared<state_memory>(dim);
  heed::retention_decays(std::span<float>(*decays));
  // The published ones forget in some hundred tokens; here each looks sixteen times as far.
  for (float& each : *decays) each /= 16;
  return [=](chunk const& now) {
    heed::linear_attention(now.query, now.key, now.value, now.out, heed::state{memory->view},
                           heed::fixed_decay(std::span<float const>(*decays)),
                           heed::on{now.threads});
  };
}

/// Gates that forget more at the end of a line.
reader gated_linear(index_t dim) {
  auto const memory = std::make_shared<state_memory>(dim);
  auto const gate = for_each_byte([](unsigned char c) { return c == '\n' ? 3.f : 7.f; });
  return [=](chunk const& now) {
    auto const numbers = gate(now);
    tensor_view<float const, 4> const of_channels(numbers.data(),
                                                  {1, numbers.extent(1), heads, dim}, {0, 1, 0, 0});
    heed::gated_linear_attention(now.query, now.key, now.value, of_channels, now.out,
                                 heed::state{memory->view}, heed::on{now.threads});
  };
}

reader performer(index_t dim) {
  struct carried {
    state_memory memory{128, symbols + 1};
    std::array<float, heads> largest;
    heed::favor_projection projection;

    carried(index_t d, std::mt19937_64 random)
        : projection(heed::favor_projection::orthogonal(128, d, random)) {
      largest.fill(-std::numeric_limits<float>::infinity());
    }
  };
  auto const held = std::make_shared<carried>(dim, std::mt19937_64(1));
  return [=](chunk const& now) {
    heed::causal_performer(
        now.query, now.key, now.value, now.out, held->projection, heed::state{held->memory.view},
        heed::running_maximum{tensor_view<float, 2>(held->largest.data(), {1, heads})},
        heed::on{now.threads});
  };
}

reader delta_rule(index_t dim) {
  auto const memory = std::make_shared<state_memory>(dim);
  auto const rate = for_each_byte([](unsigned char) { return 0.15f; });
  return [=](chunk const& now) {
    heed::linear_attention(now.query, now.key, now.value, now.out, heed::delta{rate(now)},
                           heed::state{memory->view}, heed::on{now.threads});
  };
}

reader gated_delta_rule(index_t dim) {
  auto const memory = std::make_shared<state_memory>(dim);
  auto const rate = for_each_byte([](unsigned char) { return 0.15f; });
  auto const gate = for_each_byte([](unsigned char c) { return c == '\n' ? -2e-3f : -1e-4f; });
  return [=](chunk const& now) {
    heed::linear_attention(now.query, now.key, now.value, now.out, heed::delta{rate(now)},
                           heed::decay{gate(now)}, heed::state{memory->view},
                           heed::on{now.threads});
  };
}

reader error_free(index_t dim) {
  auto const memory = std::make_shared<state_memory>(dim);
  auto const rate = for_each_byte([](unsigned char) { return 0.15f; });
  return [=](chunk const& now) {
    heed::linear_attention(now.query, now.key, now.value, now.out, heed::efla_queries(dim),
                           heed::exact_delta{rate(now)}, heed::state{memory->view},
                           heed::on{now.threads});
  };
}

/// Six signs of a key say which slot it is written to.
reader gated_slots(index_t dim) {
  constexpr index_t slots = 64;
  struct carried {
    state_memory keys, values;
    std::vector<float> numbers, log_gate, strength;

    explicit carried(index_t d)
        : keys(d, slots),
          values(slots),
          numbers(size_t(most_at_once * heads * slots)),
          log_gate(numbers.size()),
          strength(numbers.size()) {}
  };
  auto const held = std::make_shared<carried>(dim);
  return [=](chunk const& now) {
    auto const count = index_t(now.bytes.size());
    auto const view = [&](std::vector<float>& all) {
      return heed::bnhd(all.data(), 1, count, heads, slots);
    };
    std::ranges::fill(held->numbers, 8.f);  // kept as they are
    for (index_t i = 0; i < count; ++i)
      for (index_t h = 0; h < heads; ++h) {
        index_t slot = 0;
        for (index_t d = 0; d < 6; ++d) slot = 2 * slot + (now.key(0, i, h, d) > 0);
        view(held->numbers)(0, i, h, slot) = 0;
      }
    heed::slot_gates(view(held->numbers), view(held->log_gate), view(held->strength),
                     heed::on{now.threads});
    heed::gated_slot_attention(now.query, now.key, now.value, view(held->strength),
                               view(held->log_gate), now.out, heed::scale{8},
                               heed::slot_state{held->keys.view, held->values.view},
                               heed::on{now.threads});
  };
}

reader light_net(index_t dim) {
  struct carried {
    state_memory memory;
    std::vector<double> total;
    heed::lightnet_state<float> state;

    explicit carried(index_t d)
        : memory(d),
          total(size_t(heads * d)),
          state{memory.view, tensor_view<double, 3>(total.data(), {1, heads, d})} {
      state.clear();
    }
  };
  auto const held = std::make_shared<carried>(dim);
  return [=](chunk const& now) {
    heed::lightnet(now.query, now.key, now.value, now.out, held->state, heed::on{now.threads});
  };
}

/// A matrix that learns by gradient descent with momentum, eight tokens at a time.
reader titans(index_t dim) {
  constexpr index_t together = 8;
  struct carried {
    state_memory weights, momentum, reference;
    heed::titans_state<float> state;

    explicit carried(index_t d) : weights(d), momentum(d), reference(d) {
      state.memory.weights = {weights.view};
      state.memory.momentum = {momentum.view};
      state.reference = {reference.view};
    }
  };
  auto const held = std::make_shared<carried>(dim);
  auto const rate = for_each_byte([](unsigned char) { return 0.1f; });
  auto const eta = for_each_byte([](unsigned char) { return 0.3f; });
  auto const alpha = for_each_byte([](unsigned char) { return 1e-4f; });
  return [=](chunk const& now) {
    auto const value = tensor_view<float const, 4>(
        now.value.data(), now.out.extents(), {0, now.value.stride(1), 0, now.value.stride(3)});
    heed::titans_step(now.query, now.key, value, now.out,
                      heed::titans_gates(rate(now), eta(now), alpha(now)), held->state, together,
                      heed::on{now.threads});
  };
}

std::vector<mechanism> mechanisms() {
  return {
      {"linear", "kernelised linear attention with squared_relu and a normaliser", 64, 1,
       [](index_t dim) {
         return linear(dim, symbols + 1, heed::squared_relu{}, heed::normalised{});
       }},
      {"retention", "one decay a head", 64, 1, retention},
      {"gla", "gated linear attention: forgets more at line ends", 64, 1, gated_linear},
      {"based", "the exponential's Taylor polynomial", 16, 5,
       [](index_t dim) {
         return linear(heed::taylor::features(dim), symbols + 1, heed::taylor{},
                       heed::based_normaliser);
       }},
      {"performer", "random features of the exponential", 64, 5, performer},
      {"delta", "the delta rule", 64, 1, delta_rule},
      {"gated_delta", "the delta rule, and a decay", 64, 1, gated_delta_rule},
      {"efla", "the delta rule without the error of its steps", 64, 1, error_free},
      {"gsa", "gated slot attention: 64 slots", 64, 1, gated_slots},
      {"lightnet", "averages by each channel's softmax over the past", 64, 16, light_net},
      {"titans", "a matrix trained while it is read", 64, 1, titans},
  };
}

// --- From votes to a probability ---------------------------------------------------------------

/// Mixes what heads say of the next byte, twice each: as it is, and sharpened. The ones that did well are trusted more.
class electorate {
 public:
  electorate() { trust_.fill(1. / double(trust_.size())); }

  /// Bits that the byte costs; then it is known.
  double cost(tensor_view<float, 4> votes, index_t row, unsigned char byte) {
    std::array<double, experts> said;
    for (index_t h = 0; h < heads; ++h) {
      float const* const vote = &votes(0, row, h, 0);
      float sum = 0, squares = 0;
      for (index_t c = 0; c < symbols; ++c) {
        float const positive = std::max(vote[c], 0.f);
        sum += positive;
        squares += positive * positive;
      }
      float const mine = std::max(vote[byte], 0.f);
      said[size_t(2 * h)] = with_floor(sum > 0 ? double(mine / sum) : 0);
      said[size_t(2 * h + 1)] = with_floor(squares > 0 ? double(mine * mine / squares) : 0);
    }
    said.back() = (count_[byte] + 0.5) / (total_ + 0.5 * double(symbols));

    double mixed = 0;
    for (size_t e = 0; e < said.size(); ++e) mixed += trust_[e] * said[e];
    constexpr double change = 0.02;  // trust is never lost for good
    for (size_t e = 0; e < said.size(); ++e)
      trust_[e] = (1 - change) * trust_[e] * said[e] / mixed + change / double(experts);
    ++count_[byte];
    ++total_;
    return -std::log2(mixed);
  }

 private:
  static constexpr size_t experts =
      2 * heads + 1;  // the last one goes by how often bytes have come

  static double with_floor(double probability) {
    return 0.98 * probability + 0.02 / double(symbols);
  }

  std::array<double, experts> trust_;
  std::array<double, symbols> count_{};
  double total_ = 0;
};

// --- The pass ----------------------------------------------------------------------------------

/// The memory that the program has, in megabytes; 0 where that is not known.
double resident_megabytes() {
  double pages = 0;
  if (std::FILE* const file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%*s %lf", &pages) != 1) pages = 0;
    std::fclose(file);
  }
  return pages * double(sysconf(_SC_PAGESIZE)) / 1e6;
}

struct report {
  double bytes = 0, bits = 0, recent_bits = 0, recent_bytes = 0;
  clock_type::time_point start = clock_type::now(), shown = start;

  void add(double cost) {
    ++bytes;
    bits += cost;
    recent_bytes = 0.9999 * recent_bytes + 1;
    recent_bits = 0.9999 * recent_bits + cost;
  }
  double seconds() const {
    return std::chrono::duration<double>(clock_type::now() - start).count();
  }

  void print(std::FILE* to, char const* end) const {
    std::fprintf(to, "%12.0f bytes %9.0f a second %8.3f bits each %8.3f lately %9.1f MB%s", bytes,
                 bytes / std::max(seconds(), 1e-9), bits / std::max(bytes, 1.),
                 recent_bits / std::max(recent_bytes, 1.), resident_megabytes(), end);
    std::fflush(to);
  }
  /// On a terminal a line that changes, elsewhere a line every ten seconds.
  void show() {
    bool const watched = isatty(STDERR_FILENO) != 0;
    auto const now = clock_type::now();
    if (now - shown < std::chrono::milliseconds(watched ? 200 : 10000)) return;
    shown = now;
    print(stderr, watched ? "\r" : "\n");
  }
};

/// Everything that a pass keeps in memory.
class pass {
 public:
  pass(mechanism const& what, pool& threads)
      : what_(what),
        read_(what.make(what.dim)),
        threads_(threads),
        descriptions_(size_t((most_at_once + 1) * heads * what.dim)),
        values_(size_t(most_at_once * symbols)),
        out_(size_t(most_at_once * heads * symbols)) {
    describe(0);
  }

  /// Predicts some bytes from those before, and learns them.
  void run(std::span<unsigned char const> bytes, report& so_far) {
    auto const count = index_t(bytes.size());
    std::fill_n(values_.begin(), count * symbols, 0.f);
    for (index_t i = 0; i < count; ++i) {
      values_[size_t(i * symbols) + bytes[size_t(i)]] = 1;
      recent_.add(bytes[size_t(i)]);
      describe(i + 1);
    }
    auto const described = [&](index_t first) {
      return heed::bnhd(std::as_const(descriptions_).data() + first * heads * what_.dim, 1, count,
                        heads, what_.dim);
    };
    // Token i: what stood before byte i, and that byte, are learned; what stands behind it asks for the next one.
    auto const out = heed::bnhd(out_.data(), 1, count, heads, symbols);
    read_({described(1), described(0),
           heed::bnhd(std::as_const(values_).data(), 1, count, 1, symbols), out, bytes, threads_});
    for (index_t i = 0; i < count; ++i) {
      // Byte i was predicted by the row before; the first row of a chunk is told by the last chunk.
      so_far.add(i == 0 ? voters_.cost(last_view(), 0, bytes[0])
                        : voters_.cost(out, i - 1, bytes[size_t(i)]));
    }
    std::copy_n(&out(0, count - 1, 0, 0), last_.size(), last_.begin());
    std::copy_n(&descriptions_[size_t(count * heads * what_.dim)], heads * what_.dim,
                descriptions_.begin());
  }

 private:
  void describe(index_t row) {
    for (index_t h = 0; h < heads; ++h) {
      std::span<float> const vector(&descriptions_[size_t((row * heads + h) * what_.dim)],
                                    size_t(what_.dim));
      recent_.describe(h, vector);
      for (float& x : vector) x *= what_.amplitude;
    }
  }
  tensor_view<float, 4> last_view() { return heed::bnhd(last_.data(), 1, 1, heads, symbols); }

  mechanism what_;
  reader read_;
  pool& threads_;
  recent_bytes recent_;
  electorate voters_;
  std::vector<float> descriptions_, values_, out_;
  std::vector<float> last_ = std::vector<float>(size_t(heads * symbols));
};

// --- The program -------------------------------------------------------------------------------

volatile std::sig_atomic_t stopped = 0;

void print_mechanisms() {
  for (mechanism const& each : mechanisms()) std::printf("%-12s %s\n", each.name, each.meaning);
}

void print_usage() {
  std::printf(
      R"(Reads standard input to its end, if it has one, and predicts every byte from those before, in
constant memory.

  ... | stream [MECHANISM] [--threads N]
  stream --list

MECHANISM is gated_delta by default, or one of

)");
  print_mechanisms();
}

/// Thrown for a command line that makes no sense.
struct usage_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int run(std::string const& name, int thread_count) {
  auto const all = mechanisms();
  auto const found = std::ranges::find_if(all, [&](auto const& each) { return name == each.name; });
  if (found == all.end()) throw usage_error("there is no mechanism " + name);
  if (isatty(STDIN_FILENO) != 0) {
    print_usage();
    return EXIT_SUCCESS;
  }
  pool threads(thread_count);
  pass reading(*found, threads);
  report so_far;
  std::array<unsigned char, most_at_once> bytes;
  // A key that interrupts ends the stream, and not the program.
  struct sigaction stop {};
  stop.sa_handler = [](int) { stopped = 1; };
  sigaction(SIGINT, &stop, nullptr);
  while (stopped == 0) {
    ssize_t const count = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (count < 0 && errno != EINTR)
      throw std::runtime_error(std::string("cannot read standard input: ") + std::strerror(errno));
    if (count == 0) break;
    if (count < 0) continue;
    reading.run(std::span<unsigned char const>(bytes).first(size_t(count)), so_far);
    so_far.show();
  }
  if (so_far.bytes == 0) {
    print_usage();
    return EXIT_SUCCESS;
  }
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\n");
  std::printf("%-12s", found->name);
  so_far.print(stdout, "\n");
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argument_count, char** arguments) {
  try {
    std::string name = "gated_delta";
    int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    for (int i = 1; i < argument_count; ++i) {
      std::string const argument = arguments[i];
      if (argument == "--help" || argument == "-h") {
        print_usage();
        return EXIT_SUCCESS;
      }
      if (argument == "--list") {
        print_mechanisms();
        return EXIT_SUCCESS;
      }
      if (argument == "--threads") {
        threads = i + 1 < argument_count ? std::atoi(arguments[++i]) : 0;
        if (threads < 1 || threads > 4096) throw usage_error("--threads needs a number from 1 on");
      } else if (argument.size() > 1 && argument[0] == '-') {
        throw usage_error("there is no option " + argument);
      } else {
        name = argument;
      }
    }
    return run(name, threads);
  } catch (usage_error const& problem) {
    std::fprintf(stderr, "stream: %s. Try --help.\n", problem.what());
    return 2;
  } catch (std::exception const& problem) {
    std::fprintf(stderr, "stream: %s\n", problem.what());
    return EXIT_FAILURE;
  }
}
