"""The examples that train layers of attnpy.nn: they run, draw, learn, and repeat bit for bit."""

import numpy as np
import pytest
from example import imported


def run(name, tmp_path, *arguments):
    script = imported(name)
    picture = tmp_path / "picture.png"
    result = script.main([*arguments, "--picture", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    return result


def test_digits(tmp_path, capsys):
    share = run("digits_vit", tmp_path, "--steps", "3", "--no-twin")
    assert 0 <= share <= 1 and "360 digits" in capsys.readouterr().out


def test_digits_are_learned():
    script = imported("digits_vit")
    (images, digits), _ = script.images_and_digits(0)
    losses = []
    for _ in range(2):
        trainer = script.Trainer(script.VisionTransformer(0))
        batches = script.batches(images, digits, 0, 64)
        losses.append([trainer.step(*next(batches), 3e-3, np.random.default_rng(1)) for _ in range(50)])
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-5:]) < np.mean(losses[0][:5]) - 0.1


def test_rollout_is_a_distribution_over_patches():
    script = imported("digits_vit")
    shares = script.VisionTransformer(0).rollout(np.ones((8, 8), np.float32))
    assert shares.shape == (4, 4) and (shares > 0).all()
    assert shares.sum() == pytest.approx(1)


def test_transformer(tmp_path, capsys):
    shares = run("train_transformer", tmp_path, "--steps", "2", "--batch", "4")
    assert set(shares) == {"sort digits", "reverse words"}
    assert "it has never seen" in capsys.readouterr().out


def test_transformer_tasks_keep_their_texts_apart():
    script = imported("train_transformer")
    sort, reverse = script.tasks(0)
    assert sort.function("3120") == "0123" and reverse.function("abc") == "cba"
    rng = np.random.default_rng(0)
    for task in (sort, reverse):
        assert not {task.draw(rng) for _ in range(500)} & set(task.held_out)
    sources, lengths, targets = script.encoded([(sort, "31"), (reverse, "abc")])
    assert lengths.tolist() == [3, 4] and targets[0, :4].tolist() == [script.START, 6, 8, script.END]
    assert sources[1, :5].tolist() == [script.REVERSE, 15, 16, 17, script.PADDING]


def test_length_extrapolation(tmp_path, capsys):
    found = run("length_extrapolation", tmp_path, "--steps", "1", "--batch", "2")
    assert list(found) == ["sinusoidal", "learned", "rotary", "ALiBi", "T5"]
    text = capsys.readouterr().out
    for scheme, losses in found.items():
        assert scheme in text and [losses[f].shape for f in (1, 2, 4)] == [(64,), (128,), (256,)]
        assert all(np.isfinite(x).all() for x in losses.values())


def test_schemes_read_the_same_text_alike_at_every_length():
    """Causal schemes with no position beyond the distance: the first characters do not depend on what follows."""
    script = imported("length_extrapolation")
    text = script.book()
    ids, _ = text.held_out_pieces(128)
    for scheme in script.SCHEMES:
        model = script.Model(scheme, len(text.alphabet), 0)
        short, whole = model(ids[:2, :64]), model(ids[:2])
        np.testing.assert_allclose(short, whole[:, :64], rtol=1e-3, atol=1e-4, err_msg=scheme)
