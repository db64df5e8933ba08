// The launch, after the kernel's source. KERNEL, its ARGUMENTS' type and SHARED bytes are defined.

static const ARGUMENTS *arguments;
static void run_thread() {
    KERNEL(*arguments);
    fiber->done = true;
    for (;;) leave_cpu();
}
// Returns: how often each thread had its turn, or -1 if some have not ended after `most` turns.
extern "C" long launch(const ARGUMENTS *given, int blocks, int threads, unsigned seed, long most) {
    constexpr size_t STACK = 1 << 16, ROOM = (SHARED + 4095) / 4096 * 4096;
    const size_t count = (size_t)blocks * threads, bytes = count * STACK + blocks * ROOM;
    char *memory = (char *)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return -2;
    char *shared = memory + count * STACK;
    srand(seed);
    for (size_t at = 0; at < blocks * ROOM; at += 4) *(unsigned *)(shared + at) = (unsigned)rand() * 2654435761u; // anything
    arguments = given, gridDim.x = blocks;
    barriers.assign(blocks * 8, Barrier());
    std::vector<Warp> warps(count / 32);
    std::vector<Fiber> fibers(count);
    for (size_t at = 0; at < count; at++) {
        Fiber &it = fibers[at];
        it.block = (int)(at / threads), it.thread = (int)(at % threads), it.lane = it.thread % 32;
        it.shared = shared + it.block * ROOM, it.warp = &warps[at / 32];
        void **top = (void **)(memory + (at + 1) * STACK) - 1;
        *--top = (void *)run_thread;
        it.stack = top - 6; // of registers, which have no meaning yet
    }
    long turns = 0;
    for (size_t left = count; left && turns != most; turns++) {
        left = 0;
        for (int block = 0; block < blocks; block++) {
            const bool rests = rand() % 3 == 0;
            for (int thread = 0; thread < threads; thread++) {
                Fiber &it = fibers[(size_t)block * threads + thread];
                if (it.done) continue;
                left++;
                if (rests) continue;
                fiber = &it, threadIdx.x = thread, blockIdx.x = block;
                switch_fiber(&scheduler, it.stack);
            }
        }
    }
    munmap(memory, bytes);
    return turns == most ? -1 : turns;
}
