/* The layout of AVX-512 VNNI in plain C: what the tests run everywhere. */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define NAME portable_kernels
#define LABEL "portable"
#define LANES 16
#define N_VECTORS 4
#define SATURATES false

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));

static bool is_supported(void) { return true; }

static inline ints dot(ints sums, ints inputs, ints weights) {
    uint8_t input[sizeof inputs];
    int8_t weight[sizeof weights];
    memcpy(input, &inputs, sizeof inputs);
    memcpy(weight, &weights, sizeof weights);
    for (int i = 0; i < 4 * LANES; i++)
        sums[i / 4] += input[i] * weight[i];
    return sums;
}

static inline floats multiply_add(floats a, floats b, floats c) {
    for (int i = 0; i < LANES; i++)
        c[i] = fmaf(a[i], b[i], c[i]);
    return c;
}

static inline floats maximum(floats a, floats b) {
    for (int i = 0; i < LANES; i++)
        a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

#include "kernels.inl"
