"""Interpolated tables beside torch.nn.functional.interpolate and Hugging Face's ViT; sinusoids beside transformers."""

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")
GRIDS = [((14, 14), (24, 24)), ((7, 5), (3, 9)), ((1, 1), (4, 4)), ((2, 3), (1, 100)), ((16, 16), (16, 16))]
LENGTHS = [(5, 9), (9, 5), (100, 1), (1, 30), (7, 7)]
DTYPES = [(np.float32, 2e-5), (np.float64, 1e-13)]  # torch finds its float32 points in float32: 24 * 2^-24 of a step


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(("before", "after"), GRIDS)
@pytest.mark.parametrize(("dtype", "apart"), DTYPES)
def test_bicubic(before, after, dtype, apart):
    table = normal(2, before[0] * before[1], 7).astype(dtype)
    grid = torch.from_numpy(table).reshape(2, *before, 7).permute(0, 3, 1, 2).requires_grad_()
    theirs = torch.nn.functional.interpolate(grid, size=after, mode="bicubic", align_corners=False)
    theirs = theirs.permute(0, 2, 3, 1).reshape(2, -1, 7)
    np.testing.assert_allclose(attnpy.interpolate_positions_2d(table, before, after), theirs.detach(), atol=apart)
    gradient = normal(*theirs.shape, seed=1).astype(dtype)
    theirs.backward(torch.from_numpy(gradient))
    ours = attnpy.interpolate_positions_2d_backward(gradient, before, after)
    np.testing.assert_allclose(ours, grid.grad.permute(0, 2, 3, 1).reshape(2, -1, 7), atol=5 * apart)


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize(("dtype", "apart"), DTYPES)
def test_linear(n, m, dtype, apart):
    table = normal(2, n, 7).astype(dtype)
    lines = torch.from_numpy(table).transpose(1, 2)
    theirs = torch.nn.functional.interpolate(lines, size=m, mode="linear", align_corners=False).transpose(1, 2)
    np.testing.assert_allclose(attnpy.interpolate_positions(table, m), theirs, atol=apart)


def test_gradients_through_torch():
    x, table = (torch.from_numpy(normal(*shape)).requires_grad_() for shape in ((2, 3, 4), (6, 4)))
    assert torch.autograd.gradcheck(lambda x, t: attnpy.add_positions(x, t, [1, 3]), (x, table))
    assert torch.autograd.gradcheck(lambda t: attnpy.interpolate_positions(t, 9), (table,))
    given = {"from_grid": (1, 4), "to_grid": (3, 2), "num_prefix_tokens": 2}
    assert torch.autograd.gradcheck(lambda t: attnpy.interpolate_positions_2d(t, **given), (table,))


def test_vit():
    """Hugging Face's ViT on an image of another size."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=28, patch_size=4
    )
    embeddings = transformers.ViTModel(config).embeddings
    torch.nn.init.normal_(embeddings.position_embeddings)
    theirs = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 9 * 11, 12), 36, 44).detach().numpy()
    table = embeddings.position_embeddings.detach().numpy()
    ours = attnpy.interpolate_positions_2d(table, (7, 7), (9, 11), num_prefix_tokens=1)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_sinusoids_of_speech_to_text():
    """transformers' Speech2Text counts as tensor2tensor does: sines before cosines, the last wavelength 10000."""
    modeling = pytest.importorskip("transformers.models.speech_to_text.modeling_speech_to_text")
    theirs = modeling.Speech2TextSinusoidalPositionalEmbedding.get_embedding(50, 17, None)
    ours = attnpy.sinusoidal_encoding(50, 17, layout="concatenated", denominator="half_minus_one")
    np.testing.assert_allclose(ours, theirs, atol=50 * 2.0**-23)
