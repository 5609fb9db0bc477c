#include "registry.hpp"

#include <cstdlib>
#include <filesystem>

namespace conformance {

namespace {

std::string quoted(std::string_view name, std::string_view text) {
  return std::string(name) + "=" + std::string(text);
}

}  // namespace

std::string parameter::type_text() const {
  switch (type) {
    case kind::flag:
      return "bool";
    case kind::integer:
      return "int";
    case kind::integers:
      return "int,int,...";
    case kind::number:
      return "float";
    case kind::choice:
      return std::string(of);
    case kind::input:
      return "npy " + std::string(of);
    case kind::output:
      return "output npy " + std::string(of);
  }
  return "";
}

std::map<std::string_view, mechanism>& mechanisms() {
  static std::map<std::string_view, mechanism> all;
  return all;
}

arguments::arguments(mechanism const& what, std::vector<std::string_view> const& key_values)
    : mechanism_(what) {
  for (std::string_view key_value : key_values) {
    std::size_t const equals = key_value.find('=');
    require(equals != key_value.npos,
            [&] { return "the argument " + std::string(key_value) + "; expected key=value"; });
    std::string_view const name = key_value.substr(0, equals), text = key_value.substr(equals + 1);
    find(name);
    require(!text.empty(), [&] { return quoted(name, text) + "; expected a value"; });
    require(given_.emplace(name, text).second,
            [&] { return std::string(name) + " is given twice"; });
  }
  for (parameter const& p : what.parameters) {
    if (!has(p.name)) continue;  // wrong ones are refused even where they do not matter
    switch (p.type) {
      case kind::flag:
        flag(p.name);
        break;
      case kind::integer:
        integer(p.name);
        break;
      case kind::integers:
        list(p.name);
        break;
      case kind::number:
        number(p.name);
        break;
      case kind::choice:
        choice(p.name);
        break;
      default:
        break;
    }
  }
}

parameter const& arguments::find(std::string_view name) const {
  for (parameter const& p : mechanism_.parameters)
    if (p.name == name) return p;
  throw heed::error("heed: " + std::string(mechanism_.name) + " has no parameter " +
                    std::string(name));
}

std::string_view arguments::value(std::string_view name) const {
  if (auto const at = given_.find(name); at != given_.end()) return at->second;
  std::string_view const otherwise = find(name).default_value;
  require(otherwise != required, [&] {
    return std::string(mechanism_.name) + " needs " + std::string(name) + "= (" +
           find(name).type_text() + ")";
  });
  return otherwise;
}

bool arguments::flag(std::string_view name) const {
  std::string_view const text = value(name);
  bool const yes = text == "true" || text == "1", no = text == "false" || text == "0";
  require(yes || no, [&] { return quoted(name, text) + "; expected true or false"; });
  return yes;
}

index_t arguments::integer(std::string_view name) const {
  std::string_view const text = value(name);
  index_t number = 0;
  auto const [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  require(problem == std::errc() && end == text.data() + text.size(),
          [&] { return quoted(name, text) + "; expected an integer"; });
  return number;
}

std::vector<index_t> arguments::list(std::string_view name) const {
  std::string_view const text = value(name);
  std::vector<index_t> numbers;
  for (char const *at = text.data(), *end = at + text.size();; ++at) {
    index_t number = 0;
    auto const [next, problem] = std::from_chars(at, end, number);
    bool const good = problem == std::errc() && (next == end || *next == ',');
    require(good, [&] { return quoted(name, text) + "; expected integers joined with commas"; });
    numbers.push_back(number);
    at = next;
    if (at == end) return numbers;
  }
}

double arguments::number(std::string_view name) const {
  std::string const text(value(name));
  char* end = nullptr;
  double const number = std::strtod(text.c_str(), &end);
  require(end == text.c_str() + text.size(),
          [&] { return quoted(name, text) + "; expected a number"; });
  return number;
}

std::string_view arguments::choice(std::string_view name) const {
  std::string_view const text = value(name);
  std::string_view rest = find(name).of;
  while (!rest.empty()) {
    std::string_view const one = rest.substr(0, rest.find('|'));
    if (one == text) return text;
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
  }
  throw heed::error("heed: " + quoted(name, text) + "; expected " + std::string(find(name).of));
}

bool arguments::writes() const {
  for (parameter const& p : mechanism_.parameters)
    if (p.type == kind::output && has(p.name)) return true;
  return false;
}

npy::array const& arguments::array(std::string_view name) {
  auto at = arrays_.find(name);
  if (at == arrays_.end()) at = arrays_.emplace(name, npy::read(std::string(value(name)))).first;
  return at->second;
}

std::vector<index_t> arguments::integers(std::string_view name) {
  auto const list = input<index_t, 1>(name);
  return {list.data(), list.data() + list.shape()[0]};
}

void arguments::write_outputs() const {
  auto const unfinished = [](std::string const& path) { return path + ".unfinished"; };
  try {
    for (auto const& [path, array] : outputs_) npy::write(unfinished(path), array);
    for (auto const& output : outputs_)
      std::filesystem::rename(unfinished(output.first), output.first);
  } catch (...) {
    std::error_code ignored;
    for (auto const& output : outputs_) std::filesystem::remove(unfinished(output.first), ignored);
    throw;
  }
}

}  // namespace conformance
