"""Beside transformers: tiny random models whose attention is replaced by ours, with their masks and without."""

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
masking_utils = pytest.importorskip("transformers.masking_utils")

transformers.logging.set_verbosity_error()  # tiny vocabularies lack the usual special tokens
SMALL = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
SHARED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "Bert": SMALL,
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 256},
    "Llama": SHARED,
    "Mistral": {**SHARED, "sliding_window": 4},
    "Gemma2": {**SHARED, "sliding_window": 4, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 8},
    "GptOss": {**SHARED, "sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1},
}
CAUSAL = [name for name in MODELS if name != "Bert"]


def attend(query, key, value, mask, scaling, softcap, sinks, **options):
    """torch tensors (B, H, L, D) in, (B, L, H, D) out, as their models want it."""
    arrays = (x.detach().numpy() for x in (query, key, value))
    output = attnpy.scaled_dot_product_attention(
        *arrays,
        None if mask is None else mask.numpy(),
        scale=scaling,
        softcap=softcap,
        sinks=None if sinks is None else sinks.detach().numpy(),
        **options,
    )
    return torch.from_numpy(output).transpose(1, 2).contiguous(), None


def with_their_mask(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, **_):
    """The causal rule, the window and the padding are all in the float mask that they make."""
    return attend(query, key, value, mask, scaling, softcap, s_aux)


def with_our_options(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, sliding_window=None, **_):
    """No mask at all. They count the token itself in a window of W, so that left = W - 1."""
    window = None if sliding_window is None else (sliding_window - 1, -1)
    return attend(query, key, value, None, scaling, softcap, s_aux, is_causal=module.is_causal, window_size=window)


for name, function in (("ours_by_mask", with_their_mask), ("ours_by_options", with_our_options)):
    transformers.AttentionInterface.register(name, function)
    masking_utils.AttentionMaskInterface.register(name, masking_utils.eager_mask)


def model(name, head="Model"):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**MODELS[name], attn_implementation="eager")
    made = getattr(transformers, f"{name}{head}")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # larger than they begin: attention far from uniform
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def tokens(length, seed=1):
    return torch.randint(0, 50, (2, length), generator=torch.Generator().manual_seed(seed))


def hidden_states(made, implementation, ids, padding=None):
    made.set_attn_implementation(implementation)
    with torch.no_grad():
        return made(ids, attention_mask=padding).last_hidden_state.numpy()


def assert_close(got, wanted, note=""):
    """Two layers of float32: a few hundred units of the largest number."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=512 * 2.0**-24 * np.abs(wanted).max(), err_msg=str(note))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 9, 130])
def test_models_with_their_masks(name, length):
    """Without padding, padded at the left, padded at the right."""
    made, ids = model(name), tokens(length)
    paddings = {"none": None}
    if length > 1:
        ones = torch.ones(2, length, dtype=torch.long)
        paddings["left"], paddings["right"] = ones.clone(), ones.clone()
        paddings["left"][1, : length // 3] = paddings["right"][0, -(length // 2) :] = 0
    for side, padding in paddings.items():
        wanted = hidden_states(made, "eager", ids, padding)
        assert_close(
            hidden_states(made, "ours_by_mask", ids, padding), wanted, f"{name}, {length} tokens, padding {side}"
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 9, 130])
def test_models_with_our_options(name, length):
    made, ids = model(name), tokens(length)
    assert_close(
        hidden_states(made, "ours_by_options", ids), hidden_states(made, "eager", ids), f"{name}, {length} tokens"
    )


@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_their_cache(name):
    """Prompt, then token by token over their cache: the offset follows from the lengths. The same tokens come out."""
    made, ids = model(name, "LMHeadModel" if name == "GPT2" else "ForCausalLM"), tokens(9)
    texts = {}
    for implementation in ("eager", "ours_by_options"):
        made.set_attn_implementation(implementation)
        with torch.no_grad():
            texts[implementation] = made.generate(
                ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
            )
    assert texts["ours_by_options"].shape == (2, 21)
    torch.testing.assert_close(texts["ours_by_options"], texts["eager"], rtol=0, atol=0)


def test_attention_weights_are_theirs():
    made, ids = model("Bert"), tokens(9)
    made.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = made(ids, output_attentions=True).attentions[0].numpy()
        layer, x = made.encoder.layer[0].attention.self, made.embeddings(ids)
        query, key = (f(x).unflatten(-1, (4, 8)).transpose(1, 2).numpy() for f in (layer.query, layer.key))
    np.testing.assert_allclose(attnpy.attention_weights(query, key), theirs, rtol=0, atol=64 * 2.0**-24)


def test_differs_a_row_without_keys():
    """By design: their finfo.min makes a row without keys the mean of all values; a boolean mask makes it 0."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    rng = np.random.default_rng(0)
    query, key, value = (torch.from_numpy(rng.standard_normal((1, 2, 4, 8), np.float32)) for _ in range(3))
    seen = torch.tensor([[False] * 4, [True] * 4, [True, False, False, True], [False] * 4])
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    module = torch.nn.Module()
    module.num_key_value_groups = 1
    theirs = eager_attention_forward(module, query, key, value, mask, 0.3)[0].numpy()
    arrays = [x.numpy() for x in (query, key, value)]
    same = attnpy.scaled_dot_product_attention(*arrays, mask.numpy(), scale=0.3).swapaxes(1, 2)
    ours = attnpy.scaled_dot_product_attention(*arrays, seen.numpy(), scale=0.3).swapaxes(1, 2)
    np.testing.assert_allclose(same, theirs, rtol=0, atol=64 * 2.0**-24)
    np.testing.assert_allclose(theirs[:, 0], arrays[2].mean(2), rtol=0, atol=64 * 2.0**-24)
    assert (ours[:, [0, 3]] == 0).all()
    np.testing.assert_allclose(ours[:, 1:3], theirs[:, 1:3], rtol=0, atol=64 * 2.0**-24)


def test_differs_windows_do_not_count_the_token_itself():
    """By design: window_size=(W, 0) sees W + 1 keys, their sliding_window=W sees W."""
    made, ids = model("Mistral"), tokens(9)
    wanted = hidden_states(made, "eager", ids)
    assert_close(hidden_states(made, "ours_by_options", ids), wanted)
    made.config.sliding_window = 5
    for layer in made.layers:
        layer.self_attn.sliding_window = 5
    assert np.abs(hidden_states(made, "ours_by_options", ids) - wanted).max() > 0.01
