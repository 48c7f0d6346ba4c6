// The head's formulas for one pixel, shared by host and device.
//
// With the norms over channels n0 = |f0|, n1 = |f1| (T is the accumulation type):
//
//   a_c = f0_c r0,  b_c = f1_c r1           r = 1 / (n + eps), or 1 / sqrt(eps + n^2) with the eps inside the root;
//                                           r = 0 where the root is 0
//   d   = sum_c w_c (a_c - b_c)^2
//
// and with s = dL/dd for this pixel, u_c = 2 s w_c (a_c - b_c):
//
//   dL/df0_c = r0 (u_c - a_c (sum_k u_k a_k) q0)      q = (n + eps) / n, or 1 with the eps inside; q = 0 where n = 0
//   dL/df1_c = r1 (-u_c + b_c (sum_k u_k b_k) q1)
//   dL/dw_c  = sum over pixels of s (a_c - b_c)^2
//
// The difference is taken before it is squared: |a|^2 - 2ab + |b|^2 cancels for near-identical images.
#pragma once

#include <cmath>
#include <type_traits>

#if defined(__CUDACC__)
#define LPIPS_FAST_HD __host__ __device__ __forceinline__
#else
// Always inlined: the CPU kernels are compiled for several instruction sets, and the linker would keep one copy of an
// inline function, perhaps one with instructions that the processor lacks.
#define LPIPS_FAST_HD inline __attribute__((always_inline))
#endif

namespace lpips_fast {

// The type in which features of type T are summed.
template <typename T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct Norm {
  T eps;
  bool inside_sqrt;
};

// r and q above, from the sum of squares over channels.
template <typename T>
struct NormFactors {
  T r, q;
};

template <typename T>
LPIPS_FAST_HD NormFactors<T> norm_factors(T sum_sq, Norm<T> norm) {
  const T root = std::sqrt(norm.inside_sqrt ? sum_sq + norm.eps : sum_sq);
  // `root == 0` and not `!(root > 0)`: a NaN must come out as NaN.
  if (root == T(0)) return {T(0), T(0)};
  if (norm.inside_sqrt) return {T(1) / root, T(1)};
  // 1 + eps / root and not (root + eps) / root: the first gives a gradient of 0 where root has overflowed, not NaN.
  return {T(1) / (root + norm.eps), T(1) + norm.eps / root};
}

}  // namespace lpips_fast
