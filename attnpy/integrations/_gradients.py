"""How each function of attnpy._core is differentiated: what the libraries with gradients have in common.

A rule speaks of ndarrays only. Its functions take the arguments of a call by position, spread out so that no operand
stands in a sequence; a place is an index into them.
"""

import numpy as np

import attnpy

from .._native import core as _core
from ._gradients_layers import (
    CROSS_ENTROPY,
    LINEAR,
    cross_entropy,
    cross_entropy_backward,
    elements,
    embedding,
    embedding_backward,
    gated,
    linear,
    linear_backward,
    norm,
)
from ._gradients_multi_head import MULTI_HEAD, MULTI_HEAD_OPERANDS, multi_head, multi_head_backward
from ._gradients_vectors import SHAW, XL, of_vectors
from ._names import ATTENTION, GRADIENTS, RECEIVED, VARLEN, WEIGHTS
from ._rule import Rule, or_zeros


def _needs(names, places):
    wanted = {names[place] for place in places}
    return tuple([name in wanted for name in GRADIENTS])


def _by_place(names, found):
    return {names.index(name): gradient for name, gradient in zip(GRADIENTS, found) if gradient is not None}


# --- attention


def _attention(arguments):
    output, lse = _core.scaled_dot_product_attention(*arguments[:-2], True, None)
    return ((output, lse), ()) if arguments[-2] else ((output,), (lse,))


def _attention_backward(arguments, needed, gradients, places):
    output, lse = needed
    grad_output, grad_lse = gradients if arguments[-2] else (*gradients, None)
    found = _core.scaled_dot_product_attention_backward(
        or_zeros(grad_output, output), *arguments[:3], output, lse, *arguments[3:-2], grad_lse,
        _needs(ATTENTION, places), None,
    )  # fmt: skip
    return _by_place(ATTENTION, found)


def _attention_jvp(arguments, needed, tangents):
    tangent = {ATTENTION[place]: t for place, t in tangents.items()}
    given = dict(zip(ATTENTION, arguments))
    if "alibi_slopes" in tangent:
        raise NotImplementedError("scaled_dot_product_attention has no forward-mode derivative by alibi_slopes")
    words, with_lse = given.pop("dropout_key"), given.pop("return_lse")
    del given["out"]
    tables = given.pop("rotary_cos"), given.pop("rotary_sin")
    mask, bias = tangent.get("attn_mask"), tangent.get("bias")  # both are added to the scores
    found = attnpy.scaled_dot_product_attention_jvp(
        *(given.pop(name) for name in GRADIENTS[:3]),
        *(tangent.get(name) for name in GRADIENTS[:3]),
        **given,
        rotary=None if tables[0] is None else tables,
        rng=None if words is None else attnpy.DropoutKey(words),
        bias_tangent=mask if bias is None else bias if mask is None else mask + bias,
        sinks_tangent=tangent.get("sinks"),
        relative_bias_tangent=tangent.get("relative_bias"),
        return_lse=with_lse,
    )
    return found[1::2]


def _weights(arguments):
    return (_core.attention_weights(*arguments),), ()


def _weights_backward(arguments, needed, gradients, places):
    found = _core.attention_weights_backward(gradients[0], *arguments[:-1], _needs(WEIGHTS, places), None)
    return _by_place(WEIGHTS, found)


def _received(arguments):
    return (_core.attention_received(*arguments),), ()


def _received_backward(arguments, needed, gradients, places):
    """Every row adds to the sum: its weights have the gradient of the sum."""
    gradient = np.asarray(gradients[0])
    rows = (*gradient.shape[:-1], np.shape(arguments[0])[-2], gradient.shape[-1])
    gradient = np.broadcast_to(gradient[..., None, :], rows)
    found = _core.attention_weights_backward(gradient, *arguments[:-1], None, _needs(RECEIVED, places), None)
    return _by_place(RECEIVED, found)


# --- packed sequences


def _varlen(arguments):
    output, lse = _core.varlen_attention(*arguments[:-2], True, None)
    return ((output, lse), ()) if arguments[-2] else ((output,), (lse,))


