// The MLP's first product with its activation for many rows: silu(x gateᵀ) · (x upᵀ). ../gated_product.py launches it.
//
// A block computes tiles of ROWS rows and TILE outputs. One warp, the producer, brings x and both weights, 64 columns a
// stage, into a ring of STAGES; each of GROUPS warpgroups multiplies 64 of the rows and applies the activation: to the
// last tile's sums, which it keeps as fp16 meanwhile, while the tensor cores multiply the next. Blocks of a cluster have
// ROW_BLOCKS tiles one below the other and OUTPUT_BLOCKS side by side; each loads a part of what several of them read and
// sends it to them all. WIDTH of x and OUTPUTS of the product: the shape.

constexpr int COLUMNS = 64, ROWS = 64 * GROUPS, WEIGHTS = 2 * TILE, CLUSTER = ROW_BLOCKS * OUTPUT_BLOCKS;
constexpr int X_BYTES = ROWS * COLUMNS * 2, STAGE_BYTES = X_BYTES + WEIGHTS * COLUMNS * 2;
constexpr int STEPS = WIDTH / COLUMNS, THREADS = GROUPS * 128 + 128, RING_START = STAGES < STEPS ? STAGES : STEPS;
constexpr int PIECES = TILE / 16; // that a tile is stored in: 32 outputs of a row each
constexpr bool OVERLAPS = STEPS > PIECES; // a piece a step of the next tile
// In a block's last tile the second of two warpgroups waits before so many steps until the first has made all of its: so the
// first one's activation overlaps with products too. The ring holds the steps that one of them has ahead of the other.
constexpr int BEHIND = 3;
constexpr bool STAGGERS = GROUPS == 2 && STEPS > PIECES + 1 + BEHIND && STAGES > BEHIND;
constexpr int X_PART = ROWS / OUTPUT_BLOCKS, WEIGHT_PART = WEIGHTS / ROW_BLOCKS; // rows that a block loads
static_assert(SHARED == STAGES * (STAGE_BYTES + 16), "ring and its barriers");

struct __align__(64) Args {
    TensorMap x, weight; // [1, count, WIDTH]; [gate or up, OUTPUTS, WIDTH]
    u16 *out;            // [count, OUTPUTS]
    int count, row_tiles; // row_tiles: of a cluster
};
struct Place { int row, output; };

// silu(gate) * up of two, with one inverse for both.
__device__ __forceinline__ u32 gated(float gate0, float up0, float gate1, float up1) {
    constexpr float LOG2_E = 1.4426950408889634f;
    const float a = 1.0f + exp2_of(fminf(-LOG2_E * gate0, 60.0f)), b = 1.0f + exp2_of(fminf(-LOG2_E * gate1, 60.0f));
    const float inverse = inverse_of(a * b);
    return pack(gate0 * up0 * (b * inverse), gate1 * up1 * (a * inverse));
}
// Among four lanes, in lane q: from v[c] of column c to v[lane] of column q.
__device__ __forceinline__ void transpose(u32 (&v)[4], bool odd, bool high) {
    u32 a = __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1), b = __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
    if (odd)
        v[0] = a, v[2] = b;
    else
        v[1] = a, v[3] = b;
    a = __shfl_xor_sync(~0u, high ? v[0] : v[2], 2), b = __shfl_xor_sync(~0u, high ? v[1] : v[3], 2);
    if (high)
        v[0] = a, v[1] = b;
    else
        v[2] = a, v[3] = b;
}

