#include "cli/sandbox.hpp"

// What heed_conformance refuses of patterns and mechanisms: status 2, a message that names it, and no output.

using cli::normal;
using cli::sandbox;
using heed::index_t;

namespace {

struct bad_call {
  char const* arguments;
  char const* named;  // in the message
};

bad_call const bad_calls[] = {
    // Any of them.
    {"streaming", "nothing is to be written"},
    {"streaming o=o.npy verb=sideways", "forward|backward|decode"},
    {"streaming o=o.npy nothing=1", "no parameter nothing"},
    {"streaming o=o.npy recent=many", "integer"},
    {"streaming o=o.npy type=f16", "f64|f32"},
    {"streaming o=o.npy threads=0", "threads"},
    {"streaming o=o.npy dq=dq.npy", "dq is given"},
    {"streaming o=o.npy verb=backward", "do="},
    {"streaming o=o.npy do=do.npy dbias=dbias.npy", "bias"},
    {"streaming o=o.npy bias=flags7.npy", "bias"},
    {"streaming o=o.npy do=numbers.npy dq=dq.npy", "do has shape"},
    {"local_monotone o=o.npy verb=decode", "forward|backward"},
    {"neighborhood o=o.npy canvas=5 window=3 verb=decode", "forward|backward"},
    // Their own parameters.
    {"sliding_window o=o.npy left=-2", "left is -2"},
    {"sliding_window o=o.npy align=middle", "bottom_right|top_left"},
    {"first_keys o=o.npy", "needs count="},
    {"key_lengths o=o.npy lengths=five.npy", "key_lengths"},
    {"key_lengths o=o.npy lengths=numbers.npy", "lengths"},
    {"prefix_lm o=o.npy prefixes=five.npy", "key_lengths"},
    {"streaming o=o.npy recent=0", "recent"},
    {"streaming_heads o=o.npy sinks=five.npy recent=five.npy", "streaming_heads"},
    {"global_tokens o=o.npy count=-1 reach=1", "global_tokens"},
    {"dilated_window o=o.npy step=0", "step"},
    {"residues o=o.npy step=0", "step"},
    {"key_offsets o=o.npy offsets=descending.npy", "key_offsets"},
    {"key_offsets o=o.npy offsets=five.npy", "offsets"},
    {"key_set o=o.npy kept=flags5.npy", "key_set"},
    {"key_set o=o.npy kept=five.npy", "bool"},
    {"key_list o=o.npy keys=repeated.npy", "key_list"},
    {"chosen_rows o=o.npy chosen=flags7.npy", "chosen_rows"},
    {"periodic_keys o=o.npy period=3 first=3", "periodic_keys"},
    {"row_ranges o=o.npy first=five.npy last=seven.npy", "row_ranges.last"},
    {"labels o=o.npy queries=five.npy keys=seven.npy admitted=square.npy", "labels"},
    {"lifetimes o=o.npy ends=five.npy", "lifetimes"},
    {"slices o=o.npy list=overlapping.npy", "overlap"},
    {"slices o=o.npy list=untyped.npy", "type 4"},
    {"column_ranges o=o.npy columns=descending.npy", "column_ranges"},
    {"block_table o=o.npy kept=square.npy row_size=2 key_size=4", "block_table.rows"},
    {"block_table o=o.npy kept=square.npy", "block_table"},
    {"block_rows o=o.npy offsets=rows.npy columns=repeated.npy column_count=9 row_size=5 "
     "key_size=1",
     "block_rows"},
    {"block_rows o=o.npy offsets=rows.npy columns=five.npy column_count=7 row_size=5 key_size=1 "
     "inner=flags7.npy",
     "inner"},
    {"bool_mask o=o.npy kept=square.npy", "bool_mask"},
    {"bit_mask o=o.npy bytes=five.npy offsets=five.npy", "bit_mask"},
    {"block_lists o=o.npy kv_num_blocks=five.npy kv_indices=numbers.npy kept=square.npy", "kv"},
    {"benchmark_mask o=o.npy", "needs mask="},
    {"benchmark_mask o=o.npy mask=triangle", "causal_blockwise"},
    {"benchmark_mask o=o.npy mask=full_document boundaries=five.npy", "boundaries"},
    {"shifted_groups o=o.npy size=3", "size"},
    {"block_attention o=o.npy starts=five.npy", "starts"},
    {"parallel_contexts o=o.npy starts=rows.npy selected=flags5.npy", "key_set"},
    {"demonstration_blocks o=o.npy starts=repeated.npy", "starts"},
    {"chunks_with_memory o=o.npy chunk=2", "twice as many"},
    {"power_attention o=o.npy block=0", "block"},
    {"factorised o=o.npy part=local length=0", "length"},
    {"factorised o=o.npy part=fixed length=4 count=3 variants=2", "summary_places"},
    {"head_strides o=o.npy stride=0", "stride"},
    {"head_parts o=o.npy parts=0", "parts"},
    {"token_types o=o.npy types=seven.npy window=1", "types holds"},
    {"token_types o=o.npy types=zeros.npy window=-1", "window"},
    {"meta_tokens o=o.npy meta=flags5.npy", "key_set"},
    {"sentinel_tokens o=o.npy markers=seven.npy", "markers holds"},
    {"nearest_share o=o.npy ratio=2", "ratio"},
    {"scattered_keys o=o.npy kept=flags5.npy", "key_set"},
    {"text_queries o=o.npy visual=seven.npy", "bool"},
    {"blind_visual_tokens o=o.npy visual=flags5.npy", "key_set"},
    {"modality o=o.npy mask=self modality=five.npy", "labels"},
    {"isolation o=o.npy regions=seven.npy", "labels.queries"},
    {"graph_windows o=o.npy nodes=repeated.npy adjacency=square.npy", "graph_windows"},
    {"graph_windows o=o.npy nodes=rows.npy adjacency=square.npy hops=0", "hops"},
    {"faithful_patches o=o.npy kept=flags5.npy", "key_set"},
    {"elastic_spans o=o.npy alpha=floats.npy beta=floats.npy length=9", "streaming_heads"},
    {"elastic_span_in_blocks o=o.npy alpha=1 beta=x length=9", "number"},
    {"task_kv o=o.npy recent=1 middle=repeated.npy far=flags7.npy", "key_list"},
    {"neighborhood o=o.npy canvas=2,3 window=2", "canvas"},
    {"neighborhood o=o.npy canvas=5 window=9", "window"},
    {"neighborhood o=o.npy canvas=1,1,1,5 window=1", "1 to 3"},
    {"neighborhood o=o.npy canvas=5, window=1", "commas"},
    {"neighborhood q=k.npy o=o.npy canvas=7 window=3 table=floats.npy", "table"},
    {"packed_canvases o=o.npy canvases=descending.npy window=9,9", "window"},
    {"packed_canvases o=o.npy canvases=descending.npy window=1,1,1", "canvases"},
    {"dilated_neighborhood o=o.npy canvas=1,5 window=2", "window"},
    {"inward_window o=o.npy canvas=1,1,5 reach=1,1,1", "reach"},
    {"window_partition o=o.npy canvas=5 window=2 shift=2", "shift"},
    {"shifted_windows o=o.npy canvas=4 window=2", "canvas"},
    {"grid_partition o=o.npy canvas=5 cells=2", "cells"},
    {"multi_axis o=o.npy canvas=5,1 size=2 layer=grid", "cells"},
    {"axial o=o.npy canvas=5 axis=1", "axis"},
    {"halo o=o.npy canvas=7 block=2 halo=1", "block"},
    // More than a pattern.
    {"all_or_here o=o.npy logits=numbers.npy recent=1", "chosen_rows"},
    {"all_or_here o=o.npy logits=logits.npy recent=0", "recent"},
    {"duo_attention o=o.npy gates=floats.npy sinks=1 recent=2", "gates"},
    {"duo_attention o=o.npy lse=lse.npy gates=gates.npy sinks=1 recent=2", "lse"},
    {"extra_keys o=o.npy extra_k=k.npy extra_v=q.npy", "extra_keys.value"},
    {"extra_keys o=o.npy extra_k=k.npy extra_v=k.npy log_weights=numbers.npy", "bias"},
    {"razor_attention o=o.npy sinks=0 recent=2 retrieval=flags5.npy", "retrieval"},
    {"combiner o=o.npy variant=fixed block=0 q=k.npy", "block"},
    {"combiner o=o.npy variant=mixture rows=2 columns=2", "positions"},
    {"combiner q=k.npy o=o.npy variant=mixture rows=7 verb=decode", "row-major"},
    {"key_alignment o=o.npy visual=flags5.npy rho=floats.npy mix=matrix.npy", "visual"},
    {"local_predictive o=o.npy centres=logits.npy radius=0", "radius"},
    {"locality_dial o=o.npy groups=seven.npy lambda=2", "locality_dial"},
    {"adaptive_heads o=o.npy mean=numbers.npy", "covariance"},
    {"halo_attention o=o.npy canvas=5,1 block=1 halo=0 row_vectors=matrix.npy "
     "column_vectors=matrix.npy",
     "halo"},
    {"layer_router o=o.npy sinks=1 recent=2", "needs w1="},
    {"soft_mask o=o.npy m=matrix.npy", "bias"},
};

}  // namespace

