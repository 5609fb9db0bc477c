#pragma once

#include <heed/view/element.hpp>

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

namespace heed {

namespace detail {

// Numbers from the DLPack specification, so that its header need not be there.
enum class dlpack_code { integer = 0, unsigned_integer = 1, floating = 2, bfloat = 4, boolean = 6 };
enum class dlpack_device { cpu = 1, cuda_host = 3, rocm_host = 11 };

template <class T>
consteval dlpack_code dlpack_code_of() {
  if constexpr (std::same_as<T, bool>)
    return dlpack_code::boolean;
  else if constexpr (std::integral<T>)
    return std::is_signed_v<T> ? dlpack_code::integer : dlpack_code::unsigned_integer;
  else if constexpr (std::same_as<T, Eigen::bfloat16>)
    return dlpack_code::bfloat;
  else
    return dlpack_code::floating;
}

inline std::string dlpack_type_text(int code, int bits, int lanes) {
  constexpr std::array names{"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  bool const known = code >= 0 && static_cast<std::size_t>(code) < names.size();
  std::string text = known ? names[static_cast<std::size_t>(code)] : "unknown";
  text += std::to_string(bits);
  if (lanes != 1) text += 'x', text += std::to_string(lanes);
  return text;
}

template <class T>
concept dlpack_tensor = requires(T const& tensor) {
  { tensor.data } -> std::convertible_to<void*>;
  { tensor.shape } -> std::convertible_to<std::int64_t const*>;
  { tensor.strides } -> std::convertible_to<std::int64_t const*>;
  tensor.ndim, tensor.byte_offset, tensor.device.device_type;
  tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes;
};

}  // namespace detail

/// Views a DLPack tensor (a DLTensor, by whichever header defines it) as elements of type T:
/// `view<float const, 4>(managed->dl_tensor)`. Axes stay in order; swap_axes(1, 2) turns
/// [batch, head, position, dim] into what attention expects. Throws heed::error unless the tensor
/// lies in memory that the CPU can read, and has this element type and rank.
template <class T, int Rank, detail::dlpack_tensor Tensor>
tensor_view<T, Rank> view(Tensor const& tensor) {
  using value_type = std::remove_const_t<T>;
  static_assert(element<T> || std::integral<value_type>);

  using enum detail::dlpack_device;
  auto const device = static_cast<int>(tensor.device.device_type);
  require(device == int(cpu) || device == int(cuda_host) || device == int(rocm_host), [&] {
    return "a DLPack tensor lies on device type " + std::to_string(device) +
           "; expected the CPU (1) or host memory (3, 11)";
  });

  constexpr int code = static_cast<int>(detail::dlpack_code_of<value_type>());
  constexpr int bits = 8 * static_cast<int>(sizeof(T));
  require(tensor.dtype.code == code && tensor.dtype.bits == bits && tensor.dtype.lanes == 1, [&] {
    return "a DLPack tensor has elements of type " +
           detail::dlpack_type_text(tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) +
           "; expected " + detail::dlpack_type_text(code, bits, 1);
  });
  require(tensor.ndim == Rank, [&] {
    return "a DLPack tensor has " + std::to_string(tensor.ndim) + " axes; expected " +
           std::to_string(Rank);
  });

  auto const address = reinterpret_cast<std::uintptr_t>(tensor.data) +
                       static_cast<std::uintptr_t>(tensor.byte_offset);
  require(address % alignof(T) == 0, [&] {
    return "a DLPack tensor starts at an address that is not a multiple of " +
           std::to_string(alignof(T));
  });
  T* const data = reinterpret_cast<T*>(address);

  typename tensor_view<T, Rank>::index_array extents{}, strides{};
  for (std::size_t axis = 0; axis < extents.size(); ++axis)
    extents[axis] = static_cast<index_t>(tensor.shape[axis]);
  if (tensor.strides == nullptr) return {data, extents};  // the convention for contiguous
  for (std::size_t axis = 0; axis < extents.size(); ++axis)
    strides[axis] = static_cast<index_t>(tensor.strides[axis]);
  return {data, extents, strides};
}

}  // namespace heed
