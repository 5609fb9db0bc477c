#include "support/tensors.hpp"

#include <heed/parallel/eigen_pool.hpp>
#include <heed/recur/linear_attention.hpp>

#include <atomic>
#include <cstdlib>
#include <new>

// What is allocated, counted where everything in this program allocates. Sanitizers bring their own allocators.

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

/// Several workers, one after the other.
struct in_turn {
  index_t concurrency() const { return 7; }
  template <class F>
  void run(index_t n, F f) const {
    for (index_t i = 0; i < n; ++i) f(i);
  }
};

/// A call of each verb.
struct work {
  support::random draw{1};
  support::guarded<float, 4> q, k, v, dout, out, dq, dk, dv, state;
  support::guarded<float, 3> gate, rate, dgate, drate;

  explicit work(index_t N)
      : q(normal(draw, {1, N, 4, 32})),
        k(normal(draw, {1, N, 2, 32}, 0.1)),
        v(normal(draw, {1, N, 2, 32})),
        dout(normal(draw, {1, N, 4, 32})),
        out(blank<float, 4>(q.extents())),
        dq(blank<float, 4>(q.extents())),
        dk(blank<float, 4>(k.extents())),
        dv(blank<float, 4>(v.extents())),
        state(normal(draw, {1, 2, 32, 32})),
        gate(blank<float, 3>({1, N, 2})),
        rate(blank<float, 3>({1, N, 2})),
        dgate(blank<float, 3>({1, N, 2})),
        drate(blank<float, 3>({1, N, 2})) {
    gate.fill([&](auto const&) { return static_cast<float>(draw.uniform(-0.1, 0)); });
    rate.fill([&](auto const&) { return static_cast<float>(draw.uniform(0, 1)); });
  }

  template <class... I>
  void forward(I const&... ingredients) {
    heed::linear_attention(q.view(), k.view(), v.view(), out.view(),
                           heed::decay(gate.view(), dgate.view()), ingredients...);
  }
  template <class... I>
  void backward(I const&... ingredients) {
    heed::linear_attention_backward(q.view(), k.view(), v.view(), out.view(), dout.view(),
                                    dq.view(), dk.view(), dv.view(),
                                    heed::decay(gate.view(), dgate.view()), ingredients...);
  }
  heed::delta<float> erasing() { return {rate.view(), drate.view()}; }
  void step() {
    heed::linear_attention_step(q.view().slice(1, 0, 1), k.view().slice(1, 0, 1),
                                v.view().slice(1, 0, 1), out.view().slice(1, 0, 1), state.view(),
                                heed::decay(gate.view().slice(1, 0, 1)));
  }
};

}  // namespace

TEST_CASE("recurrence: the counter counts", "[recur][memory]") {
  void* volatile memory = nullptr;  // or the compiler leaves out what is not used
  CHECK(allocated_by([&] {
          memory = ::operator new(100);
          ::operator delete(memory);
        }).bytes == 100);
}

TEST_CASE("recurrence: no allocation after the first call", "[recur][memory]") {
  work x(300);
  in_turn const seven;
  heed::on<in_turn const> const workers{seven};
  auto const all = [&] {
    x.forward();
    x.forward(x.erasing());
    x.forward(workers);
    x.backward();
    x.backward(x.erasing());
    x.backward(workers);
    x.step();
  };
  all();
  CHECK(allocated_by(all).allocations == 0);
  heed::workspace own;
  auto const in_own = [&] {
    x.forward(heed::scratch{own});
    x.forward(heed::scratch{own}, x.erasing());
    x.backward(heed::scratch{own});
  };
  in_own();
  CHECK(allocated_by(in_own).allocations == 0);
}

TEST_CASE("recurrence: scratch does not grow with the length", "[recur][memory]") {
  auto const scratch_of = [](index_t N, auto run) {
    work x(N);
    heed::workspace own;
    amount const used = allocated_by([&] { run(x, heed::scratch{own}); });
    // Nothing beside the workspace, which may be given up for a larger one on the way.
    CHECK(used.allocations <= 4);
    CHECK(used.bytes <= 3 * own.size());
    return own.size();
  };
  in_turn const seven;
  heed::on<in_turn const> const workers{seven};
  auto const forward = [](work& x, heed::scratch const& own) {
    x.forward(own);
    x.forward(own, x.erasing());
  };
  CHECK(scratch_of(6000, forward) == scratch_of(30000, forward));
  // Chunks are shared out: some at a time.
  auto const shared_out = [&](work& x, heed::scratch const& own) { x.forward(own, workers); };
  CHECK(scratch_of(6000, shared_out) == scratch_of(30000, shared_out));
  // Backward keeps states that are far apart, and sums of heads that share keys as large as the gradients.
  auto const backward = [](work& x, heed::scratch const& own) {
    x.forward(own);
    x.backward(own);
  };
  std::size_t const tokens = 30000;
  CHECK(scratch_of(30000, backward) <= sizeof(float) * tokens * 4 * 64 + (std::size_t{8} << 20));
}

#endif
