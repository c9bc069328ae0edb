"""The layers of the Transformer (Vaswani et al. 2017, arXiv 1706.03762), stacks of them, and the whole."""

import math

import numpy as np

import attnpy

from . import _torch
from ._attention import CrossAttention, MultiHeadAttention
from ._basic import Dropout, Embedding, FeedForward, LayerNorm, Linear
from ._layer import Layer, generator


class _Block(Layer):
    """Attentions and a feed-forward network, each x + dropout(f(norm(x))), or norm(x + dropout(f(x)))."""

    attentions = ()  # names and kinds of the first sublayers

    def __init__(
        self, d_model, num_heads, dim_feedforward=2048, *, dropout=0.1, activation="relu", layer_norm_eps=1e-5,
        norm_first=False, bias=True, dtype=np.float32, rng=None,
    ):  # fmt: skip
        rng, common = generator(rng), {"bias": bias, "dtype": dtype}
        self.norm_first = norm_first
        for name, kind in self.attentions:
            setattr(self, name, kind(d_model, num_heads, dropout=dropout, rng=rng, **common))
        self.feed_forward = FeedForward(
            d_model, dim_feedforward, activation=activation, dropout=dropout, rng=rng, **common
        )
        for n in range(len(self.attentions) + 1):
            setattr(self, f"norm{n + 1}", LayerNorm(d_model, eps=layer_norm_eps, **common))
        self.dropout = Dropout(dropout)

    @classmethod
    def from_torch_state_dict(cls, state_dict, num_heads, **options):
        """A layer with the weights of the module of torch.nn that has the same name.

        Parameters
        ----------
        state_dict : mapping
        num_heads : int
        **options
            dropout, activation, layer_norm_eps and norm_first, as the module was made.
        """
        state = _torch.block(_torch.arrays(state_dict))
        hidden, d_model = state["feed_forward.linear1.weight"].shape
        bias, dtype = "feed_forward.linear1.bias" in state, state["feed_forward.linear1.weight"].dtype
        layer = cls(d_model, num_heads, hidden, bias=bias, dtype=dtype, rng=0, **options)
        return layer.load_state_dict(state)

    def _add(self, x, norm, own, sublayer, rng):
        norm_of = getattr(self, norm)
        if self.norm_first:
            return x + self.dropout(sublayer(norm_of(x, parameters=own[norm])), rng=rng)
        return norm_of(x + self.dropout(sublayer(x), rng=rng), parameters=own[norm])

    def _described(self):
        return f"norm_first={self.norm_first}"


class TransformerEncoderLayer(_Block):
    """Self-attention and a feed-forward network, each with a residual connection and normalisation.

    Parameters
    ----------
    d_model : int
        Features of a position.
    num_heads : int
    dim_feedforward : int, default 2048
    dropout : float, default 0.1
        Of attention weights, hidden features and what is added; where a call has rng.
    activation : str or callable, default "relu"
        As FeedForward takes it.
    layer_norm_eps : float, default 1e-5
    norm_first : bool, default False
        Normalise what a sublayer gets, not the sum behind it.
    bias : bool, default True
    dtype : dtype, default float32
    rng : numpy.random.Generator, seed or None
        Draws the first weights.

    See Also
    --------
    TransformerEncoder, TransformerDecoderLayer

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, rng=0)
    >>> layer(np.ones((3, 5, 8), np.float32)).shape
    (3, 5, 8)
    """

    attentions = (("self_attn", MultiHeadAttention),)

    def __call__(self, x, *, parameters=None, rng=None, cache=None, layer=0, **options):
        """x (..., L, d_model) → the same shape. options: those of attention, for the self-attention."""
        own = self.given(parameters)

        def attend(x):
            return self.self_attn(x, parameters=own["self_attn"], rng=rng, cache=cache, layer=layer, **options)

        x = self._add(x, "norm1", own, attend, rng)
        return self._add(x, "norm2", own, lambda x: self.feed_forward(x, parameters=own["feed_forward"], rng=rng), rng)


class TransformerDecoderLayer(_Block):
    """Masked self-attention, attention to the encoder's output (the memory), and a feed-forward network.

    Parameters
    ----------
    d_model : int
        Features of a position.
    num_heads : int
    dim_feedforward : int, default 2048
    dropout : float, default 0.1
    activation : str or callable, default "relu"
    layer_norm_eps : float, default 1e-5
    norm_first : bool, default False
    bias : bool, default True
    dtype : dtype, default float32
    rng : numpy.random.Generator, seed or None
        As in TransformerEncoderLayer.

    See Also
    --------
    TransformerDecoder, TransformerEncoderLayer

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> layer = nn.TransformerDecoderLayer(8, 2, 16, rng=0)
    >>> x, memory = np.ones((3, 5, 8), np.float32), np.ones((3, 7, 8), np.float32)
    >>> layer(x, memory).shape
    (3, 5, 8)
    """

    attentions = (("self_attn", MultiHeadAttention), ("cross_attn", CrossAttention))

    def __call__(
        self, x, memory, *, is_causal=True, memory_options=None, parameters=None, rng=None, cache=None,
        memory_cache=None, layer=0, **options,
    ):  # fmt: skip
        """x (..., L, d_model), memory (..., S, d_model) → the shape of x.

        options are those of attention, for the self-attention; memory_options, a dict, for the attention to the memory.
        cache and memory_cache: KVCaches of the two, whose layer number `layer` is used; see CrossAttention.
        """
        own = self.given(parameters)

        def attend(x):
            return self.self_attn(
                x, parameters=own["self_attn"], rng=rng, cache=cache, layer=layer, is_causal=is_causal, **options
            )

        def look(x):
            return self.cross_attn(
                x, memory, parameters=own["cross_attn"], rng=rng, cache=memory_cache, layer=layer,
                **(memory_options or {}),
            )  # fmt: skip

        x = self._add(x, "norm1", own, attend, rng)
        x = self._add(x, "norm2", own, look, rng)
        return self._add(x, "norm3", own, lambda x: self.feed_forward(x, parameters=own["feed_forward"], rng=rng), rng)


