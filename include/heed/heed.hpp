#pragma once

/// All of heed.
#include <heed/cache/kv_cache.hpp>
#include <heed/parallel/eigen_pool.hpp>
#include <heed/parallel/executor.hpp>
#include <heed/parallel/openmp.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/positions.hpp>
#include <heed/score/alibi.hpp>
#include <heed/score/bias.hpp>
#include <heed/score/scale.hpp>
#include <heed/score/softcap.hpp>
#include <heed/softmax.hpp>
#include <heed/view/dlpack.hpp>
#include <heed/view/eigen.hpp>
#include <heed/view/mdspan.hpp>
