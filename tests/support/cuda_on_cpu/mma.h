// The PTX manual's layout of mma.m16n8k16: lane 4 r + q has of a rows r and r + 8, columns 2 q, 2 q + 1 and 8 more; of b
// column r, rows 2 q, 2 q + 1 and 8 more; of c rows r and r + 8, columns 2 q and 2 q + 1.
static void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Fragment *fragments = fiber->warp->fragments[fiber->exchanges++ & 1];
    fragments[fiber->lane] = {{a0, a1, a2, a3}, {b0, b1}};
    __syncwarp();
    auto dot = [](u32 x, u32 y) {
        return __uint_as_float(x << 16) * __uint_as_float(y << 16) +
               __uint_as_float(x & 0xffff0000u) * __uint_as_float(y & 0xffff0000u);
    };
    for (int pair = 0; pair < 4; pair++) {
        const Fragment &a = fragments[fiber->lane / 4 * 4 + pair];
        for (int column = 0; column < 2; column++) {
            const Fragment &b = fragments[(fiber->lane % 4 * 2 + column) * 4 + pair];
            for (int half = 0; half < 2; half++)
                c[half * 2 + column] += dot(a.a[half], b.b[0]) + dot(a.a[2 + half], b.b[1]);
        }
    }
}
// movmatrix: lane 4 r + q has columns 2 q and 2 q + 1 of row r, and then rows 2 q and 2 q + 1 of column r.
static u32 transposed(u32 v) {
    const u32 *words = exchanged(v);
    const int column = fiber->lane / 4, row = fiber->lane % 4 * 2;
    auto at = [&](int row) { return words[row * 4 + column / 2] >> column % 2 * 16 & 0xffff; };
    return at(row) | at(row + 1) << 16;
}
