/* The recurrence of gru_kernel.py on the CPU, for float and double. A few rows at a time go through their whole
   sequence.

   Products of so few rows are as fast as weights can be read. Hence these are packed in the order in which they are
   read, and each one serves all rows of a block. Every sum is taken in the order of its terms whatever the blocks are,
   so the number of threads changes no result. Gates are in the order reset, update, new. */
#ifndef REAL

#include <tgmath.h>

#include "../kernels.h"

/* Rows of a block, and units whose gates are taken together: their sums stay in registers if these are the 32 of 512
   bits (AVX-512); with fewer or shorter ones some of the sums go through the cache. */
#define ROWS 4
#define TILE 16
#define GATES 3

/* Series of both kernels; the others are named there. A call is `3 * width` wide. */
enum { PANEL = 1, WEIGHT = 4 };

#define REAL float
#define NAME(name) name##_float
#include "gru_kernel.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_double
#define IS_DOUBLE
#include "gru_kernel.c"

#else

#include "../exponential.h"

#define AT(index, at_row, t) \
    ((REAL *)call->series[index].data + (at_row) * call->series[index].row + (t) * call->series[index].step)

static INLINE REAL NAME(sigmoid)(REAL x) {
    const REAL power = NAME(exponential)(-fabs(x));
    return (x < 0 ? power : 1) / (1 + power);
}

static INLINE REAL NAME(tangent)(REAL x) {
    const REAL less = NAME(exponential_less_one)(-2 * fabs(x));
    return copysign(-less / (2 + less), x);
}

/* The weights of TILE units in the order in which `sum_products` reads them: `panel[k][gate][j]` is that of term k and
   unit j, in `weights[gate]` at k and j, or at j and k if transposed. Where units are fewer, the rest is left as it is:
   zeros (`_panels`). */
CLONES static void NAME(pack)(
    REAL *restrict panel, const REAL *restrict weights, int64_t by_gate, int64_t by_row, int transposed, int64_t terms,
    int64_t units) {
    for (int64_t gate = 0; gate < GATES; gate++, weights += by_gate) {
        REAL *restrict to = panel + gate * TILE;
        if (!transposed) {
            for (int64_t some = 0; some < terms; some += TILE) {
                const int64_t end = terms - some < TILE ? terms : some + TILE;
                for (int64_t j = 0; j < units; j++) {
                    for (int64_t k = some; k < end; k++) to[k * GATES * TILE + j] = weights[j * by_row + k];
                }
            }
        } else {
            for (int64_t k = 0; k < terms; k++) {
                memcpy(to + k * GATES * TILE, weights + k * by_row, units * sizeof(REAL));
            }
        }
    }
}

/* sums[gate][row][j] = sum over k of x[row][gate * skip + k] * panel[k][gate][j] */
static INLINE void NAME(sum_products)(
    REAL sums[restrict GATES][ROWS][TILE], const REAL *const x[ROWS], int64_t skip, const REAL *restrict panel,
    int64_t terms, const int rows) {
    REAL sum[GATES][ROWS][TILE] = {{{0}}};
    for (int64_t k = 0; k < terms; k++) {
        for (int gate = 0; gate < GATES; gate++, panel += TILE) {
            for (int row = 0; row < rows; row++) {
                const REAL factor = x[row][gate * skip + k];
#pragma omp simd
                for (int j = 0; j < TILE; j++) sum[gate][row][j] += factor * panel[j];
            }
        }
    }
    memcpy(sums, sum, sizeof sum);
}

/* The same, with the number of rows known to the compiler. */
static INLINE void NAME(products)(
    REAL sums[restrict GATES][ROWS][TILE], const REAL *const x[ROWS], int64_t skip, const REAL *restrict panel,
    int64_t terms, int rows) {
    switch (rows) {
    case 1: NAME(sum_products)(sums, x, skip, panel, terms, 1); break;
    case 2: NAME(sum_products)(sums, x, skip, panel, terms, 2); break;
    case 3: NAME(sum_products)(sums, x, skip, panel, terms, 3); break;
    default: NAME(sum_products)(sums, x, skip, panel, terms, ROWS);
    }
}

/* Of one row and step. `gates` hold the recurrent products before, and the gates after. */
static INLINE void NAME(step)(
    REAL *restrict out, REAL *restrict gates, REAL *restrict recurrent, const REAL *restrict projected,
    const REAL *restrict past, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        const REAL reset = NAME(sigmoid)(projected[i] + gates[i]);
        const REAL update = NAME(sigmoid)(projected[width + i] + gates[width + i]);
        const REAL product = gates[2 * width + i], new = NAME(tangent)(projected[2 * width + i] + reset * product);
        gates[i] = reset;
        gates[width + i] = update;
        gates[2 * width + i] = new;
        recurrent[i] = product;
        out[i] = new + update * (past[i] - new);
    }
}

/* Of one row and step. `carry` is the gradient by the state after the step before, and its part that takes no products
   after. */
