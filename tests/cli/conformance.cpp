#include "cli/sandbox.hpp"
#include "reference/attention.hpp"

// The program heed_conformance, as a program: files in, files out, exit status.

using cli::close;
using cli::normal;
using cli::sandbox;
using heed::index_t;

namespace {

namespace files = std::filesystem;

/// A random call: its files, its arguments and its definition.
struct random_call {
  support::random draw;
  reference::options definition;
  reference::tensor<double, 4> q, k, v, dout;
  reference::tensor<double, 3> dlse;
  std::string arguments = "run softmax q=q.npy k=k.npy v=v.npy";
  bool single;
  bool packed;
  std::size_t alibi_at = 0, bias_at = 0;
  bool has_alibi = false, has_bias = false, has_sink = false;

  random_call(sandbox const& box, support::seed_t seed) : draw(seed) {
    single = draw.one_in(2);
    packed = draw.one_in(4);
    index_t const B = packed ? 1 : draw.between(1, 3), H = draw.one_of(std::array{1, 2, 4, 6});
    index_t const N = draw.between(0, 40), M = draw.between(0, 60);
    auto const divisor = [&] {
      index_t d = draw.between(1, H);
      while (H % d != 0) --d;
      return d;
    };
    index_t const D = draw.between(1, 24), Dv = draw.between(1, 24);
    q = normal<4>(draw, {B, N, H, D});
    k = normal<4>(draw, {B, M, divisor(), D});
    v = normal<4>(draw, {B, M, divisor(), Dv});
    dout = normal<4>(draw, {B, N, H, Dv});
    dlse = normal<3>(draw, {B, H, N});
    auto const save = [&](std::string const& name, auto const& tensor) {
      if (single)
        box.save_as<float>(name, tensor);
      else
        box.save_as<double>(name, tensor);
    };
    save("q", q);
    save("k", k);
    save("v", v);
    save("do", dout);
    save("dlse", dlse);

    index_t sequences = B;
    if (packed) {
      sequences = draw.between(1, 4);
      auto const offsets = [&](std::string const& name, index_t end) {
        std::vector<index_t> list{0, end};
        while (static_cast<index_t>(list.size()) <= sequences) list.push_back(draw.between(0, end));
        std::sort(list.begin(), list.end());
        box.save(name, {sequences + 1}, std::vector<std::int32_t>(list.begin(), list.end()));
        arguments += " " + name + "=" + name + ".npy";
        return list;
      };
      definition.documents_of_rows = offsets("cu_seqlens_q", N);
      definition.documents_of_keys = offsets("cu_seqlens_k", M);
    }

    bool const causal = draw.one_in(2);
    index_t const left = draw.one_in(3) ? draw.between(0, 30) : -1;
    index_t const right = draw.one_in(3) ? draw.between(0, 30) : -1;
    if (causal) arguments += draw.one_in(2) ? " causal=true" : " causal=1";
    if (left >= 0) arguments += " window_left=" + std::to_string(left);
    if (right >= 0) arguments += " window_right=" + std::to_string(right);
    std::vector<std::int64_t> lengths;
    if (draw.one_in(3)) {
      for (index_t s = 0; s < sequences; ++s) lengths.push_back(draw.between(0, M));
      box.save("key_lengths", {sequences}, lengths);
      arguments += " key_lengths=key_lengths.npy";
    }
    definition.keep = [=](index_t sequence, index_t query, index_t key) {
      return (!causal || key <= query) && (left < 0 || key >= query - left) &&
             (right < 0 || key <= query + right) &&
             (lengths.empty() || key < lengths[static_cast<std::size_t>(sequence)]);
    };

    if (draw.one_in(3)) {
      definition.scale = draw.uniform(-0.5, 0.5);
      arguments += " scale=" + number(*definition.scale);
    }
    if (draw.one_in(3)) {
      double const cap = draw.uniform(0.5, 10);
      definition.modifiers.push_back(reference::softcap{cap});
      arguments += " softcap=" + number(cap);
    }
    if ((has_alibi = draw.one_in(3))) {
      auto const slopes = normal<1>(draw, {H});
      save("alibi", slopes);
      alibi_at = definition.modifiers.size();
      definition.modifiers.push_back(reference::alibi{slopes.values});
      arguments += " alibi=alibi.npy";
    }
    if (draw.one_in(3)) {
      auto const one = [&](index_t extent) { return draw.one_in(3) ? index_t{1} : extent; };
      auto numbers = normal<4>(draw, {one(B), one(H), one(N), one(M)});
      if (draw.one_in(3)) {
        for (double& x : numbers.values)
          x = draw.one_in(2) ? 0 : -std::numeric_limits<double>::infinity();
        std::vector<std::uint8_t> mask;
        for (double x : numbers.values) mask.push_back(x == 0);
        box.save("bias", {numbers.extents.begin(), numbers.extents.end()}, mask);
      } else {
        has_bias = true;
        save("bias", numbers);
      }
      bias_at = definition.modifiers.size();
      definition.modifiers.push_back(reference::bias{numbers});
      arguments += " bias=bias.npy";
    }
    if ((has_sink = draw.one_in(3))) {
      definition.sinks = normal<2>(draw, {H, draw.between(1, 3)});
      save("sink", definition.sinks);
      arguments += " sink=sink.npy";
    }
    if (draw.one_in(3)) arguments += " threads=3";
  }

