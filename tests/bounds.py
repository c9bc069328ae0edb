"""What each function's results must be, and how far off they may be.

For every function a list of Expected. u unit roundoff, r_d = E, r_n = 64 + ceil(S / 64); S_i, A_i as in oracle.py.
"""

import functools
import math

import cases_masks
import dense
import numpy as np
import oracle
import oracle_backward
from bounds_layers import (  # noqa: F401, called by their names
    geglu,
    geglu_backward,
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
    relu,
    relu_backward,
    rms_norm,
    rms_norm_backward,
    silu,
    silu_backward,
    swiglu,
    swiglu_backward,
)
from bounds_layers_loss import (  # noqa: F401, called by their names
    cross_entropy,
    cross_entropy_backward,
    embedding,
    embedding_backward,
)
from bounds_softmax import (  # noqa: F401, called by their names
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    softmax,
    softmax_backward,
)
from bounds_tools import LANES, exact_of, finite, oracle_errs
from numerics import HALF, Expected, tiny, unit, wider
from oracle_rotary import ROUNDINGS

import attnpy


def attention_compute(arguments):
    return oracle.compute_type(
        *(np.asarray(arguments[name]) for name in ("query", "key", "value") if name in arguments)
    )


def _cap(compute, reach, E, S):
    """u (8 + 2 r_n + 2 (r_d + 3) S_i): what a weight may be off, as a share of itself."""
    return unit(compute) * (8 + 2 * (64 + math.ceil(S / 64)) + 2 * (E + 3) * reach) * oracle_errs(compute)


def _chain(arguments):
    """r_d: E, and of turned queries and keys what they are off by."""
    return np.shape(arguments["query"])[-1] + (ROUNDINGS if arguments.get("rotary") is not None else 0)


def scaled_dot_product_attention(arguments):
    compute = attention_compute(arguments)
    E, S = _chain(arguments), np.shape(arguments["key"])[-2]
    with_lse = bool(arguments.get("return_lse"))
    exact = oracle.attention(wider(compute), arguments)
    wanted = exact_of("scaled_dot_product_attention", compute, arguments, (exact.output, exact.lse))
    plain = oracle.attention(np.float32, arguments) if _all_float32(arguments) else None
    u = unit(compute)
    cap = _cap(compute, exact.reach, E, S)[..., None] * exact.spread
    floor = tiny(compute) * exact.total
    largest = exact.spread.max(initial=0)
    again = functools.partial(oracle.attention, np.float32, arguments)
    results = [
        Expected(
            "output", wanted[0], cap, plain and plain.output, 2 * u * largest, lambda rng: again(rng).output, floor
        )
    ]
    if with_lse:
        finite = np.where(np.isfinite(exact.lse), np.abs(exact.lse), 0).astype(np.float64)
        cap = u * (8 + 64 + math.ceil(S / 64) + 2 * (E + 3) * exact.reach) * oracle_errs(compute)
        results.append(
            Expected(
                "lse",
                wanted[1],
                cap,
                plain and plain.lse,
                2 * u * max(1, finite.max(initial=0)),
                lambda rng: again(rng).lse,
                u * finite,
            )
        )
    return results


def paged_attention(arguments):
    return scaled_dot_product_attention(dense.of_pages(arguments))


def attention_with_cache(arguments):
    """Of int8 times its scale the product is rounded where keys and values are loaded, a share u of each term."""
    results = scaled_dot_product_attention(dense.of_cache(arguments))
    if arguments["cache"].dtype != np.int8 or attention_compute(arguments) == np.float64:
        return results
    wanted = exact_of("attention_with_cache", np.float32, arguments, None)
    return [x._replace(wanted=y, plain=None) for x, y in zip(results, wanted, strict=True)]


def scaled_dot_product_attention_jvp(arguments):
    """Output and log-sum-exp as the forward's; tangents err as weights do and as the products of ds do.

    A softcap's slope 1 - tanh^2 is off by as much as its tanh, twice.
    """
    compute = attention_compute(arguments)
    E, S = _chain(arguments), np.shape(arguments["key"])[-2]
    u = unit(compute)
    base = {k: v for k, v in arguments.items() if not k.endswith("_tangent")}
    results = scaled_dot_product_attention(base)
    exact, tangents = oracle.attention_jvp(wider(compute), arguments)
    both = {"query_tangent": None, "key_tangent": None, "value_tangent": None, **arguments, "return_lse": True}
    wanted = exact_of("scaled_dot_product_attention_jvp", compute, both, (None, tangents.output, None, tangents.lse))
    plain = oracle.attention_jvp(np.float32, arguments)[1] if _all_float32(arguments) else None

    def again(rng):
        return oracle.attention_jvp(np.float32, arguments, rng)[1]

    softcap = arguments.get("softcap") or math.inf
    cap = _cap(compute, exact.reach, E, S) + u * oracle_errs(compute) * (E + 16 + 2 * (E + 3) * exact.reach / softcap)
    moved = tangents.output_size
    floor = tiny(compute) * (exact.total + moved)
    results.insert(
        1,
        Expected(
            "output_tangent", wanted[1], cap[..., None] * moved, plain and plain.output, 2 * u * moved.max(initial=0),
            lambda rng: again(rng).output, floor,
        ),
    )  # fmt: skip
    if len(results) == 3:
        moved = tangents.lse_size
        size = np.maximum(1, exact.reach)  # a score is rounded by u times its size in whichever order terms are added
        results.append(
            Expected(
                "lse_tangent", wanted[3], cap * moved, plain and plain.lse, 2 * u * (moved * size).max(initial=0),
                lambda rng: again(rng).lse, S * tiny(compute),
            )
        )  # fmt: skip
    return results


