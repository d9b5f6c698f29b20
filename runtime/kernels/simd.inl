/* Vector functions over an instruction set. A file that includes this one has defined

    LANES            float32 values in a vector
    N_VECTORS        vectors in the width of a panel
    floats, ints     vectors of LANES float32 or int32 values
    multiply_add     a * b + c, rounded once
    maximum          the larger of two floats in each lane; the second where either is NaN
    load_halves      LANES float16 values as float32
    add_pairs        adds two products of int16 values to each int32 lane
    SATURATES        1 if the instruction that multiplies bytes adds two products in int16, and may overflow
    dot              if not SATURATES: adds four products of uint8 inputs and int8 weights to each int32 lane
    multiply_bytes   if SATURATES: sums of two products of uint8 inputs and int8 weights, in int16
    transpose        if SATURATES: transposes LANES vectors of LANES int32 values

Kernels are batch-invariant: a row's values go through the same operations whatever other rows there are. A value that
is not finite never reaches another row. */

#ifndef BGEM3_SIMD_INL
#define BGEM3_SIMD_INL

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define WIDTH (LANES * N_VECTORS)
#define ALWAYS_INLINE static inline __attribute__((always_inline))

_Static_assert(
    LANES % GROUP == 0 && MAX_ROWS <= LANES, "MAX_ROWS must be at most LANES: a strip's factors fill a vector"
);
_Static_assert(INPUTS_PER_BLOCK % LANES == 0, "INPUTS_PER_BLOCK must be a multiple of LANES");

typedef uint8_t bytes __attribute__((vector_size(LANES)));

ALWAYS_INLINE floats load(const float *values) {
    floats vector;
    memcpy(&vector, values, sizeof vector);
    return vector;
}

ALWAYS_INLINE void store(float *values, floats vector) { memcpy(values, &vector, sizeof vector); }

ALWAYS_INLINE ints load_ints(const void *values) {
    ints vector;
    memcpy(&vector, values, sizeof vector);
    return vector;
}

ALWAYS_INLINE void store_ints(int32_t *values, ints vector) { memcpy(values, &vector, sizeof vector); }

/* Load n values, or LANES if n is larger. Lanes beyond n are zero. */
ALWAYS_INLINE floats load_some(const float *values, int64_t n) {
    floats vector = {0};
    if (n >= LANES)
        return load(values);
    memcpy(&vector, values, n * sizeof(float));
    return vector;
}

/* Store n values, or LANES if n is larger. */
ALWAYS_INLINE void store_some(float *values, floats vector, int64_t n) {
    if (n >= LANES)
        store(values, vector);
    else
        memcpy(values, &vector, n * sizeof(float));
}

ALWAYS_INLINE floats broadcast(float value) { return value - (floats){0}; }

/* Load 4 bytes into every lane: a group of inputs or weights, a factor, or a pair of offsets. */
ALWAYS_INLINE ints broadcast_word(const void *word) {
    int32_t value;
    memcpy(&value, word, sizeof value);
    return value - (ints){0};
}

ALWAYS_INLINE floats minimum(floats a, floats b) { return -maximum(-a, -b); }

ALWAYS_INLINE float sum_of(floats vector) {
    float sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += vector[i];
    return sum;
}

ALWAYS_INLINE float largest_of(floats vector) {
    float largest = vector[0];
    for (int i = 1; i < LANES; i++)
        largest = vector[i] > largest ? vector[i] : largest;
    return largest;
}

/* Round to the nearest integer, ties to even; |x| < 2^22. */
ALWAYS_INLINE floats round_to_integer(floats x) {
    const float shift = 12582912; /* 1.5 * 2^23: a sum of this size has no bits for a fraction */
    return (x + shift) - shift;
}

/* Return e^x for x <= 0, to 2 units in the last place; e^-87 below -87; NaN for NaN.

Cody and Waite's reduction: x = n * ln 2 + r. A Taylor polynomial gives e^r, and the exponent bits give 2^n. */
ALWAYS_INLINE floats exponential(floats x) {
    x = maximum(broadcast(-87), x); /* NaN as the second argument stays NaN */
    floats n = round_to_integer(x * 1.44269504f);
    floats r = multiply_add(n, broadcast(-0.693359375f), x); /* ln 2 in two parts; n times the first is exact */
    r = multiply_add(n, broadcast(2.12194440e-4f), r);
    floats sum = broadcast(1.0f / 720);
    sum = multiply_add(sum, r, broadcast(1.0f / 120));
    sum = multiply_add(sum, r, broadcast(1.0f / 24));
    sum = multiply_add(sum, r, broadcast(1.0f / 6));
    sum = multiply_add(sum, r, broadcast(0.5f));
    sum = multiply_add(sum, r, broadcast(1));
    sum = multiply_add(sum, r, broadcast(1));
    ints exponent = __builtin_convertvector(n, ints) + 127;
    return sum * (floats)(exponent << 23);
}

/* Return GELU, x * Phi(x), to 2e-6.

Phi(x) - 1/2 is x * P(2 x^2 / 25 - 1) for |x| <= 5, and constant beyond. P is a least-squares fit on Chebyshev nodes,
reweighted until the largest errors of x * Phi(x) were equal. */
ALWAYS_INLINE floats gelu(floats x) {
    static const float coefficients[] = {
        0.14136378f,   -0.070296653f, 0.05152142f,    -0.040432949f, 0.031426229f,   -0.023336731f,  0.016497657f,
        -0.010973232f, 0.0061654295f, -0.0029156734f, 0.0020018613f, -0.0015141536f, 0.00049296906f,
    };
    floats clipped = minimum(maximum(x, broadcast(-5)), broadcast(5));
    floats u = multiply_add(clipped * clipped, broadcast(0.08f), broadcast(-1));
    int last = sizeof coefficients / sizeof *coefficients - 1;
    floats sum = broadcast(coefficients[last]);
    for (int i = last - 1; i >= 0; i--)
        sum = multiply_add(sum, u, broadcast(coefficients[i]));
    return x * multiply_add(clipped, sum, broadcast(0.5f));
}

#endif
