// The program heed_conformance, as a program: files in, files out, exit status.
#pragma once

#include "conformance/npy.hpp"
#include "reference/tensor.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace cli {

using heed::index_t;

template <class T>
inline constexpr char const* type_name = "";
template <>
inline constexpr char const* type_name<double> = "f8";
template <>
inline constexpr char const* type_name<float> = "f4";
template <>
inline constexpr char const* type_name<std::int64_t> = "i8";
template <>
inline constexpr char const* type_name<std::int32_t> = "i4";
template <>
inline constexpr char const* type_name<std::uint8_t> = "b1";

/// A folder that is gone at the end, and heed_conformance running in it.
class sandbox {
 public:
  sandbox()
      : folder_(std::filesystem::temp_directory_path() /
                ("heed_conformance." + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~sandbox() { std::filesystem::remove_all(folder_); }

  std::string path(std::string const& name) const { return (folder_ / name).string(); }

  template <class T>
  void save(std::string const& name, std::vector<index_t> shape,
            std::vector<T> const& values) const {
    npy::array array{type_name<T>, std::move(shape), std::vector<char>(values.size() * sizeof(T))};
    if (!values.empty()) std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
    npy::write(path(name + ".npy"), array);
  }
  template <class File, class T, int Rank>
  void save_as(std::string const& name, reference::tensor<T, Rank> const& t) const {
    save(name, {t.extents.begin(), t.extents.end()},
         std::vector<File>(t.values.begin(), t.values.end()));
  }

  bool exists(std::string const& name) const {
    return std::filesystem::exists(path(name + ".npy"));
  }

  template <int Rank>
  reference::tensor<double, Rank> load(std::string const& name) const {
    npy::array const array = npy::read(path(name + ".npy"));
    reference::tensor<double, Rank> t;
    REQUIRE(array.shape.size() == t.extents.size());
    std::copy(array.shape.begin(), array.shape.end(), t.extents.begin());
    array.with_elements(
        [&](auto const* element) { t.values.assign(element, element + array.size()); });
    return t;
  }

  struct result {
    int status;
    std::string out, err;
  };
  result run(std::string const& arguments) const {
    char const* program = std::getenv("HEED_CONFORMANCE");
    REQUIRE(program != nullptr);
    std::string const command = "cd '" + folder_.string() + "' && '" + program + "' " + arguments +
                                " >stdout.txt 2>stderr.txt";
    int const status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text("stdout.txt"), text("stderr.txt")};
  }

 private:
  std::string text(std::string const& name) const {
    std::ostringstream all;
    all << std::ifstream(path(name)).rdbuf();
    return all.str();
  }

  std::filesystem::path folder_;
};

template <int Rank>
reference::tensor<double, Rank> normal(
    support::random& draw, typename reference::tensor<double, Rank>::index_array shape) {
  reference::tensor<double, Rank> t(shape);
  for (double& x : t.values)
    x = static_cast<float>(draw.normal());  // the same number in both precisions
  return t;
}

template <int Rank>
bool close(reference::tensor<double, Rank> const& a, reference::tensor<double, Rank> const& b,
           double tolerance) {
  if (a.extents != b.extents) return false;
  double size = 1;
  for (double x : b.values)
    if (std::isfinite(x)) size = std::max(size, std::abs(x));
  for (std::size_t i = 0; i < a.values.size(); ++i)
    if (!(a.values[i] == b.values[i] || std::abs(a.values[i] - b.values[i]) <= tolerance * size))
      return false;
  return true;
}

}  // namespace cli
