"""scaled_dot_product_attention_jvp: against the reference, central differences, the forward and the backward pass."""

import itertools

import bounds
import numpy as np
import pytest
from inputs import OPTIONS, TYPES, check_call, operands, options_of, seed_of
from numerics import errors, same_bits, unit

import attnpy

JVP = "scaled_dot_product_attention_jvp"
NAMES = ("query", "key", "value")
SIZES = [(3, 64, 8, 4, 2), (63, 65, 17, 4, 4), (65, 130, 8, 3, 1), (130, 140, 16, 2, 2), (1, 200, 16, 8, 2)]
PAIRS = list(itertools.combinations(OPTIONS, 2))


def moved(rng, dtype, names, *, L=5, S=7, E=8, H=4, G=2, batch=(2,)):
    """The arguments of a call with these options and all their tangents; None if the options exclude each other."""
    options = options_of(names, rng, batch, H, L, S)
    if options is None:
        return None
    shapes = {"batch": batch, "H": H, "G": G, "L": L, "S": S, "E": E, "D": E + 1}
    arguments = dict(zip(NAMES, operands(rng, dtype, **shapes), strict=True))
    arguments |= {f"{x}_tangent": t for x, t in zip(NAMES, operands(rng, dtype, **shapes), strict=True)}
    for name in {"bias", "sinks"} & options.keys():
        arguments[f"{name}_tangent"] = rng.standard_normal(np.shape(options[name]))
    return arguments | options | {"return_lse": True}


def thinned(rng, arguments):
    """The same call, a third of the tangents left out."""
    gone = {name: None for name in arguments if name.endswith("_tangent") and rng.random() < 1 / 3}
    return arguments | gone


def forward(arguments, step):
    """(output, lse) of the reference, `step` along the direction."""
    rest = {k: v for k, v in arguments.items() if not k.endswith("_tangent")}
    direction = {k: v for k, v in arguments.items() if k not in rest and v is not None}
    ahead = {k.removesuffix("_tangent"): rest[k.removesuffix("_tangent")] + step * v for k, v in direction.items()}
    return attnpy.reference.scaled_dot_product_attention(**rest | ahead)


def quotient(arguments, step):
    """Central differences; a log-sum-exp of -inf stays where it is."""
    ahead, behind = forward(arguments, step), forward(arguments, -step)
    return [np.where(x == y, 0.0, x - y) / (2 * step) for x, y in zip(ahead, behind, strict=True)]


@np.errstate(invalid="ignore")
def check_slope(arguments, note):
    """Both tangents against central differences of the reference, extrapolated to a step of 0.

    With steps h and h/2 the term in h^2 goes, and its size is seen; what is left is h^2 = 2^-20 of it, times what the
    next derivative is larger, for which 2^12 are allowed. Rounding is divided by h.
    """
    h = 2.0**-10
    coarse, fine = quotient(arguments, h), quotient(arguments, h / 2)
    results = forward(arguments, 0.0)
    for name, function in (("attnpy", attnpy), ("reference", attnpy.reference)):
        got = getattr(function, JVP)(**arguments)
        for n, (rough, slope) in enumerate(zip(coarse, fine, strict=True)):
            size = max(1, np.abs(results[n], where=np.isfinite(results[n]), out=np.zeros(slope.shape)).max(initial=0))
            allowed = 2.0**-8 * np.abs(slope - rough).max(initial=0) + 256 * unit(np.float64) * size / h
            error = np.abs(got[2 * n + 1] - (4 * slope - rough) / 3).max(initial=0)
            assert error <= allowed, f"{note}, {name}, result {2 * n + 1}: {error:.3g} off, {allowed:.3g} are allowed"


@pytest.mark.parametrize("name", ["nothing", *OPTIONS])
def test_is_the_slope_of_the_forward(name):
    for L, S in ((5, 7), (7, 5), (1, 9)):
        rng = np.random.default_rng(seed := seed_of(name, L))
        check_slope(moved(rng, np.float64, () if name == "nothing" else (name,), L=L, S=S), f"{name}, seed {seed}")


