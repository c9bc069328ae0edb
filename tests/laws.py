"""What holds for every public function. A law takes a Call of cases.py; test_laws.py says for which rows and cases.

Laws compare bits: two ways to ask for the same thing are the same operations in the same order.
"""

import ctypes
import gc
import os
import platform
import signal
import sys
import threading

import memory
import numpy as np
from numerics import same_bits
from oracle import visible_keys

import attnpy

X86 = platform.machine() in ("x86_64", "AMD64")  # else 64-bit ARM
POISON = {"NaN": np.nan, "-NaN": -np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e30}
# Of fenv.h: the flags but for "inexact", and rounding towards zero.
FE_INVALID_DIVIDE_OVERFLOW_UNDERFLOW = 0x1D if X86 else 0x0F
FE_TOWARDZERO = 0xC00 if X86 else 0xC00000
ACTIVATIONS = ("gelu", "silu", "relu", "swiglu", "geglu")
OFFSETS = (0, 8, 64, -8)  # bytes between an input and the out= that overlaps it


def same_results(call, got, wanted, note):
    assert len(got) == len(wanted), f"{call.function} {call.label} {note}: {len(got)} results, wanted {len(wanted)}"
    for n, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        same_bits(ours, theirs, f"{call.function} {call.label} {note}, result {n}")


# --- layouts


def any_layout(call, folder=None):
    """Each operand in every layout, and all of them at once."""
    wanted = call()
    together = {}
    for name, array in call.arrays.items():
        for layout, other in memory.layouts(array, folder):
            same_bits(other.astype(array.dtype), array, f"{layout} of {name}: the test's own copy")
            together.setdefault(layout, {})[name] = other
            same_results(call, call(**{name: other}), wanted, f"{layout} {name}")
    for layout, others in together.items():
        same_results(call, call(**others), wanted, f"{layout} everywhere")


def stride_zero(call):
    """Operands broadcast along each axis, by stride 0."""
    for name, array in call.arrays.items():
        for axis in range(array.ndim):
            if array.shape[axis] < 2:
                continue
            view = np.broadcast_to(array.take([0], axis), array.shape)
            same_results(
                call, call(**{name: view}), call(**{name: view.copy()}), f"{name} with stride 0 along axis {axis}"
            )


# --- hidden elements


def poison(call):
    """Nothing that is hidden changes a bit, whatever is stored there."""
    wanted = call()
    for poisoned, value in POISON.items():
        changes = {}
        for name, hidden in call.hidden.items():
            array = call.arguments[name].copy()
            with np.errstate(over="ignore"):
                array[hidden] = array.dtype.type(value)
            changes[name] = array
            same_results(call, call(**{name: array}), wanted, f"{poisoned} in hidden places of {name}")
        same_results(call, call(**changes), wanted, f"{poisoned} in hidden places of everything")


def poisoned_key(call, position):
    """One key that some rows see and others do not: those that do not keep their bits.

    The others show the NaN where the reference does, and where it is in the value in its own column only.
    """
    visible = visible_keys(call.arguments)[..., position]  # (..., H, L)
    if call.function == "attention_received":
        visible = visible.any(-1)
    wanted = call()
    for poisoned, value in POISON.items():
        for name in {"key", "value", "key_tangent", "value_tangent"} & call.arrays.keys():
            array = call.arguments[name].copy()
            column = slice(None) if name.startswith("key") else slice(0, 1)
            with np.errstate(over="ignore"):
                array[..., position, column] = array.dtype.type(value)
            got = call(**{name: array})
            note = f"{call.function} {call.label} {poisoned} in {name} {position}"
            for ours, theirs in zip(got, wanted, strict=True):
                same_bits(ours[~visible], theirs[~visible], f"{note}: what does not see it")
            for ours, theirs in zip(got, wanted, strict=True):
                if name.startswith("value") and ours.ndim > visible.ndim:
                    same_bits(ours[..., 1:], theirs[..., 1:], f"{note}: other columns")
            if not np.isfinite(value):
                exact = getattr(attnpy.reference, call.function)(**{**call.arguments, name: array})
                exact = exact if isinstance(exact, tuple) else (exact,)
                # Where a result is infinite its derivative is infinite or NaN, as its sum happens to be made.
                tests = (np.isnan, lambda x: ~np.isfinite(x)) * 2 if call.function.endswith("_jvp") else [np.isnan] * 2
                for test, ours, theirs in zip(tests, got, exact, strict=False):
                    same_bits(test(ours), test(theirs), f"{note}: where NaN comes out")


