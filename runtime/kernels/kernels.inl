/* The kernels, compiled once for each instruction set. A file that includes this one has defined

    NAME             of its `struct kernels`
    LANES            float32 values in a vector
    N_VECTORS        vectors in a panel's width
    SATURATES        whether products of bytes are added in pairs in int16
    floats, ints     vectors of LANES values
    dot              adds four products of uint8 inputs and int8 weights to each int32 lane, unless SATURATES
    multiply_bytes   sums of two products of uint8 inputs and int8 weights, in int16, if SATURATES
    add_pairs        adds two products of int16 to each int32 lane
    multiply_add     a * b + c, rounded once
    maximum          the larger of two floats, lane by lane; the second where either is NaN
    load_halves      LANES float16 values, as float32
    transpose        LANES vectors of LANES int32, if SATURATES

Arithmetic is the same, operation by operation, for a row in any company: values do not depend on the batch. A row with
a value that is not finite does not reach other rows either. */

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define WIDTH (LANES * N_VECTORS)
#define GROUP 4 /* inputs that are multiplied at once */
#define GROUPS_PER_BLOCK (INPUTS_PER_BLOCK / GROUP)
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef uint8_t bytes __attribute__((vector_size(LANES)));

ALWAYS_INLINE floats load(const float *values) {
    floats vector;
    memcpy(&vector, values, sizeof vector);
    return vector;
}

ALWAYS_INLINE void store(float *values, floats vector) { memcpy(values, &vector, sizeof vector); }

ALWAYS_INLINE floats all(float value) { return value - (floats){0}; }

ALWAYS_INLINE ints all_groups(const void *group) {
    int32_t word;
    memcpy(&word, group, sizeof word);
    return word - (ints){0};
}

ALWAYS_INLINE floats minimum(floats a, floats b) { return -maximum(-a, -b); }

/* Round to the nearest whole number, ties to even; |x| < 2^22. */
ALWAYS_INLINE floats round_to_whole(floats x) {
    const float shift = 12582912; /* 1.5 * 2^23: adding it leaves no room for a fraction */
    return (x + shift) - shift;
}

/* e^x for x <= 0, to 2 units in the last place; e^-87 below -87; NaN for NaN. Cody and Waite's reduction, Taylor's
polynomial. */
ALWAYS_INLINE floats exponential(floats x) {
    x = maximum(all(-87), x); /* in this order it keeps a NaN */
    floats n = round_to_whole(x * 1.44269504f);
    floats r = multiply_add(n, all(-0.693359375f), x); /* ln 2 in two parts, the first of few bits */
    r = multiply_add(n, all(2.12194440e-4f), r);
    floats sum = all(1.0f / 720);
    sum = multiply_add(sum, r, all(1.0f / 120));
    sum = multiply_add(sum, r, all(1.0f / 24));
    sum = multiply_add(sum, r, all(1.0f / 6));
    sum = multiply_add(sum, r, all(0.5f));
    sum = multiply_add(sum, r, all(1));
    sum = multiply_add(sum, r, all(1));
    ints exponent = __builtin_convertvector(n, ints) + 127;
    return sum * (floats)(exponent << 23);
}

/* x * Phi(x), to 2e-6. Phi(x) - 1/2 is taken as x * P(2 x^2 / 25 - 1) for |x| <= 5 and as constant beyond. P is fitted by
least squares on Chebyshev nodes, reweighted until the largest errors of the whole product are alike. */
ALWAYS_INLINE floats gelu(floats x) {
    static const float coefficients[] = {
        0.14136378f,    -0.070296653f,  0.05152142f,    -0.040432949f, 0.031426229f,  -0.023336731f,  0.016497657f,
        -0.010973232f, 0.0061654295f, -0.0029156734f, 0.0020018613f, -0.0015141536f, 0.00049296906f,
    };
    floats clipped = minimum(maximum(x, all(-5)), all(5));
    floats u = multiply_add(clipped * clipped, all(0.08f), all(-1));
    int last = sizeof coefficients / sizeof *coefficients - 1;
    floats sum = all(coefficients[last]);
    for (int i = last - 1; i >= 0; i--)
        sum = multiply_add(sum, u, all(coefficients[i]));
    return x * multiply_add(clipped, sum, all(0.5f));
}

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

