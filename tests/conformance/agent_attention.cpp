// heed_conformance run agent_attention, and agent_bias: attention through agents, and its parts for pictures.
#include "composition_call.hpp"

#include <heed/mechanism/agent_attention.hpp>
#include <heed/mechanism/agent_grid.hpp>

namespace conformance {
namespace {

using call_type = attention_call<double>;

heed::agent_grid grid_of(arguments const& given) {
  auto const [height, width] = given.point<2>("grid");
  return {height, width, given.flag("class_token")};
}

/// A bias with its gradient, or one number that is 0 for all pairs.
struct optional_bias {
  tensor<double, 4> numbers, gradient;

  optional_bias(arguments& given, std::string_view name)
      : numbers(given.has(name) ? given.input<double, 4>(name) : tensor<double, 4>({1, 1, 1, 1})),
        gradient(numbers.shape()) {}
  auto ingredient() const { return heed::bias(numbers.const_view(), gradient.view()); }
};

void run(arguments& given) {
  verb const what = verb_of(given, {"dagents", "db1", "db2", "dkernel", "doffset"});
  call_type call(given);
  bool const pooled = given.has("pool");
  require(pooled != given.has("agents"),
          [] { return "expected either agents, or grid and pool to pool them by"; });
  std::array<index_t, 2> const pool = pooled ? given.point<2>("pool") : std::array<index_t, 2>{};
  tensor<double, 4> const agents = pooled ? tensor<double, 4>({call.batches(), pool[0] * pool[1],
                                                               call.heads(), call.query.shape()[3]})
                                          : given.input<double, 4>("agents");
  if (pooled)
    heed::pool_agents(call.query.const_view(), grid_of(given), pool[0], pool[1], agents.view(),
                      heed::on{call.pool});
  optional_bias const b1(given, "b1"), b2(given, "b2");
  heed::scale const second{given.has("second_scale") ? given.number("second_scale")
                                                     : call.scale.value};
  bool const convolves = given.has("kernel");
  auto const kernel = input_if_given<3>(given, "kernel");
  auto const offset = given.has("offset")
                          ? given.input<double, 2>("offset")
                          : tensor<double, 2>({call.value.shape()[2], call.value.shape()[3]});
  heed::agent_attention(call.query.const_view(), call.key.const_view(), call.value.const_view(),
                        agents.const_view(), call.out.view(), call.scale, heed::on{call.pool},
                        heed::agent_aggregation(b1.ingredient()),
                        heed::agent_broadcast(b2.ingredient(), second));
  if (convolves)
    heed::add_depthwise(call.value.const_view(), kernel.const_view(), offset.const_view(),
                        grid_of(given), call.out.view(), heed::on{call.pool});
  given.output("o", call.out);
  if (what != verb::backward) return;

  read_dout(call);
  tensor<double, 4> const dagents(agents.shape());
  heed::agent_attention_backward(
      call.query.const_view(), call.key.const_view(), call.value.const_view(), agents.const_view(),
      call.dout.const_view(), call.dquery.view(), call.dkey.view(), call.dvalue.view(),
      dagents.view(), call.scale, heed::on{call.pool}, heed::agent_aggregation(b1.ingredient()),
      heed::agent_broadcast(b2.ingredient(), second));
  if (pooled)
    heed::pool_agents_backward(dagents.const_view(), grid_of(given), pool[0], pool[1],
                               call.dquery.view(), heed::on{call.pool});
  tensor<double, 3> const dkernel(kernel.shape());
  tensor<double, 2> const doffset(offset.shape());
  if (convolves)
    heed::add_depthwise_backward(call.value.const_view(), kernel.const_view(), offset.const_view(),
                                 grid_of(given), call.dout.const_view(), call.dvalue.view(),
                                 dkernel.view(), doffset.view(), heed::on{call.pool});
  call.write_gradients();
  given.output("dagents", dagents);
  given.output("db1", b1.gradient);
  given.output("db2", b2.gradient);
  given.output("dkernel", dkernel);
  given.output("doffset", doffset);
}

void run_bias(arguments& given) {
  verb const what = verb_of(given, {"dtable", "drows", "dcolumns", "dof_class"});
  heed::agent_grid const grid = grid_of(given);
  auto const table = given.input<double, 4>("table");
  auto const rows = given.input<double, 3>("rows"), columns = given.input<double, 3>("columns");
  auto const of_class = input_if_given<2>(given, "of_class");
  given.set_output_type(given.array("table").type);
  Eigen::ThreadPool pool(threads_of(given));
  auto const none_if_empty = [](auto view) { return view.size() == 0 ? decltype(view)() : view; };
  tensor<double, 4> const bias({1, table.shape()[0], table.shape()[1], grid.tokens()});
  heed::agent_bias(heed::agent_bias_tables<double const>{table.const_view(), rows.const_view(),
                                                         columns.const_view(),
                                                         none_if_empty(of_class.const_view())},
                   grid, bias.view(), heed::on{pool});
  given.output("o", bias);
  if (what != verb::backward) return;
  require(given.has("do"), [] { return "the backward pass needs do="; });
  auto const dbias = given.input<double, 4>("do");
  tensor<double, 4> const dtable(table.shape());
  tensor<double, 3> const drows(rows.shape()), dcolumns(columns.shape());
  tensor<double, 2> const dof_class(of_class.shape());
  heed::agent_bias_backward(
      dbias.const_view(), grid,
      heed::agent_bias_tables<double>{dtable.view(), drows.view(), dcolumns.view(),
                                      none_if_empty(dof_class.view())},
      heed::on{pool});
  given.output("dtable", dtable);
  given.output("drows", drows);
  given.output("dcolumns", dcolumns);
  given.output("dof_class", dof_class);
}

mechanism_registration const agent_attention{{
    "agent_attention",
    composition_parameters(
        {{"agents", kind::input, "[B, n, H_a, D]", "none", "or grid and pool"},
         {"grid", kind::integers, "", required, "with pool or kernel: rows and columns of tokens"},
         {"pool", kind::integers, "", "none", "rows and columns of agents, means of queries"},
         {"class_token", kind::flag, "", "false", "the first token is none of the grid's"},
         {"b1", kind::input, "[B|1, H_a|1, n|1, M|1]", "0", "added to scores of agents and keys"},
         {"b2", kind::input, "[B|1, H|1, N|1, n|1]", "0", "added to scores of queries and agents"},
         {"second_scale", kind::number, "", "scale",
          "factor of the products of queries and agents"},
         {"kernel", kind::input, "[9, H_v, D_v]", "none", "of a 3x3 convolution of the values"},
         {"offset", kind::input, "[H_v, D_v]", "0", "with kernel: added to every token"},
         {"dagents", kind::output, "[B, n, H_a, D]", "none", "gradient of the loss by agents"},
         {"db1", kind::output, "as b1", "none", "gradient of the loss by b1"},
         {"db2", kind::output, "as b2", "none", "gradient of the loss by b2"},
         {"dkernel", kind::output, "[9, H_v, D_v]", "none", "gradient of the loss by kernel"},
         {"doffset", kind::output, "[H_v, D_v]", "none", "gradient of the loss by offset"}}),
    run,
}};

mechanism_registration const agent_bias{{
    "agent_bias",
    {
        {"table", kind::input, "[H, n, any, any]", required, "enlarged to the grid"},
        {"rows", kind::input, "[H, n, rows]", required, "added to each row"},
        {"columns", kind::input, "[H, n, columns]", required, "added to each column"},
        {"of_class", kind::input, "[H, n]", "none", "of the class token"},
        {"grid", kind::integers, "", required, "rows and columns of tokens"},
        {"class_token", kind::flag, "", "false", "the first token is none of the grid's"},
        {"o", kind::output, "[1, H, n, tokens]", "none", "the bias, in the type of table's file"},
        {"do", kind::input, "[1, H, n, tokens]", "none", "gradient of the loss by the bias"},
        {"dtable", kind::output, "[H, n, any, any]", "none", "gradient of the loss by table"},
        {"drows", kind::output, "[H, n, rows]", "none", "gradient of the loss by rows"},
        {"dcolumns", kind::output, "[H, n, columns]", "none", "gradient of the loss by columns"},
        {"dof_class", kind::output, "[H, n]", "none", "gradient of the loss by of_class"},
        {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
        {"verb", kind::choice, "forward|backward", "forward, or backward with do=", "what to do"},
    },
    run_bias,
}};

}  // namespace
}  // namespace conformance
