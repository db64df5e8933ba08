// The kernel: a frame from the backbone's output to codes. Part of one source, see shapes.cu.

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_frame(const __grid_constant__ Args p) {
    Shared *s = (Shared *)shared_memory();
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, cta = blockIdx.x;
    const u32 frame = load_u(p.frame);
    if (tid < 4) s->zeros[tid] = 0;
    Ring ring;
    ring.start(s, p);
    Draw draw;
    // Tags: of a frame's uses of each memory the next; over frames they go on from where they were. STEPS: those of all
    // layers, without the first layer's qkv. ALONE: layers that step 0 ends, where it is a step of its own.
    constexpr u32 STEPS = JOINS ? K - 2 : K - 1, ALONE = JOINS ? 0 : LAYERS - 1;
    constexpr u32 X_USES = 1 + 2 * ALONE + 2 * LAYERS * STEPS, QKV_USES = 1 + ALONE + (LAYERS - 1) * STEPS,
                  MLP_USES = ALONE + LAYERS * STEPS;
    auto first_tag = [&](u32 uses, u32 tag) { return (frame * uses) & 1 ? 0 : tag; };
    const u32 frame_tag = first_tag(1, PAIR);
    u32 drawn_tag = first_tag(K, SINGLE);
    plain::Layers rows = {s, p, p.rows, ring, first_tag(X_USES, PAIR), first_tag(QKV_USES, SINGLE),
                          first_tag(MLP_USES, PAIR), first_tag(MLP_USES, PAIR)};
    static_assert(JOINS || !SHARES_KEYS, "the fences");
    // Every so many blocks one has a row's attention and draws its codes; with one row all do.
    constexpr int APART = CTAS / ROWS;
    const bool attends = ROWS == 1 || (cta % APART == 0 && cta / APART < ROWS);
    const int attended_row = ROWS == 1 ? 0 : cta / APART;

    if (attends && tid == 0) draw.begin(s, p, attended_row);

    float2 first_logits[2]; // codebook 0's, of thread 4 * row + pair
    { // The backbone's row: its projection is the first row to read, and head 0 gives codebook 0's logits.
        using namespace plain;
        u32 a[8][AR];
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int part = 0; part < 8; part++) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (lane / 4 + half * 8 < B)
                    v = load_u4(p.hidden + (u64)(lane / 4 + half * 8) * WIDE + warp * 256 + part * 32 + lane % 4 * 8);
                a[part][half * 4] = v.x, a[part][half * 4 + 1] = v.y, a[part][half * 4 + 2] = v.z,
                               a[part][half * 4 + 3] = v.w;
            }
        float *parts = s->parts;
        const u32 scale = next_scale(p.norms);
        multiply_tiles<2, 1>(s, parts, ring, a, 3);
        __syncthreads();
        if (tid < B * 4) {
            hand_on_stream(p.rows, rows.stream = add_parts(parts, 0, tid), scale, rows.x_tag);
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                const float2 sum = add_parts(parts, 1 + tile, tid);
                first_logits[tile] = make_float2(sum.x * DOWN, sum.y * DOWN);
            }
        }
        rows.leave();
    }

    int code = 0; // of this block's row
    auto logits_of = [&](int step) { return p.logits + (u64)step * ROWS * BINS; };
    auto send_first_logits = [&]() {
        if (tid < ROWS * 4)
#pragma unroll
            for (int tile = 0; tile < 2; tile++)
                hand_on(logits_of(0) + tid / 4 * BINS + (tile * CTAS + cta) * 8 + tid % 4 * 2, first_logits[tile],
                        frame_tag & SINGLE);
    };
    auto prepare = [&](int step) { draw.prepare(s, step); };
    auto draw_code = [&](int step) {
        code = draw.take(s, logits_of(step) + attended_row * BINS, frame_tag & SINGLE);
        if (p.forced) code = (int)p.forced[attended_row * K + step];
        if ((ROWS > 1 || cta == 0) && tid == 0) {
            p.codes[attended_row * K + step] = code;
            if (ROWS > 1) store_u(p.drawn + attended_row, code | drawn_tag);
        }
    };
    // The embedding of the code that was drawn last for a row: two columns.
    auto embedding = [&](int step, int row) {
        u32 drawn = code;
        if (ROWS > 1) {
            do drawn = load_u(p.drawn + row);
            while ((drawn ^ drawn_tag) & SINGLE);
            drawn &= 0xffff;
        }
        const u32 pair = load_constant_u(p.table + ((u64)(step - 1) * VOCAB + drawn) * D + cta * 8 + tid % 4 * 2);
        return make_float2(low(pair), high(pair));
    };
    auto known_qkv = [&](int step) { return p.first_qkv + ((u64)(step - 1) * VOCAB + code) * QKV; };

    if constexpr (JOINS) { // Positions 0 and 1 of each row: rows `row` and ROWS + row.
        joined::Layers both = {s, p, p.both, ring, first_tag(2 * LAYERS, PAIR), first_tag(LAYERS - 1, SINGLE),
                               first_tag(LAYERS, PAIR), first_tag(LAYERS, PAIR)};
        both.stream = rows.stream;
        send_first_logits();
        const u32 first_qkv_tag = rows.qkv_tag;
        rows.make_qkv();
        rows.qkv_tag ^= SINGLE;
        if (attends) prepare(0), draw_code(0);
        if (tid / 4 >= ROWS && tid / 4 < 2 * ROWS) both.stream = embedding(1, tid / 4 - ROWS);
        drawn_tag ^= SINGLE;
#pragma unroll 1
        for (int layer = 0; layer < LAYERS; layer++) {
            const u16 *norms = p.norms + 2 * layer * D;
            u32 a[4][joined::AR];
            if (layer > 0) both.make_qkv();
            const u32 scale = next_scale(norms + D);
            if (ROWS == 1 ? cta == 0 : attends) {
                const bool is_known = layer == 0;
                attend_both(p, layer, attended_row, (is_known ? p.rows.qkv : p.both.qkv) + attended_row * QKV,
                            is_known ? first_qkv_tag : both.qkv_tag, p.both.qkv + (ROWS + attended_row) * QKV,
                            both.qkv_tag, is_known ? known_qkv(1) : nullptr, both.attended_tag);
            }
            if (layer > 0) both.qkv_tag ^= SINGLE;
            both.read_attended(a);
            both.finish(a, scale, norms + 2 * D, [&]() {
                if (layer == LAYERS - 1 && attends) prepare(1);
            });
        }
        both.make_logits(logits_of(1), frame_tag & SINGLE);
        if (attends) draw_code(1);
    }
