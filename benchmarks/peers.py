"""The other libraries, each called the way its users call it, on both cores.
A function here returns a callable or the reason why there is none.

Imports happen inside: a peer that is not asked for, or not installed, is not loaded.
"""

import functools
import math

import numpy as np

NAMES = ("torch", "numpy", "onnxruntime", "jax")
MEMORY = 4e9  # bytes of scores beyond which a peer that stores them all is left out


def installed(wanted):
    """The peers among `wanted` that can be imported, and their versions."""
    versions = {}
    for name in wanted:
        try:
            module = __import__(name)
            if name == "onnxruntime":
                __import__("onnx")
        except ImportError:
            continue
        versions[name] = module.__version__
    if "jax" in versions:
        __import__("jax").config.update("jax_enable_x64", True)
    return versions


def set_threads(versions, threads):
    if "torch" in versions:
        import torch

        torch.set_num_threads(threads)


def tensor(array):
    """A torch tensor over the same memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_numpy(result):
    import torch

    return (result.float() if result.dtype == torch.bfloat16 else result).numpy()


def attention(case, operands, wanted):
    """Callables for every set (query, key, value) of `operands`, by peer."""
    makers = {"torch": torch_attention, "numpy": numpy_attention, "onnxruntime": onnx_attention, "jax": jax_attention}
    return {name: prepared(makers[name], case, operands) for name in wanted}


def prepared(make, case, operands):
    scores = case.B * case.H * case.L * case.S * max(4, np.dtype(case.compute).itemsize)
    copies = {torch_attention: 0, torch_attention_backward: 0, numpy_attention: 1}.get(make, 2)
    if scores * copies > MEMORY:
        return f"would hold {scores * copies / 1e9:.1f} GB of scores"
    try:
        return make(case, operands)
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def torch_attention(case, operands):
    import torch

    options = torch_options(case, tensor(operands[0][0]).dtype)
    if isinstance(options, str):
        return options

    def call(query, key, value):
        with torch.inference_mode():
            return as_numpy(torch.nn.functional.scaled_dot_product_attention(query, key, value, **options))

    return [functools.partial(call, *map(tensor, arrays)) for arrays in operands]


def torch_options(case, dtype):
    """Keywords of scaled_dot_product_attention, or the reason why there are none."""
    mask, bias = case.dense()
    if case.softcap:
        return "no softcap outside compiled flex_attention"
    if bias is not None and mask is not None:
        bias = np.where(mask, bias, -np.inf).astype(bias.dtype)
    causal = mask is not None and case.causal and not case.window and bias is None
    dense = None if causal else tensor(bias).to(dtype) if bias is not None else mask
    return {
        "attn_mask": tensor(dense) if isinstance(dense, np.ndarray) else dense,
        "is_causal": causal,
        "dropout_p": 0.1 if case.dropout else 0.0,
        "enable_gqa": case.H != case.G,
    }


def torch_attention_backward(case, operands):
    """Operands are followed by the gradient of the output; a bias gets its gradient too."""
    import torch

    *arrays, grad = operands[0]
    options = torch_options(case, tensor(grad).dtype)
    if isinstance(options, str):
        return options
    arrays += [options.pop("attn_mask").numpy()] if case.biased else []

    def forward(query, key, value, bias=None):
        given = options if bias is None else {**options, "attn_mask": bias}
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **given)

    return torch_backward(forward, arrays, grad)


def numpy_attention_backward(case, operands):
    """What NumPy users write for one head group each, with the weights kept from the forward."""
    query, key, value, grad = operands[0]
    mask, bias = case.dense()
    scale = query.dtype.type(1 / math.sqrt(query.shape[-1]))
    weights = query * scale @ key.swapaxes(-1, -2)
    weights += 0 if bias is None else bias
    if mask is not None:
        np.copyto(weights, -np.inf, where=~mask)
    weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(-1, keepdims=True)

    def call():
        of_value = weights.swapaxes(-1, -2) @ grad
        of_scores = grad @ value.swapaxes(-1, -2)
        of_scores -= np.einsum("...ij,...ij->...i", weights, of_scores)[..., None]
        of_scores *= weights
        of_query = scale * (of_scores @ key)
        of_key = scale * (of_scores.swapaxes(-1, -2) @ query)
        return of_query, of_key, of_value

    return lambda: call()[0]


def torch_backward(forward, arrays, grad):
    """PyTorch's autograd from a gradient to those of the arrays: the forward runs once, outside. The first gradient."""
    import torch

    leaves = [tensor(array).clone().requires_grad_() for array in arrays]
    result, grad = forward(*leaves), tensor(grad)

    def call():
        return as_numpy(torch.autograd.grad(result, leaves, grad, retain_graph=True)[0])

    return call