@pytest.mark.parametrize("pair", PAIRS, ids=" & ".join)
def test_is_the_slope_of_the_forward_with_two_options(pair):
    rng = np.random.default_rng(seed := seed_of(pair))
    arguments = moved(rng, np.float64, pair, L=6, S=9)
    if arguments is not None:
        check_slope(thinned(rng, arguments), f"{' with '.join(pair)}, seed {seed}")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["nothing", *OPTIONS])
def test_every_option(name, dtype):
    for L, S, E, H, G in SIZES:
        rng = np.random.default_rng(seed := seed_of(name, dtype, L, S))
        names = () if name == "nothing" else (name,)
        arguments = moved(rng, TYPES[dtype], names, L=L, S=S, E=E, H=H, G=G)
        got = check_call(JVP, arguments, f"{name}, seed {seed}")
        assert [x.dtype for x in got[:2]] == [TYPES[dtype]] * 2
        assert [x.shape for x in got] == [(2, H, L, E + 1)] * 2 + [(2, H, L)] * 2


@pytest.mark.parametrize("pair", PAIRS, ids=" & ".join)
def test_every_pair_of_options(pair):
    rng = np.random.default_rng(seed := seed_of(pair))
    L, S, E, H, G = SIZES[seed % len(SIZES)]
    arguments = moved(rng, TYPES[list(TYPES)[seed % 4]], pair, L=L, S=S, E=E, H=H, G=G)
    if arguments is not None:
        check_call(JVP, thinned(rng, arguments), f"{' with '.join(pair)}, seed {seed}")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["nothing", *OPTIONS])
def test_output_has_the_bits_of_the_forward(name, dtype):
    """Where the forward takes whole row blocks over all keys too."""
    for L, S in ((65, 130), (9, 1000), (130, 64)):
        rng = np.random.default_rng(seed_of(name, dtype, L))
        arguments = moved(rng, TYPES[dtype], () if name == "nothing" else (name,), L=L, S=S)
        plain = {k: v for k, v in arguments.items() if not k.endswith("_tangent")}
        got, wanted = getattr(attnpy, JVP)(**arguments), attnpy.scaled_dot_product_attention(**plain)
        for n in range(2):
            same_bits(got[2 * n], wanted[n], f"{name} {dtype} L{L} S{S}, result {2 * n}")


# --- against the reverse mode

DIRECTIONS = (*NAMES, "bias", "sinks")


@pytest.mark.parametrize("names", [(), *((name,) for name in OPTIONS), *PAIRS], ids=" & ".join)
def test_is_the_transpose_of_the_backward(names):
    """u . J v = J^T u . v, with the errors that J v may have, and as many again for J^T u, which sums over S and L."""
    rng = np.random.default_rng(seed := seed_of("transpose", names))
    arguments = moved(rng, np.float64, names, L=33, S=70)
    if arguments is None:
        return
    output, output_tangent, lse, lse_tangent = getattr(attnpy, JVP)(**arguments)
    u, w = rng.standard_normal(output.shape), rng.standard_normal(lse.shape)
    rest = {k: v for k, v in arguments.items() if not k.endswith("_tangent") and k != "return_lse"}
    needs = [name for name in DIRECTIONS if name in rest]
    gradients = attnpy.scaled_dot_product_attention_backward(u, **rest, output=output, lse=lse, grad_lse=w, needs=needs)
    forwards = (u * output_tangent).sum() + (w * lse_tangent).sum()
    backwards = sum((getattr(gradients, name) * arguments[f"{name}_tangent"]).sum() for name in needs)
    _, tangent, _, mean = bounds.scaled_dot_product_attention_jvp(arguments)
    allowed = 4 * float((np.abs(u) * tangent.cap).sum() + (np.abs(w) * mean.cap).sum())
    assert abs(forwards - backwards) <= allowed, f"{names}, seed {seed}: {forwards} and {backwards}, {allowed} allowed"


# --- by hand


def test_two_keys():
    """s = (0, x): O = p2 with p2 = 1 / (1 + e^-x), whose slope is p1 p2."""
    for x in (-3.0, 0.0, 0.5, 30.0):
        query, key, value = np.array([[1.0]]), np.array([[0.0], [x]]), np.array([[0.0], [1.0]])
        _, slope, _, mean = getattr(attnpy, JVP)(
            query, key, value, None, [[0.0], [1.0]], None, scale=1, return_lse=True
        )
        p = 1 / (1 + np.exp(-x))
        assert abs(slope[0, 0] - p * np.exp(-x) * p) <= 8 * 2.0**-53 and abs(mean[0] - p) <= 8 * 2.0**-53


