#include "support/catch.hpp"

#include <heed/view/dlpack.hpp>

#include <vector>

using heed::index_t;

namespace {

// The structs of the DLPack specification, version 1.0, as its header lays them out.
enum device_kind { cpu = 1, cuda = 2 };
struct device_t {
  device_kind device_type;
  std::int32_t device_id;
};
struct data_type {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct dl_tensor {
  void* data;
  device_t device;
  std::int32_t ndim;
  data_type dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct fixture {
  std::vector<float> memory = std::vector<float>(2 * 3 * 4 * 5 + 1);
  std::vector<std::int64_t> shape{2, 3, 4, 5};
  std::vector<std::int64_t> strides{60, 5, 15, 1};
  dl_tensor tensor{memory.data(), {cpu, 0}, 4, {2, 32, 1}, shape.data(), nullptr, 0};

  fixture() {
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  }
};

}  // namespace

TEST_CASE("a DLPack tensor is viewed in place", "[view][dlpack]") {
  fixture f;
  auto const contiguous = heed::view<float, 4>(f.tensor);
  CHECK(contiguous.extents() == std::array<index_t, 4>{2, 3, 4, 5});
  CHECK(contiguous(1, 2, 3, 4) == 119);

  f.tensor.strides = f.strides.data();
  CHECK(heed::view<float const, 4>(f.tensor)(1, 2, 3, 4) == 60 + 10 + 45 + 4);

  f.tensor.byte_offset = sizeof(float);
  CHECK(heed::view<float, 4>(f.tensor)(0, 0, 0, 0) == 1);
}

TEST_CASE("element types of DLPack", "[view][dlpack]") {
  fixture f;
  f.tensor.dtype = {2, 16, 1};
  CHECK_NOTHROW(heed::view<Eigen::half, 4>(f.tensor));
  CHECK_THROWS_AS((heed::view<Eigen::bfloat16, 4>(f.tensor)), heed::error);
  try {
    heed::view<float, 4>(f.tensor);
    CHECK(false);
  } catch (heed::error const& error) {
    CHECK(std::string(error.what()).find("float16; expected float32") != std::string::npos);
  }
  f.tensor.dtype = {4, 16, 1};
  CHECK_NOTHROW(heed::view<Eigen::bfloat16, 4>(f.tensor));
  f.tensor.dtype = {0, 64, 1};
  CHECK_NOTHROW(heed::view<index_t const, 4>(f.tensor));
  f.tensor.dtype = {6, 8, 1};
  CHECK_NOTHROW(heed::view<bool const, 4>(f.tensor));
  f.tensor.dtype = {2, 32, 4};
  CHECK_THROWS_AS((heed::view<float, 4>(f.tensor)), heed::error);
}

TEST_CASE("a DLPack tensor that is elsewhere or of another shape is refused", "[view][dlpack]") {
  fixture f;
  CHECK_THROWS_AS((heed::view<float, 3>(f.tensor)), heed::error);
  f.tensor.byte_offset = 2;
  CHECK_THROWS_AS((heed::view<float, 4>(f.tensor)), heed::error);
  f.tensor.byte_offset = 0;
  f.tensor.device.device_type = cuda;
  CHECK_THROWS_AS((heed::view<float, 4>(f.tensor)), heed::error);
}

TEST_CASE("an empty DLPack tensor", "[view][dlpack]") {
  fixture f;
  f.shape[1] = 0;
  f.tensor.data = nullptr;
  CHECK(heed::view<float, 4>(f.tensor).size() == 0);
}
