// Kernels in which a warp does a row's work alone. The files of this folder are one source, joined in the order of
// row_kernels.py. Compiled by NVRTC with BINS, WIDTH and WARPS defined. Includes nothing.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
