// CUDA's threads, shared memory and intrinsics on one core of a CPU, before the kernel's source. Each thread is a fiber;
// a sweep runs each until it waits, and leaves a third of the blocks out, by chance, so that blocks overtake each other.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class To, class From> static To bits_of(From from) {
    To to;
    memcpy(&to, &from, 4);
    return to;
}
static float __uint_as_float(unsigned v) { return bits_of<float>(v); }
static float __int_as_float(int v) { return bits_of<float>(v); }
static unsigned __float_as_uint(float v) { return bits_of<unsigned>(v); }
static unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
    const unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned v = 0;
    for (int each = 0; each < 4; each++) v |= (unsigned)(both >> (which >> 4 * each & 7) * 8 & 0xff) << 8 * each;
    return v;
}
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static float __frcp_rn(float v) { return 1.0f / v; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fdividef(float a, float b) { return a / b; }
#define __expf expf
static float rsqrtf(float v) { return 1.0f / sqrtf(v); }

// Fibers.
extern "C" void switch_fiber(void **from, void *to);
asm(R"(
.globl switch_fiber
switch_fiber:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
struct Barrier {
    int count = 0;
    unsigned turn = 0;
};
struct Fragment { unsigned a[4], b[2]; };
struct Warp { // what lanes exchange, in two places by turns: one barrier an exchange is enough
    Barrier all, quads[8];
    unsigned words[2][32], quad_words[2][32];
    Fragment fragments[2][32];
};
struct Copy { char *to; const char *from; };
struct Fiber {
    void *stack;
    char *shared; // the block's
    Warp *warp;
    int block, thread, lane;
    unsigned exchanges = 0, quad_exchanges = 0;
    bool done = false;
    std::vector<Copy> asked;
    std::vector<std::vector<Copy>> groups;
};
struct Index { unsigned x; };
static Index threadIdx, blockIdx, gridDim;
static Fiber *fiber;
static void *scheduler;
static std::vector<Barrier> barriers; // 8 a block
static void leave_cpu() { switch_fiber(&fiber->stack, scheduler); }
static void meet_at(Barrier &barrier, int count) {
    const unsigned turn = barrier.turn;
    if (++barrier.count == count)
        barrier.count = 0, barrier.turn++;
    else
        while (barrier.turn == turn) leave_cpu();
}
static void __syncthreads() { meet_at(barriers[fiber->block * 8], 256); }
static void __syncwarp() { meet_at(fiber->warp->all, 32); }
static void __nanosleep(int) { leave_cpu(); }
static unsigned __activemask() { return ~0u; }
static const unsigned *exchanged(unsigned word) {
    unsigned *words = fiber->warp->words[fiber->exchanges++ & 1];
    words[fiber->lane] = word;
    __syncwarp();
    return words;
}
static float __shfl_xor_sync(unsigned, float v, int way) {
    if (way >= 4) return __uint_as_float(exchanged(__float_as_uint(v))[fiber->lane ^ way]);
    // Within four lanes: the others of the warp may not take part.
    unsigned *words = fiber->warp->quad_words[fiber->quad_exchanges++ & 1];
    words[fiber->lane] = __float_as_uint(v);
    meet_at(fiber->warp->quads[fiber->lane / 4], 4);
    return __uint_as_float(words[fiber->lane ^ way]);
}
static unsigned __shfl_xor_sync(unsigned mask, unsigned v, int way) {
    return __float_as_uint(__shfl_xor_sync(mask, __uint_as_float(v), way));
}
static unsigned __shfl_sync(unsigned, unsigned v, int lane) { return exchanged(v)[lane]; }
static unsigned __shfl_up_sync(unsigned, unsigned v, int way) {
    const unsigned *words = exchanged(v);
    return words[std::max(0, fiber->lane - way)];
}
static int __popc(unsigned v) { return __builtin_popcount(v); }
static int __ffs(unsigned v) { return __builtin_ffs((int)v); }
static int __any_sync(unsigned, unsigned v) {
    const unsigned *words = exchanged(v != 0);
    return std::any_of(words, words + 32, [](unsigned word) { return word != 0; });
}
static unsigned __reduce_add_sync(unsigned, unsigned v) {
    const unsigned *words = exchanged(v);
    unsigned sum = 0;
    for (int lane = 0; lane < 32; lane++) sum += words[lane];
    return sum;
}
static unsigned __reduce_max_sync(unsigned, unsigned v) {
    const unsigned *words = exchanged(v);
    return *std::max_element(words, words + 32);
}
static unsigned __reduce_min_sync(unsigned, unsigned v) {
    const unsigned *words = exchanged(v);
    return *std::min_element(words, words + 32);
}
