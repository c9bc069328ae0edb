"""attnpy's functions on CPU tensors of PyTorch, and attnpy as an attention implementation of transformers.

A call with a tensor gives tensors. Memory is shared, nothing is copied on the way in or out, and gradients flow where
PyTorch records them. Second derivatives are refused.
"""

import numpy as np
import torch
from torch.autograd import forward_ad

import attnpy

from .._native import core as _core
from ._gradients import RULES

__all__ = ["dropout_key", "handler_of", "register_with_transformers"]

SCALARS = {bool, int, float, str}  # types that hold no tensor


def handler_of(kind):
    return handle if issubclass(kind, torch.Tensor) else None


def handle(name, arguments):
    """The results of attnpy._core's function, as tensors."""
    rule, records = RULES.get(name), torch.is_grad_enabled()
    forward_mode = forward_ad._current_level >= 0
    plain = list(arguments)
    for place, x in enumerate(arguments):
        if x is not None and type(x) not in SCALARS:
            if (records and _any(_requires_grad, x)) or (forward_mode and _any(_has_tangent, x)):
                return _recorded(name, rule, arguments)
            plain[place] = _plain(x, rule and rule.names, place)
    found = getattr(_core, name)(*plain)
    if arguments[-1] is not None:
        return _with_out(found, plain[-1], arguments[-1])
    return tuple([_tensor(x) for x in found]) if type(found) is tuple else _tensor(found)


def _any(holds, x):
    """Whether it holds for a tensor, or for one in a sequence."""
    if isinstance(x, torch.Tensor):
        return holds(x)
    return isinstance(x, tuple | list) and any([_any(holds, y) for y in x])


def _requires_grad(tensor):
    return tensor.requires_grad


def _has_tangent(tensor):
    return forward_ad.unpack_dual(tensor).tangent is not None  # which PyTorch then says there is no rule for


def _plain(x, names, place):
    """With an array in the place of each tensor."""
    if isinstance(x, torch.Tensor):
        return _array(x, names, place)
    return type(x)([_plain(y, names, place) for y in x]) if isinstance(x, tuple | list) else x


def _array(tensor, names=None, place=None):
    """The tensor's memory as an ndarray; no gradient by it may be being recorded. names[place] is what it is called."""
    try:
        if tensor.dtype is torch.bfloat16:
            return tensor.detach().view(torch.int16).numpy().view(_bfloat16())
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        what = f"argument {place}" if names is None else names[place]
        if tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_quantized:
            raise TypeError(f"{what} cannot be read as an array: {error}") from error
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise TypeError(
            f"{what} is a {kind} tensor on {tensor.device}; attnpy takes dense tensors on the CPU"
        ) from error


def _bfloat16():
    from ml_dtypes import bfloat16

    return bfloat16


def _tensor(x):
    """A result as a tensor on its memory."""
    if x is None:
        return None
    if type(x) is not np.ndarray:
        x = np.asarray(x)
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.kind == "V" else torch.from_numpy(x)


def _with_out(found, arrays, out):
    """The results, out as it was given."""
    several = type(out) is tuple
    given = {id(array): one for array, one in (zip(arrays, out) if several else [(arrays, out)]) if one is not None}
    for one in given.values():
        if isinstance(one, torch.Tensor) and not one.is_inference():
            torch.autograd.graph.increment_version(one)  # so that it is noticed where a gradient needs what it held
    results = [given[id(x)] if id(x) in given else _tensor(x) for x in (found if type(found) is tuple else [found])]
    return tuple(results) if type(found) is tuple else results[0]


class _Record:
    """A call whose gradients are recorded: its rule, its arguments without their tensors, where those stood."""

    __slots__ = ("arguments", "besides", "name", "names", "places", "rule")


def _recorded(name, rule, arguments):
    if rule is None:
        raise TypeError(f"{name} has no derivative: detach its arguments, or call it under torch.no_grad()")
    if arguments[-1] is not None:
        raise TypeError(f"out is given, but an operand of {name} requires a gradient: nothing can be written then")
    record = _Record()
    record.name, record.rule = name, rule
    record.arguments, record.names = rule.spread(arguments)
    record.places, tensors = [], []
    for place, x in enumerate(record.arguments):
        if x is None or type(x) in SCALARS or not isinstance(x, torch.Tensor):
            continue
        what = record.names[place]
        if x.requires_grad and not rule.differentiates(what):
            raise TypeError(f"{what} requires a gradient, but {name} has no derivative by it: pass {what}.detach()")
        record.arguments[place] = None
        record.places.append(place)
        tensors.append(x)
    return _Call.apply(record, *tensors)