class _Stack(Layer):
    """Layers one after the other, and a last normalisation if there is one."""

    def __init__(self, layers, norm=None):
        self.layers, self.norm = list(layers), norm

    def _run(self, x, own, arguments, options):
        for i, layer in enumerate(self.layers):
            x = layer(x, *arguments, parameters=own["layers"][str(i)], layer=i, **options)
        return x if self.norm is None else self.norm(x, parameters=own["norm"])


class TransformerEncoder(_Stack):
    """A stack of encoder layers.

    Parameters
    ----------
    layers : iterable of TransformerEncoderLayer
    norm : Layer, optional
        Applied to the last layer's output.

    See Also
    --------
    TransformerEncoderLayer

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, rng=i) for i in range(2))
    >>> encoder(np.ones((3, 5, 8), np.float32)).shape
    (3, 5, 8)
    """

    def __call__(self, x, *, parameters=None, rng=None, cache=None, **options):
        """x (..., L, d_model) → the same shape; options as the layers take them; cache: a KVCache of as many layers."""
        return self._run(x, self.given(parameters), (), {"rng": rng, "cache": cache, **options})


class TransformerDecoder(_Stack):
    """A stack of decoder layers.

    Parameters
    ----------
    layers : iterable of TransformerDecoderLayer
    norm : Layer, optional
        Applied to the last layer's output.

    See Also
    --------
    TransformerDecoderLayer

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, rng=i) for i in range(2))
    >>> decoder(np.ones((3, 5, 8), np.float32), np.ones((3, 7, 8), np.float32)).shape
    (3, 5, 8)
    """

    def __call__(self, x, memory, *, parameters=None, rng=None, cache=None, memory_cache=None, **options):
        """x (..., L, d_model), memory (..., S, d_model) → the shape of x; options as the layers take them."""
        options |= {"rng": rng, "cache": cache, "memory_cache": memory_cache}
        return self._run(x, self.given(parameters), (memory,), options)


