// The optimizer's update over flat f32 buffers, and the sum of squares for clipping.
#include "device.h"

struct AdamW {
  float *values, *m, *v;
  const float* grads;
  long len;
  float grad_scale, beta1, beta2, rest1, rest2, shrink, rate, root, eps;
};

KERNEL(adamw, AdamW, 256) {
  const long step = (long)gridDim.x * blockDim.x;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < p.len; i += step) {
    const float grad = p.grads[i] * p.grad_scale;
    const float m = p.beta1 * p.m[i] + p.rest1 * grad;
    const float v = p.beta2 * p.v[i] + p.rest2 * grad * grad;
    p.m[i] = m;
    p.v[i] = v;
    p.values[i] = p.values[i] * p.shrink - p.rate * m / (sqrtf(v) * p.root + p.eps);
  }
}

struct SumOfSquares {
  const float* x;
  double* parts;  // one per block, added up by the host in their order
  long len;
};

KERNEL(sum_of_squares, SumOfSquares, 256) {
  const long step = (long)gridDim.x * blockDim.x;
  double sum = 0;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < p.len; i += step)
    sum += (double)p.x[i] * p.x[i];
  __shared__ double sums[256];
  sums[threadIdx.x] = sum;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) p.parts[blockIdx.x] = sums[0];
}
