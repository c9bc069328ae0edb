"""Calls of layers with their operands, for the tests of gradients: name → (function, operands)."""

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
}  # fmt: skip
