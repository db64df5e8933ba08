// One frame of the depth decoder in one launch: all steps, layers, heads and samples.
//
// 128 blocks of 8 warps, one block a multiprocessor. Weights are packed in the order in which a warp reads them
// (persistent.py packs them), and every warp prefetches its own part of them into a ring in shared memory: weights
// depend on nothing, so memory is busy while blocks wait for each other. A matrix product is mma.m16n8k16 with the
// batch as its 16 rows; a warp has an eighth of the inner dimension, and the block sums the eight partial results in a
// fixed order, so results do not change from run to run.
//
// Blocks exchange values without barriers. Each 32-bit word carries a tag bit that flips with every use of
// the buffer; a reader polls until the tag is this use's. The tag is the top bit of the exponent (of both halves of a
// pair of bf16), which is free because values are exchanged times 2^-64; that scaling is exact. Each value that a block
// sends depends on values of all blocks that were sent before it, so no buffer is overwritten while a block still reads
// it.
//
// With one row all blocks read the keys and values that block 0 writes. They have no tags: block 0 fences them before
// the last words that it sends in a step, its logits (in step 0, which has none, the stream), and the reader fences
// after it has those. The rings are full then, so a fence does not wait for their copies.
//
// The files of this folder are one source, joined in the order of persistent.py. Compiled by NVRTC with ROWS, LAYERS, CODEBOOKS, VOCAB, STAGES, SHARED and KEEP defined. Includes nothing.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int CTAS = 128, WARPS = 8, THREADS = 256, STAGE = 2048;
constexpr int D = 1024, HEADS = 8, KV = 2, HD = 128, FF = 8192, WIDE = 2048, BINS = 2048, PLACES = 32;
constexpr int QKV = (HEADS + 2 * KV) * HD;
constexpr int B = ROWS, K = CODEBOOKS;
constexpr bool HIGH = B > 8;     // rows 8 to 15 of a tile are used
constexpr bool SHARES_KEYS = B == 1; // all blocks read the one row's keys and values
constexpr int AR = HIGH ? 8 : 4; // registers of a row fragment, 32 columns of the inner dimension
// What all blocks poll at once has several copies, so that they do not all poll the same lines of the L2 cache.
constexpr int COPIES = 4, X_WORDS = B * D / 2, SQUARES_WORDS = B * D / 8, QKV_WORDS = B * QKV;
constexpr int QKV_COPIES = B == 1 ? COPIES : 1; // of several rows each is read by one block
constexpr u32 PAIR = 0x40004000u, SINGLE = 0x40000000u;                     // the bits of a pair of bf16 and of a float
constexpr float DOWN = 5.421010862427522e-20f, UP = 1.8446744073709552e19f; // 2^-64, 2^64
static_assert(B >= 1 && B <= 16 && K <= PLACES && D == WARPS * HD, "shapes");

struct Args {
    const u8 *first, *layers, *heads; // packed: projection and head 0; decoder; heads 1 and on
    const u16 *norms;                 // [2 LAYERS + 1, D]
    const float *rope;                // [PLACES + 1, HD], (cos, sin) of each pair
    const u16 *table;                 // [K, VOCAB, D] projected embeddings
    const u16 *hidden;                // [B, WIDE] the backbone's output
    const i64 *slots, *top_k, *seeds, *frames;
    const float *temperature;
    i64 *codes;        // [B, K]
    const i64 *forced; // [B, K] codes to use instead of sampled ones, or null
    // Exchanged, the first two in COPIES copies and the third in QKV_COPIES: the residual stream times the next norm's scale [B, D], the sums of
    // the squares of 8 columns [B, D / 8], [B, QKV], [K, B, BINS], [B, D], [B, FF], and the newest codes [B].
    u32 *x, *squares, *qkv, *logits, *attended, *gated, *drawn;
    u16 *keys, *values; // [LAYERS, B, KV, PLACES * HD] each
    u32 *frame;         // [1] frames made
    float eps;
};

struct Run {        // pieces that a warp reads one after another
    const u8 *from; // warp 0's
    u64 policy;
    int pieces, stride; // of the run, and from warp to warp
};
constexpr int RUNS = 2 * K;
// Partial results. Up to 8 rows successive products use buffers of their own, which saves a barrier.
constexpr int TILE_PARTS = WARPS * B * 8, FEW = 3; // floats of a tile; tiles of any product but gate and up
constexpr bool ROOMY = B <= 8, EARLY = B <= 2;     // EARLY: enough registers to make the noise ahead of the logits
constexpr int PARTS_FLOATS = (16 + (ROOMY ? 2 * FEW : 0)) * TILE_PARTS;
struct Shared {
    u8 ring[WARPS][STAGES][STAGE];
    float parts[PARTS_FLOATS];
    float squares[2][WARPS][16];
    // Of attention: queries, results; the newest place's key and value.
    __align__(16) u32 query[HEADS][HD / 2];
    __align__(16) u32 attended[HEADS][HD / 2];
    __align__(16) float scores[HEADS][PLACES];
    __align__(16) u32 newest[KV][2][HD / 2];
    // A single row goes through here to the lanes that need it, a part for each warp.
    __align__(16) u32 stream[B == 1 ? WARPS : 1][D / WARPS / 2], gated[B == 1 ? WARPS : 1][FF / WARPS / 2], zeros[4];
    uint4 best[2][WARPS]; // of a warp's candidates: score, token, logit, number
    Run runs[RUNS + 1];
};
static_assert(sizeof(Shared) <= SHARED, "shared memory");
