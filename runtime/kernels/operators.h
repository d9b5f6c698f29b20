/* What the operators share: their settings, ONNX Runtime's tensors, and refusals. */

#ifndef BGEM3_OPERATORS_H
#define BGEM3_OPERATORS_H

#include "kernels.h"
#include "onnxruntime.h"

/* An operator as it is registered for a session. `base` is first: ONNX Runtime passes its address back to us. */
struct bgem3_op {
    struct custom_op base;
    enum weight_type weight_type; /* Linear's */
    int64_t n_threads;
    const struct kernels *kernels;
};

extern const struct custom_op linear_op, attention_op;

/* Memory of each thread for its task, freed with the thread. */
extern _Thread_local char scratch[SCRATCH_BYTES];

struct tensor {
    bool is_given; /* false for an optional input that is left out */
    void *data;
    size_t n_dimensions;
    int64_t dimensions[2]; /* not set if there are more than 2 */
};

/* Leave a function that returns a status as soon as one is not success. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        OrtStatus *status_ = (call);                                                                                   \
        if (status_)                                                                                                   \
            return status_;                                                                                            \
    } while (0)

#define EXPORT_AGAIN "The graph does not fit this version of bgem3: export the model again"

OrtStatus *out_of_memory(void);

/* Return a status that says what an operator was given, what it expected, and what to do. */
__attribute__((format(printf, 1, 2))) OrtStatus *refuse(const char *format, ...);

/* A tensor's shape as text, for a message. */
struct shape_text {
    char text[64];
};
struct shape_text shape_of(const struct tensor *tensor);

bool is_matrix(const struct tensor *tensor, int64_t rows, int64_t columns);

OrtStatus *read_tensor(const OrtValue *value, struct tensor *tensor);
OrtStatus *read_input(const OrtKernelContext *context, size_t index, struct tensor *tensor);
OrtStatus *read_attribute(const OrtKernelInfo *info, const char *name, int64_t *value);
OrtStatus *make_output(OrtKernelContext *context, int64_t rows, int64_t columns, float **data);

/* Give the memory of a mapped file's pages back to the system; other memory is left alone. */
void release_pages(const void *data, int64_t n_bytes);

#endif