/* Load n <= LANES values, zero beyond. */
ALWAYS_INLINE floats load_some(const float *values, int64_t n) {
    floats vector = {0};
    if (n >= LANES)
        return load(values);
    memcpy(&vector, values, n * sizeof(float));
    return vector;
}

ALWAYS_INLINE void store_some(float *values, floats vector, int64_t n) {
    if (n >= LANES)
        store(values, vector);
    else
        memcpy(values, &vector, n * sizeof(float));
}

/* Up to six quantized rows side by side. */
struct strip {
    int32_t *factors; /* (n_blocks, LANES), each in both halves */
    int16_t *offsets; /* (n_pairs, MAX_ROWS, 2): factors times zero points, of two blocks side by side */
    uint8_t *inputs;  /* (n_groups, MAX_ROWS, GROUP) */
};

struct range {
    float least, largest;
};

/* Attention's keys, values, context, scores and queries (`attend`). */
_Static_assert(
    (KEYS_PER_BLOCK * 2 * MAX_HEAD_SIZE + QUERIES_PER_TASK * 2 * MAX_HEAD_SIZE + MAX_ROWS * KEYS_PER_BLOCK) * 4 <=
            SCRATCH_BYTES && MAX_HEAD_SIZE % WIDTH == 0 && KEYS_PER_BLOCK % WIDTH == 0,
    "a task's attention must fit its scratch memory"
);

_Static_assert(
    ROWS_PER_TASK * (MAX_INPUTS + MAX_INPUTS / INPUTS_PER_BLOCK * (LANES * 4 / MAX_ROWS + 4)) <= SCRATCH_BYTES,
    "a task's strips must fit its scratch memory"
);

/* Take a strip's memory. Places that no row takes have factors of 0, so that what their inputs hold adds nothing. */
ALWAYS_INLINE struct strip strip_in(void *scratch, int64_t index, int64_t n_inputs) {
    int64_t n_blocks = divide_up(n_inputs, INPUTS_PER_BLOCK), n_pairs = divide_up(n_blocks, 2);
    int64_t pairs = n_blocks * LANES * sizeof(int32_t), inputs = pairs + n_pairs * MAX_ROWS * sizeof(int32_t);
    int64_t n_bytes = round_up(inputs + round_up(n_inputs, LANES) * MAX_ROWS, 64);
    char *start = memset((char *)scratch + index * n_bytes, 0, inputs);
    return (struct strip){(int32_t *)start, (int16_t *)(start + pairs), (uint8_t *)(start + inputs)};
}

#if SATURATES

#define STRIPS_AT_ONCE 4 /* that each item of excess is added to in turn */

/* Where int16 may overflow, move what is too much of a pair of weights to a list, for `add_excess`.

255 * 128 fits int16: beyond that are pairs of one sign that add up to more than 128, about two in a hundred. */
static bool split_excess(struct product *product, int64_t panel, int8_t *packed, int64_t n_groups) {
    for (int64_t column = 0; column < WIDTH; column++) {
        int64_t n = product->excess_starts[panel * WIDTH + column];
        for (int64_t group = 0; group < n_groups; group++) {
            int8_t *weights = packed + (group * WIDTH + column) * GROUP;
            int sums[] = {weights[0] + weights[1], weights[2] + weights[3]};
            if (abs(sums[0]) <= 128 && abs(sums[1]) <= 128)
                continue; /* a pair of two signs adds up to less, too */
            struct excess excess = {.group = group};
            for (int i = 0; i < GROUP; i += 2) {
                int sum = sums[i / 2], larger = i + (abs(weights[i + 1]) > abs(weights[i]));
                if (abs(sum) > 128)
                    excess.weights[larger] = sum > 0 ? sum - 128 : sum + 128;
                weights[larger] -= excess.weights[larger];
            }
            if ((n & (n - 1)) == 0) { /* grow to the next power of 2 */
                void *grown = realloc(product->excess, (n ? 2 * n : 1) * sizeof excess);
                if (!grown)
                    return false;
                product->excess = grown;
            }
            product->excess[n++] = excess;
        }
        product->excess_starts[panel * WIDTH + column + 1] = n;
    }
    return true;
}

