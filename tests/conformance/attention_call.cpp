#include "attention_call.hpp"

#include <algorithm>

namespace conformance {

std::vector<parameter> attention_parameters(std::string_view verbs, std::vector<parameter> own) {
  std::vector<parameter> all{
      {"q", kind::input, "[B, N, H, D]", required, "queries"},
      {"k", kind::input, "[B, M, H_k, D]", required, "keys; H_k divides H"},
      {"v", kind::input, "[B, M, H_v, D_v]", required, "values; H_v divides H"},
      {"o", kind::output, "[B, N, H, D_v]", "none", "the result, in the type of q's file"},
      {"lse", kind::output, "[B, H, N]", "none", "log of the sum of exp of each row's scores"},
  };
  all.insert(all.end(), own.begin(), own.end());
  if (verbs.find("backward") != verbs.npos) {
    all.push_back({"do", kind::input, "[B, N, H, D_v]", "none", "gradient of the loss by o"});
    all.push_back({"dlse", kind::input, "[B, H, N]", "0", "gradient of the loss by lse"});
    all.push_back({"dq", kind::output, "[B, N, H, D]", "none", "gradient of the loss by q"});
    all.push_back({"dk", kind::output, "[B, M, H_k, D]", "none", "gradient of the loss by k"});
    all.push_back({"dv", kind::output, "[B, M, H_v, D_v]", "none", "gradient of the loss by v"});
  }
  all.push_back({"scale", kind::number, "", "1/sqrt(D)", "factor of q.k"});
  all.push_back({"threads", kind::integer, "", "1", "threads of the pool that it runs on"});
  all.push_back({"verb", kind::choice, verbs,
                 "forward, or backward with do=", "decode: query by query, each from a cache"});
  return all;
}

verb verb_of(arguments const& given, std::vector<std::string_view> const& gradients) {
  std::string_view const name = given.has("verb") ? given.choice("verb")
                                : given.has("do") ? "backward"
                                                  : "forward";
  std::vector<std::string_view> belong{"do", "dlse", "dq", "dk", "dv"};
  belong.insert(belong.end(), gradients.begin(), gradients.end());
  for (std::string_view each : belong)
    require(!given.has(each) || name == "backward", [&] {
      return std::string(each) + " is given; expected only with verb=backward, and this is " +
             std::string(name);
    });
  require(given.writes(),
          [] { return "nothing is to be written; expected an output such as o=o.npy"; });
  return name == "forward" ? verb::forward : name == "backward" ? verb::backward : verb::decode;
}

int threads_of(arguments const& given) {
  index_t const threads = given.integer("threads");
  require(threads >= 1 && threads <= 1024,
          [&] { return "threads is " + std::to_string(threads) + "; expected 1 to 1024"; });
  return static_cast<int>(threads);
}

}  // namespace conformance
