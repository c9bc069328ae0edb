"""The example that trains: its gradients and dtypes, its determinism, its sampling, what it prints and draws."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from autograd import value_and_grad
from autograd.extend import defvjp, primitive
from example import EXAMPLES, imported
from threadpoolctl import threadpool_limits

import attnpy

TEXT = EXAMPLES / "data" / "alice.txt"


@pytest.fixture(scope="module")
def script():
    return imported("train_tiny_gpt")


@pytest.fixture
def gpt(script):
    return script.tiny_gpt


def small(gpt, dtype, seed=3):
    """A shape, weights and a batch. The weights are not the initial ones, of which some are 0 and others hide that."""
    shape = gpt.Shape(alphabet=5, heads=2, channels=8, length=6)
    rng = np.random.default_rng(seed)
    weights = gpt.initial_weights(shape, rng, dtype)
    weights = {name: (w + 0.3 * rng.standard_normal(w.shape)).astype(dtype) for name, w in weights.items()}
    ids, targets = rng.integers(0, shape.alphabet, (2, 4, shape.length))
    return shape, weights, ids, targets


def test_gradients_are_central_differences(gpt):
    """Along three directions in each array. The error of (f(w + hu) - f(w - hu)) / 2h falls with h^2: a third of what
    it changes by from 2h to h is left. Rounding adds eps |f| / h."""
    shape, weights, ids, targets = small(gpt, np.float64)
    loss, gradients = value_and_grad(gpt.loss)(weights, shape, ids, targets)
    rng, h = np.random.default_rng(4), 1e-4

    def difference(name, direction, h):
        sides = [gpt.loss(weights | {name: weights[name] + s * h * direction}, shape, ids, targets) for s in (1, -1)]
        return (sides[0] - sides[1]) / (2 * h)

    for name, gradient in gradients.items():
        assert gradient.shape == weights[name].shape and gradient.dtype == np.float64
        for _ in range(3):
            direction = rng.standard_normal(gradient.shape)
            near, far = difference(name, direction, h), difference(name, direction, 2 * h)
            tolerance = abs(far - near) + 100 * np.finfo(float).eps * loss / h
            wanted = np.sum(gradient * direction)
            assert tolerance < 1e-3 * np.linalg.norm(gradient), f"{name}: the differences say nothing"
            assert abs(near - wanted) <= tolerance, f"{name}: {wanted} is not {near}"


def test_float32_stays_float32_on_the_way_back(script, gpt, monkeypatch):
    """The gradients of the weights are cast to their dtype at the end; what flows before that is seen here."""
    seen = []

    @primitive
    def probe(x):
        seen.append(x.dtype)
        return x

    def probe_vjp(y, x):
        def vjp(dy):
            seen.append(dy.dtype)
            return dy

        return vjp

    defvjp(probe, probe_vjp)

    def probed(function):
        return lambda *given: probe(function(*given))

    for name in ("gelu", "normalize", "attention", "feed_forward", "forward"):
        monkeypatch.setattr(gpt, name, probed(getattr(gpt, name)))
    shape, weights, ids, targets = small(gpt, np.float32)
    loss, gradients = value_and_grad(gpt.loss)(weights, shape, ids, targets)
    assert len(seen) == 2 * (4 * shape.layers + shape.layers + 2), "each layer: gelu, two norms, two parts"
    assert {loss.dtype, *seen, *(g.dtype for g in gradients.values())} == {np.dtype(np.float32)}


def test_the_model_is_causal(gpt):
    shape, weights, ids, _ = small(gpt, np.float64)
    before = gpt.forward(weights, shape, ids).reshape(*ids.shape, -1)
    changed = ids.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % shape.alphabet
    after = gpt.forward(weights, shape, changed).reshape(*ids.shape, -1)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert (after[:, 4:] != before[:, 4:]).any(-1).all()


def test_the_loss_is_the_mean_negative_log_probability(gpt):
    shape, weights, ids, targets = small(gpt, np.float64)
    logits = gpt.forward(weights, shape, ids)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = -np.log([row[target] for row, target in zip(probabilities, targets.ravel())]).mean()
    np.testing.assert_allclose(gpt.loss(weights, shape, ids, targets), wanted, rtol=1e-13)


def test_normalize_and_gelu(gpt):
    x = np.array([[1.0, 3.0, 5.0, 7.0]])
    np.testing.assert_allclose(gpt.normalize(x), np.array([[-3, -1, 1, 3]]) / np.sqrt(5 + gpt.EPSILON), rtol=1e-15)
    np.testing.assert_allclose(gpt.gelu(np.array([-10.0, 0.0, 1.0, 10.0])), [0, 0, 0.8411919906, 10], atol=1e-10)


def test_adamw_by_hand(gpt):
    """The first step is as long as the rate, whatever the gradient's size; matrices also shrink. Then g = 1, -0.5:
    m = (0.9 0.1 - 0.1 0.5) / (1 - 0.81), v = (0.99 0.01 + 0.01 0.25) / (1 - 0.9801)."""
    weights = {"gain": np.array([2.0]), "matrix": np.array([[2.0]])}
    optimizer = gpt.AdamW(weights)
    optimizer.step({"gain": np.array([1.0]), "matrix": np.array([[-1e-3]])}, 0.1)
    np.testing.assert_allclose([weights["gain"][0], weights["matrix"][0, 0]], [1.9, 2 * 0.99 + 0.1], rtol=1e-5)
    optimizer.step({"gain": np.array([-0.5]), "matrix": np.zeros((1, 1))}, 0.1)
    wanted = 1.9 - 0.1 * (0.04 / 0.19) / np.sqrt(0.0124 / 0.0199)
    np.testing.assert_allclose(weights["gain"][0], wanted, rtol=1e-7)


def losses_of_a_slice(script, threads, seed=0, steps=12):
    text = script.Text(TEXT.read_text(encoding="utf-8")[:3000], 32)
    shape = script.tiny_gpt.Shape(alphabet=len(text.alphabet), heads=4, channels=32, length=32)
    weights = script.tiny_gpt.initial_weights(shape, np.random.default_rng(seed))
    with threadpool_limits(1, "blas"), attnpy.num_threads(threads):
        trainer = script.tiny_gpt.Trainer(weights, shape, threads)
        return [trainer.step(*batch, 3e-3) for _, batch in zip(range(steps), text.batches(seed, 4))]


def test_the_loss_falls_and_the_same_seed_gives_the_same_bits(script):
    losses = losses_of_a_slice(script, threads=2)
    assert {loss.dtype for loss in losses} == {np.dtype(np.float32)}
    assert np.mean(losses[-3:]) < losses[0] - 0.5
    for threads in (1, 2, 3):
        assert losses_of_a_slice(script, threads) == losses, f"{threads} threads"
    assert losses_of_a_slice(script, 2, seed=1) != losses


def test_samples(gpt):
    """Cold, the sample is the likeliest character each time, also where the model no longer sees the beginning."""
    shape, weights, ids, _ = small(gpt, np.float32)
    start = list(ids[0])
    cold = gpt.sample(weights, shape, start, 8, np.random.default_rng(0), temperature=1e-4)
    written = start.copy()
    for _ in range(8):
        written.append(int(gpt.forward(weights, shape, np.array([written[-shape.length :]]))[-1].argmax()))
    assert cold == written[len(start) :]
    warm = [gpt.sample(weights, shape, start, 50, np.random.default_rng(seed), temperature=2) for seed in (0, 0, 1)]
    assert warm[0] == warm[1] != warm[2]
    assert set(warm[0]) <= set(range(shape.alphabet)) and len(set(warm[0])) > 1


def test_the_text(script):
    raw = TEXT.read_bytes()
    assert 100_000 < len(raw) < 200_000 and raw.isascii() and b"\r" not in raw and b"\t" not in raw
    text = script.Text(raw.decode(), 128)
    assert text.spell(text.ids[:26]) == "ALICE'S ADVENTURES IN WOND"
    ids, targets = next(text.batches(0, 3))
    assert ids.shape == targets.shape == (3, 128)
    np.testing.assert_array_equal(ids[:, 1:], targets[:, :-1])
    ids, targets = text.held_out_pieces()
    np.testing.assert_array_equal(ids.ravel()[1:], targets.ravel()[:-1])
    assert text.spell(ids[0, :20]) in raw.decode()[-len(raw) // 10 - 1 :]
    readme = (TEXT.parent / "README.md").read_text(encoding="utf-8")
    assert f"{len(raw):,} characters of ASCII, {len(text.alphabet)} different" in readme


def test_the_rate_rises_and_falls(script):
    rates = np.array([script.rate(step, 100, 1.0) for step in range(100)])
    assert rates.argmax() in (9, 10) and rates.max() == 1
    assert (np.diff(rates[:10]) > 0).all() and (np.diff(rates[10:]) < 0).all() and 0.1 < rates[-1] < 0.11


def test_what_the_script_prints_and_draws(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "tiny_gpt_torch", raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    (tmp_path / "text.txt").write_text(TEXT.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    picture = tmp_path / "new" / "curve.png"
    script.main(["--steps", "3", "--batch", "2", "--text", str(tmp_path / "text.txt"), "--picture", str(picture)])
    printed = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^loss +[3-5]\.\d{4} -> [2-5]\.\d{4} ", printed, re.M)
    assert re.search(r"^PyTorch +not compared: .*make train-twin", printed, re.M)
    assert len(printed.partition("\nsample\n")[2]) > 500


@pytest.mark.parametrize("package", ["autograd", "tqdm"])
def test_missing_packages_are_said_in_one_line(package, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('No module named {package}')")
    run = subprocess.run(
        [sys.executable, EXAMPLES / "train_tiny_gpt.py"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(attnpy.__file__).parent.parent}"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 1 and not run.stdout
    assert run.stderr.count("\n") == 1 and "run `make train`" in run.stderr