/* Add the products that `split_excess` left out, to a few strips. Lanes are the rows of a strip. */
ALWAYS_INLINE void add_excess_to(
    const int n_strips, const struct product *product, const struct strip *strips, int64_t panel, int32_t *sums
) {
    ints columns[STRIPS_AT_ONCE][WIDTH];
    const int64_t *starts = product->excess_starts + panel * WIDTH;
    const struct excess *excess = product->excess + starts[0];
    for (int i = 0; i < WIDTH; i++) {
        ints of_column[STRIPS_AT_ONCE] = {0};
        for (const struct excess *stop = product->excess + starts[i + 1]; excess < stop; excess++)
            for (int strip = 0; strip < n_strips; strip++) {
                ints inputs, factors;
                memcpy(&inputs, strips[strip].inputs + excess->group * MAX_ROWS * GROUP, sizeof inputs);
                memcpy(&factors, strips[strip].factors + excess->group / GROUPS_PER_BLOCK * LANES, sizeof factors);
                ints pairs = multiply_bytes(inputs, all_groups(excess->weights));
                of_column[strip] = add_pairs(of_column[strip], pairs, factors);
            }
        for (int strip = 0; strip < n_strips; strip++)
            columns[strip][i] = of_column[strip];
    }
    for (int strip = 0; strip < n_strips; strip++, sums += MAX_ROWS * WIDTH)
        for (int j = 0; j < N_VECTORS; j++) {
            ints rows[LANES];
            transpose(columns[strip] + j * LANES, rows);
            for (int i = 0; i < MAX_ROWS; i++) {
                ints sum;
                memcpy(&sum, sums + i * WIDTH + j * LANES, sizeof sum);
                sum += rows[i];
                memcpy(sums + i * WIDTH + j * LANES, &sum, sizeof sum);
            }
        }
}

static void add_excess(
    const struct product *product, int64_t n_strips, const struct strip *strips, int64_t panel, int32_t *sums
) {
    int64_t i = 0;
    for (; i + STRIPS_AT_ONCE <= n_strips; i += STRIPS_AT_ONCE)
        add_excess_to(STRIPS_AT_ONCE, product, strips + i, panel, sums + i * MAX_ROWS * WIDTH);
    for (; i < n_strips; i++)
        add_excess_to(1, product, strips + i, panel, sums + i * MAX_ROWS * WIDTH);
}

#else

#define split_excess(...) true
#define add_excess(...)

#endif

/* Put four inputs' weights of a panel's columns side by side, column by column, and add them to the block's sums. */
ALWAYS_INLINE void
pack_group(const int8_t *from, int64_t n_outputs, int64_t n_inputs, int64_t n_columns, int8_t *to, int16_t *sums) {
    for (int64_t i = 0; i < n_columns; i++)
        for (int64_t k = 0; k < n_inputs; k++) {
            to[i * GROUP + k] = from[k * n_outputs + i];
            sums[2 * i] += from[k * n_outputs + i];
        }
}

