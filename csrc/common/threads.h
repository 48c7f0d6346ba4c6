// Work on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace lpips_fast {

// How many workers for_each_job has for this number of jobs, one for each thread.
inline int64_t workers_for(int64_t jobs) { return std::min<int64_t>(jobs, torch::stable::get_num_threads()); }

// Calls f(worker, job) for every job. Each worker takes the next job that is free.
template <typename F>
void for_each_job(int64_t jobs, const F& f) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers_for(jobs), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t job; (job = next.fetch_add(1, std::memory_order_relaxed)) < jobs;) f(worker, job);
    }
  });
}

}  // namespace lpips_fast
