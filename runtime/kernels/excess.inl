/* Excess: what keeps products exact where the instruction that multiplies bytes adds two of them in int16 (AVX2).

An input is at most 255, so int16 holds its products with two neighboring weights if these sum to at most 128 in
magnitude. `split_excess` reduces the others, about two sums in a hundred, and keeps the differences in a list.
`add_excess` multiplies that list. */

#if SATURATES

/* Append to the list of excess; return false if there is no memory. */
static bool append_excess(struct product *product, int64_t n, const struct excess *excess) {
    if ((n & (n - 1)) == 0) { /* n is 0 or a power of 2: double the list */
        void *grown = realloc(product->excess, (n ? 2 * n : 1) * sizeof *excess);
        if (!grown)
            return false;
        product->excess = grown;
    }
    product->excess[n] = *excess;
    return true;
}

/* Move the excess of a packed panel's weights to the list; return false if there is no memory. */
static bool split_excess(struct product *product, int64_t panel, int8_t *packed, int64_t n_groups) {
    for (int64_t column = 0; column < WIDTH; column++) {
        int64_t n = product->excess_starts[panel * WIDTH + column];
        for (int64_t group = 0; group < n_groups; group++) {
            int8_t *weights = packed + (group * WIDTH + column) * GROUP;
            int sums[] = {weights[0] + weights[1], weights[2] + weights[3]};
            if (abs(sums[0]) <= 128 && abs(sums[1]) <= 128)
                continue;
            struct excess excess = {.group = group};
            for (int i = 0; i < GROUP; i += 2) {
                int sum = sums[i / 2], larger = i + (abs(weights[i + 1]) > abs(weights[i]));
                if (abs(sum) > 128)
                    excess.weights[larger] = sum > 0 ? sum - 128 : sum + 128;
                weights[larger] -= excess.weights[larger];
            }
            if (!append_excess(product, n++, &excess))
                return false;
        }
        product->excess_starts[panel * WIDTH + column + 1] = n;
    }
    return true;
}

/* Add a panel's excess to the sums (n_strips, MAX_ROWS, WIDTH) of some strips. */
ALWAYS_INLINE void add_excess_to(
    const int n_strips, const struct product *product, const struct strip *strips, int64_t panel, int32_t *sums
) {
    ints columns[STRIPS_AT_ONCE][WIDTH]; /* a lane for each row of the strip */
    const int64_t *starts = product->excess_starts + panel * WIDTH;
    const struct excess *excess = product->excess + starts[0];
    for (int i = 0; i < WIDTH; i++) {
        ints column[STRIPS_AT_ONCE] = {0};
        for (const struct excess *stop = product->excess + starts[i + 1]; excess < stop; excess++)
            for (int strip = 0; strip < n_strips; strip++) {
                ints inputs = load_ints(strips[strip].inputs + excess->group * MAX_ROWS * GROUP);
                ints factors = load_ints(strips[strip].factors + excess->group / GROUPS_PER_BLOCK * LANES);
                ints products = multiply_bytes(inputs, broadcast_word(excess->weights));
                column[strip] = add_pairs(column[strip], products, factors);
            }
        for (int strip = 0; strip < n_strips; strip++)
            columns[strip][i] = column[strip];
    }
    for (int strip = 0; strip < n_strips; strip++, sums += MAX_ROWS * WIDTH)
        for (int j = 0; j < N_VECTORS; j++) {
            ints rows[LANES];
            transpose(columns[strip] + j * LANES, rows);
            for (int i = 0; i < MAX_ROWS; i++) {
                int32_t *place = sums + i * WIDTH + j * LANES;
                store_ints(place, load_ints(place) + rows[i]);
            }
        }
}

static void
add_excess(const struct product *product, int64_t n_strips, const struct strip *strips, int64_t panel, int32_t *sums) {
    int64_t i = 0;
    for (; i + STRIPS_AT_ONCE <= n_strips; i += STRIPS_AT_ONCE)
        add_excess_to(STRIPS_AT_ONCE, product, strips + i, panel, sums + i * MAX_ROWS * WIDTH);
    for (; i < n_strips; i++)
        add_excess_to(1, product, strips + i, panel, sums + i * MAX_ROWS * WIDTH);
}

#else

#define split_excess(...) true
#define add_excess(...)

#endif
