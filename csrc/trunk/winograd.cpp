// A convolution by Winograd's algorithm, from tile to tile.
//
// Tiles are processed in blocks, and a block in three steps (winograd.inl): input transform, a matrix product for each
// point, output transform. If there are enough blocks, each thread takes whole blocks and keeps its own V and M in its
// cache. If there are few tiles or the filters are large, all threads work on one block, step by step, so that the
// transformed filters pass through the cache once for all threads.
#include "trunk/convolution.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/integers.h"
#include "trunk/repeats.h"

namespace lpips_fast::trunk {
namespace {

float maximum(float a, float b) { return a != a ? a : (a > b ? a : b); }  // a NaN stays, as in torch

const Winograd& winograd(const Conv& p) { return p.kernel == 3 ? kernels().winograd3 : kernels().winograd5; }

// How tiles are processed. It follows from sizes and the number of threads alone.
struct Plan {
  int64_t block;  // tiles
  bool shared;    // all threads on one block
};

Plan plan(int64_t tiles, int64_t points, int64_t cin, int64_t cout, int64_t rows, int64_t threads) {
  // With more tiles in a block the filters are read fewer times; with fewer tiles V and M stay in a nearer cache. The
  // numbers were chosen by measurement.
  constexpr int64_t most_bytes = 20 << 20;
  const int64_t bytes = points * sizeof(float) * (cin + cout);
  const int64_t own = round_up(std::clamp<int64_t>((cin + cout) * 3 / 16, 24, 96), rows);
  if (threads == 1 || (ceil_div(tiles, own) >= 4 * threads && threads * own * bytes <= most_bytes))
    return {std::min(own, tiles), false};
  const int64_t blocks = ceil_div(tiles, std::max(most_bytes / bytes, rows));
  return {std::min(round_up(ceil_div(tiles, blocks), rows), tiles), true};
}

// Computes the tiles [0, count), or the first `count` of t.chosen.
void run_tiles(Team& team, Scratch& scratch, const Conv& p, Tiles& t, int64_t count) {
  const Kernels& k = kernels();
  const Winograd& w = winograd(p);
  const int64_t points = w.patch * w.patch;
  t.ld_v = round_up(p.cin, kPanel), t.ld_m = round_up(p.cout, kPanel);
  const int64_t patch = points * t.ld_v, panels = t.ld_m / kPanel;
  const auto [block, shared] = plan(count, points, t.ld_v, t.ld_m, k.tile_rows, team.size());
  // A cache line is added between points: a distance of a power of two would put all of them into the same cache sets.
  t.point_v = block * t.ld_v + kPanel, t.point_m = block * t.ld_m + kPanel;
  const int64_t size_v = points * t.point_v, size_m = points * t.point_m;

  if (!shared) {
    const int64_t each = size_v + size_m + patch;
    float* const memory = scratch.floats(team.size() * each);
    team.for_each_range(count, block, [&](int64_t worker, int64_t begin, int64_t end) {
      float* const v = memory + worker * each;
      float* const m = v + size_v;
      w.transform_input(p, t, begin, end, v, m + size_m);
      for (int64_t point = 0; point < points; ++point) k.multiply(p, t, point, end - begin, 0, panels, v, m);
      w.transform_output(p, t, begin, end, m);
    });
    return;
  }
  constexpr int64_t some_tiles = 4, some_panels = 8;
  float* const v = scratch.floats(size_v + size_m + team.size() * patch);
  float* const m = v + size_v;
  float* const patches = m + size_m;
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t tiles = std::min(block, count - begin);
    team.for_each_range(tiles, some_tiles, [&](int64_t worker, int64_t first, int64_t last) {
      w.transform_input(p, t, begin + first, begin + last, v + first * t.ld_v, patches + worker * patch);
    });
    const int64_t groups = ceil_div(panels, some_panels);
    team.for_each_job(points * groups, [&](int64_t, int64_t job) {
      const int64_t first = job % groups * some_panels;
      k.multiply(p, t, job / groups, tiles, first, std::min(first + some_panels, panels), v, m);
    });
    team.for_each_range(tiles, some_tiles, [&](int64_t, int64_t first, int64_t last) {
      w.transform_output(p, t, begin + first, begin + last, m + first * t.ld_m);
    });
  }
}

Tiles tiles_of(const Conv& p) {
  Tiles t{};
  t.tiles_h = ceil_div(p.h, kTile), t.tiles_w = ceil_div(p.w, kTile);
  return t;
}

// Fills in the outputs that are copies: y, its signs, and the pooled values of windows with a copy.
void copy_repeats(Team& team, const Conv& p, const Repeats& repeats) {
  const int64_t bytes = ceil_div(p.cout, 8), pairs = ceil_div(p.h, 2);
  team.for_each_job(p.n * pairs, [&](int64_t, int64_t job) {
    const int64_t n = job / pairs, top = job % pairs * 2;
    if (!repeats.has_candidates(n)) return;
    const int64_t image = n * p.h * p.w;
    const auto y = [&](int64_t i) { return p.y + (image + i) * p.ld_y; };
    const auto signs = [&](int64_t i) { return p.signs + (image + i) * p.ld_signs; };
    std::vector<uint8_t> touched(p.w);  // the columns that hold a copy
    for (int64_t i = top * p.w; i < std::min(top + 2, p.h) * p.w; ++i) {
      const int64_t origin = repeats.origin(n, i);
      if (i == origin) continue;
      std::memcpy(y(i), y(origin), p.cout * sizeof(float));
      if (p.signs) std::memcpy(signs(i), signs(origin), bytes);
      touched[i % p.w] = 1;
    }
    if (!p.pooled || top + 1 == p.h) return;
    for (int64_t col = 0; col + 1 < p.w; col += 2) {
      if (!touched[col] && !touched[col + 1]) continue;
      const float* const first = y(top * p.w + col);
      const float* const below = first + p.w * p.ld_y;
      float* const pooled = p.pooled + ((n * (p.h / 2) + top / 2) * (p.w / 2) + col / 2) * p.cout;
      for (int64_t c = 0; c < p.cout; ++c) {
        const float above = maximum(first[c], first[p.ld_y + c]);
        pooled[c] = maximum(above, maximum(below[c], below[p.ld_y + c]));
      }
    }
  });
}

}  // namespace

