// Attention of the depth decoder: one row, at most 32 positions. Part of one source, see shapes.cu.

__device__ __forceinline__ float4 singles(uint4 v, u32 tag) {
    return make_float4(single(v.x, tag), single(v.y, tag), single(v.z, tag), single(v.w, tag));
}
// Both first positions of one row, by one block, into p.both.attended as rows `row` and ROWS + row. A warp has a head,
// a lane four of its columns. first: what blocks hand on of position 0 [QKV], with tag_first; second: of position 1, with tag,
// or `known`, a row of Args.first_qkv.
__device__ __forceinline__ void attend_both(const Args &p, int layer, int row, const u32 *first, u32 first_tag,
                                            const u32 *second, u32 tag, const u16 *known, u32 attended_tag) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv = warp / (HEADS / KV), part = warp % (HEADS / KV);
    const int query_at = warp * HD + lane * 4, key_at = (HEADS + kv) * HD + lane * 4, value_at = key_at + KV * HD;
    const uint4 turn = load_constant(p.rope + HD + lane * 4); // of position 1; position 0 is not turned
    float4 query, key, value;
    uint4 words[2], more[3];
    const u32 *const from[2] = {first + key_at, first + value_at};
    if (known) {
        auto load = [&](int at) {
            const uint2 v = load_constant_u2(known + at);
            return make_float4(low(v.x), high(v.x), low(v.y), high(v.y));
        };
        query = load(query_at), key = load(key_at), value = load(value_at);
    } else {
        const u32 *const others[3] = {second + query_at, second + key_at, second + value_at};
        poll(more, others, tag, SINGLE);
        query = singles(more[0], tag), key = singles(more[1], tag), value = singles(more[2], tag);
    }
    poll(words, from, first_tag, SINGLE);
    const float4 first_key = singles(words[0], first_tag), first_value = singles(words[1], first_tag);
    auto turned = [&](float4 v, float scale) {
        const float cos[2] = {__uint_as_float(turn.x), __uint_as_float(turn.z)},
                    sin[2] = {__uint_as_float(turn.y), __uint_as_float(turn.w)};
        return make_uint2(pack((v.x * cos[0] - v.y * sin[0]) * scale, (v.y * cos[0] + v.x * sin[0]) * scale),
                          pack((v.z * cos[1] - v.w * sin[1]) * scale, (v.w * cos[1] + v.z * sin[1]) * scale));
    };
    auto dot = [](uint2 a, uint2 b) {
        return warp_sum(low(a.x) * low(b.x) + high(a.x) * high(b.x) + low(a.y) * low(b.y) + high(a.y) * high(b.y));
    };
    const uint2 q = turned(query, 0.08838834764831845f), // 1 / sqrt(HD)
        keys[2] = {make_uint2(pack(first_key.x, first_key.y), pack(first_key.z, first_key.w)), turned(key, 1)},
        values[2] = {make_uint2(pack(first_value.x, first_value.y), pack(first_value.z, first_value.w)),
                     make_uint2(pack(value.x, value.y), pack(value.z, value.w))};
    // As Attention lays them out.
    const u64 offset = ((u64)(layer * ROWS + row) * KV + kv) * PLACES * HD;
    if (part == 0)