/* Lay a weight out panel by panel of WIDTH columns: int8 by groups of four inputs, float16 by inputs. */
static bool pack(const void *weight, struct product *product) {
    int64_t size = bytes_of(product->type), n_inputs = product->n_inputs, n_outputs = product->n_outputs;
    int64_t n_groups = divide_up(n_inputs, GROUP), panel_bytes = n_groups * GROUP * WIDTH * size;
    int64_t n_panels = divide_up(n_outputs, WIDTH), n_pairs = divide_up(n_inputs, 2 * INPUTS_PER_BLOCK);
    char *packed = product->weight;
    memset(packed, 0, n_panels * panel_bytes);
    for (int64_t k = 0; k < n_inputs; k += GROUP)
        for (int64_t start = 0; start < n_outputs; start += WIDTH) {
            int64_t n_rows = n_inputs - k < GROUP ? n_inputs - k : GROUP;
            int64_t n_columns = n_outputs - start < WIDTH ? n_outputs - start : WIDTH, block = k / INPUTS_PER_BLOCK;
            const char *from = (const char *)weight + (k * n_outputs + start) * size;
            char *to = packed + start / WIDTH * panel_bytes + k * WIDTH * size;
            int16_t *sums = product->block_sums + start * 2 * n_pairs + block / 2 * 2 * WIDTH + block % 2;
            if (product->type == FLOAT16_WEIGHT)
                for (int64_t i = 0; i < n_rows; i++)
                    memcpy(to + i * WIDTH * size, from + i * n_outputs * size, n_columns * size);
            else if (n_rows == GROUP && n_columns == WIDTH) /* nearly always: constants make it fast */
                pack_group((const int8_t *)from, n_outputs, GROUP, WIDTH, (int8_t *)to, sums);
            else
                pack_group((const int8_t *)from, n_outputs, n_rows, n_columns, (int8_t *)to, sums);
        }
    for (int64_t i = 0; product->type == INT8_WEIGHT && i < n_panels; i++)
        if (!split_excess(product, i, (int8_t *)packed + i * panel_bytes, n_groups))
            return false;
    return true;
}

ALWAYS_INLINE floats smoothed(const struct product *product, const float *row, int64_t k) {
    floats x = load_some(row + k, product->n_inputs - k);
    return product->smoothing ? x * load_some(product->smoothing + k, product->n_inputs - k) : x;
}

ALWAYS_INLINE int64_t block_stop(int64_t start, int64_t n_inputs) {
    return start + INPUTS_PER_BLOCK < n_inputs ? start + INPUTS_PER_BLOCK : n_inputs;
}

/* Return the least and the largest of 0 and the finite values of a block of a row, inputs start to stop. `zeros`, which
are 0, become NaN where a value is not finite. */
ALWAYS_INLINE struct range
block_range(const struct product *product, const float *row, int64_t start, int64_t stop, floats *zeros) {
    floats least_negated = {0}, largest = {0};
    for (int64_t k = start; k < stop; k += LANES) {
        floats x = smoothed(product, row, k);
        least_negated = maximum(least_negated, -x), largest = maximum(largest, x);
        *zeros *= x;
    }
    return (struct range){-largest_of(least_negated), largest_of(largest)};
}

/* Quantize a row (K) block by block; return its unit. A block's range, 0 included, has all 255 steps of uint8; its zero
point is the level of 0. A step is a whole number of units, the block's factor: so products times factors are whole
numbers as well, and their sums, which fit int32, are exact. The unit of a row with a value that is not finite, or whose
range is not, is NaN. */
static float quantize_row(const struct product *product, const float *row, const struct strip *strip, int64_t place) {
    struct range ranges[MAX_INPUTS / INPUTS_PER_BLOCK];
    float widest = SMALLEST_RANGE;
    floats zeros = {0};
    int64_t n_inputs = product->n_inputs;
    for (int64_t k = 0, block = 0; k < n_inputs; k += INPUTS_PER_BLOCK, block++) {
        struct range range = ranges[block] = block_range(product, row, k, block_stop(k, n_inputs), &zeros);
        widest = range.largest - range.least > widest ? range.largest - range.least : widest;
    }
    int32_t most = largest_factor(n_inputs);
    float unit = widest / 255 / most + (sum_of(zeros) + 0 * widest);
    for (int64_t start = 0, block = 0; start < n_inputs; start += INPUTS_PER_BLOCK, block++) {
        float ratio = (ranges[block].largest - ranges[block].least) / 255 / unit;
        int32_t factor = ratio < most ? (int32_t)ratio : most;
        factor += factor < ratio && factor < most;
        factor += factor == 0;
        float inverse = 1 / (factor * unit);
        floats level = round_to_whole(all(-ranges[block].least * inverse));
        float zero_point = minimum(maximum(level, all(0)), all(255))[0]; /* 0 of NaN */
        strip->factors[block * LANES + place] = factor | factor << 16;
        strip->offsets[(block / 2 * MAX_ROWS + place) * 2 + block % 2] = factor * (int32_t)zero_point;
        for (int64_t k = start; k < block_stop(start, n_inputs); k += LANES) {
            floats x = round_to_whole(smoothed(product, row, k) * inverse) + zero_point;
            x = minimum(maximum(x, all(0)), all(255));
            bytes values = __builtin_convertvector(__builtin_convertvector(x, ints), bytes);
            for (int i = 0; i < LANES; i += GROUP)
                memcpy(strip->inputs + (k + i) * MAX_ROWS + place * GROUP, (const char *)&values + i, GROUP);
        }
    }
    return unit;
}

