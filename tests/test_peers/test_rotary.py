"""Rotary embeddings beside transformers and ONNX Runtime."""

import functools

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

UNIT = 2.0**-24


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(got, wanted, note=""):
    """Two roundings on either side, of numbers of unit variance, and those of the tables."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=32 * UNIT, err_msg=str(note))


SHORT, LONG = [1 + 0.1 * i for i in range(8)], [2 + 0.3 * i for i in range(8)]
TYPES = {
    "default": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 4.0}, None),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, None),
    "dynamic, longer": ({"rope_type": "dynamic", "factor": 4.0}, 300),
    "yarn": ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}, None),
    "yarn of DeepSeek": (
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 8, "beta_slow": 2,
         "original_max_position_embeddings": 32}, None,
    ),
    "yarn, not truncated": (
        {"rope_type": "yarn", "factor": 8.0, "truncate": False, "original_max_position_embeddings": 16}, None
    ),
    "yarn, attention_factor": (
        {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5, "original_max_position_embeddings": 16}, None
    ),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64}, None,
    ),
    "longrope": (
        {"rope_type": "longrope", "factor": 2.0, "short_factor": SHORT, "long_factor": LONG,
         "original_max_position_embeddings": 64}, None,
    ),
    "longrope, longer": (
        {"rope_type": "longrope", "factor": 2.0, "short_factor": SHORT, "long_factor": LONG,
         "original_max_position_embeddings": 64}, 65,
    ),
    "proportional": ({"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}, None),
    "partial": ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, None),
}  # fmt: skip


def llama(parameters, base=10000.0):
    parameters = {**parameters, "rope_theta": base}
    return transformers.LlamaConfig(
        vocab_size=11, hidden_size=48, intermediate_size=8, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=128, rope_parameters=parameters,
    )  # fmt: skip


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("name", TYPES)
def test_frequencies_of_every_rope_type(name, base):
    """They are made in float32 there: a power is off by its logarithm, what ramps cancel grows by the factor."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters, length = TYPES[name]
    config = llama(parameters, base)
    kind = parameters["rope_type"]
    make = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    wanted, factor = make(config, device="cpu", seq_len=length) if kind != "default" else make(config)
    got = attnpy.rotary_frequencies(
        16, base, scaling=parameters, sequence_length=length, max_position_embeddings=128
    )  # fmt: skip
    np.testing.assert_allclose(
        got[0], wanted.numpy(), rtol=UNIT * (8 + 2 * np.log(base) + 8 * parameters.get("factor", 0))
    )
    assert abs(got[1] - factor) <= 4 * UNIT


