/* attention.h: what the bindings of the attention functions share: the operands that shape the scores, and their checks.
 *
 * Their argument structs begin with struct attn_attention, so that the places of its members are theirs too. */
#ifndef ATTN_BINDINGS_ATTENTION_H
#define ATTN_BINDINGS_ATTENTION_H

#include "engine.h"

#include "../kernels/attention_backward.h"

#define PLACE(member) offsetof(struct attn_attention, member)

/* The optional operands that all these functions have; bias and what follows are arguments `b` on. */
#define SCORE_OPERANDS(mask, b)                                                                                                                  \
    {"attn_mask", ENGINE_MASK, mask, "hls", 0, PLACE(attn_mask), .blocks = PLACE(block_mask)}, {"bias", ENGINE_ADDED, b, "hls", 0, PLACE(bias)}, \
        {"alibi_slopes", ENGINE_PER_HEAD, b + 4, "h..", 0, PLACE(alibi_slopes)}, {"sinks", ENGINE_PER_HEAD, b + 5, "h..", 0, PLACE(sinks)},      \
        {"causal_offset", ENGINE_OFFSETS, b + 1, "...", 0, PLACE(causal_offset)},                                                                \
        {"query_lengths", ENGINE_LENGTHS, b + 6, "...", 'l', PLACE(query_lengths)},                                                              \
    {                                                                                                                                            \
        "kv_lengths", ENGINE_LENGTHS, b + 7, "...", 's', PLACE(kv_lengths)                                                                       \
    }

/* relative_bias: its last axis has a size of its own. */
#define RELATIVE_OPERAND(argument) {"relative_bias", ENGINE_BY_DISTANCE, argument, "hlt", 0, PLACE(relative_bias)}

/* query and key, where query is argument `q` and key the next. */
#define QUERY_AND_KEY(q)                                \
    {"query", ENGINE_DATA, q, "hld", 0, PLACE(query)},  \
    {                                                   \
        "key", ENGINE_DATA, q + 1, "gsd", 0, PLACE(key) \
    }

/* The sizes, and the scalar parameters of scores and positions: arguments is_causal, scale, bias, causal_offset, window_size, softcap in a row. */
bool attention_bind_scores(struct engine *e, PyObject *const *argument, struct attn_attention *a);

/* Where the last query row stands is unknown if only the keys' lengths are given: refused where it matters. */
bool attention_check_positions(const struct engine *e, const struct attn_attention *a);

/* Arguments rotary_cos, rotary_sin, rotary_interleaved, query_positions, key_positions in a row; all else about the scores is bound. check: whether the
 * tables have a row for every query row and key of `of` that needs one; *needed becomes how many rows they need. */
bool attention_bind_rotary(struct engine *e, PyObject *const *argument, bool (*check)(const void *of, int64_t rows, int64_t *needed), const void *of,
                           struct attn_attention *a);
bool attention_check_batch(const void *attention, int64_t rows, int64_t *needed); /* such a check */
bool attention_check_angles(const struct attn_attention *a, int64_t batch, int64_t rows, int64_t *needed); /* of one batch element */

/* rows: a list of query rows, negative ones from the end; None: all. Size 'l' becomes its length. */
bool attention_bind_rows(struct engine *e, PyObject *object, struct attn_attention *a);

/* Something that must be there; ENGINE_ADDED operands may be absent. */
bool attention_check_present(const char *name, PyObject *object);

/* The gradients that `needs` flags, in the order of the function's outputs; tensors of the others are absent. */
bool attention_bind_gradients(struct engine *e, PyObject *needs, PyObject *out, struct attn_attention_backward *b);

/* Runs the backward pass, twice where keys and values broadcast along different axes. */
bool attention_run_gradients(const struct engine *e, struct attn_attention_backward *b);

#endif