/* Start a strip's sums (MAX_ROWS, WIDTH) for a panel at minus what the zero points will add to them. */
static void start_sums(const struct product *product, const struct strip *strip, int64_t panel, int32_t *sums) {
    int64_t n_pairs = divide_up(product->n_inputs, 2 * INPUTS_PER_BLOCK);
    const int16_t *block_sums = product->block_sums + panel * n_pairs * WIDTH * 2;
    ints offsets[MAX_ROWS][N_VECTORS] = {0};
    for (int64_t pair = 0; pair < n_pairs; pair++)
        for (int j = 0; j < N_VECTORS; j++) {
            ints weights;
            memcpy(&weights, block_sums + (pair * WIDTH + j * LANES) * 2, sizeof weights);
            for (int i = 0; i < MAX_ROWS; i++) {
                ints of_blocks = all_groups(strip->offsets + (pair * MAX_ROWS + i) * 2);
                offsets[i][j] = add_pairs(offsets[i][j], weights, of_blocks);
            }
        }
    for (int i = 0; i < MAX_ROWS; i++)
        for (int j = 0; j < N_VECTORS; j++) {
            ints sum = -offsets[i][j];
            memcpy(sums + i * WIDTH + j * LANES, &sum, sizeof sum);
        }
}

/* Multiply up to six quantized rows with a part of a panel, which starts with a block; add to the sums (n_rows, WIDTH). */
ALWAYS_INLINE void integer_tile(
    const int n_rows, const uint8_t *inputs, const int32_t *factors, const int8_t *panel, int64_t n_groups,
    int32_t *output
) {
    ints sums[MAX_ROWS][N_VECTORS];
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < N_VECTORS; j++)
            memcpy(&sums[i][j], output + i * WIDTH + j * LANES, sizeof(ints));
    for (; n_groups > 0; n_groups -= GROUPS_PER_BLOCK, factors += LANES) {
        ints of_block[MAX_ROWS][N_VECTORS] = {0}, of_row[MAX_ROWS];
        for (int i = 0; i < n_rows; i++)
            of_row[i] = all_groups(factors + i);
        for (int64_t n = n_groups < GROUPS_PER_BLOCK ? n_groups : GROUPS_PER_BLOCK; n > 0; n--) {
            ints weights[N_VECTORS];
            for (int j = 0; j < N_VECTORS; j++, panel += sizeof(ints))
                memcpy(&weights[j], panel, sizeof(ints));
            for (int i = 0; i < n_rows; i++) {
                ints group = all_groups(inputs + i * GROUP);
                for (int j = 0; j < N_VECTORS; j++)
#if SATURATES /* pairs must be multiplied to be added: here by the factor instead of 1 */
                    sums[i][j] = add_pairs(sums[i][j], multiply_bytes(group, weights[j]), of_row[i]);
#else
                    of_block[i][j] = dot(of_block[i][j], group, weights[j]);
#endif
            }
            inputs += MAX_ROWS * GROUP;
        }
        for (int i = 0; i < n_rows && !SATURATES; i++)
            for (int j = 0; j < N_VECTORS; j++)
                sums[i][j] += of_block[i][j] * (of_row[i] & 0xffff);
    }
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < N_VECTORS; j++)
            memcpy(output + i * WIDTH + j * LANES, &sums[i][j], sizeof(ints));
}

