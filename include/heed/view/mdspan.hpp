#pragma once

#include <heed/view/tensor_view.hpp>

#include <concepts>
#include <type_traits>
#include <utility>

namespace heed {

namespace detail {

template <class M>
concept strided_mdspan = requires(M const& m, typename M::rank_type axis) {
  typename M::element_type;
  requires std::same_as<typename M::data_handle_type, typename M::element_type*>;
  requires std::same_as<typename M::reference, typename M::element_type&>;
  requires M::is_always_strided();
  { m.data_handle() } -> std::same_as<typename M::data_handle_type const&>;
  m.extent(axis);
  m.stride(axis);
};

}  // namespace detail

/// Views a std::mdspan, or anything that has its interface, such as Kokkos' implementation for
/// C++20: any strided layout, the default accessor. Axes stay in order; swap_axes(1, 2) turns
/// [batch, head, position, dim] into what attention expects.
template <detail::strided_mdspan Mdspan>
constexpr auto view(Mdspan const& span) {
  constexpr auto rank = static_cast<std::size_t>(Mdspan::rank());
  using result = tensor_view<typename Mdspan::element_type, static_cast<int>(rank)>;
  return [&]<std::size_t... axis>(std::index_sequence<axis...>) {
    using at = typename Mdspan::rank_type;
    return result(span.data_handle(), {static_cast<index_t>(span.extent(at(axis)))...},
                  {static_cast<index_t>(span.stride(at(axis)))...});
  }
  (std::make_index_sequence<rank>());
}

}  // namespace heed
