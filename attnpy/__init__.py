"""Attention for NumPy: fast, exact, broadcasting functions on ndarrays, written in C.

Letters in every docstring: H query heads, G key/value heads (G divides H), L queries, S keys, E the head size of query
and key, D that of value and output, "..." batch axes, which broadcast as in NumPy.

`attnpy.reference` holds the same functions in float64 NumPy, to read and to compare; it needs no compiled code.
`attnpy.nn` has layers with parameters, and the Transformer built of them; `attnpy.io` loads their weights from files.
`attnpy.plot` draws weights as heat maps and needs matplotlib. `attnpy.integrations` answers calls with arrays of
autograd and PyTorch. All of them load when first used.
"""

from typing import TYPE_CHECKING

from ._attention import (
    DropoutKey,
    attention_received,
    attention_weights,
    dropout_key,
    dropout_mask,
    merge_attention,
    scaled_dot_product_attention,
)
from ._softmax import log_softmax, logsumexp, softmax
from ._threads import get_num_threads, num_threads, set_num_threads, show_config

if TYPE_CHECKING:  # load when first used: see LATE
    from ._attention_backward import (
        AttentionGradients,
        attention_weights_backward,
        scaled_dot_product_attention_backward,
    )
    from ._attention_cache import KVCache, attention_with_cache, paged_attention
    from ._attention_jvp import scaled_dot_product_attention_jvp
    from ._attention_merge_backward import merge_attention_backward
    from ._attention_multi_head import multi_head_attention
    from ._attention_varlen import varlen_attention, varlen_attention_backward
    from ._layers import (
        geglu,
        geglu_backward,
        gelu,
        gelu_backward,
        relu,
        relu_backward,
        silu,
        silu_backward,
        swiglu,
        swiglu_backward,
    )
    from ._layers_embedding import embedding, embedding_backward
    from ._layers_linear import LinearGradients, PackedWeight, linear, linear_backward
    from ._layers_loss import cross_entropy, cross_entropy_backward
    from ._layers_norm import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward
    from ._masks import BlockMask
    from ._masks_longformer import longformer_attention
    from ._positions_alibi import alibi_bias, alibi_slopes
    from ._positions_frequencies import rotary_frequencies
    from ._positions_learned import (
        add_positions,
        add_positions_backward,
        interpolate_positions,
        interpolate_positions_2d,
        interpolate_positions_2d_backward,
        interpolate_positions_backward,
    )
    from ._positions_rotary import permute_rotary_weights, rotary_embedding, rotary_tables, rotary_tables_2d
    from ._positions_sinusoidal import sinusoidal_encoding, sinusoidal_encoding_2d
    from ._positions_t5 import relative_position_bucket, t5_relative_bias, t5_relative_bias_backward
    from ._positions_vectors import (
        RelativeAttentionGradients,
        relative_attention_shaw,
        relative_attention_shaw_backward,
        relative_attention_xl,
        relative_attention_xl_backward,
    )
    from ._softmax_backward import log_softmax_backward, logsumexp_backward, softmax_backward

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022, by family
    # attention
    "scaled_dot_product_attention",
    "attention_weights",
    "attention_received",
    "merge_attention",
    "multi_head_attention",
    "scaled_dot_product_attention_backward",
    "attention_weights_backward",
    "scaled_dot_product_attention_jvp",
    "AttentionGradients",
    "DropoutKey",
    "dropout_key",
    "dropout_mask",
    "merge_attention_backward",
    # masks
    "BlockMask",
    "longformer_attention",
    # packed sequences
    "varlen_attention",
    "varlen_attention_backward",
    # caches
    "KVCache",
    "attention_with_cache",
    "paged_attention",
    # positions
    "rotary_frequencies",
    "rotary_tables",
    "rotary_tables_2d",
    "rotary_embedding",
    "permute_rotary_weights",
    "sinusoidal_encoding",
    "sinusoidal_encoding_2d",
    "add_positions",
    "add_positions_backward",
    "interpolate_positions",
    "interpolate_positions_backward",
    "interpolate_positions_2d",
    "interpolate_positions_2d_backward",
    "alibi_slopes",
    "alibi_bias",
    "relative_position_bucket",
    "t5_relative_bias",
    "t5_relative_bias_backward",
    "relative_attention_shaw",
    "relative_attention_xl",
    "relative_attention_shaw_backward",
    "relative_attention_xl_backward",
    "RelativeAttentionGradients",
    # softmax
    "softmax",
    "log_softmax",
    "logsumexp",
    "softmax_backward",
    "log_softmax_backward",
    "logsumexp_backward",
    # layers
    "linear",
    "linear_backward",
    "LinearGradients",
    "PackedWeight",
    "layer_norm",
    "rms_norm",
    "layer_norm_backward",
    "rms_norm_backward",
    "gelu",
    "silu",
    "relu",
    "swiglu",
    "geglu",
    "gelu_backward",
    "silu_backward",
    "relu_backward",
    "swiglu_backward",
    "geglu_backward",
    "embedding",
    "embedding_backward",
    "cross_entropy",
    "cross_entropy_backward",
    # threads
    "get_num_threads",
    "set_num_threads",
    "num_threads",
    "show_config",
    # modules
    "reference",
    "plot",
    "integrations",
    "nn",
    "io",
]


