// Work on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "common/integers.h"

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

// Calls f(worker, begin, end) for ranges of at most `at_once` indices that cover [0, count). Each range is a job of
// for_each_job.
template <typename F>
void for_each_range(int64_t count, int64_t at_once, const F& f) {
  for_each_job(ceil_div(count, at_once), [&](int64_t worker, int64_t job) {
    f(worker, job * at_once, std::min((job + 1) * at_once, count));
  });
}

}  // namespace lpips_fast
