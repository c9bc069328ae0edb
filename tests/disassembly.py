"""What the compiler made of the tile loops: their multiply-adds, and whether anything is spilled inside them."""

import re
import subprocess
from typing import NamedTuple

INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
# By level: the instruction of an accumulation and its registers. The baseline has no fused one: a product, then a sum.
STEP = {
    "avx512": (re.compile(r"vfn?m(add|sub)\w+p[sd]"), "%zmm"),
    "avx2": (re.compile(r"vfn?m(add|sub)\w+p[sd]"), "%ymm"),
    "baseline": (re.compile(r"mulp[sd]"), "%xmm"),
}
VECTOR = re.compile(r"%[xyz]mm\d+")
STACK = re.compile(r"\(%r[sb]p")


class Loop(NamedTuple):
    steps: int  # multiply-adds on whole vectors
    other: int  # of narrower vectors
    spills: list  # instructions that move a vector to or from the stack


def objdump(path):
    """The text of objdump, or None where there is none."""
    try:
        return subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", "-M", "att", str(path)], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        return None


def functions(text):
    """(name, [(address, operation, operands)]); names may repeat, one for each level."""
    name, body = None, []
    for line in text.splitlines():
        head = re.match(r"^[0-9a-f]+ <([^>]+)>:$", line)
        if head:
            if name:
                yield name, body
            name, body = head[1], []
            continue
        found = INSTRUCTION.match(line)
        if found and name:
            operation, operands = found[2], found[3]
            if operation in ("notrack", "bnd", "data16", "cs"):
                operation, _, operands = operands.partition(" ")
            body.append((int(found[1], 16), operation, operands.strip()))
    if name:
        yield name, body


def innermost_loops(body, level):
    """The loops of a function that hold no other loop."""
    step, registers = STEP[level]
    addresses = {address: n for n, (address, _, _) in enumerate(body)}
    ranges = set()
    for n, (_, operation, operands) in enumerate(body):
        target = re.match(r"([0-9a-f]+)", operands)
        if operation.startswith("j") and target and addresses.get(int(target[1], 16), n + 1) <= n:
            ranges.add((addresses[int(target[1], 16)], n))
    for first, last in sorted(ranges):
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in ranges):
            continue
        loop = body[first : last + 1]
        products = [operands for _, operation, operands in loop if step.fullmatch(operation)]
        spills = [
            f"{operation} {operands}"
            for _, operation, operands in loop
            if STACK.search(operands) and VECTOR.search(operands)
        ]
        yield Loop(sum(registers in x for x in products), sum(registers not in x for x in products), spills)
