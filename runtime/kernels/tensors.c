/* Tensors and attributes as ONNX Runtime gives them, and the messages that refuse them. */

#include <stdarg.h>
#include <stdio.h>

#include "operators.h"

OrtStatus *out_of_memory(void) {
    return ort.create_status(
        RUNTIME_EXCEPTION, "bgem3's operators found no memory; encode shorter texts, or fewer at once"
    );
}

OrtStatus *refuse(const char *format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return ort.create_status(INVALID_ARGUMENT, message);
}

struct shape_text shape_of(const struct tensor *tensor) {
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

bool is_matrix(const struct tensor *tensor, int64_t rows, int64_t columns) {
    return tensor->is_given && tensor->n_dimensions == 2 && tensor->dimensions[0] == rows &&
           tensor->dimensions[1] == columns;
}

/* Read a value's shape and data; NULL stands for an optional input that is left out. */
OrtStatus *read_tensor(const OrtValue *value, struct tensor *tensor) {
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

OrtStatus *read_input(const OrtKernelContext *context, size_t index, struct tensor *tensor) {
    const OrtValue *value;
    TRY(ort.input(context, index, &value));
    return read_tensor(value, tensor);
}

OrtStatus *read_attribute(const OrtKernelInfo *info, const char *name, int64_t *value) {
    OrtStatus *status = ort.integer_attribute(info, name, value);
    if (!status)
        return NULL;
    ort.release_status(status); /* its message does not name the attribute */
    return refuse("an operator of bgem3 has no whole number as its attribute %s. " EXPORT_AGAIN, name);
}

OrtStatus *make_output(OrtKernelContext *context, int64_t rows, int64_t columns, float **data) {
    OrtValue *value;
    TRY(ort.output(context, 0, (int64_t[]){rows, columns}, 2, &value));
    return ort.tensor_data(value, (void **)data);
}
