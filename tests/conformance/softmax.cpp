// heed_conformance run softmax: exact softmax attention.
#include "registry.hpp"

#include <heed/heed.hpp>
#include <heed/parallel/eigen_pool.hpp>

#include <cmath>

namespace conformance {
namespace {

using heed::tensor_view;

/// A sequence of the call: where its rows and keys begin, and their numbers.
struct sequence {
  index_t first_row, rows, first_key, keys;
  std::span<index_t const> lengths;
};

template <class Storage>
class softmax_call {
 public:
  using number = heed::compute_type<Storage>;

  explicit softmax_call(arguments& given, Eigen::ThreadPool& pool)
      : given_(given),
        pool_(pool),
        packed_(given.has("cu_seqlens_q") || given.has("cu_seqlens_k")),
        causal_(given.flag("causal")),
        window_{given.integer("window_left"), given.integer("window_right")},
        softcap_(given.number("softcap")),
        query_(operand("q")),
        key_(operand("k")),
        value_(operand("v")) {
    for (index_t reach : {window_.left, window_.right})
      require(reach >= -1, [&] {
        return "a window reaches " + std::to_string(reach) +
               " keys; expected -1 (unbounded) or more";
      });
    require(softcap_ >= 0, [&] {
      return "softcap is " + std::to_string(softcap_) + "; expected 0 (none) or more";
    });
    if (causal_) window_.right = 0;

    auto const [batch, rows, heads, dim] = query_.shape();
    scale_ = given.has("scale") ? given.number("scale")
                                : 1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1)));
    index_t sequences = batch;
    if (packed_) {
      query_offsets_ = given.integers("cu_seqlens_q");
      key_offsets_ = given.integers("cu_seqlens_k");
      sequences = static_cast<index_t>(query_offsets_.size()) - 1;
    }
    if (given.has("key_lengths"))
      lengths_ = given.integers("key_lengths");
    else
      lengths_.assign(static_cast<std::size_t>(std::max<index_t>(sequences, 0)), key_.shape()[1]);

    // What is missing is there as something that changes nothing, so that one instantiation serves
    // all.
    slopes_ = given.has("alibi") ? given.input<number, 1>("alibi") : tensor<number, 1>({heads});
    sinks_ = given.has("sink") ? given.input<number, 2>("sink", 1) : tensor<number, 2>({heads, 0});
    bias_ = tensor<number, 4>({1, 1, 1, 1});
    mask_ = tensor<bool, 4>({1, 1, 1, 1});
    *mask_.data() = true;
    if (given.has("bias")) {
      if (given.array("bias").type == "b1")
        mask_ = given.input<bool, 4>("bias");
      else
        bias_ = given.input<number, 4>("bias");
    }
    plain_ = softcap_ == 0;
    for (char const* name : {"alibi", "bias", "sink", "row_max", "entropy", "column_sums"})
      plain_ = plain_ && !given.has(name);

