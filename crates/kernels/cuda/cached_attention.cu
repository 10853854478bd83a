// Attention of new tokens over a cache. One block per token and head; its warps take turns at the keys, each with
// a running maximum and sum, and are joined at the end.
#include "attention.h"

struct CachedAttention {
  Rows q, keys, values, out;
  int cached;  // rows of the cache before the first new token
  Shape shape;
};

constexpr int WARPS = 8, WIDTH_MAX = 256, EACH = WIDTH_MAX / 32;

template <typename T> __device__ void cached_attention(const CachedAttention& p) {
  const Shape& shape = p.shape;
  const int head = blockIdx.y, d = shape.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const long column = (long)(head / (shape.heads / shape.kv_heads)) * d;
  const T* q = row_of<T>(p.q, blockIdx.x) + (long)head * d;
  float query[EACH], result[EACH] = {}, top = -INFINITY, sum = 0;
  for (int c = 0; c < EACH; ++c) query[c] = lane + 32 * c < d ? to_float(q[lane + 32 * c]) : 0.0f;

  const int end = p.cached + blockIdx.x + 1, begin = end > shape.window ? end - shape.window : 0;
  for (int key = begin + warp; key < end; key += WARPS) {
    const T *k = row_of<T>(p.keys, key) + column, *v = row_of<T>(p.values, key) + column;
    float product = 0;
    for (int c = 0; c < EACH; ++c)
      if (lane + 32 * c < d) product += query[c] * to_float(k[lane + 32 * c]);
    const float score = score_of(shape, over_lanes<Add>(product)), new_top = fmaxf(top, score);
    const float shrink = top == -INFINITY ? 0.0f : expf(top - new_top), weight = expf(score - new_top);
    sum = sum * shrink + weight;
    for (int c = 0; c < EACH; ++c)
      if (lane + 32 * c < d) result[c] = result[c] * shrink + weight * to_float(v[lane + 32 * c]);
    top = new_top;
  }

  __shared__ float tops[WARPS], sums[WARPS], results[WARPS][WIDTH_MAX];
  for (int c = 0; c < EACH; ++c) results[warp][lane + 32 * c] = result[c];
  if (lane == 0) {
    tops[warp] = top;
    sums[warp] = sum;
  }
  __syncthreads();
  float all_top = -INFINITY, all_sum = 0, shrinks[WARPS];
  for (int w = 0; w < WARPS; ++w) all_top = fmaxf(all_top, tops[w]);
  for (int w = 0; w < WARPS; ++w) {
    shrinks[w] = tops[w] == -INFINITY ? 0.0f : expf(tops[w] - all_top);
    all_sum += sums[w] * shrinks[w];
  }
  T* out = row_of<T>(p.out, blockIdx.x) + (long)head * d;
  for (int i = threadIdx.x; i < d; i += WARPS * 32) {
    float x = 0;
    for (int w = 0; w < WARPS; ++w) x += results[w][i] * shrinks[w];
    out[i] = from_float<T>(x / all_sum);
  }
}

KERNELS(cached_attention, CachedAttention, WARPS * 32)
