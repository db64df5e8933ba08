// Products of many rows beside the gated one, x weightᵀ. ../row_product.py launches them.
//
// ADDS: the residual gets the product, and what follows is prepared: residual · scale, the next product's rows, and of each
// row the sum of squares of this tile's outputs, from which that product takes RMSNorm's factor. Otherwise the sums get such
// a factor and are the result. SPLITS blocks, neighbours, have parts of WIDTH columns each; they leave their sums in `parts`,
// and each adds up some of the tile's rows, in the order of the parts, once they are there.

constexpr int STEPS = WIDTH / COLUMNS / SPLITS, WARPS = 4 * GROUPS;
constexpr int TILES = OUTPUTS / TILE, QUARTETS = TILE / 32; // beside each other; in a tile: of 8 outputs, one a lane of four
constexpr int UNITS = 2 * QUARTETS / SPLITS; // of 8 rows and 32 outputs that a warp finishes
constexpr int SCALES = UNITS < QUARTETS ? UNITS : QUARTETS;
static_assert(TILE % 32 == 0, "outputs of whole quartets");
static_assert(WIDTH % (COLUMNS * SPLITS) == 0 && 2 * QUARTETS % SPLITS == 0 && WARPS % SPLITS == 0, "parts of one size");

struct __align__(64) Args {
    TensorMap x, weight; // [1, count, WIDTH]; [1, OUTPUTS, WIDTH]
    u16 *out;            // [count, OUTPUTS]
    const u16 *scale;    // [OUTPUTS]; of the residual's
    float *residual;     // [count, OUTPUTS]
    float *squares;      // [count, TILES], written with the residual; or what the rows lack, [count, SQUARES]
    float4 *parts;       // [tiles, SPLITS, WARPS, 2 * QUARTETS, 2, 32], NOTHING between launches
    int count, row_tiles; // row_tiles: of a cluster
    float eps;
};

struct OneTile {
    Place at;
    bool is_over;
    __device__ __forceinline__ bool any() const { return !is_over; }
    __device__ __forceinline__ Place place() const { return at; }
    __device__ __forceinline__ void advance() { is_over = true; }
};

__device__ __forceinline__ void multiply_all(float (&sums)[TILE / 2], Ring ring, int group, int lane) {
    auto add_step = [&](bool adds) {
        wait_for(ring.full(ring.stage), ring.parity);
        const u64 x = operand(ring.x() + group * 64 * COLUMNS * 2), weights = operand(ring.weights());
        begin_products();
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; k++) multiply(sums, x + 2 * k, weights + 2 * k, adds || k);
        commit_products();
    };
    add_step(false);
#pragma unroll 1
    for (int step = 1; step < STEPS; step++) {
        const int held = ring.stage;
        ring.advance();
        add_step(true);
        wait_for_products<1>();
        ring.release(held, lane);
    }
    wait_for_products<0>();
    ring.release(ring.stage, lane);
}

struct Unit { float v[8]; }; // of a row, outputs beside each other
// From a warp's sums, the rows of the upper half first.
__device__ __forceinline__ Unit unit_of(const float (&sums)[TILE / 2], int index, int lane) {
    const int first = index % QUARTETS * 16 + index / QUARTETS * 2;
    u32 even[4], odd[4];
#pragma unroll
    for (int c = 0; c < 4; c++)
        even[c] = __float_as_uint(sums[first + 4 * c]), odd[c] = __float_as_uint(sums[first + 4 * c + 1]);
    transpose(even, lane & 1, lane & 2);
    transpose(odd, lane & 1, lane & 2);
    Unit unit;
#pragma unroll
    for (int c = 0; c < 4; c++) unit.v[2 * c] = __uint_as_float(even[c]), unit.v[2 * c + 1] = __uint_as_float(odd[c]);
    return unit;
}
__device__ __forceinline__ float4 four_of(const Unit &unit, int half) {
    return make_float4(unit.v[4 * half], unit.v[4 * half + 1], unit.v[4 * half + 2], unit.v[4 * half + 3]);
}
__device__ __forceinline__ Unit unit_of(float4 a, float4 b) { return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}}; }

