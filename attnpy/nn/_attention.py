"""Attention with projections as a layer."""

import math

import numpy as np

import attnpy

from . import _torch
from ._layer import Layer, generator, uniform
from ._torch import PROJECTIONS


class MultiHeadAttention(Layer):
    """Concat(head_1, …, head_H) W_oᵀ + b_o, head_h = attention(q W_qhᵀ + b_q, k W_khᵀ + b_k, v W_vhᵀ + b_v).

    Parameters
    ----------
    embed_dim : int
        Features of query and output.
    num_heads : int
        H.
    num_kv_heads : int, optional
        Key/value heads, a divisor of num_heads; default num_heads.
    head_dim : int, optional
        Features of a head; default embed_dim / num_heads.
    kdim, vdim : int, optional
        Features of key and of value; default embed_dim.
    bias : bool, default True
    dropout : float, default 0
        Of the attention weights, where a call has rng.
    add_zero_attn : bool, default False
        Every row also sees a key with score 0 and value 0: a sink of 0.
    dtype : dtype, default float32
    rng : numpy.random.Generator, seed or None
        Draws the first weights: uniform within ±√(6 / (inputs + outputs)); biases are 0.

    See Also
    --------
    attnpy.multi_head_attention, CrossAttention

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> layer = nn.MultiHeadAttention(8, 2, rng=0)
    >>> x = np.ones((3, 5, 8), np.float32)
    >>> layer(x, is_causal=True).shape
    (3, 5, 8)
    >>> output, weights = layer(x, need_weights=True)
    >>> weights.shape
    (3, 2, 5, 5)
    """

    def __init__(
        self, embed_dim, num_heads, *, num_kv_heads=None, head_dim=None, kdim=None, vdim=None, bias=True, dropout=0.0,
        add_zero_attn=False, dtype=np.float32, rng=None,
    ):  # fmt: skip
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide embed_dim, which is {embed_dim}")
        rng, head_dim = generator(rng), head_dim or embed_dim // num_heads
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads or num_heads, head_dim
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads is {num_kv_heads}; it must divide num_heads, which is {num_heads}")
        self.dropout, self.add_zero_attn = dropout, add_zero_attn
        inner, shared = num_heads * head_dim, self.num_kv_heads * head_dim
        shapes = (inner, embed_dim), (shared, kdim or embed_dim), (shared, vdim or embed_dim), (embed_dim, inner)
        for name, shape in zip(PROJECTIONS, shapes):
            setattr(self, f"{name}_weight", uniform(rng, math.sqrt(6 / sum(shape)), shape, dtype))
        for name, shape in zip(PROJECTIONS, shapes):
            setattr(self, f"{name}_bias", np.zeros(shape[0], dtype) if bias else None)

    def _described(self):
        shared = f", num_kv_heads={self.num_kv_heads}" if self.num_kv_heads != self.num_heads else ""
        return f"num_heads={self.num_heads}{shared}, head_dim={self.head_dim}"

    def __call__(
        self, query, key=None, value=None, *, need_weights=False, parameters=None, rng=None, cache=None, layer=0,
        **options,
    ):  # fmt: skip
        """Attention of query (..., L, embed_dim) to key (..., S, kdim) and value (..., S, vdim).

        Parameters
        ----------
        query, key, value : array_like
            Without key: the query; without value: the key.
        need_weights : bool, default False
            Also return the weights, (..., H, L, S), of every head.
        parameters : dict, optional
            Used instead of the layer's own.
        rng : numpy.random.Generator or DropoutKey, optional
            Turns dropout on.
        cache : KVCache, optional
            The keys and values of this call are appended to it as layer number `layer`, and the query attends to
            all that are there; is_causal is then True unless it is given. It needs a batch axis.
        layer : int, default 0
        **options
            Those of attnpy.multi_head_attention: attn_mask (True: attend; PyTorch's modules mean the opposite),
            is_causal, kv_lengths, window_size, rotary and so on.

        Returns
        -------
        output : ndarray, (..., L, embed_dim)
        weights : ndarray, (..., H, L, S)
            With need_weights.
        """
        own = self.given(parameters)
        key = query if key is None else key
        value = key if value is None else value
        if self.add_zero_attn:
            options.setdefault("sinks", np.zeros(self.num_heads, self.query_weight.dtype))
        if cache is not None:
            return self._cached(query, key, value, own, cache, layer, need_weights, rng, options)
        if rng is not None and self.dropout > 0:
            options |= {"dropout_p": self.dropout, "rng": rng}
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}
        return attnpy.multi_head_attention(query, key, value, **own, **heads, need_weights=need_weights, **options)

    def _cached(self, query, key, value, own, cache, layer, need_weights, rng, options):
        if need_weights or (rng is not None and self.dropout > 0):
            raise ValueError("with a cache there are neither weights nor dropout: need_weights and rng must stay away")
        cache.append(layer, self._project(key, "key", own), self._project(value, "value", own))
        return self._attend(query, own, cache, layer, options)

    def _project(self, x, name, own):
        """(..., L, N) → (..., H, L, D), a view of the product."""
        x = attnpy.linear(x, own[f"{name}_weight"], own.get(f"{name}_bias"))
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.head_dim, self.head_dim).swapaxes(-2, -3)

    def _attend(self, query, own, cache, layer, options):
        output = attnpy.attention_with_cache(self._project(query, "query", own), cache, layer, **options)
        joined = output.swapaxes(-2, -3).reshape(*np.shape(query)[:-1], self.num_heads * self.head_dim)
        return attnpy.linear(joined, own["output_weight"], own.get("output_bias"))

    @classmethod
    def from_torch_state_dict(cls, state_dict, num_heads, *, add_zero_attn=False, dropout=0.0):
        """A layer with the weights of a torch.nn.MultiheadAttention.

        Parameters
        ----------
        state_dict : mapping
            Names to arrays or tensors, as ``module.state_dict()`` gives them.
        num_heads : int
        add_zero_attn : bool, default False
            As the module was made.
        dropout : float, default 0
            As the module was made.

        Raises
        ------
        ValueError
            Names or shapes are not those of the module, or it has bias_k and bias_v, which attnpy has no place for.

        Notes
        -----
        The module's boolean masks are True where a key is hidden; attnpy's where it is seen: pass ``~attn_mask``, and
        ``attn_mask=~key_padding_mask[:, None, None, :]``.
        """
        wanted = _torch.attention(_torch.arrays(state_dict))
        sizes = {f"{name[0]}dim": wanted[f"{name}_weight"].shape[1] for name in ("key", "value")}
        layer = cls(
            wanted["output_weight"].shape[0], num_heads, **sizes, bias="output_bias" in wanted, dropout=dropout,
            add_zero_attn=add_zero_attn, dtype=wanted["output_weight"].dtype, rng=0,
        )  # fmt: skip
        return layer.load_state_dict(wanted)


