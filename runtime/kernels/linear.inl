/* Linear: lay a weight out once, then quantize rows, multiply them and finish the output, task by task. */

#include "tiles.inl"
#include "excess.inl"

/* ---- The weight ---- */

/* Lay out a group of inputs of a panel's columns, and add its weights to the sums of their block. */
ALWAYS_INLINE void
pack_group(const int8_t *from, int64_t n_outputs, int64_t n_inputs, int64_t n_columns, int8_t *to, int16_t *sums) {
    for (int64_t i = 0; i < n_columns; i++)
        for (int64_t k = 0; k < n_inputs; k++) {
            to[i * GROUP + k] = from[k * n_outputs + i];
            sums[2 * i] += from[k * n_outputs + i];
        }
}

/* Lay a weight out in panels: int8 by groups of inputs, float16 by inputs. */
static bool pack(const void *weight, struct product *product) {
    int64_t size = bytes_of(product->type), n_inputs = product->n_inputs, n_outputs = product->n_outputs;
    int64_t n_groups = DIVIDE_UP(n_inputs, GROUP), panel_bytes = n_groups * GROUP * WIDTH * size;
    int64_t n_panels = DIVIDE_UP(n_outputs, WIDTH), n_pairs = DIVIDE_UP(n_inputs, 2 * INPUTS_PER_BLOCK);
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
            else if (n_rows == GROUP && n_columns == WIDTH) /* the usual case: constants make it fast */
                pack_group((const int8_t *)from, n_outputs, GROUP, WIDTH, (int8_t *)to, sums);
            else
                pack_group((const int8_t *)from, n_outputs, n_rows, n_columns, (int8_t *)to, sums);
        }
    for (int64_t i = 0; product->type == INT8_WEIGHT && i < n_panels; i++)
        if (!split_excess(product, i, (int8_t *)packed + i * panel_bytes, n_groups))
            return false;
    return true;
}

/* ---- Rows ---- */

#define FACTOR_BYTES(n_inputs) (DIVIDE_UP(n_inputs, INPUTS_PER_BLOCK) * LANES * 4)
#define OFFSET_BYTES(n_inputs) (DIVIDE_UP(n_inputs, 2 * INPUTS_PER_BLOCK) * MAX_ROWS * 4)
#define STRIP_BYTES(n_inputs)                                                                                          \
    ROUND_UP(FACTOR_BYTES(n_inputs) + OFFSET_BYTES(n_inputs) + ROUND_UP(n_inputs, LANES) * MAX_ROWS, 64)

/* `add_excess_to` loads whole vectors of inputs, and so reads up to a vector beyond the last strip. */
_Static_assert(
    STRIPS_PER_TASK *STRIP_BYTES(MAX_INPUTS) + LANES * GROUP <= SCRATCH_BYTES,
    "the strips of a task must fit SCRATCH_BYTES: raise it, or lower ROWS_PER_TASK or MAX_INPUTS"
);

/* Return the memory of a strip, with factors and offsets of 0. */
ALWAYS_INLINE struct strip strip_in(void *scratch, int64_t index, int64_t n_inputs) {
    int64_t factors = FACTOR_BYTES(n_inputs), inputs = factors + OFFSET_BYTES(n_inputs);
    char *start = memset((char *)scratch + index * STRIP_BYTES(n_inputs), 0, inputs);
    return (struct strip){(int32_t *)start, (int16_t *)(start + factors), (uint8_t *)(start + inputs)};
}

/* Load a vector of a row, times the smoothing. */
ALWAYS_INLINE floats load_smoothed(const struct product *product, const float *row, int64_t k) {
    floats x = load_some(row + k, product->n_inputs - k);
    return product->smoothing ? x * load_some(product->smoothing + k, product->n_inputs - k) : x;
}

ALWAYS_INLINE int64_t block_stop(int64_t start, int64_t n_inputs) {
    return start + INPUTS_PER_BLOCK < n_inputs ? start + INPUTS_PER_BLOCK : n_inputs;
}

struct range {
    float least, largest;
};

/* Return the least and the largest value of a block of a row, with 0 among them.

`zeros` is a vector of 0; a lane becomes NaN if a value is not finite. */
ALWAYS_INLINE struct range
block_range(const struct product *product, const float *row, int64_t start, int64_t stop, floats *zeros) {
    floats least_negated = {0}, largest = {0};
    for (int64_t k = start; k < stop; k += LANES) {
        floats x = load_smoothed(product, row, k);
        least_negated = maximum(least_negated, -x), largest = maximum(largest, x);
        *zeros *= x;
    }
    return (struct range){-largest_of(least_negated), largest_of(largest)};
}

/* Quantize a row (K) into a strip; return its unit.

Each block has a scale and a zero point of its own: 255 steps of uint8 cover its values and 0. The scale is a factor, an
integer, times the row's unit. So all sums of products times factors are integers, and exact. The unit is NaN if a value
or a range of the row is not finite. */
static float quantize_row(const struct product *product, const float *row, const struct strip *strip, int64_t place) {
    struct range ranges[DIVIDE_UP(MAX_INPUTS, INPUTS_PER_BLOCK)];
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
        factor += factor < ratio && factor < most; /* round up */
        factor += factor == 0;
        float inverse = 1 / (factor * unit);
        floats level = round_to_integer(broadcast(-ranges[block].least * inverse));
        float zero_point = minimum(maximum(level, broadcast(0)), broadcast(255))[0]; /* 0 if the level is NaN */
        strip->factors[block * LANES + place] = factor | factor << 16;
        strip->offsets[(block / 2 * MAX_ROWS + place) * 2 + block % 2] = factor * (int32_t)zero_point;
        for (int64_t k = start; k < block_stop(start, n_inputs); k += LANES) {
            floats x = round_to_integer(load_smoothed(product, row, k) * inverse) + zero_point;
            x = minimum(maximum(x, broadcast(0)), broadcast(255));
            bytes values = __builtin_convertvector(__builtin_convertvector(x, ints), bytes);
            for (int i = 0; i < LANES; i += GROUP)
                memcpy(strip->inputs + (k + i) * MAX_ROWS + place * GROUP, (const char *)&values + i, GROUP);
        }
    }
    return unit;
}

