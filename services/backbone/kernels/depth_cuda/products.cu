// Matrix products of a block: tensor-core tiles and the sum over its warps. Part of one source, see shapes.cu, in which
// it stands twice.

// The next piece: this lane's weights of 8 outputs and 128 of the inner dimension.
__device__ __forceinline__ void take(Ring &ring, uint4 (&b)[4]) {
    const u32 piece = ring.ring + ring.at * STAGE;
#pragma unroll
    for (int part = 0; part < 4; part++)
        b[part] = load_shared(piece + part * 512);
    if (++ring.at == STAGES) ring.at = 0;
}
// a: the four row fragments of those 128.
__device__ __forceinline__ void multiply(const uint4 (&b)[4], const u32 (*a)[AR], float (&c)[2][4]) {
#pragma unroll
    for (int part = 0; part < 4; part++) {
        const u32 *r = a[part];
        mma(c[0], r[0], HIGH ? r[AR - 4] : 0, r[1], HIGH ? r[AR - 3] : 0, b[part].x, b[part].y);
        mma(c[1], r[2], HIGH ? r[AR - 2] : 0, r[3], HIGH ? r[AR - 1] : 0, b[part].z, b[part].w);
    }
}

// A warp's part of one tile of 8 outputs, for the block to add up. parts: of the operation.
__device__ __forceinline__ void put_part(float *parts, int tile, const float (&c)[2][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
    float *to = parts + tile * TILE_PARTS + warp * B * 8 + lane % 4 * 2;
    if (row < B) *(float2 *)(to + row * 8) = make_float2(c[0][0] + c[1][0], c[0][1] + c[1][1]);
    if (HIGH && row + 8 < B) *(float2 *)(to + (row + 8) * 8) = make_float2(c[0][2] + c[1][2], c[0][3] + c[1][3]);
}
__device__ __forceinline__ float2 add_parts(const float *parts, int tile, int pair) { // pair: row * 4 + outputs / 2
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        const float2 part = *(const float2 *)(parts + tile * TILE_PARTS + warp * B * 8 + pair * 2);
        sum.x += part.x, sum.y += part.y;
    }
    return sum;
}

// The next N pieces into registers, before what they are multiplied with is there: that makes room in the ring.
template <int N> __device__ __forceinline__ void hold(Shared *s, Ring &ring, uint4 (&b)[N][4]) {
    ring.wait<N>();
#pragma unroll
    for (int each = 0; each < N; each++) take(ring, b[each]);
    ring.release<N>(s);
}
// Tiles of one piece that are held.
template <int N>
__device__ __forceinline__ void multiply_held(float *parts, const uint4 (&held)[N][4], const u32 (*a)[AR]) {
#pragma unroll
    for (int tile = 0; tile < N; tile++) {
        float c[2][4] = {};
        multiply(held[tile], a, c);
        put_part(parts, tile, c);
    }
}
// Tiles of one operation whose row fragments are all in registers, GROUP at a time.
template <int PIECES, int GROUP>
__device__ __forceinline__ void multiply_tiles(Shared *s, float *parts, Ring &ring, const u32 (*a)[AR], int tiles,
                                               int first = 0) {
#pragma unroll 1
    for (int tile = first; tile < tiles; tile += GROUP) {
        float c[GROUP][2][4] = {};
        uint4 b[GROUP * PIECES][4];
        ring.wait<GROUP * PIECES>();
#pragma unroll
        for (int each = 0; each < GROUP * PIECES; each++) take(ring, b[each]);
#pragma unroll
        for (int each = 0; each < GROUP * PIECES; each++) multiply(b[each], a + each % PIECES * 4, c[each / PIECES]);
        ring.release<GROUP * PIECES>(s);
#pragma unroll
        for (int each = 0; each < GROUP; each++) put_part(parts, tile + each, c[each]);
    }
}
// One row's fragments of 32 * PARTS columns, from shared memory: lanes 0 to 3 have them, the other rows are zeros.
template <int PARTS> __device__ __forceinline__ void row_fragments(Shared *s, u32 (*a)[AR], const u32 *row) {
    const int lane = threadIdx.x % 32;
    const u32 *from = lane < 4 ? row + lane * 4 : s->zeros;
    const int stride = lane < 4 ? 16 : 0;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        const uint4 v = *(const uint4 *)(from + part * stride);
        a[part][0] = v.x, a[part][1] = v.y, a[part][2] = v.z, a[part][3] = v.w;
    }
}