// What lies in `parts` between launches: bits that no sum has, as what would have them is stored as another NaN.
constexpr u32 NOTHING = ~0u;
__device__ __forceinline__ float something(float v) { return __float_as_uint(v) == NOTHING ? __uint_as_float(~0u >> 1) : v; }
__device__ __forceinline__ bool is_missing(float4 v) {
    return __float_as_uint(v.x) == NOTHING | __float_as_uint(v.y) == NOTHING | __float_as_uint(v.z) == NOTHING |
           __float_as_uint(v.w) == NOTHING;
}

// Leaves the sums for the others of the tile, and adds up those of this block's rows: each number tells that it is there.
__device__ __forceinline__ void exchange(
    const Args &args, const float (&sums)[TILE / 2], Unit (&units)[UNITS], int tile, int part, int warp, int lane) {
    constexpr int A_WARP = 2 * QUARTETS * 2 * 32, SHARE = WARPS / SPLITS * A_WARP; // SHARE: of a block
    float4 *const parts = args.parts + (u64)tile * SPLITS * SPLITS * SHARE + lane;
    float4 *const kept = (float4 *)shared_memory() + lane; // where the ring was
    const int owner = warp / (WARPS / SPLITS);
    auto leave = [&](float4 *to) {
#pragma unroll
        for (int index = 0; index < 2 * QUARTETS; index++) {
            Unit unit = unit_of(sums, index, lane);
#pragma unroll
            for (int column = 0; column < 8; column++) unit.v[column] = something(unit.v[column]);
            to[index * 64] = four_of(unit, 0), to[index * 64 + 32] = four_of(unit, 1);
        }
    };
    if (owner != part) leave(parts + part * SPLITS * SHARE + warp * A_WARP);
    meet<GROUPS * 128>(1);
    if (owner == part) leave(kept + (warp - part * (WARPS / SPLITS)) * A_WARP);
    meet<GROUPS * 128>(1);
    float4 seen[SPLITS][UNITS][2];
    bool waits;
    do {
        waits = false;
#pragma unroll
        for (int each = 0; each < SPLITS; each++)
#pragma unroll
            for (int unit = 0; unit < UNITS; unit++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int at = (warp * UNITS + unit) * 64 + half * 32;
                    seen[each][unit][half] = each == part ? kept[at] : load_new(parts + (each * SPLITS + part) * SHARE + at);
                }
#pragma unroll
        for (int each = 0; each < SPLITS; each++)
#pragma unroll
            for (int unit = 0; unit < UNITS; unit++) waits |= is_missing(seen[each][unit][0]) | is_missing(seen[each][unit][1]);
    } while (waits);
    const float nothing = __uint_as_float(NOTHING);
#pragma unroll
    for (int each = 0; each < SPLITS; each++)
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) {
            const Unit v = unit_of(seen[each][unit][0], seen[each][unit][1]);
#pragma unroll
            for (int column = 0; column < 8; column++)
                units[unit].v[column] = each == 0 ? v.v[column] : units[unit].v[column] + v.v[column];
            float4 *const from = parts + (each * SPLITS + part) * SHARE + (warp * UNITS + unit) * 64;
            if (each != part)
                from[0] = from[32] = make_float4(nothing, nothing, nothing, nothing);
        }
}

