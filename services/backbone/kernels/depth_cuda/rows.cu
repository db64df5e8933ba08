// Rows of the batch as fragments of mma, from words that blocks exchange. Part of one source, see shapes.cu, in which
// it stands twice.

// Row fragments of `PARTS` times 32 columns of what is handed on as pairs of bf16 [B, width], from `column` on.
template <int PARTS> __device__ __forceinline__ void load_rows(u32 (*a)[AR], const u32 *from, int width, int column) {
    const int lane = threadIdx.x % 32, row = lane / 4;
    from += row * (width / 2) + column / 2 + lane % 4 * 4; // what comes on top is known to the compiler
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (row + half * 8 < B) v = load_u4(from + half * 4 * width + part * 16);
            a[part][half * 4] = v.x, a[part][half * 4 + 1] = v.y, a[part][half * 4 + 2] = v.z,
                           a[part][half * 4 + 3] = v.w;
        }
}
// Ask again until all is there; then take the tags off.
template <int PARTS>
__device__ __forceinline__ void settle_rows(u32 (*a)[AR], const u32 *from, int width, int column, u32 tag) {
    const int row = threadIdx.x % 32 / 4;
    for (;;) {
        u32 bad = 0;
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int each = 0; each < AR; each++)
                if (row + each / 4 * 8 < B) bad |= (a[part][each] ^ tag) & PAIR;
        if (!bad) break;
        __nanosleep(32);
        load_rows<PARTS>(a, from, width, column);
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int each = 0; each < AR; each++)
            if (row + each / 4 * 8 < B) a[part][each] ^= tag;
}

// Row fragments of 128 columns of the stream, times the norm's scale, and what a warp knows of the sums of squares.
struct Normed {
    u32 a[4][AR];
    __device__ __forceinline__ void load(Shared *s, float (*squares)[SUMS], const Exchange &e, u32 tag) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
        if constexpr (B == 1) { // lanes 0 to 15 have eight columns each, 16 to 19 four sums of squares
            const u32 mask = lane < 16 ? PAIR : SINGLE;
            const int copy = blockIdx.x % COPIES;
            const u32 *from = lane < 16 ? e.x + copy * X_WORDS + warp * 64 + lane * 4
                                        : e.squares + copy * SQUARES_WORDS + warp * 16 + (lane - 16) * 4;
            tag &= mask;
            uint4 v = make_uint4(tag, tag, tag, tag);
            if (lane < 20) do
                    v = load_u4(from);
                while ((stale(v, tag, mask)));
            __syncwarp();
            float sum = 0;
            if (lane < 16)
                *(uint4 *)(s->stream[warp] + lane * 4) = make_uint4(v.x ^ tag, v.y ^ tag, v.z ^ tag, v.w ^ tag);
            else
                sum = single(v.x, tag) + single(v.y, tag) + single(v.z, tag) + single(v.w, tag);
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (lane == 16) squares[warp][0] = sum;
            __syncwarp();
            row_fragments<4>(s, a, s->stream[warp]);
            return;
        }
        uint4 sums[HALVES];
        const u32 *const x = e.x + blockIdx.x % COPIES * X_WORDS, *const all_squares =
                                                                      e.squares + blockIdx.x % COPIES * SQUARES_WORDS;
        load_rows<4>(a, x, D, warp * 128);
        for (;;) {
            u32 bad = 0;
#pragma unroll
            for (int half = 0; half < HALVES; half++)
                if (row + half * 8 < B) {
                    sums[half] = load_u4(all_squares + (row + half * 8) * (D / 8) + warp * 16 + lane % 4 * 4);
                    bad |= stale(sums[half], tag & SINGLE, SINGLE);
                }
            if (!(bad)) break;
            __nanosleep(32);
        }
        settle_rows<4>(a, x, D, warp * 128, tag);
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            float sum = 0;
            if (row + half * 8 < B)
                sum = single(sums[half].x, tag & SINGLE) + single(sums[half].y, tag & SINGLE) +
                      single(sums[half].z, tag & SINGLE) + single(sums[half].w, tag & SINGLE);
            put_squares(squares, half, sum);
        }
    }
    __device__ __forceinline__ static void put_squares(float (*squares)[SUMS], int half, float sum) {
        const int lane = threadIdx.x % 32;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0) squares[threadIdx.x / 32][lane / 4 + half * 8] = sum;
    }
};
__device__ __forceinline__ float inverse_root(const float (*squares)[SUMS], int row, float eps) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += squares[warp][row];
    return rsqrtf(sum / D + eps);
}
// Two columns of the stream, from the threads that own them, to all blocks. scale: of the norm that comes next.
__device__ __forceinline__ void hand_on_stream(const Exchange &e, float2 x, u32 by, u32 tag) {
    const int row = threadIdx.x / 4, pair = threadIdx.x % 4;
    float sum = x.x * x.x + x.y * x.y;
    const float first = x.x * DOWN * low(by), second = x.y * DOWN * high(by);
#pragma unroll
    for (int copy = 0; copy < COPIES; copy++)
        hand_on(e.x + copy * X_WORDS + (row * D + blockIdx.x * 8) / 2 + pair, first, second, tag);
    const u32 mask = __activemask();
    sum += __shfl_xor_sync(mask, sum, 1);
    sum += __shfl_xor_sync(mask, sum, 2);
    // Pair n writes copy n.
    static_assert(COPIES == 4, "copies");
    store_u(e.squares + pair * SQUARES_WORDS + row * (D / 8) + blockIdx.x,
            tagged(__float_as_uint(sum * DOWN), SINGLE, tag & SINGLE));
}
// The sums of `down` for the two columns that this thread owns, from each block that has a part of its inner dimension.
__device__ __forceinline__ float2 from_inbox(const Exchange &e, u32 tag) {
    const u32 *const from = e.inbox + (blockIdx.x * RANKS * B * 4 + threadIdx.x) * 2;
    uint2 got[RANKS];
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int each = 0; each < RANKS; each++) got[each] = load_u2(from + each * B * 8);
#pragma unroll
    for (int each = 0; each < RANKS; each++) {
        while (((got[each].x ^ tag) | (got[each].y ^ tag)) & SINGLE) got[each] = load_u2(from + each * B * 8);
        sum.x += __uint_as_float(got[each].x ^ tag), sum.y += __uint_as_float(got[each].y ^ tag);
    }
    return sum;
}
