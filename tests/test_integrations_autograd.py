"""Boxes of autograd: gradients through attnpy's functions, the bits of the backward functions, and what is refused."""

import gc
import subprocess
import sys

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.test_util import check_grads
from calls_layers import LAYERS
from small import normal, same
from test_engine_memory import blocks_after

import attnpy
from attnpy import _core
from attnpy.integrations import _gradients

sdpa = attnpy.scaled_dot_product_attention


def double(*shape, seed=0):
    return normal(*shape, dtype=np.float64, seed=seed)


QUERY, KEY, VALUE = double(2, 4, 6, 5), double(2, 2, 7, 5, seed=1), double(2, 2, 7, 3, seed=2)
SCORED = {
    "attn_mask": double(6, 7),
    "bias": double(2, 1, 6, 7),
    "sinks": double(4),
    "alibi_slopes": np.abs(double(2, 4)),
}
GRAD, GRAD_LSE = double(2, 4, 6, 3, seed=3), double(2, 4, 6, seed=4)
SEEN = {
    "is_causal": True,
    "causal_offset": 1,
    "window_size": (3, 1),
    "softcap": 2.0,
    "scale": 0.7,
}  # every row sees a key
OPTIONS = {**SEEN, "query_lengths": [6, 4], "kv_lengths": [7, 5]}


def scored(function, *names, **options):
    """The function of arrays and of operands that go by name."""
    return lambda *operands: function(*operands[: -len(names)], **dict(zip(names, operands[-len(names) :])), **options)


PARTS = [double(2, 5, 3, seed=n) for n in range(3)], [double(2, 5, seed=n) for n in range(3)]
PACKED = [np.ascontiguousarray(x[0].swapaxes(0, 1)) for x in (QUERY, KEY, VALUE)]
BLOCKS = attnpy.BlockMask.from_dense(np.tri(6, 7, 1, bool))
KEEP = normal(2, 4, 6, 5) > -0.5
ANGLES = attnpy.rotary_tables(2, [1.0, 0.5], dtype=np.float64)

