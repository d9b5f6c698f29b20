/* The operators of domain `bgem3` for ONNX Runtime: registration, and the choice of kernels.

The operators check what a graph gives them, cut the work into tasks, and run these on the session's threads. Kernels
check nothing. */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "operators.h"

#define EXPORT __attribute__((visibility("default")))
#define LOAD(place, type, name, arguments) ort.name = (type(*) arguments)api[place];

struct ort_functions ort;

_Thread_local _Alignas(64) char scratch[SCRATCH_BYTES];

static const struct kernels *const all_kernels[] = {
#if defined(__x86_64__)
    &avx512vnni_kernels, &avx2_kernels,
#endif
    &plain_kernels, /* never the best choice: ONNX Runtime's own operators are faster */
};
enum { N_KERNELS = sizeof all_kernels / sizeof *all_kernels };

/* Return whether the CPU has AMX, a unit for int8 matrices. ONNX Runtime's own products use it, these kernels do not.
 */
static bool has_matrix_unit(void) {
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx >> 25 & 1;
#else
    return false;
#endif
}

/* The size of a quantized row's blocks. Python reads it, to compare it with the number that `export` uses. */
EXPORT const int32_t bgem3_block = INPUTS_PER_BLOCK;

/* Return the name of the fastest kernels for this CPU, or NULL if ONNX Runtime's own operators are faster. */
EXPORT const char *bgem3_kernels(void) {
    if (has_matrix_unit())
        return NULL;
    for (int i = 0; all_kernels[i] != &plain_kernels; i++)
        if (all_kernels[i]->is_supported())
            return all_kernels[i]->name;
    return NULL;
}

/* Read an entry of a session's options; leave `value` empty if there is none; refuse an entry of `size` characters or
 * more. */
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

/* Find the kernels that the session's options name. */
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

static const char *provider(const struct custom_op *base) { return (void)base, NULL; } /* the CPU */
static size_t one_output(const struct custom_op *base) { return (void)base, 1; }
static int float_output(const struct custom_op *base, size_t index) { return (void)base, (void)index, FLOAT; }
static int required_output(const struct custom_op *base, size_t index) { return (void)base, (void)index, REQUIRED; }
static int default_memory(const struct custom_op *base, size_t index) { return (void)base, (void)index, 0; }

/* Complete an operator with what all of them share. */
static struct bgem3_op
make_op(struct custom_op base, enum weight_type weight_type, int64_t n_threads, const struct kernels *kernels) {
    base.version = API_VERSION;
    base.provider = provider;
    base.n_outputs = one_output;
    base.output_type = float_output;
    base.output_kind = required_output;
    base.input_memory = default_memory;
    return (struct bgem3_op){base, weight_type, n_threads, kernels};
}

/* Register the operators for a session. ONNX Runtime calls this with the session's options, whose entries
`bgem3.kernels` and `bgem3.n_threads` we read. */
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
    OrtCustomOpDomain *domain;
    TRY(ort.create_domain("bgem3", &domain));
    enum { N_OPS = 3 };
    struct bgem3_op *ops = malloc(N_OPS * sizeof *ops); /* ops and domain, a kilobyte, are never freed */
    OrtStatus *status = ops ? NULL : out_of_memory();
    if (ops) {
        ops[0] = make_op(linear_op, INT8_WEIGHT, n_threads, kernels);
        ops[1] = make_op(linear_op, FLOAT16_WEIGHT, n_threads, kernels);
        ops[2] = make_op(attention_op, 0, n_threads, kernels);
    }
    for (int i = 0; i < N_OPS && !status; i++)
        status = ort.add_to_domain(domain, &ops[i]);
    if (!status)
        status = ort.add_domain(options, domain);
    if (status) {
        ort.release_domain(domain);
        free(ops);
    }
    return status;
}
