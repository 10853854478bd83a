// The soft cap of logits, c·tanh(x/c), in place, and its backward pass.
#include "device.h"

struct Softcap {
  Rows x, y;  // the forward pass uses x alone
  int width;
  float cap;
};

template <typename T> __device__ void softcap(const Softcap& p) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.width) return;
  T& x = row_of<T>(p.x, blockIdx.x)[i];
  x = from_float<T>(p.cap * tanhf(to_float(x) / p.cap));
}

KERNELS(softcap, Softcap, 256)

// x, a gradient, is multiplied by the slope at the forward's result y.
template <typename T> __device__ void softcap_backward(const Softcap& p) {
  const int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= p.width) return;
  T& x = row_of<T>(p.x, blockIdx.x)[i];
  const float t = to_float(row_of<T>(p.y, blockIdx.x)[i]) / p.cap;
  x = from_float<T>(to_float(x) * (1.0f - t * t));
}

KERNELS(softcap_backward, Softcap, 256)
