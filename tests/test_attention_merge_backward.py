"""merge_attention_backward: small numbers, differences, parts that broadcast, sequences and stacks."""

import ml_dtypes
import numpy as np
import pytest
from inputs import check_call
from numerics import same_bits

import attnpy
from attnpy import reference

INF, NAN = np.inf, np.nan
SIDES = pytest.mark.parametrize("side", [attnpy, reference], ids=["attnpy", "reference"])
SHAPES = ((2, 3, 5, 7), (1, 3, 5, 7), (5, 7), (3, 5, 7))  # of parts that broadcast to (2, 3, 5, 7)
LSE_SHAPES = ((2, 3, 5), (2, 1, 5), (2, 3, 5), (5,))


def parts(rng, dtype=np.float64):
    real = np.float64 if dtype == np.float64 else np.float32
    return [rng.normal(size=s).astype(dtype) for s in SHAPES], [rng.normal(size=s).astype(real) for s in LSE_SHAPES]


def whole(rng, outputs, lses, with_lse=True):
    """grad_output, the parts, what they merge to, and grad_lse."""
    output, lse = attnpy.merge_attention(outputs, lses)
    given = {
        "grad_output": rng.normal(size=output.shape).astype(output.dtype),
        "outputs": outputs,
        "lses": lses,
        "output": output,
        "lse": lse,
    }
    return given | ({"grad_lse": rng.normal(size=lse.shape).astype(lse.dtype)} if with_lse else {})


@SIDES
def test_by_hand(side):
    """Sums 1 and 3 of outputs 4 and 8: shares 1/4 and 3/4, O = 7, so that dO (O_t - O) is -3 and 1 times dO = 2."""
    lses = [np.log([1.0]), np.log([3.0])]
    outputs = [np.array([[4.0]]), np.array([[8.0]])]
    output, lse = side.merge_attention(outputs, lses)
    for grad_lse, wanted in ((None, (-1.5, 1.5)), ([4.0], (-0.5, 4.5))):
        got = side.merge_attention_backward([[2.0]], outputs, lses, output, lse, grad_lse=grad_lse)
        np.testing.assert_allclose(np.ravel(got[0]), [0.5, 1.5], rtol=16 * 2.0**-53)
        np.testing.assert_allclose(np.ravel(got[1]), wanted, rtol=0, atol=64 * 2.0**-53)


