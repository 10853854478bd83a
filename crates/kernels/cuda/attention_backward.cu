// The backward pass of attention, in three kernels without atomic additions, so that results do not depend on the
// order of blocks: Σ d_out⊙out of each row and head; the gradients of keys and values, a block per tile of keys
// that walks the queries; that of queries, a block per tile of queries that walks the keys. Both recompute the
// probabilities from the saved log-sums.
#include "attention.h"

struct AttentionBackward {
  Rows d_out, qkv, out, d_qkv;
  const float* log_sums;  // [T, heads]
  float* deltas;          // [T, heads]
  const Tile* tiles;
  Shape shape;
};

// One warp per row and head.
template <typename T> __device__ void attention_deltas(const AttentionBackward& p) {
  const int d = p.shape.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head = blockIdx.y * (THREADS / 32) + warp;
  if (head >= p.shape.heads) return;
  const T* d_out = row_of<T>(p.d_out, blockIdx.x) + (long)head * d;
  const T* out = row_of<T>(p.out, blockIdx.x) + (long)head * d;
  float sum = 0;
  for (int i = lane; i < d; i += 32) sum += to_float(d_out[i]) * to_float(out[i]);
  sum = over_lanes<Add>(sum);
  if (lane == 0) p.deltas[(long)blockIdx.x * p.shape.heads + head] = sum;
}

KERNELS(attention_deltas, AttentionBackward, THREADS)

// Probabilities of one tile of queries × keys, and the gradients of the raw scores, both in shared memory as
// [query][key]. All four inputs are staged.
template <int R, int D>
__device__ inline void score_gradients(const AttentionBackward& p, int head, int query_row, int query_end,
                                       int key_row, int key_end, const float* query, const float* key,
                                       const float* d_out, const float* value, float* weights, float* ds) {
  constexpr int N = R / SIDE;
  const Thread at;
  float scores[N][N], d_weights[N][N];
  products<R, D>(query, key, scores);
  products<R, D>(d_out, value, d_weights);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int q = query_row + at.y + SIDE * i;
    const long place = (long)q * p.shape.heads + head;
    const float log_sum = q < query_end ? p.log_sums[place] : 0.0f;
    const float delta = q < query_end ? p.deltas[place] : 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int k = key_row + at.x + SIDE * j;
      const bool visible = q < query_end && k < key_end && sees(p.shape, q, k);
      const float score = score_of(p.shape, scores[i][j]);
      const float weight = visible ? expf(score - log_sum) : 0.0f;
      const float slope = p.shape.scale * cap_slope(p.shape, score);
      const int cell = (at.y + SIDE * i) * (R + 1) + at.x + SIDE * j;
      weights[cell] = weight;
      ds[cell] = visible ? slope * weight * (d_weights[i][j] - delta) : 0.0f;
    }
  }
}

template <typename T, int R, int D> __device__ void attention_d_keys(const AttentionBackward& p) {
  constexpr int N = R / SIDE, TILE = R * (D + 1);
  const Thread at;
  const Shape& shape = p.shape;
  const Tile tile = p.tiles[blockIdx.x];
  const int kv_head = blockIdx.y, group = shape.heads / shape.kv_heads, d = shape.head_dim;
  const long key_column = (long)(shape.heads + kv_head) * d;
  const long value_column = key_column + (long)shape.kv_heads * d;
  DYNAMIC_SHARED(float, shared);
  float *key = shared, *value = key + TILE, *query = value + TILE, *d_out = query + TILE;
  float *weights = d_out + TILE, *ds = weights + R * (R + 1);
  const int key_end = tile.row + R < tile.end ? tile.row + R : tile.end;
  stage<T, R, D>(key, p.qkv, tile.row, key_end, key_column, d);
  stage<T, R, D>(value, p.qkv, tile.row, key_end, value_column, d);

  // The last query that sees the tile's last key.
  const int room = tile.end - key_end;
  const int query_end = room < shape.window ? tile.end : key_end - 1 + shape.window;
  float d_key[N][D / SIDE] = {}, d_value[N][D / SIDE] = {};
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
    for (int row = tile.row; row < query_end; row += R) {
      __syncthreads();
      stage<T, R, D>(query, p.qkv, row, query_end, (long)head * d, d);
      stage<T, R, D>(d_out, p.d_out, row, query_end, (long)head * d, d);
      __syncthreads();
      score_gradients<R, D>(p, head, row, query_end, tile.row, key_end, query, key, d_out, value, weights, ds);
      __syncthreads();
      // Here a thread's rows are keys.
      for (int q = 0; q < R; ++q)
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const int cell = q * (R + 1) + at.y + SIDE * i;
          const float weight = weights[cell], slope = ds[cell];
#pragma unroll
          for (int c = 0; c < D / SIDE; ++c) {
            d_value[i][c] += weight * d_out[q * (D + 1) + at.x + SIDE * c];
            d_key[i][c] += slope * query[q * (D + 1) + at.x + SIDE * c];
          }
        }
    }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int k = tile.row + at.y + SIDE * i;
    if (k >= key_end) continue;
    T* row = row_of<T>(p.d_qkv, k);
