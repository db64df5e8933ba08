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
    float noise[8], temperature;
    int top_k;
    __device__ __forceinline__ void prepare(const Args &p, int row, int codebook) {
        const i64 slot = p.slots[row];
        const u64 seed = (u64)p.seeds[slot];
        temperature = p.temperature[slot];
        const i64 wanted = p.top_k[slot];
        top_k = wanted < BINS ? (int)wanted : BINS;
        gumbel(noise, seed, threadIdx.x, codebook, (u32)p.frames[slot]);
        gumbel(noise + 4, seed, threadIdx.x + THREADS, codebook, (u32)p.frames[slot]);
    }
    __device__ __forceinline__ static u32 rising(float v) { // orders as the number does
        const u32 bits = __float_as_uint(v);
        return bits ^ ((u32)((int)bits >> 31) | 0x80000000u);
    }
    __device__ __forceinline__ int take(Shared *s, const u32 *logits, u32 tag) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        float value[8];
        u32 key[8];
        uint4 words[2];
        do {
            words[0] = load_u4(logits + threadIdx.x * 4), words[1] = load_u4(logits + BINS / 2 + threadIdx.x * 4);
        } while ((stale(words[0], tag, SINGLE) | stale(words[1], tag, SINGLE)));
        if (SHARES_KEYS && warp == 0) fence(); // block 0's words are among warp 0's
        *(float4 *)value = singles(words[0], tag), *(float4 *)(value + 4) = singles(words[1], tag);
#pragma unroll
        for (int each = 0; each < 8; each++)
            value[each] += 0.0f, key[each] = rising(value[each]); // -0 and 0 are one number
        // The greatest cut with top_k tokens at or above it, two bits a round.
        u32 cut = 0, count = BINS, turn = 0;
        if (threadIdx.x < 4) s->counts[0][threadIdx.x] = 0;
        __syncthreads();
#pragma unroll 1
        for (int bit = 30; bit >= 0 && count != top_k; bit -= 2) {
            const u32 one = cut | 1u << bit, two = cut | 2u << bit, three = cut | 3u << bit,
                      next = turn == 2 ? 0 : turn + 1;
            u32 above = 0;
#pragma unroll
            for (int each = 0; each < 8; each++)
                above += (key[each] >= one) + ((u32)(key[each] >= two) << 10) + ((u32)(key[each] >= three) << 20);
            above = __reduce_add_sync(~0u, above);
            if (lane < 3) atomicAdd(&s->counts[turn][lane], above >> lane * 10 & 1023);
            if (threadIdx.x >= THREADS - 4) s->counts[next][threadIdx.x - (THREADS - 4)] = 0;
            __syncthreads();
            const uint4 all = *(const uint4 *)s->counts[turn];
            turn = next;
            if (all.z >= top_k)
                cut = three, count = all.z;
            else if (all.y >= top_k)
                cut = two, count = all.y;
            else if (all.x >= top_k)
                cut = one, count = all.x;
        }
        u64 best = 0;
        const float inverse = __frcp_rn(temperature);
#pragma unroll
        for (int each = 0; each < 8; each++) {
            const u32 token = (each < 4 ? 0 : BINS / 2 - 4) + threadIdx.x * 4 + each;
            if (key[each] < cut) continue;
            const float share = value[each] * inverse,
                        quotient = fmaf(fmaf(-share, temperature, value[each]), inverse, share);
            const float score = top_k == 1 ? value[each] : __fadd_rn(quotient, noise[each]);
            const u64 ranked = (u64)rising(score + 0.0f) << 32 | (~0u - token); // of equals the first
            if (ranked > best) best = ranked;
        }
        for (int way = 16; way; way >>= 1) {
            const u64 other = __shfl_xor_sync(~0u, best, way);
            if (other > best) best = other;
        }
        if (lane == 0) s->best[warp] = best;
        __syncthreads();
#pragma unroll
        for (int other = 0; other < WARPS; other++)
            if (s->best[other] > best) best = s->best[other];
        return (int)(~0u - (u32)best);
    }
};
