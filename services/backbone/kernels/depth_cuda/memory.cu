// What blocks and their memory hold. Part of one source, see shapes.cu.

// What blocks exchange of some rows: in COPIES copies the residual stream times the next norm's scale [B, D] and the
// sums of the squares of 8 columns [B, D / 8]; in QKV_COPIES [B, QKV]; what attention gives [B, D]; the MLP's columns
// [B, FF]; and the parts of `down` [CTAS, RANKS, B, 8], from each block that has a part of the inner dimension.
struct Exchange {
    u32 *x, *squares, *qkv, *attended, *gated, *inbox;
};
struct Args {
    const u8 *first, *layers, *heads; // packed: projection and head 0; decoder; heads 1 and on
    const u16 *norms;                 // [2 LAYERS + 1, D]
    const float *rope;                // [PLACES + 1, HD], (cos, sin) of each pair
    const u16 *table;                 // [K, VOCAB, D] projected embeddings
    const u16 *first_qkv;             // [K, VOCAB, QKV] what the first layer makes of them
    const u16 *hidden;                // [B, WIDE] the backbone's output
    const i64 *slots, *top_k, *seeds, *frames;
    const float *temperature;
    i64 *codes;        // [B, K]
    const i64 *forced; // [B, K] codes to use instead of sampled ones, or null
    u32 *logits, *drawn; // exchanged too: [K, B, BINS], and the newest codes [B]
    Exchange both, rows; // of the first two positions' 2 B rows, and of the B rows of any other
    u16 *keys, *values; // [LAYERS, B, KV, PLACES * HD] each
    u32 *frame;         // [1] frames made
    float eps;
};

struct Run {        // pieces that a warp reads one after another
    const u8 *from; // warp 0's
    u64 policy;
    int pieces, stride; // of the run, and from warp to warp
};
constexpr int RUNS = JOINS ? 2 * K - 1 : 2 * K;
struct Sampling { // of a block's row
    u64 seed;
    u32 frame;
    int top_k;
    float temperature;
};
struct Shared {
    u8 ring[WARPS][STAGES][STAGE];
    float parts[joined::PARTS_FLOATS > plain::PARTS_FLOATS ? joined::PARTS_FLOATS : plain::PARTS_FLOATS];
    float squares[2][WARPS * (joined::SUMS > plain::SUMS ? joined::SUMS : plain::SUMS)];
    union { // no product of a layer needs what another has here
        struct {
            // Of attention: queries, results; the newest place's key and value.
            __align__(16) u32 query[HEADS][HD / 2];
            __align__(16) u32 attended[HEADS][HD / 2];
            __align__(16) float scores[HEADS][PLACES];
            __align__(16) u32 newest[KV][2][HD / 2];
            // A single row goes through here to the lanes that need it, a part for each warp.
            __align__(16) u32 stream[ROWS == 1 ? WARPS : 1][D / WARPS / 2];
        };
        __align__(16) u32 gated[ROWS == 1 ? WARPS : 1][FF / WARPS / 4]; // likewise, half of a part
    };
    __align__(16) u32 zeros[4];
    Sampling sampling;
    uint4 best[2][WARPS]; // of a warp's candidates: score, token, logit, number
    Run runs[RUNS + 1];
};
static_assert(sizeof(Shared) <= SHARED, "shared memory");
