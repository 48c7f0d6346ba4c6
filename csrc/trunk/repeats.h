// Outputs of a convolution that are equal because their inputs are.
//
// Where images are flat, striped or ruled many outputs have equal inputs. Direct convolution gives them one value, to
// the bit, and a max pool over them sends its gradient to the first. Winograd's rounding depends on the place in the
// tile: the values would differ by about 1e-6, and the gradient would go to any of them. So of the outputs of an image
// that have equal inputs only one is computed, the origin. The others are its copies. Tiles that hold only copies are
// left out, which makes flat areas cheaper.
//
// Equal inputs are looked for in the whole image: after a pool, neighbours come from outputs that may lie far apart.
// Rounding grows with the largest input of a tile, so the origin lies in the tile where that is smallest.
//
// Most images have no equal inputs. So the search begins with keys of the first channels of each pixel, which are one
// line of the cache, and goes on with candidates alone: outputs whose 3x3 keys are those of another one.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trunk/kernels.h"

namespace lpips_fast::trunk {

// Finds the copies among one convolution's outputs. The steps are to be taken in their order, each for all of its rows or
// parts before the next. The calls of one step may run at the same time.
class Repeats {
 public:
  // Each image is searched in so many parts. Outputs are dealt to them by key, so that equal keys meet in one part.
  Repeats(const Conv& p, int64_t parts_of_image);

  int64_t padded_rows() const { return p_.n * height_; }  // of all images
  int64_t rows() const { return p_.n * p_.h; }
  int64_t rows_of_tiles() const { return p_.n * p_.tiles_h; }
  int64_t parts() const { return p_.n * parts_of_image_; }

  void make_keys(int64_t padded_row);  // of pixels
  void combine_keys(int64_t row);      // of the 3x3 pixels of each output
  void find_candidates(int64_t part);
  bool any_candidates();  // if not, there are no copies: do not take the further steps
  void hash_pixels(int64_t padded_row);
  void measure_tiles(int64_t row_of_tiles);
  void find_origins(int64_t part);

  bool has_candidates(int64_t n) const { return !images_[n].origins.empty(); }
  // What output i of image n is a copy of, or i itself.
  int64_t origin(int64_t n, int64_t i) const { return has_candidates(n) ? images_[n].origins[i] : i; }
  // The tiles that hold an output which is no copy, in order.
  std::vector<int64_t> tiles() const;

 private:
  struct Pixel {
    uint64_t hash;    // of all channels
    int32_t largest;  // the bits of the largest absolute value
  };
  struct Image {
    std::vector<uint8_t> is_candidate;  // [h w]
    std::unique_ptr<Pixel[]> pixels;    // [height width]; only where candidates or their tiles need them
    std::vector<int32_t> largest;       // [tiles_h tiles_w], of the inputs of tiles that have candidates
    std::vector<int32_t> origins;       // [h w]
  };

  const float* pixel(int64_t n, int64_t row, int64_t col) const;
  bool tile_has_candidates(const Image& image, int64_t tile_row, int64_t tile_col) const;
  uint64_t hash_of_inputs(const Image& image, int64_t i) const;
  int32_t largest_in_tile(const Image& image, int64_t i) const;
  bool same_inputs(int64_t n, int64_t i, int64_t j) const;
  template <typename F>
  void for_each_of_part(int64_t part, const F& f) const;

  const Conv& p_;
  const int64_t height_, width_;  // of a padded image
  const int64_t parts_of_image_;
  std::vector<float> zeros_;              // a pixel of the padding
  std::unique_ptr<uint32_t[]> keys_;      // [n height width], of pixels
  std::unique_ptr<uint32_t[]> combined_;  // [n h w], of outputs
  std::vector<Image> images_;
  std::unique_ptr<uint8_t[]> found_;  // of each part, whether it has candidates
};

}  // namespace lpips_fast::trunk
