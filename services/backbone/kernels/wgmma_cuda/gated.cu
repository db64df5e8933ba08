// The MLP's first product with its activation for many rows: silu(x gateᵀ) · (x upᵀ). ../gated_product.py launches it.
//
// ring.cu brings x and both weights, TILE outputs of each. Each of GROUPS warpgroups multiplies 64 of the rows and applies
// the activation: to the last tile's sums, which it keeps as fp16 meanwhile, while the tensor cores multiply the next. WIDTH
// of x and OUTPUTS of the product: the shape. Rows may lack RMSNorm's factor, which the sums get.

constexpr int STEPS = WIDTH / COLUMNS;
constexpr int PIECES = TILE / 16; // that a tile is stored in: 32 outputs of a row each
constexpr bool OVERLAPS = STEPS > PIECES; // a piece a step of the next tile
// In a block's last tile the second of two warpgroups waits before so many steps until the first has made all of its: so the
// first one's activation overlaps with products too. The ring holds the steps that one of them has ahead of the other.
constexpr int BEHIND = 3;
constexpr bool STAGGERS = GROUPS == 2 && STEPS > PIECES + 1 + BEHIND && STAGES > BEHIND;

struct __align__(64) Args {
    TensorMap x, weight; // [1, count, WIDTH]; [gate or up, OUTPUTS, WIDTH]
    u16 *out;            // [count, OUTPUTS]
    const float *squares; // [count, SQUARES], see RowSquares
    int count, row_tiles; // row_tiles: of a cluster
    float eps;
};

// silu(gate) * up of two, with one inverse for both.
__device__ __forceinline__ u32 gated(float gate0, float up0, float gate1, float up1) {
    constexpr float LOG2_E = 1.4426950408889634f;
    const float a = 1.0f + exp2_of(fminf(-LOG2_E * gate0, 60.0f)), b = 1.0f + exp2_of(fminf(-LOG2_E * gate1, 60.0f));
    const float inverse = inverse_of(a * b);
    return pack(gate0 * up0 * (b * inverse), gate1 * up1 * (a * inverse));
}
struct Tiles { // of a cluster, one after another
    int row_tiles, rank, next, stride;
    __device__ __forceinline__ bool any() const { return next < row_tiles * (OUTPUTS / (TILE * OUTPUT_BLOCKS)); }
    __device__ __forceinline__ Place place() const { // tiles at one time share their weights
        return {(next % row_tiles * ROW_BLOCKS + rank % ROW_BLOCKS) * ROWS,
                (next / row_tiles * OUTPUT_BLOCKS + rank / ROW_BLOCKS) * TILE, 0};
    }
    __device__ __forceinline__ void advance() { next += stride; }
};

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
        ring.release(held, lane);
    };
    wait_for_earlier_launch();
    while (tiles.any()) {
        const Place at = tiles.place();
        tiles.advance();
        const RowSquares squares(args.squares, at.row + first_row, args.count, lane);
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
        ring.release(ring.stage, lane);
        ring.advance();
        const float first = squares.factor(0, args.eps), second = squares.factor(1, args.eps);
        if (SQUARES) {
#pragma unroll
            for (int index = 0; index < TILE; index++) sums[index] *= index & 2 ? second : first;
        }
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
    ring.prepare();
    if (warp < GROUPS * 4) {
        if (OVERLAPS && GROUPS == 2) take_registers<232>();
        consume(args, ring, tiles, warp, lane);
    } else {
        if (OVERLAPS && GROUPS == 2) give_registers_back<40>();
        if (warp == GROUPS * 4 && lane == 0) produce<STEPS>({&args.x, &args.weight, tiles.rank, keep_last(), keep_first()}, ring, tiles);
        __syncwarp();
    }
    meet_cluster(); // before the others have signalled here, shared memory must not go
}