void conv_winograd(Team& team, Scratch& scratch, const Conv& p) {
  Tiles t = tiles_of(p);
  if (const int64_t count = p.n * t.tiles_h * t.tiles_w) run_tiles(team, scratch, p, t, count);
}

void conv_winograd_with_repeats(Team& team, Scratch& scratch, const Conv& p) {
  Tiles t = tiles_of(p);
  if (p.n == 0) return;
  Repeats repeats(p, t, winograd(p).patch, ceil_div(team.size(), p.n));
  const auto each = [&](int64_t count, int64_t at_once, void (Repeats::*step)(int64_t)) {
    team.for_each_range(count, at_once, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (repeats.*step)(i);
    });
  };
  constexpr int64_t some_rows = 16;
  each(repeats.padded_rows(), some_rows, &Repeats::make_keys);
  each(repeats.rows(), some_rows, &Repeats::combine_keys);
  each(repeats.parts(), 1, &Repeats::find_candidates);
  if (!repeats.any_candidates()) return conv_winograd(team, scratch, p);
  each(repeats.padded_rows(), some_rows, &Repeats::hash_pixels);
  each(repeats.rows_of_tiles(), some_rows / kTile, &Repeats::measure_tiles);
  each(repeats.parts(), 1, &Repeats::find_origins);
  const std::vector<int64_t> tiles = repeats.tiles();
  t.chosen = tiles.data();
  run_tiles(team, scratch, p, t, tiles.size());
  copy_repeats(team, p, repeats);
}

}  // namespace lpips_fast::trunk