@pytest.mark.parametrize("name", ["default", "linear", "yarn", "llama3", "longrope"])
def test_llama(name):
    """Tables of the model's own module, half-split pairs, tables of all columns for each batch element."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = llama(TYPES[name][0])
    query, key = normal(1, 2, 3, 9, 16), normal(2, 2, 1, 9, 16)
    positions = np.stack([np.arange(9), np.arange(9) + 40])
    cos, sin = LlamaRotaryEmbedding(config)(torch.from_numpy(query), torch.from_numpy(positions))
    wanted = apply_rotary_pos_emb(torch.from_numpy(query), torch.from_numpy(key), cos, sin)
    frequencies, factor = attnpy.rotary_frequencies(16, scaling=TYPES[name][0], max_position_embeddings=128)
    tables = attnpy.rotary_tables(60, frequencies, factor)
    for x, theirs in zip((query, key), wanted):
        assert_close(attnpy.rotary_embedding(x, cos.numpy(), sin.numpy()), theirs, "their tables")
        got = attnpy.rotary_embedding(x, *tables, positions=positions)
        # their angles, up to 49, are rounded to float32
        np.testing.assert_allclose(got, theirs, rtol=0, atol=(32 + 8 * 49) * UNIT, err_msg="our tables")


def test_gpt_neox():
    """Half-split, the first quarter of the features."""
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

    x, angles = normal(3, 2, 3, 7, 32), normal(4, 2, 7, 4)
    tables = np.concatenate([np.cos(angles)] * 2, -1), np.concatenate([np.sin(angles)] * 2, -1)
    wanted, _ = apply_rotary_pos_emb(*(torch.from_numpy(array) for array in (x, x, *tables)))
    assert_close(attnpy.rotary_embedding(x, *tables, rotary_dim=8), wanted)
    assert_close(attnpy.rotary_embedding(x, tables[0][..., :4], tables[1][..., :4]), wanted)


def test_gpt_j():
    """Interleaved; their sin and cos are (B, L, rotary_dim / 2) and heads stand behind tokens."""
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions

    x = normal(5, 2, 7, 3, 16)
    sin, cos = create_sinusoidal_positions(7, 16).expand(2, 7, 16).chunk(2, -1)
    wanted = apply_rotary_pos_emb(torch.from_numpy(x), sin, cos).transpose(1, 2)
    got = attnpy.rotary_embedding(x.swapaxes(1, 2), cos.numpy(), sin.numpy(), interleaved=True)
    assert_close(got, wanted)
    frequencies, _ = attnpy.rotary_frequencies(16)
    got = attnpy.rotary_embedding(x.swapaxes(1, 2), inverse_frequencies=frequencies, interleaved=True)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=(32 + 8 * 6) * UNIT)


def test_images_of_qwen2_vl():
    """A grid of 4 by 6, rows and columns each with the frequencies of half a head."""
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

    x = normal(6, 24, 2, 32)  # tokens, heads, features
    places = np.stack([np.repeat(np.arange(4), 6), np.tile(np.arange(6), 4)])
    frequencies = attnpy.rotary_frequencies(16)[0].astype(np.float32)
    angles = torch.from_numpy(np.concatenate([p[:, None] * frequencies for p in places], -1).astype(np.float32))
    wide = torch.cat([angles, angles], -1)
    wanted, _ = apply_rotary_pos_emb_vision(torch.from_numpy(x), torch.from_numpy(x), wide.cos(), wide.sin())
    got = attnpy.rotary_embedding(x.swapaxes(0, 1), *attnpy.rotary_tables_2d(4, 6, frequencies))
    np.testing.assert_allclose(got, wanted.transpose(0, 1), rtol=0, atol=(32 + 8 * 5) * UNIT)


def test_weights_as_converted_for_transformers():
    """`permute` of convert_llama_weights_to_hf.py."""
    weight = normal(7, 24, 10)
    wanted = weight.reshape(3, 4, 2, 10).swapaxes(1, 2).reshape(24, 10)
    np.testing.assert_array_equal(attnpy.permute_rotary_weights(weight, 3, to="half_split"), wanted)


# --- ONNX


@functools.cache
def session(types, shapes, attributes):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    names = ["x", "cos", "sin", "positions"][: len(types)]
    info = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
        for name, kind, shape in zip(names, types, shapes)
    ]
    node = onnx.helper.make_node("RotaryEmbedding", names, ["y"], **dict(attributes))
    result = onnx.helper.make_tensor_value_info("y", info[0].type.tensor_type.elem_type, shapes[0])
    graph = onnx.helper.make_graph([node], "rotary", info, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotary_dim", [0, 8])
@pytest.mark.parametrize("ids", [True, False])
def test_onnx(interleaved, rotary_dim, ids):
    """The operator's cases: position ids or gathered tables, both pairings, all features or the first ones."""
    x, angles = normal(8, 2, 3, 5, 16), normal(9, 11, (rotary_dim or 16) // 2)
    positions = np.random.default_rng(10).integers(0, 11, (2, 5))
    tables = [np.cos(angles), np.sin(angles)]
    feeds = [x, *tables, positions] if ids else [x, *(table[positions] for table in tables)]
    attributes = (("interleaved", interleaved), ("rotary_embedding_dim", rotary_dim))
    run = session(tuple(a.dtype.name for a in feeds), tuple(a.shape for a in feeds), attributes).run
    wanted = run(None, dict(zip(("x", "cos", "sin", "positions"), feeds)))[0]
    got = attnpy.rotary_embedding(
        x,
        *feeds[1:3],
        positions=positions if ids else None,
        interleaved=bool(interleaved),
        rotary_dim=rotary_dim or None,
    )
    assert_close(got, wanted)


# --- gradients


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_through_torch(interleaved):
    x = torch.from_numpy(normal(11, 2, 3, 5, 16).astype(np.float64)).requires_grad_()
    cos, sin = attnpy.rotary_tables(5, attnpy.rotary_frequencies(12)[0], dtype=np.float64)
    given = {"cos": torch.from_numpy(cos), "sin": torch.from_numpy(sin), "interleaved": interleaved}
    assert torch.autograd.gradcheck(lambda x: attnpy.rotary_embedding(x, **given), x)
    got = attnpy.rotary_embedding(x)
    got.sum().backward()
    assert x.grad.shape == x.shape
