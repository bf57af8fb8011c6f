// Marks functions that run on the host and on CUDA devices, and loops that devices unroll.
#pragma once

#if defined(__CUDACC__)
#define VRAMKIT_ON_BOTH __host__ __device__
#else
#define VRAMKIT_ON_BOTH
#endif

#if defined(__CUDA_ARCH__)
#define VRAMKIT_UNROLL _Pragma("unroll")
#else
#define VRAMKIT_UNROLL
#endif
