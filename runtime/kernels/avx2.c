/* AVX2 and FMA. Pairs of uint8 x int8 products are added in int16. */

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define NAME avx2_kernels
#define LABEL "AVX2"
#define LANES 8
#define N_VECTORS 2
#define SATURATES true

typedef float floats __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));

static bool is_supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static inline ints dot(ints sums, ints inputs, ints weights) {
    __m256i pairs = _mm256_maddubs_epi16((__m256i)inputs, (__m256i)weights);
    return sums + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

static inline floats multiply_add(floats a, floats b, floats c) { return (floats)_mm256_fmadd_ps(a, b, c); }

static inline floats maximum(floats a, floats b) { return (floats)_mm256_max_ps(a, b); }

#include "kernels.inl"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