@pytest.mark.parametrize("with_lse", [False, True])
def test_central_differences(with_lse):
    """(f(x + h) - f(x - h)) / 2h for every number of every part.

    Off by h^2 / 6 times a third derivative, below 6 times the sum of |dO| |O_t - O| and |dlse|, and by what two values
    of f err over 2h: sums of 210 products of numbers below 8, each within u (8 + 8 + 24) of its magnitude.
    """
    rng, h = np.random.default_rng(1), 1e-5
    outputs, lses = parts(rng)
    given = whole(rng, outputs, lses, with_lse)
    got = attnpy.merge_attention_backward(**given)

    def loss():
        output, lse = attnpy.merge_attention(outputs, lses)
        return (given["grad_output"] * output).sum() + (given.get("grad_lse", 0.0) * lse).sum()

    size = 16 * np.abs(given["grad_output"]).sum() + np.abs(given.get("grad_lse", 0.0)).sum()
    allowed = size * (h**2 + 40 * 2.0**-53 / h)
    for arrays, gradients in ((outputs, got[0]), (lses, got[1])):
        for t, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
            assert gradient.shape == array.shape and gradient.dtype == array.dtype
            for i in np.ndindex(array.shape):
                kept = array[i]
                array[i] = kept + h
                above = loss()
                array[i] = kept - h
                wanted = (above - loss()) / (2 * h)
                array[i] = kept
                assert abs(gradient[i] - wanted) <= allowed, f"part {t} at {i}: {gradient[i]}, differences {wanted}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_broadcast_parts_against_the_reference(dtype):
    """Summed in the type computed in and rounded once: each part beside the reference on the same numbers."""
    rng = np.random.default_rng(2)
    given = whole(rng, *parts(rng, dtype))
    given["lses"][1][0] = -INF
    got, exact = attnpy.merge_attention_backward(**given), reference.merge_attention_backward(**given)
    unit = {8: 2.0**-53, 4: 2.0**-24}.get(np.dtype(dtype).itemsize, float(ml_dtypes.finfo(dtype).eps) / 2)
    for ours, theirs in zip(got, exact, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape
            # 6 terms of 7 products at the most, each off by about a dozen units, and all below 64
            np.testing.assert_allclose(one.astype(np.float64), other, rtol=0, atol=64 * 16 * unit)
    assert not got[1][1][0].any() and got[1][1][1].any()


def test_stacks_and_sequences_have_the_same_bits():
    rng = np.random.default_rng(3)
    outputs, lses = rng.normal(size=(3, 2, 65, 17)).astype(np.float32), rng.normal(size=(3, 2, 65)).astype(np.float32)
    given = whole(rng, outputs, lses)
    wanted = attnpy.merge_attention_backward(**given)
    check_call("merge_attention_backward", given)
    for change in ({"outputs": list(outputs)}, {"lses": tuple(lses)}, {"outputs": list(outputs), "lses": list(lses)}):
        got = attnpy.merge_attention_backward(**{**given, **change})
        for name, ours, theirs in zip(("outputs", "lses"), got, wanted, strict=True):
            assert type(ours) is (tuple if name in change else np.ndarray)
            same_bits(np.stack(ours), theirs, f"{name} with {list(change)} as sequences")


def test_out_of_sequences():
    rng = np.random.default_rng(4)
    given = whole(rng, *parts(rng, np.float32))
    wanted = attnpy.merge_attention_backward(**given)
    outs = tuple(np.full(s, NAN, np.float32) if n != 1 else None for n, s in enumerate(SHAPES)), None
    got = attnpy.merge_attention_backward(**given, out=outs)
    for n, (ours, theirs) in enumerate(zip(got[0] + got[1], wanted[0] + wanted[1], strict=True)):
        same_bits(ours, theirs, f"gradient {n}")
    assert [a is b for a, b in zip(got[0], outs[0], strict=True)] == [True, False, True, True]
    over = given["outputs"][0]  # a part, overwritten by the gradient of another of its shape
    got = attnpy.merge_attention_backward(**given, out=((over, None, None, None), None))
    assert got[0][0] is over
    same_bits(over, wanted[0][0], "over the part itself")
    same_bits(got[1][0], wanted[1][0], "beside it")


def test_many_parts_of_several_types():
    """More gradients than other calls have results; each in the type of its part."""
    rng = np.random.default_rng(5)
    types = [np.float32, np.float16] * 20
    outputs = [rng.normal(size=(70, 3)).astype(kind) for kind in types]
    lses = [rng.normal(size=70).astype(np.float64 if n % 3 == 0 else np.float32) for n in range(40)]
    given = whole(rng, outputs, lses)
    got = attnpy.merge_attention_backward(**given)
    assert [x.dtype for x in got[0]] == types and [x.dtype for x in got[1]] == [x.dtype for x in lses]
    exact = reference.merge_attention_backward(**given)
    np.testing.assert_allclose(np.stack(got[0]).astype(float), np.stack(exact[0]), rtol=0, atol=4 * 2.0**-11)
    np.testing.assert_allclose(np.stack(got[1]), np.stack(exact[1]), rtol=0, atol=64 * 16 * 2.0**-24)


def test_a_part_that_counts_nothing_gets_nothing():
    rng = np.random.default_rng(6)
    outputs, lses = rng.normal(size=(2, 4, 9)).astype(np.float32), rng.normal(size=(2, 4)).astype(np.float32)
    lses[0] = lses[:, 3] = -INF
    outputs[0], outputs[:, 3] = NAN, INF
    given = whole(rng, outputs, lses)
    given["grad_output"][3] = given["grad_lse"][3] = NAN
    got = attnpy.merge_attention_backward(**given)
    assert not got[0][0].any() and not got[1][0].any() and not got[0][:, 3].any() and not got[1][:, 3].any()
    same_bits(got[0][1, :3], given["grad_output"][:3], "a single part gets all")
    same_bits(got[1][1, :3], given["grad_lse"][:3], "and shares nothing")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sums_have_the_same_bits_for_any_threads(dtype):
    rng = np.random.default_rng(7)
    outputs = [rng.normal(size=s).astype(dtype) for s in ((150, 2, 70, 33), (2, 70, 33), (1, 1, 70, 33))]
    lses = [rng.normal(size=s).astype(np.float32) for s in ((70,), (150, 2, 70), (150, 1, 70))]
    given = whole(rng, outputs, lses)
    with attnpy.num_threads(1):
        wanted = attnpy.merge_attention_backward(**given)
    for threads in (2, 5):
        with attnpy.num_threads(threads):
            got = attnpy.merge_attention_backward(**given)
        for n, (ours, theirs) in enumerate(zip(got[0] + got[1], wanted[0] + wanted[1], strict=True)):
            same_bits(ours, theirs, f"gradient {n}, {threads} threads")
    exact = reference.merge_attention_backward(**given)
    for ours, theirs in zip(wanted[0] + wanted[1], exact[0] + exact[1], strict=True):
        # 300 terms at the most, within (64 + 300 / 64 + 12) u of the sum of their magnitudes: below 300 times 64
        unit = 2.0**-11 if ours.dtype == np.float16 else 2.0**-24
        bound = 81 * 2.0**-24 * 300 * 64 + unit * np.abs(theirs)
        assert (np.abs(ours.astype(np.float64) - theirs) <= bound).all()