struct Ring {
    u32 at; // stages, then the barriers: what is full, what is empty
    int stage = 0;
    u32 parity = 0;
    __device__ __forceinline__ u32 x() const { return at + stage * STAGE_BYTES; }
    __device__ __forceinline__ u32 weights() const { return x() + X_BYTES; }
    __device__ __forceinline__ u32 full(int of) const { return at + STAGES * STAGE_BYTES + 8 * of; }
    __device__ __forceinline__ u32 empty(int of) const { return full(STAGES + of); }
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

struct Tiles { // of a cluster, one after another
    int row_tiles, rank, next, stride;
    __device__ __forceinline__ bool any() const { return next < row_tiles * (OUTPUTS / (TILE * OUTPUT_BLOCKS)); }
    __device__ __forceinline__ Place place() const { // tiles at one time share their weights
        return {(next % row_tiles * ROW_BLOCKS + rank % ROW_BLOCKS) * ROWS,
                (next / row_tiles * OUTPUT_BLOCKS + rank / ROW_BLOCKS) * TILE};
    }
};

struct Loader {
    const Args &args;
    int rank;
    u64 x_policy, weight_policy;
    __device__ __forceinline__ void x(const Ring &ring, Place at, int step) const {
        const int part = rank / ROW_BLOCKS * X_PART;
        const u32 to = ring.x() + part * COLUMNS * 2, barrier = ring.full(ring.stage);
        if (OUTPUT_BLOCKS == 1) return load_box(to, &args.x, step * COLUMNS, at.row, 0, barrier, x_policy);
        u32 blocks = 0;
        for (int each = 0; each < OUTPUT_BLOCKS; each++) blocks |= 1u << each * ROW_BLOCKS;
        load_box(to, &args.x, step * COLUMNS, at.row + part, 0, barrier, x_policy, blocks << rank % ROW_BLOCKS);
    }
    __device__ __forceinline__ void weights(const Ring &ring, Place at, int step) const {
        const int part = rank % ROW_BLOCKS * WEIGHT_PART;
        const u32 to = ring.weights() + part * COLUMNS * 2, barrier = ring.full(ring.stage);
        if (ROW_BLOCKS == 1) return load_box(to, &args.weight, step * COLUMNS, at.output, 0, barrier, weight_policy);
        const u32 blocks = (1u << ROW_BLOCKS) - 1 << rank / ROW_BLOCKS * ROW_BLOCKS;
        load_box(to, &args.weight, step * COLUMNS, at.output + part % TILE, part / TILE, barrier, weight_policy, blocks);
    }
};

__device__ __forceinline__ void produce(const Args &args, Ring ring, Tiles tiles) {
    prefetch_map(&args.x);
    prefetch_map(&args.weight);
    const Loader load{args, tiles.rank, keep_last(), keep_first()};
    // Weights do not wait for the launch ahead: nothing writes them.
    Ring first = ring;
    for (int step = 0; step < RING_START; step++, first.advance()) {
        arrive_and_expect(first.full(first.stage), STAGE_BYTES);
        load.weights(first, tiles.place(), step);
    }
    wait_for_earlier_launch();
    let_next_launch_begin();
    for (int step = 0; step < RING_START; step++, ring.advance()) load.x(ring, tiles.place(), step);
    bool was_used = ring.parity; // whether the stage had something before
    for (int step = RING_START; tiles.any(); step = 0, tiles.next += tiles.stride)
        for (; step < STEPS; step++) {
            if (was_used) wait_for(ring.empty(ring.stage), ring.parity ^ 1);
            arrive_and_expect(ring.full(ring.stage), STAGE_BYTES);
            load.weights(ring, tiles.place(), step);
            load.x(ring, tiles.place(), step);
            ring.advance();
            was_used |= ring.stage == 0;
        }
}

// values(index, gate, up): of this thread's sums, 4 of each 8 outputs, two of a row and two 8 rows below.
template <class Values>
__device__ __forceinline__ void store_piece(const Args &args, Values values, int piece, int row, int output, int lane) {
    const int group = piece / 2 * 4, half = piece % 2;
    u32 v[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
        float gate[2], up[2];
#pragma unroll
        for (int each = 0; each < 2; each++) values((group + c) * 4 + 2 * half + each, gate[each], up[each]);
        v[c] = gated(gate[0], up[0], gate[1], up[1]);
    }
    transpose(v, lane & 1, lane & 2);
    if (row + 8 * half < args.count)
        *(uint4 *)(args.out + (u64)(row + 8 * half) * OUTPUTS + output + group * 8 + lane % 4 * 8) =
            make_uint4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ void consume(const Args &args, Ring ring, Tiles tiles, int warp, int lane) {
    const int group = warp / 4, first_row = group * 64 + warp % 4 * 16 + lane / 4;
    float sums[TILE]; // of two rows: gate, then up
    u32 last[TILE / 2]; // the same of the tile before, gate and up as fp16
    int last_row = 0, last_output = 0;
    bool has_last = false;
    auto sum = [&](int index, float &gate, float &up) { gate = sums[index], up = sums[index + TILE / 2]; };
    auto last_sum = [&](int index, float &gate, float &up) {
        const float2 both = unpack_halves(last[index]);
        gate = both.x, up = both.y;
    };
    auto release = [&](int stage) { // every block that loads for this one
        if (CLUSTER > 1) {
            if (lane < CLUSTER) arrive_at_block(ring.empty(stage), lane);
        } else if (lane == 0)
            arrive(ring.empty(stage));
    };
    auto add_step = [&](bool adds) {
        wait_for(ring.full(ring.stage), ring.parity);
        const u64 x = operand(ring.x() + group * 64 * COLUMNS * 2), weights = operand(ring.weights());
        begin_products();
#pragma unroll
        for (int k = 0; k < COLUMNS / 16; k++) multiply(sums, x + 2 * k, weights + 2 * k, adds || k);
        commit_products();
    };
    auto next_step = [&](int piece) {
        const int held = ring.stage;
        ring.advance();
        add_step(true);
        if (OVERLAPS && piece < PIECES && has_last) store_piece(args, last_sum, piece, last_row, last_output, lane);
        wait_for_products<1>();
        release(held);
    };
    while (tiles.any()) {
        const Place at = tiles.place();
        tiles.next += tiles.stride;
        add_step(false);
        // Constant bounds: where a loop might run no times, ptxas makes every product wait for the one ahead.
        if (OVERLAPS) {
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) next_step(piece);
        }
#pragma unroll 1
        for (int step = OVERLAPS ? PIECES + 1 : 1; step < STEPS; step++) {
            if (STAGGERS && group == 1 && step == STEPS - BEHIND && !tiles.any()) meet<256>(1);
            next_step(PIECES);
        }
        if (STAGGERS && group == 0 && !tiles.any()) meet_and_go_on<256>(1);
        wait_for_products<0>();
        release(ring.stage);
        ring.advance();
        last_row = at.row + first_row, last_output = at.output;
        has_last = tiles.any();
        if (OVERLAPS && has_last) {
#pragma unroll
            for (int index = 0; index < TILE / 2; index++) last[index] = pack_halves(sums[index], sums[index + TILE / 2]);
        } else {
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) store_piece(args, sum, piece, last_row, last_output, lane);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gated_product(const __grid_constant__ Args args) {
    Ring ring{shared_address(shared_memory())};
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const Tiles tiles{args.row_tiles, (int)(blockIdx.x % CLUSTER), (int)(blockIdx.x / CLUSTER), (int)(gridDim.x / CLUSTER)};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(ring.full(stage), 1);
            init_barrier(ring.empty(stage), GROUPS * 4 * CLUSTER);
        }
        publish_barriers();
    }
    meet_cluster();
    if (warp < GROUPS * 4) {
        if (OVERLAPS && GROUPS == 2) take_registers<232>();
        consume(args, ring, tiles, warp, lane);
    } else {
        if (OVERLAPS && GROUPS == 2) give_registers_back<40>();
        if (warp == GROUPS * 4 && lane == 0) produce(args, ring, tiles);
        __syncwarp();
    }
    meet_cluster(); // before the others have signalled here, shared memory must not go
}
