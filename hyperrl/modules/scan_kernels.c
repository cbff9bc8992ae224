/* The recurrences of scan.py on the CPU: loops that read and write every entry once, for float and double.

   Sums are taken in double precision, which costs little: memory is what limits these loops. The order of operations
   is that of time, so the number of threads changes no result. The series of a call are named at the top of each
   kernel. */
#ifndef REAL

#include "kernels.h"

/* Features that are taken together: what is remembered of them stays in the first-level cache. */
#define TILE 256

/* What a weighted mean remembers, in place of steps: weighted sum, sum of weights and, with exponents, the largest. */
enum { TOTAL, WEIGHTS, LARGEST };

#define REAL float
#define NAME(name) name##_float
#include "scan_kernels.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_double
#define IS_DOUBLE
#include "scan_kernels.c"

#else

#include "exponential.h"

/* A step's entries of the tile; NULL where there is no such series. */
#define AT(index, t) \
    (call->series[index].data == NULL \
         ? NULL \
         : (REAL *)call->series[index].data + row * call->series[index].row + (t) * call->series[index].step + first)
#define IS_RESET(t) \
    (call->series[RESET].data != NULL && \
     ((const uint8_t *)call->series[RESET].data)[row * call->series[RESET].row + (t) * call->series[RESET].step])

