// The layers' products for one set of rows. Part of one source, see shapes.cu, in which it stands once for each.

struct Layers {
    Shared *s;
    const Args &p;
    const Exchange &e;
    Ring &ring;
    u32 x_tag, qkv_tag, attended_tag, gated_tag; // of the next use
    float2 stream = make_float2(0, 0);           // of thread 4 * row + pair: columns 8 * block + 2 * pair and the next
    int turn = 0;                                // of two rooms for parts and squares

    __device__ __forceinline__ float *room() {
        turn ^= 1;
        return s->parts + (ROOMY ? (16 + turn * FEW) * TILE_PARTS : 0);
    }
    __device__ __forceinline__ void leave() const {
        if (!ROOMY) __syncthreads();
    }
    __device__ __forceinline__ void add_to_stream(float2 sum, u32 scale) {
        stream.x += sum.x * UP, stream.y += sum.y * UP;
        hand_on_stream(e, stream, scale, x_tag);
    }
    __device__ __forceinline__ void make_qkv() {
        const int cta = blockIdx.x, tiles = (QKV / 8 - cta + CTAS - 1) / CTAS;
        Normed normed;
        float *parts = room();
        float (*squares)[SUMS] = (float(*)[SUMS])s->squares[turn];
        normed.load(s, squares, e, x_tag), x_tag ^= PAIR;
        multiply_tiles<1, 1>(s, parts, ring, normed.a, tiles);
        __syncthreads();
#pragma unroll 1
        for (int each = threadIdx.x; each < tiles * B * 4; each += THREADS) {
            const int tile = each / (B * 4), row = each % (B * 4) / 4;
            const float2 sum = add_parts(parts, tile, each % (B * 4));
            const float root = inverse_root(squares, row, p.eps);
            u32 *to = e.qkv + row * QKV + (tile * CTAS + cta) * 8 + each % 4 * 2;
            // The rows were times 2^-64 already.
#pragma unroll
            for (int copy = 0; copy < QKV_COPIES; copy++)
                hand_on(to + copy * QKV_WORDS, make_float2(sum.x * root, sum.y * root), qkv_tag);
        }
        leave();
    }
    __device__ __forceinline__ void read_attended(u32 (*a)[AR]) {
        const int warp = threadIdx.x / 32;
        load_rows<4>(a, e.attended, D, warp * 128);
        settle_rows<4>(a, e.attended, D, warp * 128, attended_tag);
        attended_tag ^= PAIR;
    }
    // The rest of a layer. a: what attention gives, this warp's columns. scale: of the MLP's norm. next: the norm that
    // comes next. meanwhile: what is done while other blocks' columns of the MLP are on their way.
    template <class Meanwhile>
    __device__ __forceinline__ void finish(u32 (*a)[AR], u32 scale, const u16 *next, Meanwhile meanwhile) {
        const int tid = threadIdx.x, warp = tid / 32, cta = blockIdx.x;
        const int rank = cta % RANKS; // of the blocks that share the inner dimension of `down`
        {
            float *parts = room();
            multiply_tiles<1, 1>(s, parts, ring, a, 1);
            __syncthreads();
            if (tid < B * 4) add_to_stream(add_parts(parts, 0, tid), scale);
            leave();
        }
        {
            uint4 held[AHEAD ? AHEAD : 1][4];
            float (*squares)[SUMS] = (float(*)[SUMS])s->squares[turn ^= 1];
            Normed normed;
            if constexpr (AHEAD > 0) hold(s, ring, held);
            normed.load(s, squares, e, x_tag), x_tag ^= PAIR;
            auto send = [&](int first) { // CHUNK tiles: gate and up in turn
#pragma unroll 1
                for (int each = tid; each < CHUNK / 2 * B * 4; each += THREADS) {
                    const int tile = each / (B * 4), row = each % (B * 4) / 4;
                    const float root = inverse_root(squares, row, p.eps) * UP;
                    const float2 gate = add_parts(s->parts, 2 * tile, each % (B * 4)),
                                 up = add_parts(s->parts, 2 * tile + 1, each % (B * 4));
                    const float gates[2] = {gate.x * root, gate.y * root};
                    // up is times 2^-64 still, as is to be handed on
                    const float scaled = root * DOWN;
                    const int columns = rank * (FF / RANKS) + (cta / RANKS * 8 + first / 2 + tile) * 8;
                    hand_on(e.gated + (row * FF + columns) / 2 + each % 4,
                            gates[0] / (1.0f + __expf(-gates[0])) * (up.x * scaled),
                            gates[1] / (1.0f + __expf(-gates[1])) * (up.y * scaled), gated_tag);
                }
            };
            if constexpr (AHEAD > 0) multiply_held(s->parts, held, normed.a);
            multiply_tiles<1, 4>(s, s->parts, ring, normed.a, CHUNK, AHEAD);
            __syncthreads();
            send(0);
            if constexpr (CHUNK < 16) { // two chunks
                __syncthreads();
                multiply_tiles<1, 4>(s, s->parts, ring, normed.a, CHUNK);
                __syncthreads();
                send(CHUNK);
            }
            leave();
        }
        meanwhile();
        scale = next_scale(next);
        uint4 held[AHEAD ? AHEAD : 1][4];
        if constexpr (AHEAD > 0) hold(s, ring, held);
        if constexpr (SPLITS) {
            const int from = rank * (FF / RANKS) + warp * 128;
            u32 rows[4][AR];
            load_rows<4>(rows, e.gated, FF, from);
            settle_rows<4>(rows, e.gated, FF, from, gated_tag);
            if (ROOMY) __syncthreads(); // all have added up the parts of gate and up
            if constexpr (AHEAD > 0) multiply_held(s->parts, held, rows);
            multiply_tiles<1, 4>(s, s->parts, ring, rows, RANKS, AHEAD);
            __syncthreads();
#pragma unroll 1
            for (int each = tid; each < RANKS * B * 4; each += THREADS) {
                const int owner = cta - rank + each / (B * 4), pair = each % (B * 4);
                hand_on(e.inbox + ((owner * RANKS + rank) * B * 4 + pair) * 2,
                        add_parts(s->parts, each / (B * 4), pair), gated_tag & SINGLE);
            }
            if (tid < B * 4) add_to_stream(from_inbox(e, gated_tag & SINGLE), scale);
        } else {
            float c[2][4] = {};
            if constexpr (B == 1)
                multiply_gated_row(held, c);
            else
                multiply_gated(c);
            float *parts = room();
            put_part(parts, 0, c);
            __syncthreads();
            if (tid < B * 4) add_to_stream(add_parts(parts, 0, tid), scale);
        }
        gated_tag ^= PAIR;
        leave();
    }
    // `down` where a block has all of the inner dimension, a warp an eighth.
    template <int N> __device__ __forceinline__ void multiply_gated_row(const uint4 (&held)[N][4], float (&c)[2][4]) {
        constexpr int WORDS = FF / WARPS / 2, EACH = WORDS / 128;
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        uint4 v[EACH], first[1];
        const u32 *from = e.gated + warp * WORDS + lane * 4, *const words[1] = {from};
        poll(first, words, gated_tag, PAIR);
        v[0] = first[0];
#pragma unroll
        for (int each = 1; each < EACH; each++) v[each] = load_u4(from + each * 128);
        for (;;) { // ask again for what was not there
            u32 bad = 0;
#pragma unroll
            for (int each = 1; each < EACH; each++)
                if (stale(v[each], gated_tag, PAIR)) v[each] = load_u4(from + each * 128), bad = 1;
            if (!__any_sync(~0u, bad)) break;
        }
        // Four pieces at a time.
        auto keep_half = [&](int half) {
            __syncwarp();
#pragma unroll
            for (int each = 0; each < EACH / 2; each++) {
                const uint4 it = v[half * EACH / 2 + each];
                *(uint4 *)(s->gated[warp] + each * 128 + lane * 4) =
                    make_uint4(it.x ^ gated_tag, it.y ^ gated_tag, it.z ^ gated_tag, it.w ^ gated_tag);
            }
            __syncwarp();
        };
        auto multiply_two = [&](int piece, const uint4 (&first)[4], const uint4 (&second)[4]) {
            u32 rows[8][AR];
            row_fragments<8>(s, rows, s->gated[warp] + piece * 64);
            multiply(first, rows, c), multiply(second, rows + 4, c);
        };
        static_assert(N == 4, "half of the pieces");
        keep_half(0);
        multiply_two(0, held[0], held[1]), multiply_two(2, held[2], held[3]);
        keep_half(1);
#pragma unroll 1
        for (int piece = 0; piece < 4; piece += 2) {
            uint4 b[2][4];
            hold(s, ring, b);
            multiply_two(piece, b[0], b[1]);
        }
    }
    __device__ __forceinline__ void multiply_gated(float (&c)[2][4]) {
        constexpr int PARTS = 8, GROUPS = FF / WARPS / 32 / PARTS;
        const int column = threadIdx.x / 32 * (FF / WARPS);
        u32 rows[2][PARTS][AR];
        load_rows<PARTS>(rows[0], e.gated, FF, column);
        settle_rows<PARTS>(rows[0], e.gated, FF, column, gated_tag);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const int next = column + (group + 1) * PARTS * 32;
            if (group + 1 < GROUPS) load_rows<PARTS>(rows[(group + 1) & 1], e.gated, FF, next);
            uint4 b[PARTS / 4][4];
            hold(s, ring, b);
#pragma unroll
            for (int each = 0; each < PARTS / 4; each++) multiply(b[each], rows[group & 1] + each * 4, c);
            if (group + 1 < GROUPS) settle_rows<PARTS>(rows[(group + 1) & 1], e.gated, FF, next, gated_tag);
        }
    }
    // Of the last ROWS rows: `to` [ROWS, BINS].
    __device__ __forceinline__ void make_logits(u32 *to, u32 tag) {
        Normed normed;
        float *parts = room();
        float (*squares)[SUMS] = (float(*)[SUMS])s->squares[turn];
        normed.load(s, squares, e, x_tag), x_tag ^= PAIR;
        multiply_tiles<1, 2>(s, parts, ring, normed.a, 2);
        __syncthreads();
#pragma unroll 1
        for (int each = threadIdx.x; each < 2 * ROWS * 4; each += THREADS) {
            const int tile = each / (ROWS * 4), row = each % (ROWS * 4) / 4, of = B - ROWS + row;
            const float2 sum = add_parts(parts, tile, of * 4 + each % 4);
            const float root = inverse_root(squares, of, p.eps);
            if (SHARES_KEYS && blockIdx.x == 0) fence();
            hand_on(to + row * BINS + (tile * CTAS + blockIdx.x) * 8 + each % 4 * 2,
                    make_float2(sum.x * root, sum.y * root), tag);
        }
        leave();
    }
};
