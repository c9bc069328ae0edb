"""Layers with parameters, and the Transformer built of them.

Parameters are plain ndarrays in a named tree, and calls are pure functions of them.

`layer.parameters()` is the tree, `layer.state_dict()` the same with dotted names, and
``layer(x, parameters=tree, rng=generator, cache=cache)`` computes with another tree, with dropout, with a KVCache;
without `parameters` with its own, without `rng` without dropout. So autograd differentiates a whole model::

    loss_and_gradients = autograd.value_and_grad(lambda tree: loss(model(x, parameters=tree), y))
"""

from ._attention import CrossAttention, MultiHeadAttention
from ._basic import Dropout, Embedding, FeedForward, LayerNorm, Linear, RMSNorm
from ._layer import Layer
from ._transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "CrossAttention",
    "Dropout",
    "Embedding",
    "FeedForward",
    "Layer",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "RMSNorm",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]
