// Loads, stores and the tags of exchanged words. Part of one source, see shapes.cu.

__device__ __forceinline__ u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }
__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u32 pack(float first, float second) { // two bf16, the first in the lower half
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(second), "f"(first));
    return v;
}
__device__ __forceinline__ uint4 load_u4(const void *at) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}
__device__ __forceinline__ uint2 load_u2(const void *at) {
    uint2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at) : "memory");
    return v;
}
__device__ __forceinline__ u32 load_u(const void *at) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
__device__ __forceinline__ void store_u(u32 *at, u32 v) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}
// Orders what this thread has written or seen before with what it writes or reads after, among all blocks.
__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ __forceinline__ u32 tagged(u32 v, u32 mask, u32 tag) {
    return (v & ~mask) | tag;
} // what is not finite becomes finite
__device__ __forceinline__ void hand_on(u32 *at, float first, float second, u32 tag) {
    store_u(at, tagged(pack(first, second), PAIR, tag));
}
__device__ __forceinline__ void hand_on(u32 *at, float2 v, u32 tag) {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(at),
                 "r"(tagged(__float_as_uint(v.x), SINGLE, tag)), "r"(tagged(__float_as_uint(v.y), SINGLE, tag))
                 : "memory");
}
__device__ __forceinline__ u32 stale(uint4 v, u32 tag, u32 mask) {
    return ((v.x ^ tag) | (v.y ^ tag) | (v.z ^ tag) | (v.w ^ tag)) & mask;
}
// Until all of a warp's words are this use's.
template <int N>
__device__ __forceinline__ void poll(uint4 (&words)[N], const u32 *const (&from)[N], u32 tag, u32 mask) {
    u32 bad;
    do {
        bad = 0;
#pragma unroll
        for (int each = 0; each < N; each++) words[each] = load_u4(from[each]);
#pragma unroll
        for (int each = 0; each < N; each++) bad |= stale(words[each], tag, mask);
    } while (__any_sync(~0u, bad));
}
__device__ __forceinline__ float single(u32 word, u32 tag) { return __uint_as_float(word ^ tag) * UP; }
__device__ __forceinline__ uint4 load_constant(const void *at) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}
__device__ __forceinline__ float warp_sum(float v) {
    for (int way = 16; way; way >>= 1) v += __shfl_xor_sync(~0u, v, way);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
    for (int way = 16; way; way >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, way));
    return v;
}
