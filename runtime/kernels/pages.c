/* Pages of a mapped file. A weight that has been laid out in panels is not read again, so its pages need no memory.

The system keeps them in its page cache; a later read takes them from there. */

#if defined(__linux__)
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "operators.h"

/* Find the mapping of some data in /proc/self/maps. If it is a file's, give back the whole pages of the data. */
void release_pages(const void *data, int64_t n_bytes) {
#if defined(__linux__)
    uintptr_t page = sysconf(_SC_PAGESIZE), start = ROUND_UP((uintptr_t)data, page);
    uintptr_t stop = ((uintptr_t)data + n_bytes) / page * page;
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4352]; /* a path may have 4096 characters */
    while (maps && fgets(line, sizeof line, maps)) {
        uintptr_t from, to;
        unsigned long file;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %lu", &from, &to, &file) != 3 || start < from ||
            to < stop)
            continue;
        if (file && start < stop)
            madvise((void *)start, stop - start, MADV_DONTNEED);
        break;
    }
    if (maps)
        fclose(maps);
#else
    (void)data, (void)n_bytes;
#endif
}
