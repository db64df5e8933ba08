// The kernel: a frame from the backbone's output to codes. Part of one source, see shapes.cu.

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_frame(const __grid_constant__ Args p) {
    Shared *s = (Shared *)shared_memory();
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, cta = blockIdx.x;
    const u32 frame = load_u(p.frame);
    if (tid < 4) s->zeros[tid] = 0;
    Ring ring;
    ring.start(s, p);
    float2 stream = make_float2(0, 0); // of thread 4 * row + pair: columns 8 * cta + 2 * pair and the next
    Draw draw;
    // Tags: of a frame's uses of each memory the next; over frames they go on from where they were.
    constexpr u32 LAYER_USES = K * LAYERS;
    const u32 frame_tag = frame & 1 ? 0 : PAIR;
    u32 x_tag = (frame * (2 * LAYER_USES)) & 1 ? 0 : PAIR, qkv_tag = (frame * LAYER_USES) & 1 ? 0 : SINGLE;
    u32 gated_tag = (frame * (LAYER_USES - 1)) & 1 ? 0 : PAIR, attended_tag = (frame * LAYER_USES) & 1 ? 0 : PAIR,
        drawn_tag = (frame * K) & 1 ? 0 : SINGLE;
    int turn = 0; // of two rooms for parts and squares
    auto room = [&]() {
        turn ^= 1;
        return s->parts + (ROOMY ? (16 + turn * FEW) * TILE_PARTS : 0);
    };
    auto leave = [&]() {
        if (!ROOMY) __syncthreads();
    };

    { // The backbone's row: its projection is the first row to read, and head 0 gives codebook 0's logits.
        u32 a[8][AR];
#pragma unroll
        for (int half = 0; half < (HIGH ? 2 : 1); half++)
#pragma unroll
            for (int part = 0; part < 8; part++) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (lane / 4 + half * 8 < B)
                    v = load_u4(p.hidden + (u64)(lane / 4 + half * 8) * WIDE + warp * 256 + part * 32 + lane % 4 * 8);
                a[part][half * 4] = v.x, a[part][half * 4 + 1] = v.y, a[part][half * 4 + 2] = v.z,
                               a[part][half * 4 + 3] = v.w;
            }
        float *parts = room();
        const u32 scale = next_scale(p.norms);
        multiply_tiles<2, 1>(s, parts, ring, a, 3);
        __syncthreads();
        if (tid < B * 4) hand_on_stream(p, stream = add_parts(parts, 0, tid), scale, x_tag);
#pragma unroll 1
        for (int each = tid; each < 2 * B * 4; each += THREADS) {
            const int tile = each / (B * 4), row = each % (B * 4) / 4;
            const float2 sum = add_parts(parts, tile + 1, each % (B * 4));
            u32 *to = p.logits + row * BINS + (tile * CTAS + cta) * 8 + each % 4 * 2;
            hand_on(to, make_float2(sum.x * DOWN, sum.y * DOWN), frame_tag & SINGLE);
        }
        leave();
    }

    int code = 0; // of the one row, if it is one
