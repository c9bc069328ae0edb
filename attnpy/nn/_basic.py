"""Layers that treat every position alike: products, tables, normalisation, dropout, the feed-forward network."""

import math

import numpy as np

import attnpy

from ._layer import Layer, generator, uniform

FUSED = ("relu", "gelu", "gelu_tanh", "silu")  # what attnpy.linear applies to its result
GATED = ("swiglu", "geglu")


class Linear(Layer):
    """x Wᵀ + b.

    Parameters
    ----------
    in_features, out_features : int
        W is (out_features, in_features), as PyTorch and weight files have it.
    bias : bool, default True
    dtype : dtype, default float32
    rng : numpy.random.Generator, seed or None
        Draws the first values: uniform within ±1/√in_features.

    See Also
    --------
    attnpy.linear

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> nn.Linear(3, 2, rng=0)(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(self, in_features, out_features, *, bias=True, dtype=np.float32, rng=None):
        rng, bound = generator(rng), 1 / math.sqrt(in_features) if in_features else 0.0
        self.weight = uniform(rng, bound, (out_features, in_features), dtype)
        self.bias = uniform(rng, bound, out_features, dtype) if bias else None

    def __call__(self, x, *, activation=None, residual=None, parameters=None):
        """x (..., in_features) → (..., out_features); activation and residual as attnpy.linear has them."""
        own = self.given(parameters)
        return attnpy.linear(x, own["weight"], own.get("bias"), activation=activation, residual=residual)


class Embedding(Layer):
    """Rows of a table, chosen by indices.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        The table, `weight`, is (num_embeddings, embedding_dim).
    dtype : dtype, default float32
    rng : numpy.random.Generator, seed or None
        Draws the first values: normal, with deviation 1.

    See Also
    --------
    attnpy.embedding

    Examples
    --------
    >>> from attnpy import nn
    >>> nn.Embedding(10, 4, rng=0)([[1, 2, 9]]).shape
    (1, 3, 4)
    """

    def __init__(self, num_embeddings, embedding_dim, *, dtype=np.float32, rng=None):
        self.weight = generator(rng).standard_normal((num_embeddings, embedding_dim)).astype(dtype)

    def __call__(self, indices, *, parameters=None):
        """Indices of any shape, 0 … num_embeddings − 1 → (*indices.shape, embedding_dim)."""
        return attnpy.embedding(indices, self.given(parameters)["weight"])


class LayerNorm(Layer):
    """(x − mean) / √(variance + eps) · weight + bias over the last axes.

    Parameters
    ----------
    normalized_shape : int or tuple of ints
        The last axes of x.
    eps : float, default 1e-5
    bias : bool, default True
    dtype : dtype, default float32

    See Also
    --------
    attnpy.layer_norm, RMSNorm

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> nn.LayerNorm(2)(np.float32([[1, 3]])).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(self, normalized_shape, *, eps=1e-5, bias=True, dtype=np.float32):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.weight = np.ones(shape, dtype)
        self.bias = np.zeros(shape, dtype) if bias else None

    def _described(self):
        return f"eps={self.eps:g}"

    def __call__(self, x, *, parameters=None):
        own = self.given(parameters)
        axis = tuple(range(-self.weight.ndim, 0))
        return attnpy.layer_norm(x, own["weight"], own.get("bias"), axis=axis, eps=self.eps)


class RMSNorm(Layer):
    """x / √(mean of x² + eps) · weight over the last axes.

    Parameters
    ----------
    normalized_shape : int or tuple of ints
        The last axes of x.
    eps : float, default 1e-6
    dtype : dtype, default float32

    See Also
    --------
    attnpy.rms_norm, LayerNorm

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> nn.RMSNorm(2)(np.float32([[1, 7]])).round(3)
    array([[0.2, 1.4]], dtype=float32)
    """

    def __init__(self, normalized_shape, *, eps=1e-6, dtype=np.float32):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.weight = np.ones(shape, dtype)

    def _described(self):
        return f"eps={self.eps:g}"

    def __call__(self, x, *, parameters=None):
        axis = tuple(range(-self.weight.ndim, 0))
        return attnpy.rms_norm(x, self.given(parameters)["weight"], axis=axis, eps=self.eps)


