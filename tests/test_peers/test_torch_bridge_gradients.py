"""Gradients through attnpy's functions, recorded by PyTorch."""

import gc
import sys

import numpy as np
import pytest
from test_torch_bridge import DTYPES, OPTIONS, SEEN, bridge, operands, plain, same, scored, sdpa, tensor, torch

import attnpy
from attnpy import _core
from attnpy.integrations import _gradients

gradcheck = torch.autograd.gradcheck

CALLS = {
    "attention": lambda q, k, v, m, b, s, a: sdpa(q, k, v, m, bias=b, sinks=s, alibi_slopes=a, **OPTIONS),
    "attention and lse": lambda q, k, v, m, b, s, a: sdpa(
        q, k, v, m, bias=b, sinks=s, alibi_slopes=a, **SEEN, return_lse=True),
    "attention with dropout": lambda q, k, v, *_: sdpa(q, k, v, dropout_p=0.4, rng=attnpy.DropoutKey(5)),
    "packed attention": lambda q, k, v, m, b, s, a: attnpy.varlen_attention(
        *(x[0].transpose(0, 1) for x in (q, k, v)), torch.tensor([0, 4, 6]), [0, 2, 7], sinks=s, alibi_slopes=a[0],
        softcap=2.0, return_lse=True),
    "attention by distance": lambda q, k, v, m, b, s, a: sdpa(q, k, v, relative_bias=b[0, 0, :4, None, :5], sinks=s),
    "attention with a BlockMask": lambda q, k, v, *_: sdpa(
        q, k, v, attnpy.BlockMask.from_dense(np.tri(6, 7, 1, bool))),
    "weights": lambda q, k, v, m, b, s, a: attnpy.attention_weights(
        q, k, m, bias=b, sinks=s, alibi_slopes=a, rows=[1, 1, -1], **OPTIONS),
    "received": lambda q, k, v, m, b, s, a: attnpy.attention_received(
        q, k, m, bias=b, sinks=s, alibi_slopes=a, **OPTIONS),
    "merge": lambda q, k, v, *_: attnpy.merge_attention([v[0], v[1]], [v[0, ..., 0], v[1, ..., 1]]),
    "merge of stacks": lambda q, k, v, *_: attnpy.merge_attention(v, v[..., 0]),
    "layer_norm": lambda q, *_: attnpy.layer_norm(q, q[0, 0, 0], q[0, 0, 1], residual=q, return_sum=True),
    "rms_norm": lambda q, *_: attnpy.rms_norm(q, q[0, 0, 0], eps=0.1),
    "gelu": lambda q, *_: attnpy.gelu(q),
    "silu": lambda q, *_: attnpy.silu(q),
    "relu": lambda q, *_: attnpy.relu(q),
    "swiglu": lambda q, *_: attnpy.swiglu(q, q[0, 0]),
    "geglu": lambda q, *_: attnpy.geglu(q, q[0, 0], approximate="tanh"),
    "embedding": lambda q, *_: attnpy.embedding(torch.tensor([[0, 2], [2, 1]]), q[0, 0]),
    "cross_entropy": lambda q, *_: attnpy.cross_entropy(q[0, 0], torch.arange(q.shape[2]) % q.shape[3]),
    "softmax": lambda q, *_: attnpy.softmax(q, (0, 2), where=plain(q) > -0.5),
    "log_softmax": lambda q, *_: attnpy.log_softmax(q),
    "logsumexp": lambda q, *_: attnpy.logsumexp(q, (1, -1), keepdims=True),
    "logsumexp of all": lambda q, *_: attnpy.logsumexp(q, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_gradcheck(name):
    given = [*operands(grad=True), *scored(grad=True).values()]
    assert gradcheck(CALLS[name], given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_have_the_bits_of_the_backward_function(dtype):
    given, others = operands(dtype, grad=True), scored(grad=True, dtype=dtype)
    output, lse = sdpa(*given, **others, **SEEN, return_lse=True)
    grads = tensor(*output.shape, seed=7, dtype=output.dtype), tensor(*lse.shape, seed=8, dtype=lse.dtype)
    found = torch.autograd.grad([output, lse], [*given, *others.values()], grads)
    needs = ["query", "key", "value", *others]
    exact = attnpy.scaled_dot_product_attention_backward(
        plain(grads[0]), *plain(given), plain(output), plain(lse), grad_lse=plain(grads[1]), needs=needs,
        **plain(others), **SEEN,
    )  # fmt: skip
    for name, ours in zip(needs, found):
        assert ours.dtype == dtype
        same(ours, getattr(exact, name))


@pytest.mark.parametrize("wanted", ["query", "key", "value", "attn_mask", "bias", "sinks", "alibi_slopes"])
def test_only_what_requires_it_is_differentiated(wanted, monkeypatch):
    asked, backward = [], _core.scaled_dot_product_attention_backward

    def recording(*arguments):
        asked.append(arguments[-2])
        return backward(*arguments)

    monkeypatch.setattr(_core, "scaled_dot_product_attention_backward", recording)
    given = dict(zip(("query", "key", "value"), operands())) | scored()
    given[wanted].requires_grad_()
    sdpa(**given, is_causal=True).sum().backward()
    assert asked == [tuple(name == wanted for name in _gradients.GRADIENTS)]
    assert all((x.grad is not None) == (name == wanted) for name, x in given.items())


def test_results_that_are_not_used():
    for use in (0, 1):
        given = operands(grad=True)
        sdpa(*given, return_lse=True)[use].sum().backward()
        assert all(torch.isfinite(x.grad).all() for x in given)
        assert given[0].grad.any()


def test_no_graph_where_none_is_recorded():
    given = operands(grad=True)
    with torch.no_grad():
        assert not sdpa(*given).requires_grad
    with torch.inference_mode():
        got = sdpa(*given)
        assert got.is_inference() and not got.requires_grad
        out = torch.empty_like(got)
        assert sdpa(*given, out=out) is out
    assert sdpa(*given).requires_grad
    assert not sdpa(*operands()).requires_grad


def test_memory_changed_in_place_is_noticed():
    for spoil in (0, 1, 2, "output", "mask"):
        given, mask = operands(grad=True), torch.ones(6, 7, dtype=torch.bool)
        output = sdpa(*given, mask)
        changed = {"output": output, "mask": mask}.get(spoil, given[spoil] if isinstance(spoil, int) else None)
        with torch.no_grad():
            changed.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_are_refused(name):
    """By operands and by the gradient, also where an unused tensor would do."""
    given = [*operands(grad=True), *scored(grad=True).values()]
    result = CALLS[name](*given)
    result = result[0] if isinstance(result, tuple) else result
    weights = torch.randn_like(result).requires_grad_()
    found = torch.autograd.grad(result, given, weights, create_graph=True, allow_unused=True)
    first = sum(x.sin().sum() for x in found if x is not None)
    for by in (given, [weights]):
        with pytest.raises(
            RuntimeError, match=r"\w+_backward has no derivative: attnpy computes first derivatives only"
        ):
            torch.autograd.grad(first, by, allow_unused=True, retain_graph=True)


def test_jacobians_work_and_hessians_are_refused():
    query, key, value = (x[:1, :2, :3] for x in operands())
    jacobian = torch.autograd.functional.jacobian(lambda x: sdpa(x, key, value), query)
    direction = tensor(*query.shape, seed=9)
    wanted = attnpy.scaled_dot_product_attention_jvp(*plain([query, key, value, direction]), None, None)[1]
    bound = 128 * 2.0**-53 * jacobian.abs().max() * direction.abs().sum()
    assert np.abs((jacobian * direction).sum((-1, -2, -3, -4)).numpy() - wanted).max() <= bound
    for second in (torch.autograd.functional.hessian, lambda f, x: torch.autograd.functional.jvp(f, x, x)):
        with pytest.raises(RuntimeError, match="scaled_dot_product_attention_backward has no derivative"):
            second(lambda x: sdpa(x, key, value).sin().sum(), query)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, as its forward mode loads
def test_forward_mode_and_transforms_are_refused():
    query, key, value = operands()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(query, query)
        for call in (lambda: sdpa(dual, key, value), lambda: attnpy.merge_attention([dual], [query[..., 0]])):
            with pytest.raises(RuntimeError, match="jvp"):
                call()
        same(sdpa(query, key, value), sdpa(*plain([query, key, value])))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: sdpa(x, key, value).sum())(query)
    with pytest.raises(TypeError, match="^query cannot be read as an array"):
        torch.vmap(sdpa)(query, key, value)


def test_backward_functions_take_tensors_without_gradients():
    given = operands()
    output, lse = sdpa(*given, return_lse=True)
    got = attnpy.scaled_dot_product_attention_backward(torch.ones_like(output), *given, output, lse)
    wanted = attnpy.scaled_dot_product_attention_backward(np.ones(output.shape), *plain([*given, output, lse]))
    assert type(got) is attnpy.AttentionGradients and got.bias is None
    for ours, theirs in zip(got[:3], wanted):
        same(ours, theirs)
    out = {"key": torch.empty_like(given[1])}
    assert attnpy.scaled_dot_product_attention_backward(
        torch.ones_like(output), *given, output, lse, out=out).key is out["key"]  # fmt: skip
    same(out["key"], wanted.key)
    given[0].requires_grad_()
    with pytest.raises(TypeError, match=r"^scaled_dot_product_attention_backward has no derivative: detach"):
        attnpy.scaled_dot_product_attention_backward(torch.ones_like(output), *given, output, lse)


def test_gradient_checkpointing_repeats_dropout():
    given = operands(grad=True)

    def step(query, key, value):
        return sdpa(query, key, value, dropout_p=0.5, rng=bridge.dropout_key())

    found = []
    for run in (step, lambda *x: torch.utils.checkpoint.checkpoint(step, *x, use_reentrant=False)):
        torch.manual_seed(3)
        found.append(torch.autograd.grad(run(*given).sum(), given))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_dropout_key_follows_the_seed():
    torch.manual_seed(1)
    first, second = bridge.dropout_key(), bridge.dropout_key()
    torch.manual_seed(1)
    assert first == bridge.dropout_key() != second
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    assert bridge.dropout_key(generators[0]) == bridge.dropout_key(generators[1]) != first


def test_gradients_from_threads():
    """The backward pass in another thread than the forward, as DataParallel does."""
    from concurrent.futures import ThreadPoolExecutor

    given = operands(grad=True)
    wanted = torch.autograd.grad(sdpa(*given).sum(), given)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: torch.autograd.grad(sdpa(*given).sum(), given), range(40)):
            for ours, theirs in zip(found, wanted):
                same(ours, plain(theirs))


def test_nothing_is_kept():
    def step():
        given = [*operands(grad=True), *scored(grad=True).values()]
        output, lse = sdpa(*given[:3], bias=given[4], return_lse=True)
        (output.sum() + lse.sum()).backward()
        sdpa(*given[:3])  # a graph that is dropped without a backward pass

    def tensors():
        gc.collect()
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    step()
    before = tensors(), [sys.getrefcount(x) for x in (bridge.handle, bridge._Call)]
    for _ in range(20):
        step()
    assert (tensors(), [sys.getrefcount(x) for x in (bridge.handle, bridge._Call)]) == before
