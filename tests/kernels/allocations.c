/* Counts the allocations of the operators, and lets one of them fail. A test's build renames `malloc` in the operators
to `counted_malloc`, and so on. */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

int64_t n_allocations;        /* made and not yet freed */
int64_t n_until_failure = -1; /* the allocation that finds 0 here fails */

static bool fails(void) { return n_until_failure >= 0 && n_until_failure-- == 0; }

static void *count(void *memory) {
    n_allocations += memory != NULL;
    return memory;
}

void *counted_malloc(size_t size) { return fails() ? NULL : count(malloc(size)); }

void *counted_calloc(size_t n, size_t size) { return fails() ? NULL : count(calloc(n, size)); }

void *counted_aligned_alloc(size_t alignment, size_t size) {
    return fails() ? NULL : count(aligned_alloc(alignment, size));
}

void *counted_realloc(void *memory, size_t size) {
    if (fails())
        return NULL;
    n_allocations += memory == NULL;
    return realloc(memory, size);
}

void counted_free(void *memory) {
    n_allocations -= memory != NULL;
    free(memory);
}
