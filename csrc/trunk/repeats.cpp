#include "trunk/repeats.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace lpips_fast::trunk {
namespace {

constexpr int64_t kKeyChannels = 16;
constexpr int64_t kAhead = 32;  // pixels
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;  // 2^64 / the golden ratio

uint64_t mixed(uint64_t x) {
  x *= 0xbf58476d1ce4e5b9;
  return x ^ (x >> 31);
}

// A sum over pairs of channels. Each term mixes the bits of the pair with its place. channel(c) is the channel that is
// taken as number c.
template <typename Channel>
uint64_t hash_of(const float* x, int64_t channels, const Channel& channel) {
  uint64_t hash = 0, place = kOdd;
  for (int64_t c = 0; c < channels; c += 2, place += kOdd) {
    uint32_t pair[2] = {};
    std::memcpy(pair, x + channel(c), sizeof pair[0]);
    if (c + 1 < channels) std::memcpy(pair + 1, x + channel(c + 1), sizeof pair[1]);
    uint64_t bits;
    std::memcpy(&bits, pair, sizeof bits);
    hash += mixed(bits + place);
  }
  return hash;
}

uint64_t hash_of(const float* x, int64_t channels) {
  return hash_of(x, channels, [](int64_t c) { return c; });
}

uint64_t hash_of(const float* x, const std::vector<int32_t>& channels, int64_t most) {
  const int64_t count = std::min<int64_t>(channels.size(), most);
  return hash_of(x, count, [&](int64_t c) { return channels[c]; });
}

// The bits of the largest absolute value. Bits are in the order of the values, and NaN is above all.
int32_t largest_of(const float* x, int64_t channels) {
  constexpr int64_t lanes = 8;  // so that the compiler uses vectors
  int32_t largest[lanes] = {};
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) {
    int32_t bits[lanes];
    std::memcpy(bits, x + c, sizeof bits);
    for (int64_t i = 0; i < lanes; ++i) {
      bits[i] &= 0x7fffffff;
      largest[i] = bits[i] > largest[i] ? bits[i] : largest[i];
    }
  }
  for (; c < channels; ++c) {
    int32_t bits;
    std::memcpy(&bits, x + c, sizeof bits);
    largest[0] = std::max(largest[0], bits & 0x7fffffff);
  }
  return *std::max_element(largest, largest + lanes);
}

// A set of keys with one bit for each hash of a key. It can mistake a key for another one that it has.
class Filter {
 public:
  explicit Filter(int64_t expected) {
    while (int64_t{1} << (32 - shift_) < 16 * expected && shift_ > 0) shift_ -= 1;
    words_.resize(std::max<int64_t>((int64_t{1} << (32 - shift_)) / 64, 1));
  }

  // Adds a key; returns whether the set had it before.
  bool add(uint32_t key) {
    const uint32_t at = place(key);
    uint64_t& word = words_[at / 64];
    const uint64_t before = word;
    word |= uint64_t{1} << at % 64;
    return before >> at % 64 & 1;
  }

  bool has(uint32_t key) const {
    const uint32_t at = place(key);
    return words_[at / 64] >> at % 64 & 1;
  }

 private:
  uint32_t place(uint32_t key) const { return (key * 0x9e3779b1u) >> shift_; }

  int shift_ = 26;
  std::vector<uint64_t> words_;
};

// A hash table with open addressing, from keys to indices of outputs.
class Table {
 public:
  explicit Table(int64_t expected) {
    while (capacity() < 2 * expected) shift_ -= 1;
    slots_.resize(capacity());
  }

  // The index of a key. Stores `index` if the key is new.
  int32_t& find(uint64_t key, int32_t index) {
    if (4 * count_ >= 3 * capacity()) grow();
    Slot& slot = slots_[place(key)];
    if (slot.index < 0) {
      slot = {key, index};
      ++count_;
    }
    return slot.index;
  }

 private:
  struct Slot {
    uint64_t key = 0;
    int32_t index = -1;
  };