    index_t const value_dim = value_.shape()[3];
    out_ = tensor<number, 4>({batch, rows, heads, value_dim});
    lse_ = tensor<number, 3>({batch, heads, rows});
    row_max_ = tensor<number, 3>({batch, heads, rows});
    entropy_ = tensor<number, 3>({batch, heads, rows});
    column_sums_ = tensor<number, 3>({batch, heads, key_.shape()[1]});
  }

  void forward() {
    heed::key_lengths const lengths{lengths_};
    auto const attend = [&](auto const&... more) {
      if (plain_)
        heed::attention(query_.const_view(), key_.const_view(), value_.const_view(), out_.view(),
                        heed::lse_into{lse_.view()}, window_ & lengths, more...);
      else
        with_modifiers(bias_.const_view(), mask_.const_view(), [&](auto const&... modifiers) {
          heed::attention(query_.const_view(), key_.const_view(), value_.const_view(), out_.view(),
                          heed::lse_into{lse_.view()}, heed::row_max_into{row_max_.view()},
                          heed::entropy_into{entropy_.view()},
                          heed::column_sums_into(column_sums_.view()), window_ & lengths,
                          modifiers..., more...);
        });
    };
    with_documents(attend);
  }

  /// Each query alone, from a cache that holds the keys up to its own position if it is causal.
  void decode() {
    forward();  // checks the whole call before parts of it are taken
    if (!packed_) return decode({0, query_.shape()[1], 0, key_.shape()[1], lengths_});
    for (std::size_t g = 0; g + 1 < query_offsets_.size(); ++g)
      decode({query_offsets_[g], query_offsets_[g + 1] - query_offsets_[g], key_offsets_[g],
              key_offsets_[g + 1] - key_offsets_[g], std::span(lengths_).subspan(g, 1)});
  }

  void backward() {
    forward();
    auto const dout = given_.input<number, 4>("do", batch_axis());
    auto const dlse =
        given_.has("dlse") ? given_.input<number, 3>("dlse") : tensor<number, 3>(lse_.shape());
    tensor<number, 4> const dquery(query_.shape()), dkey(key_.shape()), dvalue(value_.shape());
    if (given_.has("dalibi")) dslopes_ = tensor<number, 1>(slopes_.shape());
    if (given_.has("dsink")) dsinks_ = tensor<number, 2>(sinks_.shape());
    if (given_.has("dbias")) dbias_ = tensor<number, 4>(bias_.shape());

    heed::key_lengths const lengths{lengths_};
    with_documents([&](auto const&... more) {
      auto const run = [&](auto const&... modifiers) {
        heed::attention_backward(
            query_.const_view(), key_.const_view(), value_.const_view(), out_.const_view(),
            lse_.const_view(), dout.const_view(), dquery.view(), dkey.view(), dvalue.view(),
            heed::lse_gradient(dlse.const_view()), window_ & lengths, modifiers..., more...);
      };
      if (plain_)
        run();
      else
        with_modifiers(bias_.const_view(), mask_.const_view(), run);
    });

    given_.output("dq", dquery, given_.array("q").shape);
    given_.output("dk", dkey, given_.array("k").shape);
    given_.output("dv", dvalue, given_.array("v").shape);
    if (given_.has("dalibi")) given_.output("dalibi", dslopes_);
    if (given_.has("dsink")) given_.output("dsink", dsinks_, given_.array("sink").shape);
    if (given_.has("dbias")) given_.output("dbias", dbias_);
  }

  void output() {
    std::vector<index_t> shape = given_.array("q").shape;
    shape.back() = value_.shape()[3];
    given_.output("o", out_, shape);
    given_.output("lse", lse_);
    given_.output("row_max", row_max_);
    given_.output("entropy", entropy_);
    given_.output("column_sums", column_sums_);
  }

 private:
  std::optional<int> batch_axis() const { return packed_ ? std::optional(0) : std::nullopt; }
  tensor<Storage, 4> operand(char const* name) {
    return given_.input<Storage, 4>(name, batch_axis());
  }

  template <class F>
  void with_documents(F const& f) {
    heed::scale const scale{scale_};
    if (packed_)
      f(scale, heed::on{pool_}, heed::documents{query_offsets_, key_offsets_});
    else
      f(scale, heed::on{pool_});
  }

  template <class F>
  void with_modifiers(tensor_view<number const, 4> bias, tensor_view<bool const, 4> mask,
                      F const& f) {
    auto const with = [&](auto const&... cap) {
      f(cap..., heed::alibi(slopes_.const_view(), dslopes_.view()), heed::bias(bias, dbias_.view()),
        heed::bias(mask), heed::softmax_with_sinks(sinks_.const_view(), dsinks_.view()));
    };
    if (softcap_ > 0)
      with(heed::softcap{softcap_});
    else
      with();
  }

  void decode(sequence const& s) {
    auto const query = query_.const_view().slice(1, s.first_row, s.rows);
    auto const key = key_.const_view().slice(1, s.first_key, s.keys);
    auto const value = value_.const_view().slice(1, s.first_key, s.keys);
    tensor<Storage, 4> const key_memory(key.extents()), value_memory(value.extents());
    heed::kv_cache cache(key_memory.view(), value_memory.view());
    std::vector<index_t> lengths(s.lengths.size());

    for (index_t i = 0; i < s.rows; ++i) {
      index_t const position = i + s.keys - s.rows, row = s.first_row + i;
      index_t const known = causal_ ? std::max<index_t>(position + 1, 0) : s.keys;
      if (index_t const fresh = known - cache.length(); fresh > 0)
        cache.append(key.slice(1, cache.length(), fresh), value.slice(1, cache.length(), fresh));
      for (std::size_t b = 0; b < lengths.size(); ++b) lengths[b] = std::min(s.lengths[b], known);

      auto const one = [row](auto view, int axis) { return view.slice(axis, row, 1); };
      auto const part = [&](auto view) {
        if (view.extent(2) > 1) view = view.slice(2, row, 1);
        if (view.extent(3) > 1) view = view.slice(3, s.first_key, known);
        return view;
      };
      heed::query_positions const stands{tensor_view<index_t const, 2>(&position, {1, 1})};
      auto const attend = [&](auto const&... more) {
        heed::attention(query.slice(1, i, 1), cache, one(out_.view(), 1),
                        heed::lse_into{one(lse_.view(), 2)}, stands, heed::scale{scale_},
                        heed::on{pool_}, window_ & heed::key_lengths{lengths}, more...);
      };
      if (plain_)
        attend();
      else
        with_modifiers(part(bias_.const_view()), part(mask_.const_view()),
                       [&](auto const&... modifiers) {
                         attend(heed::row_max_into{one(row_max_.view(), 2)},
                                heed::entropy_into{one(entropy_.view(), 2)}, modifiers...);
                       });
    }
  }

  arguments& given_;
  Eigen::ThreadPool& pool_;
  bool packed_;
  bool causal_;
  heed::sliding_window window_;
  double softcap_;
  double scale_ = 0;
  bool plain_ = true;
  tensor<Storage, 4> query_, key_, value_;
  std::vector<index_t> query_offsets_, key_offsets_, lengths_;
  tensor<number, 1> slopes_, dslopes_;
  tensor<number, 2> sinks_, dsinks_;
  tensor<number, 4> bias_, dbias_;
  tensor<bool, 4> mask_;
  tensor<number, 4> out_;
  tensor<number, 3> lse_, row_max_, entropy_, column_sums_;
};

