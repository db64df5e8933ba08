// What the products share: the ring of stages that one warp, the producer, fills by TMA. Part of one source, see
// gated.cu and rows.cu.
//
// A block computes tiles of ROWS rows and as many outputs as WEIGHTS rows of the weight give. A stage is 64 columns of both.
// Blocks of a cluster have ROW_BLOCKS tiles one below the other and OUTPUT_BLOCKS side by side; each loads a part of what
// several of them read and sends it to them all.

constexpr int COLUMNS = 64, ROWS = 64 * GROUPS, CLUSTER = ROW_BLOCKS * OUTPUT_BLOCKS, THREADS = GROUPS * 128 + 128;
constexpr int X_BYTES = ROWS * COLUMNS * 2, STAGE_BYTES = X_BYTES + WEIGHTS * COLUMNS * 2;
constexpr int X_PART = ROWS / OUTPUT_BLOCKS, WEIGHT_PART = WEIGHTS / ROW_BLOCKS; // rows that a block loads
static_assert(SHARED == STAGES * (STAGE_BYTES + 16), "ring and its barriers");

struct Place { int row, output, column; };

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
    __device__ __forceinline__ void release(int of, int lane) const { // to every block that loads for this one
        if (CLUSTER > 1) {
            if (lane < CLUSTER) arrive_at_block(empty(of), lane);
        } else if (lane == 0)
            arrive(empty(of));
    }
    __device__ __forceinline__ void prepare() const {
        if (threadIdx.x == 0) {
            for (int of = 0; of < STAGES; of++) {
                init_barrier(full(of), 1);
                init_barrier(empty(of), GROUPS * 4 * CLUSTER);
            }
            publish_barriers();
        }
        meet_cluster();
    }
};

struct Loader {
    const TensorMap *x_map, *weight_map;
    int rank;
    u64 x_policy, weight_policy;
    __device__ __forceinline__ void x(const Ring &ring, Place at, int step) const {
        const int part = rank / ROW_BLOCKS * X_PART, column = at.column + step * COLUMNS;
        const u32 to = ring.x() + part * COLUMNS * 2, barrier = ring.full(ring.stage);
        if (OUTPUT_BLOCKS == 1) return load_box(to, x_map, column, at.row, 0, barrier, x_policy);
        u32 blocks = 0;
        for (int each = 0; each < OUTPUT_BLOCKS; each++) blocks |= 1u << each * ROW_BLOCKS;
        load_box(to, x_map, column, at.row + part, 0, barrier, x_policy, blocks << rank % ROW_BLOCKS);
    }
    __device__ __forceinline__ void weights(const Ring &ring, Place at, int step) const {
        const int part = rank % ROW_BLOCKS * WEIGHT_PART, column = at.column + step * COLUMNS;
        const u32 to = ring.weights() + part * COLUMNS * 2, barrier = ring.full(ring.stage);
        if (ROW_BLOCKS == 1) return load_box(to, weight_map, column, at.output, 0, barrier, weight_policy);
        const u32 blocks = (1u << ROW_BLOCKS) - 1 << rank / ROW_BLOCKS * ROW_BLOCKS;
        load_box(to, weight_map, column, at.output + part % TILE, part / TILE, barrier, weight_policy, blocks);
    }
};

// tiles: any(), place() and advance(), one after another.
template <int STEPS, class Tiles> __device__ __forceinline__ void produce(const Loader &load, Ring ring, Tiles tiles) {
    constexpr int START = STAGES < STEPS ? STAGES : STEPS;
    prefetch_map(load.x_map);
    prefetch_map(load.weight_map);
    // Weights do not wait for the launch ahead: nothing writes them.
    Ring first = ring;
    for (int step = 0; step < START; step++, first.advance()) {
        arrive_and_expect(first.full(first.stage), STAGE_BYTES);
        load.weights(first, tiles.place(), step);
    }
    wait_for_earlier_launch();
    let_next_launch_begin();
    for (int step = 0; step < START; step++, ring.advance()) load.x(ring, tiles.place(), step);
    bool was_used = ring.parity; // whether the stage had something before
    for (int step = START; tiles.any(); step = 0, tiles.advance())
        for (; step < STEPS; step++) {
            if (was_used) wait_for(ring.empty(ring.stage), ring.parity ^ 1);
            arrive_and_expect(ring.full(ring.stage), STAGE_BYTES);
            load.weights(ring, tiles.place(), step);
            load.x(ring, tiles.place(), step);
            ring.advance();
            was_used |= ring.stage == 0;
        }
    // Before the last arrivals of other blocks of the cluster have come, the barriers must not go.
    if (CLUSTER > 1)
        for (int stage = 0; stage < STAGES; stage++, ring.advance()) {
            if (was_used) wait_for(ring.empty(ring.stage), ring.parity ^ 1);
            was_used |= ring.stage == STAGES - 1;
        }
}

// Of a lane's two rows, `row` and 8 below: RMSNorm's factor, by SQUARES sums of squares that lie side by side; 0: it is in
// the rows. Asked for early and used late, they cost no time.
struct RowSquares {
    static constexpr int EACH = SQUARES / 4; // a lane of the four that have the same rows
    float v[2][EACH + (EACH == 0)];
    __device__ __forceinline__ RowSquares(const float *squares, int row, int count, int lane) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float *const from = squares + (u64)(row + 8 * half) * SQUARES + lane % 4 * EACH;
#pragma unroll
            for (int part = 0; part < EACH; part += 4) {
                float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (row + 8 * half < count) {
                    if (EACH == 1)
                        four.x = load_new(from);
                    else if (EACH == 2) {
                        const float2 two = load_new((const float2 *)from);
                        four.x = two.x, four.y = two.y;
                    } else
                        four = load_new((const float4 *)(from + part));
                }
                const float all[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int each = 0; each < (EACH < 4 ? EACH : 4); each++) v[half][part + each] = all[each];
            }
        }
    }
    __device__ __forceinline__ float factor(int half, float eps) const {
        if (SQUARES == 0) return 1.0f;
        float sum = 0.0f;
#pragma unroll
        for (int part = 0; part < EACH; part++) sum += v[half][part];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        return rsqrtf(sum * (1.0f / WIDTH) + eps);
    }
};
static_assert(SQUARES == 0 || SQUARES == 4 || SQUARES == 8 || SQUARES % 16 == 0, "parts that four lanes read");