def longformer_attention(arguments):
    """Row by row that of the call which the row comes of."""
    local, full, chosen = cases_masks.local_and_global(arguments)
    (of_local,), (of_full,) = scaled_dot_product_attention(local), scaled_dot_product_attention(full)
    rows = chosen[..., None, :, None] if chosen.ndim > 1 else chosen[:, None]

    def joined(full, local):
        return None if full is None or local is None else np.where(rows, full, local)

    def again(rng):
        return joined(of_full.again(rng), of_local.again(rng))

    parts = {
        name: joined(getattr(of_full, name), getattr(of_local, name)) for name in ("wanted", "cap", "plain", "floor")
    }
    return [Expected("output", **parts, slack=max(of_full.slack, of_local.slack), again=again)]


def attention_weights(arguments):
    compute, rows = attention_compute(arguments), arguments.get("rows")
    E, S = _chain(arguments), np.shape(arguments["key"])[-2]
    rows = slice(None) if rows is None else np.asarray(rows, np.intp)
    exact = oracle.attention(wider(compute), arguments)
    plain = oracle.attention(np.float32, arguments).weights[..., rows, :] if _all_float32(arguments) else None
    weights = exact.weights[..., rows, :]
    wanted = exact_of("attention_weights", compute, arguments, (weights,))[0]
    cap = _cap(compute, exact.reach, E, S)[..., rows, None] * weights.astype(np.float64)
    slack = 2 * unit(compute) * float(weights.max(initial=0))
    again = functools.partial(oracle.attention, np.float32, arguments)
    return [Expected("weights", wanted, cap, plain, slack, lambda rng: again(rng).weights[..., rows, :], tiny(compute))]


def attention_received(arguments):
    """The caps of the weights, summed, and what summing L terms in blocks of 64 costs."""
    compute = attention_compute(arguments)
    E, L, S = _chain(arguments), np.shape(arguments["query"])[-2], np.shape(arguments["key"])[-2]
    exact = oracle.attention(wider(compute), arguments)
    plain = oracle.attention(np.float32, arguments).weights.sum(-2) if _all_float32(arguments) else None
    weights = exact.weights.astype(np.float64)
    wanted = exact_of("attention_received", compute, arguments, (exact.weights.sum(-2),))[0]
    cap = _cap(compute, exact.reach, E, S)[..., None] * weights
    cap = cap.sum(-2) + unit(compute) * (64 + math.ceil(L / 64)) * weights.sum(-2)
    slack = 2 * unit(compute) * float(weights.sum(-2).max(initial=0))
    again = functools.partial(oracle.attention, np.float32, arguments)
    return [Expected("received", wanted, cap, plain, slack, lambda rng: again(rng).weights.sum(-2), L * tiny(compute))]


def scaled_dot_product_attention_backward(arguments):
    """Of the exact function of what was given, `output` and `lse` included.

    P is off by kappa = 8 + 2 (E + 3) S_i + E |lse_i| of itself: the score is a chain over E with three more roundings,
    taken at the inputs' and the exponential's scale, that may start at -lse_i; 8 for exp and the multiplications.
    dP and delta are chains over D, the first of which may start at -delta: their difference is off by D + 3 of
    B_ij + C_i, B = M sum_d |dO v|, C = sum_d |dO O| + |dlse|. From there see _gradients.
    """
    size = _chain(arguments), np.shape(arguments["value"])[-1]

    def errors_of(p):
        return 8 + 2 * (size[0] + 3) * p.reach + size[0] * p.lse, size[1] + 3

    return _gradients("scaled_dot_product_attention_backward", arguments, errors_of)