void run(arguments& given) {
  std::string const file_type = given.array("q").type;
  require(file_type == "f4" || file_type == "f8",
          [&] { return "q has elements of type " + file_type + "; expected float32 or float64"; });
  given.set_output_type(file_type);

  std::string_view const verb = given.has("verb") ? given.choice("verb")
                                : given.has("do") ? "backward"
                                                  : "forward";
  auto const belongs = [&](std::string_view owner, std::initializer_list<char const*> names) {
    for (char const* name : names)
      require(!given.has(name) || verb == owner, [&] {
        return std::string(name) + " is given; expected only with verb=" + std::string(owner) +
               ", and this is " + std::string(verb);
      });
  };
  belongs("backward", {"do", "dlse", "dq", "dk", "dv", "dbias", "dalibi", "dsink"});
  require(!given.has("column_sums") || verb != "decode",
          [] { return "column_sums is given; expected not with verb=decode"; });
  auto const needs = [&](char const* gradient, char const* of) {
    require(!given.has(gradient) || given.has(of),
            [&] { return std::string(gradient) + " is given; expected " + of + " too"; });
  };
  needs("dbias", "bias");
  needs("dalibi", "alibi");
  needs("dsink", "sink");
  require(!given.has("dbias") || given.array("bias").type != "b1",
          [] { return "dbias is given and bias is of type bool, which has no gradient"; });
  bool writes = false;
  for (char const* name : {"o", "lse", "row_max", "entropy", "column_sums", "dq", "dk", "dv",
                           "dbias", "dalibi", "dsink"})
    writes = writes || given.has(name);
  require(writes, [] { return "nothing is to be written; expected an output such as o=o.npy"; });

  index_t const threads = given.integer("threads");
  require(threads >= 1 && threads <= 1024,
          [&] { return "threads is " + std::to_string(threads) + "; expected 1 to 1024"; });
  Eigen::ThreadPool pool(static_cast<int>(threads));

  auto const run_as = [&]<class Storage>(Storage) {
    softmax_call<Storage> call(given, pool);
    if (verb == "forward")
      call.forward();
    else if (verb == "decode")
      call.decode();
    else
      call.backward();
    call.output();
  };
  std::string_view const type = given.has("type")   ? given.choice("type")
                                : file_type == "f8" ? "f64"
                                                    : "f32";
  if (type == "f64")
    run_as(double{});
  else if (type == "f32")
    run_as(float{});
  else if (type == "f16")
    run_as(Eigen::half{});
  else
    run_as(Eigen::bfloat16{});
}

