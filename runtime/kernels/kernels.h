/* The kernels: what the operators ask of an instruction set, and how the data of a product lies in memory.

A product multiplies rows (T, K) by a weight (K, N): T tokens, K inputs, N outputs. All matrices are row-major.

                 weight (K, N)                             rows (T, K), quantized

                panel       panel                              block              block
             <- WIDTH ->                              <- INPUTS_PER_BLOCK ->
            +-----------+-----------+- -             +-------+-------+- - --+-------+- -
      group | 4 inputs  |           |          strip | group | group |      |       |     MAX_ROWS rows
            +-----------+-----------+- -             +-------+-------+- - --+-------+- -
      group | 4 inputs  |           |          strip |       |       |      |       |     MAX_ROWS rows
            +-----------+-----------+- -             +-------+-------+- - --+-------+- -
            :           :           :                :       :       :      :       :
            +===========+===========+= =  end of a part, which is some blocks of a panel
            :           :           :

    panel   WIDTH columns of a weight that lie together: int8 (K / 4, WIDTH, 4), float16 (K, WIDTH).
    group   4 consecutive inputs of int8 weights. An instruction multiplies a group by 4 weights of a column.
    block   INPUTS_PER_BLOCK consecutive inputs. A quantized row has a scale and a zero point for each block.
    pair    2 consecutive blocks. Their sums of weights are stored side by side, as their zero points are.
    part    the blocks of a panel that fit PART_BYTES. All strips of a task use a part before the next is read.
    strip   up to MAX_ROWS quantized rows, interleaved by group: uint8 (K / 4, MAX_ROWS, 4).
    tile    the product of a strip (or of MAX_ROWS float32 rows) and a panel, (MAX_ROWS, WIDTH), in registers.
    chunk   KEYS_PER_CHUNK keys of a text. Attention reads a text's keys and values chunk by chunk.
    task    the piece of a product or of attention that a thread computes in one call.
    excess  the amount by which int8 weights exceed what AVX2 multiplies without overflow. It is multiplied separately.

Inputs beyond K and columns beyond N are padded with zeros. A vector has LANES float32 values, a panel's width N_VECTORS
vectors: WIDTH is LANES * N_VECTORS. */

#ifndef BGEM3_KERNELS_H
#define BGEM3_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

/* The sizes. The code adapts to a changed value, or the compiler refuses it and says what to change with it. */
enum {
    MAX_ROWS = 6,            /* rows of a strip: 6 x 4 vectors fit AVX-512's 32 registers, 6 x 2 fit AVX2's 16 */
    ROWS_PER_TASK = 48,      /* bounds a product's rows per task; their strips stay in the second-level cache */
    KEYS_PER_CHUNK = 256,    /* keys per chunk; a chunk's keys and values stay in the second-level cache */
    QUERIES_PER_TASK = 192,  /* bounds attention's queries per task; each task lays out all keys of its text */
    PART_BYTES = 1 << 14,    /* bounds a part (or one block); larger ones leave the first-level cache */
    STRIPS_AT_ONCE = 4,      /* strips that `add_excess` handles together, so that it reads the excess less often */
    SCRATCH_BYTES = 1 << 19, /* memory of each thread for strips, or for attention; both must fit */

    MAX_INPUTS = 8192,     /* bounds K; the strips of a task must fit SCRATCH_BYTES */
    MAX_OUTPUTS = 1 << 30, /* bounds N, so that no size of a weight exceeds int64 */
    MAX_HEAD_SIZE = 128,   /* bounds the dimensions of an attention head; a task must fit SCRATCH_BYTES */
    MAX_THREADS = 1 << 16, /* bounds `bgem3.n_threads`; no machine has more */

    INPUTS_PER_BLOCK = 128, /* inputs per block; `export` must round weights for the same number */
    GROUP = 4,              /* inputs per group: the instructions' number */
};

#define DIVIDE_UP(n, by) (((n) + (by) - 1) / (by))
#define ROUND_UP(n, multiple) (DIVIDE_UP(n, multiple) * (multiple))

enum { STRIPS_PER_TASK = ROWS_PER_TASK / MAX_ROWS };

