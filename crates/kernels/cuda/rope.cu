// Rotary position embedding in place, half-split layout. A row of blocks per token, a thread per pair.
#include "device.h"

struct Rotate {
  Rows x;
  const long* positions;  // rows of the tables
  const float *cos, *sin;  // [rows, half]
  int heads, head_dim, half;
  float sign;
};

template <typename T> __device__ void rotate(const Rotate& p) {
  const int pair = blockIdx.y * blockDim.x + threadIdx.x;
  if (pair >= p.heads * p.half) return;
  const int head = pair / p.half, i = pair % p.half;
  const long angle = p.positions[blockIdx.x] * p.half + i;
  T* low = row_of<T>(p.x, blockIdx.x) + (long)head * p.head_dim + i;
  T* high = low + p.half;
  const float a = to_float(*low), b = to_float(*high);
  const float cos = p.cos[angle], sin = p.sign * p.sin[angle];
  *low = from_float<T>(a * cos - b * sin);
  *high = from_float<T>(b * cos + a * sin);
}

KERNELS(rotate, Rotate, 256)
