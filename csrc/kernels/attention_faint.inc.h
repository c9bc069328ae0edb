/* attention_faint.inc.h: output of lanes whose weights in a tile are all far below their row's largest, as ALiBi makes them on the far side of a row.
 *
 * Such a weight times a value lies near or below the least normal number, where each multiplication costs the processor a hundred others. Weights
 * times a power of two are exact, and so are the sums of their products; the power is taken out of the sums, once. Lanes that are not faint have the
 * power 2^0, and the operations that they have elsewhere: no lane's result depends on its neighbours. */
#ifndef ATTN_FAINT_NAMES
#define ATTN_FAINT_NAMES
#define is_faint SUFFIX(is_faint)
#define faint_lanes SUFFIX(faint_lanes)
#define lift_rows SUFFIX(lift_rows)
#define take_up_rows SUFFIX(take_up_rows)
#define faint_tile SUFFIX(faint_tile)
#define faint_open SUFFIX(faint_open)
#define faint_close SUFFIX(faint_close)
#endif

#undef FAINT_SUM
#undef FAINT_LIFT
#if REAL_BITS == 32
#define FAINT_SUM 0x1p-90f
#define FAINT_LIFT 0x1p60f
#else
#define FAINT_SUM 0x1p-900
#define FAINT_LIFT 0x1p600
#endif

/* own: the sum of a lane's weights in the tile. */
ATTN_INLINE vint
faint_lanes(vreal own)
{
    return (own > (vreal){0}) & (own < v_splat(FAINT_SUM));
}

ATTN_INLINE bool
is_faint(int nv, const vreal *own)
{
    vint any = {0};
    for (int i = 0; i < nv; i++)
        any |= faint_lanes(own[i]);
    return v_any(any);
}

/* Rows of nv vectors, `width` apart, times a factor for each lane. */
ATTN_NOINLINE void
lift_rows(int nv, REAL *rows, int64_t width, int64_t n, const vreal *factor)
{
    for (int64_t r = 0; r < n; r++)
        for (int i = 0; i < nv; i++)
            v_store(rows + r * width + i * LANES, v_load(rows + r * width + i * LANES) * factor[i]);
}

/* to = to decay + from, one rounding as in tile_output. */
ATTN_NOINLINE void
take_up_rows(int nv, const REAL *from, int64_t width, int64_t n, const vreal *decay, REAL *to)
{
    for (int64_t r = 0; r < n; r++)
        for (int i = 0; i < nv; i++) {
            REAL *o = to + r * width + i * LANES;
            v_store(o, v_load(o) * decay[i] + v_load(from + r * width + i * LANES));
        }
}

struct faint_tile {
    vreal none[GROUP_VECTORS], lift[GROUP_VECTORS], back[GROUP_VECTORS];
    int64_t place; /* of the segment in [group][n][width] */
};

/* Lifts the weights of a segment; own: their sums. aside: room for 64 rows of n, which become 0. */
ATTN_NOINLINE void
faint_open(const struct segment *s, const vreal *own, int64_t n, REAL *aside, struct faint_tile *tile)
{
    int base = s->lane / (GROUP_VECTORS * LANES) * (GROUP_VECTORS * LANES);
    tile->place = base * n + (s->lane - base);
    for (int i = 0; i < s->nv; i++) {
        vint faint = faint_lanes(own[i]);
        tile->none[i] = (vreal){0};
        tile->lift[i] = v_select(faint, v_splat(FAINT_LIFT), v_splat(1));
        tile->back[i] = v_select(faint, v_splat(1 / FAINT_LIFT), v_splat(1));
    }
    memset(aside, 0, (size_t)(ATTN_BLOCK * n) * sizeof(REAL));
    lift_rows(s->nv, s->scores, s->width, s->keys, tile->lift);
}

/* Takes up what has been summed aside, and puts the weights back as they were. */
ATTN_NOINLINE void
faint_close(const struct segment *s, const struct faint_tile *tile, int64_t n, REAL *aside, const vreal *decay, REAL *to)
{
    lift_rows(s->nv, s->scores, s->width, s->keys, tile->back);
    lift_rows(s->nv, aside + tile->place, s->width, n, tile->back);
    take_up_rows(s->nv, aside + tile->place, s->width, n, decay, to + tile->place);
}