  static std::string number(double x) {
    std::ostringstream text;
    text.precision(17);
    text << x;
    return text.str();
  }
  double tolerance() const { return single ? 1e-4 : 1e-11; }
};

}  // namespace

TEST_CASE("heed_conformance lists every parameter", "[cli]") {
  sandbox const box;
  auto const listed = box.run("list");
  CHECK(listed.status == 0);
  std::istringstream lines(listed.out);
  std::vector<std::string> parameters;
  for (std::string line; std::getline(lines, line);) {
    CHECK(std::count(line.begin(), line.end(), '\t') == 4);
    if (line.starts_with("softmax\t")) parameters.push_back(line.substr(8, line.find('\t', 8) - 8));
  }
  for (std::string const name :
       {"q",       "k",    "v",     "o",           "lse",          "do",           "dq",
        "dk",      "dv",   "scale", "causal",      "window_left",  "window_right", "softcap",
        "alibi",   "bias", "sink",  "key_lengths", "cu_seqlens_q", "cu_seqlens_k", "type",
        "threads", "verb"})
    CHECK(std::count(parameters.begin(), parameters.end(), name) == 1);
}

TEST_CASE("heed_conformance: forward and decode are the definition", "[cli]") {
  sandbox const box;
  support::for_each_seed("conformance forward", 60, [&](support::seed_t seed) -> std::string {
    random_call call(box, seed);
    bool const decode = call.draw.one_in(3);
    std::string extra = " o=o.npy lse=lse.npy";
    if (call.draw.one_in(3)) extra += " row_max=row_max.npy entropy=entropy.npy";
    bool const sums = !decode && call.draw.one_in(3);
    if (sums) extra += " column_sums=column_sums.npy";
    auto const done = box.run(call.arguments + extra + (decode ? " verb=decode" : ""));
    if (done.status != 0) return done.err;
    auto const golden = reference::attention(call.q, call.k, call.v, call.definition);
    std::string complaint;
    if (npy::read(box.path("o.npy")).type != (call.single ? "f4" : "f8")) complaint += "type of o ";
    if (!close(box.load<4>("o"), golden.out, call.tolerance())) complaint += "o ";
    if (!close(box.load<3>("lse"), golden.lse, call.tolerance())) complaint += "lse ";
    if (extra.find("row_max") != extra.npos &&
        !close(box.load<3>("row_max"), golden.row_max, call.tolerance()))
      complaint += "row_max ";
    if (extra.find("entropy") != extra.npos &&
        !close(box.load<3>("entropy"), golden.entropy, call.tolerance()))
      complaint += "entropy ";
    if (sums && !close(box.load<3>("column_sums"), golden.column_sums, call.tolerance()))
      complaint += "column_sums ";
    return complaint.empty() ? "" : complaint + "differ after " + call.arguments + extra;
  });
}

TEST_CASE("heed_conformance: backward is the definition", "[cli]") {
  sandbox const box;
  support::for_each_seed("conformance backward", 60, [&](support::seed_t seed) -> std::string {
    random_call call(box, seed);
    std::string extra = " do=do.npy dq=dq.npy dk=dk.npy dv=dv.npy";
    bool const with_dlse = call.draw.one_in(2);
    if (with_dlse) extra += " dlse=dlse.npy";
    if (call.has_alibi) extra += " dalibi=dalibi.npy";
    if (call.has_bias) extra += " dbias=dbias.npy";
    if (call.has_sink) extra += " dsink=dsink.npy";
    auto const done = box.run(call.arguments + extra);
    if (done.status != 0) return done.err;
    auto const whole = reference::attention(call.q, call.k, call.v, call.definition);
    auto const golden = reference::attention_backward(
        call.q, call.k, call.v, whole.out, whole.lse, call.dout,
        with_dlse ? call.dlse : reference::tensor<double, 3>(), call.definition);
    std::string complaint;
    if (!close(box.load<4>("dq"), golden.query, call.tolerance())) complaint += "dq ";
    if (!close(box.load<4>("dk"), golden.key, call.tolerance())) complaint += "dk ";
    if (!close(box.load<4>("dv"), golden.value, call.tolerance())) complaint += "dv ";
    if (call.has_alibi) {
      reference::tensor<double, 1> slopes({call.q.extent(2)});
      slopes.values = golden.modifiers[call.alibi_at].values;
      if (!close(box.load<1>("dalibi"), slopes, call.tolerance())) complaint += "dalibi ";
    }
    if (call.has_bias &&
        !close(box.load<4>("dbias"), golden.modifiers[call.bias_at], call.tolerance()))
      complaint += "dbias ";
    if (call.has_sink && !close(box.load<2>("dsink"), golden.sinks, call.tolerance()))
      complaint += "dsink ";
    return complaint.empty() ? "" : complaint + "differ after " + call.arguments + extra;
  });
}

