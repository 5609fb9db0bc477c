// Non-local means, written as neighborhood attention: takes the noise out of a picture.
//
//   denoise in.png out.png
//   denoise --demo
//
// A pixel is replaced by a mean of the pixels around it, and those count the most whose surroundings look the same.
// That is one head of softmax attention over a neighborhood:
//
//   query i  the patch around pixel i, as a vector
//   key j    the patch around pixel j. The score is minus their squared distance, -|p_i - p_j|^2 / h^2. What only
//            depends on i is the same for all keys of a query and cancels, so that 2 / h^2 (p_i.p_j - |p_j|^2 / 2)
//            will do: a scaled product, with one coordinate more that is 1 in queries and -|p_j|^2 / 2 in keys
//   value j  the pixel j itself
//
// (Buades, Coll, Morel: A non-local algorithm for image denoising.)

#include <heed/heed.hpp>
#include <heed/neighborhood.hpp>
#include <heed/parallel/eigen_pool.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <unistd.h>

#ifdef HEED_HAS_PNG
#include <png.h>
#endif

namespace {

using heed::index_t;
using std::size_t;

/// Thrown for a command line or a file that makes no sense.
struct input_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Pixels row by row, each of one channel (grey) or three, from 0 to 1.
struct picture {
  index_t height = 0, width = 0, channels = 1;
  std::vector<float> values = {};

  picture(index_t h, index_t w, index_t c)
      : height(h), width(w), channels(c), values(size_t(h * w * c)) {}