#pragma unroll 1
    for (int step = 0; step < K; step++) {
        const u16 *const table = p.table + (i64)(step - 1) * VOCAB * D;
        const u16 *rows[2] = {nullptr, nullptr}; // embeddings of this lane's rows
        if (step > 0) {
            auto embedding = [&](int row) {
                if (B == 1) return table + (u64)code * D;
                u32 word;
                do word = load_u(p.drawn + row);
                while (((word ^ drawn_tag) & SINGLE));
                return table + (u64)(word & 0xffff) * D;
            };
            if (B == 1 || lane / 4 < B) rows[0] = embedding(lane / 4);
            if (HIGH && lane / 4 + 8 < B) rows[1] = embedding(lane / 4 + 8);
            if (tid < B * 4) {
                const u32 pair = *(const u32 *)((B == 1 ? rows[0] : embedding(tid / 4)) + cta * 8 + tid % 4 * 2);
                stream = make_float2(low(pair), high(pair));
            }
            drawn_tag ^= SINGLE;
        }
#pragma unroll 1
        for (int layer = 0; layer < LAYERS; layer++) {
            const u16 *norms = p.norms + 2 * layer * D;
            Normed normed;
            Attention attention;
            constexpr int APART = CTAS / B; // every so many blocks one has a row's attention; with one row all have it
            const bool attends = B == 1 || (cta % APART == 0 && cta / APART < B);
            const int attended_row = B == 1 ? 0 : cta / APART;
            if (attends) attention.fetch(p, layer, attended_row, step);
            {
                float *parts = room();
                float (*squares)[16] = s->squares[turn];
                if (layer == 0 && step > 0)
                    normed.load_embeddings(s, squares, rows, norms);
                else
                    normed.load(s, squares, p, x_tag), x_tag ^= PAIR;
                const int tiles = (QKV / 8 - cta + CTAS - 1) / CTAS;
                multiply_tiles<1, 1>(s, parts, ring, normed.a, tiles);
                __syncthreads();
#pragma unroll 1
                for (int each = tid; each < tiles * B * 4; each += THREADS) {
                    const int tile = each / (B * 4), row = each % (B * 4) / 4;
                    const float2 sum = add_parts(parts, tile, each % (B * 4));
                    const float root = inverse_root(squares, row, p.eps);
                    u32 *to = p.qkv + row * QKV + (tile * CTAS + cta) * 8 + each % 4 * 2;
                    // The rows were times 2^-64 already.
#pragma unroll
                    for (int copy = 0; copy < QKV_COPIES; copy++)
                        hand_on(to + copy * QKV_WORDS, make_float2(sum.x * root, sum.y * root), qkv_tag);
                }
                leave();
            }
            u32 a[4][AR], scale = next_scale(norms + D);
            if (attends) attention.attend(s, p, attended_row, step, B > 1 || cta == 0, qkv_tag);
            if constexpr (B == 1) { // warp n's product reads head n
                qkv_tag ^= SINGLE;
                row_fragments<4>(s, a, s->attended[warp]);
            } else {
                if (attends) {
                    // Written by the warps that share a kv head, which have met.
                    const uint2 sum = *(const uint2 *)(s->attended[warp] + lane * 2);
                    u32 *to = p.attended + (attended_row * D + warp * HD) / 2 + lane * 2;
                    store_u(to, tagged(sum.x, PAIR, attended_tag)), store_u(to + 1, tagged(sum.y, PAIR, attended_tag));
                }
                qkv_tag ^= SINGLE;
                load_rows<4>(a, p.attended, D, warp * 128);
                settle_rows<4>(a, p.attended, D, warp * 128, attended_tag);
                attended_tag ^= PAIR;
            }
            {
                float *parts = room();
                multiply_tiles<1, 1>(s, parts, ring, a, 1);
                __syncthreads();
                if (tid < B * 4) {
                    const float2 sum = add_parts(parts, 0, tid);
                    stream.x += sum.x * UP, stream.y += sum.y * UP;
                    if (SHARES_KEYS && cta == 0 && step == 0 && layer == LAYERS - 1) fence();
                    hand_on_stream(p, stream, scale, x_tag);
                }
                leave();
            }
            {
                float (*squares)[16] = s->squares[turn ^= 1];
                normed.load(s, squares, p, x_tag), x_tag ^= PAIR;
                if (SHARES_KEYS && warp == 0 && step == 0 && layer == LAYERS - 1) fence();
                // Step 0 is for its keys and values. The last layer's attention and this exchange are for what follows:
                // every block has read its queries by now, so the next step may overwrite them.
                if (step == 0 && layer == LAYERS - 1) break;
                multiply_tiles<1, 4>(s, s->parts, ring, normed.a, 16);
                __syncthreads();
#pragma unroll 1
                for (int each = tid; each < 8 * B * 4; each += THREADS) {
                    const int tile = each / (B * 4), row = each % (B * 4) / 4;
                    const float root = inverse_root(squares, row, p.eps) * UP;
                    const float2 gate = add_parts(s->parts, 2 * tile, each % (B * 4)),
                                 up = add_parts(s->parts, 2 * tile + 1, each % (B * 4));
                    const float first = gate.x * root, second = gate.y * root;
                    // up is times 2^-64 still, as is to be handed on
                    const float scaled = root * DOWN;
                    hand_on(p.gated + (row * FF + (cta * 8 + tile) * 8) / 2 + each % 4,
                            first / (1.0f + __expf(-first)) * (up.x * scaled),
                            second / (1.0f + __expf(-second)) * (up.y * scaled), gated_tag);
                }
                leave();
            }
            {
                if (EARLY && layer == LAYERS - 1 && (cta < B || B == 1)) draw.prepare(p, B == 1 ? 0 : cta, step);
                float c[2][4] = {};
                const int column = warp * (FF / WARPS);
                scale = next_scale(norms + 2 * D);
                if constexpr (B == 1) {
                    constexpr int WORDS = FF / WARPS / 2, EACH = WORDS / 128;
                    uint4 v[EACH], first[1];
                    const u32 *from = p.gated + warp * WORDS + lane * 4, *const words[1] = {from};
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
#pragma unroll
                    for (int each = 0; each < EACH; each++)
                        *(uint4 *)(s->gated[warp] + each * 128 + lane * 4) = make_uint4(
                            v[each].x ^ gated_tag, v[each].y ^ gated_tag, v[each].z ^ gated_tag, v[each].w ^ gated_tag);
                    __syncwarp();
#pragma unroll 1
                    for (int piece = 0; piece < FF / WARPS / 128; piece += 2) {
                        u32 rows[8][AR];
                        uint4 b[2][4];
                        ring.wait<2>();
                        take(ring, b[0]), take(ring, b[1]);
                        row_fragments<8>(s, rows, s->gated[warp] + piece * 64);
                        multiply(b[0], rows, c), multiply(b[1], rows + 4, c);
                        ring.release<2>(s);
                    }
                } else {
                    constexpr int PARTS = HIGH ? 4 : 8, GROUPS = FF / WARPS / 32 / PARTS;
                    u32 rows[2][PARTS][AR];
                    load_rows<PARTS>(rows[0], p.gated, FF, column);
                    settle_rows<PARTS>(rows[0], p.gated, FF, column, gated_tag);
#pragma unroll
                    for (int group = 0; group < GROUPS; group++) {
                        const int next = column + (group + 1) * PARTS * 32;
                        if (group + 1 < GROUPS) load_rows<PARTS>(rows[(group + 1) & 1], p.gated, FF, next);
                        uint4 b[PARTS / 4][4];
                        ring.wait<PARTS / 4>();
#pragma unroll
                        for (int each = 0; each < PARTS / 4; each++) take(ring, b[each]);
#pragma unroll
                        for (int each = 0; each < PARTS / 4; each++) multiply(b[each], rows[group & 1] + each * 4, c);
                        ring.release<PARTS / 4>(s);
                        if (group + 1 < GROUPS) settle_rows<PARTS>(rows[(group + 1) & 1], p.gated, FF, next, gated_tag);
                    }
                }
                gated_tag ^= PAIR;
                float *parts = room();
                put_part(parts, 0, c);
                __syncthreads();
                if (tid < B * 4) {
                    const float2 sum = add_parts(parts, 0, tid);
                    stream.x += sum.x * UP, stream.y += sum.y * UP;
                    hand_on_stream(p, stream, scale, x_tag);
                }
                leave();
            }
        }
        u32 *logits = p.logits + (u64)step * B * BINS;
        if (step > 0) {
            Normed normed;
            float *parts = room();
            float (*squares)[16] = s->squares[turn];
            normed.load(s, squares, p, x_tag), x_tag ^= PAIR;
            multiply_tiles<1, 2>(s, parts, ring, normed.a, 2);
            __syncthreads();
#pragma unroll 1
            for (int each = tid; each < 2 * B * 4; each += THREADS) {
                const int tile = each / (B * 4), row = each % (B * 4) / 4;
                const float2 sum = add_parts(parts, tile, each % (B * 4));
                const float root = inverse_root(squares, row, p.eps);
                if (SHARES_KEYS && cta == 0) fence();
                u32 *to = logits + row * BINS + (tile * CTAS + cta) * 8 + each % 4 * 2;
                hand_on(to, make_float2(sum.x * root, sum.y * root), frame_tag & SINGLE);
            }
            leave();
        }
        if (cta < B || B == 1) {
            const int row = B == 1 ? 0 : cta;
            if (!EARLY || step == 0) draw.prepare(p, row, step);
            code = draw.take(s, logits + row * BINS, frame_tag & SINGLE);
            if (p.forced) code = (int)p.forced[row * K + step];
            if (cta == row && tid == 0) {
                p.codes[row * K + step] = code;
                if (B > 1) store_u(p.drawn + row, code | drawn_tag);
            }
        }
    }
    if (cta == 0 && tid == 0) *p.frame = frame + 1;
}