TEST_CASE("heed_conformance: the same bytes for any number of threads", "[cli][threads]") {
  sandbox const box;
  auto const bytes = [&](std::string const& name) {
    return npy::read(box.path(name + ".npy")).bytes;
  };
  support::for_each_seed("conformance threads", 15, [&](support::seed_t seed) -> std::string {
    random_call call(box, seed);
    for (std::string const threads : {"1", "2", "5"}) {
      std::string arguments = call.arguments.substr(0, call.arguments.find(" threads=")) +
                              " do=do.npy threads=" + threads;
      for (std::string const name : {"o", "lse", "dq", "dk", "dv"})
        arguments += " " + name + "=" + name + threads + ".npy";
      auto const done = box.run(arguments);
      if (done.status != 0) return done.err;
      for (std::string const name : {"o", "lse", "dq", "dk", "dv"})
        if (bytes(name + threads) != bytes(name + "1")) return name + " differs after " + arguments;
    }
    return "";
  });
}

TEST_CASE("heed_conformance: storage types and file types", "[cli]") {
  sandbox const box;
  support::random draw(1);
  auto const q = normal<4>(draw, {1, 9, 2, 8}), k = normal<4>(draw, {1, 9, 2, 8});
  box.save_as<double>("q", q);
  box.save_as<float>("k", k);
  box.save_as<double>("v", k);
  auto const golden = reference::attention(q, k, k, {});
  double last = 0;
  for (auto const& [type, tolerance] :
       {std::pair{"f64", 1e-13}, {"f32", 1e-5}, {"f16", 1e-2}, {"bf16", 1e-1}}) {
    REQUIRE(
        box.run(std::string("run softmax q=q.npy k=k.npy v=v.npy o=o.npy type=") + type).status ==
        0);
    CHECK(npy::read(box.path("o.npy")).type == "f8");
    auto const out = box.load<4>("o");
    CHECK(close(out, golden.out, tolerance));
    double error = 0;
    for (std::size_t i = 0; i < out.values.size(); ++i)
      error = std::max(error, std::abs(out.values[i] - golden.out.values[i]));
    CHECK(error > last);
    last = error;
  }
}

TEST_CASE("heed_conformance reads what numpy writes", "[cli]") {
  sandbox const box;
  std::vector<double> numbers{1, 2, 3, 4, 5, 6};
  auto const write = [&](std::string const& name, int version, std::string header,
                         bool swap = false) {
    std::ofstream file(box.path(name + ".npy"), std::ios::binary);
    header += '\n';
    file << "\x93NUMPY" << char(version) << '\0' << char(header.size()) << '\0';
    if (version > 1) file << '\0' << '\0';
    file << header;
    auto bytes = std::vector<char>(numbers.size() * sizeof(double));
    std::memcpy(bytes.data(), numbers.data(), bytes.size());
    if (swap) std::reverse(bytes.begin(), bytes.end());
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  auto const one = [&](std::string const& name) {
    return box.run("run softmax q=" + name + ".npy k=" + name + ".npy v=" + name + ".npy o=o.npy");
  };
  auto const values = [](std::vector<double> list) {
    reference::tensor<double, 4> t({1, 1, 2, 3});
    t.values = std::move(list);
    return t;
  };
  write("c", 1, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 2, 3), }");
  write("c2", 2, "{'shape': (1, 1, 2, 3), 'fortran_order': False, 'descr': '<f8'}   ");
  write("fortran", 1, "{'descr': '<f8', 'fortran_order': True, 'shape': (1, 1, 2, 3), }");
  for (std::string const name : {"c", "c2"}) {
    CHECK(one(name).status == 0);
    CHECK(close(box.load<4>("o"), values({1, 2, 3, 4, 5, 6}), 1e-14));  // one key: its value
  }
  CHECK(one("fortran").status == 0);
  CHECK(close(box.load<4>("o"), values({1, 3, 5, 2, 4, 6}), 1e-14));

  files::remove(box.path("o.npy"));
  auto const refused = [&](std::string const& name) {
    auto const done = one(name);
    CHECK(done.status == 2);
    CHECK(done.err.find(name + ".npy") != std::string::npos);
    CHECK(!box.exists("o"));
  };
  write("big_endian", 1, "{'descr': '>f8', 'fortran_order': False, 'shape': (1, 1, 2, 3), }", true);
  write("complex", 1, "{'descr': '<c16', 'fortran_order': False, 'shape': (1, 1, 1, 3), }");
  write("too_few", 1, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 2, 4), }");
  write("too_many", 1, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1, 3), }");
  write("huge", 1,
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999, 9999999999, 0, 3), }");
  write("negative", 1, "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 1, 2, 3), }");
  write("version", 9, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 2, 3), }");
  write("no_shape", 1, "{'descr': '<f8', 'fortran_order': False, }");
  write("nonsense", 1, "]]]]");
  std::ofstream(box.path("empty.npy"));
  std::ofstream(box.path("text.npy")) << "1 2 3 4 5 6 7 8 9 10";
  for (std::string const name : {"big_endian", "complex", "too_few", "too_many", "huge", "negative",
                                 "version", "no_shape", "nonsense", "empty", "text", "missing"})
    refused(name);
}

