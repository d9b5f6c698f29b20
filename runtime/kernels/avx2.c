/* AVX2 and FMA. Pairs of uint8 x int8 products are added in int16. */

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define NAME avx2_kernels
#define LABEL "AVX2"
#define LANES 8
#define N_VECTORS 2
#define SATURATES 1

typedef float floats __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));

static bool is_supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); } /* all have F16C, too */

static inline ints multiply_bytes(ints inputs, ints weights) {
    return (ints)_mm256_maddubs_epi16((__m256i)inputs, (__m256i)weights);
}

static inline ints add_pairs(ints sums, ints a, ints b) {
    return sums + (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

static inline floats multiply_add(floats a, floats b, floats c) { return (floats)_mm256_fmadd_ps(a, b, c); }

static inline floats load_halves(const uint16_t *halves) {
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
}

static inline floats maximum(floats a, floats b) { return (floats)_mm256_max_ps(a, b); }

static inline void transpose(const ints from[8], ints to[8]) {
    ints pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) { /* of two vectors: lanes 0, 1, 4, 5 and 2, 3, 6, 7 of both, in turn */
        pairs[i] = __builtin_shuffle(from[i], from[i + 1], (ints){0, 8, 1, 9, 4, 12, 5, 13});
        pairs[i + 1] = __builtin_shuffle(from[i], from[i + 1], (ints){2, 10, 3, 11, 6, 14, 7, 15});
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = __builtin_shuffle(pairs[i + j], pairs[i + j + 2], (ints){0, 1, 8, 9, 4, 5, 12, 13});
            fours[i + 2 * j + 1] = __builtin_shuffle(pairs[i + j], pairs[i + j + 2], (ints){2, 3, 10, 11, 6, 7, 14, 15});
        }
    for (int i = 0; i < 4; i++) {
        to[i] = __builtin_shuffle(fours[i], fours[i + 4], (ints){0, 1, 2, 3, 8, 9, 10, 11});
        to[i + 4] = __builtin_shuffle(fours[i], fours[i + 4], (ints){4, 5, 6, 7, 12, 13, 14, 15});
    }
}

#include "kernels.inl"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