def _varlen_backward(arguments, needed, gradients, places):
    output, lse = needed
    grad_output, grad_lse = gradients if arguments[-2] else (*gradients, None)
    found = _core.varlen_attention_backward(
        or_zeros(grad_output, output), *arguments[:3], output, lse, *arguments[3:-2], grad_lse, _needs(VARLEN, places),
        None,
    )  # fmt: skip
    return _by_place(VARLEN, found)


# --- merging: n outputs, n log-sum-exps, out


def _merge_parts(arguments):
    parts = len(arguments) // 2
    return arguments[:parts], arguments[parts:-1]


def _merge(arguments):
    merged = _core.merge_attention(*_merge_parts(arguments), None)
    return merged, ()


def _merge_backward(arguments, needed, gradients, places):
    output, lse = needed
    found = attnpy.merge_attention_backward(
        or_zeros(gradients[0], output), *_merge_parts(arguments), output, lse, grad_lse=gradients[1]
    )
    gradients = [*found[0], *found[1]]
    return {place: gradients[place] for place in places}


# --- softmax: x, axis, where, (keepdims,) out


def _softmax(arguments):
    y = _core.softmax(*arguments)
    return (y,), ()


def _softmax_backward(arguments, needed, gradients, places):
    _, axis, where, _ = arguments
    return {0: attnpy.softmax_backward(gradients[0], needed[0], axis, where=where)}


def _softmax_jvp(arguments, needed, tangents):
    """The Jacobian is symmetric."""
    return tuple(_softmax_backward(arguments, needed, (tangents[0],), (0,)).values())


def _log_softmax(arguments):
    y = _core.log_softmax(*arguments)
    return (y,), ()


def _log_softmax_backward(arguments, needed, gradients, places):
    _, axis, where, _ = arguments
    return {0: attnpy.log_softmax_backward(gradients[0], needed[0], axis, where=where)}


def _logsumexp(arguments):
    y = _core.logsumexp(*arguments)
    return (y,), ()


def _logsumexp_backward(arguments, needed, gradients, places):
    x, axis, where, keepdims, _ = arguments
    return {0: attnpy.logsumexp_backward(gradients[0], x, needed[0], axis, where=where, keepdims=keepdims)}


# --- positions: a table of buckets to the columns of a bias, which is linear


def _t5(arguments):
    return (_core.t5_relative_bias(*arguments),), ()


def _t5_backward(arguments, needed, gradients, places):
    table, buckets, _ = arguments
    return {0: _core.t5_relative_bias_backward(gradients[0], table, buckets, None)}


def _t5_jvp(arguments, needed, tangents):
    return (_core.t5_relative_bias(tangents[0], arguments[1], None),)


# --- rotary embeddings: linear in x, and turned back by the transposed rotation


def _rotary(arguments):
    return (_core.rotary_embedding(*arguments),), ()


def _rotary_backward(arguments, needed, gradients, places):
    *tables, inverse, _ = arguments[1:]
    return {0: _core.rotary_embedding(gradients[0], *tables, not inverse, None)}


def _rotary_jvp(arguments, needed, tangents):
    return (_core.rotary_embedding(tangents[0], *arguments[1:-1], None),)


ROTARY_EMBEDDING = ("x", "cos", "sin", "positions", "interleaved", "rotary_dim", "inverse", "out")


# --- positions: learned tables, all linear


def _add_positions(arguments):
    return (_core.add_positions(*arguments),), ()


def _add_positions_backward(arguments, needed, gradients, places):
    _, table, offset, _ = arguments
    found = {0: gradients[0]} if 0 in places else {}
    if 1 in places:
        found[1] = attnpy.add_positions_backward(gradients[0], table, offset)
    return found


def _add_positions_jvp(arguments, needed, tangents):
    x, table, offset, _ = arguments
    along = tangents.get(0, np.zeros((), x.dtype))
    along = np.broadcast_to(along, x.shape)
    return (attnpy.add_positions(along, tangents[1], offset) if 1 in tangents else along.copy(),)