class CrossAttention(MultiHeadAttention):
    """Queries of one sequence attend to another's keys and values, which come from one array.

    Parameters
    ----------
    embed_dim, num_heads : int
    context_dim : int, optional
        Features of the context; default embed_dim.
    **options
        Those of MultiHeadAttention.

    See Also
    --------
    MultiHeadAttention

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> layer = nn.CrossAttention(8, 2, context_dim=6, rng=0)
    >>> layer(np.ones((3, 5, 8), np.float32), np.ones((3, 7, 6), np.float32)).shape
    (3, 5, 8)
    """

    def __init__(self, embed_dim, num_heads, *, context_dim=None, **options):
        super().__init__(embed_dim, num_heads, kdim=context_dim, vdim=context_dim, **options)

    def __call__(self, query, context, *, parameters=None, rng=None, cache=None, layer=0, **options):
        """query (..., L, embed_dim), context (..., S, context_dim) → (..., L, embed_dim).

        cache: a KVCache that holds the keys and values of the context from the first call on, as layer number `layer`;
        later calls look neither at the context, which may then be None, nor at kv_lengths.
        """
        if cache is None:
            return super().__call__(query, context, parameters=parameters, rng=rng, **options)
        own, lengths = self.given(parameters), options.pop("kv_lengths", None)
        if not np.any(cache.lengths(layer)):
            cache.append(layer, *(self._project(context, name, own) for name in ("key", "value")), lengths)
        return self._attend(query, own, cache, layer, {"is_causal": False} | options)