TEST_CASE("heed_conformance refuses what its mechanisms cannot take", "[cli][patterns]") {
  sandbox const box;
  support::random draw(3);
  box.save_as<double>("q", normal<4>(draw, {2, 5, 4, 8}));
  box.save_as<double>("k", normal<4>(draw, {2, 7, 2, 8}));
  box.save_as<double>("do", normal<4>(draw, {2, 5, 4, 8}));
  box.save_as<double>("numbers", normal<3>(draw, {3, 3, 3}));
  box.save_as<double>("logits", normal<3>(draw, {2, 4, 5}));
  box.save_as<double>("floats", normal<1>(draw, {3}));
  box.save_as<double>("gates", normal<1>(draw, {2}));
  box.save_as<double>("matrix", normal<2>(draw, {3, 3}));
  auto const integers = [&](std::string const& name, std::vector<index_t> shape,
                            std::vector<std::int64_t> const& values) {
    box.save(name, std::move(shape), values);
  };
  integers("five", {5}, {1, 2, 3, 4, 5});
  integers("seven", {7}, {1, 2, 3, 4, 5, 6, 8});
  integers("zeros", {7}, {0, 0, 0, 0, 0, 0, 0});
  integers("rows", {2}, {0, 5});
  integers("repeated", {3}, {4, 4, 2});
  integers("descending", {2, 2}, {3, 5, 1, 2});
  integers("overlapping", {2, 5}, {0, 5, 0, 7, 0, 2, 3, 1, 4, 1});
  integers("untyped", {1, 5}, {0, 5, 0, 7, 4});
  box.save("flags5", {5}, std::vector<std::uint8_t>{1, 0, 1, 0, 1});
  box.save("flags7", {7}, std::vector<std::uint8_t>{1, 0, 1, 0, 1, 1, 0});
  box.save("square", {2, 2}, std::vector<std::uint8_t>{1, 0, 0, 1});
  for (bad_call const& bad : bad_calls) {
    std::string call = std::string("run ") + bad.arguments;
    if (call.find(" q=") == call.npos) call += " q=q.npy";
    call += " k=k.npy v=k.npy";
    auto const done = box.run(call);
    INFO(call << "\n" << done.err);
    CHECK(done.status == 2);
    CHECK(done.err.find(bad.named) != std::string::npos);
    CHECK((!box.exists("o") && !box.exists("lse") && !box.exists("dq") && !box.exists("dbias")));
  }
}
