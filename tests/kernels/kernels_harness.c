/* Runs the operators of runtime/kernels without ONNX Runtime, for builds with sanitizers: random shapes and values, graphs
that do not fit, memory that runs out.

    kernels_harness SEED N_CASES

It prints what it ran, and ends with 1 at the first result that is wrong. The operators' sources are compiled with
`malloc` and its kind renamed to `counted_malloc`: then one of their allocations can fail, and none may be left. */

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "onnxruntime.h"

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            printf("line %d: %s is not so: ", __LINE__, #condition);                                                   \
            printf(__VA_ARGS__);                                                                                       \
            printf("\n");                                                                                              \
            fflush(stdout);                                                                                            \
            _Exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* ---- Memory ---- */

static int64_t n_live, n_until_failure = -1; /* allocations of the operators; one fails when the count is 0 */

static bool fails(void) { return n_until_failure >= 0 && n_until_failure-- == 0; }

static void *count(void *memory) { return n_live += memory != NULL, memory; }

void *counted_malloc(size_t size) { return fails() ? NULL : count(malloc(size)); }

void *counted_calloc(size_t n, size_t size) { return fails() ? NULL : count(calloc(n, size)); }

void *counted_aligned_alloc(size_t alignment, size_t size) {
    return fails() ? NULL : count(aligned_alloc(alignment, size));
}

void *counted_realloc(void *memory, size_t size) {
    if (fails())
        return NULL;
    n_live += memory == NULL;
    return realloc(memory, size);
}

void counted_free(void *memory) {
    n_live -= memory != NULL;
    free(memory);
}

/* ---- Random numbers ---- */

static uint64_t state;

static uint64_t random_bits(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 2685821657736338717u;
}

static int64_t random_from(int64_t least, int64_t largest) {
    return least + (int64_t)(random_bits() % (uint64_t)(largest - least + 1));
}

/* Mostly small, up to a largest. */
static int64_t random_size(int64_t least, int64_t largest) {
    return random_from(0, 3) ? random_from(least, least + (largest - least) / 8) : random_from(least, largest);
}

static bool one_in(int64_t n) { return random_from(1, n) == 1; }

static float random_float(void) { return (float)(random_from(-1000000, 1000000) * 2e-6); }

/* ---- A stand-in for the parts of ONNX Runtime that operators call ---- */

struct OrtStatus {
    char message[1024];
};

struct OrtValue {
    size_t n_dimensions;
    int64_t dimensions[3];
    void *data; /* not a byte longer than its values */
    bool is_constant;
};

struct OrtKernelInfo {
    const OrtValue *inputs[8]; /* NULL where the node names none */
    size_t n_inputs;
    const char *attribute;
    int64_t value;
};

struct OrtKernelContext {
    const OrtValue *inputs[8];
    OrtValue output;
};

struct OrtCustomOpDomain {
    const struct custom_op *operators[3];
    size_t n_operators;
};

struct OrtSessionOptions {
    const char *kernels, *n_threads; /* NULL where there is no entry */
    OrtCustomOpDomain *domain;
};

static OrtStatus *create_status(int code, const char *message) {
    OrtStatus *status = calloc(1, sizeof *status);
    CHECK(code == INVALID_ARGUMENT || code == RUNTIME_EXCEPTION, "%d", code);
    snprintf(status->message, sizeof status->message, "%s", message);
    return status;
}

static void release_status(OrtStatus *status) { free(status); }

static OrtStatus *create_domain(const char *name, OrtCustomOpDomain **domain) {
    (void)name;
    return *domain = calloc(1, sizeof **domain), NULL;
}

static OrtStatus *add_to_domain(OrtCustomOpDomain *domain, const void *operator) {
    return domain->operators[domain->n_operators++] = operator, NULL;
}

static OrtStatus *add_domain(OrtSessionOptions *options, OrtCustomOpDomain *domain) {
    return options->domain = domain, NULL;
}

static void release_domain(OrtCustomOpDomain *domain) { free(domain); }

static OrtStatus *tensor_data(OrtValue *value, void **data) { return *data = value->data, NULL; }

static OrtStatus *n_dimensions(const OrtShape *shape, size_t *n) {
    return *n = ((const OrtValue *)shape)->n_dimensions, NULL;
}

static OrtStatus *dimensions(const OrtShape *shape, int64_t *to, size_t n) {
    return memcpy(to, ((const OrtValue *)shape)->dimensions, n * sizeof *to), NULL;
}

static OrtStatus *tensor_shape(const OrtValue *value, OrtShape **shape) { return *shape = (OrtShape *)value, NULL; }

static void release_shape(OrtShape *shape) { (void)shape; }

static OrtStatus *integer_attribute(const OrtKernelInfo *info, const char *name, int64_t *value) {
    if (!info->attribute || strcmp(info->attribute, name))
        return create_status(INVALID_ARGUMENT, "there is no such attribute");
    return *value = info->value, NULL;
}

static OrtStatus *input(const OrtKernelContext *context, size_t index, const OrtValue **value) {
    return *value = context->inputs[index], NULL;
}

static OrtStatus *output(OrtKernelContext *context, size_t index, const int64_t *shape, size_t n, OrtValue **value) {
    CHECK(index == 0 && n == 2, "output %zu, %zu dimensions", index, n);
    context->output = (OrtValue){.n_dimensions = n, .dimensions = {shape[0], shape[1]}};
    context->output.data = malloc(shape[0] * shape[1] * sizeof(float));
    for (int64_t i = 0; i < shape[0] * shape[1]; i++)
        ((float *)context->output.data)[i] = -12345; /* every value must be written */
    return *value = &context->output, NULL;
}

static OrtStatus *n_inputs(const OrtKernelInfo *info, size_t *n) { return *n = info->n_inputs, NULL; }

static OrtStatus *input_name(const OrtKernelInfo *info, size_t index, char *name, size_t *size) {
    CHECK(index < info->n_inputs && !name, "input %zu", index);
    return *size = info->inputs[index] ? 2 : 1, NULL;
}

static OrtStatus *constant_input(const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **value) {
    CHECK(index < info->n_inputs && info->inputs[index], "input %zu", index);
    *is_constant = info->inputs[index]->is_constant;
    return *value = *is_constant ? info->inputs[index] : NULL, NULL;
}

static const char *entry(const OrtSessionOptions *options, const char *key) {
    return strcmp(key, "bgem3.kernels") ? options->n_threads : options->kernels;
}

static OrtStatus *has_config_entry(const OrtSessionOptions *options, const char *key, int *is_there) {
    return *is_there = entry(options, key) != NULL, NULL;
}

static OrtStatus *config_entry(const OrtSessionOptions *options, const char *key, char *value, size_t *size) {
    size_t needed = strlen(entry(options, key)) + 1;
    if (value && *size < needed)
        return create_status(INVALID_ARGUMENT, "the buffer is too small");
    if (value)
        memcpy(value, entry(options, key), needed);
    return *size = needed, NULL;
}

static OrtStatus *
parallel_for(const OrtKernelContext *context, void (*run)(void *, size_t), size_t n, size_t n_batches, void *data) {
    (void)context, (void)n_batches;
    CHECK(n > 0 && n < 1000000, "%zu tasks", n);
    for (size_t i = n; i-- > 0;)
        run(data, i);
    return NULL;
}

#define ENTRY(place, type, name, arguments) [place] = (void (*)(void))name,

static OrtApi api[] = {ORT_FUNCTIONS(ENTRY)};
static bool is_old;

static OrtApi *get_api(uint32_t version) { return is_old && version > 1 ? NULL : api; }

static const OrtApiBase base = {.get_api = get_api};

OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

/* ---- Tensors ---- */

static int64_t n_values(const OrtValue *value) {
    int64_t n = 1;
    for (size_t i = 0; i < value->n_dimensions; i++)
        n *= value->dimensions[i];
    return n;
}

/* Make a tensor of unset values; rank 0 to 3. */
static OrtValue *tensor(size_t rank, int64_t a, int64_t b, int64_t c, size_t value_size) {
    OrtValue *value = calloc(1, sizeof *value);
    *value = (OrtValue){.n_dimensions = rank, .dimensions = {a, b, c}, .is_constant = true};
    value->data = malloc(n_values(value) * value_size);
    return value;
}

static OrtValue *floats(size_t rank, int64_t a, int64_t b, float center) {
    OrtValue *value = tensor(rank, a, b, 1, sizeof(float));
    for (int64_t i = 0; i < n_values(value); i++)
        ((float *)value->data)[i] = center + random_float();
    return value;
}

static void drop(const OrtValue *value) {
    if (value)
        free(value->data);
    free((void *)value);
}

static float float_of_half(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float value = exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
    return half >> 15 ? -value : value;
}

static bool is_nan_row(const float *row, int64_t n) {
    int64_t n_nan = 0;
    for (int64_t i = 0; i < n; i++)
        n_nan += isnan(row[i]) != 0;
    CHECK(n_nan == 0 || n_nan == n, "%lld of %lld values are NaN", (long long)n_nan, (long long)n);
    return n && n_nan;
}

static float bad_value(void) { return (float[]){NAN, -NAN, INFINITY, -INFINITY}[random_from(0, 3)]; }

/* ---- Operators ---- */

enum { LINEAR_INT8, LINEAR_FLOAT16, ATTENTION };

static struct kernel_set {
    const char *name;
    OrtCustomOpDomain *domain;
    int64_t n_products, n_attentions, n_refusals, n_failures;
} sets[] = {{.name = "portable"}, {.name = "AVX2"}, {.name = "AVX-512 VNNI"}};
enum { N_SETS = sizeof sets / sizeof *sets };

/* Create an operator and run it; return its status. The output is the caller's. */
static OrtStatus *
run(const struct kernel_set *set, int kind, const OrtKernelInfo *info, OrtKernelContext *context, bool *is_created) {
    const struct custom_op *operator = set->domain->operators[kind];
    int64_t n_before = n_live;
    void *kernel = NULL;
    memcpy(context->inputs, info->inputs, sizeof context->inputs);
    context->output.data = NULL;
    OrtStatus *status = operator->create(operator, api, info, &kernel);
    *is_created = !status;
    if (!status) {
        CHECK(kernel, "no kernel");
        status = operator->compute(kernel, context);
        operator->destroy(kernel);
    }
    CHECK(n_live == n_before, "%lld allocations are left", (long long)(n_live - n_before));
    return status;
}

/* Run an operator that must succeed. */
static float *output_of(const struct kernel_set *set, int kind, const OrtKernelInfo *info) {
    OrtKernelContext context;
    bool is_created;
    OrtStatus *status = run(set, kind, info, &context, &is_created);
    CHECK(!status, "%s: %s", set->name, status->message);
    return context.output.data;
}

/* Run an operator that must be refused, by its creation or by its first run, with a message that holds a part. */
static void refused(int kind, OrtKernelInfo info, bool at_creation, const char *part) {
    for (int i = 0; i < N_SETS; i++) {
        if (!sets[i].domain)
            continue;
        OrtKernelContext context;
        bool is_created;
        OrtStatus *status = run(&sets[i], kind, &info, &context, &is_created);
        CHECK(status, "%s accepted what \"%s\" is to refuse", sets[i].name, part);
        CHECK(is_created == !at_creation && !context.output.data, "%s", status->message);
        CHECK(strstr(status->message, part), "\"%s\" lacks \"%s\"", status->message, part);
        free(status);
        sets[i].n_refusals++;
    }
}

/* Let each allocation of an operator fail in turn. */
static void run_out_of_memory(struct kernel_set *set, int kind, const OrtKernelInfo *info) {
    for (int64_t n = 0;; n++) {
        OrtKernelContext context;
        bool is_created;
        n_until_failure = n;
        OrtStatus *status = run(set, kind, info, &context, &is_created);
        bool has_failed = n_until_failure < 0;
        n_until_failure = -1;
        free(context.output.data);
        CHECK(!status == !has_failed, "%s, allocation %lld", set->name, (long long)n);
        if (!has_failed)
            return;
        CHECK(strstr(status->message, "memory"), "%s", status->message);
        free(status);
        set->n_failures++;
    }
}

/* ---- Linear ---- */

enum { ROWS, WEIGHT, BIAS, RESIDUAL, SCALES, SMOOTHING };

static OrtKernelInfo random_linear(int kind, int64_t T, int64_t K, int64_t N, bool with_all) {
    OrtKernelInfo info = {.n_inputs = 6, .attribute = "gelu", .value = one_in(3)};
    OrtValue *weight = tensor(2, K, N, 1, kind == LINEAR_INT8 ? 1 : 2);
    for (int64_t i = 0; i < K * N; i++)
        if (kind == LINEAR_INT8)
            ((int8_t *)weight->data)[i] = one_in(4) ? (one_in(2) ? 127 : -128) : random_from(-128, 127);
        else /* finite, of either sign, down to the least */
            ((uint16_t *)weight->data)[i] = random_from(0, 15 << 10) | (random_bits() & 0x8000);
    info.inputs[WEIGHT] = weight;
    info.inputs[ROWS] = floats(2, T, K, random_from(-2, 2));
    info.inputs[BIAS] = with_all || one_in(2) ? floats(1, N, 1, 0) : NULL;
    info.inputs[RESIDUAL] = with_all || one_in(2) ? floats(2, T, N, 0) : NULL;
    info.inputs[SCALES] = kind == LINEAR_INT8 ? floats(1, N, 1, 0) : NULL;
    info.inputs[SMOOTHING] = kind == LINEAR_INT8 && (with_all || one_in(2)) ? floats(1, K, 1, 0) : NULL;
    while (info.n_inputs > 2 && !info.inputs[info.n_inputs - 1] && one_in(2))
        info.n_inputs--; /* a node may name fewer inputs, too */
    return info;
}

static void drop_inputs(const OrtKernelInfo *info) {
    for (int i = 0; i < 8; i++)
        drop(info->inputs[i]);
}

static float value_or(const OrtValue *value, int64_t i, float otherwise) {
    return value ? ((const float *)value->data)[i] : otherwise;
}

/* Compare a row of a product with its formula; int8 rows may err by their block's step. */
static void check_product(int kind, const OrtKernelInfo *info, int64_t row, const float *found) {
    int64_t K = info->inputs[WEIGHT]->dimensions[0], N = info->inputs[WEIGHT]->dimensions[1];
    const float *rows = (const float *)info->inputs[ROWS]->data + row * K;
    double *steps = calloc(K, sizeof *steps), widest = 0;
    for (int64_t start = 0; start < K && kind == LINEAR_INT8; start += INPUTS_PER_BLOCK) {
        double least = 0, largest = 0;
        int64_t stop = start + INPUTS_PER_BLOCK < K ? start + INPUTS_PER_BLOCK : K;
        for (int64_t k = start; k < stop; k++) {
            double x = rows[k] * value_or(info->inputs[SMOOTHING], k, 1);
            least = fmin(least, x), largest = fmax(largest, x);
        }
        widest = fmax(widest, largest - least);
        for (int64_t k = start; k < stop; k++)
            steps[k] = (largest - least) / 255;
    }
    for (int64_t n = 0; n < N; n++) {
        double sum = 0, size = 0, error = 0;
        float scale = value_or(info->inputs[SCALES], n, 1);
        for (int64_t k = 0; k < K; k++) {
            double w = kind == LINEAR_INT8 ? ((const int8_t *)info->inputs[WEIGHT]->data)[k * N + n]
                                           : float_of_half(((const uint16_t *)info->inputs[WEIGHT]->data)[k * N + n]);
            double x = rows[k] * value_or(info->inputs[SMOOTHING], k, 1);
            sum += x * w, size += fabs(x * w);
            error += fabs(w) * (steps[k] + widest / 255 / 8); /* a level and a unit; rounding takes half of each */
        }
        double value = sum * scale + value_or(info->inputs[BIAS], n, 0);
        double bound = 1.2 * (error * fabs(scale) + 1e-6 * (size * fabs(scale) + 1)) + 1e-6 * fabs(value);
        if (info->value)
            value *= 0.5 * erfc(-value / sqrt(2));
        value += value_or(info->inputs[RESIDUAL], row * N + n, 0);
        bound += 5e-6 + 1e-6 * fabs(value) + (info->value ? 1e-5 * bound + 1e-6 * size * fabs(scale) : 0);
        CHECK(fabs(found[n] - value) <= bound, "row %lld, column %lld: %g, not %g, by more than %g", (long long)row,
              (long long)n, found[n], value, bound);
    }
    free(steps);
}

static void run_linear(int kind) {
    int64_t K = one_in(8) ? random_from(1000, MAX_INPUTS) : random_size(1, 600), N = random_size(1, K > 600 ? 20 : 200);
    int64_t T = random_size(0, K > 600 ? 8 : 110);
    OrtKernelInfo info = random_linear(kind, T, K, N, false);
    float *rows = info.inputs[ROWS]->data, *first = NULL;
    bool *is_bad = calloc(T + 1, sizeof *is_bad);
    int64_t n_bad = T && one_in(2) ? random_from(1, T) : 0;
    float *plain[N_SETS];
    for (int i = 0; i < N_SETS; i++)
        plain[i] = sets[i].domain ? output_of(&sets[i], kind, &info) : NULL;
    for (int64_t row = 0; row < T; row += random_from(1, T))
        check_product(kind, &info, row, plain[0] + row * N);
    for (int64_t i = 0; i < n_bad; i++) {
        int64_t row = random_from(0, T - 1);
        rows[row * K + random_from(0, K - 1)] = kind == LINEAR_INT8 ? bad_value() : NAN;
        is_bad[row] = true;
    }
    for (int i = 0; i < N_SETS; i++) {
        if (!sets[i].domain)
            continue;
        first = first ? first : plain[i];
        CHECK(!memcmp(plain[i], first, T * N * sizeof(float)), "%s has other bits than portable", sets[i].name);
        float *found = output_of(&sets[i], kind, &info);
        for (int64_t row = 0; row < T; row++) {
            const float *to = found + row * N, *before = plain[i] + row * N;
            CHECK(is_nan_row(to, N) == is_bad[row], "%s, row %lld", sets[i].name, (long long)row);
            CHECK(is_bad[row] || !memcmp(to, before, N * sizeof(float)), "%s, row %lld", sets[i].name, (long long)row);
        }
        free(found);
        sets[i].n_products++;
    }
    for (int i = 0; i < N_SETS; i++)
        free(plain[i]);
    free(is_bad);
    drop_inputs(&info);
}

/* Refuse a node with one input replaced by a tensor that does not fit; dropped afterwards. */
static void refused_with(int kind, OrtKernelInfo info, int index, OrtValue *value, bool at_creation, const char *part) {
    info.inputs[index] = value;
    refused(kind, info, at_creation, part);
    drop(value);
}

static void refuse_linear(int kind) {
    int64_t T = random_size(0, 20), K = random_size(1, 300), N = random_size(1, 100);
    OrtKernelInfo info = random_linear(kind, T, K, N, true), changed = info;
    size_t value_size = kind == LINEAR_INT8 ? 1 : 2;
    changed.attribute = NULL;
    refused(kind, changed, true, "no whole number as its attribute gelu");
    changed = info, changed.value = (int64_t[]){-1, 2, INT64_MAX, INT64_MIN, 1ll << 32}[random_from(0, 4)];
    refused(kind, changed, true, "gelu");
    const int64_t weights[][2] = {{0, N}, {K, 0}, {0, 0}, {MAX_INPUTS + 1, 1}, {0, INT64_MAX}};
    for (int i = 0; i < 5; i++)
        refused_with(kind, info, WEIGHT, tensor(2, weights[i][0], weights[i][1], 1, value_size), true, "K from 1 to");
    for (int rank = 0; rank < 4; rank++)
        if (rank != 2)
            refused_with(kind, info, WEIGHT, tensor(rank, K, N, 1, value_size), true, "weight has");
    refused_with(kind, info, WEIGHT, NULL, true, "no value");
    OrtValue large = {.n_dimensions = 2, .dimensions = {1, 1ll << 40}, .is_constant = true}; /* never read */
    changed = info, changed.inputs[WEIGHT] = &large;
    refused(kind, changed, true, "N from 1 to");
    static const int constants[] = {BIAS, SCALES, SMOOTHING};
    static const char *const names[] = {"bias", "scales", "smoothing"};
    for (int i = 0; i < (kind == LINEAR_INT8 ? 3 : 1); i++) {
        int64_t n = i == 2 ? K : N;
        refused_with(kind, info, constants[i], floats(1, n + 1, 1, 0), true, names[i]);
        refused_with(kind, info, constants[i], floats(1, n - 1, 1, 0), true, names[i]);
        refused_with(kind, info, constants[i], floats(0, 1, 1, 0), true, names[i]);
        refused_with(kind, info, constants[i], floats(2, n, 1, 0), true, names[i]);
        refused_with(kind, info, constants[i], floats(3, n, 1, 0), true, names[i]);
        OrtValue *computed = floats(1, n, 1, 0), *damaged = floats(1, n, 1, 0);
        computed->is_constant = false;
        ((float *)damaged->data)[random_from(0, n - 1)] = bad_value();
        refused_with(kind, info, constants[i], computed, true, "expected a constant");
        refused_with(kind, info, constants[i], damaged, true, "finite");
    }
    if (kind == LINEAR_INT8)
        refused_with(kind, info, SCALES, NULL, true, "no scales");
    refused_with(kind, info, ROWS, NULL, false, "rows have no value");
    refused_with(kind, info, ROWS, floats(2, T, K + 1, 0), false, "rows have shape");
    refused_with(kind, info, ROWS, floats(2, T, K - 1, 0), false, "rows have shape");
    refused_with(kind, info, RESIDUAL, floats(2, T, N + 1, 0), false, "residual");
    refused_with(kind, info, RESIDUAL, floats(2, T, N - 1, 0), false, "residual");
    refused_with(kind, info, RESIDUAL, floats(2, T + 1, N, 0), false, "residual");
    if (T != 1)
        refused_with(kind, info, RESIDUAL, floats(2, 1, N, 0), false, "residual");
    for (int rank = 0; rank < 4; rank++)
        if (rank != 2) {
            refused_with(kind, info, ROWS, floats(rank, T, K, 0), false, "rows have");
            refused_with(kind, info, RESIDUAL, floats(rank, T, N, 0), false, "residual");
        }
    drop_inputs(&info);
}

/* ---- PackedAttention ---- */

enum { QUERIES, KEYS, VALUES, CU_SEQLENS };

static OrtValue *limits_of(int64_t n_texts, int64_t longest) {
    OrtValue *limits = tensor(1, n_texts + 1, 1, 1, sizeof(int64_t));
    int64_t *values = limits->data;
    values[0] = 0;
    for (int64_t i = 0; i < n_texts; i++)
        values[i + 1] = values[i] + (one_in(4) ? 0 : random_size(0, longest));
    return limits;
}

static OrtKernelInfo random_attention(int64_t n_heads, int64_t size, OrtValue *limits) {
    OrtKernelInfo info = {.n_inputs = 4, .attribute = "n_heads", .value = n_heads};
    int64_t T = ((const int64_t *)limits->data)[limits->dimensions[0] - 1];
    for (int i = QUERIES; i <= VALUES; i++)
        info.inputs[i] = floats(2, T, n_heads * size, 0);
    info.inputs[CU_SEQLENS] = limits;
    return info;
}

/* What softmax attention gives for one query and head: (size) values. */
static void attend_from(const OrtKernelInfo *info, int64_t text, int64_t query, int64_t head, double *context) {
    int64_t D = info->inputs[QUERIES]->dimensions[1], size = D / info->value;
    const int64_t *limits = info->inputs[CU_SEQLENS]->data;
    const float *queries = info->inputs[QUERIES]->data, *keys = info->inputs[KEYS]->data;
    const float *values = info->inputs[VALUES]->data;
    double *scores = calloc(limits[text + 1] - limits[text], sizeof *scores), largest = -INFINITY, sum = 0;
    for (int64_t key = limits[text]; key < limits[text + 1]; key++) {
        double score = 0;
        for (int64_t d = head * size; d < (head + 1) * size; d++)
            score += (double)queries[query * D + d] * keys[key * D + d] / sqrt(size);
        scores[key - limits[text]] = score;
        largest = isnan(score) || score > largest ? score : largest;
    }
    memset(context, 0, size * sizeof *context);
    for (int64_t key = limits[text]; key < limits[text + 1]; key++) {
        double weight = exp(scores[key - limits[text]] - largest);
        sum += weight;
        for (int64_t d = 0; d < size; d++)
            context[d] += weight * values[key * D + head * size + d];
    }
    for (int64_t d = 0; d < size; d++)
        context[d] /= sum;
    free(scores);
}

static void run_attention(void) {
    bool is_long = one_in(8); /* longer than a block of keys, and than a task's queries */
    int64_t n_heads = random_size(1, is_long ? 2 : 6), n_texts = random_size(0, is_long ? 2 : 12);
    int64_t size = random_size(1, is_long ? 48 : MAX_HEAD_SIZE);
    OrtKernelInfo info = random_attention(n_heads, size, limits_of(n_texts, is_long ? 600 : 40));
    const int64_t *limits = info.inputs[CU_SEQLENS]->data, T = limits[n_texts], D = n_heads * size;
    if (T && one_in(2)) {
        int index = random_from(QUERIES, VALUES); /* infinite values are left to exact weights of 0 */
        for (int64_t n = random_from(1, 2); n > 0; n--)
            ((float *)info.inputs[index]->data)[random_from(0, T * D - 1)] = index == VALUES ? NAN : bad_value();
    }
    double *expected = calloc(T * D + 1, sizeof *expected);
    for (int64_t text = 0; text < n_texts; text++)
        for (int64_t query = limits[text]; query < limits[text + 1]; query++)
            for (int64_t head = 0; head < n_heads; head++)
                attend_from(&info, text, query, head, expected + query * D + head * size);
    for (int i = 0; i < N_SETS; i++) {
        if (!sets[i].domain)
            continue;
        float *found = output_of(&sets[i], ATTENTION, &info);
        for (int64_t n = 0; n < T * D; n++)
            CHECK(isnan(expected[n]) ? isnan(found[n]) : fabs(found[n] - expected[n]) < 1e-5,
                  "%s, token %lld, dimension %lld of %lld heads of %lld: %g, not %g", sets[i].name, (long long)(n / D),
                  (long long)(n % D), (long long)n_heads, (long long)size, found[n], expected[n]);
        free(found);
        sets[i].n_attentions++;
    }
    free(expected);
    drop_inputs(&info);
}

static bool are_limits(const OrtValue *value, int64_t T) {
    const int64_t *limits = value->data, n = value->dimensions[0];
    if (value->n_dimensions != 1 || n < 1 || limits[0] || limits[n - 1] != T)
        return false;
    for (int64_t i = 1; i < n; i++)
        if (limits[i] < limits[i - 1])
            return false;
    return true;
}

static void refuse_attention(void) {
    int64_t n_heads = random_size(1, 5), size = random_size(1, 40), n_texts = random_size(1, 6);
    OrtKernelInfo info = random_attention(n_heads, size, limits_of(n_texts, 30)), changed = info;
    int64_t T = info.inputs[QUERIES]->dimensions[0], D = n_heads * size;
    changed.attribute = "gelu";
    refused(ATTENTION, changed, true, "no whole number as its attribute n_heads");
    changed = info, changed.value = (int64_t[]){0, -1, -n_heads, INT64_MIN}[random_from(0, 3)];
    refused(ATTENTION, changed, true, "n_heads");
    changed = info, changed.value = (int64_t[]){D + 1, INT64_MAX, 1ll << 32}[random_from(0, 2)];
    refused(ATTENTION, changed, false, "heads share");
    OrtKernelInfo large = random_attention(n_heads, MAX_HEAD_SIZE + 1, limits_of(2, 5));
    refused(ATTENTION, large, false, "from 1 to 128");
    drop_inputs(&large);
    OrtKernelInfo none = random_attention(n_heads, 0, limits_of(n_texts, 5));
    refused(ATTENTION, none, false, "from 1 to 128");
    drop_inputs(&none);
    for (int i = QUERIES; i <= VALUES; i++) {
        refused_with(ATTENTION, info, i, NULL, false, "one shape");
        refused_with(ATTENTION, info, i, floats(2, T + 1, D, 0), false, "one shape");
        refused_with(ATTENTION, info, i, floats(2, T, D + n_heads, 0), false, "one shape");
        refused_with(ATTENTION, info, i, floats(2, T, D - 1, 0), false, "one shape");
        for (int rank = 0; rank < 4; rank++)
            if (rank != 2)
                refused_with(ATTENTION, info, i, floats(rank, T, D, 0), false, "one shape");
    }
    refused_with(ATTENTION, info, CU_SEQLENS, NULL, false, "cu_seqlens has no value");
    refused_with(ATTENTION, info, CU_SEQLENS, tensor(1, 0, 1, 1, 8), false, "cu_seqlens has shape (0)");
    for (int rank = 0; rank < 4; rank++)
        if (rank != 1) {
            OrtValue *limits = tensor(rank, 2, 1, 1, sizeof(int64_t));
            memcpy(limits->data, (int64_t[]){0, T}, n_values(limits) * sizeof(int64_t));
            refused_with(ATTENTION, info, CU_SEQLENS, limits, false, "cu_seqlens has");
        }
    for (int n = 0; n < 20; n++) {
        OrtValue *limits = tensor(1, random_from(1, 5), 1, 1, sizeof(int64_t));
        int64_t *values = limits->data, n_limits = limits->dimensions[0];
        for (int64_t i = 0; i < n_limits; i++)
            values[i] = one_in(20) ? (one_in(2) ? INT64_MIN : INT64_MAX) : random_from(-2, T + 2);
        values[0] = one_in(4) ? values[0] : 0;
        values[n_limits - 1] = one_in(4) ? values[n_limits - 1] : T;
        if (are_limits(limits, T))
            drop(limits);
        else
            refused_with(ATTENTION, info, CU_SEQLENS, limits, false, "cu_seqlens");
    }
    drop_inputs(&info);
}

/* ---- Registration ---- */

static void refuse_options(void) {
    static const struct {
        const char *kernels, *n_threads, *part;
    } cases[] = {
        {NULL, "1", "bgem3.kernels"},
        {"", "1", "bgem3.kernels"},
        {"AVX-1024", "1", "\"portable\""},
        {"kernels with a name that is longer than any name could be", "1", "characters"},
        {"portable", NULL, "bgem3.n_threads"},
        {"portable", "", "bgem3.n_threads"},
        {"portable", "0", "from 1 to"},
        {"portable", "-1", "from 1 to"},
        {"portable", "1.5", "from 1 to"},
        {"portable", "1e3", "from 1 to"},
        {"portable", "two", "from 1 to"},
        {"portable", "4 threads", "from 1 to"},
        {"portable", "65537", "from 1 to"},
        {"portable", "4294967297", "from 1 to"},
        {"portable", "99999999999999999999", "from 1 to"},
        {"portable", "0000000000000000000000000000000000000000000000000000000001", "characters"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        OrtSessionOptions options = {cases[i].kernels, cases[i].n_threads, NULL};
        OrtStatus *status = RegisterCustomOps(&options, &base);
        CHECK(status && !options.domain, "%s, %s threads", cases[i].kernels, cases[i].n_threads);
        CHECK(strstr(status->message, cases[i].part), "\"%s\" lacks \"%s\"", status->message, cases[i].part);
        free(status);
    }
    OrtSessionOptions options = {"portable", "1", NULL};
    n_until_failure = 0;
    OrtStatus *status = RegisterCustomOps(&options, &base);
    CHECK(status && !options.domain && !n_live, "registered without memory");
    free(status);
    is_old = true, status = RegisterCustomOps(&options, &base), is_old = false;
    CHECK(status && strstr(status->message, "1.22"), "an old ONNX Runtime was accepted");
    free(status);
}

static void open_sets(void) {
    static const char *const n_threads[] = {"1", "2", "7", "64"};
    for (int i = 0; i < N_SETS; i++) {
        OrtSessionOptions options = {sets[i].name, n_threads[random_from(0, 3)], NULL};
        OrtStatus *status = RegisterCustomOps(&options, &base);
        CHECK(!status || i, "%s", status->message);
        free(status);
        sets[i].domain = options.domain;
    }
}

static void close_sets(void) {
    for (int i = 0; i < N_SETS; i++)
        if (sets[i].domain) {
            counted_free((void *)sets[i].domain->operators[0]); /* the first of one array */
            free(sets[i].domain);
        }
}

int main(int n_arguments, char **arguments) {
    CHECK(n_arguments == 3, "pass a seed and a number of cases");
    state = strtoull(arguments[1], NULL, 10) + 88172645463325252u;
    refuse_options();
    for (int64_t n = strtoll(arguments[2], NULL, 10); n > 0; n--) {
        open_sets();
        run_linear(random_from(LINEAR_INT8, LINEAR_FLOAT16));
        run_attention();
        if (n % 8 == 0) {
            refuse_linear(n % 16 ? LINEAR_INT8 : LINEAR_FLOAT16);
            refuse_attention();
        }
        if (n % 32 == 0)
            for (int i = 0; i < N_SETS && sets[i].domain; i++) {
                OrtKernelInfo linear = random_linear(n % 64 ? LINEAR_INT8 : LINEAR_FLOAT16, 7, 70, 30, true);
                OrtKernelInfo attention = random_attention(2, 8, limits_of(3, 10));
                run_out_of_memory(&sets[i], n % 64 ? LINEAR_INT8 : LINEAR_FLOAT16, &linear);
                run_out_of_memory(&sets[i], ATTENTION, &attention);
                drop_inputs(&linear);
                drop_inputs(&attention);
            }
        close_sets();
        CHECK(!n_live, "%lld allocations are left", (long long)n_live);
    }
    for (int i = 0; i < N_SETS; i++)
        printf("%s: %lld products, %lld attentions, %lld refusals, %lld failed allocations\n", sets[i].name,
               (long long)sets[i].n_products, (long long)sets[i].n_attentions, (long long)sets[i].n_refusals,
               (long long)sets[i].n_failures);
}