#pragma unroll
        for (int place = 0; place < 2; place++)
            *(uint2 *)(p.keys + offset + (lane / 8 * 32 + place * 4 + lane % 8 / 2) * 8 + lane % 2 * 4) = keys[place];
    if (part == 1) {
        u16 *to = p.values + offset + (lane / 2 * 32 + lane % 2 * 16) * 8;
        *(u32 *)to = (values[0].x & 0xffff) | values[1].x << 16;
        *(u32 *)(to + 4 * 8) = values[0].x >> 16 | (values[1].x & 0xffff0000u);
        *(u32 *)(to + 8 * 8) = (values[0].y & 0xffff) | values[1].y << 16;
        *(u32 *)(to + 12 * 8) = values[0].y >> 16 | (values[1].y & 0xffff0000u);
    }
    const float scores[2] = {dot(q, keys[0]), dot(q, keys[1])}, most = fmaxf(scores[0], scores[1]);
    const float shares[2] = {__expf(scores[0] - most), __expf(scores[1] - most)},
                by = __fdividef(DOWN, shares[0] + shares[1]);
    auto mixed = [&](float a, float b) { return (shares[0] * a + shares[1] * b) * by; };
    u32 *to = p.both.attended + (row * D + warp * HD) / 2 + lane * 2;
    hand_on(to, low(values[0].x) * DOWN, high(values[0].x) * DOWN, attended_tag);
    hand_on(to + 1, low(values[0].y) * DOWN, high(values[0].y) * DOWN, attended_tag);
    to += ROWS * D / 2;
    hand_on(to, mixed(low(values[0].x), low(values[1].x)), mixed(high(values[0].x), high(values[1].x)), attended_tag);
    hand_on(to + 1, mixed(low(values[0].y), low(values[1].y)), mixed(high(values[0].y), high(values[1].y)),
            attended_tag);
}
// Attention of one row over at most 32 places, by one block: four warps have the four heads that share a kv head, which
// are four rows of mma. Keys and values lie as their fragments are read: a warp has eight places' keys and a quarter of
// the values' columns in registers. Keys: [place / 8][column / 32][place % 8][column / 8 % 4][8]; values: [column / 8]
// [column % 8][place / 2 % 4][place / 8][place % 2].
struct Attention {
    static constexpr int GROUP = HEADS / KV, EACH = 4;
    static_assert(HD / 32 == EACH && HD / 8 / GROUP == EACH && PLACES / 8 == GROUP, "fragments");
    u16 *keys, *values;           // of this warp's kv head, in device memory
    uint4 key[EACH], value[EACH]; // what earlier steps have written, on its way
    __device__ __forceinline__ void fetch(const Args &p, int layer, int row, int place) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = warp / GROUP, part = warp % GROUP;
        const u64 offset = ((u64)(layer * ROWS + row) * KV + kv) * PLACES * HD;
        keys = p.keys + offset, values = p.values + offset;
#pragma unroll
        for (int each = 0; each < EACH; each++) { // a place that is not yet written has no share, but must be a number
            key[each] = value[each] = make_uint4(0, 0, 0, 0);
            if (part * 8 < place) key[each] = load_u4(keys + ((part * EACH + each) * 32 + lane) * 8);
            if (place > 0) value[each] = load_u4(values + ((part * EACH + each) * 32 + lane) * 8);
        }
    }
    // The newest place's query, key and value, as blocks hand them on, or from `known`, a row of Args.first_qkv.
    __device__ __forceinline__ void receive(Shared *s, const Args &p, int row, int place, bool writes, u32 tag,
                                            const u16 *known) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv = warp / GROUP, part = warp % GROUP;
        const u32 *own = p.rows.qkv + blockIdx.x % plain::QKV_COPIES * plain::QKV_WORDS + row * QKV + lane * 4;
        const uint4 turn_bits = load_constant(p.rope + place * HD + lane * 4);
        const float4 turn = make_float4(__uint_as_float(turn_bits.x), __uint_as_float(turn_bits.y),
                                        __uint_as_float(turn_bits.z), __uint_as_float(turn_bits.w));
        auto turned = [&](float4 v, float scale) {
            return make_uint2(pack((v.x * turn.x - v.y * turn.y) * scale, (v.y * turn.x + v.x * turn.y) * scale),
                              pack((v.z * turn.z - v.w * turn.w) * scale, (v.w * turn.z + v.z * turn.w) * scale));
        };
        // A warp has its own head's query; of four that share a kv head the first has the key too, the second the
        // value.
        const int other = part == 0 ? HEADS + kv : HEADS + KV + kv;
        float4 first, second = make_float4(0, 0, 0, 0);
        if (known) {
            const uint2 query = load_constant_u2(known + warp * HD + lane * 4);
            uint2 more = make_uint2(0, 0);
            if (part < 2) more = load_constant_u2(known + other * HD + lane * 4);
            first = make_float4(low(query.x), high(query.x), low(query.y), high(query.y));
            second = make_float4(low(more.x), high(more.x), low(more.y), high(more.y));
        } else {
            uint4 words[2] = {make_uint4(tag, tag, tag, tag), make_uint4(tag, tag, tag, tag)};
            do {
                words[0] = load_u4(own + warp * HD);
                if (part < 2) words[1] = load_u4(own + other * HD);
            } while (stale(words[0], tag, SINGLE) | stale(words[1], tag, SINGLE));
            __syncwarp();
            first = singles(words[0], tag), second = singles(words[1], tag);
        }
        *(uint2 *)(s->query[warp] + lane * 2) = turned(first, 0.08838834764831845f); // 1 / sqrt(HD)
        if (part == 0) {
            const uint2 now = turned(second, 1);
            *(uint2 *)(s->newest[kv][0] + lane * 2) = now;
            if (writes)
                *(uint2 *)(keys + ((place / 8 * 4 + lane / 8) * 32 + place % 8 * 4 + lane % 8 / 2) * 8 + lane % 2 * 4) =
                    now;
        } else if (part == 1) {
            const u32 pairs[2] = {pack(second.x, second.y), pack(second.z, second.w)},
                      columns[4] = {pairs[0], pairs[0] >> 16, pairs[1], pairs[1] >> 16};
            *(uint2 *)(s->newest[kv][1] + lane * 2) = make_uint2(pairs[0], pairs[1]);
            if (writes)
#pragma unroll
                for (int each = 0; each < 4; each++)
                    values[(lane / 2 * 32 + lane % 2 * 16 + each * 4 + place / 2 % 4) * 8 + place / 8 * 2 + place % 2] =
                        (u16)columns[each];
        }
    }
    // Of what was received. Leaves the result, pairs of bf16 times 2^-64, in s->attended.
    __device__ __forceinline__ void attend(Shared *s, int place) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4,
                  kv = warp / GROUP, part = warp % GROUP;
        meet<32 * GROUP>(1 + kv);
        { // eight places' scores
            float scores[2][4] = {};
            if (part * 8 <= place) {
#pragma unroll
                for (int columns = 0; columns < EACH; columns++) {
                    const uint4 q =
                        *(const uint4 *)(group < GROUP ? s->query[kv * GROUP + group] + columns * 16 + quad * 4
                                                       : s->zeros);
                    uint4 k = key[columns];
                    if (place == part * 8 + group) k = *(const uint4 *)(s->newest[kv][0] + columns * 16 + quad * 4);
                    mma(scores[0], q.x, 0, q.y, 0, k.x, k.y);
                    mma(scores[1], q.z, 0, q.w, 0, k.z, k.w);
                }
            }
            const int at = part * 8 + quad * 2;
            if (group < GROUP)
                *(float2 *)(s->scores[kv * GROUP + group] + at) =
                    make_float2(at <= place ? scores[0][0] + scores[1][0] : __int_as_float(0xff800000),
                                at + 1 <= place ? scores[0][1] + scores[1][1] : __int_as_float(0xff800000));
        }
        meet<32 * GROUP>(1 + kv);
        float2 scores[4];
        float most = __int_as_float(0xff800000), total = 0;
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            scores[tile] = *(const float2 *)(s->scores[kv * GROUP + group % GROUP] + tile * 8 + quad * 2);
            most = fmaxf(most, fmaxf(scores[tile].x, scores[tile].y));
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        u32 shares[4];
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            const float first = __expf(scores[tile].x - most), second = __expf(scores[tile].y - most);
            total += first + second;
            shares[tile] = pack(first, second);
        }
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const float by = __fdividef(DOWN, total);
        const u32 keep = place % 2 ? 0xffffu : 0xffff0000u; // of the word that has the newest place's value
#pragma unroll
        for (int each = 0; each < EACH; each++) {
            float c[4] = {};
            const int tile = part * EACH + each;
            uint4 v = value[each];
            if (quad == place / 2 % 4) {
                const u32 now = (u32)((const u16 *)s->newest[kv][1])[tile * 8 + group] << place % 2 * 16;
                if (place / 8 == 0) v.x = v.x & keep | now;
                if (place / 8 == 1) v.y = v.y & keep | now;
                if (place / 8 == 2) v.z = v.z & keep | now;
                if (place / 8 == 3) v.w = v.w & keep | now;
            }
            mma(c, shares[0], 0, shares[1], 0, v.x, v.y);
            mma(c, shares[2], 0, shares[3], 0, v.z, v.w);
            if (group < GROUP) s->attended[kv * GROUP + group][tile * 4 + quad] = pack(c[0] * by, c[1] * by);
        }
        meet<32 * GROUP>(1 + kv);
    }
};
