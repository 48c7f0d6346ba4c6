#include "winograd/repeats.h"

#include <algorithm>
#include <cstring>

namespace lpips_fast::winograd {
namespace {

struct Shift {
  int64_t row, col;
};

// To those up to two rows and columns apart that lie before in memory.
constexpr Shift kShifts[] = {{0, 1}, {0, 2},                              //
                             {1, -2}, {1, -1}, {1, 0}, {1, 1}, {1, 2},  //
                             {2, -2}, {2, -1}, {2, 0}, {2, 1}, {2, 2}};
constexpr int64_t kKeyChannels = 16;  // a line of the cache

// Equal for pixels that are equal to the bit, and 0 for zeros.
uint32_t key_of(const float* x, int64_t channels, uint32_t& not_finite) {
  uint32_t key = 0, bad = 0;
  const auto add = [&](int64_t c) {
    uint32_t bits;
    std::memcpy(&bits, x + c, sizeof bits);
    key += bits * static_cast<uint32_t>(2 * c + 0x9e3779b1);
    bad |= (bits & 0x7f800000) == 0x7f800000;
  };
  if (channels >= kKeyChannels) {
    for (int64_t c = 0; c < kKeyChannels; ++c) add(c);
  } else {
    for (int64_t c = 0; c < channels; ++c) add(c);
  }
  not_finite |= bad;
  return key;
}

// The root of i in the forest of groups, on the way to which links are made shorter.
int64_t first_of_group(std::vector<int64_t>& origins, int64_t i) {
  while (origins[i] != i) i = origins[i] = origins[origins[i]];
  return i;
}

}  // namespace

Repeats::Repeats(const Conv& p)
    : p_(p),
      keys_(new uint32_t[rows() * (p.w + 2)]),
      equal_(new uint16_t[rows() * (p.w + 2)]),
      has_equal_(new std::atomic<bool>[p.n]()),
      not_finite_(new std::atomic<bool>[p.n]()),
      origins_(p.n) {}

const float* Repeats::pixel(int64_t n, int64_t row, int64_t col) const {
  if (row < 1 || row > p_.h || col < 1 || col > p_.w) return nullptr;
  return p_.x + n * p_.x_strides.stride_n + (row - 1) * p_.x_strides.stride_h + (col - 1) * p_.x_strides.stride_w;
}

void Repeats::make_keys(int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / (p_.h + 2), row = line % (p_.h + 2), width = p_.w + 2;
    uint32_t* keys = keys_.get() + line * width;
    if (row == 0 || row == p_.h + 1) {
      std::fill(keys, keys + width, 0);
      continue;
    }
    uint32_t not_finite = 0;
    keys[0] = keys[width - 1] = 0;
    const float* x = pixel(n, row, 1);
    for (int64_t col = 1; col <= p_.w; ++col, x += p_.x_strides.stride_w) keys[col] = key_of(x, p_.cin, not_finite);
    if (not_finite) not_finite_[n].store(true, std::memory_order_relaxed);
  }
}

void Repeats::compare_pixels(int64_t begin, int64_t end) {
  const int64_t width = p_.w + 2;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / (p_.h + 2), row = line % (p_.h + 2);
    const uint32_t* keys = keys_.get() + line * width;
    uint16_t* equal = equal_.get() + line * width;
    std::fill(equal, equal + width, 0);
    int bit = 1;
    for (const Shift shift : kShifts) {
      const uint32_t* before = keys - shift.row * width - shift.col;
      const int64_t left = std::max<int64_t>(shift.col, 0), right = std::min(width + shift.col, width);
      if (row >= shift.row)
        for (int64_t col = left; col < right; ++col) equal[col] |= keys[col] == before[col] ? bit : 0;
      bit <<= 1;
    }
    bool found = false;
    for (int64_t col = 0; col < width; ++col) {
      if (equal[col] == 0) continue;
      const float* const here = pixel(n, row, col);
      bit = 1;
      for (const Shift shift : kShifts) {
        if (equal[col] & bit) {
          const float* const there = pixel(n, row - shift.row, col - shift.col);
          bool same = true;
          if (here && there) {
            same = std::memcmp(here, there, p_.cin * sizeof(float)) == 0;
          } else if (here || there) {
            const float* const inside = here ? here : there;
            same = std::all_of(inside, inside + p_.cin, [](float value) { return value == 0.f; });
          }
          if (!same) equal[col] &= ~bit;
          found |= same && here && there;
        }
        bit <<= 1;
      }
    }
    if (found) has_equal_[n].store(true, std::memory_order_relaxed);
  }
}

void Repeats::group_outputs(int64_t n) {
  // What is not finite makes NaN of whole tiles, and copies would carry it on from there.
  if (!has_equal_[n] || not_finite_[n]) return;
  const int64_t width = p_.w + 2;
  std::vector<int64_t>& origins = origins_[n];
  // An output's inputs are 3x3 pixels: equal_ of three columns and, by turns, three rows.
  std::vector<uint16_t> triple(3 * p_.w);
  const auto fill = [&](int64_t row) {
    const uint16_t* equal = equal_.get() + (n * (p_.h + 2) + row) * width;
    uint16_t* out = triple.data() + row % 3 * p_.w;
    for (int64_t col = 0; col < p_.w; ++col) out[col] = equal[col] & equal[col + 1] & equal[col + 2];
  };
  fill(0), fill(1);
  bool copies = false;
  origins.resize(p_.h * p_.w);
  for (int64_t row = 0; row < p_.h; ++row) {
    fill(row + 2);
    for (int64_t col = 0; col < p_.w; ++col) {
      const int64_t i = row * p_.w + col;
      origins[i] = i;
      const int same = triple[col] & triple[p_.w + col] & triple[2 * p_.w + col];
      int bit = 1;
      for (const Shift shift : kShifts) {
        if (same & bit && row >= shift.row && col >= shift.col && col - shift.col < p_.w) {
          const int64_t a = first_of_group(origins, i), b = first_of_group(origins, i - shift.row * p_.w - shift.col);
          origins[std::max(a, b)] = std::min(a, b);
          copies = true;
        }
        bit <<= 1;
      }
    }
  }
  if (!copies) {
    origins = {};
    return;
  }
  const int64_t image = n * p_.h * p_.w;
  for (int64_t i = 0; i < p_.h * p_.w; ++i) origins[i] = first_of_group(origins, i);
  for (int64_t& origin : origins) origin += image;
}

bool Repeats::has_copies() const {
  return std::any_of(origins_.begin(), origins_.end(), [](const auto& origins) { return !origins.empty(); });
}

std::vector<int64_t> Repeats::tiles() const {
  std::vector<int64_t> needed;
  const int64_t per_image = p_.tiles_h * p_.tiles_w;
  for (int64_t tile = 0; tile < p_.n * per_image; ++tile) {
    const int64_t n = tile / per_image;
    const int64_t row = tile % per_image / p_.tiles_w * kTile, col = tile % p_.tiles_w * kTile;
    bool own = false;
    for (int64_t h = row; h < std::min(row + kTile, p_.h); ++h)
      for (int64_t w = col; w < std::min(col + kTile, p_.w); ++w) own |= origin(n, h, w) == (n * p_.h + h) * p_.w + w;
    if (own) needed.push_back(tile);
  }
  return needed;
}

}  // namespace lpips_fast::winograd
