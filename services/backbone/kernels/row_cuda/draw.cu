// A code from each row of logits: top-k by bisection, noise for the tokens that it leaves, the maximum.

struct DrawArguments {
    const u16 *logits; // [rows, BINS] bf16
    const float *temperature;
    const i64 *top_k, *seeds, *frames;
    i64 *codes;            // [rows, codebooks]
    const u16 *embeddings; // [vocab, WIDTH] bf16, of this codebook
    float *inputs;         // [rows, WIDTH], or null
    int rows, codebook, codebooks;
};

// Philox 4x32-10, as services/backbone/noise.py has it: word token % 4 of the counter (token / 4, codebook, frame, 0).
__device__ __forceinline__ float gumbel(u64 seed, u32 token, u32 codebook, u32 frame) {
    u32 c0 = token / 4, c1 = codebook, c2 = frame, c3 = 0, k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0, high2 = __umulhi(0xCD9E8D57u, c2),
                  low2 = 0xCD9E8D57u * c2;
        c0 = high2 ^ c1 ^ k0, c1 = low2, c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    const u32 word = token % 4 == 0 ? c0 : token % 4 == 1 ? c1 : token % 4 == 2 ? c2 : c3;
    return -logf(-logf(((float)(word >> 9) + 0.5f) * 1.1920928955078125e-07f)); // 2^-23
}
__device__ __forceinline__ u32 rising(float v) { // orders as the number does
    const u32 bits = __float_as_uint(v);
    return bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
}
// The same of bf16, 0 to 65535, and back.
__device__ __forceinline__ u32 rising_half(u32 bits) { return bits ^ (bits & 0x8000u ? 0xffffu : 0x8000u); }
__device__ __forceinline__ u32 half_of(u32 rising) { return rising ^ (rising & 0x8000u ? 0x8000u : 0xffffu); }

// A lane's tokens at or above a threshold: bit 16 h + i of mask[w / 16] is half h of word w, i = w % 16.
struct Above {
    u32 mask[2];
    __device__ __forceinline__ Above(const u32 (&words)[BINS / 64], u32 threshold) {
        const u32 both = half_of(threshold) * 0x10001u;
        mask[0] = mask[1] = 0;
#pragma unroll
        for (int word = 0; word < BINS / 64; word++)
            mask[word / 16] |= at_or_above(words[word], both) & 0x10001u << word % 16;
    }
    __device__ __forceinline__ int count() const { return __popc(mask[0]) + __popc(mask[1]); }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS) draw(const __grid_constant__ DrawArguments p) {
    static_assert(BINS == 2048 && WIDTH % 256 == 0, "a lane has 64 tokens");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x * WARPS + warp;
    if (row >= p.rows) return;
    meet_launches();
    const u16 *logits = p.logits + (i64)row * BINS;
    u16 *list = (u16 *)shared_memory() + warp * BINS;
    u32 words[BINS / 64]; // word w: tokens 256 (w / 4) + 8 lane + 2 (w % 4) and the next
#pragma unroll
    for (int each = 0; each < BINS / 256; each++) {
        const uint4 v = load_constant(logits + each * 256 + lane * 8);
        words[each * 4] = v.x, words[each * 4 + 1] = v.y, words[each * 4 + 2] = v.z, words[each * 4 + 3] = v.w;
    }
    const float temperature = p.temperature[row];
    const i64 wanted = p.top_k[row];
    const u64 seed = (u64)p.seeds[row];
    const u32 frame = (u32)p.frames[row];
    const int top_k = wanted < 1 ? 1 : wanted < BINS ? (int)wanted : BINS;

    // top_k logits or more are at or above low, fewer at or above high. 64 columns have a greatest each, so 64 are at or
    // above the least of those.
    u32 most = words[0];
#pragma unroll
    for (int word = 1; word < BINS / 64; word++) most = greater(most, words[word]);
    const u32 even = rising_half(most & 0xffff), odd = rising_half(most >> 16);
    u32 high = __reduce_max_sync(~0u, even > odd ? even : odd) + 1, low = __reduce_min_sync(~0u, even < odd ? even : odd);
    if (top_k == 1) low = high - 1;
    if (top_k > 64) low = 0x7f; // minus infinity
    while (high > low + 1) {
        const u32 middle = (low + high) / 2;
        const int count = (int)__reduce_add_sync(~0u, Above(words, middle).count());
        if (count < top_k)
            high = middle;
        else {
            low = middle;
            if (count == top_k) break;
        }
    }

    // What is left, one token after another, spread over the lanes: few need noise.
    Above above(words, low);
    int before = above.count();
#pragma unroll
    for (int way = 1; way < 32; way *= 2) {
        const int other = __shfl_up_sync(~0u, before, way);
        if (lane >= way) before += other;
    }
    const int left = __shfl_sync(~0u, before, 31);
    before -= above.count();
#pragma unroll
    for (int part = 0; part < 2; part++)
        for (u32 mask = above.mask[part]; mask; mask &= mask - 1) {
            const int bit = __ffs(mask) - 1, word = part * 16 + bit % 16;
            list[before++] = (u16)(word / 4 * 256 + lane * 8 + word % 4 * 2 + bit / 16);
        }
    __syncwarp();
    u32 best = 0, token = BINS - 1;
    for (int at = lane; at < left; at += 32) {
        const u32 its = list[at];
        const float value = __uint_as_float((u32)logits[its] << 16);
        const float score = top_k == 1 ? value : value / temperature + gumbel(seed, its, p.codebook, frame);
        u32 rank = rising(score + 0.0f); // -0 and 0 are one number
        if (rank == 0) rank = 1;
        if (rank > best || (rank == best && its < token)) best = rank, token = its; // of equals the first
    }
    const u32 greatest = __reduce_max_sync(~0u, best);
    token = __reduce_min_sync(~0u, best == greatest ? token : BINS - 1);
    if (lane == 0) p.codes[(i64)row * p.codebooks + p.codebook] = token;
    if (p.inputs != nullptr)
#pragma unroll
        for (int each = 0; each < WIDTH / 256; each++) {
            const uint4 v = load_constant(p.embeddings + (i64)token * WIDTH + each * 256 + lane * 8);
            float4 *to = (float4 *)(p.inputs + (i64)row * WIDTH + each * 256 + lane * 8);
            to[0] = make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                                __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
            to[1] = make_float4(__uint_as_float(v.z << 16), __uint_as_float(v.z & 0xffff0000u),
                                __uint_as_float(v.w << 16), __uint_as_float(v.w & 0xffff0000u));
        }
}
