#pragma once

#include <heed/view/tensor_view.hpp>

#include <Eigen/Core>

#include <concepts>
#include <type_traits>

namespace heed {

/// What a tensor may hold. Half and bfloat16 are storage: arithmetic is in float, and in double for
/// double.
template <class T>
concept element = std::same_as < std::remove_cv_t<T>,
double > || std::same_as<std::remove_cv_t<T>, float> ||
    std::same_as<std::remove_cv_t<T>, Eigen::half> ||
    std::same_as<std::remove_cv_t<T>, Eigen::bfloat16>;

/// The type a computation over elements of these types runs in.
template <element... T>
using compute_type =
    std::conditional_t<(std::same_as<std::remove_cv_t<T>, double> || ...), double, float>;

}  // namespace heed
