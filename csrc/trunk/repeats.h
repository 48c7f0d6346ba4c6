// Outputs of a convolution that are equal because their inputs are equal.
//
// In flat, striped or ruled images many outputs have equal inputs. Direct convolution gives such outputs one value, to
// the bit, and a max pool over them sends its gradient to the first one. Winograd's rounding depends on the place in
// the tile: the values would differ by about 1e-6, and the gradient would go to any of them. So only one output of an
// image is computed for each set of equal inputs, the origin. The others are its copies. Tiles that hold only copies
// are skipped, which makes flat areas cheaper.
//
// The search for equal inputs covers the whole image: after a pool, neighbours come from outputs that may lie far
// apart. Rounding grows with the largest input of a tile, so the origin is in the tile where that input is smallest.
//
// If the input is an image cut into phases, some channels of the last row and column of the kernel have no weights.
// They do not count.
//
// Most images have no equal inputs. So the search first makes a key of each pixel from some channels, which are in one
// cache line. It goes on with candidates only: outputs for whose inputs another output has the same keys.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trunk/kernels.h"

namespace lpips_fast::trunk {

// Finds the copies among one convolution's outputs. Take the steps in their order, and finish each for all rows or
// parts before the next one starts. The calls of one step may run at the same time.
class Repeats {
 public:
  // Each image is searched in `parts_of_image` parts. A key decides an output's part, so equal keys meet in one part.
  Repeats(const Conv& p, const Tiles& t, int64_t patch, int64_t parts_of_image);

  int64_t padded_rows() const { return p_.n * height_; }  // of all images
  int64_t rows() const { return p_.n * p_.h; }
  int64_t rows_of_tiles() const { return p_.n * t_.tiles_h; }
  int64_t parts() const { return p_.n * parts_of_image_; }

  void make_keys(int64_t padded_row);  // of pixels
  void combine_keys(int64_t row);      // of the pixels that each output reads
  void find_candidates(int64_t part);
  bool any_candidates();  // if there are none, there are no copies: skip the other steps
  void hash_pixels(int64_t padded_row);
  void measure_tiles(int64_t row_of_tiles);
  void find_origins(int64_t part);

  bool has_candidates(int64_t n) const { return !images_[n].origins.empty(); }
  // The output that output i of image n is a copy of, or i itself.
  int64_t origin(int64_t n, int64_t i) const { return has_candidates(n) ? images_[n].origins[i] : i; }
  // The tiles with at least one output that is not a copy, in order.
  std::vector<int64_t> tiles() const;

 private:
  struct Pixel {
    uint64_t hash[4];  // of the channels that count, by `place`
    int32_t largest;   // the bits of the largest absolute value
  };
  struct Image {
    std::vector<uint8_t> is_candidate;  // [h w]
    std::unique_ptr<Pixel[]> pixels;    // [height width]; set only where candidates or their tiles need it
    std::vector<int32_t> largest;       // [tiles_h tiles_w], of the inputs of tiles that have candidates
    std::vector<int32_t> origins;       // [h w]
  };

  const float* pixel(int64_t n, int64_t row, int64_t col) const;
  // Where a pixel of the kernel is: 1 in the last row, 2 in the last column, 3 in both; 0 elsewhere. It is 0 everywhere
  // if all channels count everywhere.
  int64_t place(int64_t row, int64_t col) const;
  bool same(const float* a, const float* b, int64_t place) const;
  bool tile_has_candidates(const Image& image, int64_t tile_row, int64_t tile_col) const;
  uint64_t hash_of_inputs(const Image& image, int64_t i) const;
  int32_t largest_in_tile(const Image& image, int64_t i) const;
  bool same_inputs(int64_t n, int64_t i, int64_t j) const;
  template <typename F>
  void for_each_of_part(int64_t part, const F& f) const;

  const Conv& p_;
  const Tiles& t_;
  const int64_t patch_;            // inputs of a tile in each direction
  const int64_t height_, width_;  // of a padded image
  const int64_t parts_of_image_;
  std::vector<float> zeros_;              // a pixel of the padding
  std::vector<int32_t> counting_[4];      // the channels that count, by `place`
  std::unique_ptr<uint32_t[]> keys_;      // [n height width], of pixels
  std::unique_ptr<uint32_t[]> combined_;  // [n h w], of outputs
  std::vector<Image> images_;
  std::unique_ptr<uint8_t[]> found_;  // of each part, whether it has candidates
};

}  // namespace lpips_fast::trunk
