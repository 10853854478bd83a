// Causal attention inside each document of a packed batch: scores live in shared memory alone.
//
// One block per tile of queries and head; it walks the keys tile by tile with a running maximum and sum. R is the
// tile's side, D the head's width rounded up. No half of a document that the mask hides is computed.
#include "attention.h"

struct Attention {
  Rows qkv, out;
  float* log_sums;  // [T, heads]
  const Tile* tiles;
  Shape shape;
};

struct Largest {
  __device__ static float of(float a, float b) { return fmaxf(a, b); }
};

template <typename T, int R, int D> __device__ void attention(const Attention& p) {
  constexpr int N = R / SIDE;
  const Thread at;
  const Shape& shape = p.shape;
  const Tile tile = p.tiles[blockIdx.x];
  const int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads), d = shape.head_dim;
  const long key_column = (long)(shape.heads + kv_head) * d;
  const long value_column = key_column + (long)shape.kv_heads * d;

  DYNAMIC_SHARED(float, shared);
  float *query = shared, *other = query + R * (D + 1), *weights = other + R * (D + 1);
  const int rows_end = tile.row + R < tile.end ? tile.row + R : tile.end;
  stage<T, R, D>(query, p.qkv, tile.row, rows_end, (long)head * d, d);

  float sum[N] = {}, top[N], result[N][D / SIDE] = {};
#pragma unroll
  for (int i = 0; i < N; ++i) top[i] = -INFINITY;
  for (int key = first_key(shape, tile, tile.row); key < rows_end; key += R) {
    __syncthreads();
    stage<T, R, D>(other, p.qkv, key, rows_end, key_column, d);
    __syncthreads();
    float scores[N][N];
    products<R, D>(query, other, scores);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float row_top = top[i];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const int q = tile.row + at.y + SIDE * i, k = key + at.x + SIDE * j;
        const bool visible = q < rows_end && k < rows_end && sees(shape, q, k);
        scores[i][j] = visible ? score_of(shape, scores[i][j]) : -INFINITY;
        row_top = fmaxf(row_top, scores[i][j]);
      }
      row_top = over_lanes<Largest, SIDE>(row_top);
      // Until a row has seen a key, there is nothing to scale.
      const float shrink = top[i] == -INFINITY ? 0.0f : expf(top[i] - row_top);
      sum[i] *= shrink;
#pragma unroll
      for (int c = 0; c < D / SIDE; ++c) result[i][c] *= shrink;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const float weight = scores[i][j] == -INFINITY ? 0.0f : expf(scores[i][j] - row_top);
        weights[(at.y + SIDE * i) * (R + 1) + at.x + SIDE * j] = weight;
        sum[i] += weight;
      }
      top[i] = row_top;
    }
    __syncthreads();
    stage<T, R, D>(other, p.qkv, key, rows_end, value_column, d);
    __syncthreads();
    for (int k = 0; k < R; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float weight = weights[(at.y + SIDE * i) * (R + 1) + k];
#pragma unroll
        for (int c = 0; c < D / SIDE; ++c)
          result[i][c] += weight * other[k * (D + 1) + at.x + SIDE * c];
      }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float total = over_lanes<Add, SIDE>(sum[i]);
    const int q = tile.row + at.y + SIDE * i;
    if (q >= rows_end) continue;
    T* out = row_of<T>(p.out, q) + (long)head * d;
#pragma unroll
    for (int c = 0; c < D / SIDE; ++c)
      if (at.x + SIDE * c < d) out[at.x + SIDE * c] = from_float<T>(result[i][c] / total);
    if (at.x == 0) p.log_sums[(long)q * shape.heads + head] = top[i] + logf(total);
  }
}

#define ATTENTION(width, R)                                                                        \
  KERNEL(attention_##width##_f32, Attention, THREADS) { attention<float, R, width>(p); }           \
  KERNEL(attention_##width##_bf16, Attention, THREADS) { attention<bf16, R, width>(p); }

ATTENTION(64, 64)
ATTENTION(128, 64)
ATTENTION(256, 32)
