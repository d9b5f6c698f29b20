/* The kernels in plain C, with the vectors of AVX-512 VNNI. Tests compare the others with them. */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define N_VECTORS 4
#define SATURATES 0

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

static inline ints add_pairs(ints sums, ints a, ints b) {
    int16_t from_a[2 * LANES], from_b[2 * LANES];
    memcpy(from_a, &a, sizeof a);
    memcpy(from_b, &b, sizeof b);
    for (int i = 0; i < 2 * LANES; i++)
        sums[i / 2] += from_a[i] * from_b[i];
    return sums;
}

static inline floats multiply_add(floats a, floats b, floats c) {
    for (int i = 0; i < LANES; i++)
        c[i] = fmaf(a[i], b[i], c[i]);
    return c;
}

/* Put the bits of a float16 where a float32 has them. float32's exponent is larger by 112, so multiply by 2^112. An
exponent of ones means infinity or NaN in both. */
static inline floats load_halves(const uint16_t *halves) {
    floats vector;
    for (int i = 0; i < LANES; i++) {
        uint32_t bits = (halves[i] & 0x7fffu) << 13 | (halves[i] & 0x8000u) << 16;
        if ((halves[i] & 0x7c00u) == 0x7c00u)
            bits |= 0x7f800000u;
        memcpy((char *)&vector + 4 * i, &bits, 4);
    }
    return vector * 0x1p112f;
}

static inline floats maximum(floats a, floats b) {
    for (int i = 0; i < LANES; i++)
        a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}

#include "linear.inl"
#include "attention.inl"

const struct kernels plain_kernels = {
    .name = "portable",
    .panel_width = WIDTH,
    .is_supported = is_supported,
    .pack = pack,
    .multiply = multiply,
    .attend = attend,
};
