/* What the operators ask of an instruction set: pieces of work that one thread does, on packed tokens.

Matrices are row-major. T tokens, K inputs and N outputs of a product, D dimensions of a state. */

#ifndef BGEM3_KERNELS_H
#define BGEM3_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

enum {
    MAX_ROWS = 6,           /* rows of a register tile */
    ROWS_PER_TASK = 48,     /* rows that share one pass over the weights */
    MAX_INPUTS = 8192,      /* K */
    MAX_OUTPUTS = 1 << 30,  /* N: sizes of a weight fit int64 */
    MAX_THREADS = 1 << 16,  /* more than machines have; three tasks for each fit int64 */
    INPUTS_PER_BLOCK = 128, /* of a quantized row, that share a scale and a zero point */
    MAX_HEAD_SIZE = 128,    /* dimensions of an attention head */
    KEYS_PER_BLOCK = 256,
    QUERIES_PER_TASK = 192,
    SCRATCH_BYTES = 1 << 19, /* what a task may write to besides its output */
};

#define SMALLEST_RANGE 1e-12f /* for a row of zeros */

/* Parts of four weights of one column that a product adds on its own (`split_excess`). */
struct excess {
    int32_t group;
    int8_t weights[4];
};

enum weight_type { INT8_WEIGHT, FLOAT16_WEIGHT }; /* 1 and 2 bytes */

static inline int64_t bytes_of(enum weight_type type) { return 1 << type; }

/* A product with what surrounds it, in float32, but for int8 weights: then rows are quantized, multiplied and scaled. */
struct product {
    enum weight_type type;
    int64_t n_inputs, n_outputs; /* K, N */
    void *weight;                /* as `pack` laid it out */
    float *bias;                 /* (N padded) */
    bool gelu;
    /* The rest is for int8 weights. */
    int16_t *block_sums;              /* (panels, pairs of blocks, panel width, 2): sums of the weight over a block */
    struct excess *excess;            /* of column n: those from excess_starts[n] to excess_starts[n + 1] */
    int64_t *excess_starts;
    float *scales, *smoothing;        /* (N padded) and (K); smoothing may be NULL */
};

struct attention {
    int64_t n_heads, head_size;
    const float *queries, *keys, *values; /* (T, D) */
    float *context;                       /* (T, D) */
};

/* Rows and panels of one task of a product; `residual` (T, N) may be NULL. */
struct product_task {
    const float *rows, *residual;
    float *output;
    int64_t row_start, row_stop, panel_start, panel_stop;
};

/* A head's queries of one text, by their rows. */
struct attention_task {
    int64_t head, text_start, text_stop, query_start, query_stop;
};

struct kernels {
    const char *name;
    int64_t panel_width; /* columns of weight that lie together */
    bool (*is_supported)(void);
    /* Lay a weight (K, N) out in panels, and sum its columns block by block; false if there is no memory. */
    bool (*pack)(const void *weight, struct product *product);
    void (*multiply)(const struct product *, const struct product_task *, void *scratch);
    void (*attend)(const struct attention *, const struct attention_task *, void *scratch);
};

extern const struct kernels avx512vnni_kernels, avx2_kernels, portable_kernels;

/* A block's step is a whole number of the row's units: 1 to this many. Sums fit int32, since it times K * 255 * 128 does,
and a factor times a zero point fits int16. */
static inline int32_t largest_factor(int64_t n_inputs) { return n_inputs > 1024 ? (1 << 16) / n_inputs : 64; }

static inline int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

static inline int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }

#endif
