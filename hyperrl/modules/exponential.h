/* exp(x) of x <= 0 as `power * (1 + rest)`, to the last digit or two; `power` is 0 where exp(x) would be below the
   smallest normal number, 2^(1 - BIAS). The library's own is not vectorised. x = k log 2 + r: 2^k, and a Taylor series
   of exp(r) - 1. Included once for each type. */
static INLINE REAL NAME(exponential_parts)(REAL x, REAL *rest) {
#ifdef IS_DOUBLE
    typedef uint64_t Bits;
    enum { BIAS = 1023, DIGITS = 52 };
    const REAL high = 0x1.62e42fefa3800p-1, low = 0x1.ef35793c76730p-45, round = 0x1.8p52;
#else
    typedef uint32_t Bits;
    enum { BIAS = 127, DIGITS = 23 };
    const REAL high = 0x1.62e4p-1f, low = 0x1.7f7d1cp-20f, round = 0x1.8p23f;
#endif
    const REAL lowest = (REAL)((1 - BIAS) * 0x1.62e42fefa39efp-1);
    const REAL bounded = x < lowest ? lowest : x;
    const REAL rounded = bounded * (REAL)0x1.71547652b82fep0 + round; /* its lowest bits are k */
    const REAL r = (bounded - (rounded - round) * high) - (rounded - round) * low;
    Bits bits;
    REAL power, p;
    memcpy(&bits, &rounded, sizeof bits);
    bits = (bits + BIAS) << DIGITS;
    memcpy(&power, &bits, sizeof power);
#ifdef IS_DOUBLE
    p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
#else
    p = 1.0f / 5040;
#endif
    p = p * r + (REAL)1 / 720;
    p = p * r + (REAL)1 / 120;
    p = p * r + (REAL)1 / 24;
    p = p * r + (REAL)1 / 6;
    p = p * r + (REAL)1 / 2;
    p = p * r + 1;
    *rest = p * r;
    return x < lowest ? 0 : power;
}

static INLINE REAL NAME(exponential)(REAL x) {
    REAL rest;
    const REAL power = NAME(exponential_parts)(x, &rest);
    return power + power * rest;
}

/* exp(x) - 1 of x <= 0, exact also where that is small. */
static INLINE REAL NAME(exponential_less_one)(REAL x) {
    REAL rest;
    const REAL power = NAME(exponential_parts)(x, &rest);
    return (power - 1) + power * rest;
}
