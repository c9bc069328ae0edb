"""The inverse frequencies of rotary embeddings, as models stretch them to longer sequences."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_KEYS = {  # of `scaling`: those that a rope type needs, and those that it may have; of all types: below
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": ((), ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
    "longrope": (("short_factor", "long_factor"), ("factor", "attention_factor")),
    "proportional": ((), ("factor",)),
}
_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def rotary_frequencies(
    head_dim: int,
    base: float = 10000.0,
    *,
    scaling: Mapping[str, Any] | None = None,
    sequence_length: int | None = None,
    max_position_embeddings: int | None = None,
    rotary_dim: int | None = None,
) -> tuple[NDArray[np.float64], float]:
    r"""The angle by which each pair of features turns from one position to the next.

    .. math:: \omega_i = \mathrm{base}^{-2 i / \mathrm{rotary\_dim}}, \qquad i = 0 \ldots \mathrm{rotary\_dim} / 2 - 1

    and what published models make of it to reach longer sequences than they were trained on.

    Parameters
    ----------
    head_dim : int
        Features of a head.
    base : float, default 10000.0
        ``rope_theta`` of the model.
    scaling : mapping, optional
        ``rope_parameters`` or ``rope_scaling`` of a Hugging Face configuration, with its keys: ``rope_type`` (or
        ``type``) is "default", "linear", "dynamic", "yarn", "llama3", "longrope" or "proportional"; the others say by
        how much. ``rope_theta`` in it takes the place of `base`; ``partial_rotary_factor`` is the share of features
        that turn, where there is no `rotary_dim`.
    sequence_length : int, optional
        The length that is to be read now; "dynamic" and "longrope" depend on it. None: no longer than the model was
        trained for.
    max_position_embeddings : int, optional
        That of the model's configuration, where `scaling` needs it.
    rotary_dim : int, optional
        The features that turn, an even number; the default is all of them.

    Returns
    -------
    inverse_frequencies : (rotary_dim / 2,) ndarray of float64
    attention_factor : float
        What cos and sin are multiplied by: 1 but for "yarn" and "longrope".

    Raises
    ------
    TypeError
        If a number is not one, or `scaling` is no mapping.
    ValueError
        If the rope type is unknown, a key is missing or unknown, or a number is out of range.

    See Also
    --------
    rotary_tables, rotary_embedding, attnpy.reference.rotary_frequencies

    Notes
    -----
    "linear" divides all frequencies by the factor. "dynamic" enlarges the base once the sequence is longer than
    max_position_embeddings (so cached keys that were turned before do not fit those after). "yarn" divides slow
    frequencies, leaves fast ones, and has a ramp between them. "llama3" does so by wavelength. "longrope" divides each
    by a number of its own, one set for short and one for long sequences. "proportional" turns the first part of
    the features with the frequencies of all, the rest not at all (frequency 0). Everything is computed in float64;
    Hugging Face does so in float32.

    References
    ----------
    J. Su et al., "RoFormer", 2021, arXiv:2104.09864; B. Peng et al., "YaRN", 2023, arXiv:2309.00071; Y. Ding et al.,
    "LongRoPE", 2024, arXiv:2402.13753; "The Llama 3 herd of models", 2024, arXiv:2407.21783; Hugging Face
    transformers, modeling_rope_utils.py.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.rotary_frequencies(8)
    (array([1.   , 0.1  , 0.01 , 0.001]), 1.0)
    >>> attnpy.rotary_frequencies(8, scaling={"rope_type": "linear", "factor": 4.0})
    (array([0.25   , 0.025  , 0.0025 , 0.00025]), 1.0)
    """
    head_dim = _size("head_dim", head_dim)
    keys = _checked(scaling)
    kind = keys.get("rope_type", keys.get("type", "default"))
    base = _positive("scaling['rope_theta']", keys["rope_theta"]) if "rope_theta" in keys else _positive("base", base)
    longest = None if max_position_embeddings is None else _size("max_position_embeddings", max_position_embeddings, 1)
    length = None if sequence_length is None else _size("sequence_length", sequence_length)
    dim = _rotary_dim(head_dim, rotary_dim, keys.get("partial_rotary_factor"), kind)
    known = {
        "linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope,
    }  # fmt: skip
    if kind == "proportional":
        return _proportional(head_dim, dim, base, keys)
    plain = base ** -(np.arange(0, dim, 2) / max(dim, 1))
    return known[kind](plain, dim, base, keys, length, longest) if kind in known else (plain, 1.0)


def _checked(scaling):
    """Its keys without those that are None; all of them are known, and none is missing."""
    if scaling is None:
        return {}
    try:
        keys = {name: x for name, x in dict(scaling).items() if x is not None}
    except (TypeError, ValueError):
        raise TypeError(f"scaling is {type(scaling).__name__!r}; it must be a mapping, such as rope_scaling") from None
    kind = keys.get("rope_type", keys.get("type", "default"))
    if kind not in _KEYS:
        raise ValueError(f"scaling has the rope_type {kind!r}; known are {', '.join(map(repr, _KEYS))}")
    every = {*_ALWAYS, *(key for needed, others in _KEYS.values() for key in (*needed, *others))}
    for name in keys:
        if name not in every:
            raise ValueError(f"scaling has the key {name!r}, which changes rotary embeddings in a way unknown here")
    for name in _KEYS[kind][0]:
        if name not in keys:
            raise ValueError(f"scaling lacks {name!r}, which the rope_type {kind!r} needs")
    return keys


def _size(name, value, least=0):
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it must be an integer") from None
    if value < least:
        raise ValueError(f"{name} is {value}; it must be {least} or more")
    return value


def _positive(name, value):
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; it must be a number") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    return value


def _number(keys, name, otherwise=None):
    return _positive(f"scaling[{name!r}]", keys[name]) if name in keys else otherwise


def _rotary_dim(head_dim, rotary_dim, share, kind):
    """The features that turn."""
    if rotary_dim is None:
        if share is None:
            rotary_dim, name = head_dim, "head_dim"
        else:
            share, name = _positive("scaling['partial_rotary_factor']", share), "scaling['partial_rotary_factor']"
            rotary_dim = int(share * head_dim // 2) * 2 if kind == "proportional" else int(head_dim * share)
    else:
        rotary_dim, name = _size("rotary_dim", rotary_dim), "rotary_dim"
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(f"{name} makes {rotary_dim} features turn; it must be an even number in 0 … {head_dim}")
    return rotary_dim


def _original_length(keys, longest):
    """The length that the model was trained on."""
    if "original_max_position_embeddings" in keys:
        return _number(keys, "original_max_position_embeddings")
    if longest is None:
        raise ValueError("scaling lacks 'original_max_position_embeddings': pass it, or max_position_embeddings")
    return float(longest)


def _stretch(keys, longest, original):
    """The factor; or how much longer the model may read than it was trained on."""
    if "factor" in keys:
        return _number(keys, "factor")
    if longest is None:
        raise ValueError("scaling lacks 'factor': pass it, or max_position_embeddings")
    return longest / original


def _linear(plain, dim, base, keys, length, longest):
    return plain / _number(keys, "factor"), 1.0


def _dynamic(plain, dim, base, keys, length, longest):
    if longest is None:
        raise ValueError("max_position_embeddings is missing, which the rope_type 'dynamic' needs")
    factor, longer = _number(keys, "factor"), max(longest if length is None else length, longest) / longest
    if dim <= 2:
        return plain, 1.0  # base^0
    base *= (factor * longer - (factor - 1)) ** (dim / (dim - 2))
    return base ** -(np.arange(0, dim, 2) / dim), 1.0


def _yarn(plain, dim, base, keys, length, longest):
    original = _original_length(keys, longest)
    factor = _stretch(keys, longest, original)

    def attention(scale, share=1.0):
        return 0.1 * share * math.log(scale) + 1.0 if scale > 1 else 1.0

    attention_factor = _number(keys, "attention_factor")
    if attention_factor is None:
        attention_factor = attention(factor)
        if keys.get("mscale") and keys.get("mscale_all_dim"):
            attention_factor = attention(factor, _number(keys, "mscale"))
            attention_factor /= attention(factor, _number(keys, "mscale_all_dim"))

    def pair_that_turns(times):
        """The (fractional) pair that turns so many times over the original length."""
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base)) if base != 1 else 0.0

    low = pair_that_turns(_number(keys, "beta_fast") or 32)
    high = pair_that_turns(_number(keys, "beta_slow") or 1)
    if keys.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 * (low == high)
    divided = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return plain / factor * divided + plain * (1 - divided), attention_factor


def _llama3(plain, dim, base, keys, length, longest):
    original, factor = _original_length(keys, longest), _number(keys, "factor")
    low, high = _number(keys, "low_freq_factor"), _number(keys, "high_freq_factor")
    if low == high:
        raise ValueError("scaling has the same low_freq_factor and high_freq_factor; they must differ")
    turns = original * plain / (2 * math.pi)  # over the original length
    kept = (turns - low) / (high - low)
    between = (1 - kept) * plain / factor + kept * plain
    return np.where(turns < low, plain / factor, np.where(turns > high, plain, between)), 1.0


def _longrope(plain, dim, base, keys, length, longest):
    original = _original_length(keys, longest)
    factor = _stretch(keys, longest, original)
    attention_factor = _number(keys, "attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    name = "long_factor" if length is not None and length > original else "short_factor"
    each = np.asarray(keys[name], np.float64)
    if each.shape != plain.shape:
        raise ValueError(f"scaling[{name!r}] has shape {each.shape}; it must have {plain.shape}, one for each pair")
    return plain / each, attention_factor


def _proportional(head_dim, dim, base, keys):
    """The first dim / 2 of head_dim / 2 pairs turn, with the frequencies that they have among all."""
    frequencies = np.zeros(head_dim // 2)
    frequencies[: dim // 2] = base ** -(np.arange(0, dim, 2) / max(head_dim, 1))
    return frequencies / _number(keys, "factor", 1.0), 1.0
