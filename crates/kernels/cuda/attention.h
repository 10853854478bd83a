// What the forward and the backward pass of attention share: the documents' tiles, staging of rows in shared
// memory, and scores.
//
// A block has 16 × 16 threads in one dimension. It works on R × R tiles of scores: thread (y, x) owns the rows
// y + 16·i and the columns x + 16·j. The 16 threads of a row are neighbours in one warp. Rows in shared memory
// are one float longer than a head, so that threads side by side read from different banks.
#pragma once
#include "device.h"

struct Shape {
  int heads, kv_heads, head_dim;
  float scale, softcap;  // softcap 0: none
  int window;            // keys that a query sees, its own included
};

// Up to R rows of one document.
struct Tile {
  int begin, end;  // the document
  int row;         // the tile's first row
};

constexpr int THREADS = 256, SIDE = 16;

struct Thread {
  int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
};

// Rows `first …` below `end` of one head as floats, zeros after them and beyond the head's width.
template <typename T, int R, int D>
__device__ inline void stage(float* tile, const Rows& rows, int first, int end, long column, int width) {
  for (int n = threadIdx.x; n < R * D; n += THREADS) {
    const int row = first + n / D, i = n % D;
    const bool inside = row < end && i < width;
    tile[n / D * (D + 1) + i] = inside ? to_float(row_of<T>(rows, row)[column + i]) : 0.0f;
  }
}

// out[i][j] = Σ_k a[y + 16·i][k] · b[x + 16·j][k]
template <int R, int D>
__device__ inline void products(const float* a, const float* b, float (&out)[R / SIDE][R / SIDE]) {
  const Thread at;
#pragma unroll
  for (int i = 0; i < R / SIDE; ++i)
#pragma unroll
    for (int j = 0; j < R / SIDE; ++j) out[i][j] = 0.0f;
#pragma unroll 4
  for (int k = 0; k < D; ++k) {
    float column[R / SIDE];
#pragma unroll
    for (int j = 0; j < R / SIDE; ++j) column[j] = b[(at.x + SIDE * j) * (D + 1) + k];
#pragma unroll
    for (int i = 0; i < R / SIDE; ++i) {
      const float left = a[(at.y + SIDE * i) * (D + 1) + k];
#pragma unroll
      for (int j = 0; j < R / SIDE; ++j) out[i][j] += left * column[j];
    }
  }
}

// A raw product as a score.
__device__ inline float score_of(const Shape& shape, float product) {
  const float score = product * shape.scale;
  return shape.softcap > 0 ? shape.softcap * tanhf(score / shape.softcap) : score;
}

// The slope of score_of, divided by the scale.
__device__ inline float cap_slope(const Shape& shape, float score) {
  const float t = shape.softcap > 0 ? score / shape.softcap : 0.0f;
  return 1.0f - t * t;
}

__device__ inline bool sees(const Shape& shape, int query, int key) {
  return key <= query && query - key < shape.window;
}

// The first key that the query in `row` sees.
__device__ inline int first_key(const Shape& shape, const Tile& tile, int row) {
  return row - tile.begin < shape.window ? tile.begin : row - shape.window + 1;
}
