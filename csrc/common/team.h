// Threads that stay together for a whole operator.
//
// Each call of torch's parallel_for wakes the threads and waits for all of them, which costs more than a small layer.
// So an operator of many loops enters parallel_for once. The calling thread runs the operator. The others, its helpers,
// take jobs whenever it has a loop for them. A helper without work watches for some tens of microseconds and then
// sleeps: threads that only wait must not keep others from running. If a helper is late, or none comes because the
// operator is inside another parallel region, the calling thread does the jobs itself. Only at its end parallel_for
// waits until every helper has run, which takes milliseconds on a busy machine. So the number of threads must follow the
// amount of work.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>

#include "common/integers.h"

namespace lpips_fast {

class Team {
 public:
  // Calls f(team) on this thread, with at most `threads` threads for the loops in it.
  template <typename F>
  static void run(int64_t threads, const F& f) {
    Team team(std::max<int64_t>(threads, 1));
    if (team.size_ == 1) return f(team);
    torch::stable::parallel_for(0, team.size_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        if (worker > 0) {
          team.help(worker);
          continue;
        }
        const Finish finish{team};
        f(team);
      }
    });
  }

  // Calls f(worker, job) for every job, job 0 first. A worker takes the next job that is free. 0 <= worker < size(). If
  // a job throws, no further ones begin, and the first exception is thrown when all threads have left the loop.
  template <typename F>
  void for_each_job(int64_t jobs, const F& f) {
    if (size_ == 1 || jobs <= 1) {
      for (int64_t job = 0; job < jobs; ++job) f(0, job);
      return;
    }
    call_ = [](const void* function, int64_t worker, int64_t job) { (*static_cast<const F*>(function))(worker, job); };
    function_ = &f, jobs_ = jobs;
    next_.store(0, std::memory_order_relaxed);
    open_.store(++loops_);  // everything above is visible to whoever sees this
    wake();
    take(0);
    open_.store(0);
    wait([this] { return inside_.load() == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Calls f(worker, begin, end) for ranges of at most `at_once` indices that cover [0, count).
  template <typename F>
  void for_each_range(int64_t count, int64_t at_once, const F& f) {
    for_each_job(ceil_div(count, at_once), [&](int64_t worker, int64_t job) {
      f(worker, job * at_once, std::min((job + 1) * at_once, count));
    });
  }

  int64_t size() const { return size_; }

 private:
  struct Finish {
    Team& team;
    ~Finish() {
      team.done_.store(true);
      team.wake();
    }
  };

  explicit Team(int64_t threads) : size_(threads) {}

  void take(int64_t worker) {
    try {
      for (int64_t job; (job = next_.fetch_add(1, std::memory_order_relaxed)) < jobs_;) call_(function_, worker, job);
    } catch (...) {
      next_.store(jobs_, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  // A loop ends when it is closed and nobody is inside. So a helper enters first and then looks whether it is open.
  void help(int64_t worker) {
    for (int64_t seen = 0; !done_.load();) {
      wait([&] { return done_.load() || (open_.load() != 0 && open_.load() != seen); });
      inside_.fetch_add(1);
      if (const int64_t open = open_.load(); open != 0 && open != seen) {
        take(worker);
        seen = open;
      }
      inside_.fetch_sub(1);
      wake();
    }
  }

  template <typename Condition>
  void wait(const Condition& condition) {
    constexpr int kWatches = 1000;  // some tens of microseconds
    for (int i = 0; i < kWatches; ++i) {
      if (condition()) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, condition);
    sleepers_.fetch_sub(1);
  }

  // Call it after a change that somebody may wait for. Who goes to sleep counts itself before it looks a last time.
  void wake() {
    if (sleepers_.load() == 0) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }

  const int64_t size_;
  void (*call_)(const void* function, int64_t worker, int64_t job) = nullptr;  // of the loop that is open
  const void* function_ = nullptr;
  int64_t jobs_ = 0, loops_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> open_{0};  // the number of the open loop; 0: none is open
  std::atomic<int64_t> inside_{0};
  std::atomic<int64_t> sleepers_{0};
  std::atomic<bool> done_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::exception_ptr error_;  // of the open loop's first job that threw
};

}  // namespace lpips_fast
