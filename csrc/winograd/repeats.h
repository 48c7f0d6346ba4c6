// Outputs of a convolution that are equal because their inputs are.
//
// Where images are flat, striped or ruled many outputs have equal inputs. Direct convolution gives them one value, to
// the bit, and a max pool over them sends its gradient to the first. Winograd's rounding depends on the place in the
// tile: the values would differ by about 1e-6, and the gradient would go to any of them. So of outputs with equal inputs
// one is computed, the first in memory, and the others are its copies. Tiles that hold only copies are left out, which
// makes flat areas cheaper.
//
// Outputs are compared that lie up to two rows and columns apart, as in the window of a pool; a group is what that
// connects, within an image. Pixels that differ cost little: a key of their first channels tells them apart.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "winograd/winograd.h"

namespace lpips_fast::winograd {

// Finds the groups of one convolution's outputs, in three steps. Each is done for all rows, or images, before the next
// begins, by any number of threads.
class Repeats {
 public:
  explicit Repeats(const Conv& p);

  int64_t rows() const { return p_.n * (p_.h + 2); }  // of all padded images
  void make_keys(int64_t begin, int64_t end);         // of these rows
  void compare_pixels(int64_t begin, int64_t end);    // in these rows
  void group_outputs(int64_t n);                      // of image n

  bool has_copies() const;
  bool has_copies(int64_t n) const { return !origins_[n].empty(); }
  // The output that this one is a copy of, or itself; outputs are counted over all images.
  int64_t origin(int64_t n, int64_t row, int64_t col) const {
    return origins_[n].empty() ? (n * p_.h + row) * p_.w + col : origins_[n][row * p_.w + col];
  }
  // The tiles that hold an output which is not a copy, in order.
  std::vector<int64_t> tiles() const;

 private:
  // A pixel of a padded image; null in the padding.
  const float* pixel(int64_t n, int64_t row, int64_t col) const;

  const Conv& p_;
  // Of the pixels of the padded images, [n][h + 2][w + 2].
  std::unique_ptr<uint32_t[]> keys_;
  std::unique_ptr<uint16_t[]> equal_;  // bit s: equal to the pixel that lies kShifts[s] before
  // Of images: whether pixels are equal, and whether values are not finite.
  std::unique_ptr<std::atomic<bool>[]> has_equal_, not_finite_;
  std::vector<std::vector<int64_t>> origins_;  // of each image, [h w], or empty where there are no copies
};

}  // namespace lpips_fast::winograd
