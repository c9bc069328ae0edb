"""The inverse frequencies of rotary embeddings, one after another by the formulas of the papers."""

import math

import numpy as np


def rotary_frequencies(
    head_dim, base=10000.0, *, scaling=None, sequence_length=None, max_position_embeddings=None, rotary_dim=None
):
    """w_i = base^(-2i / rotary_dim), stretched as `scaling` says: (...,) -> (rotary_dim / 2,), and what cos and sin are
    multiplied by.
    """
    keys = dict(scaling or {})
    kind = keys.get("rope_type") or keys.get("type") or "default"
    base = keys.get("rope_theta") or base
    share = keys.get("partial_rotary_factor") or 1.0
    dim = int(head_dim * share) if rotary_dim is None else rotary_dim
    if kind == "proportional":  # the first pairs of all, the others stand still
        turn = int(share * head_dim // 2) if rotary_dim is None else rotary_dim // 2
        plain = [base ** (-2 * i / head_dim) / (keys.get("factor") or 1.0) for i in range(turn)]
        return np.array(plain + [0.0] * (head_dim // 2 - turn)), 1.0
    length = sequence_length or 0
    original = keys.get("original_max_position_embeddings") or max_position_embeddings
    factor = keys.get("factor") or (max_position_embeddings / original if kind in ("yarn", "longrope") else None)
    attention_factor = 1.0
    if kind == "dynamic" and length > max_position_embeddings and dim > 2:
        # the lowest frequency reaches at the length what it reached at max_position_embeddings
        base = base * (factor * length / max_position_embeddings - (factor - 1)) ** (dim / (dim - 2))
    if kind == "yarn":
        attention_factor = keys.get("attention_factor") or _yarn_factor(factor, keys)
    if kind == "longrope":
        grown = 1 + math.log(factor) / math.log(original) if factor > 1 else 1.0
        attention_factor = keys.get("attention_factor") or math.sqrt(grown)
    stretched = []
    for i in range(dim // 2):
        w = base ** (-2 * i / dim)
        if kind == "linear":
            w = w / factor
        if kind == "yarn":
            w = w / factor * _yarn_ramp(i, dim, base, original, keys) + w * (
                1 - _yarn_ramp(i, dim, base, original, keys)
            )
        if kind == "llama3":
            turns = original * w / (2 * math.pi)  # over the length trained on
            low, high = keys["low_freq_factor"], keys["high_freq_factor"]
            kept = min(max((turns - low) / (high - low), 0.0), 1.0)
            w = (1 - kept) * w / factor + kept * w
        if kind == "longrope":
            w = w / keys["long_factor" if length > original else "short_factor"][i]
        stretched.append(w)
    return np.array(stretched), attention_factor


def _yarn_factor(factor, keys):
    """0.1 ln factor + 1; or DeepSeek's quotient of two such numbers."""
    if factor <= 1:
        return 1.0
    one, other = keys.get("mscale"), keys.get("mscale_all_dim")
    if one and other:
        return (0.1 * one * math.log(factor) + 1) / (0.1 * other * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def _yarn_ramp(i, dim, base, original, keys):
    """0 for pairs that turn beta_fast times over the original length, 1 for those that turn beta_slow times."""

    def pair(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair(keys.get("beta_fast") or 32), pair(keys.get("beta_slow") or 1)
    if keys.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return min(max((i - low) / (high - low if high != low else 0.001), 0.0), 1.0)
