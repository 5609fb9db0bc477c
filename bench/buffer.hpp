#pragma once

#include <heed/view/element.hpp>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace heed_bench {

using heed::index_t;

/// Memory for the operands, in huge pages where the system grants them, so that the reading of long
/// caches is not the reading of page tables.
template <class T>
class buffer {
 public:
  buffer() = default;
  explicit buffer(index_t size) : size_(size) {
    constexpr std::size_t page = std::size_t{1} << 21;
    std::size_t const bytes = (static_cast<std::size_t>(size) * sizeof(T) + page) / page * page;
    data_.reset(static_cast<T*>(std::aligned_alloc(page, bytes)));
    if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
    for (index_t i = 0; i < size; ++i) data_.get()[i] = T(0);
  }

  T* data() const {
    return data_.get();
  }
  index_t size() const {
    return size_;
  }

 private:
  struct release {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T[], release> data_;
  index_t size_ = 0;
};

/// Uniform numbers of variance one. The same for the same seed.
template <class T>
buffer<T> random_buffer(index_t size, std::uint64_t seed) {
  buffer<T> values(size);
  std::uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (index_t i = 0; i < size; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    double const unit = static_cast<double>(state >> 11) * 0x1p-53;
    values.data()[i] = T(static_cast<float>((unit - 0.5) * 3.4641016));
  }
  return values;
}

}  // namespace heed_bench
