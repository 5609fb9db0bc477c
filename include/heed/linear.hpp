#pragma once

#include <heed/recur/linear_attention.hpp>

/// Linear attention and recurrences: a state instead of a past, at a cost for each token that does not grow with the length.