  int64_t capacity() const { return int64_t{1} << (64 - shift_); }

  int64_t place(uint64_t key) const {
    int64_t at = (key * kOdd) >> shift_;
    while (slots_[at].index >= 0 && slots_[at].key != key) at = (at + 1) & (capacity() - 1);
    return at;
  }

  void grow() {
    std::vector<Slot> old = std::move(slots_);
    shift_ -= 1;
    slots_.assign(capacity(), {});
    for (const Slot& slot : old)
      if (slot.index >= 0) slots_[place(slot.key)] = slot;
  }

  int shift_ = 58;
  int64_t count_ = 0;
  std::vector<Slot> slots_;
};

}  // namespace

Repeats::Repeats(const Conv& p, const Tiles& t, int64_t patch, int64_t parts_of_image)
    : p_(p),
      t_(t),
      patch_(patch),
      height_(p.in_h + 2 * p.padding),
      width_(p.in_w + 2 * p.padding),
      parts_of_image_(parts_of_image),
      zeros_(p.cin),
      keys_(new uint32_t[p.n * height_ * width_]),
      combined_(new uint32_t[p.n * p.h * p.w]),
      images_(p.n),
      found_(new uint8_t[parts()]()) {
  for (Image& image : images_) image.is_candidate.resize(p.h * p.w);
  if (p.unused_phases == 0) return;
  const int64_t used = p.phases - p.unused_phases;
  for (int64_t place = 0; place < 4; ++place) {
    for (int64_t c = 0; c < p.cin; ++c) {
      const int64_t row = c / p.phases % p.phases, col = c % p.phases;
      if ((place & 1 && row >= used) || (place & 2 && col >= used)) continue;
      counting_[place].push_back(c);
    }
  }
}

int64_t Repeats::place(int64_t row, int64_t col) const {
  return p_.unused_phases == 0 ? 0 : (row + 1 == p_.kernel) + 2 * (col + 1 == p_.kernel);
}

bool Repeats::same(const float* a, const float* b, int64_t place) const {
  if (place == 0) return std::memcmp(a, b, p_.cin * sizeof(float)) == 0;
  return std::all_of(counting_[place].begin(), counting_[place].end(),
                     [&](int32_t c) { return std::memcmp(a + c, b + c, sizeof(float)) == 0; });
}

// A pixel of a padded image.
const float* Repeats::pixel(int64_t n, int64_t row, int64_t col) const {
  row -= p_.padding, col -= p_.padding;
  if (row < 0 || row >= p_.in_h || col < 0 || col >= p_.in_w) return zeros_.data();
  return p_.x + n * p_.x_strides.stride_n + row * p_.x_strides.stride_h + col * p_.x_strides.stride_w;
}

void Repeats::make_keys(int64_t padded_row) {
  const int64_t n = padded_row / height_, row = padded_row % height_;
  uint32_t* keys = keys_.get() + padded_row * width_;
  const auto key_of = [this](const float* x) {  // of channels that count in every pixel of the kernel
    const uint64_t hash = p_.unused_phases == 0 ? hash_of(x, std::min(p_.cin, kKeyChannels))
                                                : hash_of(x, counting_[3], kKeyChannels);
    return static_cast<uint32_t>(hash >> 32);
  };
  const uint32_t padding = key_of(zeros_.data());
  std::fill(keys, keys + width_, padding);
  if (row < p_.padding || row >= p_.in_h + p_.padding) return;
  const float* x = pixel(n, row, p_.padding);
  for (int64_t col = p_.padding; col < p_.in_w + p_.padding; ++col, x += p_.x_strides.stride_w) {
#if defined(__GNUC__)
    __builtin_prefetch(x + kAhead * p_.x_strides.stride_w);
#endif
    keys[col] = key_of(x);
  }
}

