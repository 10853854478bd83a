// What every kernel here stands on: element types, rows of a matrix, reductions, and the macro that names kernels.
//
// The same sources are compiled by nvcc for the GPU and, with EMULATED defined, by the machine's own compiler
// for the tests, which run each kernel block by block on the CPU (see emulator.h). So they keep to what both
// know: one-dimensional blocks, full-warp shuffles, __syncthreads that all threads reach, no libraries.
#pragma once

#ifdef EMULATED
#include "emulator.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#define KERNEL(name, Parameters, threads)                                                          \
  extern "C" __global__ void __launch_bounds__(threads) name(const Parameters p)
#endif

// A brain float: the upper half of a float's bits.
struct bf16 {
  unsigned short bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
// To the nearest, ties to even.
template <> __device__ inline bf16 from_float<bf16>(float x) {
  unsigned bits = __float_as_uint(x);
  if (x != x) return bf16{0x7fc0};
  bits += 0x7fff + ((bits >> 16) & 1);
  return bf16{(unsigned short)(bits >> 16)};
}

// A matrix whose rows are contiguous and may lie apart; `stride` counts elements.
struct Rows {
  void* data;
  long stride;
};

template <typename T> __device__ inline T* row_of(const Rows& rows, long index) {
  return (T*)rows.data + index * rows.stride;
}

// V elements that are read and written at once; V·sizeof(T) is 16 bytes, or V is 1.
template <typename T, int V> struct alignas(V * sizeof(T)) Pack {
  T at[V];
  __device__ float operator[](int i) const { return to_float(at[i]); }
  __device__ void set(int i, float x) { at[i] = from_float<T>(x); }
};

template <typename T, int V> __device__ inline Pack<T, V>& pack(T* first) {
  return *(Pack<T, V>*)first;
}
template <typename T, int V> __device__ inline const Pack<T, V>& pack(const T* first) {
  return *(const Pack<T, V>*)first;
}

// Elements of 16 bytes.
template <typename T> constexpr int WIDE = 16 / sizeof(T);

struct Add {
  __device__ static float of(float a, float b) { return a + b; }
};

// Over the `LANES` neighbours of a warp that a lane belongs to; every lane gets the result.
template <typename Operation, int LANES = 32> __device__ inline float over_lanes(float x) {
  for (int offset = LANES / 2; offset > 0; offset /= 2)
    x = Operation::of(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// Sum over the block, in a fixed order; every thread gets it. May be called again at once.
__device__ inline float block_sum(float x) {
  __shared__ float parts[32];
  x = over_lanes<Add>(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < (blockDim.x + 31) / 32; ++warp) sum += parts[warp];
  return sum;
}

// Both element types of a kernel that is a template over one.
#define KERNELS(name, Parameters, threads)                                                         \
  KERNEL(name##_f32, Parameters, threads) { name<float>(p); }                                      \
  KERNEL(name##_bf16, Parameters, threads) { name<bf16>(p); }

// As above for a template over element and pack; `p.wide` says that all rows begin at 16 bytes.
#define PACKED_KERNELS(name, Parameters, threads)                                                  \
  KERNEL(name##_f32, Parameters, threads) {                                                        \
    if (p.wide) name<float, WIDE<float>>(p);                                                       \
    else name<float, 1>(p);                                                                        \
  }                                                                                                \
  KERNEL(name##_bf16, Parameters, threads) {                                                       \
    if (p.wide) name<bf16, WIDE<bf16>>(p);                                                         \
    else name<bf16, 1>(p);                                                                         \
  }
