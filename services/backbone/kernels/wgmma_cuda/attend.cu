// One decode step's attention over paged keys and values: rotation, cache write and attention, a block a row and kv head.
//
// Each of WARPS warps takes every so many-th block of 16 positions, a tile, with a softmax of its own; the first merges them.
// A warp has a ring of STAGES tiles, which TMA fills: so most of what a multiprocessor has asked for is on its way, and few
// instructions ask. Scores are keys times queries, 8 queries wide: lane 4 g + c has of the keys the rows row_of(g) and 8 more,
// columns 8 c to 8 c + 7 and 32 more, and so of the queries, of query g. What they give is valuesᵀ times shares: of the values
// a lane has the rows c, c + 4, c + 8 and c + 12, columns 8 g to 8 g + 7. Boxes are swizzled and the rows are taken in an order
// by which no 8 lanes that read shared memory at once meet in a bank.

struct __align__(64) AttendArguments {
    TensorMap keys, values;       // [KV_HEADS, blocks * TOKENS, HEAD_DIM]
    const u16 *qkv;               // [count, (HEADS + 2 KV_HEADS) HEAD_DIM] bf16
    const float *rope;            // [positions, HEAD_DIM]: cosine and sine of each pair
    const i64 *slots, *positions; // [count]
    const int *tables;            // [slots, table_width]
    u16 *new_keys, *new_values;   // the memory of these maps, for the rows' own
    u16 *out;                     // [count, HEADS HEAD_DIM] bf16
    i64 head_size;                // numbers of one kv head's keys
    int count, table_width;
    float scale; // of scores, times log2(e)
};

constexpr int HEAD_DIM = 64, TOKENS = 16, GROUP = HEADS / KV_HEADS, BLOCK = TOKENS * HEAD_DIM, HALF = HEAD_DIM / 2;
constexpr int TILE_BYTES = 2 * BLOCK * 2, RING_BYTES = STAGES * TILE_BYTES; // keys, then values
constexpr int LEFT = 20; // numbers of a lane that a warp leaves to the first, where its ring was
static_assert(SHARED == WARPS * (RING_BYTES + STAGES * 8) && LEFT * 32 * 4 <= RING_BYTES, "rings, then their barriers");
static_assert(GROUP <= 8, "queries of one kv head");

__device__ __forceinline__ float no_score() { return -__uint_as_float(0x7f800000); }
__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u32 rotated(u32 pair, float cosine, float sine) {
    const float even = low_half(pair), odd = high_half(pair);
    return pack(even * cosine - odd * sine, odd * cosine + even * sine);
}
// rope: of the pairs.
__device__ __forceinline__ uint4 rotated(uint4 v, const float4 *rope) {
    const float4 first = rope[0], second = rope[1];
    return make_uint4(rotated(v.x, first.x, first.y), rotated(v.y, first.z, first.w), rotated(v.z, second.x, second.y),
                      rotated(v.w, second.z, second.w));
}

__device__ __forceinline__ int row_of(int g) { return g % 2 * 4 + g / 2; }
__device__ __forceinline__ uint4 read(const u8 *tile, int row, int chunk) { // of 8 columns
    return *(const uint4 *)(tile + row * HEAD_DIM * 2 + (chunk ^ row % 8) * 16);
}
struct Keys { // of rows row_of(g) and 8 more
    uint4 low[2], high[2];
    __device__ __forceinline__ Keys(const u8 *tile, int g, int c) {
#pragma unroll
        for (int half = 0; half < 2; half++)
            low[half] = read(tile, row_of(g) + 8 * half, c), high[half] = read(tile, row_of(g) + 8 * half, c + 4);
    }
};
struct Values {
    uint4 v[4];
    static __device__ __forceinline__ int row(int index, int g, int c) { return c + (index ^ g) % 2 * 4 + index / 2 * 8; }
    __device__ __forceinline__ Values(const u8 *tile, int g, int c) {
#pragma unroll
        for (int index = 0; index < 4; index++) v[index] = read(tile, row(index, g, c), g);
    }
};

struct Attention {
    u32 query[8];
    float highest[2], weight[2], sums[4][4]; // of queries 2 c and 2 c + 1; of columns 8 g + 2 i + h: [i][2 h + query]