/* Multiply up to six rows with a panel (n_terms, WIDTH) of float32, or of float16, and add to the sums. */
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
                sums[i][j] = multiply_add(all(rows[i * stride + k]), terms[j], sums[i][j]);
    }
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < N_VECTORS; j++)
            store(output + i * output_stride + j * LANES, sums[i][j]);
}

/* A tile's registers are laid out for a number of rows known when it is compiled. */
#define FOR_ROWS(n_rows, tile, ...)                                                                                    \
    switch (n_rows) {                                                                                                  \
    case 1: tile(1, __VA_ARGS__); break;                                                                               \
    case 2: tile(2, __VA_ARGS__); break;                                                                               \
    case 3: tile(3, __VA_ARGS__); break;                                                                               \
    case 4: tile(4, __VA_ARGS__); break;                                                                               \
    case 5: tile(5, __VA_ARGS__); break;                                                                               \
    default: tile(6, __VA_ARGS__);                                                                                     \
    }

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

static __attribute__((noinline)) void multiply_halves(
    int n_rows, const float *rows, int64_t stride, const uint16_t *panel, int64_t n_terms, float *output
) {
    FOR_ROWS(n_rows, float_tile, true, rows, stride, panel, n_terms, output, WIDTH)
}

/* Turn a tile's integer sums (n_rows, WIDTH) into the floats that they stand for, in their place. */
static void
scale_sums(const struct product *product, int64_t panel, int64_t n_rows, const float *units, int32_t *sums) {
    for (int j = 0; j < N_VECTORS; j++) {
        int64_t column = panel * WIDTH + j * LANES;
        floats scales = load(product->scales + column);
        for (int64_t i = 0; i < n_rows; i++) {
            ints sum;
            memcpy(&sum, sums + i * WIDTH + j * LANES, sizeof sum);
            floats value = __builtin_convertvector(sum, floats) * units[i] * scales;
            memcpy(sums + i * WIDTH + j * LANES, &value, sizeof value);
        }
    }
}

/* Add to a panel's products bias, GELU and residual, and write them. */
static void
finish(const struct product *product, const struct product_task *task, int64_t panel, const float *products) {
    for (int j = 0; j < N_VECTORS; j++) {
        int64_t column = panel * WIDTH + j * LANES, n_columns = product->n_outputs - column;
        if (n_columns <= 0)
            return;
        floats bias = load(product->bias + column);
        for (int64_t row = task->row_start; row < task->row_stop; row++, products += WIDTH) {
            int64_t place = row * product->n_outputs + column;
            floats value = load(products) + bias;
            if (product->gelu)
                value = gelu(value);
            if (task->residual)
                value += load_some(task->residual + place, n_columns);
            store_some(task->output + place, value, n_columns);
        }
        products += LANES - (task->row_stop - task->row_start) * WIDTH;
    }
}