TABLES = np.cos(np.arange(14.0).reshape(7, 2)), np.sin(np.arange(14.0).reshape(7, 2))
CALLS = {
    "attention": (sdpa, (QUERY, KEY, VALUE)),
    "attention with every operand": (scored(sdpa, *SCORED, **OPTIONS), (QUERY, KEY, VALUE, *SCORED.values())),
    "attention and lse": (scored(sdpa, *SCORED, **SEEN, return_lse=True), (QUERY, KEY, VALUE, *SCORED.values())),
    "attention with dropout": (
        lambda *operands: sdpa(*operands, dropout_p=0.4, rng=attnpy.DropoutKey(5)), (QUERY, KEY, VALUE)),
    "attention of one head": (lambda *operands: sdpa(*operands, is_causal=True), (QUERY[0, 0], KEY[0, 0], VALUE[0, 0])),
    "packed attention": (
        lambda *operands: attnpy.varlen_attention(
            *operands[:3], [0, 4, 6], [0, 2, 7], sinks=operands[3], alibi_slopes=operands[4], return_lse=True),
        (*PACKED, SCORED["sinks"], SCORED["alibi_slopes"][0])),
    "attention by distance": (
        lambda q, k, v, table: sdpa(q, k, v, relative_bias=table, softcap=2.0), (QUERY, KEY, VALUE, double(4, 1, 7))),
    "packed attention by distance": (
        lambda *x: attnpy.varlen_attention(*x[:3], [0, 4, 6], [0, 2, 7], relative_bias=x[3]),
        (*PACKED, double(4, 6, 5))),
    "weights by distance": (
        lambda q, k, table: attnpy.attention_weights(q, k, relative_bias=table), (QUERY, KEY, double(2, 1, 6, 3))),
    "attention with rotary positions": (
        lambda q, k, v: sdpa(q, k, v, rotary=TABLES, query_positions=[5, 0, 3, 3, 1, 6]), (QUERY, KEY, VALUE)),
    "weights with rotary positions": (
        lambda q, k: attnpy.attention_weights(q, k, rotary=TABLES, rows=[1, 1, -1], causal_offset=1), (QUERY, KEY)),
    "received with rotary positions": (
        lambda q, k: attnpy.attention_received(q, k, rotary=TABLES, rotary_interleaved=True), (QUERY, KEY)),
    "packed attention with rotary positions": (
        lambda *x: attnpy.varlen_attention(*x, [0, 4, 6], [0, 2, 7], rotary=TABLES, causal_offset=0), PACKED),
    "attention with a BlockMask": (lambda *operands: sdpa(*operands, BLOCKS), (QUERY, KEY, VALUE)),
    "weights": (scored(attnpy.attention_weights, *SCORED, **OPTIONS), (QUERY, KEY, *SCORED.values())),
    "rows of weights": (lambda *operands: attnpy.attention_weights(*operands, rows=[1, 1, -1]), (QUERY, KEY)),
    "received": (scored(attnpy.attention_received, *SCORED, **OPTIONS), (QUERY, KEY, *SCORED.values())),
    "received by one head": (attnpy.attention_received, (QUERY[0, 0], KEY[0, 0])),
    "merge": (
        lambda *operands: attnpy.merge_attention(operands[:3], operands[3:]), (*PARTS[0], *PARTS[1])),
    "merge of stacks": (attnpy.merge_attention, (np.stack(PARTS[0]), np.stack(PARTS[1]))),
    "T5's bias": (lambda table: attnpy.t5_relative_bias(table, 20, 30), (double(32, 3),)),
    "rotary embedding": (
        lambda x: attnpy.rotary_embedding(x, *ANGLES, positions=[[1], [0]], interleaved=True, inverse=True), (QUERY,)),
    "rotary embedding without tables": (lambda x: attnpy.rotary_embedding(x, rotary_dim=2), (QUERY,)),
    **LAYERS,
    "softmax": (lambda x: attnpy.softmax(x, (0, 2)), (QUERY,)),
    "softmax where": (lambda x: attnpy.softmax(x, where=KEEP), (QUERY,)),
    "log_softmax": (attnpy.log_softmax, (QUERY,)),
    "logsumexp": (lambda x: attnpy.logsumexp(x, (1, -1), where=KEEP), (QUERY,)),
    "logsumexp of all": (lambda x: attnpy.logsumexp(x, None), (QUERY,)),
    "logsumexp keepdims": (lambda x: attnpy.logsumexp(x, 1, keepdims=True), (QUERY,)),
}  # fmt: skip
FORWARD_MODE = (
    "attention",
    "rotary",
    "softmax",
    "T5's",
    "add_positions",
    "interpolate_positions",
    "interpolate_positions_2d",
)
FORWARD = [name for name in CALLS if name.split()[0] in FORWARD_MODE]


def without_slopes(name):
    """The call by all operands that have a forward mode."""
    function, operands = CALLS[name]
    return (lambda *some: function(*some, operands[-1]), operands[:-1]) if len(operands) == 7 else (function, operands)


@pytest.mark.parametrize("name", CALLS)
def test_gradients(name):
    """Against central differences along random directions, with autograd's own tolerance."""
    function, operands = CALLS[name]
    check_grads(function, modes=["rev"], order=1)(*operands)


def test_every_function_with_a_rule_is_among_them(monkeypatch):
    called = set()
    for name, rule in _gradients.RULES.items():

        def forward(arguments, name=name, rule=rule):
            called.add(name)
            return rule.forward(arguments)

        monkeypatch.setitem(_gradients.RULES, name, rule._replace(forward=forward))
    for function, operands in CALLS.values():
        autograd.make_vjp(lambda x: function(x, *operands[1:]))(operands[0])  # noqa: B023
    assert called == set(_gradients.RULES)


