"""The example of a long document: its text and vectors, its layer beside the reference, what it prints and draws."""

import re

import matplotlib
import numpy as np
import pytest
from example import EXAMPLES, imported

import attnpy
from attnpy import reference

matplotlib.use("Agg")

TEXT = EXAMPLES / "data" / "paradise_lost.txt"


@pytest.fixture(scope="module")
def script():
    return imported("long_document")


@pytest.fixture(scope="module")
def words(script):
    return script.spelt(TEXT.read_text(encoding="utf-8"))[:700]


@pytest.fixture(scope="module")
def layer(script, words):
    return script.Layer(np.random.default_rng(0), script.embed(words, 0))


def test_the_text(script):
    raw = TEXT.read_bytes()
    assert raw.isascii() and not set(b"\r\t$*0123456789") & set(raw)
    words = script.spelt(raw.decode())
    assert " ".join(words[:11]) == "Paradise Lost Book I Of Man's first disobedience and the fruit"
    assert " ".join(words[-7:]) == "slow Through Eden took their solitary way"
    assert [words[n + 1] for n in range(len(words) - 1) if words[n] == "Book"][-3:] == ["X", "XI", "XII"]
    readme = (TEXT.parent / "README.md").read_text(encoding="utf-8")
    assert (
        f"{len(raw):,} characters of ASCII, {len(set(raw))} different" in readme and f"{len(words):,} words" in readme
    )


def test_vectors_of_words(script, monkeypatch):
    """Words are alike that are spelt alike, whatever their case; places are alike that are near each other."""
    names = ["fruit", "Fruit", "fruits", "serpent"] + ["so"] * 2000
    here = script.embed(names, 0)
    assert here.dtype == np.float32
    monkeypatch.setattr(script, "NEARNESS", 0.0)
    x = script.embed(names, 0)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(x[0], x[1])
    assert x[0] @ x[2] > 0.5 and abs(x[0] @ x[3]) < 0.2
    place = here - x
    np.testing.assert_allclose(np.linalg.norm(place, axis=1), 0.5, rtol=1e-5)
    near = place @ place[1000]
    assert near[1000] > near[1001] > near[1010] > near[1900]
    np.testing.assert_allclose(near[1000 + 1 :][:900], near[1000 - 1 :: -1][:900], atol=1e-5)


def bound(*operands):
    """Of the difference from exact attention: scores of D products, and shares, in float32; scores change shares by a
    factor each."""
    largest, seen = (np.abs(np.concatenate(x).astype(np.float64)) for x in zip(*operands))
    score = (seen**2).sum(-1).max() / np.sqrt(seen.shape[-1])
    eps = np.finfo(np.float32).eps
    return 2 * eps * (seen.shape[-1] * score + len(operands)) * largest.max()


def test_the_layer_is_that_of_the_reference(script, layer):
    tokens = np.arange(script.GLOBAL)
    output = layer.attend(tokens)
    pair, of_global = (layer.seen, layer.value), (layer.global_seen, layer.global_value)
    operands = (a.astype(np.float64) for a in (pair[0], *pair, of_global[0], *of_global))
    exact = reference.longformer_attention(*operands, window=script.WINDOW, global_tokens=tokens)
    apart = np.abs(output - exact)
    most = bound((pair[1], pair[0]), (of_global[1], of_global[0]))
    assert apart.max() <= most < 1e-3
    rows = np.array([0, 5, 15, 16, 300, 699])
    np.testing.assert_allclose(layer.error(output, rows), apart[:, rows].max(), rtol=1e-6)
    output[3, 300, 7] += 0.5
    assert layer.error(output, rows) > 0.49 > layer.error(output, rows[:-2])


def test_the_result_is_normalized(script, layer):
    result = layer.finish(layer.attend(np.arange(script.GLOBAL)))
    np.testing.assert_allclose(result.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(result.std(1), 1, rtol=1e-5)


def test_where_words_look(script, layer, words):
    """A global word sees all, another one its window and the global words; both rather their like."""
    mask = attnpy.BlockMask.longformer(len(words), script.WINDOW, np.arange(script.GLOBAL))
    for at in (10, 400):
        weights = layer.look(at, mask)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
        seen = np.abs(np.arange(len(words)) - at) <= script.WINDOW
        seen[: script.GLOBAL] = True
        np.testing.assert_array_equal(weights > 0, seen if at == 400 else True)
        assert weights.argmax() == at
        like = np.array([word.lower() == words[at].lower() for word in words])
        assert weights[like & (weights > 0)].min() > np.median(weights[weights > 0])


def test_what_the_script_prints_and_draws(script, tmp_path, capsys):
    picture = tmp_path / "new" / "views.png"
    script.main(["--length", "3000", "--word", "heaven", "--picture", str(picture)])
    printed = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    at = np.arange(3000)
    visible = (np.abs(at - at[:, None]) <= 256) | (np.minimum(at, at[:, None]) < 16)
    assert re.search(rf"^mask .* {100 * visible.mean():.2g} % of 3,000² scores$", printed, re.M)
    assert "the dense scores would take 0.3 GB" in printed
    apart = float(re.search(r"^checked .*at most (\S+) apart$", printed, re.M)[1])
    assert 0 < apart < 1e-5
    assert len(re.findall(r"^looked +'[Hh]eaven', word .* local, Book I: …(?=.*[Hh]eaven)", printed, re.M)) == 2


@pytest.mark.parametrize(
    ("options", "message"), [(["--length", "16"], "more than 16"), (["--length", "40", "--word", "robot"], "'robot'")]
)
def test_what_does_not_fit_is_said_in_one_line(script, options, message, capsys):
    with pytest.raises(SystemExit, match=message):
        script.main(options)
