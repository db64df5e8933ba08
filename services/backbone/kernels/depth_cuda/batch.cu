// What follows from the number of rows, B, and from JOINED: whether they are both first positions of each row of the
// batch. Part of one source, see shapes.cu, in which it stands once for each.
constexpr bool HIGH = B > 8; // rows 8 to 15 of a tile are used
constexpr int HALVES = HIGH ? 2 : 1, SUMS = HALVES * 8;
constexpr int AR = 4 * HALVES; // registers of a row fragment, 32 columns of the inner dimension
constexpr int X_WORDS = B * D / 2, SQUARES_WORDS = B * D / 8, QKV_WORDS = B * QKV;
constexpr int QKV_COPIES = B == 1 ? COPIES : 1; // of several rows each is read by one block
// Partial results. Up to 8 rows successive products use buffers of their own, which saves a barrier.
constexpr int TILE_PARTS = WARPS * B * 8, FEW = 2; // floats of a tile; tiles of qkv, out, down and a head
constexpr bool ROOMY = B <= 8 && !JOINED;
constexpr int CHUNK = JOINED ? 8 : 16; // tiles whose parts fit
// Pieces of gate and up, and of down, that are taken out of the ring before their rows are there: that makes room.
constexpr int AHEAD = JOINED ? 0 : 4;
constexpr int PARTS_FLOATS = (CHUNK + (ROOMY ? 2 * FEW : 0)) * TILE_PARTS;
