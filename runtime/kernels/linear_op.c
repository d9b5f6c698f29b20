/* The operator Linear: rows (T, K) times weight (K, N), plus bias (N), GELU and residual (T, N).

An int8 weight also has scales (N), and may have smoothing (K). Bias and residual are optional, too. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"

enum { ROWS, WEIGHT, BIAS, RESIDUAL, SCALES, SMOOTHING, N_INPUTS };

static const char *const linear_inputs[] = {"rows", "weight", "bias", "residual", "scales", "smoothing"};

struct linear {
    struct product product;
    const struct bgem3_op *op;
};

static void linear_destroy(void *kernel) {
    struct linear *linear = kernel;
    struct product *product = &linear->product;
    free(product->weight);
    free(product->bias);
    free(product->block_sums);
    free(product->excess);
    free(product->excess_starts);
    free(product->scales);
    free(product->smoothing);
    free(linear);
}

/* Find out whether the node has an input. A node gives an optional input an empty name, or leaves it out. */
static OrtStatus *has_input(const OrtKernelInfo *info, size_t index, bool *is_named) {
    size_t n_inputs, size = 0;
    *is_named = false;
    TRY(ort.n_inputs(info, &n_inputs));
    if (index < n_inputs)
        TRY(ort.input_name(info, index, NULL, &size));
    *is_named = size > 1; /* the size counts the zero at the end */
    return NULL;
}

/* Read an input that must be constant, if the node has it. */
static OrtStatus *read_constant(const OrtKernelInfo *info, size_t index, struct tensor *tensor) {
    bool is_named;
    int is_constant = 0;
    const OrtValue *value = NULL;
    TRY(has_input(info, index, &is_named));
    if (is_named)
        TRY(ort.constant_input(info, index, &is_constant, &value));
    if (is_named && !is_constant)
        return refuse("Linear: %s is an input or computed, expected a constant. " EXPORT_AGAIN, linear_inputs[index]);
    return read_tensor(value, tensor);
}

/* Copy a constant of n values and pad it with zeros to n_padded; leave `copy` alone if the constant is not given. */
static OrtStatus *copy_constant(const OrtKernelInfo *info, size_t index, int64_t n, int64_t n_padded, float **copy) {
    struct tensor tensor;
    TRY(read_constant(info, index, &tensor));
    if (!tensor.is_given)
        return NULL;
    if (tensor.n_dimensions != 1 || tensor.dimensions[0] != n)
        return refuse(
            "Linear: %s has %s, expected shape (%lld). " EXPORT_AGAIN, linear_inputs[index], shape_of(&tensor).text,
            (long long)n
        );
    const float *values = tensor.data;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return refuse(
                "Linear: value %lld of %s is %f, expected a finite one. "
                "The weights are damaged: export the model again",
                (long long)i, linear_inputs[index], values[i]
            );
    *copy = calloc(n_padded, sizeof(float));
    if (!*copy)
        return out_of_memory();
    memcpy(*copy, values, n * sizeof(float));
    return NULL;
}

static OrtStatus *read_quantization(const OrtKernelInfo *info, int64_t n_padded, struct product *product) {
    TRY(copy_constant(info, SCALES, product->n_outputs, n_padded, &product->scales));
    TRY(copy_constant(info, SMOOTHING, product->n_inputs, product->n_inputs, &product->smoothing));
    if (!product->scales)
        return refuse("Linear: the int8 weight has no scales, expected one for each column. " EXPORT_AGAIN);
    int64_t n_pairs = DIVIDE_UP(product->n_inputs, 2 * INPUTS_PER_BLOCK);
    product->block_sums = calloc(n_pairs * n_padded, 2 * sizeof(int16_t));
    product->excess_starts = calloc(n_padded + 1, sizeof(int64_t));
    return product->block_sums && product->excess_starts ? NULL : out_of_memory();
}

/* Check the node's attribute and constants, and lay the weight out. */
static OrtStatus *linear_read(struct linear *linear, const OrtKernelInfo *info) {
    const struct kernels *kernels = linear->op->kernels;
    struct product *product = &linear->product;
    int64_t gelu;
    struct tensor weight;
    TRY(read_attribute(info, "gelu", &gelu));
    if (gelu != 0 && gelu != 1)
        return refuse("Linear: the attribute gelu is %lld, expected 0 or 1. " EXPORT_AGAIN, (long long)gelu);
    TRY(read_constant(info, WEIGHT, &weight));
    int64_t n_inputs = weight.dimensions[0], n_outputs = weight.dimensions[1];
    if (weight.n_dimensions != 2 || n_inputs < 1 || n_inputs > MAX_INPUTS || n_outputs < 1 || n_outputs > MAX_OUTPUTS)
        return refuse(
            "Linear: the weight has %s, expected (K, N) with K from 1 to %d and N from 1 to %d. " EXPORT_AGAIN,
            shape_of(&weight).text, MAX_INPUTS, MAX_OUTPUTS
        );
    product->type = linear->op->weight_type;
    product->gelu = gelu;
    product->n_inputs = n_inputs;
    product->n_outputs = n_outputs;
    int64_t n_padded = ROUND_UP(n_outputs, kernels->panel_width);
    TRY(copy_constant(info, BIAS, n_outputs, n_padded, &product->bias));
    if (!product->bias)
        product->bias = calloc(n_padded, sizeof(float));
    if (product->type == INT8_WEIGHT)
        TRY(read_quantization(info, n_padded, product));
    int64_t size = bytes_of(product->type);
    product->weight = aligned_alloc(64, ROUND_UP(ROUND_UP(n_inputs, GROUP) * n_padded * size, 64));
    if (!product->bias || !product->weight || !kernels->pack(weight.data, product))
        return out_of_memory();
    release_pages(weight.data, n_inputs * n_outputs * size);
    return NULL;
}

