// The gated activation f(gate) ⊙ up on rows that hold gate and up side by side. Threads walk along a row.
#include "device.h"

struct Gated {
  Rows gate_up, out;  // [T, 2F], [T, F]
  int width;          // F
  int gelu;
  int wide;
};

// The activation at x, and its slope.
struct Active {
  float value, slope;
};

__device__ inline Active activate(float x, int gelu) {
  if (!gelu) {
    const float s = 1.0f / (1.0f + expf(-x));
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
  const float scale = 0.7978845608f, cube = 0.044715f;
  const float t = tanhf(scale * (x + cube * x * x * x));
  const float inner = scale * (1.0f + 3.0f * cube * x * x);
  return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t + x * (1.0f - t * t) * inner)};
}

template <typename T, int V> __device__ void gated(const Gated& p) {
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (i >= p.width) return;
  const T* gate = row_of<T>(p.gate_up, blockIdx.x);
  const auto &g = pack<T, V>(gate + i), &u = pack<T, V>(gate + p.width + i);
  auto& out = pack<T, V>(row_of<T>(p.out, blockIdx.x) + i);
  for (int j = 0; j < V; ++j) out.set(j, activate(g[j], p.gelu).value * u[j]);
}

PACKED_KERNELS(gated, Gated, 256)

// gate_up becomes its own gradient, and `out`, which holds the result's gradient, the result.
template <typename T, int V> __device__ void gated_backward(const Gated& p) {
  const int i = (blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (i >= p.width) return;
  T* gate = row_of<T>(p.gate_up, blockIdx.x);
  auto &g = pack<T, V>(gate + i), &u = pack<T, V>(gate + p.width + i);
  auto& out = pack<T, V>(row_of<T>(p.out, blockIdx.x) + i);
  for (int j = 0; j < V; ++j) {
    const Active active = activate(g[j], p.gelu);
    const float up = u[j], d = out[j];
    g.set(j, d * up * active.slope);
    u.set(j, d * active.value);
    out.set(j, active.value * up);
  }
}

PACKED_KERNELS(gated_backward, Gated, 256)
