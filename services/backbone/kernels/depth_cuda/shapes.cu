// One frame of the depth decoder in one launch: all steps, layers, heads and samples.
//
// 128 blocks of 8 warps, one block a multiprocessor. Weights are packed in the order in which a warp reads them
// (persistent.py packs them), and every warp prefetches its own part of them into a ring in shared memory: weights
// depend on nothing, so memory is busy while blocks wait for each other. A matrix product is mma.m16n8k16 with the
// batch as its 16 rows; a warp has an eighth of the inner dimension, and the block sums the eight partial results in a
// fixed order, so results do not change from run to run.
//
// A step's input is a row of a table, so what the first layer's norm and qkv make of it is a row of a second table.
// Up to 8 rows, the backbone's row and the first code go through the layers together, as two rows of each; with more,
// the first is a step of its own, which is there for its keys and values alone.
//
// Blocks exchange values without barriers. Each 32-bit word carries a tag bit that flips with every use of
// the buffer; a reader polls until the tag is this use's. The tag is the top bit of the exponent (of both halves of a
// pair of bf16), which is free because values are exchanged times 2^-64; that scaling is exact. Each value that a block
// sends depends on values of all blocks that were sent before it, so no buffer is overwritten while a block still reads
// it (test_persistent.py goes through the exchanges).
//
// With one row all blocks read the keys and values that block 0 writes. They have no tags: block 0 fences them before
// the last words that it sends in a step, its logits, and the reader fences after it has those. The rings are full
// then, so a fence does not wait for their copies.
//
// The files of this folder are one source, joined by persistent.py; some stand in it twice, for each set of rows.
// Compiled by NVRTC with ROWS, LAYERS, CODEBOOKS, VOCAB, STAGES, SHARED, KEEP and RANKS defined. Includes nothing.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int CTAS = 128, WARPS = 8, THREADS = 256, STAGE = 2048;
constexpr int D = 1024, HEADS = 8, KV = 2, HD = 128, FF = 8192, WIDE = 2048, BINS = 2048, PLACES = 32;
constexpr int QKV = (HEADS + 2 * KV) * HD;
constexpr int K = CODEBOOKS;
constexpr bool SHARES_KEYS = ROWS == 1; // all blocks read the one row's keys and values
// Whether the first two positions of each row go through the layers together, as two rows.
constexpr bool JOINS = ROWS <= 8;
// What all blocks poll at once has several copies, so that they do not all poll the same lines of the L2 cache.
constexpr int COPIES = 4;
constexpr u32 PAIR = 0x40004000u, SINGLE = 0x40000000u;                     // the bits of a pair of bf16 and of a float
constexpr float DOWN = 5.421010862427522e-20f, UP = 1.8446744073709552e19f; // 2^-64, 2^64
// `down` is split along its inner dimension over RANKS neighbours: each has its part of the columns for the outputs of
// all, and sends the others their sums.
constexpr bool SPLITS = RANKS > 1;
static_assert(ROWS >= 1 && ROWS <= 16 && K >= 2 && K <= PLACES && D == WARPS * HD, "shapes");
static_assert(RANKS == 1 || RANKS == 8, "one piece of `down` a tile, or all");
