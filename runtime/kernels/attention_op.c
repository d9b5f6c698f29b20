/* The operator PackedAttention: queries, keys and values (T, D), and cu_seqlens (B + 1), the limits of B texts.

Each query attends to the keys of its own text. */

#include <stdlib.h>

#include "operators.h"

#define PASS_SUMS "pass the cumulative sums of the texts' lengths"

enum { QUERIES, KEYS, VALUES, CU_SEQLENS, N_INPUTS };

/* The state of a node. */
struct heads {
    int64_t n_heads;
    const struct bgem3_op *op;
};

static void attention_destroy(void *kernel) { free(kernel); }

static OrtStatus *
attention_create(const struct custom_op *base, OrtApi *api, const OrtKernelInfo *info, void **kernel) {
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
    *heads = (struct heads){n_heads, (const struct bgem3_op *)base};
    *kernel = heads;
    return NULL;
}

struct attention_run {
    struct attention attention;
    const struct kernels *kernels;
    const struct attention_task *tasks; /* each stands for one task per head */
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

/* Refuse limits that do not ascend from 0 to the number of tokens. */
static OrtStatus *check_limits(const struct tensor *cu_seqlens, int64_t n_tokens) {
    const int64_t *limits = cu_seqlens->data, n_limits = cu_seqlens->dimensions[0];
    if (cu_seqlens->n_dimensions != 1 || n_limits < 1)
        return refuse(
            "PackedAttention: cu_seqlens has %s, expected (B + 1) for B texts. " EXPORT_AGAIN, shape_of(cu_seqlens).text
        );
    for (int64_t i = 1; i < n_limits; i++)
        if (limits[i] < limits[i - 1])
            return refuse(
                "PackedAttention: cu_seqlens descends from %lld to %lld at index %lld; " PASS_SUMS,
                (long long)limits[i - 1], (long long)limits[i], (long long)i
            );
    if (limits[0] != 0 || limits[n_limits - 1] != n_tokens)
        return refuse(
            "PackedAttention: cu_seqlens runs from %lld to %lld, "
            "expected from 0 to the number of tokens, %lld; " PASS_SUMS,
            (long long)limits[0], (long long)limits[n_limits - 1], (long long)n_tokens
        );
    return NULL;
}

/* Cut each text's queries into tasks for one head; return the number of tasks. */
static int64_t cut_into_tasks(const int64_t *limits, int64_t n_texts, struct attention_task *tasks) {
    int64_t n_tasks = 0;
    for (int64_t text = 0; text < n_texts; text++)
        for (int64_t query = limits[text]; query < limits[text + 1]; query += QUERIES_PER_TASK) {
            int64_t stop = query + QUERIES_PER_TASK < limits[text + 1] ? query + QUERIES_PER_TASK : limits[text + 1];
            tasks[n_tasks++] = (struct attention_task){0, limits[text], limits[text + 1], query, stop};
        }
    return n_tasks;
}

static OrtStatus *attention_compute(void *kernel, OrtKernelContext *context) {
    const struct heads *heads = kernel;
    struct tensor inputs[N_INPUTS];
    for (size_t i = 0; i < N_INPUTS; i++)
        TRY(read_input(context, i, &inputs[i]));
    int64_t n_tokens = inputs[QUERIES].dimensions[0], n_dims = inputs[QUERIES].dimensions[1];
    TRY(check_states(heads, inputs));
    TRY(check_limits(&inputs[CU_SEQLENS], n_tokens));
    int64_t n_texts = inputs[CU_SEQLENS].dimensions[0] - 1, head_size = n_dims / heads->n_heads;
    struct attention_task *tasks = malloc((n_tokens / QUERIES_PER_TASK + n_texts + 1) * sizeof *tasks);
    if (!tasks)
        return out_of_memory();
    int64_t n_tasks = cut_into_tasks(inputs[CU_SEQLENS].data, n_texts, tasks);
    struct attention_run run = {
        .attention = {heads->n_heads, head_size, inputs[QUERIES].data, inputs[KEYS].data, inputs[VALUES].data, NULL},
        .kernels = heads->op->kernels,
        .tasks = tasks,
    };
    OrtStatus *status = make_output(context, n_tokens, n_dims, &run.attention.context);
    if (!status && n_tasks)
        status = ort.parallel_for(context, attention_task, n_tasks * heads->n_heads, 0, &run);
    free(tasks);
    return status;
}

static const char *attention_name(const struct custom_op *base) { return (void)base, "PackedAttention"; }

static size_t attention_n_inputs(const struct custom_op *base) { return (void)base, N_INPUTS; }

static int attention_input_type(const struct custom_op *base, size_t index) {
    return (void)base, index == CU_SEQLENS ? INT64 : FLOAT;
}

static int attention_input_kind(const struct custom_op *base, size_t index) {
    return (void)base, (void)index, REQUIRED;
}

const struct custom_op attention_op = {
    .name = attention_name,
    .n_inputs = attention_n_inputs,
    .input_type = attention_input_type,
    .input_kind = attention_input_kind,
    .create = attention_create,
    .compute = attention_compute,
    .destroy = attention_destroy,
};