def test_rows_that_see_nothing_and_sinks():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 8), np.float32)
    hidden = np.zeros((4, 4), bool)
    given = {"attn_mask": hidden, "return_lse": True}
    _, tangent, lse, mean = getattr(attnpy, JVP)(x, x, x, x, x, x, **given)
    assert not tangent.any() and not mean.any() and (lse == -np.inf).all()
    sinks, moves = np.float32([1, -np.inf, 0]), np.float32([5, np.nan, 7])
    given |= {"sinks": sinks, "sinks_tangent": moves, "query_lengths": 3, "kv_lengths": 4}
    _, tangent, lse, mean = getattr(attnpy, JVP)(x, x, x, x, x, x, **given)
    assert not tangent.any()
    same_bits(lse[:, :3], np.repeat(sinks[:, None], 3, 1), "the sink itself")
    same_bits(mean[:, :3], np.repeat(np.float32([[5], [0], [7]]), 3, 1), "as the sink moves")
    assert not mean[:, 3:].any() and (lse[:, 3:] == -np.inf).all(), "beyond the length there is no sink"


def test_a_sink_that_stands_still_beside_others_that_move():
    arguments = moved(np.random.default_rng(2), np.float64, ("causal", "bias", "sinks"), L=70, S=70)
    still, zeros = (getattr(attnpy, JVP)(**{**arguments, "sinks_tangent": x}) for x in (None, np.zeros(4)))
    for ours, theirs in zip(still, zeros, strict=True):
        same_bits(ours, theirs, "no tangent")


@pytest.mark.parametrize("dtype", TYPES)
def test_nan_in_a_query_tangent_stays_in_its_row(dtype):
    arguments = moved(np.random.default_rng(1), TYPES[dtype], ("causal",), L=70, S=70)
    wanted = getattr(attnpy, JVP)(**arguments)
    arguments["query_tangent"][0, 1, 37, 3] = np.nan
    got = getattr(attnpy, JVP)(**arguments)
    reached = np.zeros((2, 4, 70), bool)
    reached[0, 1, 37] = True
    for n in range(4):
        same_bits(got[n][~reached], wanted[n][~reached], f"result {n} of other rows")
        assert np.isnan(got[n][reached].astype(float)).all() == (n % 2 == 1), f"result {n} of that row"


def test_a_missing_tangent_is_zero():
    rng = np.random.default_rng(2)
    arguments = moved(rng, np.float32, ("bias",), L=70, S=130)
    for absent in itertools.product((False, True), repeat=4):
        names = [name for name, gone in zip((*NAMES, "bias"), absent, strict=True) if gone]
        zeros = {f"{name}_tangent": np.zeros(np.shape(arguments[name]), np.float32) for name in names}
        expected = bounds.scaled_dot_product_attention_jvp(arguments | zeros)
        got = getattr(attnpy, JVP)(**arguments | dict.fromkeys(zeros))
        for result, wanted in zip(got, expected, strict=True):
            assert (errors(result, wanted.wanted) <= wanted.cap + wanted.floor).all(), f"without {names}: {wanted.name}"
    nothing = getattr(attnpy, JVP)(**arguments | {f"{name}_tangent": None for name in (*NAMES, "bias")})
    assert not nothing[1].any() and not nothing[3].any()


# --- numbers far from 1


@pytest.mark.parametrize("shift", [2.0**13, -(2.0**20)])
@pytest.mark.parametrize("name", ["nothing", "causal", "bool mask", "sinks", "dropout"])
def test_what_all_scores_have_in_common_costs_nothing(name, shift):
    """Tangents of scores and sinks moved by the same number move the log-sum-exp alone. Multiples of 1/8 stay exact."""
    rng = np.random.default_rng(seed := seed_of(name, shift))
    arguments = moved(rng, np.float32, () if name == "nothing" else (name,), L=70, S=200)
    arguments |= {"bias": np.zeros((70, 200), np.float32), "query_tangent": None, "key_tangent": None}
    arguments["bias_tangent"] = rng.integers(-16, 17, (70, 200)) / 8
    if name == "sinks":
        arguments["sinks_tangent"] = rng.integers(-16, 17, 4) / 8
    common = {k: shift + v for k, v in arguments.items() if k in ("bias_tangent", "sinks_tangent")}
    _, tangent, lse, mean = getattr(attnpy, JVP)(**arguments | common)
    _, output, _, still = bounds.scaled_dot_product_attention_jvp(arguments)
    assert (errors(tangent, output.wanted) <= output.cap + output.floor).all(), f"{name} {shift}, seed {seed}"
    wanted = np.where(np.isfinite(lse), still.wanted + shift, 0.0)
    allowed = still.cap + still.floor + 2 * unit(np.float32) * abs(shift)
    assert (errors(mean, wanted) <= allowed).all(), f"{name} {shift}, seed {seed}"


