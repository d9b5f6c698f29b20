/* The part of ONNX Runtime's C interface that custom operators need, from its documented binary layout: `OrtApi` is a
table of function pointers that only ever grows at its end, so a function is known by its place. */

#ifndef BGEM3_ONNXRUNTIME_H
#define BGEM3_ONNXRUNTIME_H

#include <stddef.h>
#include <stdint.h>

enum { API_VERSION = 22 }; /* ONNX Runtime 1.22, the oldest that bgem3 takes */

typedef struct OrtStatus OrtStatus; /* NULL: success */
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape; /* OrtTensorTypeAndShapeInfo */
typedef void (*const OrtApi)(void);

typedef struct {
    OrtApi *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} OrtApiBase;

enum { INVALID_ARGUMENT = 2, RUNTIME_EXCEPTION = 6 };  /* OrtErrorCode */
enum { FLOAT = 1, INT8 = 3, INT64 = 7, FLOAT16 = 10 }; /* ONNXTensorElementDataType */
enum { REQUIRED = 0, OPTIONAL = 1 };                   /* OrtCustomOpInputOutputCharacteristic */

#define ORT_FUNCTIONS(FUNCTION)                                                                                        \
    FUNCTION(0, OrtStatus *, create_status, (int code, const char *message))                                           \
    FUNCTION(26, OrtStatus *, create_domain, (const char *name, OrtCustomOpDomain **domain))                           \
    FUNCTION(27, OrtStatus *, add_to_domain, (OrtCustomOpDomain * domain, const void *custom_op))                      \
    FUNCTION(28, OrtStatus *, add_domain, (OrtSessionOptions * options, OrtCustomOpDomain * domain))                   \
    FUNCTION(51, OrtStatus *, tensor_data, (OrtValue * tensor, void **data))                                           \
    FUNCTION(61, OrtStatus *, n_dimensions, (const OrtShape *shape, size_t *n))                                        \
    FUNCTION(62, OrtStatus *, dimensions, (const OrtShape *shape, int64_t *dimensions, size_t n))                      \
    FUNCTION(65, OrtStatus *, tensor_shape, (const OrtValue *tensor, OrtShape **shape))                                \
    FUNCTION(86, OrtStatus *, integer_attribute, (const OrtKernelInfo *info, const char *name, int64_t *value))        \
    FUNCTION(90, OrtStatus *, input, (const OrtKernelContext *context, size_t index, const OrtValue **tensor))         \
    FUNCTION(                                                                                                          \
        91, OrtStatus *, output,                                                                                       \
        (OrtKernelContext * context, size_t index, const int64_t *dimensions, size_t n, OrtValue **tensor)             \
    )                                                                                                                  \
    FUNCTION(93, void, release_status, (OrtStatus * status))                                                           \
    FUNCTION(99, void, release_shape, (OrtShape * shape))                                                              \
    FUNCTION(101, void, release_domain, (OrtCustomOpDomain * domain))                                                  \
    FUNCTION(230, OrtStatus *, n_inputs, (const OrtKernelInfo *info, size_t *n))                                       \
    FUNCTION(232, OrtStatus *, input_name, (const OrtKernelInfo *info, size_t index, char *name, size_t *size))        \
    FUNCTION(237, OrtStatus *, has_config_entry, (const OrtSessionOptions *, const char *key, int *is_there))          \
    FUNCTION(238, OrtStatus *, config_entry, (const OrtSessionOptions *, const char *key, char *value, size_t *size))  \
    FUNCTION(                                                                                                          \
        249, OrtStatus *, constant_input,                                                                              \
        (const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **tensor)                           \
    )                                                                                                                  \
    FUNCTION(                                                                                                          \
        274, OrtStatus *, parallel_for,                                                                                \
        (const OrtKernelContext *context, void (*run)(void *data, size_t index), size_t n, size_t n_batches,           \
         void *data)                                                                                                   \
    )

#define MEMBER(place, type, name, arguments) type(*name) arguments;

/* The functions, once a session has registered the operators. */
extern struct ort_functions {
    ORT_FUNCTIONS(MEMBER)
} ort;

/* `struct OrtCustomOp` of version 22: what ONNX Runtime asks of an operator. */
struct custom_op {
    uint32_t version;
    void *unused_create;
    const char *(*name)(const struct custom_op *);
    const char *(*provider)(const struct custom_op *); /* NULL is the CPU */
    int (*input_type)(const struct custom_op *, size_t index);
    size_t (*n_inputs)(const struct custom_op *);
    int (*output_type)(const struct custom_op *, size_t index);
    size_t (*n_outputs)(const struct custom_op *);
    void *unused_compute;
    void (*destroy)(void *kernel);
    int (*input_kind)(const struct custom_op *, size_t index);
    int (*output_kind)(const struct custom_op *, size_t index);
    int (*input_memory)(const struct custom_op *, size_t index);
    void *unused_variadic[4];
    OrtStatus *(*create)(const struct custom_op *, OrtApi *, const OrtKernelInfo *, void **kernel);
    OrtStatus *(*compute)(void *kernel, OrtKernelContext *);
    void *unused[7]; /* shape inference, versions, memory that outputs share with inputs */
};

#endif
