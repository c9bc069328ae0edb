"""attnpy.plot: the labels can be read at any length, and what is asked for is what is drawn."""

import subprocess
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import attnpy.plot

WORDS = "the robot internationalization ate it ##ing because $x^2$ [SEP]".split()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def weights(*shape):
    w = np.random.default_rng(0).random(shape)
    return w / w.sum(-1, keepdims=True)


def tokens(count):
    return [WORDS[i % len(WORDS)] for i in range(count)]


def boxes(labels, renderer):
    return [label.get_window_extent(renderer) for label in labels if label.get_text()]


@pytest.mark.parametrize("length", [1, 2, 10, 33, 128, 1000])
@pytest.mark.parametrize("heads", [1, 6])
def test_labels_do_not_overlap_and_stay_in_the_figure(length, heads):
    ax = attnpy.plot.heatmap(weights(heads, length, length), tokens(length))
    figure = np.atleast_1d(ax).flat[0].figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for cell in np.atleast_1d(ax).flat:
        if not cell.get_visible():
            continue
        rows = boxes(cell.get_yticklabels(), renderer)
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(rows))
        columns = cell.get_xticklabels()
        angle = columns[0].get_rotation()
        room = np.diff([label.get_transform().transform(label.get_position())[0] for label in columns])
        if angle == 0:
            extents = boxes(columns, renderer)
            assert all(left.x1 <= right.x0 for left, right in pairwise(extents))
        else:
            letter = columns[0].get_fontsize() * figure.dpi / 72
            assert np.all(room * np.sin(np.deg2rad(angle)) >= letter)
        for box in rows + boxes(columns, renderer):
            assert 0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0 and box.y1 <= figure.bbox.y1


def test_one_head_of_several_as_one_picture():
    w = weights(3, 4, 5)
    ax = attnpy.plot.heatmap(w, tokens(4), tokens(5), head=-1, titles="last")
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), w[2])
    assert ax.get_title() == "last"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["the", "robot", "international…", "ate"]


def test_grid_shares_one_colour_scale():
    w = weights(5, 4, 4)
    axes = attnpy.plot.heatmap(w, max_columns=3)
    assert axes.shape == (2, 3)
    assert [cell.get_visible() for cell in axes.flat] == [True] * 5 + [False]
    assert [cell.get_title() for cell in axes.flat[:5]] == [f"head {h}" for h in range(5)]
    assert {image.get_clim() for cell in axes.flat[:5] for image in cell.get_images()} == {(0.0, w.max())}


def test_numbers_in_the_cells():
    w = weights(3, 3)
    assert [text.get_text() for text in attnpy.plot.heatmap(w).texts] == [f"{x:.2f}" for x in w.flat]
    assert not attnpy.plot.heatmap(w, annotate=False).texts
    assert not attnpy.plot.heatmap(weights(80, 80)).texts
    assert len(attnpy.plot.heatmap(weights(2, 3, 3), annotate=True)[0, 1].texts) == 9


def test_leading_axes_of_length_one_and_half_precision():
    w = weights(1, 1, 2, 3, 3).astype(np.float16)
    assert attnpy.plot.heatmap(w).shape == (1, 2)


def test_draws_into_given_axes():
    _, axes = plt.subplots(2, 2)
    drawn = attnpy.plot.heatmap(weights(3, 4, 4), ax=axes)
    assert drawn is axes and len(plt.get_fignums()) == 1
    assert attnpy.plot.heatmap(weights(4, 4), ax=axes[1, 1]) is axes[1, 1]


def test_nan_and_constant_weights_are_drawn():
    attnpy.plot.heatmap([[np.nan, np.nan]]).figure.canvas.draw()
    attnpy.plot.heatmap(np.zeros((2, 2))).figure.canvas.draw()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(weights=np.ones(3)), ValueError, r"weights has shape \(3,\)"),
        (dict(weights=np.ones((2, 1, 3, 3))), ValueError, "choose one batch element"),
        (dict(weights=np.ones((0, 3))), ValueError, "not empty"),
        (dict(weights=np.ones((3, 3)), query_tokens=["a"]), ValueError, "query_tokens has 1 entries; weights wants 3"),
        (dict(weights=np.ones((3, 4)), key_tokens=["a"]), ValueError, "key_tokens has 1 entries; weights wants 4"),
        (dict(weights=np.ones((2, 3, 3)), titles=["a"]), ValueError, "titles has 1 entries"),
        (dict(weights=np.ones((2, 3, 3)), head=2), IndexError, "head is 2; weights has 2 heads"),
        (dict(weights=np.ones((2, 3, 3)), max_columns=0), ValueError, "max_columns is 0"),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        attnpy.plot.heatmap(**arguments)
    assert not plt.get_fignums()


def test_missing_matplotlib_is_said_at_the_first_call():
    code = """
import sys
sys.modules["matplotlib"] = None
import attnpy.plot
try:
    attnpy.plot.heatmap([[1.0]])
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "attnpy.plot needs matplotlib: pip install 'attnpy[plot]'"


# --- positions


@pytest.mark.parametrize("scheme", ["sinusoidal", "rotary", "t5", "alibi"])
def test_positions_are_drawn(scheme):
    """In a figure of their own and in given Axes, at the least sizes too."""
    attnpy.plot.positions(scheme).figure.canvas.draw()
    _, axes = plt.subplots(1, 2)
    assert attnpy.plot.positions(scheme, length=2, dim=2, num_heads=1, ax=axes[1], cmap="magma") is axes[1]
    axes[1].figure.canvas.draw()
    assert len(plt.get_fignums()) == 2


def test_pictures_of_positions_show_the_numbers():
    ax = attnpy.plot.positions("sinusoidal", length=9, dim=6, base=50.0)
    wanted = attnpy.sinusoidal_encoding(9, 6, base=50.0, layout="concatenated")
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), wanted)
    slopes = [line.get_ydata()[-1] / line.get_xdata()[-1] for line in attnpy.plot.positions("alibi", num_heads=6).lines]
    np.testing.assert_allclose(slopes, attnpy.alibi_slopes(6))
    both, causal = attnpy.plot.positions("t5", length=20, num_buckets=8, max_distance=16).lines
    assert causal.get_xdata().max() == 0
    distance = both.get_xdata()
    np.testing.assert_array_equal(both.get_ydata(), attnpy.relative_position_bucket(distance, True, 8, 16))
    ax = attnpy.plot.positions("rotary", length=5, dim=4)
    ends = np.array([line.get_xydata()[-1] for line in ax.lines if len(line.get_xdata()) == 2])
    angle = np.outer([1.0, 0.01], np.arange(5))
    wanted = np.stack([np.cos(angle), np.sin(angle)], -1) * [[[1]], [[2]]]
    np.testing.assert_allclose(ends, wanted.reshape(-1, 2), atol=1e-12)


def test_unknown_schemes_of_positions_are_refused():
    with pytest.raises(ValueError, match="scheme is 'shaw'; it must be one of 'sinusoidal', 'rotary', 't5', 'alibi'"):
        attnpy.plot.positions("shaw")
    with pytest.raises(ValueError, match="length is 1, dim 128; both must be at least 2"):
        attnpy.plot.positions(length=1)
    assert not plt.get_fignums()