  float& at(index_t y, index_t x, index_t c) {
    return values[size_t((y * width + x) * channels + c)];
  }
  float at(index_t y, index_t x, index_t c) const {
    return values[size_t((y * width + x) * channels + c)];
  }
  /// Beyond its borders a picture goes on with the pixels there.
  float around(index_t y, index_t x, index_t c) const {
    return at(std::clamp(y, index_t{0}, height - 1), std::clamp(x, index_t{0}, width - 1), c);
  }
};

// --- Denoising ---------------------------------------------------------------------------------

struct settings {
  std::array<index_t, 2> window = {21, 21};
  index_t patch = 5;
  std::optional<double> sigma = {};  // of values from 0 to 1; estimated unless given
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
};

/// The standard deviation of the noise. The filter is blind to slopes, and the median to the few places where the
/// picture has edges.
double estimated_sigma(picture const& noisy) {
  std::vector<float> responses;
  for (index_t y = 1; y + 1 < noisy.height; ++y)
    for (index_t x = 1; x + 1 < noisy.width; ++x)
      for (index_t c = 0; c < noisy.channels; ++c) {
        auto line = [&](index_t row) {
          return noisy.at(row, x - 1, c) - 2 * noisy.at(row, x, c) + noisy.at(row, x + 1, c);
        };
        responses.push_back(std::abs(line(y - 1) - 2 * line(y) + line(y + 1)));
      }
  if (responses.empty()) return 0;
  auto const middle = responses.begin() + std::ssize(responses) / 2;
  std::nth_element(responses.begin(), middle, responses.end());
  double const of_filter = 6;               // the root of the sum of its squared weights
  double const median_of_normal = 0.67449;  // of |x| where x has a standard deviation of 1
  return double(*middle) / of_filter / median_of_normal;
}

/// What all pixels of a canvas find among the pixels of a window around each.
void look_around(std::vector<float>& queries, std::vector<float>& keys, std::vector<float>& values,
                 std::vector<float>& found, std::vector<float>& lse, std::array<index_t, 2> canvas,
                 std::array<index_t, 2> window, double sharpness, Eigen::ThreadPool& threads) {
  index_t const pixels = canvas[0] * canvas[1];
  auto view = [&](std::vector<float>& numbers) {
    return heed::bnhd(numbers.data(), 1, pixels, 1, std::ssize(numbers) / pixels);
  };
  heed::neighborhood_attention<2>(
      view(queries), view(keys), view(values), view(found), {.canvas = canvas, .window = window},
      heed::scale{sharpness},
      heed::lse_into{heed::tensor_view<float, 3>(lse.data(), {1, 1, pixels})}, heed::on{threads});
}

/// Strips of the picture are done one after the other, as a vector for each pixel is a lot of memory. `progress` is
/// told the share that is done.
template <class Progress>
picture denoised(picture const& noisy, settings const& given, double sigma, Progress progress) {
  index_t const height = noisy.height, width = noisy.width, channels = noisy.channels;
  std::array<index_t, 2> const window{std::min(given.window[0], height),
                                      std::min(given.window[1], width)};
  index_t const reach = given.patch / 2, dim = given.patch * given.patch * channels + 1;
  // Patches that differ by noise alone are 2 sigma^2 apart, for each of their values.
  double const values_of_patch = double(dim - 1);
  double const softness = 0.8 * sigma * sigma * values_of_patch;  // h^2
  constexpr index_t pixels_at_once = 1 << 16;
  index_t const step = std::max(pixels_at_once / width, 2 * window[0]);

  picture result(height, width, channels);
  Eigen::ThreadPool threads(given.threads);
  std::vector<float> queries, keys, values, found, lse;
  for (index_t y = 0; y < height; y += step) {
    // The strip, with the rows above and below that its pixels look at.
    index_t const end = std::min(y + step, height);
    index_t const first = std::max(index_t{0}, std::min(y - window[0] / 2, height - window[0]));
    index_t const last = std::min(height, std::max(end + window[0] / 2, window[0]));
    index_t const pixels = (last - first) * width;
    queries.resize(size_t(pixels * dim));
    keys.resize(queries.size());
    values.resize(size_t(pixels * channels));
    found.resize(values.size());
    lse.resize(size_t(pixels));
    std::copy_n(noisy.values.begin() + first * width * channels, values.size(), values.begin());

    float* query = queries.data();
    float* key = keys.data();
    for (index_t row = first; row < last; ++row)
      for (index_t column = 0; column < width; ++column) {
        float square = 0;
        for (index_t dy = -reach; dy <= reach; ++dy)
          for (index_t dx = -reach; dx <= reach; ++dx)
            for (index_t c = 0; c < channels; ++c) {
              // Distances do not change, and products of small numbers keep more digits.
              float const value = noisy.around(row + dy, column + dx, c) - 0.5f;
              *query++ = *key++ = value;
              square += value * value;
            }
        *query++ = 1;
        *key++ = -square / 2;
      }
    look_around(queries, keys, values, found, lse, {last - first, width}, window, 2 / softness,
                threads);

    // A pixel looks exactly like itself, noise included, and nothing else does. It had better count as much as a
    // pixel that differs from it by noise alone; its weight is known from its score and the lse.
    double const fair = std::exp(-2 * sigma * sigma * values_of_patch / softness);
    for (index_t pixel = (y - first) * width; pixel < (end - first) * width; ++pixel) {
      double const score = -2 / softness * double(keys[size_t((pixel + 1) * dim - 1)]);
      double const excess = (1 - fair) * std::min(1., std::exp(score - double(lse[size_t(pixel)])));
      for (index_t c = 0; c < channels; ++c) {
        auto const n = size_t(pixel * channels + c);
        result.values[size_t(first * width * channels) + n] =
            float((double(found[n]) - excess * double(values[n])) / (1 - excess));
      }
    }
    progress(double(end) / double(height));
  }
  return result;
}

// --- Files -------------------------------------------------------------------------------------

constexpr double most_pixels = 1 << 28;

[[noreturn]] void refuse_size(std::string const& path) {
  throw input_error(path + " has more than 2^28 pixels");
}

/// Numbers of a PGM or PPM header, or of the pixels of a plain one.
class netpbm_reader {
 public:
  netpbm_reader(std::string const& path, std::string_view bytes) : path_(path), bytes_(bytes) {}

  index_t number(char const* what, index_t most) {
    for (; at_ < bytes_.size(); ++at_) {
      if (bytes_[at_] == '#')
        at_ = std::min(bytes_.find('\n', at_), bytes_.size() - 1);
      else if (std::string_view(" \t\r\n\v\f").find(bytes_[at_]) == std::string_view::npos)
        break;
    }
    index_t value = 0;
    size_t const start = at_;
    for (; at_ < bytes_.size() && bytes_[at_] >= '0' && bytes_[at_] <= '9' && value <= most; ++at_)
      value = 10 * value + (bytes_[at_] - '0');
    if (at_ == start)
      throw input_error(path_ + " is malformed: " +
                        (at_ == bytes_.size() ? "it ends before " : "no number for ") + what);
    if (value > most)
      throw input_error(path_ + " is malformed: " + what + " is above " + std::to_string(most));
    return value;
  }

