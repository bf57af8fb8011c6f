// Marks functions that run on the host and on CUDA devices.
#pragma once

#if defined(__CUDACC__)
#define VRAMKIT_ON_BOTH __host__ __device__
#else
#define VRAMKIT_ON_BOTH
#endif
