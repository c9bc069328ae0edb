"""attn_mask=BlockMask in every function of attention: the numbers of the dense mask, beside every other option."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import cases
import laws
import numpy as np
import oracle
import pytest
from calls import Call
from inputs import OPTIONS, backward_of, check_call, operands, options_of
from masks import of_tiles, seeded

import attnpy
from attnpy import BlockMask, reference

OTHERS = [name for name in OPTIONS if "mask" not in name]
# (H, G, L, S): decoding, (position, head) rows, tiles and one less or more, several key tiles a row block
SIZES = [
    (8, 2, 1, 200),
    (4, 1, 1, 1100),
    (6, 2, 5, 130),
    (4, 2, 63, 65),
    (2, 2, 64, 64),
    (2, 1, 129, 193),
    (3, 3, 65, 300),
]
LEADS = [(), ("H",), ("B", 1), ("B", "H"), (1, "H")]


def mask_of(rng, lead, H, L, S):
    lead = tuple({"H": H, "B": 2}.get(axis, axis) for axis in lead)
    return BlockMask.from_dense(of_tiles(rng, lead, L, S))


def every_function(size, lead, names, dtype=np.float32):
    """All functions with a BlockMask and these options, held to the accuracy rule of the dense mask.

    Not to the worst ratios on record: what is asked is whether masks are the same, on options of any size.
    """

    def check_all(name, given):
        check_call(name, given, f"{size} {lead} {names}", ratchet=False)

    H, G, L, S = size
    rng = seeded(size, lead, names)
    query, key, value = operands(rng, dtype, H=H, G=G, L=L, S=S, E=8, D=5)
    options = options_of(names, rng, (2,), H, L, S)
    if options is None:
        return
    options["attn_mask"] = mask_of(rng, lead, H, L, S)
    forward = {"query": query, "key": key, "value": value, "return_lse": True, **options}
    check_all("scaled_dot_product_attention", forward)
    check_all("scaled_dot_product_attention_backward", backward_of(query, key, value, random=rng, **options))
    tangents = {
        f"{name}_tangent": rng.standard_normal(x.shape).astype(dtype)
        for name, x in (("query", query), ("key", key), ("value", value))
    }
    check_all("scaled_dot_product_attention_jvp", {**forward, **tangents})
    options = {name: x for name, x in options.items() if name not in ("dropout_p", "rng")}
    check_all("attention_received", {"query": query, "key": key, **options})
    rows = rng.integers(-L, L, 3)
    check_all("attention_weights", {"query": query, "key": key, **options, "rows": rows})
    grad_weights = rng.standard_normal((2, H, L, S)).astype(dtype)
    needs = ("query", "key", *(name for name in ("bias", "sinks", "alibi_slopes") if name in options))
    given = {"grad_weights": grad_weights, "query": query, "key": key, **options, "needs": needs}
    check_all("attention_weights_backward", given)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("option", [(), *((name,) for name in OTHERS)])
def test_beside_every_option(size, option):
    lead = LEADS[(SIZES.index(size) + len(option and option[0])) % len(LEADS)]
    every_function(size, lead, option)


PAIRS_OF_OPTIONS = [*itertools.combinations(OTHERS, 2)]


@pytest.mark.parametrize("part", range(6))
def test_beside_pairs_of_options(part):
    for n, names in enumerate(PAIRS_OF_OPTIONS[part::6]):
        every_function(SIZES[n % len(SIZES)], LEADS[n % 5], names)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_leading_axes_broadcast(lead, dtype):
    for size in SIZES[1:6:2]:
        every_function(size, lead, ("causal",), np.dtype(dtype))


@pytest.mark.parametrize("blocks", ["5", "64"])
def test_small_blocks(blocks):
    """In a process of its own, where few keys make a block."""
    code = "import test_masks_attention as t\n"
    code += "for n, size in enumerate(t.SIZES): t.every_function(size, t.LEADS[n % 5], ('sinks', 'causal'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
        env={**os.environ, "ATTNPY_DEBUG_BLOCKS": blocks, "PYTHONPATH": str(Path(attnpy.__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


PATTERNS = {
    "longformer": lambda: BlockMask.longformer(300, 40, [0, 7, 299]),
    "bigbird": lambda: BlockMask.bigbird(300, block_size=20, rng=np.random.default_rng(0)),
    "documents": lambda: BlockMask.documents(np.arange(300) // 70),
    "dilated": lambda: BlockMask.sliding_window(300, 300, 10, 3, dilation=9),
    "prefix": lambda: BlockMask.prefix(300, [3, 200]),
    "padding": lambda: BlockMask.lengths(300, 300, [0, 131]),
    "nothing": lambda: ~BlockMask.sliding_window(300, 300, -1, -1),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_patterns(pattern, dtype):
    rng = seeded(pattern)
    query, key, value = operands(rng, dtype, H=2, G=1, L=300, S=300, E=16)
    mask = PATTERNS[pattern]()
    given = {"query": query, "key": key, "value": value, "attn_mask": mask, "return_lse": True}
    output, lse = check_call("scaled_dot_product_attention", given, pattern, ratchet=False)
    given = backward_of(query, key, value, random=rng, attn_mask=mask)
    check_call("scaled_dot_product_attention_backward", given, pattern, ratchet=False)
    seen = np.broadcast_to(mask.to_dense(), (2, 2, 300, 300)).any(-1)
    assert (output[~seen] == 0).all() and (lse[~seen] == -np.inf).all() and np.isfinite(lse[seen]).all()
    weights = attnpy.attention_weights(query, key, mask)
    assert ((weights > 0) <= mask.to_dense()).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lead", [(), ("H",), ("B", 1)])
def test_hidden_keys_and_queries_may_hold_anything(size, lead):
    """The rows of a tile that is hidden, and keys that no row sees, in every function."""
    H, G, L, S = size
    rng = seeded("poison", size, lead)
    query, key, value = operands(rng, np.float32, H=H, G=G, L=L, S=S, E=8, D=5)
    mask = mask_of(rng, lead, H, L, S) & BlockMask.from_dense(np.broadcast_to(rng.random(S) < 0.8, (L, S)))
    given = {"query": query, "key": key, "value": value, "attn_mask": mask, "return_lse": True}
    hidden = cases.attention_hidden(given)
    assert hidden["key"].any()
    laws.poison(Call("scaled_dot_product_attention", given, f"{size}", hidden))
    of_scores = {name: given[name] for name in ("query", "key", "attn_mask")}
    two = {name: hidden[name] for name in ("query", "key")}
    for function in ("attention_weights", "attention_received"):
        laws.poison(Call(function, of_scores, f"{size}", two))
    tangents = {f"{name}_tangent": given[name][..., ::-1] for name in ("query", "key", "value")}
    of_tangents = {f"{name}_tangent": place for name, place in hidden.items()}
    laws.poison(Call("scaled_dot_product_attention_jvp", {**given, **tangents}, f"{size}", {**hidden, **of_tangents}))
    output, lse = attnpy.scaled_dot_product_attention(**given)
    rows = {"grad_output": rng.standard_normal(output.shape).astype(np.float32), "output": output, "lse": lse}
    given = {**given, **rows, "needs": ("query", "key", "value")}
    del given["return_lse"]
    blind = ~oracle.visible_keys(given).any(-1)
    hidden |= {name: np.broadcast_to(blind[..., None] if x.ndim > 3 else blind, x.shape) for name, x in rows.items()}
    laws.poison(Call("scaled_dot_product_attention_backward", given, f"{size}", hidden))


def test_one_row_of_a_longer_mask():
    """Decoding step t with mask[t : t + 1] is row t."""
    rng = seeded("steps")
    query, key, value = operands(rng, np.float64, H=4, G=2, L=150, S=150)
    mask = BlockMask.longformer(150, 20, [0, 70]) & BlockMask.causal(150, 150)
    whole = attnpy.scaled_dot_product_attention(query, key, value, mask)
    for t in (0, 1, 63, 64, 100, 149):
        step = attnpy.scaled_dot_product_attention(query[..., t : t + 1, :], key, value, mask[t : t + 1])
        np.testing.assert_allclose(step, whole[..., t : t + 1, :], rtol=0, atol=1e-13)


def test_a_mask_does_not_follow_lengths_or_offsets():
    rng = seeded("offsets")
    query, key, value = operands(rng, np.float64, L=70, S=90)
    mask = BlockMask.causal(70, 90, 5)
    given = {"kv_lengths": [80, 33], "query_lengths": [70, 20], "is_causal": True, "causal_offset": [3, -2]}
    got = attnpy.scaled_dot_product_attention(query, key, value, mask, **given)
    wanted = reference.scaled_dot_product_attention(query, key, value, mask.to_dense(), **given)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(wanted, reference.scaled_dot_product_attention(query, key, value, mask, **given))


def test_without_a_head_axis():
    query, key, value = operands(seeded("one head"), np.float64, batch=(), H=1, L=70, S=90)
    mask = BlockMask.causal(70, 90)
    wanted = attnpy.scaled_dot_product_attention(query, key, value, mask)[0]
    for given in (mask, mask[None], mask[None, None]):
        got = attnpy.scaled_dot_product_attention(query[0], key[0], value[0], given)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("shape", [(2, 2, 0, 5), (2, 2, 5, 0), (2, 0, 5, 5), (0, 2, 5, 5), (1, 1, 0, 0)])
def test_empty_axes(shape):
    batch, H, L, S = shape
    query, key, value = operands(seeded("empty"), np.float32, batch=(batch,), H=H, L=L, S=S)
    for mask in (BlockMask.causal(L, S), BlockMask.from_dense(np.ones(shape, bool))):
        output, lse = attnpy.scaled_dot_product_attention(query, key, value, mask, return_lse=True)
        assert output.shape == (batch, H, L, 8) and not output.any() and (lse == -np.inf).all()
        assert attnpy.attention_weights(query, key, mask).shape == shape
        assert attnpy.attention_received(query, key, mask).shape == (batch, H, S)


def test_shapes_that_do_not_fit():
    query, key, value = operands(seeded("shapes"), np.float32, H=4, L=70, S=90)
    for mask, said in ((BlockMask.causal(90, 70), "70 and 90"), (BlockMask.causal(1, 90), "70 and 90"),
                       (BlockMask.causal(70, 1), "70 and 90"), (BlockMask.lengths(70, 90, [1, 2, 3]), "must be 1 or 2"),
                       (BlockMask.lengths(70, 90, [1, 2])[:, 0], "must be 1 or 4"),
                       (BlockMask.causal(70, 90)[None, None, None][0:0], "")):  # fmt: skip
        for function in (attnpy.attention_weights, attnpy.attention_received):
            with pytest.raises(ValueError, match=f"attn_mask is a BlockMask of shape .*{said}"):
                function(query, key, mask)
        with pytest.raises(ValueError, match=f"attn_mask is a BlockMask of shape .*{said}"):
            attnpy.scaled_dot_product_attention(query, key, value, mask)


def test_a_mask_has_no_gradient():
    query, key, value = operands(seeded("gradient"), np.float32, L=7, S=9)
    mask = BlockMask.causal(7, 9)
    output, lse = attnpy.scaled_dot_product_attention(query, key, value, mask, return_lse=True)
    for module in (attnpy, reference):
        with pytest.raises(ValueError, match="attn_mask"):
            module.scaled_dot_product_attention_backward(
                output, query, key, value, output, lse, attn_mask=mask, needs=("attn_mask",)
            )


GOOD = BlockMask.causal(130, 200)._core_arrays


def broken(place, array):
    return tuple(array if n == place else x for n, x in enumerate(GOOD))


def changed(place, index, value):
    array = GOOD[place].copy()
    array[index] = value
    return broken(place, array)


BROKEN = {
    "shape of another length": broken(0, (200,)),
    "negative shape": broken(0, (-1, 130, 200)),
    "shape of something else": broken(0, (130, 200.0)),
    "huge leading axes": broken(0, (2**40, 2**40, 130, 200)),
    "indptr that begins late": changed(1, (0, 0), 1),
    "indptr that decreases": changed(1, (0, 1), 9),
    "indptr past the end": changed(1, (0, -1), 10**6),
    "indptr of int32": broken(1, GOOD[1].astype(np.int32)),
    "indptr of one axis": broken(1, GOOD[1][0]),
    "indptr too short": broken(1, GOOD[1][:, :-1].copy()),
    "a column too far": changed(2, -1, 4),
    "a negative column": changed(2, 0, -1),
    "columns that descend": changed(2, slice(0, 2), [1, 0]),
    "a column twice": changed(2, slice(0, 2), [1, 1]),
    "a pattern that is not there": changed(3, 0, 10**6),
    "a negative pattern": changed(3, 0, -2),
    "a pattern too few": broken(3, GOOD[3][:-1].copy()),
    "bits of half the width": broken(4, GOOD[4][:, :32].copy()),
    "bits of another type": broken(4, GOOD[4].astype(np.int64)),
    "strided indices": broken(2, np.repeat(GOOD[2], 2)[::2]),
    "swapped bytes": broken(4, GOOD[4].astype(GOOD[4].dtype.newbyteorder())),
    "lists": broken(2, GOOD[2].tolist()),
    "too few": GOOD[:4],
    "no tuple": list(GOOD),
    "nothing": None,
}


@pytest.mark.parametrize("how", BROKEN)
def test_arrays_are_not_trusted(how):
    class Mask:
        _core_arrays = BROKEN[how]

    query, key, value = operands(seeded("broken"), np.float32, L=130, S=200)
    for _ in range(3):
        with pytest.raises((ValueError, TypeError, MemoryError)):
            attnpy.scaled_dot_product_attention(query, key, value, Mask())


def test_arrays_that_can_be_written_to_are_taken_as_they_are_now():
    class Mask:
        _core_arrays = tuple(x.copy() if isinstance(x, np.ndarray) else x for x in GOOD)

    query, key, value = operands(seeded("writable"), np.float32, L=130, S=200)
    wanted = attnpy.scaled_dot_product_attention(query, key, value, BlockMask.causal(130, 200))
    np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(query, key, value, Mask()), wanted)
