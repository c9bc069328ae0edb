/* positions_rotary.h: tables and positions of rotary embeddings, as every function that takes them binds them. */
#ifndef ATTN_BINDINGS_POSITIONS_ROTARY_H
#define ATTN_BINDINGS_POSITIONS_ROTARY_H

#include "engine.h"

#include "../kernels/positions_rotary.h"

struct rotary_tables {
    int64_t rows, rotary_dim; /* the sizes of their last two axes; see above */
    enum attn_rotation how;
};

bool rotary_bind_tables(struct engine *e, const struct engine_operand operands[2], PyObject *cosine, PyObject *sine, PyObject *rotary_dim,
                        int64_t head_dim, bool interleaved, struct rotary_tables *tables, void *structure);
bool rotary_bind_positions(struct engine *e, const struct engine_operand *operand, PyObject *object, int64_t length, int64_t rows, void *structure);

#endif