static OrtStatus *linear_create(const struct custom_op *base, OrtApi *api, const OrtKernelInfo *info, void **kernel) {
    (void)api;
    struct linear *linear = calloc(1, sizeof *linear);
    if (!linear)
        return out_of_memory();
    linear->op = (const struct bgem3_op *)base;
    OrtStatus *status = linear_read(linear, info);
    if (status)
        linear_destroy(linear);
    else
        *kernel = linear;
    return status;
}

/* A run's tasks: a grid of row ranges and panel ranges. */
struct linear_run {
    const struct linear *linear;
    struct product_task whole;
    int64_t rows_per_task, panels_per_task, n_panel_ranges;
};

static void linear_task(void *data, size_t index) {
    const struct linear_run *run = data;
    struct product_task task = run->whole;
    task.row_start = index / run->n_panel_ranges * run->rows_per_task;
    task.panel_start = index % run->n_panel_ranges * run->panels_per_task;
    if (task.row_start + run->rows_per_task < task.row_stop)
        task.row_stop = task.row_start + run->rows_per_task;
    if (task.panel_start + run->panels_per_task < task.panel_stop)
        task.panel_stop = task.panel_start + run->panels_per_task;
    run->linear->op->kernels->multiply(&run->linear->product, &task, scratch);
}

/* Cut a run into tasks; return their number.

Row ranges come first, since each task quantizes its rows. Panels are divided, too, if row ranges are too few to give
each thread three tasks. */
static int64_t cut_into_tasks(struct linear_run *run) {
    int64_t n_rows = run->whole.row_stop, n_panels = run->whole.panel_stop, n_threads = run->linear->op->n_threads;
    int64_t n_wanted = n_threads > 1 ? 3 * n_threads : 1;
    int64_t n_row_ranges = DIVIDE_UP(n_rows, STRIPS_PER_TASK * MAX_ROWS);
    run->rows_per_task = ROUND_UP(DIVIDE_UP(n_rows, n_row_ranges), MAX_ROWS);
    n_row_ranges = DIVIDE_UP(n_rows, run->rows_per_task);
    run->panels_per_task = DIVIDE_UP(n_panels, DIVIDE_UP(n_wanted, n_row_ranges));
    run->n_panel_ranges = DIVIDE_UP(n_panels, run->panels_per_task);
    return n_row_ranges * run->n_panel_ranges;
}

static OrtStatus *
check_inputs(const struct product *product, const struct tensor *rows, const struct tensor *residual) {
    int64_t n_rows = rows->dimensions[0];
    if (!is_matrix(rows, n_rows, product->n_inputs))
        return refuse(
            "Linear: rows have %s, expected (T, %lld), as the weight has it. " EXPORT_AGAIN, shape_of(rows).text,
            (long long)product->n_inputs
        );
    if (residual->is_given && !is_matrix(residual, n_rows, product->n_outputs))
        return refuse(
            "Linear: the residual has %s, expected the output's, (%lld, %lld). " EXPORT_AGAIN, shape_of(residual).text,
            (long long)n_rows, (long long)product->n_outputs
        );
    return NULL;
}

static OrtStatus *linear_compute(void *kernel, OrtKernelContext *context) {
    const struct linear *linear = kernel;
    const struct product *product = &linear->product;
    struct tensor rows, residual;
    TRY(read_input(context, ROWS, &rows));
    TRY(read_input(context, RESIDUAL, &residual));
    TRY(check_inputs(product, &rows, &residual));
    struct linear_run run = {.linear = linear, .whole = {.rows = rows.data, .residual = residual.data}};
    run.whole.row_stop = rows.dimensions[0];
    run.whole.panel_stop = DIVIDE_UP(product->n_outputs, linear->op->kernels->panel_width);
    TRY(make_output(context, rows.dimensions[0], product->n_outputs, &run.whole.output));
    return run.whole.row_stop ? ort.parallel_for(context, linear_task, cut_into_tasks(&run), 0, &run) : NULL;
}

static const char *linear_name(const struct custom_op *base) { return (void)base, "Linear"; }

static size_t linear_n_inputs(const struct custom_op *base) { return (void)base, N_INPUTS; }

static int linear_input_type(const struct custom_op *base, size_t index) {
    static const int types[] = {[INT8_WEIGHT] = INT8, [FLOAT16_WEIGHT] = FLOAT16};
    return index == WEIGHT ? types[((const struct bgem3_op *)base)->weight_type] : FLOAT;
}

static int linear_input_kind(const struct custom_op *base, size_t index) {
    return (void)base, index >= BIAS ? OPTIONAL : REQUIRED;
}

const struct custom_op linear_op = {
    .name = linear_name,
    .n_inputs = linear_n_inputs,
    .input_type = linear_input_type,
    .input_kind = linear_input_kind,
    .create = linear_create,
    .compute = linear_compute,
    .destroy = linear_destroy,
};
