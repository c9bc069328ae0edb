"""One row per public function: how to make its inputs, what hides elements, what its results must be, what it refuses.

The laws of laws.py run over these rows. To add a function, add a row.
"""

import inspect
from typing import NamedTuple

import bounds
import bounds_layers_linear
import bounds_multi_head
import bounds_positions_relative
import bounds_positions_rotary
import bounds_positions_tables
import bounds_positions_vectors
import bounds_varlen
import cases_masks
import masks
import numerics
import numpy as np
import oracle
import refusals
import refusals_cache
import refusals_masks
import refusals_positions_vectors
import refusals_softmax
import refusals_varlen
from calls import DTYPES, Call, Row, all_of, named, with_holes
from cases_backward import gradient_of
from cases_cache import (
    CACHE_OPTIONS,
    CACHED_HEAVY,
    CACHED_SHAPES,
    PAGED_HEAVY,
    PAGED_OPTIONS,
    PAGED_SHAPES,
    cached,
    paged,
)
from cases_layers import LAYERS
from cases_layers_linear import LINEAR
from cases_layers_loss import LOSS
from cases_merge import DROPOUT_SHAPES, MERGE_SHAPES, dropout, merge, merge_backward
from cases_multi_head import MULTI_HEAD
from cases_positions_relative import POSITIONS_RELATIVE
from cases_positions_rotary import POSITIONS_ROTARY
from cases_positions_tables import POSITIONS_TABLES
from cases_positions_vectors import vectors_row
from cases_rotary import rotary, rotary_positions
from cases_softmax import softmax_backward, softmax_row
from cases_varlen import varlen_backward_row, varlen_row

import attnpy

BOUNDS = (
    bounds, bounds_varlen, bounds_positions_relative, bounds_positions_rotary, bounds_positions_tables,
    bounds_positions_vectors, bounds_layers_linear, bounds_multi_head,
)  # fmt: skip


def check(call, got, note="", ratchet=True):
    """The accuracy rule, for all results of a call."""
    room = next(room for room in BOUNDS if hasattr(room, call.function))
    expected = getattr(room, call.function)(oracle.spelt_out(call.arguments))
    assert len(got) == len(expected), f"{call.function} {call.label}: {len(got)} results, wanted {len(expected)}"
    for result, what in zip(got, expected, strict=True):
        numerics.assert_accurate(call.function, result, what, f"{call.label} {note}".strip(), ratchet)


# --- attention


class Size(NamedTuple):
    """Batch axes, query heads, key/value heads, queries, keys, head sizes of key and value."""

    batch: tuple
    H: int
    G: int
    L: int
    S: int
    E: int
    D: int

    def __str__(self):
        return f"{'x'.join(map(str, self.batch)) or '-'}/H{self.H}G{self.G}L{self.L}S{self.S}E{self.E}D{self.D}"


# Dimensions differ from one another, so that no mix-up goes unseen; 63 … 65 and 127 … 129 lie about the blocks of 64,
# 1031 crosses the split at 1024.
ATTENTION_SHAPES = [
    Size((), 1, 1, 1, 1, 1, 1),
    Size((2, 3), 10, 5, 7, 11, 13, 17),
    Size((3,), 2, 2, 63, 64, 8, 5),
    Size((), 3, 1, 64, 65, 7, 16),
    Size((2,), 2, 1, 65, 63, 16, 19),
    Size((), 2, 2, 129, 127, 31, 33),
    Size((), 1, 1, 127, 128, 64, 65),
    Size((2,), 6, 2, 1, 131, 23, 29),  # decoding
    Size((), 8, 1, 1, 1031, 32, 7),  # decoding, eight heads a group, two parts
    Size((), 3, 1, 1, 2053, 11, 24),
    Size((3,), 4, 2, 2, 67, 64, 64),
    Size((), 12, 2, 5, 1031, 9, 6),  # (position, head) rows in parts
    Size((), 2, 1, 67, 1031, 5, 3),
    Size((0,), 2, 1, 3, 5, 7, 2),
    Size((2,), 0, 0, 3, 5, 7, 2),
    Size((2,), 2, 1, 0, 5, 7, 3),
    Size((2,), 2, 1, 3, 0, 7, 5),
    Size((2,), 2, 1, 3, 5, 0, 7),
    Size((2,), 2, 1, 3, 5, 7, 0),
]
ATTENTION_HEAVY = [
    (Size((2,), 4, 2, 257, 257, 64, 64), "causal"),
    (Size((), 2, 2, 193, 331, 33, 17), "together"),
    (Size((), 2, 1, 1, 9001, 32, 32), "plain"),
    (Size((), 8, 1, 5, 3001, 16, 16), "sinks"),
    (Size((), 4, 2, 257, 331, 32, 32), "blocks"),
]
ATTENTION_OPTIONS = (
    "plain", "causal", "offset", "window", "window_causal", "mask", "key_mask", "float_mask", "blocks", "bias",
    "softcap", "alibi", "sinks", "lengths", "scale", "broadcast", "together", "rotary", "rotary_positions",
)  # fmt: skip
RELATIVE_OPTIONS = ("relative", "relative_rows", "relative_holes", "relative_alibi")