class _Call(torch.autograd.Function):
    """Tensors that others can change are saved as such: PyTorch notices if that happens before the gradients."""

    @staticmethod
    def forward(ctx, record, *tensors):
        arguments = list(record.arguments)
        for place, tensor in zip(record.places, tensors):
            arguments[place] = _array(tensor, record.names, place)
        results, record.besides = record.rule.forward(arguments)
        found = [_tensor(x) for x in results]
        if record.rule.needs_results:
            tensors += tuple(found)
        ctx.save_for_backward(*tensors)
        ctx.record = record
        ctx.set_materialize_grads(False)
        return found[0] if len(found) == 1 else tuple(found)

    @staticmethod
    def backward(ctx, *gradients):
        if all(gradient is None for gradient in gradients):
            return (None,) * len(ctx.needs_input_grad)
        record = ctx.record
        places = [place for place, wanted in zip(record.places, ctx.needs_input_grad[1:]) if wanted]
        compute = _Gradient.apply if torch.is_grad_enabled() else _gradient
        found = dict(zip(places, compute(record, places, len(gradients), *gradients, *ctx.saved_tensors)))
        return (None, *map(found.get, record.places))


def _gradient(record, places, results, *tensors):
    """The gradients by the arguments at these places. tensors: those of the results, then what the call has saved."""
    gradients = [None if gradient is None else _array(gradient) for gradient in tensors[:results]]
    arrays, arguments = [_array(x) for x in tensors[results:]], list(record.arguments)
    for place, array in zip(record.places, arrays):
        arguments[place] = array
    needed = (*arrays[len(record.places) :], *record.besides)
    found = record.rule.backward(arguments, needed, gradients, places)
    return tuple([_tensor(found[place]) for place in places])


class _Gradient(torch.autograd.Function):
    """The gradients where their own are recorded (create_graph=True): to ask for those is an error."""

    @staticmethod
    def forward(ctx, record, *others):
        ctx.name = record.name
        return _gradient(record, *others)

    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError(f"{ctx.name}_backward has no derivative: attnpy computes first derivatives only")


def dropout_key(generator=None):
    """A key for dropout, from PyTorch's random numbers.

    Parameters
    ----------
    generator : torch.Generator, optional
        It gives up four integers. The default is the one that `torch.manual_seed` sets.

    Returns
    -------
    attnpy.DropoutKey
    """
    return attnpy.DropoutKey(torch.randint(2**32, (4,), dtype=torch.int64, generator=generator).tolist())


def register_with_transformers():
    """Makes ``attn_implementation="attnpy"`` known to the models of Hugging Face transformers.

    Raises
    ------
    ImportError
        If transformers is missing, or older than 4.53.

    Notes
    -----
    Models on the CPU then run, train and generate with attnpy's attention, their padding, caches, sliding windows, soft
    caps, sinks and position biases included. Dropout follows `torch.manual_seed`. Weights are computed for
    ``output_attentions=True`` only, and only for models that tell their attention so.

    Examples
    --------
    >>> from attnpy.integrations import register_with_transformers
    >>> register_with_transformers()                                                      # doctest: +SKIP
    >>> model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="attnpy")  # doctest: +SKIP
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register("attnpy", _attention_of_transformers)
    AttentionMaskInterface.register("attnpy", sdpa_mask)  # without it, models make no mask: padding would be seen


def _attention_of_transformers(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    is_causal=None,
    softcap=None,
    s_aux=None,
    position_bias=None,
    output_attentions=False,
    **others,
):
    """query, key and value (B, H or G, L or S, D) → output (B, L, H, D), and weights (B, H, L, S) or None.

    A mask says all: causality, padding, the sliding window. sdpa_mask makes none where all keys are visible, or the
    first query stands at the first key and causality alone is left; then keys beyond the queries are free places of a
    cache. A single query sees all keys.
    """
    if others.get("cache") is not None:
        raise ValueError("attention in pages (continuous batching) is not supported by attn_implementation='attnpy'")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    options = {"scale": scaling, "softcap": softcap, "sinks": s_aux, "bias": position_bias, "causal_offset": 0}
    options["is_causal"] = bool(is_causal) and attention_mask is None and query.shape[-2] > 1
    rng = dropout_key() if dropout > 0 else None
    output = attnpy.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout_p=dropout, rng=rng, **options
    )
    weights = None
    if output_attentions:
        weights = attnpy.attention_weights(query, key, attention_mask, **options)
        if rng is not None:
            kept = attnpy.dropout_mask(tuple(weights.shape), dropout, rng, dtype=np.float32)
            weights = weights * torch.from_numpy(kept).to(weights.dtype)
    return output.transpose(1, 2).contiguous(), weights
