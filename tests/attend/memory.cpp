#include "support/tensors.hpp"

#include <heed/parallel/eigen_pool.hpp>

#include <atomic>
#include <cstdlib>
#include <new>

// What is allocated, counted where everything in this program allocates. Sanitizers bring their own
// allocators.

#if defined(__GLIBC__) && !defined(HEED_TEST_ADDRESS_SANITIZER) && !defined(__SANITIZE_THREAD__)
#if !defined(__has_feature)
#define HEED_TEST_COUNTS_MEMORY 1
#elif !__has_feature(thread_sanitizer) && !__has_feature(memory_sanitizer)
#define HEED_TEST_COUNTS_MEMORY 1
#endif
#endif

#ifdef HEED_TEST_COUNTS_MEMORY

namespace {
std::atomic<std::size_t> allocations{0};
std::atomic<std::size_t> bytes{0};

void count(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  bytes.fetch_add(size, std::memory_order_relaxed);
}
}  // namespace

// operator new, aligned or not, ends in one of these.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t size) {
  count(size);
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  count(n * size);
  return __libc_calloc(n, size);
}
void* realloc(void* old, std::size_t size) {
  count(size);
  return __libc_realloc(old, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  count(size);
  return __libc_memalign(alignment, size);
}
void* memalign(std::size_t alignment, std::size_t size) {
  return aligned_alloc(alignment, size);
}
int posix_memalign(void** to, std::size_t alignment, std::size_t size) {
  *to = aligned_alloc(alignment, size);
  return *to == nullptr;
}
}

using heed::index_t;
using support::blank;
using support::normal;

namespace {

struct amount {
  std::size_t allocations, bytes;
};
template <class F>
amount allocated_by(F f) {
  std::size_t const allocations_before = allocations, bytes_before = bytes;
  f();
  return {allocations - allocations_before, bytes - bytes_before};
}

/// A call of each verb.
struct work {
  support::random draw{1};
  support::guarded<float, 4> q, k, v, dout, out, dq, dk, dv;
  support::guarded<float, 3> lse, sums;

  work(index_t N, index_t M)
      : q(normal(draw, {1, N, 4, 32})),
        k(normal(draw, {1, M, 2, 32})),
        v(normal(draw, {1, M, 2, 32})),
        dout(normal(draw, {1, N, 4, 32})),
        out(blank<float, 4>(q.extents())),
        dq(blank<float, 4>(q.extents())),
        dk(blank<float, 4>(k.extents())),
        dv(blank<float, 4>(v.extents())),
        lse(blank<float, 3>({1, 4, N})),
        sums(blank<float, 3>({1, 4, M})) {}

  template <class... I>
  void forward(I const&... ingredients) {
    heed::attention(q.view(), k.view(), v.view(), out.view(), heed::causal{},
                    heed::lse_into<float>{lse.view()}, ingredients...);
  }
  template <class... I>
  void backward(I const&... ingredients) {
    heed::attention_backward(q.view(), k.view(), v.view(), out.view(), lse.view(), dout.view(),
                             dq.view(), dk.view(), dv.view(), heed::causal{}, ingredients...);
  }
};

}  // namespace

TEST_CASE("memory: the counter counts", "[attend][memory]") {
  void* volatile memory = nullptr;  // or the compiler leaves out what is not used
  CHECK(allocated_by([&] {
          memory = std::malloc(100);
          std::free(memory);
        }).bytes == 100);
  CHECK(allocated_by([&] {
          memory = ::operator new(100);
          ::operator delete(memory);
        }).bytes == 100);
  CHECK(allocated_by([&] {
          memory = ::operator new(1000, std::align_val_t(64));
          ::operator delete(memory, std::align_val_t(64));
        }).bytes >= 1000);
}

TEST_CASE("memory: no allocation after the first call", "[attend][memory]") {
  work prefill(300, 400), decode(2, 3000);
  for (work* each : {&prefill, &decode}) {
    heed::column_sums_into<float> const sums{each->sums.view()};
    each->forward(sums);
    each->backward();
    CHECK(allocated_by([&] { each->forward(); }).allocations == 0);
    CHECK(allocated_by([&] { each->forward(sums); }).allocations == 0);
    CHECK(allocated_by([&] { each->backward(); }).allocations == 0);
    heed::workspace own;
    each->forward(heed::scratch{own});
    each->backward(heed::scratch{own});
    CHECK(allocated_by([&] { each->forward(heed::scratch{own}); }).allocations == 0);
    CHECK(allocated_by([&] { each->backward(heed::scratch{own}); }).allocations == 0);
  }
}

TEST_CASE("memory: scratch does not grow with the length", "[attend][memory]") {
  auto const scratch_of = [](index_t N, index_t M, auto run) {
    work calls(N, M);
    heed::workspace own;
    amount const used = allocated_by([&] { run(calls, heed::scratch{own}); });
    // Nothing beside the workspace, which may be given up for a larger one on the way.
    CHECK(used.allocations <= 4);
    CHECK(used.bytes <= 3 * own.size());
    return own.size();
  };
  auto const forward = [](work& calls, heed::scratch const& own) { calls.forward(own); };
  std::size_t const large =
      scratch_of(12000, 300, forward);  // enough rows for the largest pieces of work
  CHECK(scratch_of(12000, 1200, forward) == large);
  CHECK(scratch_of(40000, 300, forward) == large);
  // Backward keeps a few numbers a row and sums that are as large as the gradients, never rows
  // times keys.
  auto const backward = [](work& calls, heed::scratch const& own) {
    calls.forward(own);
    calls.backward(own);
  };
  CHECK(scratch_of(4000, 4000, backward) <= 64 * sizeof(float) * 4000 * 4 * 32);
  CHECK(scratch_of(4000, 4000, backward) < std::size_t{4000} * 4000);
}

#endif
