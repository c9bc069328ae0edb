/* positions_rotary.h: what all functions with rotary tables check alike. */
#ifndef ATTN_BINDINGS_POSITIONS_ROTARY_H
#define ATTN_BINDINGS_POSITIONS_ROTARY_H

#include "engine.h"

/* Tables that hold each number twice in the order of the other pairing would turn wrongly without a word: the last row is looked at. Columns lie side by
 * side. */
bool positions_check_twice(const char *name, PyArrayObject *table, bool interleaved);

#endif
