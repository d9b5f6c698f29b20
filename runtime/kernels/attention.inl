/* PackedAttention: each query of a text attends to all keys of that text, chunk by chunk, so that scores never leave
the cache. The softmax is the online one of Milakov and Gimelshein, arXiv:1805.02867. */

#include <float.h>

#include "tiles.inl"

enum { PADDED_CHUNK = ROUND_UP(KEYS_PER_CHUNK, WIDTH) };

/* A task's memory, with heads padded to `padded` dimensions. */
struct attention_memory {
    float *keys;    /* (chunk's panels of keys, head_size, WIDTH) */
    float *values;  /* (panels of dimensions, chunk's keys, WIDTH) */
    float *context; /* (QUERIES_PER_TASK, padded): weighted sums of values so far */
    float *scores;  /* (MAX_ROWS, PADDED_CHUNK) */
    float *queries; /* (QUERIES_PER_TASK, head_size) */
};

#define ATTENTION_FLOATS(size)                                                                                         \
    (PADDED_CHUNK * (size) + KEYS_PER_CHUNK * ROUND_UP(size, WIDTH) + QUERIES_PER_TASK * ROUND_UP(size, WIDTH) +       \
     MAX_ROWS * PADDED_CHUNK + QUERIES_PER_TASK * (size))

_Static_assert(
    4 * ATTENTION_FLOATS(MAX_HEAD_SIZE) <= SCRATCH_BYTES,
    "a task of attention must fit SCRATCH_BYTES: raise it, or lower QUERIES_PER_TASK, KEYS_PER_CHUNK or MAX_HEAD_SIZE"
);

static struct attention_memory memory_in(void *scratch, int64_t size) {
    struct attention_memory memory = {.keys = scratch};
    memory.values = memory.keys + PADDED_CHUNK * size;
    memory.context = memory.values + KEYS_PER_CHUNK * ROUND_UP(size, WIDTH);
    memory.scores = memory.context + QUERIES_PER_TASK * ROUND_UP(size, WIDTH);
    memory.queries = memory.scores + MAX_ROWS * PADDED_CHUNK;
    return memory;
}

/* Lay a chunk of a head's keys out in panels of WIDTH keys, (n_panels, head_size, WIDTH), padded with zeros. */
static void pack_keys(const float *keys, int64_t stride, int64_t n_keys, int64_t head_size, float *panels) {
    for (int64_t start = 0; start < n_keys; start += WIDTH, panels += head_size * WIDTH)
        for (int64_t i = 0; i < WIDTH; i++)
            for (int64_t d = 0; d < head_size; d++)
                panels[d * WIDTH + i] = start + i < n_keys ? keys[(start + i) * stride + d] : 0;
}

/* Lay a chunk of a head's values out in panels of WIDTH dimensions, (n_panels, n_keys, WIDTH), padded with zeros. */
static void pack_values(const float *values, int64_t stride, int64_t n_keys, int64_t head_size, float *panels) {
    for (int64_t start = 0; start < head_size; start += WIDTH, panels += n_keys * WIDTH) {
        int64_t n_columns = head_size - start < WIDTH ? head_size - start : WIDTH;
        for (int64_t i = 0; i < n_keys; i++)
            for (int64_t j = 0; j < WIDTH; j++)
                panels[i * WIDTH + j] = j < n_columns ? values[i * stride + start + j] : 0;
    }
}

/* A query's largest score so far, and the sum of e^(score - largest). */
struct softmax {
    float largest, sum;
};

/* Turn a row of scores into weights e^(score - largest); return the factor that rescales earlier sums.

A score of infinity or NaN gives a weight of NaN; minus infinity gives e^-87. */
static float exponentiate(float *scores, int64_t n_keys, struct softmax *softmax) {
    for (int64_t i = n_keys; i % LANES; i++)
        scores[i] = -INFINITY;
    floats largest = broadcast(softmax->largest);
    for (int64_t i = 0; i < n_keys; i += LANES)
        largest = maximum(largest, load(scores + i));
    float now = largest_of(largest), base = now < -FLT_MAX ? -FLT_MAX : now;
    floats sum = {0};
    for (int64_t i = 0; i < n_keys; i += LANES) {
        floats weights = exponential(load(scores + i) - base);
        store(scores + i, weights);
        sum += weights;
    }
    float factor = exponential(broadcast(softmax->largest - base))[0];
    *softmax = (struct softmax){now, softmax->sum * factor + sum_of(sum)};
    return factor;
}

/* Attend from up to MAX_ROWS queries to a chunk, and add to their context. */
static void attend_to_chunk(
    const struct attention_memory *memory, int64_t size, int64_t n_keys, int64_t query, int n_rows,
    struct softmax *softmax
) {
    int64_t padded = ROUND_UP(size, WIDTH);
    const float *queries = memory->queries + query * size;
    float *scores = memory->scores, *context = memory->context + query * padded;
    for (int i = 0; i < n_rows; i++)
        memset(scores + i * PADDED_CHUNK, 0, ROUND_UP(n_keys, WIDTH) * sizeof(float));
    for (int64_t key = 0; key < n_keys; key += WIDTH)
        multiply_floats(n_rows, queries, size, memory->keys + key * size, size, scores + key, PADDED_CHUNK);
    for (int i = 0; i < n_rows; i++) {
        float factor = exponentiate(scores + i * PADDED_CHUNK, n_keys, &softmax[query + i]);
        float *sums = context + i * padded;
        for (int64_t d = 0; d < padded; d += LANES)
            store(sums + d, load(sums + d) * factor);
    }
    for (int64_t d = 0; d < padded; d += WIDTH)
        multiply_floats(n_rows, scores, PADDED_CHUNK, memory->values + d * n_keys, n_keys, context + d, padded);
}

static void attend(const struct attention *attention, const struct attention_task *task, void *scratch) {
    int64_t size = attention->head_size, padded = ROUND_UP(size, WIDTH);
    int64_t stride = attention->n_heads * size, offset = task->head * size;
    int64_t n_queries = task->query_stop - task->query_start;
    struct attention_memory memory = memory_in(scratch, size);
    struct softmax softmax[QUERIES_PER_TASK];
    float scale = 1 / __builtin_sqrtf(size);
    for (int64_t i = 0; i < n_queries; i++) {
        softmax[i] = (struct softmax){-INFINITY, 0};
        memset(memory.context + i * padded, 0, padded * sizeof(float));
        for (int64_t d = 0; d < size; d++)
            memory.queries[i * size + d] = attention->queries[(task->query_start + i) * stride + offset + d] * scale;
    }
    for (int64_t start = task->text_start; start < task->text_stop; start += KEYS_PER_CHUNK) {
        int64_t n_keys = task->text_stop - start < KEYS_PER_CHUNK ? task->text_stop - start : KEYS_PER_CHUNK;
        pack_keys(attention->keys + start * stride + offset, stride, n_keys, size, memory.keys);
        pack_values(attention->values + start * stride + offset, stride, n_keys, size, memory.values);
        for (int64_t query = 0; query < n_queries; query += MAX_ROWS) {
            int n_rows = n_queries - query < MAX_ROWS ? n_queries - query : MAX_ROWS;
            attend_to_chunk(&memory, size, n_keys, query, n_rows, softmax);
        }
    }
    for (int64_t i = 0; i < n_queries; i++) {
        float *output = attention->context + (task->query_start + i) * stride + offset;
        float sum = softmax[i].sum + 0 * softmax[i].largest; /* NaN if all scores are minus infinity, as in softmax */
        for (int64_t d = 0; d < size; d++)
            output[d] = memory.context[i * padded + d] / sum;
    }
}