void Repeats::combine_keys(int64_t row) {
  uint32_t* combined = combined_.get() + row * p_.w;
  std::fill(combined, combined + p_.w, 0);
  uint32_t place = 1;  // odd, and another one for each pixel of the kernel
  for (int64_t i = 0; i < p_.kernel; ++i) {
    const uint32_t* keys = keys_.get() + (row / p_.h * height_ + row % p_.h + i) * width_;
    for (int64_t j = 0; j < p_.kernel; ++j, ++keys) {
      place *= 0x9e3779b1u;
      for (int64_t col = 0; col < p_.w; ++col) combined[col] += keys[col] * place;
    }
  }
}

// Calls f(i) for the outputs of a part.
template <typename F>
void Repeats::for_each_of_part(int64_t part, const F& f) const {
  const int64_t n = part / parts_of_image_, of_image = part % parts_of_image_, pixels = p_.h * p_.w;
  const uint32_t* combined = combined_.get() + n * pixels;
  for (int64_t i = 0; i < pixels; ++i)
    if (parts_of_image_ == 1 || (combined[i] >> 16) % parts_of_image_ == of_image) f(i);
}

void Repeats::find_candidates(int64_t part) {
  const int64_t n = part / parts_of_image_, pixels = p_.h * p_.w;
  if (pixels > std::numeric_limits<int32_t>::max()) return;
  const uint32_t* combined = combined_.get() + n * pixels;
  std::vector<uint8_t>& is_candidate = images_[n].is_candidate;
  // The filter stays in the cache. It shows for nearly all outputs that no other output has their key.
  Filter seen(pixels / parts_of_image_), twice(pixels / parts_of_image_);
  for_each_of_part(part, [&](int64_t i) {
    if (seen.add(combined[i])) twice.add(combined[i]);
  });
  Table first(0);
  bool found = false;
  for_each_of_part(part, [&](int64_t i) {
    if (!twice.has(combined[i])) return;
    const int64_t other = first.find(combined[i], i);
    if (other == i) return;
    is_candidate[other] = is_candidate[i] = found = true;
  });
  found_[part] = found;
}

bool Repeats::any_candidates() {
  bool any = false;
  for (int64_t n = 0; n < p_.n; ++n) {
    const uint8_t* found = found_.get() + n * parts_of_image_;
    if (!std::any_of(found, found + parts_of_image_, [](uint8_t f) { return f; })) continue;
    images_[n].pixels.reset(new Pixel[height_ * width_]);
    images_[n].largest.resize(t_.tiles_h * t_.tiles_w);
    images_[n].origins.resize(p_.h * p_.w);
    any = true;
  }
  return any;
}

bool Repeats::tile_has_candidates(const Image& image, int64_t tile_row, int64_t tile_col) const {
  for (int64_t row = tile_row * kTile; row < std::min((tile_row + 1) * kTile, p_.h); ++row)
    for (int64_t col = tile_col * kTile; col < std::min((tile_col + 1) * kTile, p_.w); ++col)
      if (image.is_candidate[row * p_.w + col]) return true;
  return false;
}

void Repeats::hash_pixels(int64_t padded_row) {
  const int64_t n = padded_row / height_, row = padded_row % height_;
  const Image& image = images_[n];
  if (!has_candidates(n)) return;
  // The inputs of neighbouring tiles overlap.
  const int64_t first = std::max<int64_t>(row - patch_ + kTile, 0) / kTile;
  const int64_t last = std::min(row / kTile, t_.tiles_h - 1);
  int64_t done = 0;  // the first column that has no hash yet
  for (int64_t tile_col = 0; tile_col < t_.tiles_w; ++tile_col) {
    bool needed = false;
    for (int64_t tile_row = first; tile_row <= last; ++tile_row)
      needed |= tile_has_candidates(image, tile_row, tile_col);
    if (!needed) continue;
    const int64_t end = std::min(tile_col * kTile + patch_, width_);
    for (int64_t col = std::max(done, tile_col * kTile); col < end; ++col) {
      const float* const x = pixel(n, row, col);
      Pixel& at = image.pixels[row * width_ + col];
      at = {{hash_of(x, p_.cin)}, largest_of(x, p_.cin)};
      for (int64_t place = 1; place < 4 && p_.unused_phases > 0; ++place)
        at.hash[place] = hash_of(x, counting_[place], p_.cin);
    }
    done = end;
  }
}