def guard_pages(call):
    """Operands and outputs that end at, or begin behind, a page without access: touching it ends the process."""
    wanted = call()
    for side in ("end", "start"):
        for gap in (0, 3):
            for typed in (lambda x: x, lambda x: x if memory.swapped_bytes(x) is None else memory.swapped_bytes(x)):
                arrays = {name: memory.guarded(typed(x), side, gap) for name, x in call.arrays.items()}
                same_results(call, call(**arrays), wanted, f"guard pages at the {side}, gap {gap}")
            if "dtype" not in call.arguments:
                out = outs_like(wanted, lambda x: memory.guarded(x, side, gap))  # noqa: B023
                call(**arrays, out=out)
                same_results(
                    call, out if isinstance(out, tuple) else (out,), wanted, f"guarded out at the {side}, gap {gap}"
                )


# --- out=


def outs_like(results, place):
    """out= for these results: arrays made by `place`, filled with NaN (bool: True)."""
    outs = []
    for result in results:
        out = place(np.asarray(result))
        out[...] = np.nan if out.dtype.kind in "fV" else 99 if out.dtype.kind == "i" else True
        outs.append(out)
    return outs[0] if len(outs) == 1 else tuple(outs)


def out_given(call):
    """A poisoned out= of any strides is filled and returned itself."""
    wanted = call()
    places = {
        "plain": np.copy,
        "Fortran": lambda x: x.copy("F"),
        "stepped": memory.stepped,
        "interleaved": memory.interleaved,
        "unaligned": memory.unaligned,
        "rows far apart": memory.far_apart,
        "reversed": lambda x: memory.turned(memory.turned(x).copy()),
    }
    for name, place in places.items():
        out = outs_like(wanted, place)
        around = [] if isinstance(out, tuple) or out.base is None or name != "stepped" else [out.base.copy()]
        got = call(out=out)
        for n, (ours, given) in enumerate(zip(got, out if isinstance(out, tuple) else (out,), strict=True)):
            assert ours is given, (
                f"{call.function} {call.label}: out ({name}), result {n} is not the array that was given"
            )
        same_results(call, got, wanted, f"out, {name}")
        for before in around:
            between = np.ones(before.shape, bool)
            between[(slice(None, None, 2),) * before.ndim] = False
            same_bits(
                out.base[between],
                before[between],
                f"{call.function} {call.label}: what lies between the elements of out",
            )
    if len(wanted) > 1:
        for given in range(len(wanted)):
            out = tuple(np.full_like(x, np.nan) if n == given else None for n, x in enumerate(wanted))
            got = call(out=out)
            assert got[given] is out[given], (
                f"{call.function} {call.label}: out[{given}] is not the array that was given"
            )
            same_results(call, got, wanted, f"out[{given}] only")


def out_over_input(call):
    """out= on the memory of each input: at the same place, shifted, backwards."""
    wanted = call()
    for name, array in call.arrays.items():
        for which in range(len(wanted)):
            for offset in OFFSETS:
                for backwards in (False, True):
                    changes = _overlaid(wanted, which, array, offset, backwards)
                    got = call(**{name: changes[0]}, out=changes[1])
                    same_results(
                        call, got, wanted, f"out {which} {offset} bytes from {name}{', backwards' * backwards}"
                    )


