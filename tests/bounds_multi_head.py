"""What multi_head_attention may be off by: its last product by what `linear` may, of what its heads gave; its weights
by what `attention_weights` may, of its projections. test_attention_multi_head.py looks at the whole."""

import bounds
import bounds_layers_linear
from cases_multi_head import in_parts


def multi_head_attention(arguments):
    attention, last = in_parts(arguments)
    results = bounds_layers_linear.linear(last)
    if arguments.get("need_weights"):
        without = {k: v for k, v in attention.items() if k not in ("value", "dropout_p", "rng")}
        results += bounds.attention_weights(without)
    return results
