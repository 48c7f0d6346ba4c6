// Loops of common/team.h on threads of this program, for test_team.py. Prints what it finds wrong.
#include "common/team.h"

#include <cstdio>
#include <stdexcept>
#include <vector>

namespace {

int wrong = 0;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("%s\n", what), ++wrong;
}

// Every job runs once, and a loop sees what the loops before have written.
void sums(int64_t threads) {
  std::vector<int64_t> counts(97), totals(97);
  lpips_fast::Team::run(threads, [&](lpips_fast::Team& team) {
    for (int loop = 0; loop < 60; ++loop) {
      team.for_each_job(counts.size(), [&](int64_t worker, int64_t job) {
        expect(worker >= 0 && worker < threads, "a worker's number");
        ++counts[job];
      });
      team.for_each_range(totals.size(), 5, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) totals[i] += counts[totals.size() - 1 - i];
      });
    }
  });
  for (size_t i = 0; i < counts.size(); ++i) expect(counts[i] == 60 && totals[i] == 60 * 61 / 2, "a job's number of runs");
}

// A loop whose job throws ends with this exception, when no job runs any more, and another loop can follow.
void exceptions(int64_t threads, int64_t thrower) {
  int caught = 0;
  int64_t after = 0;
  lpips_fast::Team::run(threads, [&](lpips_fast::Team& team) {
    for (int loop = 0; loop < 20; ++loop) {
      std::vector<int64_t> written(50);
      try {
        team.for_each_job(written.size(), [&](int64_t, int64_t job) {
          if (job == thrower) throw std::runtime_error("a job");
          for (int i = 0; i < 1000; ++i) written[job] += i;
        });
      } catch (const std::runtime_error&) {
        ++caught;
      }
      std::atomic<int64_t> count{0};
      team.for_each_job(10, [&](int64_t, int64_t) { ++count; });
      after += count;
    }
  });
  expect(caught == 20, "an exception of a job");
  expect(after == 200, "a loop after an exception");
}

}  // namespace

int main() {
  for (int64_t threads : {1, 2, 3, 5}) {
    for (int i = 0; i < 20; ++i) sums(threads);
    for (int64_t thrower : {0, 1, 49}) exceptions(threads, thrower);
  }
  return wrong != 0;
}
