// The types of 16 bits in memory. common/storage.inl computes with them.
#pragma once

#include <cstdint>

namespace lpips_fast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace lpips_fast