@pytest.mark.parametrize("level", [-120, 300])
def test_scores_far_from_zero(level):
    rng = np.random.default_rng(seed_of(level))
    arguments = moved(rng, np.float32, ("causal",), L=70, S=70)
    check_call(JVP, arguments | {"bias": np.full((70, 70), level, np.float32)}, f"scores about {level}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_that_overflow_where_the_weight_is_zero(dtype):
    """Keys so far below the others that they weigh nothing, whose products with the tangents are beyond the type."""
    rng = np.random.default_rng(3)
    huge = TYPES[dtype].type(2.0**120 if dtype == "float32" else 2.0**1000)
    arguments = moved(rng, TYPES[dtype], (), L=70, S=70, E=8)
    few = {
        name: x[:, :, :67] if name.startswith(("key", "value")) else x
        for name, x in arguments.items()
        if name != "return_lse"
    }
    far = np.where(np.arange(70) < 67, 0.0, -np.finfo(dtype).max)
    arguments["key"][:, :, 67:] = 0
    arguments["key"][:, :, 67:, 1:3] = huge, -huge
    arguments["query"][..., 1:3] = 1
    arguments["query_tangent"][..., 1] = huge
    arguments["query_tangent"][..., 2] = -huge
    few["query"], few["query_tangent"] = arguments["query"], arguments["query_tangent"].copy()
    arguments["key"][:, :, :67, 1:3] = arguments["key_tangent"][:, :, :67, 1:3] = 0
    got = getattr(attnpy, JVP)(**arguments, bias=far)
    wanted = getattr(attnpy, JVP)(**few, return_lse=True)
    expected = bounds.scaled_dot_product_attention_jvp(few | {"return_lse": True})
    for ours, theirs, limit in zip(got, wanted, expected, strict=True):
        assert (errors(ours, theirs.astype(np.float64)) <= 2 * (limit.cap + limit.floor)).all(), limit.name


def test_a_saturated_softcap_stands_still():
    rng = np.random.default_rng(4)
    arguments = moved(rng, np.float32, ("softcap",), L=70, S=70)
    arguments["scale"] = 500.0
    check_call(JVP, arguments, "scores of thousands below a softcap of 0.8")
    arguments["value_tangent"] = None
    arguments["query"], arguments["key"] = np.abs(arguments["query"]) + 1, np.abs(arguments["key"]) + 1
    _, tangent, _, mean = getattr(attnpy, JVP)(**arguments)
    assert not tangent.any() and not mean.any()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_block_mask_is_its_dense_array(dtype):
    """What lies in hidden tiles is not read, in tangents neither; the products are those of the dense mask."""
    rng = np.random.default_rng(seed_of("block mask", dtype))
    arguments = moved(rng, TYPES[dtype], ("bias", "sinks"), L=200, S=330)
    band = attnpy.BlockMask.sliding_window
    mask = band(200, 330, 40, 0, offset=0) | band(200, 330, 3, 0, offset=100)
    check_call(JVP, arguments | {"attn_mask": mask.to_dense()}, "dense")
    dense = getattr(attnpy, JVP)(**arguments, attn_mask=mask.to_dense())
    hidden = ~mask.to_dense()
    arguments["bias_tangent"] = np.where(hidden, np.nan, arguments["bias_tangent"])
    for name in ("key_tangent", "value_tangent"):
        arguments[name][:, :, hidden.all(0)] = np.nan
    for n, ours in enumerate(getattr(attnpy, JVP)(**arguments, attn_mask=mask)):
        same_bits(ours, dense[n], f"result {n}")
