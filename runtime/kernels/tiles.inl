/* Tiles: up to MAX_ROWS rows times a panel, in registers. */

#ifndef BGEM3_TILES_INL
#define BGEM3_TILES_INL

#include "simd.inl"

#define GROUPS_PER_BLOCK (INPUTS_PER_BLOCK / GROUP)

/* Multiply n_rows of a strip by some blocks of an int8 panel, and add to the sums (n_rows, WIDTH). */
ALWAYS_INLINE void integer_tile(
    const int n_rows, const uint8_t *inputs, const int32_t *factors, const int8_t *panel, int64_t n_groups,
    int32_t *output
) {
    ints sums[MAX_ROWS][N_VECTORS];
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < N_VECTORS; j++)
            sums[i][j] = load_ints(output + i * WIDTH + j * LANES);
    for (; n_groups > 0; n_groups -= GROUPS_PER_BLOCK, factors += LANES) {
        ints block[MAX_ROWS][N_VECTORS] = {0}, factor[MAX_ROWS];
        for (int i = 0; i < n_rows; i++)
            factor[i] = broadcast_word(factors + i);
        for (int64_t n = n_groups < GROUPS_PER_BLOCK ? n_groups : GROUPS_PER_BLOCK; n > 0; n--) {
            ints weights[N_VECTORS];
            for (int j = 0; j < N_VECTORS; j++, panel += sizeof(ints))
                weights[j] = load_ints(panel);
            for (int i = 0; i < n_rows; i++) {
                ints group = broadcast_word(inputs + i * GROUP);
                for (int j = 0; j < N_VECTORS; j++)
#if SATURATES /* only an instruction that multiplies adds int16 pairs: it multiplies them by the factor */
                    sums[i][j] = add_pairs(sums[i][j], multiply_bytes(group, weights[j]), factor[i]);
#else
                    block[i][j] = dot(block[i][j], group, weights[j]);
#endif
            }
            inputs += MAX_ROWS * GROUP;
        }
        for (int i = 0; i < n_rows && !SATURATES; i++)
            for (int j = 0; j < N_VECTORS; j++)
                sums[i][j] += block[i][j] * (factor[i] & 0xffff);
    }
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < N_VECTORS; j++)
            store_ints(output + i * WIDTH + j * LANES, sums[i][j]);
}

/* Multiply n_rows by a panel (n_terms, WIDTH) of float32 or float16 values, and add to the sums (n_rows, WIDTH).

`stride` and `output_stride` are the distances between rows and between rows of sums. */
ALWAYS_INLINE void float_tile(
    const int n_rows, const bool is_half, const float *rows, int64_t stride, const void *panel, int64_t n_terms,
    float *output, int64_t output_stride
) {
    floats sums[MAX_ROWS][N_VECTORS];
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < N_VECTORS; j++)
            sums[i][j] = load(output + i * output_stride + j * LANES);
    for (int64_t k = 0; k < n_terms; k++) {
        floats terms[N_VECTORS];
        for (int j = 0; j < N_VECTORS; j++) {
            int64_t place = k * WIDTH + j * LANES;
            terms[j] = is_half ? load_halves((const uint16_t *)panel + place) : load((const float *)panel + place);
        }
        for (int i = 0; i < n_rows; i++)
            for (int j = 0; j < N_VECTORS; j++)
                sums[i][j] = multiply_add(broadcast(rows[i * stride + k]), terms[j], sums[i][j]);
    }
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < N_VECTORS; j++)
            store(output + i * output_stride + j * LANES, sums[i][j]);
}

/* Compile a tile once for each number of rows: sums stay in registers only if the compiler knows the number. */
#define FOR_ROWS(n_rows, tile, ...)                                                                                    \
    switch (n_rows) {                                                                                                  \
        ROWS_CASE(1, tile, __VA_ARGS__)                                                                                \
        ROWS_CASE(2, tile, __VA_ARGS__)                                                                                \
        ROWS_CASE(3, tile, __VA_ARGS__)                                                                                \
        ROWS_CASE(4, tile, __VA_ARGS__)                                                                                \
        ROWS_CASE(5, tile, __VA_ARGS__)                                                                                \
        ROWS_CASE(6, tile, __VA_ARGS__)                                                                                \
        ROWS_CASE(7, tile, __VA_ARGS__)                                                                                \
        ROWS_CASE(8, tile, __VA_ARGS__)                                                                                \
    }
#define ROWS_CASE(n, tile, ...)                                                                                        \
    case n:                                                                                                            \
        if (n <= MAX_ROWS)                                                                                             \
            tile(n, __VA_ARGS__);                                                                                      \
        break;

static __attribute__((noinline)) void multiply_integers(
    int n_rows, const uint8_t *inputs, const int32_t *factors, const int8_t *panel, int64_t n_groups, int32_t *output
) {
    FOR_ROWS(n_rows, integer_tile, inputs, factors, panel, n_groups, output)
}

static __attribute__((noinline)) void multiply_floats(
    int n_rows, const float *rows, int64_t stride, const float *panel, int64_t n_terms, float *output,
    int64_t output_stride
) {
    FOR_ROWS(n_rows, float_tile, false, rows, stride, panel, n_terms, output, output_stride)
}

static __attribute__((noinline)) void
multiply_halves(int n_rows, const float *rows, int64_t stride, const uint16_t *panel, int64_t n_terms, float *output) {
    FOR_ROWS(n_rows, float_tile, true, rows, stride, panel, n_terms, output, WIDTH)
}

#endif
