// A code from logits: noise, top-k and the maximum. Part of one source, see shapes.cu.

// Philox 4x32-10, as services/backbone/noise.py has it: four words of (token / 4, codebook, frame, 0).
__device__ __forceinline__ void gumbel(float *noise, u64 seed, u32 group, u32 codebook, u32 frame) {
    u32 c0 = group, c1 = codebook, c2 = frame, c3 = 0, k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll 1
    for (int round = 0; round < 10; round++) {
        const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0, high2 = __umulhi(0xCD9E8D57u, c2),
                  low2 = 0xCD9E8D57u * c2;
        c0 = high2 ^ c1 ^ k0, c1 = low2, c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    const u32 words[4] = {c0, c1, c2, c3};
#pragma unroll
    for (int word = 0; word < 4; word++)
        noise[word] = -logf(-logf(((float)(words[word] >> 9) + 0.5f) * 1.1920928955078125e-07f));
}

// Draw one code as sampling.py does, by the whole block. A thread has tokens 4 * thread and 1024 + 4 * thread, four of
// each.
struct Draw {
    float noise[8];
    __device__ __forceinline__ static void begin(Shared *s, const Args &p, int row) {
        const i64 slot = p.slots[row], wanted = p.top_k[slot];
        s->sampling = {(u64)p.seeds[slot], (u32)p.frames[slot], wanted < 1 ? 1 : wanted < BINS ? (int)wanted : BINS,
                       p.temperature[slot]};
    }
    __device__ __forceinline__ void prepare(const Shared *s, int codebook) {
        gumbel(noise, s->sampling.seed, threadIdx.x, codebook, s->sampling.frame);
        gumbel(noise + 4, s->sampling.seed, threadIdx.x + THREADS, codebook, s->sampling.frame);
    }
    __device__ __forceinline__ static u32 rising(float v) { // orders as the number does
        const u32 bits = __float_as_uint(v);
        return bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
    }
    __device__ __forceinline__ int take(Shared *s, const u32 *logits, u32 tag) const {
        const int warp = threadIdx.x / 32, top_k = s->sampling.top_k;
        const float temperature = s->sampling.temperature;
        float value[8];
        u32 key[8];
        uint4 words[2];
        const u32 *const from[2] = {logits + threadIdx.x * 4, logits + BINS / 2 + threadIdx.x * 4};
        poll(words, from, tag, SINGLE);
        if (SHARES_KEYS && warp == 0) fence(); // block 0's words are among warp 0's
        *(float4 *)value = singles(words[0], tag), *(float4 *)(value + 4) = singles(words[1], tag);
#pragma unroll
        for (int each = 0; each < 8; each++)
            value[each] += 0.0f, key[each] = rising(value[each]); // -0 and 0 are one number
        u32 rank[8]; // orders as the scores
        const float inverse = __frcp_rn(temperature);
#pragma unroll
        for (int each = 0; each < 8; each++) {
            const float share = value[each] * inverse,
                        quotient = fmaf(fmaf(-share, temperature, value[each]), inverse, share);
            const float score = top_k == 1 ? value[each] : __fadd_rn(quotient, noise[each]);
            const u32 order = rising(score + 0.0f);
            rank[each] = order > 1 ? order : 1;
        }
        // The best score whose logit is among the greatest top_k, ties included: the best of all, unless top_k logits or
        // more are above its own; then the best of those, and so on.
        u32 cut = 0, chosen = 0;
#pragma unroll 1
        for (int turn = 0;; turn ^= 1) {
            u32 top = 0, token = ~0u, logit = 0, count = 0;
#pragma unroll
            for (int each = 0; each < 8; each++)
                if (key[each] > cut) {
                    count++;
                    if (rank[each] > top) // of equals the first
                        top = rank[each], token = (each < 4 ? 0 : BINS / 2 - 4) + threadIdx.x * 4 + each, logit = key[each];
                }
            const u32 most = __reduce_max_sync(~0u, top), first = __reduce_min_sync(~0u, top == most ? token : ~0u);
            count = __reduce_add_sync(~0u, count);
            if (top == most && token == first) s->best[turn][warp] = make_uint4(most, first, logit, count);
            __syncthreads();
            top = 0, token = ~0u, logit = 0, count = 0;
#pragma unroll
            for (int other = 0; other < WARPS; other++) {
                const uint4 its = s->best[turn][other];
                count += its.w;
                if (its.x > top || (its.x == top && its.y < token)) top = its.x, token = its.y, logit = its.z;
            }
            if ((int)count < top_k) break;
            cut = logit, chosen = token;
        }
        return (int)chosen;
    }
};