class Dropout(Layer):
    """Zeros in random places, the rest divided by 1 − p; nothing without a generator.

    Parameters
    ----------
    p : float
        The share of elements that become 0, in [0, 1).

    See Also
    --------
    attnpy.dropout_mask

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> x = np.ones((100, 100), np.float32)
    >>> dropout = nn.Dropout(0.25)
    >>> dropout(x) is x
    True
    >>> dropped = dropout(x, rng=np.random.default_rng(0))
    >>> np.unique(dropped).round(4), abs((dropped == 0).mean() - 0.25) < 0.02
    (array([0.    , 1.3333], dtype=float32), np.True_)
    """

    def __init__(self, p):
        if not 0 <= p < 1:
            raise ValueError(f"p is {p}; it must lie in [0, 1)")
        self.p = p

    def _described(self):
        return f"p={self.p:g}"

    def __call__(self, x, *, parameters=None, rng=None):
        """rng: a numpy.random.Generator, which gives up one key, or an attnpy.DropoutKey."""
        self.given(parameters)
        if rng is None or self.p == 0:
            return x
        key = rng if isinstance(rng, attnpy.DropoutKey) else attnpy.dropout_key(rng)
        shape = np.shape(x)
        mask = attnpy.dropout_mask((1,) * (2 - len(shape)) + shape, self.p, key, dtype=x.dtype)
        return x * mask.reshape(shape)


class FeedForward(Layer):
    """linear2(dropout(activation(linear1(x)))).

    Parameters
    ----------
    dim : int
        Features of input and output.
    hidden_dim : int
        Features between them.
    activation : {"relu", "gelu", "gelu_tanh", "silu", "swiglu", "geglu"} or callable, default "relu"
        The last two of these gate: linear1 then has 2 hidden_dim rows, as attnpy.swiglu and attnpy.geglu halve them.
    dropout : float, default 0
    bias : bool, default True
    dtype : dtype, default float32
    rng : numpy.random.Generator, seed or None
        Draws the first values.

    See Also
    --------
    attnpy.linear, attnpy.swiglu, attnpy.geglu

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> nn.FeedForward(8, 32, activation="gelu", rng=0)(np.ones((2, 5, 8), np.float32)).shape
    (2, 5, 8)
    """

    def __init__(self, dim, hidden_dim, *, activation="relu", dropout=0.0, bias=True, dtype=np.float32, rng=None):
        if not callable(activation) and activation not in FUSED + GATED:
            raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(FUSED + GATED)}, or callable")
        rng, rows = generator(rng), hidden_dim * (2 if activation in GATED else 1)
        self.activation = activation
        self.linear1 = Linear(dim, rows, bias=bias, dtype=dtype, rng=rng)
        self.linear2 = Linear(hidden_dim, dim, bias=bias, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout)

    def _described(self):
        name = self.activation if isinstance(self.activation, str) else getattr(self.activation, "__name__", "callable")
        return f"activation={name}"

    def __call__(self, x, *, residual=None, parameters=None, rng=None):
        """x (..., dim) → (..., dim). residual: added to the result. rng: turns dropout on."""
        own = self.given(parameters)
        fused = self.activation if self.activation in FUSED else None
        hidden = self.linear1(x, activation=fused, parameters=own["linear1"])
        if self.activation in GATED:
            hidden = getattr(attnpy, self.activation)(hidden)
        elif fused is None:
            hidden = self.activation(hidden)
        hidden = self.dropout(hidden, rng=rng)
        return self.linear2(hidden, residual=residual, parameters=own["linear2"])
