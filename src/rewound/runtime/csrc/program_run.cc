// Running a program: arenas, threads, and who does which part.
#include <algorithm>
#include <chrono>
#include <mutex>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "program.h"
#include "threads.h"

namespace rewound {

namespace {

int64_t process() {
#if defined(_WIN32)
  return 0;
#else
  return static_cast<int64_t>(getpid());
#endif
}

constexpr int kMostThreads = 1024;

// How far a thread is with its own tasks of an operator, and (the first thread's) how many tasks all threads have done: the
// number of the run times kTasks, and a count. Numbers of older runs count as zero, so nothing is ever reset. Each on a cache
// line of its own, which other threads write to only where they help out.
struct alignas(64) Progress {
  std::atomic<uint64_t> next{0};
  std::atomic<uint64_t> done{0};
};
constexpr uint64_t kTasks = uint64_t{1} << 24;

// The next of `count` tasks, or -1.
int64_t take(std::atomic<uint64_t>& next, uint64_t run, int64_t count) {
  uint64_t at = next.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t from = std::max(at, run);
    if (from - run >= static_cast<uint64_t>(count)) return -1;
    if (next.compare_exchange_weak(at, from + 1, std::memory_order_relaxed)) return static_cast<int64_t>(from - run);
  }
}

// The tasks of one operator, on one of several threads: its own share, the same in every run, so that it finds in its caches
// what it wrote there; then what is left of the others'. A single task is the first thread's. Returns when all are done.
void run_together(const Operator& each, const Frame& frame, Progress* progress, uint64_t run, int threads, int worker) {
  uint64_t mine = 0;
  for (int i = 0; i < threads && (each.tasks > 1 || worker == 0); ++i) {
    const int owner = (worker + i) % threads;
    const Part share = part(each.tasks, threads, owner);
    for (int64_t task; (task = take(progress[owner].next, run, share.last - share.first)) >= 0; ++mine)
      each.run(frame, share.first + task);
  }
  std::atomic<uint64_t>& done = progress[0].done;
  if (mine > 0) {
    uint64_t before = done.load(std::memory_order_relaxed);
    while (!done.compare_exchange_weak(before, std::max(before, run) + mine, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }
  for (int64_t spins = 0; done.load(std::memory_order_acquire) < run + static_cast<uint64_t>(each.tasks); ++spins) relax(spins);
}

// All of an operator on this thread.
void run_alone(const Operator& each, const Frame& frame) {
  if (each.whole) return each.run(frame, -1);
  for (int64_t task = 0; task < each.tasks; ++task) each.run(frame, task);
}

}  // namespace

struct Program::Runtime {
  const int64_t pid = process();
  std::mutex running;
  std::unique_ptr<Pool> pool;
  std::vector<std::unique_ptr<Floats>> arenas, scratches;
  std::vector<Progress> progress;
  uint64_t runs = 0;
};

// Made by the process that runs: a child of fork has neither the threads of its parent nor, for certain, its locks, and
// leaves that runtime alone.
Program::Runtime& Program::runtime() {
  Runtime* there = runtime_.load();
  while (there == nullptr || there->pid != process()) {
    auto fresh = std::make_unique<Runtime>();
    if (runtime_.compare_exchange_strong(there, fresh.get())) return *fresh.release();
  }
  return *there;
}

Program::~Program() {
  Runtime* there = runtime_.load();
  if (there != nullptr && there->pid == process()) delete there;
}

void Program::trim() {
  Runtime& mine = runtime();
  const std::lock_guard<std::mutex> lock(mine.running);
  mine.pool.reset();
  mine.arenas.clear();
  mine.scratches.clear();
}

void Program::check_ids(const std::vector<const void*>& inputs, int64_t groups) const {
  for (const IdCheck& check : id_checks_) {
    const int64_t elements = inputs_[static_cast<size_t>(check.input)].elements;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t* ids =
          static_cast<const int64_t*>(inputs[static_cast<size_t>(check.input)]) + g * elements + check.offset;
      for (int64_t i = 0; i < check.sizes[0]; ++i)
        for (int64_t j = 0; j < check.sizes[1]; ++j)
          for (int64_t k = 0; k < check.sizes[2]; ++k) {
            const int64_t id = ids[i * check.strides[0] + j * check.strides[1] + k * check.strides[2]];
            if (id < 0 || id >= check.rows)
              throw Outside("input " + std::to_string(check.input) + " has the id " + std::to_string(id) +
                            "; the table" + (check.name.empty() ? "" : " of " + check.name) + " has rows 0 to " +
                            std::to_string(check.rows - 1));
          }
    }
  }
}

void Program::run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, int64_t groups, int threads,
                  std::vector<int64_t>* nanoseconds) {
  require(inputs.size() == inputs_.size() && outputs.size() == outputs_.size(), "a wrong number of arrays");
  require(groups >= 1, "groups is " + std::to_string(groups) + ", not at least 1");
  require(threads >= 1 && threads <= kMostThreads, "threads is " + std::to_string(threads) + ", not 1 to 1024");
  check_ids(inputs, groups);
  frozen_.store(true);
  Runtime& mine = runtime();
  const std::lock_guard<std::mutex> lock(mine.running);

  const int64_t apart = threads > 1 ? groups / threads * threads : 0;  // groups that run on one thread each
  int64_t widest = 0, most_tasks = 0, splits = 0;
  for (const Operator& each : operators_) {
    widest = std::max(widest, each.scratch);
    most_tasks = std::max(most_tasks, each.tasks);
    splits += each.tasks - 1;
  }
  // Where most operators are a single task, handing lines from core to core costs more than sharing the others saves.
  const bool few = 2 * splits < static_cast<int64_t>(operators_.size());
  if (apart == 0 && (few || most_tasks >= static_cast<int64_t>(kTasks))) threads = 1;
  while (static_cast<int64_t>(mine.arenas.size()) < (apart > 0 ? threads : 1))
    mine.arenas.push_back(std::make_unique<Floats>(plus(arena_, 2 * kSlack)));
  while (static_cast<int>(mine.scratches.size()) < threads) mine.scratches.push_back(std::make_unique<Floats>(widest));
  if (threads > 1 && mine.pool == nullptr) mine.pool = std::make_unique<Pool>();

  // Pointers of one group; `arena` and `scratch` by number.
  struct Pointers {
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
  };
  const auto pointers = [&](int64_t group) {
    Pointers at;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int64_t size = inputs_[i].ids ? sizeof(int64_t) : sizeof(float);
      at.inputs.push_back(static_cast<const char*>(inputs[i]) + group * inputs_[i].elements * size);
    }
    for (size_t i = 0; i < outputs.size(); ++i)
      at.outputs.push_back(static_cast<float*>(outputs[i]) + group * outputs_[i].elements);
    return at;
  };
  const auto frame = [&](const Pointers& at, size_t arena, size_t scratch) {
    return Frame{mine.arenas[arena]->data() + kSlack, at.inputs.data(), at.outputs.data(), mine.scratches[scratch]->data()};
  };

  if (apart > 0) {
    std::atomic<int64_t> next{0};
    mine.pool->run(threads, [&](int worker) {
      for (int64_t group; (group = next.fetch_add(1)) < apart;) {
        const Pointers at = pointers(group);
        const Frame mine_here = frame(at, static_cast<size_t>(worker), static_cast<size_t>(worker));
        for (const Operator& each : operators_) run_alone(each, mine_here);
      }
    });
  }

  using Clock = std::chrono::steady_clock;
  if (nanoseconds != nullptr) nanoseconds->assign(operators_.size(), 0);
  for (int64_t group = apart; group < groups; ++group) {
    const Pointers at = pointers(group);
    Clock::time_point before = Clock::now();
    const auto lap = [&](size_t i) {
      const Clock::time_point now = Clock::now();
      (*nanoseconds)[i] += std::chrono::duration_cast<std::chrono::nanoseconds>(now - before).count();
      before = now;
    };
    if (threads == 1) {
      const Frame here = frame(at, 0, 0);
      for (size_t i = 0; i < operators_.size(); ++i) {
        run_alone(operators_[i], here);
        if (nanoseconds != nullptr) lap(i);
      }
      continue;
    }
    const size_t count = static_cast<size_t>(threads);
    if (mine.progress.size() != operators_.size() * count) mine.progress = std::vector<Progress>(operators_.size() * count);
    const uint64_t run = ++mine.runs * kTasks;
    mine.pool->run(threads, [&](int worker) {
      const Frame here = frame(at, 0, static_cast<size_t>(worker));
      for (size_t i = 0; i < operators_.size(); ++i) {
        run_together(operators_[i], here, &mine.progress[i * count], run, threads, worker);
        if (nanoseconds != nullptr && worker == 0) lap(i);
      }
    });
  }
}

}  // namespace rewound
