"""PyTorch's tensors in attnpy's functions: shared memory, dtypes, gradients, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest

import attnpy
from attnpy import _core

torch = pytest.importorskip("torch")
bridge = pytest.importorskip("attnpy.integrations.torch")
sdpa = attnpy.scaled_dot_product_attention
gradcheck = torch.autograd.gradcheck

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def tensor(*shape, seed=0, dtype=torch.float64, grad=False):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return made.requires_grad_(grad)


def operands(dtype=torch.float64, grad=False):
    shapes = (2, 4, 6, 5), (2, 2, 7, 5), (2, 2, 7, 3)
    return [tensor(*shape, seed=n, dtype=dtype, grad=grad) for n, shape in enumerate(shapes)]


def scored(grad=False, dtype=torch.float64):
    made = {"attn_mask": tensor(6, 7, seed=3), "bias": tensor(2, 1, 6, 7, seed=4), "sinks": tensor(4, seed=5),
            "alibi_slopes": tensor(2, 4, seed=6).abs()}  # fmt: skip
    return {name: x.to(dtype).requires_grad_(grad) for name, x in made.items()}


OPTIONS = {
    "is_causal": True,
    "window_size": (3, 1),
    "softcap": 2.0,
    "scale": 0.7,
    "query_lengths": [6, 4],
    "kv_lengths": [7, 5],
}
SEEN = {"is_causal": True, "causal_offset": 1, "window_size": (3, 1), "softcap": 2.0}  # every row sees a key


def plain(x):
    """An array with the same elements; bfloat16 through its bits."""
    import ml_dtypes

    if isinstance(x, dict):
        return {name: plain(y) for name, y in x.items()}
    if isinstance(x, tuple | list):
        return type(x)(plain(y) for y in x)
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype is torch.bfloat16 else x.numpy()


def same(got, wanted):
    """A tensor has an array's dtype, shape and bits."""
    assert isinstance(got, torch.Tensor)
    got = plain(got)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()


# --- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_those_of_arrays(dtype):
    query, key, value = operands(dtype)
    others, parts = scored(dtype=dtype), [tensor(2, 6, 3, seed=n, dtype=dtype) for n in range(3)]
    lses = [tensor(2, 6, seed=n) for n in range(3)]
    calls = [
        (sdpa, (query, key, value), others | OPTIONS),
        (sdpa, (query, key, value), others | OPTIONS | {"return_lse": True}),
        (sdpa, (query, key, value), {"dropout_p": 0.3, "rng": attnpy.DropoutKey(4)}),
        (attnpy.attention_weights, (query, key), others | OPTIONS | {"rows": torch.tensor([1, -1])}),
        (attnpy.attention_received, (query, key), others | OPTIONS),
        (attnpy.merge_attention, (parts, lses), {}),
        (attnpy.merge_attention, (torch.stack(parts), torch.stack(lses)), {}),
        (attnpy.softmax, (query,), {"axis": (1, 2), "where": query > 0}),
        (attnpy.log_softmax, (query,), {}),
        (attnpy.logsumexp, (query,), {"axis": None}),
    ]
    for function, given, options in calls:
        got, wanted = function(*given, **options), function(*plain(given), **plain(options))
        for ours, theirs in zip(got, wanted) if isinstance(wanted, tuple) else [(got, wanted)]:
            same(ours, np.asarray(theirs))


def test_memory_is_shared_both_ways(monkeypatch):
    seen, returned, core = [], [], _core.softmax

    def recording(x, *arguments):
        if isinstance(x, np.ndarray):
            seen.append(x)
            returned.append(core(x, *arguments))
            return returned[-1]
        return core(x, *arguments)

    monkeypatch.setattr(_core, "softmax", recording)
    for dtype in DTYPES:
        x = tensor(3, 5, dtype=dtype)
        got = attnpy.softmax(x)
        assert seen[-1].ctypes.data == x.data_ptr() and returned[-1].ctypes.data == got.data_ptr()