  picture read() {
    bool const plain = bytes_[1] == '2' || bytes_[1] == '3';
    index_t const channels = bytes_[1] == '3' || bytes_[1] == '6' ? 3 : 1;
    at_ = 2;
    index_t const width = number("its width", 65535), height = number("its height", 65535),
                  most = number("its largest value", 65535);
    if (width == 0 || height == 0 || most == 0)
      throw input_error(path_ + " is malformed: a width, height or largest value of 0");
    ++at_;  // the single blank before binary pixels
    if (double(width) * double(height) > most_pixels) refuse_size(path_);
    size_t const count = size_t(width * height * channels), bytes_each = most > 255 ? 2 : 1;
    size_t const there = at_ < bytes_.size() ? bytes_.size() - at_ : 0;
    if (there < count * (plain ? 1 : bytes_each))
      throw input_error(path_ + " is malformed: it has " + std::to_string(there) +
                        " bytes of pixels, too few for " + std::to_string(width) + " x " +
                        std::to_string(height));
    picture image(height, width, channels);
    for (float& value : image.values) {
      index_t level = 0;
      if (plain)
        level = number("a pixel", most);
      else
        for (size_t b = 0; b < bytes_each; ++b)
          level = 256 * level + static_cast<unsigned char>(bytes_[at_++]);
      if (level > most) throw input_error(path_ + " is malformed: a pixel above its largest value");
      value = float(level) / float(most);
    }
    return image;
  }

 private:
  std::string const& path_;
  std::string_view bytes_;
  size_t at_ = 0;
};

bool is_png(std::string_view bytes) {
  return bytes.starts_with("\x89PNG\r\n\x1a\n");
}

#ifdef HEED_HAS_PNG
picture read_png(std::string const& path, std::string_view bytes) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  auto refuse = [&] { throw input_error(path + " is malformed: " + image.message); };
  if (!png_image_begin_read_from_memory(&image, bytes.data(), bytes.size())) refuse();
  if (double(image.width) * double(image.height) > most_pixels) refuse_size(path);
  bool const colour = (image.format & PNG_FORMAT_FLAG_COLOR) != 0;
  image.format = colour ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
  // What is transparent lies on white.
  std::vector<png_byte> levels(PNG_IMAGE_SIZE(image), png_byte{255});
  if (!png_image_finish_read(&image, nullptr, levels.data(), 0, nullptr)) refuse();
  picture result(image.height, image.width, colour ? 3 : 1);
  std::ranges::transform(levels, result.values.begin(),
                         [](png_byte level) { return float(level) / 255; });
  return result;
}
#endif

picture read(std::string const& path) {
  if (std::filesystem::is_directory(path))
    throw input_error(path + " is a folder; expected a file");
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw input_error("cannot open " + path + ": " + std::strerror(errno));
  std::string const bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (is_png(bytes)) {
#ifdef HEED_HAS_PNG
    return read_png(path, bytes);
#else
    throw input_error(path +
                      " is a PNG, and this program was built without libpng; use PPM or PGM");
#endif
  }
  if (bytes.size() > 2 && bytes[0] == 'P' &&
      std::string_view("2356").find(bytes[1]) != std::string_view::npos)
    return netpbm_reader(path, bytes).read();
  throw input_error(path + " is neither a PNG nor a PPM or PGM");
}

enum class format { png, netpbm };

/// By the name of a file.
format format_of(std::string const& path) {
  auto ends = [&](char const* with) { return std::string_view(path).ends_with(with); };
  if (ends(".ppm") || ends(".pgm") || ends(".pnm")) return format::netpbm;
  if (!ends(".png"))
    throw input_error("cannot tell what " + path + " should be; name it .png, .ppm or .pgm");
#ifndef HEED_HAS_PNG
  throw input_error("this program was built without libpng and cannot write " + path +
                    "; name it .ppm or .pgm");
#endif
  return format::png;
}

void write(std::string const& path, picture const& image) {
  std::vector<unsigned char> levels;
  for (float value : image.values)
    levels.push_back(static_cast<unsigned char>(std::lround(255 * std::clamp(value, 0.f, 1.f))));
  errno = 0;
  if (format_of(path) == format::png) {
#ifdef HEED_HAS_PNG
    png_image header{};
    header.version = PNG_IMAGE_VERSION;
    header.width = static_cast<png_uint_32>(image.width);
    header.height = static_cast<png_uint_32>(image.height);
    header.format = image.channels == 3 ? PNG_FORMAT_RGB : PNG_FORMAT_GRAY;
    if (!png_image_write_to_file(&header, path.c_str(), 0, levels.data(), 0, nullptr))
      throw input_error("cannot write " + path + ": " + header.message);
#endif
    return;
  }
  std::ofstream file(path, std::ios::binary);
  file << (image.channels == 3 ? "P6\n" : "P5\n") << image.width << ' ' << image.height
       << "\n255\n";
  file.write(reinterpret_cast<char const*>(levels.data()), std::ssize(levels));
  file.close();
  if (!file) throw input_error("cannot write " + path + ": " + std::strerror(errno));
}

