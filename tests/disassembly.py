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
STACK = re.compile(r"\(%rsp")  # the frame pointer is left out: %rbp is a register like others


class Loop(NamedTuple):
    steps: int  # multiply-adds on whole vectors
    other: int  # of narrower vectors
    spills: list  # instructions that move a vector to or from the stack
    stores: int  # vectors stored elsewhere: accumulators live in registers, so a tile's loop stores none


def objdump(path, *options):
    command = ["objdump", "--no-show-raw-insn", "-M", "att", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def by_file(path):
    """C file → {function: body} of an object or a module, as far as its symbols tell."""
    file, belongs, found = None, {}, {}
    for line in objdump(path, "-t").splitlines():
        parts = line.split()
        if "df" in parts[1:3] and parts[-1] != "*ABS*":
            file = parts[-1]
        elif ".text" in parts and "F" in parts:
            belongs[int(parts[0], 16)] = file
    for name, body in functions(objdump(path, "-d")):
        if body and body[0][0] in belongs:
            found.setdefault(belongs[body[0][0]], {})[name] = body
    return found


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
        stores = [x for _, _, x in loop if re.fullmatch(r"%[xyz]mm\d+(\{.*\})?,.*\)", x) and not STACK.search(x)]
        wide = sum(registers in x for x in products)
        yield Loop(wide, len(products) - wide, spills, len(stores))
