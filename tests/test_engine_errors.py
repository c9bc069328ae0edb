"""What the engine refuses, word for word, and the one thing it warns of."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from small import FLOATING, KEY, QUERY, VALUE, normal, operands, sdpa

import attnpy
from attnpy import _core

# --- error texts


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"attn_mask": np.ones((8, 10), bool)},
            ValueError,
            "attn_mask has shape (8, 10); it must broadcast to (2, 4, 8, 12): its last axis must be 1 or 12",
        ),
        (
            {"bias": np.ones((7, 12))},
            ValueError,
            "bias has shape (7, 12); it must broadcast to (2, 4, 8, 12): its axis -2 must be 1 or 8",
        ),
        (
            {"attn_mask": np.ones((2, 12), bool)},
            ValueError,
            "attn_mask has shape (2, 12); it must broadcast to (2, 4, 8, 12): its axis -2 must be 1 or 8; "
            "for one row per batch element pass mask[:, None, None, :], or kv_lengths",
        ),
        (
            {"attn_mask": np.ones((2, 8, 12), bool)},
            ValueError,
            "attn_mask has shape (2, 8, 12); it must broadcast to (2, 4, 8, 12): its axis -3 must be 1 or 4; "
            "for one mask per batch element pass mask[:, None]",
        ),
        (
            {"attn_mask": np.ones((1, 1, 1, 8, 12), bool)},
            ValueError,
            "attn_mask has shape (1, 1, 1, 8, 12); it must broadcast to (2, 4, 8, 12), which has fewer axes",
        ),
        (
            {"attn_mask": np.ones((8, 12), int)},
            TypeError,
            "attn_mask has dtype int64; it must be bool (True = attend) or floating (added): use .astype(bool)",
        ),
        (
            {"key": np.ones((2, 2, 12, 6), np.float32)},
            ValueError,
            "key has shape (2, 2, 12, 6); its last axis must be 5, as in query",
        ),
        (
            {"value": np.ones((2, 2, 11, 3), np.float32)},
            ValueError,
            "value has shape (2, 2, 11, 3); its axis -2 must be 12, as in key",
        ),
        (
            {"value": np.ones((2, 4, 12, 3), np.float32)},
            ValueError,
            "value has shape (2, 4, 12, 3); its axis -3 must be 2, as in key",
        ),
        (
            {"value": np.ones((12, 3), np.float32)},
            ValueError,
            "value has shape (12, 3); it must have 2 heads on axis -3, as key has",
        ),
        (
            {"key": np.ones((2, 3, 12, 5)), "value": np.ones((2, 3, 12, 3))},
            ValueError,
            "query has 4 heads and key 3; those of key must divide those of query",
        ),
        (
            {"key": np.ones((3, 2, 12, 5), np.float32)},
            ValueError,
            "key has batch axes (3,), which do not broadcast with (2,), those of the operands before it",
        ),
        ({"query": np.ones(5, np.float32)}, ValueError, "query has shape (5,); it must have at least 2 axes"),
        (
            {"query": np.ones((4, 8, 5), complex)},
            TypeError,
            "query has dtype complex128; it must be float16, bfloat16, float32, float64, integer or bool",
        ),
        ({"kv_lengths": [12, 13]}, ValueError, "kv_lengths holds 13; each must be in 0 ... 12"),
        (
            {"kv_lengths": [12, 7], "is_causal": True},
            ValueError,
            "kv_lengths holds 7, fewer than the 8 query rows, which leaves their positions open: "
            "pass query_lengths for a padded batch, or causal_offset",
        ),
        (
            {"sinks": np.ones(3)},
            ValueError,
            "sinks has shape (3,); it must broadcast to (2, 4): its last axis must be 4",
        ),
        (
            {"out": np.ones((2, 4, 8, 4), np.float32)},
            ValueError,
            "out has shape (2, 4, 8, 4); it must have the result's, (2, 4, 8, 3)",
        ),
        ({"out": np.ones((2, 4, 8, 3))}, TypeError, "out has dtype float64; it must have the result's, float32"),
        ({"out": np.ones((2, 4, 8, 3), ">f4")}, TypeError, "out has dtype >f4; it must have the result's, float32"),
        ({"out": (None, None)}, ValueError, "out has 2 entries; it must have 1"),
        (
            {"return_lse": True, "out": np.ones((2, 4, 8, 3), np.float32)},
            TypeError,
            "out must be a tuple, one array or None for each result",
        ),
    ],
)
def test_error_texts(change, error, text):
    query, key, value = operands(L=8, S=12)
    with pytest.raises(error) as raised:
        sdpa(**{"query": query, "key": key, "value": value, **change})
    assert str(raised.value) == text


def test_hints_only_for_masks_that_look_like_a_batch():
    for shape in ((3, 7), (2, 8), (3, 6, 7), (2, 5, 7)):
        with pytest.raises(ValueError, match=r"must be 1 or \d+$"):
            sdpa(QUERY, KEY, VALUE, np.ones(shape, bool))


def test_kv_lengths_are_enough_where_positions_do_not_matter():
    sdpa(QUERY, KEY, VALUE, kv_lengths=[7, 2])
    sdpa(QUERY, KEY, VALUE, kv_lengths=[7, 6], is_causal=True)
    sdpa(QUERY, KEY, VALUE, kv_lengths=[7, 2], window_size=(-1, -1))
    sdpa(QUERY, KEY, VALUE, kv_lengths=[7, 2], is_causal=True, causal_offset=0)
    sdpa(QUERY, KEY, VALUE, kv_lengths=[7, 2], is_causal=True, query_lengths=[6, 2])
    for positional in (
        {"is_causal": True},
        {"window_size": (0, -1)},
        {"window_size": (-1, 0)},
        {"alibi_slopes": np.ones(4)},
    ):
        with pytest.raises(ValueError, match="pass query_lengths for a padded batch, or causal_offset"):
            sdpa(QUERY, KEY, VALUE, kv_lengths=[7, 2], **positional)


def test_core_counts_its_arguments():
    for name, wanted in {
        "scaled_dot_product_attention": 24,
        "attention_weights": 21,
        "attention_received": 20,
        "merge_attention": 3,
        "merge_attention_backward": 7,
        "dropout_mask": 4,
        "softmax": 4,
        "log_softmax": 4,
        "logsumexp": 5,
        "softmax_backward": 5,
        "log_softmax_backward": 5,
        "logsumexp_backward": 7,
    }.items():
        for n in {0, wanted - 1, wanted + 1}:
            with pytest.raises(
                TypeError, match=rf"^_core\.{name} takes {wanted} arguments, all by position; {n} came$"
            ):
                getattr(_core, name)(*[None] * n)


# --- the warning


@pytest.mark.parametrize(
    "dtype", [*FLOATING, *(np.dtype(t).newbyteorder() for t in (np.float16, np.float32, np.float64))], ids=str
)
@pytest.mark.parametrize("shape", [(6, 7), (2, 1, 1, 7), ()])
def test_a_mask_of_zeros_and_ones_warns(dtype, shape):
    mask = np.zeros(shape, dtype)
    mask.reshape(-1)[-1] = -0.0
    sdpa(QUERY, KEY, VALUE, mask)
    mask.reshape(-1)[mask.size // 2] = 1
    text = (
        r"^attn_mask is floating and holds only 0 and 1: it is added to the scores; to hide keys use \.astype\(bool\)$"
    )
    with pytest.warns(UserWarning, match=text) as caught:
        sdpa(QUERY, KEY, VALUE, mask)
    assert len(caught) == 1 and caught[0].filename == __file__
    for function in (attnpy.attention_weights, attnpy.attention_received):
        with pytest.warns(UserWarning, match=text) as caught:
            function(QUERY, KEY, mask)
        assert caught[0].filename == __file__
    sdpa(QUERY, KEY, VALUE, bias=mask)
    for other in (0.5, -1, -np.inf, 2, np.nan):
        mixed = np.ones((6, 7), dtype)
        mixed[3, 4] = other
        sdpa(QUERY, KEY, VALUE, mixed)


def test_the_scan_sees_every_element_once():
    mask = np.ones((2, 4, 6, 7), np.float32)
    for view in (
        mask[:, ::-1],
        mask[..., ::2].repeat(2, -1)[..., :7],
        np.broadcast_to(np.float32(1), mask.shape),
        mask.T.copy().T,
    ):
        with pytest.warns(UserWarning, match="attn_mask"):
            sdpa(QUERY, KEY, VALUE, view)
    for index in np.ndindex(2, 4, 6, 7):
        mask[index] = 3
        sdpa(QUERY, KEY, VALUE, mask)
        mask[index] = 1
    enormous = np.broadcast_to(np.zeros((1, 1), np.float32), (2**15, 2**15))
    query = np.broadcast_to(normal(1, 1), (2**15, 1))
    with pytest.raises(ValueError, match="scale"):  # refused after the scan of 2**30 zeros, which touches one
        sdpa(query[:, :0], query[:, :0], query, enormous)


def test_a_warning_made_an_error():
    mask = np.ones((6, 7), np.float32)
    before = sys.getrefcount(mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="attn_mask"):
            sdpa(QUERY, KEY, VALUE, mask)
    assert sys.getrefcount(mask) == before


# --- the environment


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ATTNPY_DEBUG_BLOCKS", "3", "it must be a number of keys, 4 ... 64"),
        ("ATTNPY_DEBUG_BLOCKS", "65", "it must be a number of keys, 4 ... 64"),
        ("ATTNPY_DEBUG_BLOCKS", "8x", "it must be a number of keys, 4 ... 64"),
        ("ATTNPY_ISA", "sse9", "is not a level: it must be baseline, avx2 or avx512, and this CPU's level is "),
    ],
)
def test_an_environment_that_asks_for_what_cannot_be(name, value, text):
    package = Path(attnpy.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", "import attnpy._core"],
        env={**os.environ, "PYTHONPATH": str(package), name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {name}={value}") and text in last, done.stderr
