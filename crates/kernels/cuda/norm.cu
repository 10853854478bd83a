// Root-mean-square norm; weights are f32 whatever the rows are. One block per segment of a row (a row has one, or
// one for each of a query's heads).
#include "device.h"

struct RmsNorm {
  Rows x, out;
  const float* weight;
  float* rstd;  // [T, segments]
  int width, segments;
  float eps;
  int wide;
};

template <typename T, int V> __device__ void rms_norm(const RmsNorm& p) {
  const long row = blockIdx.x / p.segments, begin = (long)(blockIdx.x % p.segments) * p.width;
  const T* x = row_of<T>(p.x, row) + begin;
  T* out = row_of<T>(p.out, row) + begin;
  float squares = 0;
  for (int i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
    const auto& x_i = pack<T, V>(x + i);
    for (int j = 0; j < V; ++j) squares += x_i[j] * x_i[j];
  }
  const float rstd = 1.0f / sqrtf(block_sum(squares) / p.width + p.eps);
  for (int i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
    const auto& x_i = pack<T, V>(x + i);
    auto& out_i = pack<T, V>(out + i);
    for (int j = 0; j < V; ++j) out_i.set(j, x_i[j] * rstd * p.weight[i + j]);
  }
  if (threadIdx.x == 0) p.rstd[blockIdx.x] = rstd;
}

PACKED_KERNELS(rms_norm, RmsNorm, 256)

struct RmsNormBackward {
  Rows dy, x, dx;
  const float* weight;
  const float* rstd;
  int width, segments;
  int wide;
};

// dx += rstd·(dy⊙w) − x · rstd³/D · Σ(dy⊙w⊙x)
template <typename T, int V> __device__ void rms_norm_backward(const RmsNormBackward& p) {
  const long row = blockIdx.x / p.segments, begin = (long)(blockIdx.x % p.segments) * p.width;
  const T *dy = row_of<T>(p.dy, row) + begin, *x = row_of<T>(p.x, row) + begin;
  T* dx = row_of<T>(p.dx, row) + begin;
  float product = 0;
  for (int i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
    const auto &dy_i = pack<T, V>(dy + i), &x_i = pack<T, V>(x + i);
    for (int j = 0; j < V; ++j) product += dy_i[j] * p.weight[i + j] * x_i[j];
  }
  const float rstd = p.rstd[blockIdx.x];
  const float along = rstd * rstd * rstd * block_sum(product) / p.width;
  for (int i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
    const auto &dy_i = pack<T, V>(dy + i), &x_i = pack<T, V>(x + i);
    auto& dx_i = pack<T, V>(dx + i);
    for (int j = 0; j < V; ++j)
      dx_i.set(j, dx_i[j] + rstd * dy_i[j] * p.weight[i + j] - along * x_i[j]);
  }
}

PACKED_KERNELS(rms_norm_backward, RmsNormBackward, 256)