class Transformer(Layer):
    """The Transformer of 2017: an encoder, a decoder that looks at its output, sinusoidal positions.

    Parameters
    ----------
    d_model : int, default 512
    num_heads : int, default 8
    num_encoder_layers, num_decoder_layers : int, default 6
    dim_feedforward : int, default 2048
    source_vocabulary, target_vocabulary : int, optional
        With them source and target are token numbers, embedded, times √d_model, plus sinusoids, and the output is a
        row of scores for each target token; without, they are (..., L, d_model) as in torch.nn.Transformer.
    dropout, activation, layer_norm_eps, norm_first, bias, dtype, rng
        As in TransformerEncoderLayer.

    See Also
    --------
    TransformerEncoder, TransformerDecoder, attnpy.sinusoidal_encoding

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, arXiv 1706.03762.

    Examples
    --------
    >>> import numpy as np
    >>> from attnpy import nn
    >>> model = nn.Transformer(16, 2, 1, 1, 32, source_vocabulary=10, target_vocabulary=12, rng=0)
    >>> model(np.array([[1, 2, 3]]), np.array([[4, 5]])).shape
    (1, 2, 12)
    """

    def __init__(
        self, d_model=512, num_heads=8, num_encoder_layers=6, num_decoder_layers=6, dim_feedforward=2048, *,
        source_vocabulary=None, target_vocabulary=None, dropout=0.1, activation="relu", layer_norm_eps=1e-5,
        norm_first=False, bias=True, dtype=np.float32, rng=None,
    ):  # fmt: skip
        if (source_vocabulary is None) != (target_vocabulary is None):
            raise ValueError("source_vocabulary and target_vocabulary must be given together")
        rng = generator(rng)
        self.d_model, self.num_heads, self.dtype = d_model, num_heads, np.dtype(dtype)
        options = {"dropout": dropout, "activation": activation, "layer_norm_eps": layer_norm_eps}
        options |= {"norm_first": norm_first, "bias": bias, "dtype": dtype, "rng": rng}
        norm = {"eps": layer_norm_eps, "bias": bias, "dtype": dtype}
        if source_vocabulary is not None:
            self.source_embedding = _embedding(source_vocabulary, d_model, dtype, rng)
            self.target_embedding = _embedding(target_vocabulary, d_model, dtype, rng)
        self.encoder = TransformerEncoder(
            [
                TransformerEncoderLayer(d_model, num_heads, dim_feedforward, **options)
                for _ in range(num_encoder_layers)
            ],
            LayerNorm(d_model, **norm),
        )
        self.decoder = TransformerDecoder(
            [
                TransformerDecoderLayer(d_model, num_heads, dim_feedforward, **options)
                for _ in range(num_decoder_layers)
            ],
            LayerNorm(d_model, **norm),
        )
        if target_vocabulary is not None:
            self.output = Linear(d_model, target_vocabulary, bias=bias, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout)

    def _described(self):
        return f"d_model={self.d_model}, num_heads={self.num_heads}"

    def embed(self, tokens, side, *, parameters=None, rng=None, offset=0):
        """Embeddings of tokens (..., L) times √d_model, plus the sinusoids from `offset` on; side: source or target.

        Without vocabularies: what is given.
        """
        name = f"{side}_embedding"
        if not hasattr(self, name):
            return tokens
        own = self.given(parameters)[name]
        positions = np.arange(offset, offset + np.shape(tokens)[-1])
        table = attnpy.sinusoidal_encoding(positions, self.d_model, dtype=self.dtype)
        scale = self.dtype.type(math.sqrt(self.d_model))
        return self.dropout(getattr(self, name)(tokens, parameters=own) * scale + table, rng=rng)

    def encode(self, source, *, parameters=None, rng=None, **options):
        """source (..., S) tokens, or (..., S, d_model) → the memory (..., S, d_model); options as in encoder layers."""
        own = self.given(parameters)
        x = self.embed(source, "source", parameters=parameters, rng=rng)
        return self.encoder(x, parameters=own["encoder"], rng=rng, **options)

    def decode(self, target, memory, *, parameters=None, rng=None, cache=None, memory_cache=None, **options):
        """target (..., L) tokens, or (..., L, d_model) → scores (..., L, target_vocabulary), or (..., L, d_model).

        With caches (KVCache, one layer for each decoder layer) target holds only the tokens that are new.
        """
        own = self.given(parameters)
        offset = 0 if cache is None else int(np.max(cache.lengths(0), initial=0))
        x = self.embed(target, "target", parameters=parameters, rng=rng, offset=offset)
        x = self.decoder(
            x, memory, parameters=own["decoder"], rng=rng, cache=cache, memory_cache=memory_cache, **options
        )
        return self.output(x, parameters=own["output"]) if hasattr(self, "output") else x

    def __call__(
        self, source, target, *, source_options=None, memory_options=None, parameters=None, rng=None, **options
    ):
        """Scores of the target's next tokens; the target's self-attention is causal unless is_causal=False.

        options, source_options and memory_options are those of attention: for the target's self-attention, for the
        source's, and for what the target sees of the source.
        """
        memory = self.encode(source, parameters=parameters, rng=rng, **(source_options or {}))
        return self.decode(target, memory, parameters=parameters, rng=rng, memory_options=memory_options, **options)

    def generate(self, source, start, length, *, source_options=None, memory_options=None):
        """The likeliest token, again and again (greedily): (B, S) tokens → (B, length) tokens, the first being start.

        Keys and values are cached: each new token costs one row.
        """
        memory = self.encode(source, **(source_options or {}))
        shape = (len(self.decoder.layers), len(memory), self.num_heads)
        head_dim = self.d_model // self.num_heads
        cache, memory_cache = (
            attnpy.KVCache(*shape, size, head_dim, dtype=self.dtype) for size in (max(length, 1), memory.shape[-2])
        )
        tokens = np.full((len(memory), length), start)
        for i in range(1, length):
            scores = self.decode(
                tokens[:, i - 1 : i], memory, cache=cache, memory_cache=memory_cache, memory_options=memory_options
            )
            tokens[:, i] = scores[:, 0].argmax(-1)
        return tokens

    @classmethod
    def from_torch_state_dict(cls, state_dict, num_heads, **options):
        """A model with the weights of a torch.nn.Transformer; as in TransformerEncoderLayer."""
        converted, numbers = _torch.transformer(_torch.arrays(state_dict))
        hidden, d_model = converted["encoder.layers.0.feed_forward.linear1.weight"].shape
        model = cls(
            d_model, num_heads, numbers["encoder"], numbers["decoder"], hidden, rng=0,
            dtype=converted["encoder.norm.weight"].dtype, bias="encoder.norm.bias" in converted, **options,
        )  # fmt: skip
        return model.load_state_dict(converted)


def _embedding(vocabulary, d_model, dtype, rng):
    """Values with deviation 1/√d_model: times √d_model they are as large as the sinusoids."""
    table = Embedding(vocabulary, d_model, dtype=dtype, rng=rng)
    table.weight *= table.weight.dtype.type(1 / math.sqrt(d_model))
    return table
