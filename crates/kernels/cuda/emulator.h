// The CUDA that these kernels use, on the CPU, for tests: threads of a block are fibers, blocks run one by one.
//
// What the tests can see because of it: wrong numbers; reads of shared memory that nobody wrote (it begins as NaN);
// writes beyond it; barriers that some threads never reach; and missing barriers, because each kernel runs with its
// threads in several orders and must give the same bits. What it cannot show is speed, and how the GPU rounds expf.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <map>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
// One block at a time: what its threads share is simply static.
#define __shared__ static
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulator::shared()

struct Dim {
  unsigned x, y, z;
};
inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t STACK = 64 * 1024, GUARD = 4096;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
};

struct Barrier {
  unsigned arrived, generation;
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  unsigned current, progress;
  Barrier all, warps[32];
  unsigned long slots[1024];
};
inline Block block;

inline unsigned char* shared() { return block.shared.data(); }

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulator: block (%u, %u): %s\n", blockIdx.x, blockIdx.y, what);
  abort();
}

inline void yield() {
  Fiber& fiber = block.fibers[block.current];
  swapcontext(&fiber.context, &block.scheduler);
}

// All `threads` of a barrier go on when the last one has come.
inline void wait(Barrier& barrier, unsigned threads) {
  const unsigned generation = barrier.generation;
  ++block.progress;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) yield();
}

using Entry = void (*)(const void* parameters);
struct Kernel {
  Entry entry;
  unsigned threads, parameter_bytes;
};
inline std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}
inline bool enter(const char* name, Kernel kernel) { return kernels().insert({name, kernel}).second; }

inline Entry running;
inline const void* parameters;
inline void fiber_main() {
  running(parameters);
  block.fibers[block.current].done = true;
  ++block.progress;
  yield();
}

// The order in which threads get their turns: forwards, backwards, and one that mixes them.
inline unsigned turn(unsigned n, unsigned threads, unsigned order) {
  if (order == 0) return n;
  if (order == 1) return threads - 1 - n;
  return (n * 37 + 11) % threads;
}

inline void run_block(unsigned threads, size_t shared_bytes, unsigned order) {
  // Every byte 255: not a number, in floats and in doubles.
  block.shared.assign(shared_bytes + GUARD, 0xff);
  block.all = {};
  for (Barrier& warp : block.warps) warp = {};
  block.fibers.resize(threads);
  for (Fiber& fiber : block.fibers) {
    fiber.stack.resize(STACK);
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, fiber_main, 0);
  }
  for (unsigned left = threads; left > 0;) {
    block.progress = 0;
    for (unsigned n = 0; n < threads; ++n) {
      block.current = turn(n, threads, order);
      Fiber& fiber = block.fibers[block.current];
      if (fiber.done) continue;
      threadIdx = {block.current, 0, 0};
      swapcontext(&block.scheduler, &fiber.context);
      left -= fiber.done;
    }
    if (block.progress == 0) fail("some threads wait at a barrier that others never reach");
  }
  for (size_t i = shared_bytes; i < block.shared.size(); ++i)
    if (block.shared[i] != 0xff) fail("a write beyond the shared memory");
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block.all, blockDim.x); }

template <typename T> T __shfl_xor_sync(unsigned lanes, T x, int mask) {
  using namespace emulator;
  if (lanes != 0xffffffffu) fail("only shuffles of whole warps are known");
  // The scheduler sets threadIdx anew whenever a fiber goes on.
  Barrier& warp = block.warps[threadIdx.x / 32];
  memcpy(&block.slots[threadIdx.x], &x, sizeof x);
  wait(warp, 32);
  memcpy(&x, &block.slots[threadIdx.x ^ mask], sizeof x);
  wait(warp, 32);
  return x;
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

#define KERNEL(name, Parameters, threads)                                                          \
  static void name##_kernel(const Parameters& p);                                                  \
  static const bool name##_known = emulator::enter(                                                \
      #name, {[](const void* p) { name##_kernel(*(const Parameters*)p); }, threads,                \
              sizeof(Parameters)});                                                                \
  static void name##_kernel(const Parameters& p)

// What the tests call, with the arguments of cuLaunchKernel. 0, or why the launch is none.
extern "C" int emulate(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads,
                       unsigned shared_bytes, const void* parameters, unsigned parameter_bytes,
                       unsigned order) {
  const auto kernel = emulator::kernels().find(name);
  if (kernel == emulator::kernels().end()) return 1;
  if (threads == 0 || threads % 32 != 0 || threads > kernel->second.threads) return 2;
  if (parameter_bytes != kernel->second.parameter_bytes) return 4;
  if (grid_x == 0 || grid_y == 0 || grid_y > 65535) return 3;
  emulator::running = kernel->second.entry;
  emulator::parameters = parameters;
  blockDim = {threads, 1, 1};
  gridDim = {grid_x, grid_y, 1};
  for (unsigned y = 0; y < grid_y; ++y)
    for (unsigned x = 0; x < grid_x; ++x) {
      blockIdx = {x, y, 0};
      emulator::run_block(threads, shared_bytes, order);
    }
  return 0;
}

// The names of all kernels, null behind the last.
extern "C" const char* kernel_name(size_t index) {
  for (const auto& kernel : emulator::kernels())
    if (index-- == 0) return kernel.first.c_str();
  return nullptr;
}
