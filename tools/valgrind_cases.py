"""Every function on small arrays whose sizes miss vectors and blocks; results are looked at: undefined bits show."""

import itertools
import sys

import numpy as np

import attnpy
from attnpy import _core


def look(result):
    """Branches on every element: memcheck reports only undefined values that decide something."""
    for array in result if isinstance(result, tuple) else (result,):
        if array is None:
            continue
        array = np.asarray(array)
        as_bool = array if array.dtype == bool else array.astype(np.float64) > 0
        sum(1 for kept in as_bool.ravel().tolist() if kept)


def attention(rng, dtype, heads, groups, length, keys, size, value_size):
    query = rng.normal(size=(2, heads, length, size)).astype(dtype)
    key = rng.normal(size=(2, groups, keys, size)).astype(dtype)
    value = rng.normal(size=(2, groups, keys, value_size)).astype(dtype)
    mask = rng.random((2, 1, length, keys)) < 0.7
    options = [
        {},
        {"is_causal": True},
        {"is_causal": True, "window_size": (5, 0), "causal_offset": 1},
        {"attn_mask": mask, "softcap": 3.0},
        {"bias": rng.normal(size=(heads, length, keys)).astype(np.float32), "sinks": np.zeros(heads)},
        {"attn_mask": attnpy.BlockMask.from_dense(mask)},
        {"alibi_slopes": np.full(heads, 0.5), "kv_lengths": [keys, keys // 2], "query_lengths": [length, length // 2]},
    ]
    for option in options:
        look(attnpy.scaled_dot_product_attention(query, key, value, **option, return_lse=True))
        gradients(query, key, value, option)
        look(attnpy.attention_weights(query, key, **option, rows=[-1, 0]))
        look(attnpy.attention_received(query, key, **option))
    look(attnpy.scaled_dot_product_attention(query, key, value, dropout_p=0.3, rng=rng))
    swapped = query.swapaxes(-2, -3).copy().swapaxes(-2, -3)
    look(attnpy.scaled_dot_product_attention(swapped[..., ::-1, :], key[..., ::-1, :], value[..., ::2]))


def gradients(query, key, value, option):
    output, lse = attnpy.scaled_dot_product_attention(query, key, value, **option, return_lse=True)
    needs = ["query", "key", *(name for name in ("bias", "sinks", "alibi_slopes") if name in option)]
    saved = (query, key, value, output, lse)
    look(attnpy.scaled_dot_product_attention_backward(output, *saved, **option, needs=[*needs, "value"]))
    weights = attnpy.attention_weights(query, key, **option, rows=[-1, 0])
    look(attnpy.attention_weights_backward(weights, query, key, **option, rows=[-1, 0], needs=needs))
    look(attnpy.scaled_dot_product_attention_jvp(query, key, value, query, key, value, **option))


def packed(rng, dtype):
    query, key, value = rng.normal(size=(3, 40, 2, 9)).astype(dtype)
    ends = [0, 7, 7, 30]
    output, lse = attnpy.varlen_attention(query, key, value, ends, ends, is_causal=True, return_lse=True)
    look((output, lse))
    look(attnpy.varlen_attention_backward(output, query, key, value, output, lse, ends, ends, is_causal=True))


def softmax(rng, dtype):
    for shape in [(1,), (3, 17), (2, 5, 67)]:
        x = rng.normal(size=shape).astype(dtype)
        keep = rng.random(shape) < 0.6
        for function, where in itertools.product((attnpy.softmax, attnpy.log_softmax, attnpy.logsumexp), (None, keep)):
            for array, kept in ((x, where), (x.T, None if where is None else where.T)):
                y = function(array, where=kept)
                look(y)
                if function is attnpy.softmax:
                    look(attnpy.softmax_backward(array, y, where=kept))
                elif function is attnpy.log_softmax:
                    look(attnpy.log_softmax_backward(array, y, where=kept))
                else:
                    look(attnpy.logsumexp_backward(y, array, y, where=kept))


def main(library):
    if not _core.__file__.startswith(library):
        sys.exit(f"valgrind: {_core.__file__} is not the build under {library}")
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64, np.float16):
        softmax(rng, dtype)
        packed(rng, dtype)
        for heads, groups, length, keys in [(2, 2, 7, 19), (4, 2, 1, 70), (2, 1, 65, 66)]:
            attention(rng, dtype, heads, groups, length, keys, size=9, value_size=5)
    lse = rng.normal(size=(2, 3, 7))
    parts = rng.normal(size=(2, 3, 7, 5))
    merged = attnpy.merge_attention(parts, lse)
    look(merged)
    look(attnpy.merge_attention_backward(merged[0], parts, lse, *merged))
    look(attnpy.dropout_mask((2, 3, 5, 11), 0.5, attnpy.dropout_key(rng), dtype=np.float32))


main(sys.argv[1])
