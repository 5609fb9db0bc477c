// Runs any mechanism of heed on arrays in files, for comparison with other programs.
#include "registry.hpp"

#include <cstdio>
#include <exception>
#include <new>

namespace {

char const usage[] =
    "heed_conformance list\n"
    "    Every parameter of every mechanism, one a line, separated by tabs:\n"
    "    mechanism, parameter, type, default, meaning.\n"
    "\n"
    "heed_conformance run MECHANISM key=value...\n"
    "    Reads the .npy files named by input parameters, writes those named by outputs.\n"
    "    heed_conformance run softmax causal=true q=q.npy k=k.npy v=v.npy o=o.npy lse=lse.npy\n"
    "\n"
    "Exits 0, or 2 with a message on stderr; then no output has been written.\n";

void list() {
  for (auto const& [name, mechanism] : conformance::mechanisms())
    for (auto const& p : mechanism.parameters) {
      std::string line(name);
      std::string const type = p.type_text();
      for (std::string_view field : {p.name, std::string_view(type), p.default_value, p.meaning})
        (line += '\t') += field;
      std::puts(line.c_str());
    }
}

void run(std::string_view name, std::vector<std::string_view> const& key_values) {
  auto const& all = conformance::mechanisms();
  auto const found = all.find(name);
  heed::require(found != all.end(), [&] { return "there is no mechanism " + std::string(name); });
  conformance::arguments arguments(found->second, key_values);
  found->second.run(arguments);
  arguments.write_outputs();
}

}  // namespace

int main(int count, char** words) {
  std::vector<std::string_view> const given(words + 1, words + count);
  try {
    if (given.size() == 1 && given[0] == "list") {
      list();
    } else if (given.size() >= 2 && given[0] == "run") {
      run(given[1], {given.begin() + 2, given.end()});
    } else if (given.size() == 1 && (given[0] == "--help" || given[0] == "-h")) {
      std::fputs(usage, stdout);
    } else {
      std::fputs(usage, stderr);
      return 2;
    }
  } catch (std::bad_alloc const&) {
    std::fputs("heed: out of memory\n", stderr);
    return 2;
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}