def _overlaid(results, which, array, offset, backwards):
    """A copy of the array, and outs of which one lies over it."""
    result = np.asarray(results[which])
    margin = 64
    buffer = np.zeros(max(result.nbytes, array.nbytes) + 2 * margin + 64, np.uint8)
    first = -buffer.ctypes.data % 64 + margin
    copy = np.ndarray(array.shape, array.dtype, buffer, first)
    copy[...] = array
    out = np.ndarray(result.shape, result.dtype, buffer, first + offset)
    if backwards:
        out = memory.turned(out)
    outs = tuple(out if n == which else None for n in range(len(results)))
    return copy, outs if len(outs) > 1 else outs[0]


def out_over_two_inputs(call):
    """Key and value in one buffer, as a cache holds them, and the output over both."""
    wanted = call()
    key, value = call.arguments["key"], call.arguments["value"]
    cache = np.concatenate([key, value], -1)
    flat = cache.reshape(-1)
    if flat.size < wanted[0].size:
        flat = np.concatenate([flat, np.zeros(wanted[0].size, flat.dtype)])
        cache = flat[: cache.size].reshape(cache.shape)
    out = flat[: wanted[0].size].reshape(wanted[0].shape)
    got = call(key=cache[..., : key.shape[-1]], value=cache[..., key.shape[-1] :], out=(out, None))
    same_results(call, got, wanted, "out over a cache of keys and values")


# --- threads, batches


def any_threads(call):
    """1 … 5 threads."""
    with attnpy.num_threads(1):
        wanted = call()
    for threads in range(2, 6):
        with attnpy.num_threads(threads):
            same_results(call, call(), wanted, f"{threads} threads")


def batch_elements(call, batch_ndim):
    """Each batch element alone, and all in reverse order, have the bits that they have together."""
    whole = call()
    batch = whole[0].shape[:batch_ndim]

    def part(index):
        changes = {}
        for name, array in call.arrays.items():
            axes = array.ndim - _core_axes(call, name)
            if axes > 0:
                index_here = index[len(index) - axes :] if axes <= len(index) else index
                changes[name] = array[tuple(i if n > 1 else 0 for i, n in zip(index_here, array.shape, strict=False))]
        return call(**changes)

    for index in np.ndindex(batch):
        same_results(call, part(index), [x[index] for x in whole], f"batch element {index} alone")
    if batch:
        turned = {
            name: np.flip(x, 0) for name, x in call.arrays.items() if x.ndim - _core_axes(call, name) == len(batch)
        }
        same_results(call, call(**turned), [np.flip(x, 0) for x in whole], "batch reversed")


def _core_axes(call, name):
    """Axes of an argument that do not belong to the batch."""
    name = name.removesuffix("_tangent")
    if call.function == "rotary_embedding":
        return {"x": 3, "cos": 2, "sin": 2, "positions": 1}.get(name, call.arguments[name].ndim)
    if call.function.startswith(("add_positions", "interpolate_positions")):
        return 0 if name == "offset" else 2
    if call.function.removesuffix("_backward") in (*ACTIVATIONS, "layer_norm", "rms_norm"):
        return call.arguments[name].ndim if name in ("weight", "bias") else 1
    if name in ("x", "where", "slopes", "positions", "residual"):
        return 1
    if "softmax_backward" in call.function or call.function == "logsumexp_backward":
        return 0 if call.function == "logsumexp_backward" else 1
    if call.function == "multi_head_attention" and name in ("query", "key", "value"):
        return 2
    if name in ("query", "key", "value", "attn_mask", "bias", "grad_output", "output", "grad_weights", "relative_bias"):
        return 3
    if name in ("key_table", "value_table", "position_keys"):
        return 3
    if name in ("lse", "grad_lse", "content_bias", "position_bias"):
        return 2
    if name in ("alibi_slopes", "sinks", "block_table", "query_positions", "key_positions"):
        return 1
    return 0 if name in ("query_lengths", "kv_lengths", "causal_offset", "offset") else call.arguments[name].ndim


# --- refused input


