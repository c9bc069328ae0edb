"""What a call, an import and an installation cost, and how much memory a long sequence takes."""

import functools
import importlib.util
import io
import subprocess
import sys
import timeit
import zipfile
from pathlib import Path

import numpy as np
import peers
from cases import Attention
from harness import Row, Work

import attnpy

IMPORT = """
import time, numpy
start = time.perf_counter()
import {module}
print((time.perf_counter() - start) * 1e3)
"""

LONG = """
import resource, numpy as np
{setup}
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 1, {length}, {size}), np.float32) for _ in range(3))
call(q[:, :, :1024], k[:, :, :1024], v[:, :, :1024])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
before = peak()
call(q, k, v)
print((peak() - before) * 1024 / 1e6)
"""

CALL = {
    "attnpy": "from attnpy import scaled_dot_product_attention as call",
    "torch": """
import torch
def call(*arrays):
    with torch.inference_mode():
        return torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, arrays)).numpy()
""",
}


def calls(call, compared=None):
    """One call on operands so small that the call is all there is."""

    def prepare(wanted):
        others = {
            name: other if isinstance(other, str) else timer(other)
            for name, other in (compared(wanted) if compared else {}).items()
        }
        return Work(figure=timer(call), unit="us", peers=others)

    return prepare


def timer(call, number=2000):
    return lambda: timeit.timeit(call, number=number) / number * 1e6


def in_process(source):
    """The number that a fresh interpreter prints, away from any folder that holds another attnpy."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return float(done.stdout)


def imports(wanted):
    others = {name: (lambda name=name: in_process(IMPORT.format(module=name))) for name in wanted if name != "numpy"}
    return Work(figure=lambda: in_process(IMPORT.format(module="attnpy")), unit="ms", samples=9, peers=others)


def wheel(wanted):
    """The installed files, compressed as a wheel compresses them."""

    def megabytes():
        package = Path(importlib.util.find_spec("attnpy").origin).parent
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(package.rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    archive.write(file, file.relative_to(package.parent))
        return packed.tell() / 1e6

    return Work(figure=megabytes, unit="MB", samples=1)


def long_sequence(case):
    """Peak memory beyond the operands, the output included."""

    def prepare(wanted):
        def peak(name):
            return lambda: in_process(LONG.format(setup=CALL[name], length=case.L, size=case.D))

        others = {name: peak(name) for name in wanted if name in CALL}
        others |= {"numpy": f"would hold {4 * case.L * case.S / 1e9:.1f} GB of scores"} if "numpy" in wanted else {}
        return Work(figure=peak("attnpy"), unit="MB", samples=1, peers=others)

    return Row("scaled_dot_product_attention", f"peak extra memory, {case.name}", prepare, ("MB", 64))


def attention_call(case):
    operands = case.operands()
    query, key, value = operands[0]

    def compared(wanted):
        return {
            name: made if isinstance(made, str) else made[0]
            for name, made in peers.attention(case, operands, wanted).items()
        }

    prepare = calls(lambda: attnpy.scaled_dot_product_attention(query, key, value), compared)
    return Row("scaled_dot_product_attention", f"call, {case.name}", prepare, ("us", 1.5))


def tensor_calls(case):
    """Calls with tensors of PyTorch: what the bridge costs, beside PyTorch's own function."""
    import torch

    plain = [peers.tensor(x) for x in case.operands()[0]]
    recorded = [x.clone().requires_grad_() for x in plain]
    theirs, ones = torch.nn.functional.scaled_dot_product_attention, torch.ones_like(plain[0])
    ways = {
        "call of tensors": lambda function: function(*plain),
        "call of tensors, recorded": lambda function: function(*recorded),
        "call of tensors, recorded, and its gradients": lambda function: torch.autograd.grad(
            function(*recorded), recorded, ones
        ),
    }
    for name, way in ways.items():
        ours = functools.partial(way, attnpy.scaled_dot_product_attention)
        other = {"torch": functools.partial(way, theirs)}
        goal = ("us", 11.5) if name == "call of tensors" else None  # a plain call and 10
        prepare = calls(ours, lambda wanted, other=other: other if "torch" in wanted else {})
        yield Row("scaled_dot_product_attention", f"{name}, {case.name}", prepare, goal)


def rows():
    yield attention_call(Attention(H=1, L=4, D=8))
    query, key, _ = Attention(H=1, L=4, D=8).operands()[0]
    few, lse = np.ones((2, 4, 8), np.float32), np.ones((2, 4), np.float32)
    generator = np.random.default_rng(0)
    drawn = attnpy.dropout_key(generator)
    yield Row("attention_weights", "call, B1 H1 L4 S4 D8 float32", calls(lambda: attnpy.attention_weights(query, key)))
    yield Row(
        "attention_received", "call, B1 H1 L4 S4 D8 float32", calls(lambda: attnpy.attention_received(query, key))
    )
    yield Row("merge_attention", "call, 2 parts of L4 D8 float32", calls(lambda: attnpy.merge_attention(few, lse)))
    yield Row("softmax", "call, 4x8 float32", calls(lambda: attnpy.softmax(few[0])))
    yield Row("log_softmax", "call, 4x8 float32", calls(lambda: attnpy.log_softmax(few[0])))
    yield Row("logsumexp", "call, 4x8 float32", calls(lambda: attnpy.logsumexp(few[0])))
    yield Row(
        "dropout_mask", "call, 4x8 float32", calls(lambda: attnpy.dropout_mask((1, 4, 8), 0.1, drawn, dtype=np.float32))
    )
    yield Row("dropout_key", "call", calls(lambda: attnpy.dropout_key(generator)))
    if importlib.util.find_spec("torch"):
        yield from tensor_calls(Attention(H=1, L=4, D=8))
    yield Row("get_num_threads", "call", calls(attnpy.get_num_threads))
    yield Row("set_num_threads", "call", calls(lambda: attnpy.set_num_threads(attnpy.get_num_threads())))
    yield Row("num_threads", "call, entered and left", calls(entered))
    yield Row("import attnpy", "after numpy", imports, ("ms", 15))
    yield Row("wheel", "compressed files", wheel, ("MB", 1.5))
    yield long_sequence(Attention(H=1, L=32768))


def entered():
    with attnpy.num_threads(1):
        pass
