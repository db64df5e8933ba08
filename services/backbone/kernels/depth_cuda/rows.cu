// Rows of the batch as fragments of mma: from words that blocks exchange, from shared memory, from embeddings. Part of one source, see shapes.cu.

// Row fragments of `PARTS` times 32 columns of what is handed on as pairs of bf16 [B, width], from `column` on.
template <int PARTS> __device__ __forceinline__ void load_rows(u32 (*a)[AR], const u32 *from, int width, int column) {
    const int lane = threadIdx.x % 32, row = lane / 4;
    from += row * (width / 2) + column / 2 + lane % 4 * 4; // what comes on top is known to the compiler
#pragma unroll
    for (int half = 0; half < (HIGH ? 2 : 1); half++)
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
        if (!(bad)) break;
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
    __device__ __forceinline__ void load(Shared *s, float (*squares)[16], const Args &p, u32 tag) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
        if constexpr (B == 1) { // lanes 0 to 15 have eight columns each, 16 to 19 four sums of squares
            const u32 mask = lane < 16 ? PAIR : SINGLE;
            const int copy = blockIdx.x % COPIES;
            const u32 *from = lane < 16 ? p.x + copy * X_WORDS + warp * 64 + lane * 4
                                        : p.squares + copy * SQUARES_WORDS + warp * 16 + (lane - 16) * 4;
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
        uint4 sums[2];
        const u32 *const x = p.x + blockIdx.x % COPIES * X_WORDS, *const all_squares =
                                                                      p.squares + blockIdx.x % COPIES * SQUARES_WORDS;
        load_rows<4>(a, x, D, warp * 128);
        for (;;) {
            u32 bad = 0;
#pragma unroll
            for (int half = 0; half < (HIGH ? 2 : 1); half++)
                if (row + half * 8 < B) {
                    sums[half] = load_u4(all_squares + (row + half * 8) * (D / 8) + warp * 16 + lane % 4 * 4);
                    bad |= stale(sums[half], tag & SINGLE, SINGLE);
                }
            if (!(bad)) break;
            __nanosleep(32);
        }
        settle_rows<4>(a, x, D, warp * 128, tag);
#pragma unroll
        for (int half = 0; half < (HIGH ? 2 : 1); half++) {
            float sum = 0;
            if (row + half * 8 < B)
                sum = single(sums[half].x, tag & SINGLE) + single(sums[half].y, tag & SINGLE) +
                      single(sums[half].z, tag & SINGLE) + single(sums[half].w, tag & SINGLE);
            put_squares(squares, half, sum);
        }
    }
    __device__ __forceinline__ static void put_squares(float (*squares)[16], int half, float sum) {
        const int lane = threadIdx.x % 32;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0) squares[threadIdx.x / 32][lane / 4 + half * 8] = sum;
    }
    // The same of rows of embeddings, [D] bf16 each. scale: the norm's, [D].
    __device__ __forceinline__ void load_embeddings(Shared *s, float (*squares)[16], const u16 *const (&rows)[2],
                                                    const u16 *scale) {
        const int lane = threadIdx.x % 32, row = lane / 4, column = threadIdx.x / 32 * 128 + lane % 4 * 8;
        if constexpr (B == 1) {
            const int warp = threadIdx.x / 32;
            float sum = 0;
            if (lane < 16) {
                const uint4 v = load_constant(rows[0] + warp * 128 + lane * 8),
                            by = load_constant(scale + warp * 128 + lane * 8);
                const u32 x[4] = {v.x, v.y, v.z, v.w}, y[4] = {by.x, by.y, by.z, by.w};
                u32 out[4];
#pragma unroll
                for (int each = 0; each < 4; each++) {
                    const float l = low(x[each]), h = high(x[each]);
                    out[each] = pack(l * DOWN * low(y[each]), h * DOWN * high(y[each]));
                    sum += l * l + h * h;
                }
                *(uint4 *)(s->stream[warp] + lane * 4) = make_uint4(out[0], out[1], out[2], out[3]);
            }
            sum = warp_sum(sum);
            if (lane == 0) squares[warp][0] = sum;
            __syncwarp();
            row_fragments<4>(s, a, s->stream[warp]);
            return;
        }
#pragma unroll
        for (int half = 0; half < (HIGH ? 2 : 1); half++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (row + half * 8 < B) v = load_constant(rows[half] + column + part * 32);
                u32 *r = a[part] + half * 4;
                r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
            }
        float sums[2] = {};
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const uint4 by = load_constant(scale + column + part * 32);
            const u32 y[4] = {by.x, by.y, by.z, by.w};
#pragma unroll
            for (int each = 0; each < AR; each++) {
                const float l = low(a[part][each]), h = high(a[part][each]);
                a[part][each] = pack(l * DOWN * low(y[each % 4]), h * DOWN * high(y[each % 4]));
                sums[each / 4] += l * l + h * h;
            }
        }
#pragma unroll
        for (int half = 0; half < (HIGH ? 2 : 1); half++) put_squares(squares, half, sums[half]);
    }
};
__device__ __forceinline__ float inverse_root(const float (*squares)[16], int row, float eps) {
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += squares[warp][row];
    return rsqrtf(sum / D + eps);
}
// Two columns of the stream, from the threads that own them, to all blocks. scale: of the norm that comes next.
__device__ __forceinline__ u32 next_scale(const u16 *scale) { // this thread's two columns, to be asked for early
    return load_constant_u(scale + blockIdx.x * 8 + threadIdx.x % 4 * 2);
}
__device__ __forceinline__ void hand_on_stream(const Args &p, float2 x, u32 by, u32 tag) {
    const int row = threadIdx.x / 4, pair = threadIdx.x % 4;
    float sum = x.x * x.x + x.y * x.y;
    const float first = x.x * DOWN * low(by), second = x.y * DOWN * high(by);
#pragma unroll
    for (int copy = 0; copy < COPIES; copy++)
        hand_on(p.x + copy * X_WORDS + (row * D + blockIdx.x * 8) / 2 + pair, first, second, tag);
    const u32 mask = __activemask();
    sum += __shfl_xor_sync(mask, sum, 1);
    sum += __shfl_xor_sync(mask, sum, 2);
    // Pair n writes copy n.
    static_assert(COPIES == 4, "copies");
    store_u(p.squares + pair * SQUARES_WORDS + row * (D / 8) + blockIdx.x,
            tagged(__float_as_uint(sum * DOWN), SINGLE, tag & SINGLE));
}
