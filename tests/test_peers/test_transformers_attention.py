"""Models of transformers with attn_implementation="attnpy": tiny random ones, beside their own eager attention."""

import inspect

import numpy as np
import pytest
from test_transformers import MODELS, assert_close, tokens, transformers

import attnpy
from attnpy import integrations

torch = pytest.importorskip("torch")
bridge = pytest.importorskip("attnpy.integrations.torch")
masking_utils = pytest.importorskip("transformers.masking_utils")

integrations.register_with_transformers()
attend = transformers.AttentionInterface()["attnpy"]

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 50, "dropout_rate": 0.0,
      "decoder_start_token_id": 0}  # fmt: skip
ALL = {**MODELS, "T5": T5}
DECODERS = ["GPT2", "Llama", "Mistral", "Gemma2", "GptOss"]
WINDOWED = ["Mistral", "Gemma2", "GptOss"]
HEADS = {"GPT2": "LMHeadModel", "T5": "ForConditionalGeneration"}


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads cost tiny models more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(name, head="Model", **changes):
    """Weights larger than they begin: attention far from uniform."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**ALL[name], **changes}, attn_implementation="attnpy")
    made = getattr(transformers, f"{name}{head}")(config).eval()
    assert made.config._attn_implementation == "attnpy"
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def paddings(length):
    ones = torch.ones(2, length, dtype=torch.long)
    left, right = ones.clone(), ones.clone()
    left[1, : length // 3] = 0
    right[0, length - length // 2 :] = 0
    return {"none": None, "ones": ones, "left": left, "right": right}


def run(made, implementation, ids, padding, **options):
    made.set_attn_implementation(implementation)
    if made.config.is_encoder_decoder:
        options["decoder_input_ids"] = ids.flip(-1)
    return made(input_ids=ids, attention_mask=padding, **options)


def states_and_gradients(made, implementation, ids, padding):
    """The last hidden states of tokens, and the gradients of a random linear function of them."""
    made.zero_grad()
    states = run(made, implementation, ids, padding).last_hidden_state
    if padding is not None and not made.config.is_encoder_decoder:
        states = states[padding.bool()]
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    gradients = [p.grad.flatten() for p in made.parameters() if p.grad is not None]
    return states.detach().numpy(), torch.cat(gradients).numpy()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [1, 9, 70])
def test_forward_and_gradients(name, length):
    made, ids = model(name), tokens(length)
    for side, padding in paddings(length).items():
        for got, wanted in zip(*(states_and_gradients(made, x, ids, padding) for x in ("attnpy", "eager"))):
            assert got.shape == wanted.shape and np.isfinite(got).all()
            assert_close(got, wanted, f"{name}, {length} tokens, padding {side}")


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_seen(name):
    """The comparison above would notice another window."""
    wanted, other = (
        states_and_gradients(model(name, sliding_window=window), "attnpy", tokens(20), None) for window in (4, 5)
    )
    for a, b in zip(wanted, other):
        assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()


# --- caches


def cache_argument(made):
    """The name of forward's cache: transformers 5.24 renamed past_key_values, and warns of the old one."""
    return "cache" if "cache" in inspect.signature(made.forward).parameters else "past_key_values"


def cache(kind, made):
    if kind == "dynamic":
        return transformers.DynamicCache(config=made.config)
    return transformers.StaticCache(config=made.config, max_cache_len=24)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left padding"])
@pytest.mark.parametrize("name", DECODERS)
def test_caches(name, padded, kind):
    """A prompt, single tokens, and several tokens at once after it."""
    made, ids = model(name, HEADS.get(name, "ForCausalLM")), tokens(18)
    padding = torch.ones_like(ids)
    if padded:
        padding[1, :3] = 0
    logits = {}
    for implementation in ("attnpy", "eager"):
        made.set_attn_implementation(implementation)
        past, found = cache(kind, made), []
        for first, end in ((0, 9), (9, 10), (10, 11), (11, 15), (15, 16)):
            with torch.no_grad():
                step = made(ids[:, first:end], attention_mask=padding[:, :end], **{cache_argument(made): past}).logits
            found.append(step[padding[:, first:end].bool()].numpy())
        logits[implementation] = found
    for got, wanted in zip(logits["attnpy"], logits["eager"]):
        assert_close(got, wanted, name)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", [*DECODERS, "T5"])
def test_generation(name, kind):
    made, ids = model(name, HEADS.get(name, "ForCausalLM")), tokens(9)
    padding = torch.ones_like(ids)
    padding[0, :4] = 0
    texts = []
    for implementation in ("attnpy", "eager"):
        made.set_attn_implementation(implementation)
        texts.append(
            made.generate(
                ids, attention_mask=padding, max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None,
                cache_implementation=kind, disable_compile=True,
            )
        )  # fmt: skip
    assert texts[0].shape == texts[1].shape and texts[0].shape[1] >= 11
    torch.testing.assert_close(*texts, rtol=0, atol=0)


# --- masks of the user, training, weights, half types


