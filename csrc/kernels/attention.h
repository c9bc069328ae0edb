/* attention: softmax attention, row by row, without the L x S array.
 *
 * Computes   s_ij = scale q_i . k_j, softcapped: softcap tanh(s / softcap), + bias_ij + attn_mask_ij - slope_h |i + offset - j|
 *            + relative_bias[h, i, clip(j - i - offset, -K, K) + K]
 *            P_ij = exp(s_ij - m_i) / l_i over the visible j, l_i = sum_j exp(s_ij - m_i) + exp(sink_h - m_i)
 *            scaled_dot_product_attention:  O_i = sum_j dropout(P_ij) v_j,  lse_i = m_i + ln l_i
 *            attention_weights:             P_ij for the chosen rows i
 *            attention_received:            sum_i P_ij
 *            merge_attention:               O = sum_t exp(lse_t - lse) O_t,  lse = ln sum_t exp(lse_t)
 *            dropout_mask:                  1 / (1 - p) where kept, else 0
 *            paged_attention, attention_with_cache: O_i and lse_i of keys and values that are stored in pages, or as int8 with a scale for each row
 * Given      query (B.., H, L, E), key (B.., G, S, E), value (B.., G, S, D); query head h reads head h / group
 *            attn_mask, bias (B.., H, L, S): ATTN_BOOL (true: visible) or floating (added; -inf hides); strides 0 where broadcast
 *            relative_bias (B.., H, L or 1, 2K + 1): floating, -inf hides, 2K + 1 = relative_span; strides 0 where broadcast
 *            block_mask: hides what is not in its tiles, besides; it does not follow lengths or offsets
 *            alibi_slopes, sinks (B.., H) in REAL, native, strides free;  causal_offset, query_lengths, kv_lengths (B..) ATTN_INT64, native
 *            rows (row_count) ATTN_INT64 native, in 0 ... L-1, stride `row`: the query rows of attention_weights; absent: all, row_count = L
 *            value is absent (NULL, D = 0) for attention_weights and attention_received
 *            paged_attention: key, value (pages, G, page_size, E or D), whose one batch axis are the pages: key j of a batch element is row
 *            j % page_size of page block_table[j / page_size]; entries for keys within the length have been checked, others are not read
 *            attention_with_cache: key, value of ATTN_INT8, each row times its scale
 *            rotary: tables by which queries and keys are turned while they are loaded (positions_rotary.h): q_i and k_j above are the turned ones.
 *            Their rows have been checked for every query row and key that is visible so far as causal rule, window and lengths tell
 *            Strides are in bytes. Lengths, offsets and rows have been checked by the caller.
 * Returns    output (B.., H, L, D), lse (B.., H, L) in REAL or NULL; attention_weights: output (B.., H, row_count, S);
 *            attention_received: output (B.., H, S). Outputs overlap no input and no element of themselves.
 * Special    A row that sees no key: 0 and -inf (with a sink: 0 and the sink). Hidden elements of any operand are never used: NaN there is harmless.
 *            A visible NaN or +inf score makes its row NaN. Scores beyond +-FLT_MAX ln 2 that come of finite operands saturate there.
 * Accuracy   |O - exact| <= u (8 + 2 r_n + 2 (r_d + 3) S_i) A_i with r_d = E, r_n = 64 + ceil(S / 64);
 *            the worst ratios seen are in tests/accuracy.json.
 * Source     Vaswani et al. 2017 (arXiv 1706.03762), equation 1; Dao 2023 (arXiv 2307.08691), algorithm 1; Milakov, Gimelshein 2018
 *            (arXiv 1805.02867) for merging; Press et al. 2022 (arXiv 2108.12409) for ALiBi; Raffel et al. 2020 (arXiv
 *            1910.10683) for a bias that depends on the distance; Salmon et al. 2011 (Threefry-4x32-20) for dropout. */
#ifndef ATTN_ATTENTION_H
#define ATTN_ATTENTION_H

#include "positions_rotary.h"

/* Vectors of distances: query i and key j meet number centre + j - (i + offset). */
struct attn_relative {
    struct attn_tensor key, value;                  /* (B.., H, vectors, E or D), of any floating type; absent: no vectors */
    struct attn_tensor content_bias, position_bias; /* (B.., H, E) in REAL, native, stride `column`; or absent */
    int64_t vectors, centre;
    bool clips; /* beyond the first and last vector these hold on; else every visible pair has its own */
};

