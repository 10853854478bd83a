// NF4 weights back to numbers. A thread makes eight weights from four bytes of codes. The products and sums
// are rounded one by one, as on the CPU, so that f32 results have the same bits.
#include "device.h"

struct Nf4 {
  const unsigned char *codes, *absmax;
  const float *nested_absmax, *levels, *absmax_levels;
  void* out;
  long len;
  float offset;
};

template <typename T> __device__ void nf4_dequantise(const Nf4& p) {
  const long first = ((long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (first >= p.len) return;
  const long block = first / 64;
  const float absmax = p.absmax_levels[p.absmax[block]];
  const float scale = __fadd_rn(__fmul_rn(absmax, p.nested_absmax[block / 256]), p.offset);
  T* out = (T*)p.out;
  for (long i = first; i < first + 8 && i < p.len; ++i) {
    const int code = i % 2 == 0 ? p.codes[i / 2] >> 4 : p.codes[i / 2] & 15;
    out[i] = from_float<T>(__fmul_rn(p.levels[code], scale));
  }
}

KERNELS(nf4_dequantise, Nf4, 256)