// --- A picture of its own ----------------------------------------------------------------------

// Letters of 3 x 5 dots: a digit a line, a bit a dot.
constexpr char const* letters[] = {"25755", "65656", "34443", "65556", "74647", "74644", "34553",
                                   "55755", "72227", "11152", "55655", "44447", "57755", "65555",
                                   "25552", "65644", "25573", "65655", "34216", "72222", "55557",
                                   "55552", "55775", "55255", "55222", "71247"};
constexpr char const* writing[] = {
    "A PIXEL IS A MEAN OF WHAT LOOKS ALIKE ", "THE NEIGHBORS ASKED AND THE NEIGHBORS ",
    "TOLD HOW A LETTER LOOKS AND WHERE ITS ", "STROKES ARE AND THE NOISE WAS A MEAN  "};

/// A sky, a sun, hills, a striped tower and lines of writing.
picture drawn() {
  picture image(256, 320, 3);
  auto paint = [&](index_t y, index_t x, std::array<float, 3> colour) {
    for (index_t c = 0; c < 3; ++c) image.at(y, x, c) = colour[size_t(c)];
  };
  for (index_t y = 0; y < image.height; ++y)
    for (index_t x = 0; x < image.width; ++x) {
      float const down = float(y) / float(image.height), right = float(x) / float(image.width);
      paint(y, x, {0.35f + 0.5f * down, 0.55f + 0.3f * down, 0.9f - 0.2f * down});
      if (std::hypot(right * 1.25f - 0.95f, down - 0.22f) < 0.1f) paint(y, x, {1.f, 0.87f, 0.35f});
      float const hill = 0.58f + 0.09f * std::sin(7 * right + 1) + 0.03f * std::sin(23 * right);
      if (down > hill) paint(y, x, {0.2f + 0.2f * right, 0.5f - 0.25f * (down - hill), 0.25f});
      if (x >= 40 && x < 88 && y >= 56 && y < 190) {
        bool const stripe = (x + 2 * y) / 10 % 2 == 0;
        paint(y, x, stripe ? std::array{0.85f, 0.85f, 0.8f} : std::array{0.7f, 0.2f, 0.2f});
      }
      if (down > 0.74f) paint(y, x, {0.95f, 0.93f, 0.88f});
    }

  for (index_t line = 0; line < 4; ++line)
    for (index_t place = 0; place < 38; ++place) {
      char const letter = writing[line][place];
      if (letter == ' ') continue;
      for (index_t dy = 0; dy < 10; ++dy)
        for (index_t dx = 0; dx < 6; ++dx)
          if ((letters[letter - 'A'][dy / 2] - '0') >> (2 - dx / 2) & 1)
            paint(197 + 14 * line + dy, 9 + 8 * place + dx, {0.12f, 0.12f, 0.2f});
    }
  return image;
}

picture with_noise(picture const& clean, double sigma) {
  picture noisy = clean;
  std::mt19937 random(1);
  std::normal_distribution<float> noise(0, float(sigma));
  for (float& value : noisy.values) value = std::clamp(value + noise(random), 0.f, 1.f);
  return noisy;
}

/// How near a picture is to another one, in decibel.
double psnr(picture const& a, picture const& b) {
  double square = 0;
  for (size_t n = 0; n < a.values.size(); ++n)
    square += std::pow(double(a.values[n]) - double(b.values[n]), 2);
  return -10 * std::log10(square / double(a.values.size()));
}

picture side_by_side(std::vector<picture> const& pictures) {
  picture const& one = pictures.front();
  picture all(one.height, one.width * std::ssize(pictures), one.channels);
  for (index_t y = 0; y < one.height; ++y)
    for (index_t n = 0; n < std::ssize(pictures); ++n)
      for (index_t x = 0; x < one.width; ++x)
        for (index_t c = 0; c < one.channels; ++c)
          all.at(y, n * one.width + x, c) = pictures[size_t(n)].at(y, x, c);
  return all;
}

// --- The program -------------------------------------------------------------------------------

constexpr char const* usage =
    R"(Takes the noise out of a picture: non-local means as neighborhood attention.

  denoise IN OUT [options]     PNG (where built with libpng), PPM or PGM
  denoise --demo [OUT]         on a picture of its own: clean, noisy and denoised side by side

  --window N     pixels look at the N x N pixels around them (default 21)
  --patch N      and compare the N x N pixels around each, N odd (default 5)
  --sigma S      the standard deviation of the noise, of values from 0 to 255 (default auto: estimated)
  --threads N    worker threads (default: all of the machine's)
  --help         this
)";

struct command {
  std::vector<std::string> files;
  settings given;
  bool demo = false, help = false;
};