@pytest.mark.parametrize("name", FORWARD)
def test_forward_mode(name):
    function, operands = without_slopes(name)
    check_grads(function, modes=["fwd"], order=1)(*operands)


@pytest.mark.parametrize("name", CALLS)
def test_values_are_those_of_plain_arrays(name):
    function, operands = CALLS[name]
    wanted = function(*operands)
    values = [autograd.make_vjp(lambda boxes: function(*boxes))(operands)[1]]
    if name in FORWARD:
        forward, some = without_slopes(name)
        values.append(autograd.make_jvp(lambda boxes: forward(*boxes))(some)(some)[0])
    for got in values:
        assert type(got) is type(wanted)
        for ours, theirs in zip(got, wanted) if isinstance(wanted, tuple) else [(got, wanted)]:
            same(ours, theirs)


# --- the bits of the backward functions, of what is a box and of nothing else

FIELDS = {"query": QUERY, "key": KEY, "value": VALUE, **SCORED}


def gradient_of_attention(names, operands=FIELDS, **options):
    """By the operands named, of sum(GRAD * output) + sum(GRAD_LSE * lse)."""

    def loss(boxes):
        output, lse = sdpa(**{**operands, **dict(zip(names, boxes))}, **options, return_lse=True)
        return anp.sum(output * GRAD) + anp.sum(lse * GRAD_LSE)

    return autograd.grad(loss)([operands[name] for name in names])


def backward_of_attention(names, operands=FIELDS, **options):
    output, lse = sdpa(**operands, **options, return_lse=True)
    dtypes = {"grad_output": GRAD.astype(output.dtype), "grad_lse": GRAD_LSE.astype(lse.dtype)}
    found = attnpy.scaled_dot_product_attention_backward(
        **dtypes, **operands, **options, output=output, lse=lse, needs=names
    )
    return [getattr(found, name) for name in names]