static INLINE void NAME(step_backward)(
    REAL *restrict by_projected, REAL *restrict by_products, REAL *restrict carry, const REAL *restrict grad,
    const REAL *restrict gates, const REAL *restrict recurrent, const REAL *restrict past, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        const REAL reset = gates[i], update = gates[width + i], new = gates[2 * width + i];
        const REAL total = grad[i] + carry[i];
        const REAL by_new = total * (1 - update) * (1 - new * new);
        by_projected[i] = by_products[i] = by_new * recurrent[i] * reset * (1 - reset);
        by_projected[width + i] = by_products[width + i] = total * (past[i] - new) * update * (1 - update);
        by_projected[2 * width + i] = by_new;
        by_products[2 * width + i] = by_new * reset;
        carry[i] = total * update;
    }
}

/* Packs the weights, and runs `block(call, first, rows)` on all rows, in blocks of about the same size. */
static void NAME(run)(
    const Call *call, int transposed, void (*block)(const Call *, int64_t first, int rows)) {
    const int64_t width = call->width / GATES, rows = call->rows, threads = call->threads;
    const int64_t by_row = call->series[WEIGHT].step;
    const int64_t by_unit = transposed ? 1 : by_row;
    const int64_t least = (rows + ROWS - 1) / ROWS, even = (least + threads - 1) / threads * threads;
    const int64_t blocks = even < rows ? even : rows;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for
        for (int64_t unit = 0; unit < width; unit += TILE) {
            const int64_t units = width - unit < TILE ? width - unit : TILE;
            const REAL *from = AT(WEIGHT, 0, 0) + unit * by_unit;
            NAME(pack)(AT(PANEL, 0, unit / TILE), from, width * by_row, by_row, transposed, width, units);
        }
#pragma omp for
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t first = i * rows / blocks;
            block(call, first, (int)((i + 1) * rows / blocks - first));
        }
    }
}

CLONES static void NAME(gru_block)(const Call *call, int64_t first, int rows) {
    enum { GATE, OUT = PANEL + 1, RECURRENT, PROJECTED = WEIGHT + 1, STATE, BIAS };
    const int64_t width = call->width / GATES;
    const REAL *bias = AT(BIAS, 0, 0);
    REAL sums[GATES][ROWS][TILE];
    for (int64_t t = 0; t < call->steps; t++) {
        const REAL *past[ROWS];
        for (int row = 0; row < rows; row++) past[row] = t ? AT(OUT, first + row, t - 1) : AT(STATE, first + row, 0);
        for (int64_t unit = 0; unit < width; unit += TILE) {
            const int64_t units = width - unit < TILE ? width - unit : TILE;
            NAME(products)(sums, past, 0, AT(PANEL, 0, unit / TILE), width, rows);
            for (int row = 0; row < rows; row++) {
                for (int64_t gate = 0; gate < GATES; gate++) {
                    REAL *restrict product = AT(GATE, first + row, t) + gate * width + unit;
                    const REAL *restrict offset = bias + gate * width + unit;
                    for (int64_t j = 0; j < units; j++) product[j] = sums[gate][row][j] + offset[j];
                }
            }
        }
        for (int64_t row = first; row < first + rows; row++) {
            NAME(step)(
                AT(OUT, row, t), AT(GATE, row, t), AT(RECURRENT, row, t), AT(PROJECTED, row, t), past[row - first],
                width);
        }
    }
}

CLONES static void NAME(gru_backward_block)(const Call *call, int64_t first, int rows) {
    enum { BY_PROJECTED, BY_PRODUCTS = PANEL + 1, BY_STATE, GRAD = WEIGHT + 1, GATE, RECURRENT, PAST };
    const int64_t width = call->width / GATES;
    REAL sums[GATES][ROWS][TILE];
    for (int64_t t = call->steps - 1; t >= 0; t--) {
        const REAL *by_products[ROWS];
        for (int64_t row = first; row < first + rows; row++) {
            by_products[row - first] = AT(BY_PRODUCTS, row, t);
            NAME(step_backward)(
                AT(BY_PROJECTED, row, t), AT(BY_PRODUCTS, row, t), AT(BY_STATE, row, 0), AT(GRAD, row, t),
                AT(GATE, row, t), AT(RECURRENT, row, t), AT(PAST, row, t), width);
        }
        for (int64_t unit = 0; unit < width; unit += TILE) {
            const int64_t units = width - unit < TILE ? width - unit : TILE;
            NAME(products)(sums, by_products, width, AT(PANEL, 0, unit / TILE), width, rows);
            for (int row = 0; row < rows; row++) {
                REAL *restrict carry = AT(BY_STATE, first + row, 0) + unit;
                for (int64_t j = 0; j < units; j++) {
                    carry[j] += sums[0][row][j] + sums[1][row][j] + sums[2][row][j];
                }
            }
        }
    }
}

void NAME(gru)(const Call *call) {
    NAME(run)(call, 0, NAME(gru_block));
}

void NAME(gru_backward)(const Call *call) {
    NAME(run)(call, 1, NAME(gru_backward_block));
}

#undef AT

#endif