LAYOUTS = {
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "as (B, L, H, D)": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every other": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "expanded": lambda x: x[:1, :1].expand(x.shape),
    "at an offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(layout, dtype):
    arranged = [LAYOUTS[layout](x) for x in operands(dtype)]
    wanted = sdpa(*plain([x.contiguous() for x in arranged]), is_causal=True)
    same(sdpa(*arranged, is_causal=True), wanted)
    leaves = [x.detach().requires_grad_() for x in arranged]
    same(sdpa(*leaves, is_causal=True), wanted)
    grad = LAYOUTS[layout](tensor(*wanted.shape, dtype=dtype, seed=8))
    found = torch.autograd.grad(sdpa(*leaves, is_causal=True), leaves, grad)
    output, lse = sdpa(*plain(leaves), is_causal=True, return_lse=True)
    exact = attnpy.scaled_dot_product_attention_backward(
        plain(grad.contiguous()), *plain([x.contiguous() for x in arranged]), output, lse, is_causal=True
    )
    for ours, theirs in zip(found, exact):
        same(ours, theirs)


def test_tensors_among_arrays():
    query, key, value = operands(torch.float32)
    wanted = sdpa(*plain([query, key, value]))
    for given in ([query, *plain([key, value])], [*plain([query, key]), value], [query.numpy().tolist(), key, value]):
        got = sdpa(*given)
        assert isinstance(got, torch.Tensor)
        np.testing.assert_array_equal(
            got.numpy(), wanted.astype(got.numpy().dtype) if got.dtype == torch.float32 else got
        )
    lengths = torch.tensor([3, 7])
    same(sdpa(*plain([query, key, value]), kv_lengths=lengths), sdpa(*plain([query, key, value]), kv_lengths=[3, 7]))
    same(
        sdpa(query, key, value, scale=torch.tensor(0.3), window_size=torch.tensor([2, 1])),
        sdpa(*plain([query, key, value]), scale=np.float32(0.3), window_size=(2, 1)),
    )
    key.requires_grad_()
    sdpa(query.numpy(), key, value.numpy()).sum().backward()
    assert key.grad.shape == key.shape


def test_parameters_and_subclasses():
    class Mine(torch.Tensor):
        pass

    query, key, value = operands()
    wanted = sdpa(*plain([query, key, value]))
    same(sdpa(query.as_subclass(Mine), key, value).as_subclass(torch.Tensor), wanted)
    same(sdpa(torch.nn.Parameter(query), key, value), wanted)
    assert attnpy.softmax(torch.Size([1, 2])).dtype == np.float64  # a tuple, though of PyTorch


# --- out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out(dtype):
    given = operands(dtype)
    output, lse = sdpa(*plain(given), return_lse=True)
    out = torch.empty(output.shape, dtype=dtype)
    assert sdpa(*given, out=out) is out
    same(out, output)
    out.zero_()
    assert sdpa(*plain(given), out=out) is out  # only out is a tensor
    same(out, output)
    out.zero_()
    got = sdpa(*given, return_lse=True, out=(out, None))
    assert got[0] is out
    same(out, output)
    same(got[1], lse)
    array = np.empty_like(output)
    assert sdpa(*given, out=array) is array
    with pytest.raises(ValueError, match="^out has shape"):
        sdpa(*given, out=torch.empty(3))
    alias = given[0].clone()
    assert attnpy.softmax(alias, out=alias) is alias
    same(alias, attnpy.softmax(plain(given[0])))


def test_writing_to_out_is_noticed_by_pytorch():
    x, factor = tensor(4, grad=True), tensor(4)
    y = x * factor
    attnpy.softmax(tensor(4, seed=1), out=factor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- what is refused

QUERY, KEY, VALUE = operands(torch.float32)


def quantised():
    with pytest.warns(UserWarning, match="quantize_per_tensor"):
        return torch.quantize_per_tensor(QUERY, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: QUERY.to("meta"), "query is a strided tensor on meta; attnpy takes dense tensors on the CPU"),
        (lambda: QUERY.to_sparse(), "query is a sparse_coo tensor on cpu; attnpy takes dense tensors on the CPU"),
        (quantised, "query is a quantised tensor on cpu; attnpy takes dense tensors on the CPU"),
        (lambda: QUERY.to(torch.float8_e4m3fn), "query cannot be read as an array: .*Float8"),
        (lambda: torch.complex(QUERY, QUERY).conj().imag, "query cannot be read as an array: .*negative"),
        (lambda: torch.complex(QUERY, QUERY), "query has dtype complex64"),
    ],
)
def test_tensors_that_cannot_be_read(make, text):
    with pytest.raises(TypeError, match=f"^{text}"):
        sdpa(make(), KEY, VALUE)


