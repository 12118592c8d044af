// A small pool of threads that runs the stages of one program: spins for a moment between runs, then sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace rewound {

class Pool {
 public:
  Pool() = default;
  ~Pool();  // joins the threads
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Run body(0) on the caller's thread and body(1), ..., body(threads - 1) on others, and return when all that began have
  // ended. A thread that wakes up only after body(0) has returned does not begin: body must share out its work by need.
  // body must not throw. Not to be called from two threads at once.
  void run(int threads, const std::function<void(int)>& body);

 private:
  void serve(int worker);

  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  int threads_ = 0;
  // Number of the job in the upper half; kClosed when nobody may begin; below it how many are inside.
  std::atomic<uint64_t> state_{kClosed};
  // Changed with each job (and at the end): what sleeping threads wait for.
  std::atomic<uint32_t> bell_{0};
  std::atomic<bool> stop_{false};
  static constexpr uint64_t kJob = uint64_t{1} << 32;
  static constexpr uint64_t kClosed = uint64_t{1} << 31;
};

// Wait a little: first by the processor's pause, from `spins` on by giving the core away.
void relax(int64_t spins);

}  // namespace rewound
