// Softmax cross-entropy on a block of logits. One block per row, which it reads twice: the largest logit and
// the sum of exponentials together, then the gradient in the logits' own place.
#include "device.h"

struct CrossEntropy {
  Rows logits;
  const long* targets;
  const float* factors;  // one per row, or null: `factor` for all
  double* results;       // [N, 2]: −log p(target), and 1 where the target was the most probable
  int width;
  float factor;
  int gradient;  // 0: only the results
  int wide;
};

// The largest of some numbers, and Σ e^(x − largest).
struct Partial {
  float top, sum;
};

// e^(x − top), where nothing seen yet counts as nothing.
__device__ inline float weight_under(float x, float top) {
  return x == -INFINITY ? 0.0f : expf(x - top);
}

__device__ inline Partial join(Partial a, Partial b) {
  const float top = fmaxf(a.top, b.top);
  return {top, a.sum * weight_under(a.top, top) + b.sum * weight_under(b.top, top)};
}

__device__ inline Partial block_join(Partial x) {
  __shared__ Partial parts[32];
  for (int offset = 16; offset > 0; offset /= 2) {
    const float top = __shfl_xor_sync(0xffffffffu, x.top, offset);
    const float sum = __shfl_xor_sync(0xffffffffu, x.sum, offset);
    x = join(x, {top, sum});
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  Partial all = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) all = join(all, parts[warp]);
  return all;
}

template <typename T, int V> __device__ void cross_entropy(const CrossEntropy& p) {
  T* logits = row_of<T>(p.logits, blockIdx.x);
  const long target = p.targets[blockIdx.x];
  const float at_target = to_float(logits[target]);
  Partial seen = {-INFINITY, 0.0f};
  bool undefined = false;
  for (int i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
    const auto& x = pack<T, V>(logits + i);
    float top = seen.top;
    for (int j = 0; j < V; ++j) {
      undefined |= x[j] != x[j];
      top = fmaxf(top, x[j]);
    }
    seen.sum *= weight_under(seen.top, top);
    for (int j = 0; j < V; ++j) seen.sum += weight_under(x[j], top);
    seen.top = top;
  }
  // fmaxf ignores what is not a number; the loss must not.
  if (undefined) seen.sum = NAN;
  const Partial all = block_join(seen);
  if (threadIdx.x == 0) {
    p.results[2 * blockIdx.x] = log((double)all.sum) - (double)(at_target - all.top);
    p.results[2 * blockIdx.x + 1] = at_target == all.top ? 1.0 : 0.0;
  }
  if (!p.gradient) return;
  const float factor = p.factors ? p.factors[blockIdx.x] : p.factor;
  const float scale = factor / all.sum;
  for (int i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
    auto& x = pack<T, V>(logits + i);
    for (int j = 0; j < V; ++j) {
      const float hit = i + j == target ? factor : 0.0f;
      x.set(j, scale * expf(x[j] - all.top) - hit);
    }
  }
}

PACKED_KERNELS(cross_entropy, CrossEntropy, 512)
