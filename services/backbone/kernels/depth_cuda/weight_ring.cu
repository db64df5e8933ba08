// Weights on their way: what each warp reads, prefetched in order. Part of one source, see shapes.cu.

// Pieces that one warp reads of all layers; of the blocks below SPLIT, and of those above, which have a tile of qkv
// less.
constexpr int TILES = QKV / 8, FULL = (TILES + CTAS - 1) / CTAS, SPLIT = TILES - (FULL - 1) * CTAS;
constexpr int LAYER_PIECES = FULL + 1 + 16 + 8;

// The weights that one warp reads in a frame, in order, brought into its ring STAGES pieces ahead, each a group of
// asynchronous copies. They lie in runs: one for the projection and head 0, then one for the layers and one for the
// head of each step. Steps 0 and 1 are one where JOINS; else step 0 has no head, and of the last layer qkv alone. All
// other steps have no qkv of the first layer.
struct Ring {
    u32 ring; // shared address of this lane's part of this warp's ring
    int at, freed, run, left;
    const u8 *next;
    u64 policy;

    __device__ __forceinline__ void fetch(Shared *s, int stage) {
        if (left == 0) {
            const Run &r = s->runs[++run];
            left = r.pieces, policy = r.policy;
            next = r.from + threadIdx.x / 32 * r.stride * STAGE + threadIdx.x % 32 * 16;
        }
        if (left > 0) {
            left--;
#pragma unroll
            for (int part = 0; part < STAGE / 512; part++)
                copy(ring + stage * STAGE + part * 512, next + part * 512, policy);
            next += STAGE;
        }
        commit_copies();
    }
    __device__ __forceinline__ void start(Shared *s, const Args &p) {
        const int cta = blockIdx.x, is_less = cta >= SPLIT, each = LAYERS * (LAYER_PIECES - is_less);
        const u64 keep = keep_share(KEEP / 100.0f), pass = keep_nothing();
        const u8 *layers = p.layers + ((is_less ? (u64)SPLIT * WARPS * LAYERS * LAYER_PIECES : 0) +
                                       (u64)(cta - is_less * SPLIT) * WARPS * each) *
                                          STAGE;
        for (int r = threadIdx.x; r <= RUNS; r += THREADS) {
            const int skipped = FULL - is_less; // the first layer's qkv
            Run it = {layers + skipped * STAGE, KEEP ? keep : pass, each - skipped, each};
            if (r == 0)
                it = {p.first + (u64)cta * WARPS * 6 * STAGE, pass, 6, 6};
            else if (r == 1)
                it.from = layers, it.pieces = JOINS ? each : each - (1 + 16 + 8);
            else if (r == RUNS)
                it.pieces = -1;
            else if (r % 2 != JOINS)
                it = {p.heads + ((u64)cta * (K - 1) + (r + JOINS - 3) / 2) * WARPS * 2 * STAGE, pass, 2, 2};
            s->runs[r] = it;
        }
        ring = shared_address(&s->ring[threadIdx.x / 32][0][0]) + threadIdx.x % 32 * 16;
        at = 0, freed = 0, run = -1, left = 0;
        __syncthreads();
#pragma unroll 1
        for (int stage = 0; stage < STAGES; stage++) fetch(s, stage);
    }
    template <int N> __device__ __forceinline__ void wait() const { // for the next N pieces
        wait_copies<STAGES - N>();
        __syncwarp();
    }
    template <int N> __device__ __forceinline__ void release(Shared *s) { // the N pieces read last
        __syncwarp();
#pragma unroll
        for (int each = 0; each < N; each++) {
            fetch(s, freed);
            if (++freed == STAGES) freed = 0;
        }
    }
};