def formula(query, key, value, mask=None, bias=None, softcap=0.0, dropout=0.0):
    """What NumPy users write: all scores at once, each step in place."""
    *batch, heads, rows, head_dim = query.shape
    shared = key.shape[-3]
    stored = query.dtype
    if stored.itemsize == 2:
        query, key, value = (x.astype(np.float32) for x in (query, key, value))
    scale = query.dtype.type(1 / math.sqrt(head_dim))
    grouped = (query * scale).reshape(*batch, shared, -1, head_dim)
    scores = (grouped @ key.swapaxes(-1, -2)).reshape(*batch, heads, rows, -1)
    if softcap:
        scores /= softcap
        np.tanh(scores, out=scores)
        scores *= softcap
    if bias is not None:
        scores += bias
    if mask is not None:
        np.copyto(scores, -np.inf, where=~mask)
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    if dropout:
        scores *= np.random.default_rng(0).random(scores.shape, np.float32) >= dropout
        scores /= 1 - dropout
    weighted = scores.reshape(*batch, shared, -1, scores.shape[-1]) @ value
    return weighted.reshape(*batch, heads, rows, -1).astype(stored, copy=False)


def numpy_attention(case, operands):
    mask, bias = case.dense()
    options = {"mask": mask, "bias": bias, "softcap": case.softcap, "dropout": 0.1 if case.dropout else 0.0}
    return [functools.partial(formula, *arrays, **options) for arrays in operands]


def jax_attention(case, operands):
    import jax
    import jax.numpy as jnp

    if case.softcap or case.dropout:
        return "no softcap or dropout in jax.nn.dot_product_attention"
    mask, bias = case.dense()
    ranged = case.causal or case.window
    options = {"is_causal": case.causal, "local_window_size": case.window}
    mask = None if mask is None or ranged else jnp.asarray(mask)[None, None]
    bias = None if bias is None else jnp.asarray(bias)[None]

    @jax.jit
    def run(query, key, value, mask, bias):
        return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, **options)

    def call(query, key, value):
        return run(query, key, value, mask, bias).block_until_ready().swapaxes(1, 2)

    def native(array):
        return jnp.asarray(np.ascontiguousarray(array.swapaxes(1, 2)))

    return [functools.partial(call, *map(native, arrays)) for arrays in operands]


def session(op, inputs, outputs, attributes, opset):
    """An ONNX Runtime session of one operator; `inputs` maps names to arrays, `outputs` to (type of the array,
    rank)."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    types = {
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "float16": TensorProto.FLOAT16,
        "bool": TensorProto.BOOL,
    }
    node = helper.make_node(op, list(inputs), list(outputs), **attributes)
    declared = [helper.make_tensor_value_info(n, types[a.dtype.name], a.shape) for n, a in inputs.items() if n]
    results = [helper.make_tensor_value_info(n, types[t], [None] * rank) for n, (t, rank) in outputs.items()]
    graph = helper.make_graph([node], op, declared, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bound(ready, inputs, output):
    """A call that reads the arrays in place."""
    binding = ready.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)

    def call():
        binding.bind_output(output)
        ready.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    return call


def onnx_attention(case, operands):
    if case.dtype == "bfloat16":
        return "takes no NumPy bfloat16"
    if case.dropout:
        return "no dropout in Attention"
    mask, bias = case.dense()
    attributes = {"is_causal": int(case.causal and not case.window), "softcap": float(case.softcap)}
    if bias is not None and mask is not None:
        bias = np.where(mask, bias, -np.inf)
    masked = {}
    if bias is not None:
        masked = {"attn_mask": np.ascontiguousarray(np.broadcast_to(bias, (1, *bias.shape[-3:])), case.dtype)}
    elif mask is not None and not attributes["is_causal"]:
        masked = {"attn_mask": mask}
    sets = [dict(zip("QKV", arrays, strict=True)) | masked for arrays in operands]
    ready = session("Attention", sets[0], {"Y": (case.dtype, 4)}, attributes, 23)
    return [bound(ready, inputs, "Y") for inputs in sets]


def elementwise(x, wanted, *, torch=None, numpy=None, onnx=None, jax=None):
    """Callables of a function of one array: torch(tensor), numpy(array), onnx (operator, attributes, rank of the
    result), jax(array)."""
    calls = {}
    for name in wanted:
        try:
            calls[name] = elementwise_peer(
                name, x, {"torch": torch, "numpy": numpy, "onnxruntime": onnx, "jax": jax}[name]
            )
        except Exception as error:
            calls[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return {name: call for name, call in calls.items() if call is not None}


def elementwise_peer(name, x, function):
    if function is None:
        return None
    if name == "numpy":
        return lambda: function(x)
    if name == "onnxruntime":
        operator, attributes, rank = function
        return bound(session(operator, {"X": x}, {"Y": (x.dtype.name, rank)}, attributes, 13), {"X": x}, "Y")
    if name == "torch":
        import torch

        shared = tensor(x)

        def call():
            with torch.inference_mode():
                return as_numpy(function(shared))

        return call
    import jax
    import jax.numpy as jnp

    compiled, shared = jax.jit(function), jnp.asarray(x)
    return lambda: compiled(shared).block_until_ready()
