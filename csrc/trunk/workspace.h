// The memory of one operator besides its results: activations that are no taps, and what the layers need.
//
// It is kept from one call to the next: the system clears fresh memory first, which takes longer than some layers.
#pragma once

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <memory>

#include "common/memory.h"

namespace lpips_fast::trunk {

class Workspace {
 public:
  Scratch scratch;  // of one layer; the next one may overwrite it

  // Memory for `count` floats of activations apart from `used`, of which there are at most two. The next call may give
  // it out again.
  float* apart_from(std::initializer_list<const float*> used, int64_t count) {
    Scratch* best = nullptr;  // the largest, so that the others need not grow
    for (Scratch& buffer : buffers_) {
      const float* const own = buffer.data();
      if (own && std::find(used.begin(), used.end(), own) != used.end()) continue;
      if (!best || buffer.count() > best->count()) best = &buffer;
    }
    return best->floats(count);
  }

  // Calls f(workspace).
  template <typename F>
  static void use(const F& f) {
    std::unique_ptr<Workspace> workspace(spare().exchange(nullptr));
    if (!workspace) workspace = std::make_unique<Workspace>();
    f(*workspace);
    // At most one is kept, and none that is large: the memory is worth more to others.
    constexpr int64_t most_floats = 24 << 20;
    if (workspace->count() <= most_floats) delete spare().exchange(workspace.release());
  }

 private:
  static std::atomic<Workspace*>& spare() {
    static std::atomic<Workspace*> kept{nullptr};
    return kept;
  }

  int64_t count() const {
    int64_t count = scratch.count();
    for (const Scratch& buffer : buffers_) count += buffer.count();
    return count;
  }

  Scratch buffers_[3];
};

}  // namespace lpips_fast::trunk
