#include "threads.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace rewound {

namespace {

constexpr int64_t kPauses = 1 << 10;  // tens of microseconds
constexpr int64_t kPatience = kPauses + (1 << 5);  // then sleep; some yields in between

}  // namespace

void relax(int64_t spins) {
  if (spins < kPauses) {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  } else {
    std::this_thread::yield();
  }
}

Pool::~Pool() {
  stop_.store(true);
  bell_.fetch_add(1);
  bell_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int threads, const std::function<void(int)>& body) {
  while (static_cast<int>(workers_.size()) < threads - 1) {
    const int worker = static_cast<int>(workers_.size()) + 1;
    workers_.emplace_back([this, worker] { serve(worker); });
  }
  body_ = &body;
  threads_ = threads;
  // Nobody is inside: the job before waited for that. Opening publishes body_ and threads_.
  const uint64_t job = (state_.load(std::memory_order_relaxed) & ~(kJob - 1)) + kJob;
  state_.store(job, std::memory_order_release);
  bell_.fetch_add(1);
  bell_.notify_all();
  body(0);
  state_.fetch_or(kClosed);
  for (int64_t spins = 0; (state_.load(std::memory_order_acquire) & (kClosed - 1)) != 0; ++spins) relax(spins);
}

void Pool::serve(int worker) {
  uint64_t last = 0;  // the job that this thread has done
  for (;;) {
    const uint32_t bell = bell_.load();
    for (int64_t spins = 0;; ++spins) {
      if (stop_.load(std::memory_order_relaxed)) return;
      uint64_t state = state_.load(std::memory_order_acquire);
      if (state / kJob != last && (state & kClosed) == 0) {
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
        last = state / kJob;
        if (worker < threads_) (*body_)(worker);
        state_.fetch_sub(1, std::memory_order_acq_rel);
        spins = 0;
        continue;
      }
      if (spins >= kPatience) break;
      relax(spins);
    }
    bell_.wait(bell);
  }
}

}  // namespace rewound