    __device__ __forceinline__ void scores(const Keys &keys, float (&s)[4]) const {
        const uint4 *const low = keys.low, *const high = keys.high;
        s[0] = s[1] = s[2] = s[3] = 0.0f; // of rows row_of(g) and 8 more
        mma(s, low[0].x, low[1].x, low[0].y, low[1].y, query[0], query[1]);
        mma(s, low[0].z, low[1].z, low[0].w, low[1].w, query[2], query[3]);
        mma(s, high[0].x, high[1].x, high[0].y, high[1].y, query[4], query[5]);
        mma(s, high[0].z, high[1].z, high[0].w, high[1].w, query[6], query[7]);
    }
    // Scores → shares of the values, as the next product takes them.
    __device__ __forceinline__ void share(float (&s)[4], float scale, u32 (&shares)[2]) {
#pragma unroll
        for (int query = 0; query < 2; query++) {
            float most = fmaxf(highest[query], fmaxf(s[query], s[2 + query]));
#pragma unroll
            for (int way = 4; way < 32; way *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, way));
            const float fade = exp2_of((highest[query] - most) * scale);
            highest[query] = most;
            s[query] = exp2_of((s[query] - most) * scale), s[2 + query] = exp2_of((s[2 + query] - most) * scale);
            weight[query] = weight[query] * fade + (s[query] + s[2 + query]);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i][query] *= fade, sums[i][2 + query] *= fade;
        }
        shares[0] = transposed(pack(s[0], s[1])), shares[1] = transposed(pack(s[2], s[3]));
    }
    __device__ __forceinline__ void add(const Values &values, const u32 (&shares)[2], int g) {
        const uint4 *const v = values.v;
        const u32 low = g % 2 ? 0x1054 : 0x5410, high = low + 0x2222; // halves of two rows, the first row's first
        add_columns(sums[0], v[0].x, v[1].x, v[2].x, v[3].x, shares, low, high);
        add_columns(sums[1], v[0].y, v[1].y, v[2].y, v[3].y, shares, low, high);
        add_columns(sums[2], v[0].z, v[1].z, v[2].z, v[3].z, shares, low, high);
        add_columns(sums[3], v[0].w, v[1].w, v[2].w, v[3].w, shares, low, high);
    }
    __device__ __forceinline__ void start(const uint4 &low, const uint4 &high) { // query
        const u32 parts[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int part = 0; part < 8; part++) query[part] = parts[part];
#pragma unroll
        for (int each = 0; each < 2; each++) highest[each] = no_score(), weight[each] = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
    }
    // To and from shared memory, a number a lane beside each other.
    __device__ __forceinline__ void leave(float *to) const {
#pragma unroll
        for (int each = 0; each < 2; each++) to[each * 32] = highest[each], to[(2 + each) * 32] = weight[each];
#pragma unroll
        for (int each = 0; each < 16; each++) to[(4 + each) * 32] = sums[each / 4][each % 4];
    }
    __device__ __forceinline__ void merge(const float *from, float scale) {
#pragma unroll
        for (int query = 0; query < 2; query++) {
            const float other = from[query * 32], most = fmaxf(highest[query], other);
            const float fade = exp2_of((highest[query] - most) * scale), its = exp2_of((other - most) * scale);
            highest[query] = most, weight[query] = weight[query] * fade + from[(2 + query) * 32] * its;
#pragma unroll
            for (int each = query; each < 16; each += 2)
                sums[each / 4][each % 4] = sums[each / 4][each % 4] * fade + from[(4 + each) * 32] * its;
        }
    }
    static __device__ __forceinline__ void add_columns(
        float (&sum)[4], u32 a, u32 b, u32 c, u32 d, const u32 (&shares)[2], u32 low, u32 high) {
        mma(sum, __byte_perm(a, b, low), __byte_perm(a, b, high), __byte_perm(c, d, low), __byte_perm(c, d, high), shares[0],
            shares[1]);
    }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS) attend_step(const __grid_constant__ AttendArguments p) {
    const int lane = threadIdx.x % 32, warp = __shfl_sync(~0u, threadIdx.x / 32, 0), g = lane / 4, c = lane % 4;
    const int row = blockIdx.x % p.count, kv = blockIdx.x / p.count;
    // Slots, positions, tables and earlier keys and values are there before the launch ahead begins.
    let_next_launch_begin();
    const int position = (int)p.positions[row], last = position / TOKENS, own = position % TOKENS;
    const int tiles = (last - warp + WARPS) / WARPS; // of this warp
    const int *const table = p.tables + p.slots[row] * p.table_width;
    u8 *const ring = shared_memory() + warp * RING_BYTES;
    const u32 ring_at = shared_address(ring), barriers = shared_address(shared_memory()) + WARPS * RING_BYTES + warp * STAGES * 8;
    if (lane == 0) {
        for (int stage = 0; stage < STAGES; stage++) init_barrier(barriers + stage * 8, 1);
        publish_barriers();
    }
    __syncwarp();
    int listed = 0; // of 32 entries of the table, one a lane
    const u64 policy = keep_first();
    auto load = [&](int tile, int stage) { // tiles in order
        const int entry = (tile + lane) * WARPS + warp;
        if (tile % 32 == 0) listed = table[entry < last ? entry : last];
        const int block = __shfl_sync(~0u, listed, tile % 32);
        if (lane == 0) {
            const u32 to = ring_at + stage * TILE_BYTES, barrier = barriers + stage * 8;
            arrive_and_expect(barrier, TILE_BYTES);
            load_box(to, &p.keys, 0, block * TOKENS, kv, barrier, policy);
            load_box(to + BLOCK * 2, &p.values, 0, block * TOKENS, kv, barrier, policy);
        }
    };
    for (int tile = 0; tile < STAGES && tile < tiles; tile++) load(tile, tile);
    const float4 *const rope = (const float4 *)(p.rope + (i64)position * HEAD_DIM) + 2 * c;
    wait_for_earlier_launch();

    const u16 *const qkv = p.qkv + (i64)row * (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    auto rotated_part = [&](int head, int half) {
        return rotated(load_new((const uint4 *)(qkv + head * HEAD_DIM + 8 * c + half * HALF)), rope + half * (HALF / 4));
    };
    Attention attention;
    const uint4 nothing = make_uint4(0, 0, 0, 0);
    const bool is_query = g < GROUP;
    attention.start(is_query ? rotated_part(kv * GROUP + g, 0) : nothing, is_query ? rotated_part(kv * GROUP + g, 1) : nothing);

    int stage = 0;
    u32 parity = 0;
    for (int tile = 0; tile < tiles; tile++) {
        wait_for(barriers + stage * 8, parity);
        Keys keys(ring + stage * TILE_BYTES, g, c);
        Values values(ring + stage * TILE_BYTES + BLOCK * 2, g, c);
        const bool is_last = tile * WARPS + warp == last;
        if (is_last) { // its own key and value come in, rows behind it are not there
            const uint4 low = rotated_part(HEADS + kv, 0), high = rotated_part(HEADS + kv, 1);
            const uint4 value = load_new((const uint4 *)(qkv + (HEADS + KV_HEADS + kv) * HEAD_DIM + 8 * g));
            const i64 to = kv * p.head_size + (i64)table[last] * BLOCK + own * HEAD_DIM;
            if (g == 0) *(uint4 *)(p.new_keys + to + 8 * c) = low, *(uint4 *)(p.new_keys + to + 8 * c + HALF) = high;
            if (c == 0) *(uint4 *)(p.new_values + to + 8 * g) = value;
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row_of(g) + 8 * half == own) keys.low[half] = low, keys.high[half] = high;
#pragma unroll
            for (int index = 0; index < 4; index++) {
                if (Values::row(index, g, c) == own) values.v[index] = value;
                if (Values::row(index, g, c) > own) values.v[index] = nothing;
            }
        }
        float s[4];
        u32 shares[2];
        attention.scores(keys, s);
        if (is_last) {
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (row_of(g) + 8 * half > own) s[2 * half] = s[2 * half + 1] = no_score();
        }
        attention.share(s, p.scale, shares);
        attention.add(values, shares, g);
        __syncwarp();
        if (tile + STAGES < tiles) load(tile + STAGES, stage);
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }

#pragma unroll
    for (int query = 0; query < 2; query++)
#pragma unroll
        for (int way = 4; way < 32; way *= 2)
            attention.weight[query] += __shfl_xor_sync(~0u, attention.weight[query], way);
    if (WARPS > 1) {
        if (warp > 0) attention.leave((float *)ring + lane);
        meet<32 * WARPS>(1);
        if (warp > 0) return;
#pragma unroll
        for (int other = 1; other < WARPS; other++) attention.merge((const float *)(ring + other * RING_BYTES) + lane, p.scale);
    }
#pragma unroll
    for (int query = 0; query < 2; query++) {
        const float share = 1.0f / attention.weight[query];
        u32 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = pack(attention.sums[i][query] * share, attention.sums[i][2 + query] * share);
        if (2 * c + query < GROUP)
            *(uint4 *)(p.out + ((i64)row * HEADS + kv * GROUP + 2 * c + query) * HEAD_DIM + 8 * g) =
                make_uint4(v[0], v[1], v[2], v[3]);
    }
}
