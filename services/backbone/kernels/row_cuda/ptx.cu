// All that is written in PTX. tests/support/cuda_on_cpu has the same for a CPU.

// Written before the launch.
__device__ __forceinline__ uint4 load_constant(const void *at) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}
__device__ __forceinline__ u8 *shared_memory() {
    extern __shared__ __align__(16) u8 memory[];
    return memory;
}
__device__ __forceinline__ void meet_launches() { // what comes next may start, what was launched before is over
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
// Of pairs of bf16: the greater of each half; all ones in each half where a is at or above b.
__device__ __forceinline__ u32 greater(u32 a, u32 b) {
    u32 v;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}
__device__ __forceinline__ u32 at_or_above(u32 a, u32 b) {
    u32 v;
    asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}
