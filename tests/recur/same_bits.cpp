#include "support/recurrence_parts.hpp"
#include "support/recurrence_problem.hpp"

#include <heed/parallel/eigen_pool.hpp>

// The same numbers give the same bits, whoever computes them and whatever is computed beside them.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::recurrence_problem;
using support::same_bits;
using support::seed_t;

namespace {

using problem = recurrence_problem<float>;

/// Claims to be able to run several calls at once and runs them one by one, the last first.
struct backwards {
  index_t workers;
  index_t concurrency() const { return workers; }
  template <class F>
  void run(index_t n, F f) const {
    for (index_t i = n; i-- > 0;) f(i);
  }
};

/// Everything a problem's calls write, by name.
struct results {
  std::vector<std::pair<char const*, reference::tensor<float, 4>>> all;

  template <class Tensor>
  void add(char const* name, Tensor const& tensor) {
    if (tensor.view().data() == nullptr) return;
    auto const values = tensor.template values<float>();
    reference::tensor<float, 4> flat({1, 1, 1, static_cast<index_t>(values.values.size())});
    flat.values = values.values;
    all.emplace_back(name, flat);
  }
  std::string differing(results const& other) const {
    std::string which;
    for (std::size_t n = 0; n < all.size(); ++n)
      if (!same_bits(all[n].second, other.all[n].second)) which += std::string(all[n].first) + " ";
    return which;
  }
};

results written(problem const& p) {
  results r;
  r.add("out", p.out);
  r.add("final state", p.final);
  r.add("dquery", p.dquery);
  r.add("dkey", p.dkey);
  r.add("dvalue", p.dvalue);
  r.add("dlog_gate", p.dlog_gate);
  r.add("dlog_key_gate", p.dlog_key_gate);
  r.add("dlog_value_gate", p.dlog_value_gate);
  r.add("drate", p.drate);
  r.add("dinitial", p.dinitial);
  return r;
}

results run(problem& p, heed::any_executor const& on) {
  auto call = p.call();
  call.executor = on;
  call.forward();
  call.backward();
  return written(p);
}

}  // namespace

TEST_CASE("recurrence: the same bits on any executor", "[recur][threads]") {
  static Eigen::ThreadPool pool(3);
  for_each_seed("recurrence executors", 200, [](seed_t seed) -> std::string {
    problem p(seed);
    auto const expected = run(p, support::on_this_thread());
    std::string differ = expected.differing(run(p, support::on_this_thread()));
    if (!differ.empty()) return p.with_shape("again: " + differ + "\n");
    for (index_t workers : {2, 3, 7}) {
      backwards const others{workers};
      differ = expected.differing(run(p, heed::any_executor(others)));
      if (!differ.empty())
        return p.with_shape(std::to_string(workers) + " workers: " + differ + "\n");
    }
    heed::on<Eigen::ThreadPool> const threads{pool};
    differ = expected.differing(run(p, heed::any_executor(threads)));
    return differ.empty() ? "" : p.with_shape("a pool: " + differ + "\n");
  });
}

TEST_CASE("recurrence: the same bits from one long sequence on many threads", "[recur][threads]") {
  // More chunks than are shared out at a time.
  static Eigen::ThreadPool pool(7);
  heed::on<Eigen::ThreadPool> const threads{pool};
  for_each_seed("long recurrence executors", 20, [&](seed_t seed) -> std::string {
    problem p(seed, {.positions = 1500, .work = 2e6});
    auto const expected = run(p, support::on_this_thread());
    std::string const differ = expected.differing(run(p, heed::any_executor(threads)));
    return differ.empty() ? "" : p.with_shape(differ + "\n");
  });
}

TEST_CASE("recurrence: the same bits from any layout", "[recur]") {
  for_each_seed("recurrence layouts", 200, [](seed_t seed) -> std::string {
    problem p(seed);
    auto const expected = run(p, support::on_this_thread());
    auto const pack = [](auto& tensor) {
      using type = std::decay_t<decltype(tensor)>;
      if (tensor.view().data() == nullptr) return;
      auto const values = tensor.template values<float>();
      constexpr int rank = decltype(tensor.view())::rank;
      type dense(tensor.extents(), support::packed<rank>(tensor.extents()));
      std::size_t n = 0;
      dense.fill([&](auto const&) { return values.values[n++]; });
      tensor = std::move(dense);
    };
    pack(p.query), pack(p.key), pack(p.value), pack(p.out), pack(p.dout), pack(p.dquery);
    pack(p.dkey), pack(p.dvalue), pack(p.log_gate), pack(p.dlog_gate), pack(p.rate), pack(p.drate);
    pack(p.log_key_gate), pack(p.dlog_key_gate), pack(p.log_value_gate), pack(p.dlog_value_gate);
    pack(p.initial), pack(p.final), pack(p.dinitial), pack(p.dfinal);
    std::string const differ = expected.differing(run(p, support::on_this_thread()));
    return differ.empty() ? "" : p.with_shape(differ + "\n");
  });
}

TEST_CASE("recurrence: the same bits from a batch and from its entries", "[recur]") {
  for_each_seed("recurrence batches", 200, [](seed_t seed) -> std::string {
    problem p(seed);
    // A feature map may depend on the batch entry.
    bool const placed = p.definition.map.map && !p.definition.map.map->positive();
    if (p.B < 2 || placed) return {};
    auto const together = run(p, support::on_this_thread());
    for (index_t b = 0; b < p.B; ++b) {
      auto call = support::part_of(p.call(), [b](auto view, bool) { return view.slice(0, b, 1); });
      support::take_state(call, b);
      call.forward();
      call.backward();
    }
    std::string const differ = together.differing(written(p));
    return differ.empty() ? "" : p.with_shape(differ + "\n");
  });
}

TEST_CASE("recurrence: the same bits from documents and from calls of their own", "[recur]") {
  for_each_seed("recurrence documents", 600, [](seed_t seed) -> std::string {
    problem p(seed);
    auto const& rows = p.definition.query_offsets;
    auto const& keys = p.definition.key_offsets;
    if (keys.empty()) return {};
    auto const together = run(p, support::on_this_thread());
    for (std::size_t g = 0; g + 1 < keys.size(); ++g) {
      auto call = support::part_of(p.call(), [&](auto view, bool of_query) {
        auto const& offsets = of_query ? rows : keys;
        return view.slice(1, offsets[g], offsets[g + 1] - offsets[g]);
      });
      support::take_state(call, static_cast<index_t>(g));
      call.documents.reset();
      call.forward();
      call.backward();
    }
    std::string const differ = together.differing(written(p));
    return differ.empty() ? "" : p.with_shape(differ + "\n");
  });
}