/* `name(call)` runs the body that follows on all rows and tiles of `width` features from `first` on. */
#define KERNEL(name) \
    CLONES static void NAME(name##_tile)(const Call *call, int64_t row, int64_t first, int64_t width); \
    void NAME(name)(const Call *call) { \
        const int64_t tiles = (call->width + TILE - 1) / TILE; \
        _Pragma("omp parallel for num_threads(call->threads) if (call->threads > 1)") \
        for (int64_t i = 0; i < call->rows * tiles; i++) { \
            const int64_t first = i % tiles * TILE, left = call->width - first; \
            NAME(name##_tile)(call, i / tiles, first, left < TILE ? left : TILE); \
        } \
    } \
    CLONES static void NAME(name##_tile)(const Call *call, int64_t row, int64_t first, int64_t width)

static INLINE void NAME(load)(double *to, const REAL *from, int64_t width) {
    for (int64_t i = 0; i < width; i++) to[i] = from[i];
}

static INLINE void NAME(store)(REAL *to, const double *from, int64_t width) {
    for (int64_t i = 0; i < width; i++) to[i] = (REAL)from[i];
}

/* Moves what reaches a step that is reset to the gradient by what it is reset to. */
static INLINE void NAME(move)(double *to, double *from, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        to[i] += from[i];
        from[i] = 0;
    }
}

KERNEL(accumulate) {
    enum { OUT, VALUE, DECAY, RESET, STATE, INITIAL };
    double past[TILE];
    NAME(load)(past, AT(STATE, 0), width);
    for (int64_t t = 0; t < call->steps; t++) {
        const REAL *restrict value = AT(VALUE, t), *restrict decay = AT(DECAY, t);
        REAL *restrict out = AT(OUT, t);
        if (IS_RESET(t)) NAME(load)(past, AT(INITIAL, 0), width);
        if (decay == NULL) {
            for (int64_t i = 0; i < width; i++) out[i] = (REAL)(past[i] += value[i]);
        } else {
            for (int64_t i = 0; i < width; i++) out[i] = (REAL)(past[i] = decay[i] * past[i] + value[i]);
        }
    }
}

KERNEL(accumulate_backward) {
    enum { BY_VALUE, BY_STATE, BY_INITIAL, GRAD, DECAY, RESET };
    double later[TILE] = {0}, initial[TILE] = {0};
    for (int64_t t = call->steps - 1; t >= 0; t--) {
        const REAL *restrict grad = AT(GRAD, t), *restrict decay = AT(DECAY, t);
        REAL *restrict out = AT(BY_VALUE, t);
        for (int64_t i = 0; i < width; i++) out[i] = (REAL)(later[i] += grad[i]);
        if (decay != NULL) {
            for (int64_t i = 0; i < width; i++) later[i] *= decay[i];
        }
        if (IS_RESET(t)) NAME(move)(initial, later, width);
    }
    NAME(store)(AT(BY_STATE, 0), later, width);
    NAME(store)(AT(BY_INITIAL, 0), initial, width);
}

KERNEL(maximum) {
    enum { OUT, VALUE, RESET, STATE, INITIAL };
    double past[TILE];
    NAME(load)(past, AT(STATE, 0), width);
    for (int64_t t = 0; t < call->steps; t++) {
        const REAL *restrict value = AT(VALUE, t);
        REAL *restrict out = AT(OUT, t);
        if (IS_RESET(t)) NAME(load)(past, AT(INITIAL, 0), width);
        for (int64_t i = 0; i < width; i++) {
            const double high = value[i] > past[i] ? value[i] : past[i];
            out[i] = (REAL)(past[i] = value[i] != value[i] ? value[i] : high); /* NaN stays, as in torch */
        }
    }
}

KERNEL(maximum_backward) {
    enum { BY_VALUE, BY_STATE, BY_INITIAL, GRAD, RESULT, RESET, STATE, INITIAL };
    double later[TILE] = {0}, initial[TILE] = {0};
    for (int64_t t = call->steps - 1; t >= 0; t--) {
        const int reset = IS_RESET(t);
        const REAL *restrict grad = AT(GRAD, t), *restrict result = AT(RESULT, t);
        const REAL *past = reset ? AT(INITIAL, 0) : t ? AT(RESULT, t - 1) : AT(STATE, 0);
        REAL *restrict out = AT(BY_VALUE, t);
        for (int64_t i = 0; i < width; i++) {
            const double sum = later[i] + grad[i];
            const int keep = result[i] == past[i];
            out[i] = keep ? 0 : (REAL)sum;
            later[i] = keep ? sum : 0;
        }
        if (reset) NAME(move)(initial, later, width);
    }
    NAME(store)(AT(BY_STATE, 0), later, width);
    NAME(store)(AT(BY_INITIAL, 0), initial, width);
}

/* What an exponent and the shift before it make of weight and decay; one of them is 1. */
#define WEIGH(exponent, old, new, weight, decay) \
    const REAL power = NAME(exponential)(((exponent) - (new)) + ((old) - (new))); \
    const REAL weight = (exponent) > (old) ? 1 : power, decay = (exponent) > (old) ? power : 1

KERNEL(mean) {
    enum { MEAN, VARIANCE, NORM, SHIFT, LAST, VALUE, WEIGHT, RESET, STATE, INITIAL };
    const int exponents = AT(SHIFT, 0) != NULL;
    const REAL smallest = (REAL)call->smallest;
    double total[TILE], norm[TILE];
    REAL shift[TILE];
    for (int64_t t = 0; t < call->steps; t++) {
        const REAL *restrict value = AT(VALUE, t), *restrict weight = AT(WEIGHT, t);
        REAL *restrict mean = AT(MEAN, t), *restrict variance = AT(VARIANCE, t);
        REAL *restrict norms = AT(NORM, t), *restrict shifts = AT(SHIFT, t);
        if (t == 0 || IS_RESET(t)) {
            const int start = IS_RESET(t) ? INITIAL : STATE;
            NAME(load)(total, AT(start, TOTAL), width);
            NAME(load)(norm, AT(start, WEIGHTS), width);
            const REAL *largest = AT(start, LARGEST);
            for (int64_t i = 0; exponents && i < width; i++) shift[i] = largest[i];
        }
        if (exponents) {
            for (int64_t i = 0; i < width; i++) {
                const REAL e = weight[i], old = shift[i];
                const REAL new = e > old ? e : e <= old ? old : e + old; /* unordered: NaN */
                WEIGH(e, old, new, w, decay);
                total[i] = decay * total[i] + (double)w * value[i];
                norm[i] = decay * norm[i] + w;
                shifts[i] = shift[i] = new;
            }
        } else {
            for (int64_t i = 0; i < width; i++) {
                total[i] += (double)weight[i] * value[i];
                norm[i] += weight[i];
            }
        }
        for (int64_t i = 0; i < width; i++) {
            const REAL n = (REAL)norm[i];
            norms[i] = n;
            mean[i] = (REAL)total[i] / (n < smallest ? smallest : n);
        }
        if (variance != NULL) {
            for (int64_t i = 0; i < width; i++) variance[i] = 1 / (norms[i] < smallest ? smallest : norms[i]);
        }
    }
    NAME(store)(AT(LAST, TOTAL), total, width);
    NAME(store)(AT(LAST, WEIGHTS), norm, width);
    REAL *largest = AT(LAST, LARGEST);
    for (int64_t i = 0; exponents && i < width; i++) largest[i] = shift[i];
}

KERNEL(mean_backward) {
    enum {
        BY_VALUE, BY_WEIGHT, BY_STATE, BY_INITIAL, GRAD, GRAD_LOG_VARIANCE, GRAD_LAST,
        MEAN, NORM, SHIFT, VALUE, WEIGHT, RESET, STATE, INITIAL
    };
    const int exponents = AT(SHIFT, 0) != NULL, straight_through = call->straight_through != 0;
    const REAL smallest = (REAL)call->smallest;
    double by_total[TILE], by_norm[TILE], initial_total[TILE] = {0}, initial_norm[TILE] = {0};
    NAME(load)(by_total, AT(GRAD_LAST, TOTAL), width);
    NAME(load)(by_norm, AT(GRAD_LAST, WEIGHTS), width);
    for (int64_t t = call->steps - 1; t >= 0; t--) {
        const int reset = IS_RESET(t);
        const REAL *restrict grad = AT(GRAD, t), *restrict log_grad = AT(GRAD_LOG_VARIANCE, t);
        const REAL *restrict mean = AT(MEAN, t), *restrict norm = AT(NORM, t), *restrict shift = AT(SHIFT, t);
        const REAL *restrict value = AT(VALUE, t), *restrict weight = AT(WEIGHT, t);
        REAL *restrict by_value = AT(BY_VALUE, t), *restrict by_weight = AT(BY_WEIGHT, t);
        if (straight_through) {
            for (int64_t i = 0; i < width; i++) by_total[i] += grad[i];
        } else {
            for (int64_t i = 0; i < width; i++) {
                const REAL ratio = grad[i] / (norm[i] < smallest ? smallest : norm[i]), product = ratio * mean[i];
                by_total[i] += ratio;
                by_norm[i] -= norm[i] >= smallest ? product : 0;
            }
        }
        if (log_grad != NULL) {
            for (int64_t i = 0; i < width; i++) {
                const REAL ratio = log_grad[i] / norm[i];
                by_norm[i] -= norm[i] >= smallest ? ratio : 0;
            }
        }
        if (exponents) {
            const REAL *past = reset ? AT(INITIAL, LARGEST) : t ? AT(SHIFT, t - 1) : AT(STATE, LARGEST);
            for (int64_t i = 0; i < width; i++) {
                WEIGH(weight[i], past[i], shift[i], w, decay);
                by_value[i] = (REAL)(by_total[i] * w);
                by_weight[i] = (REAL)((by_total[i] * value[i] + by_norm[i]) * w);
                by_total[i] *= decay;
                by_norm[i] *= decay;
            }
        } else {
            for (int64_t i = 0; i < width; i++) {
                by_value[i] = (REAL)(by_total[i] * weight[i]);
                by_weight[i] = (REAL)(by_total[i] * value[i] + by_norm[i]);
            }
        }
        if (reset) {
            NAME(move)(initial_total, by_total, width);
            NAME(move)(initial_norm, by_norm, width);
        }
    }
    NAME(store)(AT(BY_STATE, TOTAL), by_total, width);
    NAME(store)(AT(BY_STATE, WEIGHTS), by_norm, width);
    NAME(store)(AT(BY_INITIAL, TOTAL), initial_total, width);
    NAME(store)(AT(BY_INITIAL, WEIGHTS), initial_norm, width);
}

#undef AT
#undef IS_RESET
#undef KERNEL
#undef WEIGH

#endif
