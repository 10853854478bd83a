// Dropout whose mask is a function of (seed, row, column): the same one as on the CPU, bit for bit.
#include "device.h"

struct Dropout {
  Rows x, out;
  unsigned long seed, threshold;
  int width;
  float keep;
};

// SplitMix64's finaliser.
__device__ inline unsigned long mix(unsigned long z) {
  z += 0x9e3779b97f4a7c15ul;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ul;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebul;
  return z ^ (z >> 31);
}

template <typename T> __device__ void dropout(const Dropout& p) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.width) return;
  const unsigned long place = (unsigned long)blockIdx.x << 32 | (unsigned long)i;
  const bool drop = mix(p.seed ^ place) >> 32 < p.threshold;
  const float x = to_float(row_of<T>(p.x, blockIdx.x)[i]);
  row_of<T>(p.out, blockIdx.x)[i] = from_float<T>(drop ? 0.0f : x * p.keep);
}

KERNELS(dropout, Dropout, 256)
