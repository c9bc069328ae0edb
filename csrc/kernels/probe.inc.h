/* probe.inc.h: the arithmetic that this level can do at the most, and what the inner loops of attention do of it on data that stays in L1. */
#ifndef ATTN_PROBE_NAMES
#define ATTN_PROBE_NAMES
#define probe_fma SUFFIX(attn_fma_peak)
#define probe_tile SUFFIX(attn_tile_ceiling)
#define probe_read SUFFIX(attn_read)

enum { ATTN_PROBE_CHAINS = 12 }; /* twice 4 cycles of latency by two units at least fill 8; 12 fit the registers of every level */
#endif

static double
probe_fma(int64_t rounds)
{
    vreal sum[ATTN_PROBE_CHAINS];
    const vreal shrink = v_splat((REAL)0.999), more = v_splat((REAL)1e-3);
    for (int i = 0; i < ATTN_PROBE_CHAINS; i++)
        sum[i] = v_splat((REAL)i);
    for (int64_t round = 0; round < rounds; round++)
    ATTN_UNROLL
        for (int i = 0; i < ATTN_PROBE_CHAINS; i++)
            sum[i] = v_fused(sum[i], shrink, more);
    volatile REAL kept = 0;
    for (int i = 0; i < ATTN_PROBE_CHAINS; i++)
        kept = kept + sum[i][0];
    return 2.0 * LANES * ATTN_PROBE_CHAINS * (double)rounds;
}

/* Scores, weights and output of one whole group and one key block, over and over. */
static double
probe_tile(int64_t head_dim, int64_t rounds)
{
    enum { WIDTH = GROUP_VECTORS * VECTOR_BYTES / sizeof(REAL), COLUMNS = 256 };
    REAL query[COLUMNS * WIDTH] __attribute__((aligned(64))), output[COLUMNS * WIDTH] __attribute__((aligned(64)));
    REAL scores[ATTN_BLOCK * WIDTH] __attribute__((aligned(64))), key[ATTN_BLOCK * COLUMNS] __attribute__((aligned(64)));
    head_dim = attn_max(1, attn_min(head_dim, COLUMNS));
    for (int64_t i = 0; i < ATTN_BLOCK * head_dim; i++)
        key[i] = (REAL)(i % 61 - 30) / 64;
    memset(output, 0, sizeof output);
    for (int64_t i = 0; i < head_dim * WIDTH; i++)
        query[i] = (REAL)(i % 53 - 26) / 64;
    for (int64_t round = 0; round < rounds; round++) {
        vreal top[GROUP_VECTORS], decay[GROUP_VECTORS], sum[GROUP_VECTORS], own[GROUP_VECTORS];
        for (int i = 0; i < GROUP_VECTORS; i++) {
            top[i] = v_splat(-REAL_INFINITY);
            sum[i] = (vreal){0};
            decay[i] = v_splat((REAL)0.5);
        }
        group_scores(GROUP_VECTORS, query, WIDTH, key, head_dim, head_dim, ATTN_BLOCK, NULL, 0, &(const struct score_ends){0}, scores, top);
        weights_of(GROUP_VECTORS, scores, WIDTH, ATTN_BLOCK, top, sum, own);
        group_output(GROUP_VECTORS, scores, WIDTH, key, head_dim, ATTN_BLOCK, decay, head_dim, output);
    }
    return 4.0 * ATTN_BLOCK * WIDTH * (double)head_dim * (double)rounds;
}

/* Loads all bytes, whole vectors at a time; the sum keeps the compiler from leaving them out. Integers: bytes that were subnormal numbers would be slow. */
ATTN_NOINLINE double
probe_read(const void *data, int64_t bytes)
{
    const REAL *p = data;
    vint sum[4] = {{0}, {0}, {0}, {0}};
    int64_t n = bytes / (4 * VECTOR_BYTES);
    for (int64_t i = 0; i < n; i++)
        ATTN_UNROLL
        for (int j = 0; j < 4; j++)
            sum[j] += (vint)v_loadu(p + (4 * i + j) * LANES);
    volatile lane_int kept = (sum[0] + sum[1] + sum[2] + sum[3])[0];
    (void)kept;
    return (double)(n * 4 * VECTOR_BYTES);
}