@pytest.mark.parametrize("names", [*([name] for name in FIELDS), ["query", "sinks"], list(FIELDS)], ids="-".join)
def test_only_what_is_a_box_is_differentiated(names, monkeypatch):
    asked, backward = [], _core.scaled_dot_product_attention_backward

    def recording(*arguments):
        asked.append(arguments[-2])
        return backward(*arguments)

    monkeypatch.setattr(_core, "scaled_dot_product_attention_backward", recording)
    got = gradient_of_attention(names, **SEEN)
    assert asked == [tuple(name in names for name in _gradients.GRADIENTS)]
    for ours, theirs in zip(got, backward_of_attention(names, **SEEN)):
        same(ours, theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gradients_have_the_dtype_of_their_operand(dtype):
    operands = {name: x.astype(dtype) for name, x in FIELDS.items()}
    for ours, theirs in zip(
        gradient_of_attention(list(FIELDS), operands), backward_of_attention(list(FIELDS), operands)
    ):
        assert ours.dtype == dtype
        same(ours, theirs)
    for function in (attnpy.softmax, attnpy.log_softmax, attnpy.logsumexp):
        assert autograd.elementwise_grad(function)(operands["query"]).dtype == dtype


def test_mixed_dtypes():
    operands = {**FIELDS, "key": KEY.astype(np.float32), "bias": FIELDS["bias"].astype(np.float32)}
    got = gradient_of_attention(["query", "key", "bias"], operands)
    assert [x.dtype for x in got] == [np.float64, np.float32, np.float32]


def test_the_forward_runs_once_and_no_more_than_asked(monkeypatch):
    calls, forward = [], _core.scaled_dot_product_attention

    def recording(*arguments):
        calls.append(all(not isinstance(x, autograd.extend.Box) for x in arguments))
        return forward(*arguments)

    monkeypatch.setattr(_core, "scaled_dot_product_attention", recording)
    autograd.grad(lambda x: anp.sum(sdpa(x, x, x)))(QUERY)
    assert calls == [False, True]


def test_one_array_in_three_places():
    wanted = attnpy.scaled_dot_product_attention_backward(
        np.ones_like(QUERY), QUERY, QUERY, QUERY, *sdpa(QUERY, QUERY, QUERY, return_lse=True)
    )
    got = autograd.grad(lambda x: anp.sum(sdpa(x, x, x)))(QUERY)
    np.testing.assert_allclose(got, sum(wanted[:3]), rtol=0, atol=8 * 2.0**-53 * np.abs(wanted[:3]).max())


def test_dropout_follows_the_key():
    key = attnpy.DropoutKey(9)
    got = gradient_of_attention(["query", "value"], dropout_p=0.3, rng=key)
    for ours, theirs in zip(got, backward_of_attention(["query", "value"], dropout_p=0.3, rng=key)):
        same(ours, theirs)
    rng, same_rng = (np.random.default_rng(1) for _ in range(2))
    drawn = gradient_of_attention(["query"], dropout_p=0.3, rng=rng)
    same(drawn[0], backward_of_attention(["query"], dropout_p=0.3, rng=attnpy.dropout_key(same_rng))[0])
    assert rng.integers(2**32) == same_rng.integers(2**32)


def test_a_result_that_is_not_used():
    for use in (0, 1):
        got = autograd.grad(lambda x: anp.sum(sdpa(x, KEY, VALUE, return_lse=True)[use]))(QUERY)  # noqa: B023
        assert np.isfinite(got).all() and got.any()


def test_forward_mode_has_the_bits_of_the_jvp():
    tangents = [double(*x.shape, seed=7) for x in (QUERY, KEY, VALUE, SCORED["bias"], SCORED["sinks"])]

    def function(boxes):
        return sdpa(*boxes[:3], bias=boxes[3], sinks=boxes[4], is_causal=True, return_lse=True)

    operands = (QUERY, KEY, VALUE, SCORED["bias"], SCORED["sinks"])
    value, tangent = autograd.make_jvp(function)(operands)(tuple(tangents))
    wanted = attnpy.scaled_dot_product_attention_jvp(
        QUERY, KEY, VALUE, *tangents[:3], bias=operands[3], sinks=operands[4], bias_tangent=tangents[3],
        sinks_tangent=tangents[4], is_causal=True, return_lse=True,
    )  # fmt: skip
    for ours, theirs in zip((value[0], tangent[0], value[1], tangent[1]), wanted):
        same(ours, theirs)


@pytest.mark.parametrize("name", sorted(set(CALLS) - set(FORWARD)))
def test_what_has_no_forward_mode_says_so(name):
    function, operands = CALLS[name]
    with pytest.raises(NotImplementedError, match=r"\w+ has no forward-mode derivative"):
        autograd.make_jvp(lambda boxes: function(*boxes))(operands)(operands)


def test_slopes_have_no_forward_mode():
    with pytest.raises(NotImplementedError, match="no forward-mode derivative by alibi_slopes"):
        autograd.make_jvp(lambda x: sdpa(QUERY, KEY, VALUE, alibi_slopes=x))(SCORED["alibi_slopes"])(np.ones((2, 4)))


# --- second derivatives


def total(x):
    return anp.sum(anp.sin(x[0] if isinstance(x, tuple | autograd.builtins.SequenceBox) else x))


SECOND = {
    "grad of grad": lambda f, x: autograd.grad(lambda y: anp.sum(autograd.grad(f)(y) ** 2))(x),
    "hessian": lambda f, x: autograd.hessian(f)(x),
    "hessian-vector": lambda f, x: autograd.hessian_vector_product(f)(x, x),
    "forward over reverse": lambda f, x: autograd.make_jvp(autograd.grad(f))(x)(x),
    "by the gradient alone": lambda f, x: autograd.grad(lambda y: anp.sum(autograd.make_vjp(f)(x)[0](anp.sum(y))))(x),
}


@pytest.mark.parametrize("how", SECOND)
@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_are_refused(name, how):
    function, operands = CALLS[name]

    def loss(x):
        return total(function(x, *operands[1:]))

    if how == "forward over reverse" and name not in FORWARD:
        error, text = NotImplementedError, r"\w+ has no forward-mode derivative"
    else:
        error, text = TypeError, r"\w+_(backward|jvp) has no derivative: attnpy computes first derivatives only"
    with pytest.raises(error, match=text):
        SECOND[how](loss, operands[0])


def test_second_derivatives_of_what_is_linear_inside_are_refused_too():
    """Here the inner gradient would come out without a box, as a constant, from the saved softmax alone."""
    c = double(6, 5)
    with pytest.raises(TypeError, match="softmax_backward has no derivative"):
        autograd.grad(lambda x: anp.sum(autograd.grad(lambda y: anp.sum(attnpy.softmax(y) * c))(x) ** 2))(c)


def test_forward_mode_twice_is_refused():
    def once(x):
        return autograd.make_jvp(lambda y: sdpa(y, KEY, VALUE))(x)(QUERY)[1]

    for twice in (
        lambda: autograd.make_jvp(once)(QUERY)(QUERY),
        lambda: autograd.grad(lambda x: anp.sum(once(x)))(QUERY),
    ):
        with pytest.raises(TypeError, match="scaled_dot_product_attention_jvp has no derivative"):
            twice()


def test_backward_functions_take_no_boxes():
    output, lse = sdpa(QUERY, KEY, VALUE, return_lse=True)
    weights = attnpy.attention_weights(QUERY, KEY)
    merged = attnpy.merge_attention(*PARTS)
    calls = {
        "scaled_dot_product_attention_backward": lambda x: attnpy.scaled_dot_product_attention_backward(
            GRAD, x, KEY, VALUE, output, lse)[0],
        "attention_weights_backward": lambda x: attnpy.attention_weights_backward(weights, x, KEY)[0],
        "scaled_dot_product_attention_jvp": lambda x: attnpy.scaled_dot_product_attention_jvp(
            x, KEY, VALUE, QUERY, None, None)[1],
        "softmax_backward": lambda x: attnpy.softmax_backward(x, QUERY),
        "log_softmax_backward": lambda x: attnpy.log_softmax_backward(x, QUERY),
        "logsumexp_backward": lambda x: attnpy.logsumexp_backward(QUERY[..., 0], x, QUERY[..., 0]),
        "merge_attention_backward": lambda x: attnpy.merge_attention_backward(
            PARTS[0][0], [x, *PARTS[0][1:]], PARTS[1], *merged)[0][0],
    }  # fmt: skip
    for name, call in calls.items():
        x = PARTS[0][0] if name.startswith("merge") else QUERY
        with pytest.raises(TypeError, match=f"^{name} has no derivative: its arguments must be arrays, not boxes"):
            autograd.grad(lambda x: anp.sum(call(x)))(x)  # noqa: B023


# --- what is refused


@pytest.mark.parametrize("out", [np.empty((2, 4, 6, 3)), "box"])
def test_out_is_refused(out):
    def function(x):
        return anp.sum(sdpa(x, KEY, VALUE, out=x if isinstance(out, str) else out))

    with pytest.raises(TypeError, match="^out is given, but an operand of scaled_dot_product_attention is a box"):
        autograd.grad(function)(QUERY)
    with pytest.raises(TypeError, match="^out is given"):
        autograd.grad(lambda x: anp.sum(sdpa(QUERY, KEY, VALUE, out=x)))(GRAD)
    with pytest.raises(TypeError, match="^out is given"):
        autograd.grad(lambda x: anp.sum(attnpy.merge_attention([x], PARTS[1][:1], out=(None, None))[0]))(PARTS[0][0])


@pytest.mark.parametrize("name", ["scale", "softcap", "causal_offset", "kv_lengths", "query_lengths"])
def test_boxes_of_what_has_no_derivative(name):
    for function in (
        lambda x: anp.sum(sdpa(x, KEY, VALUE, **{name: x[0, 0, 0, 0]})),
        lambda x: anp.sum(sdpa(x, KEY, VALUE, **{name: [x[0, 0, 0, 0]] * 2})),
    ):
        with pytest.raises(TypeError, match=f"^{name} is a box of autograd, but scaled_dot_product_attention has no"):
            autograd.grad(function)(np.abs(QUERY))


def test_a_scale_alone_is_no_number():
    for name in ("scale", "softcap"):
        with pytest.raises(TypeError, match=f"^{name} must be a real number"):
            autograd.grad(lambda x: anp.sum(sdpa(QUERY, KEY, VALUE, **{name: x})))(0.5)  # noqa: B023


def test_other_boxes_and_errors_are_named():
    with pytest.raises(TypeError, match="^rows is a box"):
        autograd.grad(lambda x: anp.sum(attnpy.attention_weights(QUERY, KEY, rows=x)))(np.ones(2))
    with pytest.raises(TypeError, match="^where is a box"):
        autograd.grad(lambda x: anp.sum(attnpy.softmax(QUERY, where=x)))(QUERY)
    with pytest.raises(ValueError, match="^key has"):
        autograd.grad(lambda x: anp.sum(sdpa(x, KEY[..., :4], VALUE)))(QUERY)
    with pytest.raises(TypeError, match="^query has dtype complex"):
        autograd.grad(lambda x: anp.real(anp.sum(sdpa(x * 1j, KEY, VALUE))))(QUERY)


def test_warnings_name_the_line_of_the_caller():
    with pytest.warns(UserWarning, match="^attn_mask is floating and holds only 0 and 1") as caught:
        autograd.grad(lambda x: anp.sum(sdpa(x, KEY, VALUE, np.eye(7)[:6])))(QUERY)
    assert [warning.filename for warning in caught] == [__file__]


def test_packed_sequences():
    """Operands, and sinks and slopes that each sequence has its own of or that all share."""
    starts, key_starts = [0, 2, 2, 5], [0, 1, 3, 6]
    packed = double(5, 4, 3), double(6, 2, 3, seed=1), double(6, 2, 2, seed=2)
    for shape in ((4,), (3, 4)):
        operands = (*packed, double(*shape, seed=3), np.abs(double(*shape, seed=4)))

        def results(query, key, value, sinks, slopes):
            output, lse = attnpy.varlen_attention(
                query, key, value, starts, key_starts, sinks=sinks, alibi_slopes=slopes, return_lse=True
            )
            return anp.sum(output**2) + anp.sum(anp.sin(lse))

        check_grads(results, modes=["rev"], order=1)(*operands)
    with pytest.raises(TypeError, match="^cu_seqlens_q is a box"):
        autograd.grad(lambda x: anp.sum(attnpy.varlen_attention(*packed, x, key_starts)))(np.zeros(4))


def test_nothing_is_kept():
    def step():
        gradient_of_attention(["query", "bias"])

    step()
    gc.collect()
    before = [sys.getrefcount(x) for x in (QUERY, KEY, VALUE, SCORED["bias"])]
    assert blocks_after(step, 300) < 150
    assert [sys.getrefcount(x) for x in (QUERY, KEY, VALUE, SCORED["bias"])] == before


def test_autograd_loads_when_its_first_box_arrives():
    code = """
import sys, numpy, attnpy
attnpy.softmax([1.0]); attnpy.softmax(numpy.ones(3))
assert not [name for name in sys.modules if name.startswith(("autograd", "attnpy.integrations"))]
import autograd
print(autograd.grad(attnpy.logsumexp)(numpy.zeros(4)), {"attnpy.integrations.torch", "torch"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[0.25 0.25 0.25 0.25] set()\n", done.stderr
