// Reads and writes .npy files, versions 1 to 3, little endian.
#pragma once

#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace npy {

static_assert(std::endian::native == std::endian::little);

using heed::index_t;
using heed::require;

/// A file's array, its elements in C order.
struct array {
  std::string type;  ///< "f4", "i8", "b1", …: numpy's kind and the size in bytes
  std::vector<index_t> shape;
  std::vector<char> bytes;

  index_t size() const {
    index_t count = 1;
    for (index_t extent : shape) count *= extent;
    return count;
  }

  /// Calls visit(element pointer) with elements of the array's type.
  template <class Visit>
  decltype(auto) with_elements(Visit visit) const {
    auto as = [&]<class T>(T const*) { return visit(reinterpret_cast<T const*>(bytes.data())); };
    if (type == "f8") return as(static_cast<double const*>(nullptr));
    if (type == "f4") return as(static_cast<float const*>(nullptr));
    if (type == "i8") return as(static_cast<std::int64_t const*>(nullptr));
    if (type == "i4") return as(static_cast<std::int32_t const*>(nullptr));
    if (type == "i2") return as(static_cast<std::int16_t const*>(nullptr));
    if (type == "i1") return as(static_cast<std::int8_t const*>(nullptr));
    if (type == "u4") return as(static_cast<std::uint32_t const*>(nullptr));
    if (type == "u2") return as(static_cast<std::uint16_t const*>(nullptr));
    return as(static_cast<std::uint8_t const*>(nullptr));  // "u1" and "b1"; read() admits no others
  }
};

namespace detail {

/// The Python literal in a file's header: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3),
/// }.
class header_parser {
 public:
  header_parser(std::string const& path, std::string_view text) : path_(path), rest_(text) {}

  std::string descr;
  bool fortran_order = false;
  std::vector<index_t> shape;

  void parse() {
    int seen = 0;
    take('{');
    while (!skip('}')) {
      std::string const key = quoted();
      take(':');
      if (key == "descr")
        descr = quoted(), seen |= 1;
      else if (key == "fortran_order")
        fortran_order = truth(), seen |= 2;
      else if (key == "shape")
        shape = numbers(), seen |= 4;
      else
        fail();
      if (!skip(',')) {
        take('}');
        break;
      }
    }
    while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\n'))
      rest_.remove_prefix(1);
    if (seen != 7 || !rest_.empty()) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw heed::error("heed: " + path_ + " has a header that is not one of .npy");
  }
  bool skip(std::string_view token) {
    while (!rest_.empty() && rest_.front() == ' ') rest_.remove_prefix(1);
    if (!rest_.starts_with(token)) return false;
    rest_.remove_prefix(token.size());
    return true;
  }
  bool skip(char token) { return skip(std::string_view(&token, 1)); }
  void take(char token) {
    if (!skip(token)) fail();
  }
  std::string quoted() {
    char const quote = skip('\'') ? '\'' : '"';
    if (quote == '"') take('"');
    std::size_t const end = rest_.find(quote);
    if (end == rest_.npos) fail();
    std::string const text(rest_.substr(0, end));
    rest_.remove_prefix(end + 1);
    return text;
  }
  bool truth() {
    if (skip("True")) return true;
    if (!skip("False")) fail();
    return false;
  }
  std::vector<index_t> numbers() {
    std::vector<index_t> list;
    take('(');
    while (!skip(')')) {
      index_t number = 0;
      auto const [end, problem] =
          std::from_chars(rest_.data(), rest_.data() + rest_.size(), number);
      if (problem != std::errc() || number < 0) fail();
      rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
      list.push_back(number);
      if (!skip(',')) {
        take(')');
        break;
      }
      skip(' ');
    }
    return list;
  }

  std::string const& path_;
  std::string_view rest_;
};

/// Fortran order to C order.
inline std::vector<char> transposed(std::vector<char> const& from,
                                    std::vector<index_t> const& shape, std::size_t element_bytes) {
  std::vector<char> to(from.size());
  std::vector<index_t> at(shape.size(), 0);
  for (std::size_t place = 0; place < to.size(); place += element_bytes) {
    index_t offset = 0;
    for (std::size_t axis = shape.size(); axis-- > 0;) offset = offset * shape[axis] + at[axis];
    std::memcpy(&to[place], &from[static_cast<std::size_t>(offset) * element_bytes], element_bytes);
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      if (++at[axis] < shape[axis]) break;
      at[axis] = 0;
    }
  }
  return to;
}

}  // namespace detail

