// What wgmma_cuda/ptx.cu has in PTX. Boxes arrive one by one in an order of chance, products are made as late as they may be.
#include <functional>
#include <map>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
struct alignas(64) TensorMap { u64 words[16]; }; // address, sizes, strides in bytes, box

static u8 *shared_memory() { return (u8 *)fiber->shared; }
static u32 shared_address(const void *at) { return (u32)((const char *)at - fiber->shared); }
static char *shared_of(u32 rank) { // of a block of the cluster
    constexpr long ROOM = (SHARED + 4095) / 4096 * 4096;
    return fiber->shared + ((long)rank - (long)(fiber->block % (ROW_BLOCKS * OUTPUT_BLOCKS))) * ROOM;
}

struct PhaseBarrier {
    u8 phase, pending, count, nothing;
    int bytes;
    void settle() {
        if (pending == 0 && bytes == 0) phase ^= 1, pending = count;
    }
};
static PhaseBarrier &barrier_at(char *shared, u32 at) { return *(PhaseBarrier *)(shared + at); }
static void init_barrier(u32 at, u32 count) { barrier_at(fiber->shared, at) = {0, (u8)count, (u8)count, 0, 0}; }
static void publish_barriers() {}
static void arrive_at_block(u32 at, u32 rank) {
    PhaseBarrier &barrier = barrier_at(shared_of(rank), at);
    barrier.pending--;
    barrier.settle();
}
static void arrive(u32 at) { arrive_at_block(at, fiber->block % (ROW_BLOCKS * OUTPUT_BLOCKS)); }
static void arrive_and_expect(u32 at, u32 bytes) {
    barrier_at(fiber->shared, at).bytes += bytes;
    arrive(at);
}
static std::vector<std::function<void()>> on_the_way;
static void wait_a_turn() {
    if (!on_the_way.empty() && rand() % 4 == 0) {
        std::swap(on_the_way[rand() % on_the_way.size()], on_the_way.back());
        const auto arrives = std::move(on_the_way.back());
        on_the_way.pop_back();
        arrives();
    }
    leave_cpu();
}
static void wait_for(u32 at, u32 parity) {
    while (barrier_at(fiber->shared, at).phase == parity) wait_a_turn();
}
template <int COUNT> static void meet(int barrier) { meet_at(barriers[fiber->block * 8 + barrier], COUNT); }
template <int COUNT> static void meet_and_go_on(int barrier) {
    Barrier &at = barriers[fiber->block * 8 + barrier];
    if (++at.count == COUNT) at.count = 0, at.turn++;
}
static void meet_cluster() {
    constexpr int BLOCKS = ROW_BLOCKS * OUTPUT_BLOCKS;
    meet_at(barriers[fiber->block / BLOCKS * BLOCKS * 8], BLOCKS * (GROUPS * 128 + 128));
}
static void wait_for_earlier_launch() {}
static void let_next_launch_begin() {}
template <int N> static void give_registers_back() {}
template <int N> static void take_registers() {}

static u64 keep_last() { return 0; }
static u64 keep_first() { return 0; }
static void prefetch_map(const TensorMap *) {}
// The PTX manual's swizzle of 128 bytes: bits 4 to 6 of an address are turned by its bits 7 to 9.
static u32 swizzled(u32 at) { return at ^ (at >> 7 & 7) << 4; }
static void load_box(u32 to, const TensorMap *map, int c0, int c1, int c2, u32 barrier, u64, u32 blocks) {
    const u64 *w = map->words;
    const u32 bytes = (u32)(w[6] * w[7] * w[8] * 2);
    for (u32 rank = 0; rank < 32; rank++) {
        if (!(blocks >> rank & 1)) continue;
        char *shared = shared_of(rank);
        on_the_way.push_back([=] {
            u32 at = to;
            for (u64 z = c2; z < c2 + w[8]; z++)
                for (u64 y = c1; y < c1 + w[7]; y++)
                    for (u64 x = c0; x < c0 + w[6]; x++, at += 2) {
                        const bool inside = x < w[1] && y < w[2] && z < w[3];
                        *(u16 *)(shared + swizzled(at)) = inside ? *(const u16 *)(w[0] + x * 2 + y * w[4] + z * w[5]) : 0;
                    }
            barrier_at(shared, barrier).bytes -= bytes;
            barrier_at(shared, barrier).settle();
        });
    }
}
static void load_box(u32 to, const TensorMap *map, int c0, int c1, int c2, u32 barrier, u64 policy) {
    load_box(to, map, c0, c1, c2, barrier, policy, 1u << fiber->block % (ROW_BLOCKS * OUTPUT_BLOCKS));
}

static u64 operand(u32 at) { return at >> 4; }
struct Products { std::vector<std::function<void()>> open; std::vector<std::vector<std::function<void()>>> groups; };
static std::map<Fiber *, Products> products;
static void begin_products() {}
static void commit_products() {
    Products &mine = products[fiber];
    mine.groups.push_back(std::move(mine.open));
    mine.open.clear();
}
template <int N> static void wait_for_products() {
    for (int turns = rand() % 8; turns; turns--) wait_a_turn();
    Products &mine = products[fiber];
    for (; mine.groups.size() > N; mine.groups.erase(mine.groups.begin()))
        for (auto &each : mine.groups.front()) each();
    __syncwarp(); // what one lane waits for, all do
}
// The PTX manual's layout of wgmma's sums: of a warp's 16 rows lane 4 r + q has r and r + 8, of each 8 columns 2 q and 2 q + 1.
template <int SUMS> static void multiply(float (&sums)[SUMS], u64 x, u64 weights, int adds) {
    float *d = sums;
    const char *shared = fiber->shared;
    const int row = fiber->thread / 32 % 4 * 16 + fiber->lane / 4, column = fiber->lane % 4 * 2;
    auto value = [=](u64 matrix, int r, int k) { // rows of 128 bytes, 8 of them 1,024 bytes after the last 8
        return __uint_as_float(*(const u16 *)(shared + swizzled((u32)(matrix << 4) + r * 128 + k * 2)) << 16);
    };
    products[fiber].open.push_back([=] {
        for (int index = 0; index < SUMS; index++) {
            const int r = row + (index & 2) * 4, c = index / 4 * 8 + column + (index & 1);
            float sum = adds ? d[index] : 0.0f;
            for (int k = 0; k < 16; k++) sum += value(x, r, k) * value(weights, c, k);
            d[index] = sum;
        }
    });
}
template <class Value> static Value load_new(const Value *at) {
    wait_a_turn();
    return *at;
}
static float exp2_of(float x) { return exp2f(x); }
static float inverse_of(float x) { return 1.0f / x; }
static u32 rounded(float v) { // to bf16, to the nearest even
    const u32 bits = __float_as_uint(v);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static u32 pack_halves(float first, float second) {
    const _Float16 both[2] = {(_Float16)first, (_Float16)second};
    return *(const u32 *)both;
}
static float2 unpack_halves(u32 v) {
    const _Float16 *both = (const _Float16 *)&v;
    return {(float)both[0], (float)both[1]};
}
static u32 pack(float first, float second) { return rounded(first) | rounded(second) << 16; }