/* ---- The product ---- */

/* Set a strip's sums (MAX_ROWS, WIDTH) for a panel to minus the zero points' part, which the products will add. */
static void start_sums(const struct product *product, const struct strip *strip, int64_t panel, int32_t *sums) {
    int64_t n_pairs = DIVIDE_UP(product->n_inputs, 2 * INPUTS_PER_BLOCK);
    const int16_t *block_sums = product->block_sums + panel * n_pairs * WIDTH * 2;
    ints offsets[MAX_ROWS][N_VECTORS] = {0};
    for (int64_t pair = 0; pair < n_pairs; pair++)
        for (int j = 0; j < N_VECTORS; j++) {
            ints weights = load_ints(block_sums + (pair * WIDTH + j * LANES) * 2);
            for (int i = 0; i < MAX_ROWS; i++) {
                ints row_offsets = broadcast_word(strip->offsets + (pair * MAX_ROWS + i) * 2);
                offsets[i][j] = add_pairs(offsets[i][j], weights, row_offsets);
            }
        }
    for (int i = 0; i < MAX_ROWS; i++)
        for (int j = 0; j < N_VECTORS; j++)
            store_ints(sums + i * WIDTH + j * LANES, -offsets[i][j]);
}

/* Turn integer sums (n_rows, WIDTH) into the floats that they stand for, in place. */
static void
scale_sums(const struct product *product, int64_t panel, int64_t n_rows, const float *units, int32_t *sums) {
    for (int j = 0; j < N_VECTORS; j++) {
        floats scales = load(product->scales + panel * WIDTH + j * LANES);
        for (int64_t i = 0; i < n_rows; i++) {
            int32_t *place = sums + i * WIDTH + j * LANES;
            floats value = __builtin_convertvector(load_ints(place), floats) * units[i] * scales;
            store_ints(place, (ints)value);
        }
    }
}

/* Add bias, GELU and residual to a panel's products (n_rows, WIDTH), and write the output. */
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

union sums {
    int32_t integers[STRIPS_PER_TASK * MAX_ROWS * WIDTH];
    float floats[STRIPS_PER_TASK * MAX_ROWS * WIDTH];
};

/* Add the products of a task's rows and a panel to the sums, part by part. */
static void multiply_panel(
    const struct product *product, const float *rows, int64_t n_rows, const struct strip *strips, int64_t panel,
    union sums *sums
) {
    int64_t n_inputs = product->n_inputs, row_bytes = WIDTH * bytes_of(product->type);
    int64_t blocks_per_part = PART_BYTES / row_bytes / INPUTS_PER_BLOCK;
    int64_t part_size = (blocks_per_part ? blocks_per_part : 1) * INPUTS_PER_BLOCK;
    const char *weight = (const char *)product->weight + panel * ROUND_UP(n_inputs, GROUP) * row_bytes;
    for (int64_t k = 0; k < n_inputs; k += part_size) {
        int64_t n_terms = n_inputs - k < part_size ? n_inputs - k : part_size;
        const void *part = weight + k * row_bytes;
        for (int64_t i = 0; i < n_rows; i += MAX_ROWS) {
            int n = n_rows - i < MAX_ROWS ? n_rows - i : MAX_ROWS;
            if (product->type == INT8_WEIGHT) {
                const uint8_t *inputs = strips[i / MAX_ROWS].inputs + k * MAX_ROWS;
                const int32_t *factors = strips[i / MAX_ROWS].factors + k / INPUTS_PER_BLOCK * LANES;
                multiply_integers(n, inputs, factors, part, DIVIDE_UP(n_terms, GROUP), sums->integers + i * WIDTH);
            } else
                multiply_halves(n, rows + i * n_inputs + k, n_inputs, part, n_terms, sums->floats + i * WIDTH);
        }
    }
}

static void multiply(const struct product *product, const struct product_task *task, void *scratch) {
    int64_t n_inputs = product->n_inputs, n_rows = task->row_stop - task->row_start;
    int64_t n_strips = product->type == INT8_WEIGHT ? DIVIDE_UP(n_rows, MAX_ROWS) : 0;
    const float *rows = task->rows + task->row_start * n_inputs;
    float units[STRIPS_PER_TASK * MAX_ROWS];
    struct strip strips[STRIPS_PER_TASK];
    union sums sums;
    for (int64_t i = 0; i < n_strips; i++)
        strips[i] = strip_in(scratch, i, n_inputs);
    for (int64_t i = 0; i < n_rows && n_strips; i++)
        units[i] = quantize_row(product, rows + i * n_inputs, &strips[i / MAX_ROWS], i % MAX_ROWS);
    for (int64_t panel = task->panel_start; panel < task->panel_stop; panel++) {
        if (product->type == INT8_WEIGHT) {
            for (int64_t i = 0; i < n_strips; i++)
                start_sums(product, &strips[i], panel, sums.integers + i * MAX_ROWS * WIDTH);
            add_excess(product, n_strips, strips, panel, sums.integers);
            multiply_panel(product, rows, n_rows, strips, panel, &sums);
            scale_sums(product, panel, n_rows, units, sums.integers);
        } else {
            memset(&sums, 0, n_rows * WIDTH * sizeof(float));
            multiply_panel(product, rows, n_rows, strips, panel, &sums);
        }
        finish(product, task, panel, sums.floats);
    }
}