double number(std::string const& option, std::string const& text, double least, double most,
              bool whole) {
  char* end = nullptr;
  double const value = std::strtod(text.c_str(), &end);
  // Written so that NaN fails too.
  if (text.empty() || *end != '\0' || !(value >= least && value <= most) ||
      (whole && value != std::floor(value)))
    throw input_error(option + " cannot be \"" + text + "\"");
  return value;
}

command parse(int argument_count, char** arguments) {
  command given;
  for (int i = 1; i < argument_count; ++i) {
    std::string const word = arguments[i];
    auto value = [&]() -> std::string {
      if (++i == argument_count) throw input_error(word + " needs a value");
      return arguments[i];
    };
    if (word == "--help" || word == "-h")
      given.help = true;
    else if (word == "--demo")
      given.demo = true;
    else if (word == "--window")
      given.given.window.fill(index_t(number(word, value(), 1, 1001, true)));
    else if (word == "--patch") {
      given.given.patch = index_t(number(word, value(), 1, 31, true));
      if (given.given.patch % 2 == 0) throw input_error("--patch is even; expected an odd number");
    } else if (word == "--sigma") {
      if (std::string const text = value(); text != "auto")
        given.given.sigma = number(word, text, 0.1, 255, false) / 255;
    } else if (word == "--threads")
      given.given.threads = int(number(word, value(), 1, 4096, true));
    else if (word.size() > 1 && word[0] == '-')
      throw input_error("there is no option " + word + "; try --help");
    else
      given.files.push_back(word);
  }
  if (given.help) return given;
  size_t const expected = given.demo ? 1 : 2;
  if (given.files.size() > expected)
    throw input_error("what is " + given.files[expected] + " for? Try --help");
  if (given.demo && given.files.empty()) {
#ifdef HEED_HAS_PNG
    given.files = {"denoise_demo.png"};
#else
    given.files = {"denoise_demo.ppm"};
#endif
  }
  if (given.files.size() < expected)
    throw input_error("a picture to read and one to write, please; try --help");
  return given;
}

void run(command const& given) {
  std::optional<picture> clean;
  if (given.demo) clean = drawn();
  picture const noisy = given.demo ? with_noise(*clean, 25. / 255) : read(given.files.front());

  // What cannot be written is refused now rather than after the work.
  std::string const& target = given.files.back();
  format_of(target);
  errno = 0;
  if (!std::ofstream(target, std::ios::binary | std::ios::app))
    throw input_error("cannot write " + target + ": " + std::strerror(errno));

  // A picture without any noise is left nearly as it is.
  double const sigma =
      std::max(given.given.sigma ? *given.given.sigma : estimated_sigma(noisy), 0.1 / 255);
  std::printf("%td x %td pixels, noise %s %.1f of 255\n", noisy.width, noisy.height,
              given.given.sigma ? "said to be" : "estimated at", sigma * 255);
  std::fflush(stdout);

  using clock = std::chrono::steady_clock;
  auto const start = clock::now();
  bool const watched = isatty(STDERR_FILENO) != 0;
  picture const result = denoised(noisy, given.given, sigma, [&](double share) {
    if (watched) std::fprintf(stderr, share < 1 ? "\r%3.0f %%" : "\r     \r", 100 * share);
  });
  double const seconds = std::chrono::duration<double>(clock::now() - start).count();
  double const pairs =
      double(noisy.height * noisy.width) * double(std::min(given.given.window[0], noisy.height) *
                                                  std::min(given.given.window[1], noisy.width));
  double const operations =
      2 * pairs * double((given.given.patch * given.given.patch + 1) * noisy.channels + 1);
  std::printf("%.2f s: %.3f Gpairs/s, %.1f GFLOP/s\n", seconds, pairs / seconds * 1e-9,
              operations / seconds * 1e-9);

  if (given.demo)
    std::printf("PSNR %.2f dB before, %.2f dB after\n", psnr(*clean, noisy), psnr(*clean, result));
  write(target, given.demo ? side_by_side({*clean, noisy, result}) : result);
  std::printf("wrote %s\n", target.c_str());
}

}  // namespace

int main(int argument_count, char** arguments) {
  try {
    command const given = parse(argument_count, arguments);
    if (given.help)
      std::fputs(usage, stdout);
    else
      run(given);
    return EXIT_SUCCESS;
  } catch (input_error const& problem) {
    std::fprintf(stderr, "denoise: %s\n", problem.what());
    return 2;
  } catch (std::exception const& problem) {
    std::fprintf(stderr, "denoise: %s\n", problem.what());
    return EXIT_FAILURE;
  }
}