# By module, what loads when it is first used: the import of attnpy alone stays within milliseconds.
LATE = {
    "_attention_backward": (
        "AttentionGradients",
        "attention_weights_backward",
        "scaled_dot_product_attention_backward",
    ),
    "_attention_cache": ("KVCache", "attention_with_cache", "paged_attention"),
    "_attention_jvp": ("scaled_dot_product_attention_jvp",),
    "_attention_merge_backward": ("merge_attention_backward",),
    "_attention_multi_head": ("multi_head_attention",),
    "_attention_varlen": ("varlen_attention", "varlen_attention_backward"),
    "_layers": (
        "geglu",
        "geglu_backward",
        "gelu",
        "gelu_backward",
        "relu",
        "relu_backward",
        "silu",
        "silu_backward",
        "swiglu",
        "swiglu_backward",
    ),
    "_layers_embedding": ("embedding", "embedding_backward"),
    "_layers_linear": ("LinearGradients", "PackedWeight", "linear", "linear_backward"),
    "_layers_loss": ("cross_entropy", "cross_entropy_backward"),
    "_layers_norm": ("layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward"),
    "_masks": ("BlockMask",),
    "_masks_longformer": ("longformer_attention",),
    "_positions_alibi": ("alibi_bias", "alibi_slopes"),
    "_positions_frequencies": ("rotary_frequencies",),
    "_positions_learned": (
        "add_positions",
        "add_positions_backward",
        "interpolate_positions",
        "interpolate_positions_2d",
        "interpolate_positions_2d_backward",
        "interpolate_positions_backward",
    ),
    "_positions_rotary": ("permute_rotary_weights", "rotary_embedding", "rotary_tables", "rotary_tables_2d"),
    "_positions_sinusoidal": ("sinusoidal_encoding", "sinusoidal_encoding_2d"),
    "_positions_t5": ("relative_position_bucket", "t5_relative_bias", "t5_relative_bias_backward"),
    "_positions_vectors": (
        "RelativeAttentionGradients",
        "relative_attention_shaw",
        "relative_attention_shaw_backward",
        "relative_attention_xl",
        "relative_attention_xl_backward",
    ),
    "_softmax_backward": ("log_softmax_backward", "logsumexp_backward", "softmax_backward"),
}


def __getattr__(name):
    from importlib import import_module

    if name in ("reference", "plot", "integrations", "nn", "io"):
        return import_module(f"attnpy.{name}")
    for module, names in LATE.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"attnpy.{module}"), name)
            return found
    raise AttributeError(f"module 'attnpy' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
