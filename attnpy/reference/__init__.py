"""The functions of attnpy in float64 NumPy: slow, plain, and meant to be read.

Each follows its equation line by line and forms the whole (..., H, L, S) array of scores. Names and arguments are
those of attnpy itself, without `out`; results are float64. Nothing but NumPy is imported.
"""

from ._attention import (
    attention_received,
    attention_weights,
    dropout_mask,
    merge_attention,
    scaled_dot_product_attention,
)
from ._attention_backward import AttentionGradients, attention_weights_backward, scaled_dot_product_attention_backward
from ._attention_cache import attention_with_cache, paged_attention
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
from ._layers_linear import LinearGradients, linear, linear_backward
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
from ._softmax import log_softmax, logsumexp, softmax
from ._softmax_backward import log_softmax_backward, logsumexp_backward, softmax_backward

__all__ = [  # noqa: RUF022, by family
    "scaled_dot_product_attention",
    "attention_weights",
    "attention_received",
    "merge_attention",
    "multi_head_attention",
    "scaled_dot_product_attention_backward",
    "attention_weights_backward",
    "AttentionGradients",
    "merge_attention_backward",
    "dropout_mask",
    "attention_with_cache",
    "paged_attention",
    "scaled_dot_product_attention_jvp",
    "BlockMask",
    "varlen_attention",
    "varlen_attention_backward",
    "longformer_attention",
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
    "linear",
    "linear_backward",
    "LinearGradients",
    "relative_attention_shaw",
    "relative_attention_xl",
    "relative_attention_shaw_backward",
    "relative_attention_xl_backward",
    "RelativeAttentionGradients",
    "softmax",
    "log_softmax",
    "logsumexp",
    "softmax_backward",
    "log_softmax_backward",
    "logsumexp_backward",
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
]