/* Tiles of 64 queries and 64 keys, as rows of compressed sparse tiles: those of tile row r and leading index n are indptr[n (rows + 1) + r] ... */
struct attn_block_mask {
    const int64_t *indptr;   /* NULL: no block mask */
    const int32_t *indices;  /* key tile, ascending in a tile row */
    const int32_t *pattern;  /* -1: all of the tile is visible; else which 64 words of `bits` are its: word = query, bit = key */
    const uint64_t *bits;
    int64_t rows;            /* tile rows */
    int64_t head, batch[ATTN_MAX_BATCH]; /* strides of the leading index */
};

/* Rotary positions: query i and key j are turned by rows of the tables before their product. */
struct attn_rotary_tables {
    struct attn_tensor cosine, sine; /* (rows, columns) in REAL, native, side by side along the columns, rows free; absent: none */
    int64_t pairs;                   /* features 0 ... 2 pairs - 1 turn */
    enum attn_rotation how;
    struct attn_tensor query_positions, key_positions; /* (B.., L), (B.., S) ATTN_INT64, native: the rows; or absent: i + offset + start, j + start */
    struct attn_tensor start; /* (B..) ATTN_INT64, native; or absent: 0 */
};

struct attn_attention {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch; /* product of batch_shape */
    int64_t heads, group; /* H, and query heads per key/value head: H / G */
    int64_t query_length, key_length, head_dim, value_dim; /* L, S, E, D */
    struct attn_tensor query, key, value;
    struct attn_tensor attn_mask, bias, alibi_slopes, sinks;
    struct attn_tensor relative_bias;
    int64_t relative_span; /* entries of a row of relative_bias: odd */
    struct attn_tensor causal_offset, query_lengths, kv_lengths;
    struct attn_tensor rows;
    struct attn_tensor output, lse;
    int64_t row_count;
    struct attn_tensor block_table; /* (B.., pages of the longest sequence) ATTN_INT64, native, stride `column`; or absent */
    int64_t page_size; /* keys a page, where there is a table */
    struct attn_tensor key_scale, value_scale; /* (B.., G, S) in REAL, native: what each row of ATTN_INT8 is multiplied by; or absent */
    double scale, softcap; /* softcap 0: none */
    bool is_causal;
    int64_t window_left, window_right; /* -1: open */
    double dropout_p;
    uint32_t dropout_key[4];
    int64_t first_batch; /* the number that dropout gives batch element 0 */
    struct attn_block_mask block_mask;
    struct attn_rotary_tables rotary;
    struct attn_relative relative; /* positions_vectors.h */
};

/* The query rows and the keys of a batch element that see, or are seen by, something, so far as lengths, causal rule and window tell. Query i stands at
 * position i + offset. */
struct attn_seen {
    int64_t first_query, end_query, first_key, end_key;
};

static inline struct attn_seen
attn_seen(const struct attn_attention *a, int64_t queries, int64_t keys, int64_t offset)
{
    int64_t first = offset, last = offset + queries - 1; /* positions of the rows that see something */
    int64_t left = a->window_left, right = a->window_right;
    if (a->is_causal)
        first = attn_max(first, 0);
    if (right >= 0)
        first = attn_max(first, -right);
    if (left >= 0)
        last = attn_min(last, left < INT64_MAX - keys ? keys - 1 + left : INT64_MAX);
    if (keys <= 0 || first > last)
        return (struct attn_seen){0, 0, 0, 0};
    struct attn_seen seen = {first - offset, last + 1 - offset, left >= 0 ? attn_max(0, first - left) : 0, keys};
    if (a->is_causal)
        seen.end_key = attn_min(seen.end_key, last + 1);
    if (right >= 0 && right < keys - last)
        seen.end_key = attn_min(seen.end_key, last + right + 1);
    return seen;
}

/* parts (n) partial results of the same rows. outputs: `parts` tensors (B.., rows, D) with their lses (B.., rows); all of one type. */
struct attn_merge {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch, rows, value_dim, parts;
    const struct attn_tensor *outputs, *lses; /* strides: row, column; head unused */
    struct attn_tensor output, lse;
};

/* The mask alone, (B.., H, L, S): output floating (0 or 1 / (1 - p)) or ATTN_BOOL (kept). */
struct attn_dropout {
    struct attn_call call;
    int batch_ndim;
    int64_t batch_shape[ATTN_MAX_BATCH];
    int64_t batch, heads, query_length, key_length;
    double dropout_p;
    uint32_t dropout_key[4];
    struct attn_tensor output;
};

#endif