__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ void multiply_and_store(const Args &args, Ring ring, Place at, int warp, int lane) {
    const int row = at.row + warp * 16 + lane / 4;
    const RowSquares squares(args.squares, row, args.count, lane);
    float sums[TILE / 2];
    multiply_all(sums, ring, warp / 4, lane);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float factor = squares.factor(half, args.eps);
#pragma unroll
        for (int quartet = 0; quartet < QUARTETS; quartet++) {
            u32 v[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int index = (quartet * 4 + c) * 4 + 2 * half;
                v[c] = pack(sums[index] * factor, sums[index + 1] * factor);
            }
            transpose(v, lane & 1, lane & 2);
            if (row + 8 * half < args.count)
                *(uint4 *)(args.out + (u64)(row + 8 * half) * OUTPUTS + at.output + quartet * 32 + lane % 4 * 8) =
                    make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}

__device__ __forceinline__ void multiply_and_add(
    const Args &args, Ring ring, Place at, int tile, int part, int warp, int lane) {
    // The rows of 16 that this warp finishes, and the first of its units of them.
    const int own = SPLITS == 1 ? warp : part * (WARPS / SPLITS) + warp / SPLITS, first = warp % SPLITS * UNITS;
    const int row = at.row + own * 16 + lane / 4, output = at.output + lane % 4 * 8;
    auto row_of = [&](int unit) { return row + (first + unit) / QUARTETS * 8; };
    auto output_of = [&](int unit) { return output + (first + unit) % QUARTETS * 32; };
    auto place_of = [&](int unit) { return (u64)row_of(unit) * OUTPUTS + output_of(unit); };
    float sums[TILE / 2];
    Unit units[UNITS], before[UNITS];
    uint4 scales[SCALES];
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
        const float4 *const from = (const float4 *)(args.residual + place_of(unit));
        const float4 nothing = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const bool is_there = row_of(unit) < args.count;
        before[unit] = unit_of(is_there ? load_new(from) : nothing, is_there ? load_new(from + 1) : nothing);
        if (unit < SCALES) scales[unit] = *(const uint4 *)(args.scale + output_of(unit));
    }
    multiply_all(sums, ring, warp / 4, lane);
    if (SPLITS == 1) {
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) units[unit] = unit_of(sums, unit, lane);
    } else
        exchange(args, sums, units, tile, part, warp, lane);
    float squares[2] = {0.0f, 0.0f}; // of the rows of the upper and the lower half, or, with splits, of the only half
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
        const uint4 scale = scales[unit % SCALES];
        const u32 pairs[4] = {scale.x, scale.y, scale.z, scale.w};
        Unit sum;
        u32 scaled[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float a = sum.v[2 * c] = before[unit].v[2 * c] + units[unit].v[2 * c];
            const float b = sum.v[2 * c + 1] = before[unit].v[2 * c + 1] + units[unit].v[2 * c + 1];
            squares[unit / QUARTETS] += a * a + b * b;
            scaled[c] = pack(a * low_half(pairs[c]), b * high_half(pairs[c]));
        }
        if (row_of(unit) < args.count) {
            float4 *const to = (float4 *)(args.residual + place_of(unit));
            to[0] = four_of(sum, 0), to[1] = four_of(sum, 1);
            *(uint4 *)(args.out + place_of(unit)) = make_uint4(scaled[0], scaled[1], scaled[2], scaled[3]);
        }
    }
    constexpr int HALVES = SPLITS == 1 ? 2 : 1, SHARERS = SPLITS == 1 ? 1 : SPLITS / 2; // of warps with the same rows
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        squares[half] += __shfl_xor_sync(~0u, squares[half], 1);
        squares[half] += __shfl_xor_sync(~0u, squares[half], 2);
    }
    if (SHARERS > 1) {
        float *const shared = (float *)(shared_memory() + ROWS * TILE / SPLITS * 4) + warp * 8 + lane / 4;
        if (lane % 4 == 0) *shared = squares[0];
        meet<GROUPS * 128>(1);
        if (warp % SHARERS) return;
#pragma unroll
        for (int each = 1; each < SHARERS; each++) squares[0] += shared[each * 8];
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const int to = row_of(half * QUARTETS);
        if (lane % 4 == 0 && to < args.count) args.squares[(u64)to * TILES + at.output / TILE] = squares[half];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) row_product(const __grid_constant__ Args args) {
    Ring ring{shared_address(shared_memory())};
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const int rank = blockIdx.x % CLUSTER, part = blockIdx.x / CLUSTER % SPLITS, next = blockIdx.x / CLUSTER / SPLITS;
    const Place at{(next % args.row_tiles * ROW_BLOCKS + rank) * ROWS, next / args.row_tiles * TILE, part * (WIDTH / SPLITS)};
    ring.prepare();
    if (warp < WARPS) {
        if (GROUPS == 2 && TILE > 128) take_registers<232>();
        wait_for_earlier_launch();
        if (ADDS)
            multiply_and_add(args, ring, at, next * CLUSTER + rank, part, warp, lane);
        else
            multiply_and_store(args, ring, at, warp, lane);
    } else {
        if (GROUPS == 2 && TILE > 128) give_registers_back<40>();
        if (warp == WARPS && lane == 0)
            produce<STEPS>({&args.x, &args.weight, rank, keep_last(), keep_first()}, ring, OneTile{at, false});
    }
    __syncwarp();
    meet_cluster(); // before the others have signalled here, shared memory must not go
}