def test_each_argument_is_named():
    meta = torch.empty(3, device="meta")
    for name in ("bias", "sinks", "kv_lengths", "out"):
        with pytest.raises(TypeError, match=f"^{name} is a strided tensor on meta"):
            sdpa(QUERY, KEY, VALUE, **{name: meta})
    with pytest.raises(TypeError, match=r"^lses is a strided tensor on meta"):
        attnpy.merge_attention([QUERY], [meta])
    with pytest.raises(TypeError, match=r"^lses\[0\] is a strided tensor on meta"):
        attnpy.merge_attention([QUERY.clone().requires_grad_()], [meta])
    with pytest.raises(TypeError, match=r"^argument 1 is a strided tensor on meta"):
        attnpy.softmax_backward(QUERY, meta)


def test_what_cannot_be_differentiated_or_written():
    query, scale = QUERY.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match=r"^scale requires a gradient, but .* pass scale.detach\(\)$"):
        sdpa(query, KEY, VALUE, scale=scale)
    with pytest.raises(TypeError, match=r"^scale requires a gradient"):
        sdpa(QUERY, KEY, VALUE, scale=scale)
    for out in (torch.empty(2, 4, 6, 3), np.empty((2, 4, 6, 3), np.float32)):
        with pytest.raises(TypeError, match="^out is given, but an operand of scaled_dot_product_attention requires"):
            sdpa(query, KEY, VALUE, out=out)
    with pytest.raises(TypeError, match="^out is given"):
        sdpa(QUERY, KEY, VALUE, out=torch.empty(2, 4, 6, 3, requires_grad=True))


def test_errors_are_those_of_arrays():
    for query in (QUERY, QUERY.clone().requires_grad_()):
        with pytest.raises(ValueError, match="^key has"):
            sdpa(query, KEY[..., :4], VALUE)
        with pytest.raises(TypeError, match="^attn_mask has dtype int64"):
            sdpa(query, KEY, VALUE, torch.ones(6, 7, dtype=torch.int64))


# --- resources


def test_pytorch_is_not_loaded_for_others_and_ml_dtypes_only_for_bfloat16():
    code = """
import sys, numpy, attnpy
attnpy.softmax(numpy.ones(3))
assert "torch" not in sys.modules
import torch
attnpy.softmax(torch.ones(3))
print("ml_dtypes" in sys.modules, attnpy.softmax(torch.ones(2).bfloat16()), "ml_dtypes" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "False tensor([0.5000, 0.5000], dtype=torch.bfloat16) True\n", done.stderr


def test_warnings_name_the_line_of_the_caller():
    mask = torch.eye(7)[:6]
    for query in (QUERY, QUERY.clone().requires_grad_()):
        with pytest.warns(UserWarning, match="^attn_mask is floating and holds only 0 and 1") as caught:
            output = sdpa(query, KEY, VALUE, mask)
        if output.requires_grad:
            output.sum().backward()  # warns no more
        assert [warning.filename for warning in caught] == [__file__]


def test_readme_example_runs():
    from test_docs import run_readme

    names = run_readme("import torch")
    assert all(names[name].grad.shape == (2, 8, 100, 64) for name in ("query", "key", "value"))