def refused(function, refusal, attempt):
    """The named error, its text naming the argument, and no argument changed."""
    before = {name: x.tobytes() for name, x in _arrays(refusal.change)}
    try:
        attempt(function, refusal.change)
    except refusal.error as error:
        text = str(error)
    else:
        raise AssertionError(f"{function}({refusal.why}) was not refused")
    import re

    assert re.search(refusal.text, text), (
        f"{function}({refusal.why}): the error {text!r} does not match {refusal.text!r}"
    )
    for name, x in _arrays(refusal.change):
        assert x.tobytes() == before[name], f"{function}({refusal.why}): {name} was changed"


def _arrays(arguments):
    for name, x in arguments.items():
        for n, one in enumerate(x if isinstance(x, tuple | list) else x.values() if isinstance(x, dict) else [x]):
            if isinstance(one, np.ndarray) and one.dtype != object:
                yield f"{name}[{n}]", one


# --- references, memory, flags


def integers_in(arguments):
    """Integers in sequences among the arguments. Those up to 256 are shared by the whole process and not counted."""
    sequences = [x for x in arguments.values() if isinstance(x, tuple | list)]
    return [n for x in sequences for n in x if isinstance(n, int) and n > 256]


def references(actions, held):
    """Reference counts of all that was passed are as before."""
    gc.collect()
    before = [sys.getrefcount(x) for x in held]
    for action in actions:
        for _ in range(10):
            action()
    gc.collect()
    after = [sys.getrefcount(x) for x in held]
    assert after == before, f"reference counts {before} became {after} in 10 calls of each"


def steady_memory(action, calls, rounds=4):
    """Resident memory stops growing: the last of several equal rounds adds less than a 64 byte object a call would."""
    grown, before = [], None
    for _ in range(rounds + 1):
        for _ in range(calls):
            action()
        gc.collect()  # garbage in cycles is no leak
        resident = memory.resident_bytes()
        if before is not None:
            grown.append(resident - before)
        before = resident
    assert min(grown) < 32 * calls, f"{rounds} rounds of {calls} calls each added {grown} bytes"


libm = ctypes.CDLL(None)


def flags_untouched(call):
    """The floating-point flags are as they were, cleared or set."""
    for function in (libm.feclearexcept, libm.feraiseexcept):
        call()
        function(FE_INVALID_DIVIDE_OVERFLOW_UNDERFLOW)
        before = libm.fetestexcept(FE_INVALID_DIVIDE_OVERFLOW_UNDERFLOW)
        call()
        after = libm.fetestexcept(FE_INVALID_DIVIDE_OVERFLOW_UNDERFLOW)
        libm.feclearexcept(FE_INVALID_DIVIDE_OVERFLOW_UNDERFLOW)
        assert after == before, f"{call.function} {call.label}: flags {before:#x} became {after:#x}"


def rounding_of_the_caller(call):
    """Another rounding mode changes no bit, and is still set afterwards."""
    wanted = call()
    nearest = libm.fegetround()
    libm.fesetround(FE_TOWARDZERO)
    try:
        got = call()
        after = libm.fegetround()
    finally:
        libm.fesetround(nearest)
    same_results(call, got, wanted, "with rounding towards zero")
    assert after == FE_TOWARDZERO, f"{call.function} {call.label}: the rounding mode was changed"


# --- processes and threads


def after_fork(call):
    """The child of a process that has used its threads computes the same bits, and both go on."""
    import warnings

    with attnpy.num_threads(2):
        wanted = call()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python 3.12 warns of fork with threads: that is what is tested
            child = os.fork()
        if child == 0:
            signal.alarm(60)
            status = 1
            try:
                same_results(call, call(), wanted, "in a forked child")
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"{call.function} {call.label}: the forked child ended with status {status}"
        same_results(call, call(), wanted, "in the parent after a fork")


def many_threads(calls, threads=8, rounds=6):
    """Calls from many Python threads at once have the bits of calls one after another."""
    wanted = [call() for call in calls]
    failures, barrier = [], threading.Barrier(threads)

    def work(first):
        barrier.wait()
        for n in range(rounds * len(calls)):
            call = calls[(first + n) % len(calls)]
            try:
                same_results(call, call(), wanted[(first + n) % len(calls)], "among other threads")
            except BaseException as error:
                failures.append(error)
                return

    team = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    if failures:
        raise failures[0]
