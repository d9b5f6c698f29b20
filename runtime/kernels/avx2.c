/* The kernels for AVX2 and FMA. The instruction that multiplies bytes adds two products in int16 (`excess.inl`). */

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define LANES 8
#define N_VECTORS 2
#define SATURATES 1

typedef float floats __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));

/* Every CPU with AVX2 has F16C, too. */
static bool is_supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

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
    __m256i twos[8], fours[8];
    for (int i = 0; i < 8; i += 2) { /* interleave lanes of two vectors: 0, 1, 4, 5, and then 2, 3, 6, 7 */
        twos[i] = _mm256_unpacklo_epi32((__m256i)from[i], (__m256i)from[i + 1]);
        twos[i + 1] = _mm256_unpackhi_epi32((__m256i)from[i], (__m256i)from[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_unpacklo_epi64(twos[i + j], twos[i + j + 2]);
            fours[i + 2 * j + 1] = _mm256_unpackhi_epi64(twos[i + j], twos[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        to[i] = (ints)_mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        to[i + 4] = (ints)_mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
}

#include "linear.inl"
#include "attention.inl"

const struct kernels avx2_kernels = {
    .name = "AVX2",
    .panel_width = WIDTH,
    .is_supported = is_supported,
    .pack = pack,
    .multiply = multiply,
    .attend = attend,
};

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