inline array read(std::string const& path) {
  auto const fail = [&](std::string const& what) {
    throw heed::error("heed: " + path + " " + what);
  };
  std::ifstream file(path, std::ios::binary);
  if (!file || !std::filesystem::is_regular_file(path)) fail("cannot be read");
  auto const file_bytes = static_cast<std::uint64_t>(std::filesystem::file_size(path));

  unsigned char start[12] = {};
  file.read(reinterpret_cast<char*>(start), 8);
  if (!file || std::memcmp(start, "\x93NUMPY", 6) != 0) fail("is not a .npy file");
  int const version = start[6];
  if (version < 1 || version > 3 || start[7] != 0) fail("is .npy of an unknown version");
  int const length_bytes = version == 1 ? 2 : 4;
  file.read(reinterpret_cast<char*>(start + 8), length_bytes);
  std::uint64_t length = 0;
  for (int i = length_bytes; i-- > 0;) length = length << 8 | start[8 + i];
  std::uint64_t const data_start = 8 + static_cast<std::uint64_t>(length_bytes) + length;
  if (!file || data_start > file_bytes) fail("ends within its header");
  std::string text(static_cast<std::size_t>(length), ' ');
  file.read(text.data(), static_cast<std::streamsize>(length));
  if (!file) fail("ends within its header");

  detail::header_parser header(path, text);
  header.parse();

  array result;
  result.shape = header.shape;
  char const order = header.descr.empty() ? '?' : header.descr[0];
  result.type = header.descr.empty() ? "" : header.descr.substr(1);
  constexpr std::string_view known[] = {"f8", "f4", "i8", "i4", "i2", "i1", "u4", "u2", "u1", "b1"};
  bool const is_known =
      std::find(std::begin(known), std::end(known), result.type) != std::end(known);
  if (!is_known || !(order == '<' || order == '|'))
    fail("has elements of type " + header.descr +
         "; expected little-endian float32 or float64, integers or bool");

  auto const element_bytes = static_cast<std::uint64_t>(result.type[1] - '0');
  std::uint64_t const data_bytes = file_bytes - data_start;
  std::uint64_t expected = element_bytes;
  bool empty = false;
  for (index_t extent : result.shape) {
    constexpr std::uint64_t limit = std::uint64_t{1} << 48;
    auto const factor = static_cast<std::uint64_t>(std::max<index_t>(extent, 1));
    if (expected > limit / factor) fail("is of shape " + heed::shape_text(result.shape));
    expected *= factor;
    empty |= extent == 0;
  }
  if (empty) expected = 0;
  if (expected != data_bytes)
    fail("has " + std::to_string(data_bytes) + " bytes of data, which are not those of shape " +
         heed::shape_text(result.shape));

  result.bytes.resize(static_cast<std::size_t>(data_bytes));
  file.read(result.bytes.data(), static_cast<std::streamsize>(data_bytes));
  if (!file) fail("cannot be read to its end");
  if (header.fortran_order)
    result.bytes =
        detail::transposed(result.bytes, result.shape, static_cast<std::size_t>(element_bytes));
  return result;
}

inline void write(std::string const& path, array const& a) {
  std::string header = "{'descr': '<" + a.type + "', 'fortran_order': False, 'shape': (";
  for (index_t extent : a.shape) header += std::to_string(extent) + ", ";
  if (a.shape.size() > 1) header.resize(header.size() - 2);
  header += "), }";
  header.append(63 - (header.size() + 10) % 64, ' ');  // the data start at a multiple of 64
  header += '\n';

  auto const length = static_cast<unsigned>(header.size());
  std::ofstream file(path, std::ios::binary);
  file << "\x93NUMPY" << '\1' << '\0' << static_cast<char>(length & 255)
       << static_cast<char>(length >> 8) << header;
  file.write(a.bytes.data(), static_cast<std::streamsize>(a.bytes.size()));
  file.close();
  require(!file.fail(), [&] { return path + " cannot be written"; });
}

}  // namespace npy
