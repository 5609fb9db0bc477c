// heed_conformance run halo_attention: blocks of a picture and a halo around each, with vectors for places.
#include "attention_call.hpp"

#include <heed/mechanism/halo_attention.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"drow_vectors", "dcolumn_vectors"});
  attention_call<double> call(given);
  auto const rows = given.input<double, 2>("row_vectors"),
             columns = given.input<double, 2>("column_vectors");
  heed::halo<2, double> const how{
      {given.point<2>("canvas"), given.point<2>("block"), given.point<2>("halo"),
       given.point<2>("query_stride")},
      {rows.const_view(), columns.const_view()},
      given.choice("border") == "zero" ? heed::halo_border::zero : heed::halo_border::mask,
      given.flag("scale_positions")};
  heed::halo_attention(call.query.const_view(), call.key.const_view(), call.value.const_view(),
                       call.out.view(), how, heed::lse_into<double>{call.lse.view()}, call.scale,
                       heed::on{call.pool});
  call.write_results();
  if (what != verb::backward) return;

  call.read_gradients();
  tensor<double, 2> const drows(rows.shape()), dcolumns(columns.shape());
  heed::halo_attention_backward(
      call.query.const_view(), call.key.const_view(), call.value.const_view(),
      call.out.const_view(), call.lse.const_view(), call.dout.const_view(), call.dquery.view(),
      call.dkey.view(), call.dvalue.view(), std::array{drows.view(), dcolumns.view()}, how,
      heed::lse_gradient<double>(call.dlse.const_view()), call.scale, heed::on{call.pool});
  call.write_gradients();
  given.output("drow_vectors", drows);
  given.output("dcolumn_vectors", dcolumns);
}

mechanism_registration const halo_attention{{
    "halo_attention",
    attention_parameters(
        "forward|backward",
        {{"canvas", kind::integers, "", required, "height and width of the keys"},
         {"block", kind::integers, "", required,
          "tokens of a block along each axis, or along both"},
         {"halo", kind::integers, "", required, "keys around it"},
         {"query_stride", kind::integers, "", "1", "how far queries are apart"},
         {"row_vectors", kind::input, "[2 (block + 2 halo) - 1, D]", required,
          "whose product with the query is added to scores, by the row in the window less that in "
          "the block"},
         {"column_vectors", kind::input, "[2 (block + 2 halo) - 1, D]", required,
          "the same by the column"},
         {"border", kind::choice, "zero|mask", "zero", "whether zeros beyond the canvas take part"},
         {"scale_positions", kind::flag, "", "false", "scale multiplies the added products too"},
         {"drow_vectors", kind::output, "[2 (block + 2 halo) - 1, D]", "none",
          "gradient of the loss by row_vectors"},
         {"dcolumn_vectors", kind::output, "[2 (block + 2 halo) - 1, D]", "none",
          "gradient of the loss by column_vectors"}}),
    run,
}};

}  // namespace
}  // namespace conformance