#pragma unroll
    for (int c = 0; c < D / SIDE; ++c) {
      if (at.x + SIDE * c >= d) continue;
      row[key_column + at.x + SIDE * c] = from_float<T>(d_key[i][c]);
      row[value_column + at.x + SIDE * c] = from_float<T>(d_value[i][c]);
    }
  }
}

template <typename T, int R, int D> __device__ void attention_d_queries(const AttentionBackward& p) {
  constexpr int N = R / SIDE, TILE = R * (D + 1);
  const Thread at;
  const Shape& shape = p.shape;
  const Tile tile = p.tiles[blockIdx.x];
  const int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads), d = shape.head_dim;
  const long key_column = (long)(shape.heads + kv_head) * d;
  const long value_column = key_column + (long)shape.kv_heads * d;
  DYNAMIC_SHARED(float, shared);
  float *query = shared, *d_out = query + TILE, *key = d_out + TILE, *value = key + TILE;
  float *weights = value + TILE, *ds = weights + R * (R + 1);
  const int query_end = tile.row + R < tile.end ? tile.row + R : tile.end;
  stage<T, R, D>(query, p.qkv, tile.row, query_end, (long)head * d, d);
  stage<T, R, D>(d_out, p.d_out, tile.row, query_end, (long)head * d, d);

  float d_query[N][D / SIDE] = {};
  for (int row = first_key(shape, tile, tile.row); row < query_end; row += R) {
    __syncthreads();
    stage<T, R, D>(key, p.qkv, row, query_end, key_column, d);
    stage<T, R, D>(value, p.qkv, row, query_end, value_column, d);
    __syncthreads();
    score_gradients<R, D>(p, head, tile.row, query_end, row, query_end, query, key, d_out, value, weights, ds);
    __syncthreads();
    for (int k = 0; k < R; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float slope = ds[(at.y + SIDE * i) * (R + 1) + k];
#pragma unroll
        for (int c = 0; c < D / SIDE; ++c)
          d_query[i][c] += slope * key[k * (D + 1) + at.x + SIDE * c];
      }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int q = tile.row + at.y + SIDE * i;
    if (q >= query_end) continue;
    T* row = row_of<T>(p.d_qkv, q) + (long)head * d;
#pragma unroll
    for (int c = 0; c < D / SIDE; ++c)
      if (at.x + SIDE * c < d) row[at.x + SIDE * c] = from_float<T>(d_query[i][c]);
  }
}

#define ATTENTION_BACKWARD(name, width)                                                            \
  KERNEL(name##_##width##_f32, AttentionBackward, THREADS) { name<float, 32, width>(p); }          \
  KERNEL(name##_##width##_bf16, AttentionBackward, THREADS) { name<bf16, 32, width>(p); }

ATTENTION_BACKWARD(attention_d_keys, 64)
ATTENTION_BACKWARD(attention_d_keys, 128)
ATTENTION_BACKWARD(attention_d_keys, 256)
ATTENTION_BACKWARD(attention_d_queries, 64)
ATTENTION_BACKWARD(attention_d_queries, 128)
ATTENTION_BACKWARD(attention_d_queries, 256)
