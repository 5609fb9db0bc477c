#include "support/identity.hpp"

using heed::index_t;
using heed::tensor_view;
using support::attend;
using support::blank;
using support::difference;
using support::normal;
using support::operands;
using support::rounding;
using support::same;

namespace {

template <int Rank>
tensor_view<float const, Rank> view(reference::tensor<float, Rank> const& t) {
  return {t.values.data(), t.extents};
}

}  // namespace

TEST_CASE("identity: a window that reaches everywhere is none", "[attend][quick]") {
  for (auto const& [N, M] : {std::pair<index_t, index_t>{70, 70}, {5, 130}, {100, 30}}) {
    operands x(N, M);
    CHECK(same(x(heed::sliding_window{N + M, N + M}), x()));
    CHECK(same(x(heed::sliding_window{}), x()));
    CHECK(same(x(heed::sliding_window{N + M, 0}), x(heed::causal{})));
    CHECK(same(x(heed::sliding_window{heed::unbounded, 0}), x(heed::causal{})));
    CHECK(same(x(heed::first_keys{M}), x()));
    CHECK(same(x(~heed::causal{} | heed::causal{}), x()));
    CHECK(same(x(~(heed::causal{} & heed::first_keys{9})),
               x(~heed::causal{} | ~heed::first_keys{9})));
  }
  operands x(90, 90);
  CHECK(difference(x(heed::sliding_window{0, 0}).out, x.value.values<float>()) < rounding);
}

TEST_CASE("identity: a row of causal attention is one query over its keys", "[attend][quick]") {
  operands x(60, 75);
  auto const whole = x(heed::causal{});
  auto const from_top = x(heed::causal{}, heed::top_left{});
  for (index_t i : {0, 1, 31, 59}) {
    for (auto const& [rows, keys] : {std::pair{&whole, i + 16}, {&from_top, i + 1}}) {
      auto const one = attend(x.query.view().slice(1, i, 1), x.key.view().slice(1, 0, keys),
                              x.value.view().slice(1, 0, keys));
      for (index_t h = 0; h < 2; ++h) {
        CHECK(rows->lse(0, h, i) == Approx(one.lse(0, h, 0)).margin(rounding));
        for (index_t d = 0; d < 20; ++d)
          CHECK(rows->out(0, i, h, d) == Approx(one.out(0, 0, h, d)).margin(rounding));
      }
    }
  }
  operands square(40, 40);
  CHECK(same(square(heed::causal{}), square(heed::causal{}, heed::top_left{})));
}

TEST_CASE("identity: splits of the keys merge to the whole", "[attend][quick]") {
  operands x(33, 200);
  std::vector<support::attended<float>> parts;
  std::vector<heed::partial_attention<float const>> views;
  for (auto const& [first, count] :
       {std::pair<index_t, index_t>{0, 70}, {70, 0}, {70, 1}, {71, 129}})
    parts.push_back(attend(x.query.view(), x.key.view().slice(1, first, count),
                           x.value.view().slice(1, first, count)));
  for (auto const& part : parts) views.push_back({view(part.out), view(part.lse)});
  auto out = blank<float, 4>({1, 33, 2, 20});
  auto lse = blank<float, 3>({1, 2, 33});
  heed::merge_attention(views, out.view(), lse.view());
  CHECK(same({out.values<float>(), lse.values<float>()}, x()));
}

TEST_CASE("identity: gradients through a merge are gradients of the whole", "[attend][quick]") {
  operands x(9, 120);
  auto const dout = normal(x.draw, {1, 9, 2, 20});
  auto dlse = blank<float, 3>({1, 2, 9});
  dlse.fill([&](auto const&) { return static_cast<float>(x.draw.normal()); });
  auto const q = std::as_const(x.query).view(), k = std::as_const(x.key).view(),
             v = std::as_const(x.value).view();
  auto const whole =
      support::attend_backward<float>(q, k, v, dout.view(), std::as_const(dlse).view());

  std::vector<std::pair<index_t, index_t>> const cuts{{0, 50}, {50, 70}};
  std::vector<support::attended<float>> parts;
  std::vector<support::guarded<float, 4>> dparts;
  std::vector<support::guarded<float, 3>> dlse_parts;
  std::vector<heed::partial_attention<float const>> views;
  std::vector<heed::partial_attention<float>> gradients;
  for (auto const& [first, count] : cuts) {
    parts.push_back(attend(q, k.slice(1, first, count), v.slice(1, first, count)));
    dparts.push_back(blank<float, 4>({1, 9, 2, 20}));
    dlse_parts.push_back(blank<float, 3>({1, 2, 9}));
  }
  for (std::size_t p = 0; p < parts.size(); ++p) {
    views.push_back({view(parts[p].out), view(parts[p].lse)});
    gradients.push_back({dparts[p].view(), dlse_parts[p].view()});
  }
  auto const saved = attend(q, k, v);
  heed::merge_attention_backward(views, view(saved.out), view(saved.lse), dout.view(),
                                 std::as_const(dlse).view(), gradients);
  reference::tensor<float, 4> dquery({1, 9, 2, 20});
  for (std::size_t p = 0; p < parts.size(); ++p) {
    auto const [first, count] = cuts[p];
    auto const part = support::attend_backward<float>(
        q, k.slice(1, first, count), v.slice(1, first, count), std::as_const(dparts[p]).view(),
        std::as_const(dlse_parts[p]).view());
    for (std::size_t n = 0; n < dquery.values.size(); ++n) dquery.values[n] += part.query.values[n];
    CHECK(difference(part.key, support::read<float>(view(whole.key).slice(1, first, count))) <
          rounding);
    CHECK(difference(part.value, support::read<float>(view(whole.value).slice(1, first, count))) <
          rounding);
  }
  CHECK(difference(dquery, whole.query) < rounding);
}

