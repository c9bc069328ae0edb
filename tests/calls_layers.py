"""Calls of layers and positions with their operands, for the tests of gradients: name → (function, operands)."""

import numpy as np

import attnpy

QUERY = np.random.default_rng(0).standard_normal((2, 4, 6, 5))


def double(*shape):
    return np.random.default_rng(0).standard_normal(shape)


LAYERS = {
    "layer_norm": (lambda x, w, b: attnpy.layer_norm(x, w, b), (double(2, 3, 5), double(5), double(5))),
    "layer_norm of a sum": (
        lambda *x: attnpy.layer_norm(*x[:3], axis=(0, 2), residual=x[3], return_sum=True, eps=0.1),
        (double(2, 3, 5), double(2, 5), double(2, 5), double(2, 3, 5))),
    "rms_norm": (lambda x, w, r: attnpy.rms_norm(x, w, residual=r), (double(4, 5), double(5), double(4, 5))),
    "gelu": (attnpy.gelu, (QUERY,)),
    "gelu by tanh": (lambda x: attnpy.gelu(x, approximate="tanh"), (QUERY,)),
    "silu": (attnpy.silu, (QUERY,)),
    "relu": (attnpy.relu, (QUERY,)),
    "swiglu": (attnpy.swiglu, (double(2, 1, 5), double(3, 5))),
    "swiglu of halves": (attnpy.swiglu, (double(3, 6),)),
    "geglu": (attnpy.geglu, (double(3, 5), double(5))),
    "embedding": (lambda table: attnpy.embedding([[0, 2], [2, 2]], table), (double(4, 3),)),
    "cross_entropy": (
        lambda x: attnpy.cross_entropy(x, [0, -100, 3, 1], label_smoothing=0.1), (double(4, 5),)),
    "cross_entropy by row": (
        lambda x: attnpy.cross_entropy(x, [[0, 1], [4, 3]], reduction="none"), (double(2, 2, 5),)),
    "linear": (
        lambda *x: attnpy.linear(*x[:3], activation="gelu", residual=x[3]),
        (double(2, 3, 5), double(4, 5), double(4), double(3, 4))),
    "multi_head_attention": (
        lambda x, q, k, v, o, b: attnpy.multi_head_attention(
            x, x, x, query_weight=q, key_weight=k, value_weight=v, output_weight=o, output_bias=b, num_heads=2),
        (double(2, 3, 5), double(6, 5), double(6, 5), double(4, 5), double(5, 4), double(5))),
    "add_positions": (lambda x, t: attnpy.add_positions(x, t, [[1], [0]]), (double(2, 1, 3, 4), double(5, 4))),
    "interpolate_positions": (lambda t: attnpy.interpolate_positions(t, 9), (double(4, 3),)),
    "interpolate_positions_2d": (
        lambda t: attnpy.interpolate_positions_2d(t, (2, 3), (4, 5), num_prefix_tokens=1), (double(7, 3),)),
    "relative_attention_shaw": (
        attnpy.relative_attention_shaw,
        (double(2, 3, 4), double(2, 5, 4), double(2, 5, 3), double(5, 4), double(5, 3))),
    "relative_attention_xl": (
        attnpy.relative_attention_xl,
        (double(2, 3, 4), double(2, 3, 4), double(2, 3, 3), double(2, 5, 4), double(2, 4), double(2, 4))),
}  # fmt: skip