uint64_t Repeats::hash_of_inputs(const Image& image, int64_t i) const {
  const Pixel* at = image.pixels.get() + i / p_.w * width_ + i % p_.w;
  uint64_t hash = 0, salt = kOdd;
  for (int64_t row = 0; row < p_.kernel; ++row)
    for (int64_t col = 0; col < p_.kernel; ++col, salt += kOdd)
      hash += mixed(at[row * width_ + col].hash[place(row, col)] + salt);
  return hash;
}

void Repeats::measure_tiles(int64_t row_of_tiles) {
  const int64_t n = row_of_tiles / t_.tiles_h, tile_row = row_of_tiles % t_.tiles_h;
  Image& image = images_[n];
  if (!has_candidates(n)) return;
  for (int64_t tile_col = 0; tile_col < t_.tiles_w; ++tile_col) {
    if (!tile_has_candidates(image, tile_row, tile_col)) continue;
    int32_t largest = 0;
    for (int64_t row = tile_row * kTile; row < std::min(tile_row * kTile + patch_, height_); ++row)
      for (int64_t col = tile_col * kTile; col < std::min(tile_col * kTile + patch_, width_); ++col)
        largest = std::max(largest, image.pixels[row * width_ + col].largest);
    image.largest[tile_row * t_.tiles_w + tile_col] = largest;
  }
}

int32_t Repeats::largest_in_tile(const Image& image, int64_t i) const {
  return image.largest[i / p_.w / kTile * t_.tiles_w + i % p_.w / kTile];
}

bool Repeats::same_inputs(int64_t n, int64_t i, int64_t j) const {
  const int64_t row_i = i / p_.w, col_i = i % p_.w, row_j = j / p_.w, col_j = j % p_.w;
  for (int64_t row = 0; row < p_.kernel; ++row)
    for (int64_t col = 0; col < p_.kernel; ++col)
      if (!same(pixel(n, row_i + row, col_i + col), pixel(n, row_j + row, col_j + col), place(row, col))) return false;
  return true;
}

void Repeats::find_origins(int64_t part) {
  const int64_t n = part / parts_of_image_;
  if (!has_candidates(n)) return;
  Image& image = images_[n];
  struct Candidate {
    int32_t index;
    uint64_t hash;
  };
  std::vector<Candidate> candidates;
  Table best(0);
  for_each_of_part(part, [&](int64_t i) {
    image.origins[i] = i;
    if (!image.is_candidate[i]) return;
    candidates.push_back({static_cast<int32_t>(i), hash_of_inputs(image, i)});
    int32_t& origin = best.find(candidates.back().hash, i);
    if (largest_in_tile(image, i) < largest_in_tile(image, origin)) origin = i;
  });
  for (const Candidate& c : candidates) {
    const int32_t origin = best.find(c.hash, c.index);
    if (same_inputs(n, c.index, origin)) image.origins[c.index] = origin;
  }
}

std::vector<int64_t> Repeats::tiles() const {
  std::vector<int64_t> needed;
  const int64_t per_image = t_.tiles_h * t_.tiles_w;
  for (int64_t tile = 0; tile < p_.n * per_image; ++tile) {
    const int64_t n = tile / per_image;
    const int64_t row = tile % per_image / t_.tiles_w * kTile, col = tile % t_.tiles_w * kTile;
    bool own = !has_candidates(n);
    for (int64_t r = row; !own && r < std::min(row + kTile, p_.h); ++r)
      for (int64_t c = col; !own && c < std::min(col + kTile, p_.w); ++c)
        own = origin(n, r * p_.w + c) == r * p_.w + c;
    if (own) needed.push_back(tile);
  }
  return needed;
}

}  // namespace lpips_fast::trunk