TEST_CASE("heed_conformance refuses bad input with status 2, a message, and no output", "[cli]") {
  sandbox const box;
  support::random draw(2);
  box.save_as<double>("q", normal<4>(draw, {2, 5, 4, 8}));
  box.save_as<double>("k", normal<4>(draw, {2, 7, 2, 8}));
  box.save_as<double>("three_heads", normal<4>(draw, {2, 7, 3, 8}));
  box.save_as<double>("short", normal<4>(draw, {2, 6, 2, 8}));
  box.save_as<double>("wide", normal<4>(draw, {2, 7, 2, 9}));
  box.save_as<double>("vector", normal<1>(draw, {3}));
  box.save("lengths", {2}, std::vector<std::int64_t>{3, 8});
  box.save("offsets", {3}, std::vector<std::int64_t>{0, 3, 2});
  std::string const call = "run softmax q=q.npy k=k.npy v=k.npy o=o.npy lse=lse.npy";
  REQUIRE(box.run(call).status == 0);
  files::remove(box.path("o.npy"));
  files::remove(box.path("lse.npy"));

  for (std::string const bad : {
           "",
           "list more",
           "run",
           "run nothing q=q.npy",
           "run softmax",
           "run softmax q=q.npy k=k.npy o=o.npy",
           "run softmax q=q.npy k=k.npy v=k.npy",
           "run softmax q=q.npy k=k.npy v=k.npy o=nowhere/o.npy",
           "run softmax q=q.npy k=k.npy v=k.npy o=o.npy lse=nowhere/lse.npy",
           "run softmax q=q.npy k=three_heads.npy v=k.npy o=o.npy",
           "run softmax q=q.npy k=k.npy v=short.npy o=o.npy",
           "run softmax q=q.npy k=wide.npy v=k.npy o=o.npy",
           "run softmax q=vector.npy k=k.npy v=k.npy o=o.npy",
           "CALL q=q.npy",
           "CALL window=3",
           "CALL causal",
           "CALL causal=",
           "CALL causal=yes",
           "CALL window_left=3.5",
           "CALL window_left=-2",
           "CALL scale=big",
           "CALL softcap=-1",
           "CALL type=f8",
           "CALL threads=0",
           "CALL verb=sideways",
           "CALL alibi=vector.npy",
           "CALL alibi=k.npy",
           "CALL bias=q.npy",
           "CALL sink=vector.npy",
           "CALL key_lengths=lengths.npy",
           "CALL key_lengths=vector.npy",
           "CALL cu_seqlens_q=offsets.npy cu_seqlens_k=offsets.npy",
           "CALL cu_seqlens_q=offsets.npy",
           "CALL do=k.npy dq=dq.npy",
           "CALL dq=dq.npy",
           "CALL do=q.npy dbias=dbias.npy",
       }) {
    std::string arguments = bad;
    if (bad.starts_with("CALL")) arguments.replace(0, 4, call);
    auto const done = box.run(arguments);
    INFO(arguments << "\n" << done.err);
    CHECK(done.status == 2);
    CHECK(!done.err.empty());
    CHECK((!box.exists("o") && !box.exists("lse") && !box.exists("dq")));
  }
}