#pragma unroll 1
    for (int step = JOINS ? 2 : 0; step < K; step++) {
        if (step > 0) {
            if (tid < ROWS * 4) rows.stream = embedding(step, tid / 4);
            drawn_tag ^= SINGLE;
        }
#pragma unroll 1
        for (int layer = 0; layer < LAYERS; layer++) {
            const u16 *norms = p.norms + 2 * layer * D;
            const bool is_known = layer == 0 && step > 0;
            Attention attention;
            if (attends) attention.fetch(p, layer, attended_row, step);
            if (!is_known) rows.make_qkv();
            const u32 scale = next_scale(norms + D);
            if (attends)
                attention.receive(s, p, attended_row, step, ROWS > 1 || cta == 0, rows.qkv_tag,
                                  is_known ? known_qkv(step) : nullptr);
            if (!is_known) rows.qkv_tag ^= SINGLE;
            if (step == 0 && layer == LAYERS - 1) break; // Step 0 is for its keys and values.
            if (attends) attention.attend(s, step);
            u32 a[4][plain::AR];
            if constexpr (ROWS == 1) { // warp n's product reads head n
                plain::row_fragments<4>(s, a, s->attended[warp]);
            } else {
                if (attends) {
                    // Written by the warps that share a kv head, which have met.
                    const uint2 sum = *(const uint2 *)(s->attended[warp] + lane * 2);
                    u32 *to = p.rows.attended + (attended_row * D + warp * HD) / 2 + lane * 2;
                    store_u(to, tagged(sum.x, PAIR, rows.attended_tag));
                    store_u(to + 1, tagged(sum.y, PAIR, rows.attended_tag));
                }
                rows.read_attended(a);
            }
            rows.finish(a, scale, norms + 2 * D, [&]() {
                if (layer == LAYERS - 1 && attends) prepare(step);
            });
        }
        // Codebook 0's not before: who has all of them may overwrite what step 0 has read.
        if (step == 0)
            send_first_logits();
        else
            rows.make_logits(logits_of(step), frame_tag & SINGLE);
        if (attends) {
            if (step == 0) prepare(step);
            draw_code(step);
        }
    }
    if (cta == 0 && tid == 0) *p.frame = frame + 1;
}
