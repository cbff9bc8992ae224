/* What all kernels share: how they are called (`kernels.py`), and that their fastest form is chosen on loading. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stdint.h>
#include <string.h>

/* The fastest form is chosen when the library is loaded, where the linker can do that; their last digits differ.
   Vectors of 256 bits come with fused multiplications only as a level of the architecture, known since GCC 12 and
   Clang 18. */
#ifndef CLONES
#if !(defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__))
#define CLONES
#elif __GNUC__ >= 12 || __clang_major__ >= 18
#define CLONES __attribute__((target_clones("avx512f", "arch=x86-64-v3", "default")))
#else
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif

/* Every form gets its own copy of what it calls. */
#define INLINE inline __attribute__((always_inline))

typedef struct {
    void *data; /* none: NULL */
    int64_t row, step;
} Series;

typedef struct {
    int64_t rows, steps, width, threads, straight_through;
    double smallest;
    Series series[16];
} Call;

#endif
