#pragma once

#include <heed/view/tensor_view.hpp>

#include <cstdint>
#include <memory>
#include <new>

namespace heed {

/// Scratch memory that only grows: after the first call of a kind, later ones allocate nothing. One
/// workspace serves one call at a time.
class workspace {
 public:
  /// At least `bytes` bytes, aligned for any register. What it held before is gone.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<std::byte*>(::operator new(bytes, alignment)));
      size_ = bytes;
    }
    return memory_.get();
  }

  std::size_t size() const { return size_; }

  static constexpr std::align_val_t alignment{64};

 private:
  struct release {
    void operator()(std::byte* memory) const { ::operator delete(memory, alignment); }
  };
  std::unique_ptr<std::byte, release> memory_;
  std::size_t size_ = 0;
};

/// The workspace of the calling thread, which calls use unless they are given one.
inline workspace& thread_workspace() {
  thread_local workspace own;
  return own;
}

/// Has the call take its scratch memory from `memory`.
struct scratch {
  workspace& memory;
};

/// Hands out aligned pieces of a block of memory; measures how large the block must be when it has none.
class arena {
 public:
  arena() = default;
  explicit arena(std::byte* memory) : memory_(memory) {}

  template <class T>
  T* take(index_t count) {
    std::uintptr_t const place = reinterpret_cast<std::uintptr_t>(memory_) + used_;
    used_ += static_cast<std::size_t>(bytes<T>(count));
    return reinterpret_cast<T*>(place);
  }

  /// What take() uses up.
  template <class T>
  static constexpr index_t bytes(index_t count) {
    return (count * static_cast<index_t>(sizeof(T)) + 63) / 64 * 64;
  }

  /// Whether there is no memory, so that what take() returns must not be touched.
  bool measuring() const { return memory_ == nullptr; }
  std::size_t used() const { return used_; }

 private:
  std::byte* memory_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace heed
