// The operators sketch_cpu and sketch_distances_cpu. lpips_fast/sketch.py has their contract and the mathematics.
//
// An image's sketch, and a query's distance to a row, is one thread's work, in a fixed order. So it is the same to the
// bit for any number of threads and whatever else is in the batch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "common/integers.h"
#include "common/isa.h"
#include "common/memory.h"
#include "common/team.h"
#include "sketch/kernels.h"

namespace lpips_fast::sketch {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

template <typename S>
auto sketch_kernel() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512::sketch_kernel<S>;
    case Isa::avx2:
      return avx2::sketch_kernel<S>;
#endif
    default:
      return portable::sketch_kernel<S>;
  }
}

template <typename S>
auto distances_kernel() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512::distances_kernel<S>;
    case Isa::avx2:
      return avx2::distances_kernel<S>;
#endif
    default:
      return portable::distances_kernel<S>;
  }
}

int64_t threads_for(int64_t values) {
  constexpr int64_t kValues = 1 << 19;  // for each thread: about a tenth of a millisecond
  return std::clamp<int64_t>(values / kValues, 1, torch::stable::get_num_threads());
}

void check_numbers(const Tensor& t, ScalarType type, int64_t count, const char* name, const char* type_name) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == type && t.dim() == 1 && t.size(0) == count && t.is_contiguous(),
                  name, " must be ", count, " contiguous ", type_name, " numbers on the CPU, one dimension");
}

// Whether [N, C, H, W] lies in memory as [N, H, W, C]. The strides of sizes of 1 do not matter.
bool is_channels_last(const Tensor& t) {
  int64_t stride = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != stride) return false;
    stride *= t.size(dim);
  }
  return true;
}

void check_taps(const Tensors& taps, const Tensors& scales) {
  STD_TORCH_CHECK(!taps.empty(), "taps must be at least one tensor");
  STD_TORCH_CHECK(scales.size() == taps.size(), "scales must be as many tensors as taps, ", taps.size(), ", got ",
                  scales.size());
  for (size_t l = 0; l < taps.size(); ++l) {
    const Tensor& tap = taps[l];
    STD_TORCH_CHECK(tap.is_cpu() && tap.dim() == 4 && tap.size(0) == taps[0].size(0) &&
                        tap.scalar_type() == taps[0].scalar_type(),
                    "taps must be [N, C, H, W] on the CPU, of one N and one type; tap ", l, " is not");
    STD_TORCH_CHECK(tap.numel() == 0 || is_channels_last(tap), "taps must be dense and channels-last; tap ", l,
                    " is not");
    check_numbers(scales[l], ScalarType::Float, tap.size(1), "scales: each", "float32");
  }
}

template <typename S>
void sketch_images(const Tensors& taps, const Tensors& scales, Norm<float> norm, const Buckets& buckets,
                   float* sketches) {
  const int64_t n = taps[0].size(0);
  int64_t values = 0;
  std::vector<Tap<S>> of_kernel;
  for (size_t l = 0; l < taps.size(); ++l) {
    of_kernel.push_back({taps[l].size(1), taps[l].size(2) * taps[l].size(3),
                         static_cast<const S*>(taps[l].const_data_ptr()), scales[l].const_data_ptr<float>()});
    values += taps[l].numel();
  }
  const auto kernel = sketch_kernel<S>();
  const int64_t threads = threads_for(values), m = buckets.length;
  const ScratchMemory<float> sums(threads * 2 * m);
  Team::run(threads, [&](Team& team) {
    team.for_each_job(n, [&](int64_t worker, int64_t i) {
      kernel(of_kernel.data(), of_kernel.size(), i, norm, buckets, sums.data() + worker * 2 * m, sketches + i * m);
    });
  });
}

Tensor sketch(Tensors taps, Tensors scales, double eps, bool eps_inside_sqrt, Tensor signs, Tensor offsets,
              int64_t length) {
  check_taps(taps, scales);
  STD_TORCH_CHECK(length >= 1, "length must be at least 1, got ", length);
  int64_t values = 0;  // of an image
  for (const Tensor& tap : taps) values += tap.size(1) * tap.size(2) * tap.size(3);
  check_numbers(signs, ScalarType::Char, values, "signs", "int8");
  check_numbers(offsets, ScalarType::Long, ceil_div(values, length), "offsets", "int64");
  const Buckets buckets{length, signs.const_data_ptr<int8_t>(), offsets.const_data_ptr<int64_t>()};
  for (int64_t r = 0; r < offsets.size(0); ++r) {
    STD_TORCH_CHECK(0 <= buckets.offsets[r] && buckets.offsets[r] < length, "offsets must be in [0, ", length,
                    "), got ", buckets.offsets[r]);
  }
  const Norm<float> norm{static_cast<float>(eps), eps_inside_sqrt};
  Tensor out = torch::stable::empty({taps[0].size(0), length}, ScalarType::Float);
  float* const sketches = out.mutable_data_ptr<float>();
  switch (taps[0].scalar_type()) {
    case ScalarType::Float:
      sketch_images<float>(taps, scales, norm, buckets, sketches);
      break;
    case ScalarType::Half:
      sketch_images<Half>(taps, scales, norm, buckets, sketches);
      break;
    case ScalarType::BFloat16:
      sketch_images<BFloat16>(taps, scales, norm, buckets, sketches);
      break;
    default:
      STD_TORCH_CHECK(false, "taps must be float32, float16 or bfloat16");
  }
  return out;
}

template <typename S>
void compare(const Tensor& queries, const Tensor& rows, float* distances) {
  const Comparison<S> p{queries.size(0),
                        rows.size(0),
                        rows.size(1),
                        queries.const_data_ptr<float>(),
                        static_cast<const S*>(rows.const_data_ptr()),
                        distances};
  constexpr int64_t kRowsAtOnce = 128;
  const auto kernel = distances_kernel<S>();
  Team::run(threads_for(p.n_queries * p.n_rows * p.length), [&](Team& team) {
    team.for_each_range(p.n_rows, kRowsAtOnce, [&](int64_t, int64_t first, int64_t last) { kernel(p, first, last); });
  });
}

Tensor distances(Tensor queries, Tensor rows) {
  STD_TORCH_CHECK(queries.is_cpu() && queries.scalar_type() == ScalarType::Float && queries.dim() == 2 &&
                      queries.is_contiguous(),
                  "queries must be a contiguous float32 matrix on the CPU");
  STD_TORCH_CHECK(rows.is_cpu() && rows.dim() == 2 && rows.size(1) == queries.size(1) && rows.is_contiguous(),
                  "rows must be a contiguous matrix on the CPU, of queries' length ", queries.size(1));
  Tensor out = torch::stable::empty({queries.size(0), rows.size(0)}, ScalarType::Float);
  float* const distances = out.mutable_data_ptr<float>();
  switch (rows.scalar_type()) {
    case ScalarType::Float:
      compare<float>(queries, rows, distances);
      break;
    case ScalarType::Half:
      compare<Half>(queries, rows, distances);
      break;
    default:
      STD_TORCH_CHECK(false, "rows must be float32 or float16");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CPU, m) {
  m.impl("sketch_cpu", TORCH_BOX(&sketch));
  m.impl("sketch_distances_cpu", TORCH_BOX(&distances));
}

}  // namespace lpips_fast::sketch