def test_a_mask_with_four_axes():
    made, ids = model("Llama"), tokens(9)
    seen = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    seen |= torch.eye(9, dtype=torch.bool)
    added = torch.where(seen, torch.randn(2, 1, 9, 9), torch.finfo(torch.float32).min)
    with torch.no_grad():
        got, wanted = (run(made, x, ids, added).last_hidden_state.numpy() for x in ("attnpy", "eager"))
        assert_close(got, wanted)
        got = run(made, "attnpy", ids, seen).last_hidden_state.numpy()
        wanted = run(made, "sdpa", ids, seen).last_hidden_state.numpy()
    assert_close(got, wanted)


def test_dropout_follows_the_seed():
    made, ids = model("Llama", attention_dropout=0.5).train(), tokens(20)

    def step(seed):
        torch.manual_seed(seed)
        return states_and_gradients(made, "attnpy", ids, None)

    first, again, other = step(1), step(1), step(2)
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-3 * np.abs(a).max()
    made.eval()
    for a, b in zip(step(1), step(2)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["Bert", "Llama", "Mistral", "Gemma2", "GptOss"])
def test_weights_on_request(name):
    made, ids = model(name), tokens(9)
    with torch.no_grad():
        got, wanted = (run(made, x, ids, None, output_attentions=True).attentions for x in ("attnpy", "eager"))
        assert run(made, "attnpy", ids, None).attentions is None
    assert len(got) == len(wanted) == 2
    for ours, theirs in zip(got, wanted):
        assert_close(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype):
    """No farther from float32 than twice their own attention is."""
    made, ids = model("Llama"), tokens(30)
    with torch.no_grad():
        exact = run(made, "eager", ids, None).last_hidden_state
        made.to(dtype)
        ours, theirs = (run(made, x, ids, None).last_hidden_state for x in ("attnpy", "eager"))
    assert ours.dtype == dtype
    errors = [(x.float() - exact).abs().max().item() for x in (ours, theirs)]
    assert errors[0] <= 2 * errors[1]


def test_autocast_and_training_step():
    made, ids = model("Llama", "ForCausalLM").train(), tokens(20)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = made(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


# --- the function itself


class Module(torch.nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def operands(L=5, S=5):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, heads, n, 8, generator=generator) for heads, n in ((4, L), (2, S), (2, S))]


def same(got, arrays, *mask, **options):
    wanted = attnpy.scaled_dot_product_attention(*(x.numpy() for x in arrays), *mask, **options).swapaxes(1, 2)
    assert got.is_contiguous() and got.numpy().tobytes() == np.ascontiguousarray(wanted).tobytes()


def test_what_no_mask_means():
    arrays, cached, single = operands(), operands(5, 9), operands(1, 9)
    causal, free = Module(is_causal=True), Module(is_causal=False)
    for module, option, is_causal in (
        (causal, None, True), (free, None, False), (Module(), None, True), (causal, False, False), (free, True, True),
    ):  # fmt: skip
        same(attend(module, *arrays, None, is_causal=option)[0], arrays, is_causal=is_causal)
    same(attend(causal, *cached, None)[0], cached, is_causal=True, causal_offset=0)
    same(attend(causal, *single, None)[0], single)
    mask = torch.rand(2, 1, 5, 5) < 0.7
    same(attend(causal, *arrays, mask)[0], arrays, mask.numpy())


def test_options_of_the_models():
    arrays, module = operands(), Module(is_causal=False)
    sinks, bias = torch.randn(4), torch.randn(1, 4, 5, 5)
    mask = torch.rand(2, 1, 5, 5) < 0.7
    got, weights = attend(
        module, *arrays, mask, scaling=0.3, softcap=2.0, s_aux=sinks, position_bias=bias, sliding_window=3, dropout=0.0
    )
    assert weights is None
    options = {"scale": 0.3, "softcap": 2.0, "sinks": sinks.numpy(), "bias": bias.numpy()}
    same(got, arrays, mask.numpy(), **options)
    got, weights = attend(module, *arrays, mask, scaling=0.3, softcap=2.0, s_aux=sinks, position_bias=bias,
                          output_attentions=True)  # fmt: skip
    wanted = attnpy.attention_weights(*(x.numpy() for x in arrays[:2]), mask.numpy(), **options)
    np.testing.assert_array_equal(weights.numpy(), wanted)


def test_weights_are_those_after_dropout():
    arrays = operands()
    torch.manual_seed(3)
    got, weights = attend(Module(), *arrays, None, dropout=0.4, output_attentions=True)
    torch.manual_seed(3)
    same(got, arrays, is_causal=True, dropout_p=0.4, rng=bridge.dropout_key())
    assert ((weights == 0).sum() > 2 * 4 * 10) and got.shape == (2, 5, 4, 8)
    value = arrays[2].repeat_interleave(2, 1)
    torch.testing.assert_close(got, (weights @ value).transpose(1, 2), rtol=0, atol=64 * 2.0**-24)


def test_pages_are_refused():
    with pytest.raises(ValueError, match="continuous batching"):
        attend(Module(), *operands(), None, cache=object())


def test_readme_example_runs():
    from test_docs import run_readme

    made = run_readme("register_with_transformers()")["model"]
    assert made.config._attn_implementation == "attnpy"
    assert made(torch.ones(1, 4, dtype=torch.long)).last_hidden_state.shape == (1, 4, 64)


def test_masks_are_made_as_for_sdpa():
    assert masking_utils.AttentionMaskInterface()["attnpy"] is masking_utils.sdpa_mask
