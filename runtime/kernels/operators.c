/* The operators of domain `bgem3` for ONNX Runtime: Linear and PackedAttention.

They run on the kernels that the session's options name. They check what a graph gives them, cut the work into tasks, and
run these on the session's threads. Kernels check nothing. */

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <inttypes.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "kernels.h"
#include "onnxruntime.h"

#define EXPORT __attribute__((visibility("default")))
#define MEMBER(place, type, name, arguments) type(*name) arguments;
#define LOAD(place, type, name, arguments) ort.name = (type(*) arguments)api[place];

static struct {
    ORT_FUNCTIONS(MEMBER)
} ort;

/* Leave a function that returns a status as soon as one is not success. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        OrtStatus *status_ = (call);                                                                                   \
        if (status_)                                                                                                   \
            return status_;                                                                                            \
    } while (0)

static const struct kernels *const all_kernels[] = {
#if defined(__x86_64__)
    &avx512vnni_kernels,
    &avx2_kernels,
#endif
    &portable_kernels, /* never chosen by itself: ONNX Runtime's own operators are faster */
};
enum { N_KERNELS = sizeof all_kernels / sizeof *all_kernels };

static _Thread_local _Alignas(64) char scratch[SCRATCH_BYTES]; /* freed with the thread */

struct operator{
    struct custom_op base;
    enum weight_type weight_type;
    int64_t n_threads;
    const struct kernels *kernels;
};

struct tensor {
    bool is_given; /* an optional input may not be */
    void *data;
    size_t n_dimensions;
    int64_t dimensions[2]; /* if there are no more */
};

static OrtStatus *out_of_memory(void) {
    return ort.create_status(RUNTIME_EXCEPTION, "bgem3's operators found no memory; encode shorter texts, or fewer at once");
}

/* Return a status that says what an operator was given, what it expected, and what to do. */
__attribute__((format(printf, 1, 2))) static OrtStatus *refuse(const char *format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return ort.create_status(INVALID_ARGUMENT, message);
}

#define EXPORT_AGAIN "The graph does not fit this version of bgem3: export the model again"
#define PASS_SUMS "pass the cumulative sums of the texts' lengths"

/* The text of a tensor's shape, for a message. */
struct shape_text {
    char text[64];
};

static struct shape_text shape_of(const struct tensor *tensor) {
    struct shape_text shape;
    const long long rows = tensor->dimensions[0], columns = tensor->dimensions[1];
    if (!tensor->is_given)
        snprintf(shape.text, sizeof shape.text, "no value");
    else if (tensor->n_dimensions == 1)
        snprintf(shape.text, sizeof shape.text, "shape (%lld)", rows);
    else if (tensor->n_dimensions == 2)
        snprintf(shape.text, sizeof shape.text, "shape (%lld, %lld)", rows, columns);
    else
        snprintf(shape.text, sizeof shape.text, "%zu dimensions", tensor->n_dimensions);
    return shape;
}

static bool is_matrix(const struct tensor *tensor, int64_t rows, int64_t columns) {
    return tensor->is_given && tensor->n_dimensions == 2 && tensor->dimensions[0] == rows &&
           tensor->dimensions[1] == columns;
}

static OrtStatus *read_tensor(const OrtValue *value, struct tensor *tensor) {
    *tensor = (struct tensor){.is_given = value != NULL};
    if (!value)
        return NULL;
    OrtShape *shape;
    TRY(ort.tensor_shape(value, &shape));
    OrtStatus *status = ort.n_dimensions(shape, &tensor->n_dimensions);
    if (!status && tensor->n_dimensions <= 2)
        status = ort.dimensions(shape, tensor->dimensions, tensor->n_dimensions);
    ort.release_shape(shape);
    if (!status)
        status = ort.tensor_data((OrtValue *)value, &tensor->data);
    return status;
}

static OrtStatus *read_input(const OrtKernelContext *context, size_t index, struct tensor *tensor) {
    const OrtValue *value;
    TRY(ort.input(context, index, &value));
    return read_tensor(value, tensor);
}