def attention_weights_backward(arguments):
    """The log-sum-exp is made here, off by 8 + r_n + 2 (E + 3) S_i + |lse_i| (see the forward), and P by that besides;
    delta is a sum of S terms, off by what P is and r_n of C_i = sum_j P |dP|; B = |dP|.
    """
    E, r_n = _chain(arguments), 64 + math.ceil(np.shape(arguments["key"])[-2] / 64)

    def errors_of(p):
        of_weights = 16 + r_n + 4 * (E + 3) * p.reach + (E + 1) * p.lse
        return of_weights, of_weights + r_n

    return _gradients("attention_weights_backward", arguments, errors_of)


def _gradients(function, arguments, errors_of):
    """kappa, lambda: units that P is off, as a share of itself, and dP - delta, of B + C. With W = P (B + C)

    dS is off by u (kappa + lambda) W, and T = f dS with f = 1 - tanh^2 by u ((kappa + lambda) f + 4 +
    2 (E + 3) f sum_d |scale q k| / softcap) W: the argument of tanh is off like a score, and 1 - t^2 cancels.
    dV is off by sum_i M (errors of P) |dO|, dQ by |scale| sum_j (errors of T) |k|, dK likewise; what sums of n terms in
    blocks of 64 add is u r sum |terms|, r = 64 + the number of blocks: of L / 64 rows in each head of a group (dV, dK),
    S / 64 keys (dQ), times the places of an operand that broadcasts. A sink's share exp(sink - lse) is off by kappa +
    |lse_i|, its delta by lambda C_i. Weights below 2^-126 may count as 0. Beside NumPy's formula: a log-sum-exp that is
    rounded to u |lse| leaves the weights uncertain by as much, which NumPy may be lucky not to show.
    """
    compute = attention_compute(arguments)
    u = unit(compute)
    p = oracle_backward.pairs(wider(compute), arguments)
    exact = oracle_backward.gradients(p, arguments)
    if compute == np.float32:
        reference = getattr(attnpy.reference, function)(**{k: v for k, v in arguments.items() if k != "out"})
        exact = {name: getattr(reference, name) for name in exact}
    small = _all_float32(arguments)
    plain = oracle_backward.gradients(oracle_backward.pairs(np.float32, arguments), arguments) if small else {}
    kappa, lambda_ = errors_of(p)
    magnitudes = [finite(x) for x in (p.weights, p.slope, p.dropped, p.share, p.scale)]
    weights, slope, dropped, share, scale = magnitudes
    both = np.where(p.visible, p.parts + p.delta_parts, 0.0)
    softcap = arguments.get("softcap")
    of_slope = 4 + 2 * (_chain(arguments) + 3) * slope * p.product / softcap if softcap else 0.0
    sizes = p._replace(
        query=finite(p.query_size), key=finite(p.key_size), distance=finite(p.distance), scale=scale,
        grad_output=None if p.grad_output is None else finite(p.grad_output),
    )  # fmt: skip

    def summed(weights, off_dropped, off_score, off_product, off_share):
        return oracle_backward.gradients(
            sizes, arguments, off_dropped * dropped * weights, off_score * both * weights,
            off_product * both * weights, off_share * p.delta_parts,
        )  # fmt: skip

    errors = summed(
        weights, kappa, kappa + lambda_, (kappa + lambda_) * slope + of_slope, (kappa + p.lse + lambda_) * share
    )
    terms = summed(weights, 1.0, 1.0, slope, share)
    rounded = summed((1 + p.lse) * weights, 1.0, 1.0, slope, (1 + p.lse) * share)
    lost = summed(np.where(p.visible, tiny(compute), 0.0), 1.0, 1.0, slope, tiny(compute) * (share > 0))
    results = []
    for name in exact:
        cap = u * oracle_errs(compute) * (errors[name] + _steps(name, arguments) * terms[name])
        numpy_has = plain.get(name) if np.asarray(arguments[name]).dtype.name not in HALF else None
        slack = 2 * u * rounded[name].max(initial=0)
        results.append(Expected(name, exact[name], cap, numpy_has, slack, _again(name, arguments), lost[name]))
    return results


def _again(name, arguments):
    """NumPy's float32 gradient, its sums in other orders."""
    needed = {**arguments, "needs": (name,)}

    def again(rng):
        return oracle_backward.gradients(oracle_backward.pairs(np.float32, needed, rng), needed, rng=rng)[name]

    return again


