// Attention of the depth decoder: one row, at most 32 positions. Part of one source, see shapes.cu.

__device__ __forceinline__ float4 singles(uint4 v, u32 tag) {
    return make_float4(single(v.x, tag), single(v.y, tag), single(v.z, tag), single(v.w, tag));
}
// Attention of one row over at most 32 places, by one block: four warps have the four heads that share a kv head, which
// are four rows of mma. Keys and values lie as their fragments are read. Keys: [place / 8][column / 32][place %
// 8][column / 8 % 4][8]; values: [column / 8][4 (column % 8) + place / 2 % 4 ^ column / 8 % 8][place / 8][place % 2].
struct Attention {
    static constexpr int GROUP = HEADS / KV;
    static constexpr int EACH = PLACES * HD / 8 / (32 * GROUP);
    u16 *keys, *values;           // of this warp's kv head, in device memory
    uint4 key[EACH], value[EACH]; // what earlier steps have written, on its way
    __device__ __forceinline__ void fetch(const Args &p, int layer, int row, int place) {
        const int kv = threadIdx.x / (32 * GROUP), lane = threadIdx.x % (32 * GROUP);
        const u64 offset = ((u64)(layer * B + row) * KV + kv) * PLACES * HD;
        keys = p.keys + offset, values = p.values + offset;
#pragma unroll
        for (int each = 0; each < EACH; each++) { // one `each` is eight places of keys, and eight columns' of values
            if (each * 8 < place) key[each] = load_u4(keys + (each * 32 * GROUP + lane) * 8);
            if (place > 0) value[each] = load_u4(values + (each * 32 * GROUP + lane) * 8);
        }
    }
    __device__ __forceinline__ void settle(Shared *s, int place) const {
        const int kv = threadIdx.x / (32 * GROUP), lane = threadIdx.x % (32 * GROUP);
#pragma unroll
        for (int each = 0; each < EACH; each++) {
            if (each * 8 < place) *(uint4 *)(s->keys[kv] + (each * 32 * GROUP + lane) * 8) = key[each];
            if (place > 0) *(uint4 *)(s->values[kv] + (each * 32 * GROUP + lane) * 8) = value[each];
        }
    }
    // What was fetched must be settled. Leaves the result, pairs of bf16 times 2^-64, in s->attended.
    __device__ __forceinline__ void attend(Shared *s, const Args &p, int row, int place, bool writes, u32 tag) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4,
                  kv = warp / GROUP, part = warp % GROUP;
        const u32 *own = p.qkv + blockIdx.x % COPIES * QKV_WORDS + row * QKV + lane * 4;
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
        uint4 words[2] = {make_uint4(tag, tag, tag, tag), make_uint4(tag, tag, tag, tag)};
        do {
            words[0] = load_u4(own + warp * HD);
            if (part < 2) words[1] = load_u4(own + other * HD);
        } while ((stale(words[0], tag, SINGLE) | stale(words[1], tag, SINGLE)));
        __syncwarp();
        *(uint2 *)(s->query[warp] + lane * 2) = turned(singles(words[0], tag), 0.08838834764831845f); // 1 / sqrt(HD)
        if (part == 0) {
            const int at = ((place / 8 * 4 + lane / 8) * 32 + place % 8 * 4 + lane % 8 / 2) * 8 + lane % 2 * 4;
            const uint2 key = turned(singles(words[1], tag), 1);
            *(uint2 *)(s->keys[kv] + at) = key;
            if (writes) *(uint2 *)(keys + at) = key;
        } else if (part == 1) {
            const float4 v = singles(words[1], tag);
            const u32 first = pack(v.x, v.y), second = pack(v.z, v.w),
                      columns[4] = {first, first >> 16, second, second >> 16};
#pragma unroll
            for (int each = 0; each < 4; each++) {
                const int at = (lane / 2 * 32 + ((lane % 2 * 16 + each * 4 + place / 2 % 4) ^ (lane / 2 % 8))) * 8 +
                               place / 8 * 2 + place % 2;
                s->values[kv][at] = (u16)columns[each];
                if (writes) values[at] = (u16)columns[each];
            }
        }
        meet(kv);
        { // eight places' scores
            float scores[4] = {};
            if (part * 8 <= place) {
#pragma unroll
                for (int columns = 0; columns < 4; columns++) {
                    const uint4 q =
                        *(const uint4 *)(group < GROUP ? s->query[kv * GROUP + group] + columns * 16 + quad * 4
                                                       : s->zeros);
                    const uint4 k = *(const uint4 *)(s->keys[kv] + ((part * 4 + columns) * 32 + lane) * 8);
                    mma(scores, q.x, 0, q.y, 0, k.x, k.y);
                    mma(scores, q.z, 0, q.w, 0, k.z, k.w);
                }
            }
            const int at = part * 8 + quad * 2;
            if (group < GROUP)
                *(float2 *)(s->scores[kv * GROUP + group] + at) =
                    make_float2(at <= place ? scores[0] : __int_as_float(0xff800000),
                                at + 1 <= place ? scores[1] : __int_as_float(0xff800000));
        }
        meet(kv);
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
#pragma unroll
        for (int each = 0; each < HD / 8 / GROUP; each++) {
            float c[4] = {};
            const int tile = part * (HD / 8 / GROUP) + each;
            const uint4 v = *(const uint4 *)(s->values[kv] + (tile * 32 + (lane ^ tile % 8)) * 8);
            mma(c, shares[0], 0, shares[1], 0, v.x, v.y);
            mma(c, shares[2], 0, shares[3], 0, v.z, v.w);
            if (group < GROUP) s->attended[kv * GROUP + group][tile * 4 + quad] = pack(c[0] * by, c[1] * by);
        }
        meet(kv);
    }
    __device__ __forceinline__ static void meet(int kv) {
        asm volatile("bar.sync %0, %1;" ::"r"(1 + kv), "n"(32 * GROUP) : "memory");
    }
};