static OrtStatus *read_attribute(const OrtKernelInfo *info, const char *name, int64_t *value) {
    OrtStatus *status = ort.integer_attribute(info, name, value);
    if (!status)
        return NULL;
    ort.release_status(status); /* it does not say which attribute */
    return refuse("an operator of bgem3 has no whole number as its attribute %s. " EXPORT_AGAIN, name);
}

static OrtStatus *make_output(OrtKernelContext *context, int64_t rows, int64_t columns, float **data) {
    OrtValue *value;
    TRY(ort.output(context, 0, (int64_t[]){rows, columns}, 2, &value));
    return ort.tensor_data(value, (void **)data);
}

/* A weight that has been laid out anew is not read again: give the memory of a mapped file's pages back. They stay in the
page cache, and would be read from there. Memory that is not a file's is left alone. */
static void release_pages(const void *data, int64_t n_bytes) {
#if defined(__linux__)
    uintptr_t page = sysconf(_SC_PAGESIZE), start = round_up((uintptr_t)data, page);
    uintptr_t stop = ((uintptr_t)data + n_bytes) / page * page;
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4352]; /* a path may have 4096 characters */
    while (maps && fgets(line, sizeof line, maps)) {
        uintptr_t from, to;
        unsigned long file;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %lu", &from, &to, &file) != 3 || start < from || to < stop)
            continue;
        if (file && start < stop)
            madvise((void *)start, stop - start, MADV_DONTNEED);
        break;
    }
    if (maps)
        fclose(maps);
#else
    (void)data, (void)n_bytes;
#endif
}

/* ---- Linear: rows (T, K), weight (K, N), bias (N), residual (T, N); for int8 also scales (N) and smoothing (K) ---- */

enum { ROWS, WEIGHT, BIAS, RESIDUAL, SCALES, SMOOTHING, N_LINEAR_INPUTS };

static const char *const linear_inputs[] = {"rows", "weight", "bias", "residual", "scales", "smoothing"};

struct linear {
    struct product product;
    const struct operator* operator;
};

static void linear_destroy(void *kernel) {
    struct linear *linear = kernel;
    struct product *product = &linear->product;
    void *parts[] = {product->weight, product->block_sums, product->excess,    product->excess_starts,
                     product->scales, product->bias,       product->smoothing, linear};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        free(parts[i]);
}

/* Tell whether the node has an input. An optional one may have an empty name, or be left out. */
static OrtStatus *has_input(const OrtKernelInfo *info, size_t index, bool *is_named) {
    size_t n_inputs, size = 0;
    *is_named = false;
    TRY(ort.n_inputs(info, &n_inputs));
    if (index < n_inputs)
        TRY(ort.input_name(info, index, NULL, &size));
    *is_named = size > 1; /* with the zero at its end */
    return NULL;
}

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