def _steps(name, arguments):
    """r: the roundings of the sums that end in an element of a gradient."""
    batch, H, G, L, S, _ = oracle.sizes(**arguments)
    shape = np.shape(arguments[name])
    rows, keys, core = math.ceil(L / 64), math.ceil(S / 64), {"sinks": 1, "alibi_slopes": 1}.get(name, 3)
    padded = (1,) * (len(batch) + core - len(shape)) + shape
    places = math.prod(batch) // max(math.prod(padded[: len(batch)]), 1)
    if name in ("query", "key", "value"):
        turned = ROUNDINGS if arguments.get("rotary") is not None else 0  # what it is multiplied by, and turning back
        return 64 + turned + places * (keys if name == "query" else rows * max(H // max(G, 1), 1))
    if name in oracle.ADDITIVE:
        sums = [n for n, whole in zip(padded[-2:], (L, S), strict=True) if n != whole]
        heads = H if padded[-3] == 1 else 1
        blocks = (rows if padded[-2] == 1 else 1) * (keys if padded[-1] == 1 else 1)
        return 64 * len(sums) + places * heads * blocks
    if name == "relative_bias":  # a diagonal, then those of a tile beyond -K or K; row blocks, key blocks, heads
        return 64 + 127 + rows + keys + places * (H if padded[-3] == 1 else 1)
    return 64 + places * rows if name == "sinks" else 128 + places * rows * keys


def merge_attention(arguments):
    """The attention of one query to `parts` keys whose scores are the log-sum-exps: r_d = 0, r_n = parts."""
    outputs, lses = arguments["outputs"], arguments["lses"]
    compute = oracle.compute_type(*(np.asarray(x) for x in outputs))
    parts, u = len(lses), unit(compute)
    merged = oracle.merge(wider(compute), outputs, lses)
    wanted = exact_of("merge_attention", compute, arguments, merged[:2])
    stacked = np.stack([np.asarray(x, np.float64) for x in lses])
    reach = np.where(np.isfinite(stacked), np.abs(stacked), 0).max(0)
    scale = oracle_errs(compute)
    cap = u * (8 + 2 * parts + 6 * reach) * scale
    finite = np.where(np.isfinite(merged[1]), np.abs(merged[1]), 0).astype(np.float64)
    plain = (
        oracle.merge(np.float32, outputs, lses)
        if all(np.asarray(x).dtype == np.float32 for x in outputs)
        else (None, None)
    )
    return [
        Expected(
            "output",
            wanted[0],
            cap[..., None] * merged[2],
            plain[0],
            2 * u * merged[2].max(initial=0),
            floor=tiny(compute),
        ),
        Expected(
            "lse",
            wanted[1],
            u * (8 + parts + 6 * reach) * scale,
            plain[1],
            2 * u * max(1, finite.max(initial=0)),
            floor=u * finite,
        ),
    ]


def merge_attention_backward(arguments):
    """lse_t - lse is rounded in float64 calls, |lse_t - lse| u as a share; exp, its rounding and the product, 4 u.

    The inner product: 73 + D / (64 LANES) roundings of the sum of its |terms|; the sum with dlse and the last rounding,
    2 u. Sums over n broadcast elements: 64 + n / 64.
    """
    import attnpy._core

    names = ("grad_output", "outputs", "lses", "output", "lse", "grad_lse")
    given = {k: arguments[k] for k in names if arguments.get(k) is not None}
    arrays = [np.asarray(x) for x in (given["grad_output"], *given["outputs"], given["output"])]
    compute, D = oracle.compute_type(*arrays), arrays[0].shape[-1]
    exact = oracle.merge_backward(wider(compute), **given)
    small = {x.dtype for x in (*arrays, *(np.asarray(given[k]) for k in ("lses", "lse")))} == {np.dtype(np.float32)}
    plain = oracle.merge_backward(np.float32, **given) if small else (None, None)
    wanted = exact_of("merge_attention_backward", compute, given, tuple(x.gradient for x in exact))
    u, steps = unit(compute), 73 + D / (64 * (LANES[attnpy._core.isa] // compute.itemsize))
    floor = max(u * tiny(compute), 2.0**-1074) * (2 + np.abs(arrays[0].astype(np.float64)).max(initial=0)) * (D + 2)
    results = []
    for name, right, of, theirs in zip(("grad_outputs", "grad_lses"), wanted, exact, plain, strict=True):
        sums = 64 + of.summed / 64 if of.summed > 1 else 0
        cap = u * ((6 + sums) * of.size + of.apart + steps * of.inner) * oracle_errs(compute)
        slack = 2 * u * (of.size + of.inner).max(initial=0)
        results.append(Expected(name, right, cap, theirs and theirs.gradient, slack, floor=floor * max(1, of.summed)))
    return results


def dropout_mask(arguments):
    """1 / (1 - p), rounded once."""
    wanted = attnpy.reference.dropout_mask(**{**arguments, "dtype": np.float64})
    kind = np.dtype(arguments["dtype"])
    if kind.kind == "b":
        return [Expected("mask", attnpy.reference.dropout_mask(**arguments).astype(np.float64), np.zeros(()))]
    return [Expected("mask", wanted, (2.0**-53 if kind == np.float64 else 2.0**-24) * wanted)]


def _all_float32(arguments):
    return all(
        np.asarray(arguments[name]).dtype == np.float32 for name in ("query", "key", "value") if name in arguments
    )
