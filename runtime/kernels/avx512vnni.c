/* The kernels for AVX-512 with VNNI, which adds four products of bytes in int32. */

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#define LANES 16
#define N_VECTORS 4
#define SATURATES 0

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));

static bool is_supported(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

static inline ints dot(ints sums, ints inputs, ints weights) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)inputs, (__m512i)weights);
}

static inline ints add_pairs(ints sums, ints a, ints b) {
    return (ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
}

static inline floats multiply_add(floats a, floats b, floats c) { return (floats)_mm512_fmadd_ps(a, b, c); }

static inline floats load_halves(const uint16_t *halves) {
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
}

static inline floats maximum(floats a, floats b) { return (floats)_mm512_max_ps(a, b); }

#include "linear.inl"
#include "attention.inl"

const struct kernels avx512vnni_kernels = {
    .name = "AVX-512 VNNI",
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
