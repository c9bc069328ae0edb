"""Every public function under every law of laws.py, by its row in cases.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import laws
import memory
import numerics
import numpy as np
import pytest
import refusals
from cases import ARRAY_FUNCTIONS, CASES, DTYPES, WITH_OUT, cases, check, fits, small_cases

import attnpy

HERE = Path(__file__).parent
PACKAGES = str(Path(attnpy.__file__).parent.parent)
LEVELS = ("baseline", "avx2", "avx512")
READS_PROC = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
ATTENTION = (
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_jvp",
    "attention_weights",
    "attention_received",
)
GRADIENTS = (
    "scaled_dot_product_attention_backward",
    "attention_weights_backward",
    "relative_attention_shaw_backward",
    "relative_attention_xl_backward",
)


def every_small_case(names=ARRAY_FUNCTIONS, dtype=None):
    """(function, shape, dtype, option), each an own test."""
    return [
        pytest.param(name, shape, kind, option, id=f"{name}-{shape}-{kind}-{option}".replace(" ", ""))
        for name in names
        for shape, kind, option in small_cases(name, dtype)
    ]


def made(name, shape, dtype, option, seed=0):
    return CASES[name].make(shape, dtype, option, seed)


def child(law, names, *, start=0, every=1, ratchet=False, environment=None):
    """Runs laws in another process and takes over what it saw."""
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        str(HERE / "child.py"),
        law,
        ",".join(names),
        str(start),
        str(every),
    ]
    command.append("ratchet" if ratchet else "-")
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": PACKAGES, **(environment or {})},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"ended with {done.returncode} in:\n{done.stderr[-3000:]}"
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["ran"] > 0
    assert not seen["failures"], f"{len(seen['failures'])} of {seen['ran']} cases failed:\n" + "\n".join(
        seen["failures"][:20]
    )
    numerics.merge_worst(seen["worst"])


# --- numbers


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_accuracy(name, dtype):
    failures = []
    for shape, kind, option in cases(name, [dtype]):
        call = made(name, shape, kind, option)
        try:
            check(call, call())
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, f"{len(failures)} cases:\n" + "\n".join(failures[:20])


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_accuracy_of_other_seeds(name):
    for n, (shape, dtype, option) in enumerate(cases(name, every=7)):
        call = made(name, shape, dtype, option, seed=n + 1)
        check(call, call())


@pytest.mark.parametrize("level", LEVELS)
def test_every_cpu_level(level):
    from attnpy import _core

    if LEVELS.index(level) > LEVELS.index(numerics_level()):
        pytest.skip(f"this CPU runs {numerics_level()} at most")
    if level == _core.isa:
        pytest.skip("the level of all other tests")
    child("accuracy", ARRAY_FUNCTIONS, every=3, ratchet=True, environment={"ATTNPY_ISA": level})


def numerics_level():
    """The highest level of this CPU."""
    done = subprocess.run(
        [sys.executable, "-c", "import attnpy._core as c; print(c.isa)"],
        env={k: v for k, v in os.environ.items() if k != "ATTNPY_ISA"} | {"PYTHONPATH": PACKAGES},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize("keys", [4, 8])
def test_small_blocks(keys):
    child("accuracy", ARRAY_FUNCTIONS, start=1, every=3, environment={"ATTNPY_DEBUG_BLOCKS": str(keys)})


# --- layouts, hidden elements


@pytest.mark.parametrize(("name", "shape", "dtype", "option"), every_small_case())
def test_layouts(name, shape, dtype, option, tmp_path):
    call = made(name, shape, dtype, option)
    laws.any_layout(call, tmp_path)
    laws.stride_zero(call)


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_layouts_of_all_shapes(name, dtype, tmp_path):
    for shape in CASES[name].shapes:
        option = CASES[name].options[-1] if fits(name, shape, CASES[name].options[-1]) else CASES[name].options[0]
        laws.any_layout(made(name, shape, dtype, option), tmp_path)


def hidden_cases():
    found = []
    for name in ARRAY_FUNCTIONS:
        for option in CASES[name].options:
            chosen = [shape for shape in CASES[name].shapes if fits(name, shape, option)]
            if any(hidden.any() for shape in chosen for hidden in made(name, shape, "float32", option).hidden.values()):
                found.append(pytest.param(name, option, id=f"{name}-{option}"))
    return found


@pytest.mark.parametrize(("name", "option"), hidden_cases())
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_poison(name, option, dtype):
    for shape in CASES[name].shapes:
        if fits(name, shape, option):
            laws.poison(made(name, shape, dtype, option))


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("option", ["causal", "window", "mask", "float_mask", "bias", "lengths", "together"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_poisoned_key_reaches_only_rows_that_see_it(name, option, dtype):
    for shape in CASES[name].shapes[1:13]:
        call = made(name, shape, dtype, option)
        for position in {0, shape.S // 2, shape.S - 1}:
            laws.poisoned_key(call, position)


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_guard_pages(name):
    child("guard_pages", [name])


# --- out=


@pytest.mark.parametrize(("name", "shape", "dtype", "option"), every_small_case(WITH_OUT))
def test_out(name, shape, dtype, option):
    laws.out_given(made(name, shape, dtype, option))


@pytest.mark.parametrize("name", WITH_OUT)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_out_of_all_shapes(name, dtype):
    for shape in CASES[name].shapes:
        laws.out_given(made(name, shape, dtype, "plain"))


@pytest.mark.parametrize(("name", "shape", "dtype", "option"), every_small_case(WITH_OUT))
def test_out_over_an_input(name, shape, dtype, option):
    laws.out_over_input(made(name, shape, dtype, option))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_out_over_a_cache(dtype):
    for shape in CASES["scaled_dot_product_attention"].shapes[1:13]:
        laws.out_over_two_inputs(made("scaled_dot_product_attention", shape._replace(D=shape.E), dtype, "causal"))


@pytest.mark.parametrize(("name", "shape", "dtype", "option"), every_small_case(["scaled_dot_product_attention"]))
def test_with_and_without_lse(name, shape, dtype, option):
    call = made(name, shape, dtype, option)
    numerics.same_bits(call(return_lse=False)[0], call(return_lse=True)[0], f"{name} {call.label} without lse")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("option", ["plain", "causal", "together"])
def test_chosen_rows_have_the_bits_of_all(dtype, option):
    for shape in CASES["attention_weights"].shapes[1:13]:
        call = made("attention_weights", shape, dtype, option)
        rows = np.random.default_rng(1).integers(-shape.L, shape.L, 70)
        numerics.same_bits(call(rows=rows)[0], call()[0][..., rows, :], f"{call.label} rows {rows.tolist()}")


# --- threads, batches, processes


def heavy_cases():
    return [
        pytest.param(name, shape, option, id=f"{name}-{shape}-{option}".replace(" ", ""))
        for name in ARRAY_FUNCTIONS
        for shape, option in CASES[name].heavy
    ]


@pytest.mark.parametrize(("name", "shape", "option"), heavy_cases())
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_threads(name, shape, option, dtype):
    laws.any_threads(made(name, shape, dtype, option))


@pytest.mark.parametrize("name", [name for name in ARRAY_FUNCTIONS if CASES[name].batched])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_batch_position(name, dtype):
    row = CASES[name]
    for shape in row.shapes:
        for option in row.options:
            if not fits(name, shape, option) or option in ("dropout", "rows", "first_axis", "two_axes", "broadcast"):
                continue
            call = made(name, shape, dtype, option)
            if name in GRADIENTS:  # those of operands that broadcast over the batch are sums over it
                call = call.changed(needs=("query", "key", "value")[: 3 if "value" in call.arguments else 2])
            batch_ndim = len(shape.batch) if hasattr(shape, "batch") else len(shape) - 1
            laws.batch_elements(call, batch_ndim)


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_fork(name):
    shape, option = CASES[name].heavy[0]
    laws.after_fork(made(name, shape, "float32", option))


def test_many_python_threads():
    calls = [
        made(name, shape, "float32", option) for name in ARRAY_FUNCTIONS for shape, option in CASES[name].heavy[:2]
    ]
    calls += [
        made(name, shape, dtype, option) for name in ARRAY_FUNCTIONS for shape, dtype, option in small_cases(name)
    ]
    laws.many_threads(calls, rounds=2)


# --- refused input, references, memory, flags


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        pytest.param(name, refusal, id=f"{name}-{n}-{refusal.why}")
        for name, row in CASES.items()
        for n, refusal in enumerate(row.refused)
    ],
)
def test_refused(name, refusal):
    laws.refused(name, refusal, refusals.attempt)


def failing(name, refusal):
    def action():
        try:
            refusals.attempt(name, refusal.change)
        except refusal.error:
            pass

    return action


@pytest.mark.parametrize("name", list(CASES))
def test_references_over_errors(name):
    rows = CASES[name].refused
    held = [x for refusal in rows for _, x in laws._arrays(refusal.change)]
    held += [refusal.change for refusal in rows] + list(DTYPES.values())
    held += [n for refusal in rows for n in laws.integers_in(refusal.change)]
    laws.references([failing(name, refusal) for refusal in rows], held)


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_references_over_success(name):
    actions, held = every_way(name), [np, *DTYPES.values()]
    for call in actions:
        out = call.arguments.get("out")
        outs = [x for x in out if x is not None] if isinstance(out, tuple) else []  # None is everybody's
        held += [*call.arrays.values(), *outs, *laws.integers_in(call.arguments)]
        masks = [x for x in call.arguments.values() if isinstance(x, attnpy.BlockMask)]
        held += masks + [array for mask in masks for array in mask._core_arrays]
    laws.references(actions, held)


def every_way(name):
    """Calls with every option, with out= plain, interleaved and over an input, and with sequences for arrays."""
    calls = [made(name, shape, dtype, option) for shape, dtype, option in small_cases(name)]
    if CASES[name].outs:
        call = calls[0]
        calls += [call.changed(out=laws.outs_like(call(), place)) for place in (np.copy, memory.interleaved)]
        floats = [k for k, x in call.arrays.items() if x.dtype.kind not in "iu"]  # rather than indices
        over_name = (floats or list(call.arrays))[0]
        first = call.arrays[over_name]
        buffer = np.zeros(max(x.nbytes for x in (first, *call())), np.uint8)
        over = tuple(np.ndarray(np.shape(x), x.dtype, buffer) if n == 0 else None for n, x in enumerate(call()))
        calls.append(call.changed(**{over_name: np.ndarray(first.shape, first.dtype, buffer)}))
        calls[-1].arguments["out"] = over if len(over) > 1 else over[0]
    if name in ATTENTION:
        calls.append(calls[0].changed(window_size=(1000, 2000), query=calls[0].arguments["query"].tolist()))
    if name in ("merge_attention", "merge_attention_backward"):
        calls.append(calls[0].changed(**{k: list(x) for k, x in calls[0].arrays.items()}))
    return calls


@READS_PROC
@pytest.mark.parametrize("name", list(CASES))
def test_memory_is_steady_over_errors(name):
    actions = [failing(name, refusal) for refusal in CASES[name].refused]

    def all_of_them():
        for action in actions:
            action()

    laws.steady_memory(all_of_them, calls=400)


@READS_PROC
@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_memory_is_steady_over_success(name):
    calls = every_way(name)
    calls += [
        call.changed(
            out=None,
            **{k: y for k, x in call.arrays.items() if k != "out" and (y := memory.swapped_bytes(x)) is not None},
        )
        for call in calls
        if CASES[name].outs
    ]

    def all_of_them():
        for call in calls:
            call()

    laws.steady_memory(all_of_them, calls=200)


@pytest.mark.parametrize(("name", "shape", "dtype", "option"), every_small_case())
def test_floating_point_flags(name, shape, dtype, option):
    if not CASES[name].keeps_flags:
        pytest.skip("uses NumPy, which clears the flags")
    call = made(name, shape, dtype, option)
    for value in (1.0, np.nan, 1e30):
        changes = {}
        for operand, array in call.arrays.items():
            if array.dtype.kind in "fV" and operand in ("query", "x", "outputs", "grad_output"):
                array = array.copy()
                with np.errstate(over="ignore"):
                    array.reshape(-1)[:1] = array.dtype.type(value)
                changes[operand] = array
        laws.flags_untouched(call.changed(f"with {value}", **changes))
    laws.rounding_of_the_caller(call)
