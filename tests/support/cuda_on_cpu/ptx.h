// What depth_cuda/ptx.cu and row_cuda/ptx.cu have in PTX. Copies arrive as late as they may.

static uint4 load_u4(const void *at) {
    leave_cpu();
    return *(const uint4 *)at;
}
static uint2 load_u2(const void *at) {
    leave_cpu();
    return *(const uint2 *)at;
}
static u32 load_u(const void *at) {
    leave_cpu();
    return *(const u32 *)at;
}
static void store_u(u32 *at, u32 v) { *at = v; }
static void store_u2(u32 *at, u32 x, u32 y) { at[0] = x, at[1] = y; }
static void fence() {}
static uint4 load_constant(const void *at) { return *(const uint4 *)at; }
static void meet_launches() {}
static uint2 load_constant_u2(const void *at) { return *(const uint2 *)at; }
static u32 load_constant_u(const void *at) { return *(const u32 *)at; }
static u8 *shared_memory() { return (u8 *)fiber->shared; }
static u32 shared_address(const void *at) { return (u32)((const char *)at - fiber->shared); }
static uint4 load_shared(u32 at) { return *(const uint4 *)(fiber->shared + at); }
static void copy(u32 to, const void *from, u64) { fiber->asked.push_back({fiber->shared + to, (const char *)from}); }
static void commit_copies() { fiber->groups.push_back(std::move(fiber->asked)), fiber->asked.clear(); }
template <int N> static void wait_copies() {
    while (fiber->groups.size() > N) {
        for (const Copy &each : fiber->groups.front()) memcpy(each.to, each.from, 16);
        fiber->groups.erase(fiber->groups.begin());
    }
}
static u64 keep_share(float) { return 0; }
static u64 keep_nothing() { return 0; }
template <int COUNT> static void meet(int barrier) { meet_at(barriers[fiber->block * 8 + barrier], COUNT); }
static u32 rounded(float v) { // to bf16, to the nearest even
    const u32 bits = __float_as_uint(v);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static u32 pack(float first, float second) { return rounded(first) | rounded(second) << 16; }
static float half_at(u32 pair, int half) { return __uint_as_float(half ? pair & 0xffff0000u : pair << 16); }
static u32 greater(u32 a, u32 b) {
    return (half_at(a, 0) > half_at(b, 0) ? a : b) & 0xffff | (half_at(a, 1) > half_at(b, 1) ? a : b) & 0xffff0000u;
}
static u32 at_or_above(u32 a, u32 b) {
    return (half_at(a, 0) >= half_at(b, 0) ? 0xffff : 0) | (half_at(a, 1) >= half_at(b, 1) ? 0xffff0000u : 0);
}