/* Panels pass over the rows part by part, each of which stays in the first-level cache meanwhile. */
static void multiply(const struct product *product, const struct product_task *task, void *scratch) {
    enum { PART_BYTES = 1 << 14 };
    _Static_assert(PART_BYTES / WIDTH % INPUTS_PER_BLOCK == 0, "parts must start with a block");
    int64_t n_inputs = product->n_inputs, row_bytes = WIDTH * bytes_of(product->type);
    int64_t panel_bytes = round_up(n_inputs, GROUP) * row_bytes, part_size = PART_BYTES / row_bytes;
    int64_t n_rows = task->row_stop - task->row_start;
    const float *rows = task->rows + task->row_start * n_inputs;
    float units[ROWS_PER_TASK];
    union {
        int32_t integers[ROWS_PER_TASK * WIDTH];
        float floats[ROWS_PER_TASK * WIDTH];
    } sums;
    struct strip strips[ROWS_PER_TASK / MAX_ROWS];
    int64_t n_strips = divide_up(n_rows, MAX_ROWS);
    for (int64_t i = 0; i < n_strips && product->type == INT8_WEIGHT; i++)
        strips[i] = strip_in(scratch, i, n_inputs);
    for (int64_t i = 0; i < n_rows && product->type == INT8_WEIGHT; i++)
        units[i] = quantize_row(product, rows + i * n_inputs, &strips[i / MAX_ROWS], i % MAX_ROWS);
    for (int64_t panel = task->panel_start; panel < task->panel_stop; panel++) {
        if (product->type == INT8_WEIGHT) {
            for (int64_t i = 0; i < n_strips; i++)
                start_sums(product, &strips[i], panel, sums.integers + i * MAX_ROWS * WIDTH);
            add_excess(product, n_strips, strips, panel, sums.integers);
        } else
            memset(&sums, 0, n_rows * WIDTH * sizeof(float));
        for (int64_t k = 0; k < n_inputs; k += part_size) {
            int64_t n_terms = n_inputs - k < part_size ? n_inputs - k : part_size;
            const void *part = (const char *)product->weight + panel * panel_bytes + k * row_bytes;
            for (int64_t i = 0; i < n_rows; i += MAX_ROWS) {
                int n = n_rows - i < MAX_ROWS ? n_rows - i : MAX_ROWS;
                if (product->type == INT8_WEIGHT) {
                    const uint8_t *inputs = strips[i / MAX_ROWS].inputs + k * MAX_ROWS;
                    const int32_t *factors = strips[i / MAX_ROWS].factors + k / INPUTS_PER_BLOCK * LANES;
                    multiply_integers(n, inputs, factors, part, divide_up(n_terms, GROUP), sums.integers + i * WIDTH);
                } else
                    multiply_halves(n, rows + i * n_inputs + k, n_inputs, part, n_terms, sums.floats + i * WIDTH);
            }
        }
        if (product->type == INT8_WEIGHT)
            scale_sums(product, panel, n_rows, units, sums.integers);
        finish(product, task, panel, sums.floats);
    }
}

/* Lay a block of a head's keys out in panels of WIDTH keys, (n_panels, head_size, WIDTH), zero where there is none. */
static void pack_keys(const float *keys, int64_t stride, int64_t n_keys, int64_t head_size, float *panels) {
    for (int64_t start = 0; start < n_keys; start += WIDTH, panels += head_size * WIDTH)
        for (int64_t i = 0; i < WIDTH; i++)
            for (int64_t d = 0; d < head_size; d++)
                panels[d * WIDTH + i] = start + i < n_keys ? keys[(start + i) * stride + d] : 0;
}

/* Lay a block of a head's values out in panels of WIDTH dimensions, (n_panels, n_keys, WIDTH). */
static void pack_values(const float *values, int64_t stride, int64_t n_keys, int64_t head_size, float *panels) {
    for (int64_t start = 0; start < head_size; start += WIDTH, panels += n_keys * WIDTH) {
        int64_t n_columns = head_size - start < WIDTH ? head_size - start : WIDTH;
        for (int64_t i = 0; i < n_keys; i++)
            for (int64_t j = 0; j < WIDTH; j++)
                panels[i * WIDTH + j] = j < n_columns ? values[i * stride + start + j] : 0;
    }
}

/* The largest score of a query's keys so far, and the sum of their weights (online softmax: Milakov and Gimelshein,
arXiv:1805.02867). */
struct seen {
    float largest, sum;
};