def _lengths(rng, most, batch):
    """Some of 0 … most, per batch element."""
    return rng.integers(0, most + 1, batch)


def attention_options(option, size, rng, real):
    """The keyword arguments of one option."""
    batch, H, _, L, S, E, _ = size
    given = {"scale": 0.5} if E == 0 else {}
    if option in ("causal", "window_causal", "together"):
        given["is_causal"] = True
    if option == "offset":
        given |= {"is_causal": True, "causal_offset": rng.integers(-3, S + 1, batch)}
    if option in ("window", "window_causal", "together"):
        given["window_size"] = (min(S, 70), 2)
    if option in ("mask", "together"):
        mask = rng.random((H, L, S)) < 0.7
        mask[:, : L // 3, S // 2 :] = False  # whole blocks
        mask[:, :1] = False  # whole rows
        given["attn_mask"] = mask
    if option == "blocks":
        given["attn_mask"] = attnpy.BlockMask.from_dense(masks.of_tiles(rng, (H,), L, S))
    if option == "key_mask":
        given["attn_mask"] = rng.random((*batch, 1, 1, S)) < 0.6
    if option == "float_mask":
        given["attn_mask"] = with_holes(rng, rng.normal(size=(L, S)).astype(real))
    if option in ("bias", "together"):
        given["bias"] = with_holes(rng, 2 * rng.normal(size=(*batch, 1, L, S)).astype(real), 0.05)
    if option in ("softcap", "together"):
        given["softcap"] = 1.5
    if option in ("alibi", "together"):
        given["alibi_slopes"] = (rng.random(H) / 4).astype(real)
    if option in RELATIVE_OPTIONS:
        given |= relative_options(option, size, rng, real)
    if option in ("sinks", "together"):
        given["sinks"] = rng.normal(size=(*batch, H)).astype(real)
    if option in ("lengths", "together"):
        given |= {"query_lengths": _lengths(rng, L, batch), "kv_lengths": _lengths(rng, S, batch)}
    if option == "scale":
        given["scale"] = -1.7
    if option == "rotary":
        given |= rotary(L, S, E, real)
    if option == "rotary_positions":
        given |= rotary_positions(rng, batch, L, S, E, real)
    if option == "dropout":
        given |= {"dropout_p": 0.3, "rng": attnpy.DropoutKey(12345)}
    if option == "rows":
        given["rows"] = np.array([-1, 0, L // 2, 0]) if L else np.empty(0, int)
    return given


def relative_options(option, size, rng, real):
    """A table for each head, K beyond most distances or short; or one for each query; with hidden distances; besides
    ALiBi and the causal rule, per batch element.
    """
    batch, H, _, L, S, *_ = size
    if option == "relative":
        return {"relative_bias": rng.normal(size=(H, 1, 2 * S + 3)).astype(real)}
    if option == "relative_rows":
        return {"relative_bias": rng.normal(size=(*batch, H, L, 13)).astype(real)}
    if option == "relative_holes":
        return {
            "relative_bias": with_holes(rng, rng.normal(size=(1, 41)).astype(real)),
            "window_size": (min(S, 70), 9),
        }
    table = rng.normal(size=(*batch, H, 1, 2 * min(S, 90) + 1)).astype(real)
    return {"relative_bias": table, "alibi_slopes": (rng.random(H) / 4).astype(real), "is_causal": True}


def _attention(function, names):
    def make(size, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *map(ord, f"{size}{option}")])
        batch, H, G, L, S, E, D = size
        stored = DTYPES[dtype]
        real = np.float64 if dtype == "float64" else np.float32
        one = (1,) * len(batch)
        shapes = {"query": (*batch, H, L, E), "key": (*batch, G, S, E), "value": (*batch, G, S, D)}
        if option == "broadcast":
            shapes |= {"key": (*batch[1:], G, S, E), "value": (*one, G, S, D)}
        arguments = {name: rng.normal(size=shapes[name]).astype(stored) for name in names}
        if function == "scaled_dot_product_attention":
            arguments["return_lse"] = True
        arguments |= attention_options(option, size, rng, real)
        return Call(function, arguments, named(size, dtype, option, seed), attention_hidden(arguments))

    return make


# Tangents that are missing, that broadcast, and of another dtype than their operand.
TANGENT_OPTIONS = ("dropout", "query_alone", "key_alone", "value_alone", "few_tangents", "float64_tangents")


def _jvp(size, dtype, option="plain", seed=0):
    """The forward's call with a tangent of every operand that can have one."""
    name = "scaled_dot_product_attention_jvp"
    arguments = _attention(name, ("query", "key", "value"))(size, dtype, option, seed).arguments
    rng = np.random.default_rng([seed, *map(ord, f"{size}{option}tangents")])
    real = np.float64 if dtype == "float64" or option == "float64_tangents" else np.float32
    for operand in ("query", "key", "value", "bias", "sinks", "relative_bias"):
        if operand in arguments:
            x = arguments[operand]
            shape = x.shape[-2:] if option == "few_tangents" else x.shape
            kind = x.dtype if option != "float64_tangents" else real
            arguments[f"{operand}_tangent"] = rng.normal(size=shape).astype(kind)
    if option == "few_tangents":
        arguments["value_tangent"] = arguments["value_tangent"][..., :1]
    if option.endswith("_alone"):
        arguments |= {f"{x}_tangent": None for x in ("query", "key", "value") if not option.startswith(x)}
    hidden = attention_hidden(arguments)
    for operand in ("query", "key", "value"):
        x = arguments[f"{operand}_tangent"]
        if operand in hidden and x is not None:
            hidden[f"{operand}_tangent"] = all_of(hidden[operand], x.shape)
    if "bias" in arguments and hidden:
        hidden["bias_tangent"] = all_of(~oracle.visible_keys(arguments), arguments["bias"].shape)
    return Call(name, arguments | {"return_lse": True}, named(size, dtype, option, seed), hidden)


def attention_hidden(arguments):
    """Places that no query row sees, rows that see nothing, and mask places that something else hides."""
    _, H, G, L, S, no_heads = oracle.sizes(**arguments)
    if no_heads:
        return {}
    visible = oracle.visible_keys(arguments)
    rows = np.zeros(L, bool)
    chosen = arguments.get("rows")
    rows[slice(None) if chosen is None else np.asarray(chosen, int)] = True
    visible = visible & rows[:, None]
    by_group = visible.reshape(*visible.shape[:-3], G, H // G if G else 0, L, S).any((-3, -2))
    hidden = {}
    for name, seen in (("query", visible.any(-1)), ("key", by_group), ("value", by_group)):
        if name in arguments:
            x = arguments[name]
            hidden[name] = np.broadcast_to(all_of(~seen, x.shape[:-1])[..., None], x.shape)
    for name in oracle.ADDITIVE:
        mask = oracle.spelt_out(arguments).get(name)
        if mask is not None and mask.dtype != bool:
            others = oracle.visible_keys({k: v for k, v in arguments.items() if k != name}) & rows[:, None]
            hidden[name] = all_of(~others, mask.shape)
    for name in ("relative_bias", "relative_bias_tangent"):
        if arguments.get(name) is not None:
            others = visible
            if name == "relative_bias":
                others = oracle.visible_keys({k: v for k, v in arguments.items() if k != name}) & rows[:, None]
            hidden[name] = ~oracle.used_entries(np.shape(arguments[name]), others, arguments)
    return hidden


# --- gradients of attention

GRADIENT_SHAPES = [
    ATTENTION_SHAPES[0],
    Size((2, 3), 4, 2, 5, 7, 6, 3),
    *(size for size in ATTENTION_SHAPES[2:] if size.S < 1000 and size.E * size.D < 1000),
    Size((), 2, 2, 129, 127, 12, 10),
    Size((), 4, 2, 5, 131, 9, 6),
    Size((), 2, 1, 67, 331, 5, 3),
]
GRADIENT_HEAVY = [
    (Size((2,), 4, 2, 257, 257, 64, 64), "causal"),
    (Size((), 2, 2, 193, 331, 33, 17), "together"),
    (Size((), 1, 1, 1025, 513, 16, 16), "plain"),
    (Size((3,), 2, 1, 129, 200, 8, 8), "broadcast"),
    (Size((2,), 2, 1, 257, 200, 8, 8), "blocks"),
    *((Size((3,), 4, 2, 200, 500, 8, 8), option) for option in RELATIVE_OPTIONS),
]


def attention_row(function, operands, options, refused, heavy=ATTENTION_HEAVY):
    make = _attention(function, operands)
    heavy = [*heavy, (ATTENTION_HEAVY[0][0], "relative"), (ATTENTION_HEAVY[1][0], "relative_rows")]
    options = ATTENTION_OPTIONS + RELATIVE_OPTIONS + options
    return Row(make, ATTENTION_SHAPES, options, heavy=heavy, batched=True, refused=refused)


def gradient_row(function, options, refused):
    forward, values = function.removesuffix("_backward"), ("value",) * (function[0] == "s")
    make = gradient_of(function, _attention(forward, ("query", "key", *values)))
    options = ATTENTION_OPTIONS + RELATIVE_OPTIONS + options
    return Row(make, GRADIENT_SHAPES, options, heavy=GRADIENT_HEAVY, batched=True, refused=refused)


def vectors(function):
    shapes = GRADIENT_SHAPES if function.endswith("_backward") else ATTENTION_SHAPES
    return vectors_row(function, shapes, attention_options, attention_hidden)


CASES = {
    "scaled_dot_product_attention": attention_row(
        "scaled_dot_product_attention", ("query", "key", "value"), ("dropout",), refusals.FORWARD,
        [*ATTENTION_HEAVY, (ATTENTION_HEAVY[0][0], "dropout")],
    ),
    "scaled_dot_product_attention_jvp": Row(
        _jvp, ATTENTION_SHAPES, ATTENTION_OPTIONS + RELATIVE_OPTIONS + TANGENT_OPTIONS, batched=True,
        refused=refusals.JVP,
        heavy=[*ATTENTION_HEAVY, (ATTENTION_HEAVY[0][0], "dropout")],
    ),
    "attention_weights": attention_row("attention_weights", ("query", "key"), ("rows",), refusals.WEIGHTS),
    "attention_received": attention_row("attention_received", ("query", "key"), (), refusals.RECEIVED),
    "scaled_dot_product_attention_backward": gradient_row(
        "scaled_dot_product_attention_backward", ("dropout",), refusals.BACKWARD
    ),
    "attention_weights_backward": gradient_row("attention_weights_backward", ("rows",), refusals.WEIGHTS_BACKWARD),
    "AttentionGradients": Row(refused=refusals.GRADIENTS),
    "varlen_attention": varlen_row(attention_hidden, refusals_varlen.VARLEN),
    "varlen_attention_backward": varlen_backward_row(attention_hidden, refusals_varlen.VARLEN_BACKWARD),
    "paged_attention": Row(
        paged(attention_hidden), PAGED_SHAPES, PAGED_OPTIONS, heavy=PAGED_HEAVY, batched=True,
        refused=refusals_cache.PAGED,
    ),
    "attention_with_cache": Row(
        cached, CACHED_SHAPES, CACHE_OPTIONS, heavy=CACHED_HEAVY, refused=refusals_cache.WITH_CACHE
    ),
    "merge_attention": Row(
        merge, MERGE_SHAPES, ("plain", "empty_parts"), heavy=[((5, 6, 257, 64), "plain")], refused=refusals.MERGE
    ),
    "merge_attention_backward": Row(
        merge_backward, MERGE_SHAPES, ("plain", "empty_parts", "grad_lse", "broadcast"),
        heavy=[((5, 6, 257, 64), "plain"), ((5, 6, 257, 64), "broadcast")], refused=refusals.MERGE_BACKWARD,
    ),
    "dropout_mask": Row(
        dropout, DROPOUT_SHAPES, ("plain", "most"), (*DTYPES, "bool"), [((2, 3, 129, 257), "plain")],
        outs=False, refused=refusals.DROPOUT_MASK,
    ),
    "relative_attention_shaw": vectors("relative_attention_shaw"),
    "relative_attention_xl": vectors("relative_attention_xl"),
    "relative_attention_shaw_backward": vectors("relative_attention_shaw_backward"),
    "relative_attention_xl_backward": vectors("relative_attention_xl_backward"),
    "RelativeAttentionGradients": Row(refused=refusals_positions_vectors.GRADIENTS),
    "softmax": softmax_row("softmax", refusals_softmax.SOFTMAX),
    "log_softmax": softmax_row("log_softmax", refusals_softmax.SOFTMAX),
    "logsumexp": softmax_row("logsumexp", refusals_softmax.LOGSUMEXP),
    "softmax_backward": softmax_row("softmax_backward", refusals_softmax.SOFTMAX_BACKWARD, softmax_backward),
    "log_softmax_backward": softmax_row("log_softmax_backward", refusals_softmax.SOFTMAX_BACKWARD, softmax_backward),
    "logsumexp_backward": softmax_row("logsumexp_backward", refusals_softmax.LOGSUMEXP_BACKWARD, softmax_backward),
    "longformer_attention": Row(
        cases_masks.longformer, cases_masks.LONGFORMER_SHAPES, cases_masks.LONGFORMER_OPTIONS,
        heavy=[(cases_masks.Size((2,), 4, 2, 900, 32, 32), "sets")], refused=refusals_masks.LONGFORMER_ATTENTION,
        keeps_flags=False,
    ),
    **LAYERS,
    **LOSS,
    # Functions without arrays, or that make no arrays: only what they refuse.
    "KVCache": Row(refused=refusals_cache.CACHE),
    "BlockMask": Row(refused=refusals_masks.BLOCK_MASK),
    "BlockMask.from_dense": Row(refused=refusals_masks.FROM_DENSE),
    "BlockMask.from_function": Row(refused=refusals_masks.FROM_FUNCTION),
    "BlockMask.from_blocks": Row(refused=refusals_masks.FROM_BLOCKS),
    "BlockMask.causal": Row(refused=refusals_masks.CAUSAL),
    "BlockMask.sliding_window": Row(refused=refusals_masks.SLIDING_WINDOW),
    "BlockMask.global_tokens": Row(refused=refusals_masks.GLOBAL_TOKENS),
    "BlockMask.longformer": Row(refused=refusals_masks.LONGFORMER),
    "BlockMask.bigbird": Row(refused=refusals_masks.BIGBIRD),
    "BlockMask.documents": Row(refused=refusals_masks.DOCUMENTS),
    "BlockMask.prefix": Row(refused=refusals_masks.PREFIX),
    "BlockMask.lengths": Row(refused=refusals_masks.LENGTHS),
    "DropoutKey": Row(refused=refusals.DROPOUT_KEY_TYPE),
    "dropout_key": Row(refused=refusals.DROPOUT_KEY),
    **POSITIONS_RELATIVE,
    **POSITIONS_ROTARY,
    **LINEAR,
    **POSITIONS_TABLES,
    **MULTI_HEAD,
    "get_num_threads": Row(refused=refusals.NO_ARGUMENTS),
    "set_num_threads": Row(refused=refusals.NUM_THREADS),
    "num_threads": Row(refused=refusals.ENTERED),
    "show_config": Row(refused=refusals.SHOW_CONFIG),
}  # fmt: skip

ARRAY_FUNCTIONS = [name for name, row in CASES.items() if row.make]
WITH_OUT = [name for name in ARRAY_FUNCTIONS if CASES[name].outs]


def fits(name, shape, option):
    """Whether a function has this option on this shape."""
    row = CASES[name]
    if option == "two_axes" or option == "first_axis":
        return len(shape) > 1
    if option == "rows":
        return row.make is not None and shape.L > 0
    return True


def cases(name, dtypes=None, every=1, start=0):
    """All (shape, dtype, option) of a row, or every so many of them."""
    row = CASES[name]
    chosen = [
        (shape, dtype, option)
        for shape in row.shapes
        for option in row.options
        for dtype in dtypes or row.dtypes
        if fits(name, shape, option)
    ]
    return chosen[start::every]


def small_cases(name, dtype=None):
    """One case for each option of a row, on its second shape, all dtypes in turn (or the one given)."""
    row = CASES[name]
    for n, option in enumerate(row.options):
        shape = row.shapes[1] if fits(name, row.shapes[1], option) else row.shapes[2]
        yield shape, dtype or list(row.dtypes)[n % len(row.dtypes)], option


def parameters(name):
    """The names of a function's parameters."""
    return list(inspect.signature(getattr(attnpy, name)).parameters)
