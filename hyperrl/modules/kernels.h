/* What all kernels share: how they are called (`kernels.py`), and that their fastest form is chosen on loading. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stdint.h>
#include <string.h>

/* The fastest form is chosen when the library is loaded, where the linker can do that. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
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
