// The tags of exchanged words. Part of one source, see shapes.cu.

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u32 tagged(u32 v, u32 mask, u32 tag) {
    return (v & ~mask) | tag;
} // what is not finite becomes finite
__device__ __forceinline__ void hand_on(u32 *at, float first, float second, u32 tag) {
    store_u(at, tagged(pack(first, second), PAIR, tag));
}
__device__ __forceinline__ void hand_on(u32 *at, float2 v, u32 tag) {
    store_u2(at, tagged(__float_as_uint(v.x), SINGLE, tag), tagged(__float_as_uint(v.y), SINGLE, tag));
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
__device__ __forceinline__ float warp_sum(float v) {
    for (int way = 16; way; way >>= 1) v += __shfl_xor_sync(~0u, v, way);
    return v;
}
// A norm's scale for this thread's two columns of the stream, to be asked for early.
__device__ __forceinline__ u32 next_scale(const u16 *scale) {
    return load_constant_u(scale + blockIdx.x * 8 + threadIdx.x % 4 * 2);
}