def _interpolation(name):
    """Whose arguments are the table, sizes, and out."""
    function, backward = getattr(_core, name), getattr(_core, f"{name}_backward")

    def forward(arguments):
        return (function(*arguments),), ()

    def gradient(arguments, needed, gradients, places):
        sizes = arguments[1:-1] if len(arguments) > 3 else (arguments[0].shape[-2],)
        return {0: backward(gradients[0], *sizes, None)}

    def jvp(arguments, needed, tangents):
        return (function(tangents[0], *arguments[1:-1], None),)

    return forward, gradient, jvp


SOFTMAX = ("x", "axis", "where", "out")
RULES = {
    "linear": Rule(
        LINEAR, frozenset({"x", "weight", "bias", "residual"}), linear, linear_backward, needs_results=False
    ),
    "scaled_dot_product_attention": Rule(
        ATTENTION, frozenset(GRADIENTS), _attention, _attention_backward, _attention_jvp
    ),
    "multi_head_attention": Rule(MULTI_HEAD, MULTI_HEAD_OPERANDS, multi_head, multi_head_backward),
    "attention_weights": Rule(WEIGHTS, frozenset(GRADIENTS), _weights, _weights_backward, needs_results=False),
    "attention_received": Rule(RECEIVED, frozenset(GRADIENTS), _received, _received_backward, needs_results=False),
    "varlen_attention": Rule(VARLEN, frozenset(GRADIENTS) & frozenset(VARLEN), _varlen, _varlen_backward),
    "merge_attention": Rule(
        ("outputs", "lses", "out"),
        frozenset({"outputs", "lses"}),
        _merge,
        _merge_backward,
        sequences=2,
    ),
    "relative_attention_shaw": Rule(SHAW, *of_vectors("relative_attention_shaw", SHAW)),
    "relative_attention_xl": Rule(XL, *of_vectors("relative_attention_xl", XL)),
    "t5_relative_bias": Rule(
        ("table", "buckets", "out"), frozenset({"table"}), _t5, _t5_backward, _t5_jvp, needs_results=False
    ),
    "rotary_embedding": Rule(
        ROTARY_EMBEDDING, frozenset({"x"}), _rotary, _rotary_backward, _rotary_jvp, needs_results=False
    ),
    "add_positions": Rule(
        ("x", "table", "offset", "out"),
        frozenset({"x", "table"}),
        _add_positions,
        _add_positions_backward,
        _add_positions_jvp,
        needs_results=False,
    ),
    "interpolate_positions": Rule(
        ("table", "length", "out"), frozenset({"table"}), *_interpolation("interpolate_positions"), needs_results=False
    ),
    "interpolate_positions_2d": Rule(
        ("table", "from_grid", "to_grid", "num_prefix_tokens", "out"),
        frozenset({"table"}),
        *_interpolation("interpolate_positions_2d"),
        needs_results=False,
    ),
    "softmax": Rule(SOFTMAX, frozenset({"x"}), _softmax, _softmax_backward, _softmax_jvp),
    "log_softmax": Rule(SOFTMAX, frozenset({"x"}), _log_softmax, _log_softmax_backward),
    "gelu": elements("gelu"),
    "silu": elements("silu"),
    "relu": elements("relu"),
    "swiglu": gated("swiglu"),
    "geglu": gated("geglu"),
    "embedding": Rule(
        ("indices", "table", "out"), frozenset({"table"}), embedding, embedding_backward, needs_results=False
    ),
    "cross_entropy": Rule(
        CROSS_ENTROPY, frozenset({"logits"}), cross_entropy, cross_entropy_backward, needs_results=False
    ),
    "layer_norm": norm("layer_norm", ("weight", "bias")),
    "rms_norm": norm("rms_norm", ("weight",)),
    "logsumexp": Rule((*SOFTMAX[:-1], "keepdims", "out"), frozenset({"x"}), _logsumexp, _logsumexp_backward),
}