/* Copy a constant of n values, padded with zeros to n_padded; NULL if it is not given. */
static OrtStatus *copy_constant(const OrtKernelInfo *info, size_t index, int64_t n, int64_t n_padded, float **copy) {
    struct tensor tensor;
    TRY(read_constant(info, index, &tensor));
    if (!tensor.is_given)
        return NULL;
    if (tensor.n_dimensions != 1 || tensor.dimensions[0] != n)
        return refuse(
            "Linear: %s has %s, expected shape (%lld). " EXPORT_AGAIN, linear_inputs[index],
            shape_of(&tensor).text, (long long)n
        );
    const float *values = tensor.data;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return refuse(
                "Linear: value %lld of %s is %f, expected a finite one. The weights are damaged: export the model again",
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
    int64_t n_pairs = divide_up(product->n_inputs, 2 * INPUTS_PER_BLOCK);
    product->block_sums = calloc(n_pairs * n_padded, 2 * sizeof(int16_t));
    product->excess_starts = calloc(n_padded + 1, sizeof(int64_t));
    return product->block_sums && product->excess_starts ? NULL : out_of_memory();
}

static OrtStatus *linear_read(struct linear *linear, const OrtKernelInfo *info) {
    const struct kernels *kernels = linear->operator->kernels;
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
    product->type = linear->operator->weight_type, product->gelu = gelu;
    product->n_inputs = n_inputs, product->n_outputs = n_outputs;
    int64_t n_padded = round_up(n_outputs, kernels->panel_width);
    TRY(copy_constant(info, BIAS, n_outputs, n_padded, &product->bias));
    if (!product->bias)
        product->bias = calloc(n_padded, sizeof(float));
    if (product->type == INT8_WEIGHT)
        TRY(read_quantization(info, n_padded, product));
    int64_t size = bytes_of(product->type);
    product->weight = aligned_alloc(64, round_up(round_up(n_inputs, 4) * n_padded * size, 64));
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
    linear->operator =(const struct operator*) base;
    OrtStatus *status = linear_read(linear, info);
    if (status)
        linear_destroy(linear);
    else
        *kernel = linear;
    return status;
}

struct linear_run {
    const struct linear *linear;
    struct product_task whole;
    int64_t n_column_blocks, rows_per_block, panels_per_block;
};

static void linear_task(void *data, size_t index) {
    const struct linear_run *run = data;
    struct product_task task = run->whole;
    task.row_start = index / run->n_column_blocks * run->rows_per_block;
    task.panel_start = index % run->n_column_blocks * run->panels_per_block;
    if (task.row_start + run->rows_per_block < task.row_stop)
        task.row_stop = task.row_start + run->rows_per_block;
    if (task.panel_start + run->panels_per_block < task.panel_stop)
        task.panel_stop = task.panel_start + run->panels_per_block;
    run->linear->operator->kernels->multiply(&run->linear->product, &task, scratch);
}

static OrtStatus *linear_compute(void *kernel, OrtKernelContext *context) {
    const struct linear *linear = kernel;
    const struct product *product = &linear->product;
    struct tensor rows, residual;
    TRY(read_input(context, ROWS, &rows));
    TRY(read_input(context, RESIDUAL, &residual));
    int64_t n_rows = rows.dimensions[0];
    if (!is_matrix(&rows, n_rows, product->n_inputs))
        return refuse(
            "Linear: rows have %s, expected (T, %lld), as the weight has it. " EXPORT_AGAIN, shape_of(&rows).text,
            (long long)product->n_inputs
        );
    if (residual.is_given && !is_matrix(&residual, n_rows, product->n_outputs))
        return refuse(
            "Linear: the residual has %s, expected the output's, (%lld, %lld). " EXPORT_AGAIN, shape_of(&residual).text,
            (long long)n_rows, (long long)product->n_outputs
        );
    struct linear_run run = {.linear = linear, .whole = {.rows = rows.data, .residual = residual.data}};
    TRY(make_output(context, n_rows, product->n_outputs, &run.whole.output));
    if (!n_rows)
        return NULL;
    int64_t n_panels = divide_up(product->n_outputs, linear->operator->kernels->panel_width);
    run.whole.row_stop = n_rows, run.whole.panel_stop = n_panels;
    /* Blocks of rows quantize each row once; columns are cut too where there are too few rows for all threads. */
    int64_t n_threads = linear->operator->n_threads, n_wanted = n_threads > 1 ? 3 * n_threads : 1;
    int64_t n_row_blocks = divide_up(n_rows, ROWS_PER_TASK);
    run.rows_per_block = round_up(divide_up(n_rows, n_row_blocks), MAX_ROWS);
    n_row_blocks = divide_up(n_rows, run.rows_per_block);
    run.panels_per_block = divide_up(n_panels, divide_up(n_wanted, n_row_blocks));
    run.n_column_blocks = divide_up(n_panels, run.panels_per_block);
    return ort.parallel_for(context, linear_task, n_row_blocks * run.n_column_blocks, 0, &run);
}

static const char *linear_name(const struct custom_op *base) { return (void)base, "Linear"; }

static size_t linear_n_inputs(const struct custom_op *base) { return (void)base, N_LINEAR_INPUTS; }

static int linear_input_type(const struct custom_op *base, size_t index) {
    static const int types[] = {[INT8_WEIGHT] = INT8, [FLOAT16_WEIGHT] = FLOAT16};
    return index == WEIGHT ? types[((const struct operator*) base)->weight_type] : FLOAT;
}

static int linear_input_kind(const struct custom_op *base, size_t index) {
    return (void)base, index >= BIAS ? OPTIONAL : REQUIRED;
}

/* ---- PackedAttention: queries, keys, values (T, D), cu_seqlens (B + 1); a text's queries attend to its own keys ---- */

enum { QUERIES, KEYS, VALUES, CU_SEQLENS, N_ATTENTION_INPUTS };

struct heads {
    int64_t n_heads;
    const struct operator* operator;
};

static void attention_destroy(void *kernel) { free(kernel); }

static OrtStatus *attention_create(
    const struct custom_op *base, OrtApi *api, const OrtKernelInfo *info, void **kernel
) {
    (void)api;
    int64_t n_heads;
    TRY(read_attribute(info, "n_heads", &n_heads));
    if (n_heads < 1)
        return refuse(
            "PackedAttention: the attribute n_heads is %lld, expected 1 or more. " EXPORT_AGAIN, (long long)n_heads
        );
    struct heads *heads = malloc(sizeof *heads);
    if (!heads)
        return out_of_memory();
    *heads = (struct heads){n_heads, (const struct operator*) base};
    *kernel = heads;
    return NULL;
}

struct attention_run {
    struct attention attention;
    const struct kernels *kernels;
    const struct attention_task *tasks;
};

static void attention_task(void *data, size_t index) {
    const struct attention_run *run = data;
    struct attention_task task = run->tasks[index / run->attention.n_heads];
    task.head = index % run->attention.n_heads;
    run->kernels->attend(&run->attention, &task, scratch);
}

static OrtStatus *check_states(const struct heads *heads, const struct tensor *inputs) {
    static const char *const names[] = {"queries", "keys", "values"};
    int64_t n_tokens = inputs[QUERIES].dimensions[0], n_dims = inputs[QUERIES].dimensions[1];
    for (size_t i = QUERIES; i <= VALUES; i++)
        if (!is_matrix(&inputs[i], n_tokens, n_dims))
            return refuse(
                "PackedAttention: %s have %s and queries %s, expected one shape (T, D) for all three. " EXPORT_AGAIN,
                names[i], shape_of(&inputs[i]).text, shape_of(&inputs[QUERIES]).text
            );
    if (n_dims < 1 || n_dims % heads->n_heads || n_dims / heads->n_heads > MAX_HEAD_SIZE)
        return refuse(
            "PackedAttention: %lld heads share %lld dimensions, expected from 1 to %d for each. " EXPORT_AGAIN,
            (long long)heads->n_heads, (long long)n_dims, MAX_HEAD_SIZE
        );
    return NULL;
}

/* Refuse limits of texts that do not ascend from 0 to the number of tokens. */
static OrtStatus *check_limits(const struct tensor *cu_seqlens, int64_t n_tokens) {
    const int64_t *limits = cu_seqlens->data, n_limits = cu_seqlens->dimensions[0];
    if (cu_seqlens->n_dimensions != 1 || n_limits < 1)
        return refuse(
            "PackedAttention: cu_seqlens has %s, expected (B + 1) for B texts. " EXPORT_AGAIN,
            shape_of(cu_seqlens).text
        );
    for (int64_t i = 1; i < n_limits; i++)
        if (limits[i] < limits[i - 1])
            return refuse(
                "PackedAttention: cu_seqlens descends from %lld to %lld at index %lld; " PASS_SUMS,
                (long long)limits[i - 1], (long long)limits[i], (long long)i
            );
    if (limits[0] != 0 || limits[n_limits - 1] != n_tokens)
        return refuse(
            "PackedAttention: cu_seqlens runs from %lld to %lld, expected from 0 to the number of tokens, %lld; " PASS_SUMS,
            (long long)limits[0], (long long)limits[n_limits - 1], (long long)n_tokens
        );
    return NULL;
}

static OrtStatus *attention_compute(void *kernel, OrtKernelContext *context) {
    const struct heads *heads = kernel;
    struct tensor inputs[N_ATTENTION_INPUTS];
    for (size_t i = 0; i < N_ATTENTION_INPUTS; i++)
        TRY(read_input(context, i, &inputs[i]));
    int64_t n_tokens = inputs[QUERIES].dimensions[0], n_dims = inputs[QUERIES].dimensions[1], n_tasks = 0;
    TRY(check_states(heads, inputs));
    TRY(check_limits(&inputs[CU_SEQLENS], n_tokens));
    int64_t head_size = n_dims / heads->n_heads, n_texts = inputs[CU_SEQLENS].dimensions[0] - 1;
    const int64_t *limits = inputs[CU_SEQLENS].data;
    struct attention_task *tasks = malloc((n_tokens / QUERIES_PER_TASK + n_texts + 1) * sizeof *tasks);
    if (!tasks)
        return out_of_memory();
    for (int64_t text = 0; text < n_texts; text++)
        for (int64_t query = limits[text]; query < limits[text + 1]; query += QUERIES_PER_TASK) {
            int64_t stop = query + QUERIES_PER_TASK < limits[text + 1] ? query + QUERIES_PER_TASK : limits[text + 1];
            tasks[n_tasks++] = (struct attention_task){0, limits[text], limits[text + 1], query, stop};
        }
    struct attention_run run = {
        .attention = {heads->n_heads, head_size, inputs[QUERIES].data, inputs[KEYS].data, inputs[VALUES].data, NULL},
        .kernels = heads->operator->kernels,
        .tasks = tasks,
    };
    OrtStatus *status = make_output(context, n_tokens, n_dims, &run.attention.context);
    if (!status && n_tasks)
        status = ort.parallel_for(context, attention_task, n_tasks * heads->n_heads, 0, &run);
    free(tasks);
    return status;
}

static const char *attention_name(const struct custom_op *base) { return (void)base, "PackedAttention"; }

static size_t attention_n_inputs(const struct custom_op *base) { return (void)base, N_ATTENTION_INPUTS; }

static int attention_input_type(const struct custom_op *base, size_t index) {
    return (void)base, index == CU_SEQLENS ? INT64 : FLOAT;
}

/* ---- Registration ---- */

static const char *provider(const struct custom_op *base) { return (void)base, NULL; }
static size_t one_output(const struct custom_op *base) { return (void)base, 1; }
static int float_output(const struct custom_op *base, size_t index) { return (void)base, (void)index, FLOAT; }
static int required(const struct custom_op *base, size_t index) { return (void)base, (void)index, REQUIRED; }
static int default_memory(const struct custom_op *base, size_t index) { return (void)base, (void)index, 0; }

static const struct custom_op linear_op = {
    .version = API_VERSION,
    .name = linear_name,
    .provider = provider,
    .input_type = linear_input_type,
    .n_inputs = linear_n_inputs,
    .output_type = float_output,
    .n_outputs = one_output,
    .destroy = linear_destroy,
    .input_kind = linear_input_kind,
    .output_kind = required,
    .input_memory = default_memory,
    .create = linear_create,
    .compute = linear_compute,
};

static const struct custom_op attention_op = {
    .version = API_VERSION,
    .name = attention_name,
    .provider = provider,
    .input_type = attention_input_type,
    .n_inputs = attention_n_inputs,
    .output_type = float_output,
    .n_outputs = one_output,
    .destroy = attention_destroy,
    .input_kind = required,
    .output_kind = required,
    .input_memory = default_memory,
    .create = attention_create,
    .compute = attention_compute,
};

/* Does the CPU multiply int8 matrices in a unit of its own (AMX)? ONNX Runtime's products do then, these do not. */
static bool has_matrix_unit(void) {
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx >> 25 & 1;
#else
    return false;
#endif
}

/* The name of the fastest kernels for this CPU, or NULL where ONNX Runtime's own operators are the better choice. */
EXPORT const char *bgem3_kernels(void) {
    if (has_matrix_unit())
        return NULL;
    for (int i = 0; all_kernels[i] != &portable_kernels; i++)
        if (all_kernels[i]->is_supported())
            return all_kernels[i]->name;
    return NULL;
}

/* Read an entry of a session's options; leave `value` empty where there is none, and refuse a longer one. */
static OrtStatus *read_entry(const OrtSessionOptions *options, const char *key, char *value, size_t size) {
    int is_there;
    size_t needed = 0;
    *value = 0;
    TRY(ort.has_config_entry(options, key, &is_there));
    if (!is_there)
        return NULL;
    TRY(ort.config_entry(options, key, NULL, &needed));
    if (needed > size)
        return refuse("%s has %zu characters, but can have %zu at most; pass a shorter one", key, needed - 1, size - 1);
    return ort.config_entry(options, key, value, &needed);
}

static OrtStatus *choose_kernels(const OrtSessionOptions *options, const struct kernels **chosen) {
    char name[32], names[128] = "";
    TRY(read_entry(options, "bgem3.kernels", name, sizeof name));
    for (int i = 0; i < N_KERNELS; i++) {
        if (!all_kernels[i]->is_supported())
            continue;
        if (!strcmp(name, all_kernels[i]->name))
            *chosen = all_kernels[i];
        size_t length = strlen(names);
        snprintf(names + length, sizeof names - length, "%s\"%s\"", length ? ", " : "", all_kernels[i]->name);
    }
    return *chosen ? NULL : refuse("bgem3.kernels is \"%s\"; pass one that this CPU has: %s", name, names);
}

static OrtStatus *read_n_threads(const OrtSessionOptions *options, int64_t *n_threads) {
    char text[32], *end;
    TRY(read_entry(options, "bgem3.n_threads", text, sizeof text));
    errno = 0;
    *n_threads = strtoll(text, &end, 10);
    if (end == text || *end || errno || *n_threads < 1 || *n_threads > MAX_THREADS)
        return refuse("bgem3.n_threads is \"%s\"; pass a whole number from 1 to %d", text, MAX_THREADS);
    return NULL;
}

/* ONNX Runtime calls this for each session's options; `bgem3.kernels` and `bgem3.n_threads` are entries of these. */
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    OrtApi *api = base->get_api(API_VERSION), *oldest = base->get_api(1);
    if (!api)
        return ((OrtStatus * (*)(int, const char *)) oldest[0])(
            RUNTIME_EXCEPTION, "bgem3's operators need ONNX Runtime 1.22 or newer; install a newer one"
        );
    ORT_FUNCTIONS(LOAD)
    const struct kernels *kernels = NULL;
    int64_t n_threads;
    TRY(choose_kernels(options, &kernels));
    TRY(read_n_threads(options, &n_threads));
    const struct operator chosen[] = {
        {linear_op, INT8_WEIGHT, n_threads, kernels},
        {linear_op, FLOAT16_WEIGHT, n_threads, kernels},
        {attention_op, 0, n_threads, kernels},
    };
    OrtCustomOpDomain *domain;
    TRY(ort.create_domain("bgem3", &domain));
    struct operator* operators = malloc(sizeof chosen); /* this kilobyte and the domain outlive the session */
    OrtStatus *status = operators ? NULL : out_of_memory();
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen && !status; i++) {
        operators[i] = chosen[i];
        status = ort.add_to_domain(domain, &operators[i]);
    }
    if (!status)
        status = ort.add_domain(options, domain);
    if (status) {
        ort.release_domain(domain);
        free(operators);
    }
    return status;
}