_Static_assert(GROUP == 4, "GROUP is 4 in every instruction that the kernels use: it cannot be changed");
_Static_assert(MAX_ROWS >= 1 && MAX_ROWS <= 8, "MAX_ROWS must be from 1 to 8: FOR_ROWS has 8 cases");
_Static_assert(STRIPS_PER_TASK >= 1, "ROWS_PER_TASK must be MAX_ROWS or more");
_Static_assert(
    KEYS_PER_CHUNK >= 1 && QUERIES_PER_TASK >= 1 && STRIPS_AT_ONCE >= 1 && PART_BYTES >= 1,
    "KEYS_PER_CHUNK, QUERIES_PER_TASK, STRIPS_AT_ONCE and PART_BYTES must be 1 or more"
);
_Static_assert(INPUTS_PER_BLOCK <= 256, "INPUTS_PER_BLOCK must be at most 256: the sum of a block's weights is int16");
_Static_assert(MAX_INPUTS <= 1 << 16, "MAX_INPUTS must be at most 65536: `largest_factor` would be 0 beyond");

#define SMALLEST_RANGE 1e-12f /* least range of a quantized row: a row of zeros would divide by 0 */

/* The excess of a group's weights in one column. */
struct excess {
    int32_t group;
    int8_t weights[GROUP];
};

enum weight_type { INT8_WEIGHT, FLOAT16_WEIGHT };

static inline int64_t bytes_of(enum weight_type type) { return type == INT8_WEIGHT ? 1 : 2; }

/* The constants of a product. N is padded to whole panels in each array over columns. */
struct product {
    enum weight_type type;
    int64_t n_inputs, n_outputs; /* K, N */
    void *weight;                /* as `pack` lays it out */
    float *bias;                 /* (N) */
    bool gelu;
    /* The rest is for int8 weights. */
    int16_t *block_sums;    /* (panels, pairs, WIDTH, 2): the sum of each column's weights over a block */
    struct excess *excess;  /* column by column: column n's is from excess_starts[n] to excess_starts[n + 1] */
    int64_t *excess_starts; /* (N + 1) */
    float *scales;          /* (N) */
    float *smoothing;       /* (K), multiplied with each row; NULL for none */
};

/* A strip's memory. A row that the strip lacks has factors of 0, so that its inputs add nothing. */
struct strip {
    int32_t *factors; /* (blocks, LANES): the factor of a row's block (`quantize_row`), in both halves of an int32 */
    int16_t *offsets; /* (pairs, MAX_ROWS, 2): factor times zero point */
    uint8_t *inputs;  /* (groups, MAX_ROWS, GROUP) */
};

struct attention {
    int64_t n_heads, head_size;
    const float *queries, *keys, *values; /* (T, n_heads * head_size) */
    float *context;                       /* (T, n_heads * head_size): the output */
};

/* A task of a product: some rows, times some panels. */
struct product_task {
    const float *rows, *residual; /* (T, K); (T, N), or NULL for none */
    float *output;                /* (T, N) */
    int64_t row_start, row_stop, panel_start, panel_stop;
};

/* A task of attention: one head, and some queries of one text. Texts and queries are ranges of rows. */
struct attention_task {
    int64_t head, text_start, text_stop, query_start, query_stop;
};

struct kernels {
    const char *name;
    int64_t panel_width; /* WIDTH */
    bool (*is_supported)(void);
    /* Lay a weight (K, N) out in panels and sum its columns block by block; return false if there is no memory. */
    bool (*pack)(const void *weight, struct product *product);
    void (*multiply)(const struct product *, const struct product_task *, void *scratch);
    void (*attend)(const struct attention *, const struct attention_task *, void *scratch);
};

extern const struct kernels avx512vnni_kernels, avx2_kernels, plain_kernels;

/* Return the largest factor of a block (`quantize_row`): 64, or less if there are many inputs.

It keeps integers in range. An input is at most 255 and a weight at most 128, so K products times 65536 / K are below
2^31. A zero point is at most 255, so its product with 64 is below 2^15. */
static inline int32_t largest_factor(int64_t n_inputs) { return n_inputs > 1024 ? (1 << 16) / n_inputs : 64; }

#endif