TEST_CASE("identity: a predicate, a bool tensor and -infinity hide the same pairs",
          "[attend][quick]") {
  for (auto const& [N, M] : {std::pair<index_t, index_t>{50, 77}, {3, 200}, {90, 20}}) {
    operands x(N, M);
    heed::sliding_window const window{.left = 13, .right = 2};
    auto mask = blank<bool, 4>({1, 1, N, M});
    auto added = blank<float, 4>({1, 1, N, M});
    auto const kept = [&, off = M - N](auto const& at) { return window.keep(at[2] + off, at[3]); };
    mask.fill(kept);
    added.fill(
        [&](auto const& at) { return kept(at) ? 0.f : -std::numeric_limits<float>::infinity(); });
    auto const by_pattern = x(window);
    CHECK(same(x(heed::bias{mask.view()}), by_pattern));
    CHECK(same(x(heed::bias{added.view()}), by_pattern));
  }
}

TEST_CASE("identity: shared key and value heads are repeated ones", "[attend][quick]") {
  operands x(40, 90, 6, 2);
  auto const repeat = [&](auto const& tensor) {
    auto repeated = blank<float, 4>({1, 90, 6, 20});
    auto const from = tensor.view();
    repeated.fill([&](auto const& at) { return from(at[0], at[1], at[2] * 2 / 6, at[3]); });
    return repeated;
  };
  auto const key = repeat(x.key), value = repeat(x.value);
  CHECK(same(x(heed::causal{}), attend(x.query.view(), key.view(), value.view(), heed::causal{})));
  // Key and value heads are shared apart from each other.
  CHECK(same(x(), attend(x.query.view(), x.key.view(), value.view())));
  CHECK(same(x(), attend(x.query.view(), key.view(), x.value.view())));
}

TEST_CASE("identity: the heads of a group are rows of one head", "[attend][quick]") {
  operands x(30, 64, 4, 1);
  tensor_view<float, 4> const stacked(x.query.view().data(), {1, 120, 1, 20});
  auto const rows = attend(stacked, x.key.view(), x.value.view());
  CHECK(difference(x().out, support::read<float>(tensor_view<float const, 4>(
                                rows.out.values.data(), {1, 30, 4, 20}))) < rounding);
}

TEST_CASE("identity: the order of keys does not matter", "[attend][quick]") {
  operands x(21, 150);
  auto const turned = [](auto const& tensor) {
    auto const v = tensor.view();
    return tensor_view<float const, 4>(&v(0, 149, 0, 0), v.extents(),
                                       {v.stride(0), -v.stride(1), v.stride(2), v.stride(3)});
  };
  CHECK(same(x(),
             attend(x.query.view(), turned(std::as_const(x.key)), turned(std::as_const(x.value)))));
}

TEST_CASE("identity: documents are separate calls, and padded batches", "[attend][quick]") {
  std::vector<index_t> const cu_q{0, 20, 20, 25, 90}, cu_k{0, 31, 40, 40, 100};
  operands x(90, 100);
  auto const packed = x(heed::documents{cu_q, cu_k}, heed::causal{});
  for (std::size_t g = 0; g + 1 < cu_q.size(); ++g) {
    index_t const rows = cu_q[g + 1] - cu_q[g], keys = cu_k[g + 1] - cu_k[g];
    auto const alone =
        attend(x.query.view().slice(1, cu_q[g], rows), x.key.view().slice(1, cu_k[g], keys),
               x.value.view().slice(1, cu_k[g], keys), heed::causal{});
    CHECK(difference(support::read<float>(view(packed.out).slice(1, cu_q[g], rows)), alone.out) <
          rounding);
    CHECK(difference(support::read<float>(view(packed.lse).slice(2, cu_q[g], rows)), alone.lse) <
          rounding);
  }
  // One sequence a batch entry, behind which there is padding.
  index_t const longest_q = 65, longest_k = 60;
  auto query = blank<float, 4>({4, longest_q, 2, 20}), key = blank<float, 4>({4, longest_k, 2, 20}),
       value = blank<float, 4>({4, longest_k, 2, 20});
  auto const pad = [](auto& to, auto const& from, std::vector<index_t> const& ends) {
    auto const rows = from.view();
    to.fill([&](auto const& at) {
      auto const g = static_cast<std::size_t>(at[0]);
      return at[1] < ends[g + 1] - ends[g] ? rows(0, ends[g] + at[1], at[2], at[3]) : 100.f;
    });
  };
  pad(query, x.query, cu_q);
  pad(key, x.key, cu_k);
  pad(value, x.value, cu_k);
  std::vector<index_t> lengths;
  for (std::size_t g = 0; g < 4; ++g) lengths.push_back(cu_k[g + 1] - cu_k[g]);
  auto const padded = attend(query.view(), key.view(), value.view(), heed::key_lengths{lengths});
  auto const unpadded = x(heed::documents{cu_q, cu_k});
  for (index_t g = 0; g < 4; ++g) {
    auto const at = static_cast<std::size_t>(g);
    index_t const rows = cu_q[at + 1] - cu_q[at];
    CHECK(difference(support::read<float>(view(padded.out).slice(0, g, 1).slice(1, 0, rows)),
                     support::read<float>(view(unpadded.out).slice(1, cu_q[at], rows))) < rounding);
  }
}