/* Turn a row of scores into e^(score - largest); return the factor for what was summed before. A score of infinity or NaN
gives a weight of NaN, one of minus infinity e^-87. */
static float exponentiate(float *scores, int64_t n_keys, struct seen *seen) {
    for (int64_t i = n_keys; i % LANES; i++)
        scores[i] = -INFINITY;
    floats largest = all(seen->largest);
    for (int64_t i = 0; i < n_keys; i += LANES)
        largest = maximum(largest, load(scores + i));
    float now = largest_of(largest), base = now < -FLT_MAX ? -FLT_MAX : now;
    floats sum = {0};
    for (int64_t i = 0; i < n_keys; i += LANES) {
        floats weights = exponential(load(scores + i) - base);
        store(scores + i, weights);
        sum += weights;
    }
    float factor = exponential(all(seen->largest - base))[0];
    *seen = (struct seen){now, seen->sum * factor + sum_of(sum)};
    return factor;
}

/* Attend from a text's queries to all of its keys, block by block, never holding more than a strip of scores. */
static void attend(const struct attention *attention, const struct attention_task *task, void *scratch) {
    int64_t size = attention->head_size, stride = attention->n_heads * size, offset = task->head * size;
    int64_t padded = round_up(size, WIDTH), n_queries = task->query_stop - task->query_start;
    float *keys = scratch, *values = keys + KEYS_PER_BLOCK * size, *context = values + KEYS_PER_BLOCK * padded;
    float *scores = context + QUERIES_PER_TASK * padded, *queries = scores + MAX_ROWS * KEYS_PER_BLOCK;
    struct seen seen[QUERIES_PER_TASK];
    float scale = 1 / __builtin_sqrtf(size);
    for (int64_t i = 0; i < n_queries; i++) {
        seen[i] = (struct seen){-INFINITY, 0};
        memset(context + i * padded, 0, padded * sizeof(float));
        for (int64_t d = 0; d < size; d++)
            queries[i * size + d] = attention->queries[(task->query_start + i) * stride + offset + d] * scale;
    }
    for (int64_t start = task->text_start; start < task->text_stop; start += KEYS_PER_BLOCK) {
        int64_t n_keys = task->text_stop - start < KEYS_PER_BLOCK ? task->text_stop - start : KEYS_PER_BLOCK;
        pack_keys(attention->keys + start * stride + offset, stride, n_keys, size, keys);
        pack_values(attention->values + start * stride + offset, stride, n_keys, size, values);
        for (int64_t query = 0; query < n_queries; query += MAX_ROWS) {
            int n_rows = n_queries - query < MAX_ROWS ? n_queries - query : MAX_ROWS;
            for (int i = 0; i < n_rows; i++)
                memset(scores + i * KEYS_PER_BLOCK, 0, round_up(n_keys, WIDTH) * sizeof(float));
            for (int64_t key = 0; key < n_keys; key += WIDTH)
                multiply_floats(
                    n_rows, queries + query * size, size, keys + key * size, size, scores + key, KEYS_PER_BLOCK
                );
            float factors[MAX_ROWS];
            for (int i = 0; i < n_rows; i++)
                factors[i] = exponentiate(scores + i * KEYS_PER_BLOCK, n_keys, &seen[query + i]);
            float *sums = context + query * padded;
            for (int64_t i = 0; i < n_rows; i++)
                for (int64_t d = 0; d < padded; d += LANES)
                    store(sums + i * padded + d, load(sums + i * padded + d) * factors[i]);
            for (int64_t d = 0; d < padded; d += WIDTH)
                multiply_floats(n_rows, scores, KEYS_PER_BLOCK, values + d * n_keys, n_keys, sums + d, padded);
        }
    }
    for (int64_t i = 0; i < n_queries; i++) {
        float *to = attention->context + (task->query_start + i) * stride + offset;
        float sum = seen[i].sum + 0 * seen[i].largest; /* NaN if no score is above minus infinity, as the formula's */
        for (int64_t d = 0; d < size; d++)
            to[d] = context[i * padded + d] / sum;
    }
}

const struct kernels NAME = {
    .name = LABEL,
    .panel_width = WIDTH,
    .is_supported = is_supported,
    .pack = pack,
    .multiply = multiply,
    .attend = attend,
};