mechanism_registration const softmax{{
    "softmax",
    {
        {"q", kind::input, "[B, N, H, D]", required,
         "queries; with cu_seqlens [1, T, H, D] or [T, H, D]"},
        {"k", kind::input, "[B, M, H_k, D]", required, "keys; H_k divides H"},
        {"v", kind::input, "[B, M, H_v, D_v]", required, "values; H_v divides H"},
        {"o", kind::output, "[B, N, H, D_v]", "none", "the result, in the type of q's file"},
        {"lse", kind::output, "[B, H, N]", "none", "log of the sum of exp of each row's scores"},
        {"row_max", kind::output, "[B, H, N]", "none", "the largest score of each row"},
        {"entropy", kind::output, "[B, H, N]", "none",
         "the entropy of each row's weights, in nats"},
        {"column_sums", kind::output, "[B, H, M]", "none",
         "the sum of each key's weights over the rows"},
        {"do", kind::input, "[B, N, H, D_v]", "none", "gradient of the loss by o"},
        {"dlse", kind::input, "[B, H, N]", "0", "gradient of the loss by lse"},
        {"dq", kind::output, "[B, N, H, D]", "none", "gradient of the loss by q"},
        {"dk", kind::output, "[B, M, H_k, D]", "none", "gradient of the loss by k"},
        {"dv", kind::output, "[B, M, H_v, D_v]", "none", "gradient of the loss by v"},
        {"scale", kind::number, "", "1/sqrt(D)", "factor of q.k"},
        {"softcap", kind::number, "", "0",
         "scores s become softcap tanh(s / softcap); 0: they do not"},
        {"alibi", kind::input, "[H]", "none",
         "slopes: slope times |key - query position| is subtracted from scores"},
        {"bias", kind::input, "[B|1, H|1, N|1, M|1]", "none",
         "added to scores; of bool: false hides a pair"},
        {"causal", kind::flag, "", "false",
         "hide keys after the query's position, which for row i is i + M - N"},
        {"window_left", kind::integer, "", "-1",
         "keys visible before the query's position; -1: all"},
        {"window_right", kind::integer, "", "-1",
         "keys visible after the query's position; -1: all"},
        {"key_lengths", kind::input, "[B]", "none",
         "the keys that each batch entry (with cu_seqlens: sequence) really has"},
        {"cu_seqlens_q", kind::input, "[G + 1]", "none",
         "offsets of G packed sequences in q: 0 first, T last"},
        {"cu_seqlens_k", kind::input, "[G + 1]", "none",
         "offsets of G packed sequences in k and v"},
        {"sink", kind::input, "[H] or [H, S]", "none",
         "logits that take part in the softmax and have no value"},
        {"dalibi", kind::output, "[H]", "none", "gradient of the loss by alibi"},
        {"dbias", kind::output, "[B|1, H|1, N|1, M|1]", "none", "gradient of the loss by bias"},
        {"dsink", kind::output, "[H] or [H, S]", "none", "gradient of the loss by sink"},
        {"type", kind::choice, "f64|f32|f16|bf16", "that of q's file",
         "what q, k and v are converted to before the call"},
        {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
        {"verb", kind::choice, "forward|backward|decode", "forward, or backward with do=",
         "decode: query by query, each from a cache that holds the keys up to its position if "
         "causal, else all"},
    },
    run,
}};

}  // namespace
}  // namespace conformance
