// Outputs of a convolution that repeat earlier ones, because what they are made of does.
//
// Where images are flat, striped or ruled, many outputs have equal inputs. Direct convolution gives all of them the same
// value, to the bit, and a max pool over them sends its gradient to the first. Winograd's rounding depends on the place
// in the tile: such values differ by 1e-6, and the gradient goes anywhere. So outputs near each other with equal inputs
// are found, one of each such group is computed, and the others are its copies. Tiles of copies alone are left out.
//
// Compared are the outputs that one window of a pool can hold, up to two rows and columns apart (kReach); groups are
// what that connects, within an image. To compare two pixels costs little where they differ, which a key of their first
// channels tells.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "winograd/winograd.h"

namespace lpips_fast::winograd {

constexpr int64_t kReach = 2;

// Finds the groups of one convolution's outputs. The steps are in the order of their functions; each is done for all
// rows, or images, before the next begins, by any number of threads.
class Repeats {
 public:
  explicit Repeats(const Conv& p);

  int64_t rows() const { return p_.n * (p_.h + 2); }  // of the padded images
  void make_keys(int64_t begin, int64_t end);         // rows
  void compare_pixels(int64_t begin, int64_t end);    // rows
  void group_outputs(int64_t image);

  bool any() const;
  // The output of which this one, [n h w], is a copy, or itself.
  int64_t origin(int64_t n, int64_t h, int64_t w) const {
    return origins_[n].empty() ? (n * p_.h + h) * p_.w + w : origins_[n][h * p_.w + w];
  }
  bool has_copies(int64_t n) const { return !origins_[n].empty(); }
  // The tiles that hold an output which is not a copy, in order.
  std::vector<int64_t> tiles() const;

 private:
  const float* pixel(int64_t n, int64_t row, int64_t col) const;  // null outside of the image, where all is 0

  const Conv& p_;
  std::unique_ptr<uint32_t[]> keys_;    // of the padded images' pixels
  std::unique_ptr<uint16_t[]> equal_;   // bit s: the pixel is equal to that which lies kShifts[s] before it
  std::unique_ptr<std::atomic<uint8_t>[]> found_, bad_;  // of each image: has equal pixels; has values not finite
  std::vector<std::vector<int64_t>> origins_;            // of each image, [h w], or empty
};

}  // namespace lpips_fast::winograd
