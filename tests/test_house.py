"""The rules of the house: the floors, the stems, one row for every function, what the compiler made of the kernels."""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import disassembly
import house
import pytest

import attnpy
from attnpy import _core

ROOT = house.ROOT
LEVELS = ("baseline", "avx2", "avx512")
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.parametrize("check", house.CHECKS, ids=lambda check: check.__name__)
def test_rule(check):
    violations = list(check(ROOT))
    assert not violations, "\n".join(violations)


# --- each rule can be seen to fail: a copy of the tree with one violation


def replace(path, old, new):
    def change(root):
        text = (root / path).read_text(encoding="utf-8")
        changed = re.sub(old, new, text, count=1, flags=re.M | re.S)
        assert changed != text, f"{path} holds no {old}"
        (root / path).write_text(changed, encoding="utf-8")

    return change


def append(path, text):
    def change(root):
        (root / path).parent.mkdir(exist_ok=True)
        with open(root / path, "a", encoding="utf-8") as file:
            file.write(text)

    return change


def remove(pattern):
    def change(root):
        for path in sorted(root.glob(pattern)):
            path.unlink()

    return change


def unmeasured(name):
    def change(root):
        for path in (root / "benchmarks").glob("bench_*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(rf'Row\(\s*"{name}"', 'Row("another"', text), encoding="utf-8")

    return change


LONG_C = "\nstatic int\nlong_one(int n)\n{\n" + "    n++;\n" * 61 + "}\n"
LONG_PYTHON = "\n\ndef long_one(n):\n" + "    n += 1\n" * 61
VIOLATIONS = [
    (house.core_and_kernels_know_no_python, append("csrc/core/cpu.c", "#include <Python.h>\n"), "core/cpu.c:.*Python"),
    (
        house.core_and_kernels_know_no_python,
        append("csrc/kernels/softmax.inc.h", "#include <numpy/arrayobject.h>\n"),
        "numpy",
    ),
    (
        house.core_and_kernels_know_no_python,
        append("csrc/isa/isa.h", "PyObject *attn_table(void);\n"),
        "isa/isa.h:.*PyObject",
    ),
    (
        house.includes_point_down,
        append("csrc/core/attn.h", '#include "../kernels/softmax.h"\n'),
        "core/attn.h includes .*above",
    ),
    (
        house.includes_point_down,
        append("csrc/kernels/softmax.h", '#include "../isa/isa.h"\n'),
        "kernels/softmax.h includes .*above",
    ),
    (
        house.includes_point_down,
        append("csrc/isa/isa.h", '#include "../bindings/engine.h"\n'),
        "isa/isa.h includes .*above",
    ),
    (house.includes_point_down, append("csrc/core/cpu.c", '#include "absent.h"\n'), "absent.h, which does not exist"),
    *[
        (
            house.contracts_have_their_headings,
            replace("csrc/kernels/softmax.h", rf"^ \* {heading}", " * About"),
            f"softmax.h lacks the heading {heading}",
        )
        for heading in house.HEADINGS
    ],
    (house.bodies_are_listed, append("csrc/kernels/softmax_more.inc.h", "/* */\n"), "softmax_more.inc.h is not listed"),
    (
        house.all_is_complete,
        replace("attnpy/__init__.py", '    "logsumexp",\n', ""),
        "logsumexp is imported but not listed",
    ),
    (
        house.all_is_complete,
        replace("attnpy/__init__.py", '    "logsumexp",\n', '    "logsumexp",\n    "more",\n'),
        "more is imported",
    ),
    (
        house.faces_are_documented,
        replace("attnpy/_softmax.py", "def logsumexp", "def logsumexp2"),
        "has no face logsumexp",
    ),
    (
        house.faces_are_documented,
        replace("attnpy/_softmax.py", r"    Raises\n    -+\n", ""),
        "softmax lacks the section Raises",
    ),
    (
        house.faces_are_documented,
        replace("attnpy/_softmax.py", r"    where : ", "    kept : "),
        "softmax does not describe where",
    ),
    (
        house.faces_call_down_once,
        replace(
            "attnpy/_softmax.py",
            r"return _core.softmax\(",
            "_core.softmax(x, axis, where, out)\n    return _core.softmax(",
        ),
        "softmax calls down 2 times",
    ),
    (
        house.every_function_has_a_reference,
        replace("attnpy/reference/_softmax.py", "def logsumexp", "def logsum"),
        "no reference logsumexp",
    ),
    (
        house.every_function_has_a_reference,
        replace("attnpy/reference/_softmax.py", "keepdims=False", "keep=False"),
        r"logsumexp takes .*'keep'\]",
    ),
    (house.references_import_numpy_only, append("attnpy/reference/_softmax.py", "import scipy\n"), "imports scipy"),
    (
        house.references_import_numpy_only,
        append("attnpy/reference/_softmax.py", "from attnpy import _core\n"),
        "imports attnpy",
    ),
    (
        house.references_import_numpy_only,
        append("attnpy/reference/_softmax.py", "from .._native import core\n"),
        "imports _native",
    ),
    (
        house.integrations_import_their_library_only,
        append("attnpy/integrations/autograd.py", "import torch\n"),
        "integrations/autograd.py imports torch",
    ),
    (
        house.integrations_load_late,
        append("attnpy/_softmax.py", "\n\ndef late():\n    from .integrations import torch\n"),
        "_softmax.py imports integrations",
    ),
    (
        house.integrations_know_every_gradient,
        replace("attnpy/integrations/_gradients.py", '    "log_softmax": ', '    "log": '),
        "RULES lacks log_softmax",
    ),
    (
        house.integrations_know_every_gradient,
        replace("attnpy/integrations/_gradients.py", '    "log_softmax": ', '    "log": '),
        "RULES has log, which is not public",
    ),
    (house.packages_are_installed, replace("pyproject.toml", ', "attnpy.reference"', ""), "attnpy.reference is not"),
    (house.packages_are_installed, append("attnpy/more/__init__.py", ""), "attnpy.more is not listed"),
    (
        house.every_function_has_a_reference,
        replace("attnpy/reference/_masks.py", "def prefix", "def first"),
        "no reference BlockMask.prefix",
    ),
    (
        house.every_function_has_a_reference,
        replace("attnpy/reference/_masks.py", r"key_length, offset=None\):", "key_length, at=None):"),
        r"BlockMask.causal takes .*'at'\]",
    ),
    (
        house.faces_are_documented,
        replace("attnpy/_masks.py", "        query_length, key_length : int\n", "        query_length : int\n"),
        "BlockMask.from_function does not describe key_length",
    ),
    (
        house.every_function_has_a_test_row,
        replace("tests/cases.py", '    "BlockMask.prefix": ', '    "BlockMask.first": '),
        "BlockMask.prefix is public without a row",
    ),
    (house.every_function_has_a_benchmark, unmeasured("BlockMask.prefix"), "no row measures BlockMask.prefix"),
    (
        house.every_function_has_a_test_row,
        replace("tests/cases.py", '    "logsumexp": ', '    "logsum": '),
        "logsumexp is public without a row",
    ),
    (house.every_function_has_a_benchmark, unmeasured("logsumexp"), "no row measures logsumexp"),
    (house.every_function_is_in_the_readme, replace("README.md", r"`logsumexp\(", "`logsum("), "lacks logsumexp"),
    (house.stems_agree, remove("csrc/bindings/softmax*.c"), r"softmax: there is no csrc/bindings/softmax\*.c"),
    (house.stems_agree, remove("attnpy/reference/_softmax.py"), "softmax: there is no attnpy/reference"),
    (house.stems_agree, remove("benchmarks/bench_softmax.py"), "softmax: there is no benchmarks"),
    (house.stems_agree, append("csrc/kernels/gelu.h", "/* */\n"), "kernels/gelu.h belongs to no family"),
    (house.stems_agree, append("attnpy/_gelu.py", ""), "attnpy/_gelu.py belongs to no family"),
    (house.functions_are_short, append("csrc/core/cpu.c", LONG_C), "core/cpu.c:long_one has 61 lines"),
    (house.functions_are_short, append("attnpy/_softmax.py", LONG_PYTHON), "_softmax.py:long_one has 61 lines"),
    (house.files_are_short, append("csrc/core/cpu.c", "\n" * 500), "core/cpu.c has .* lines"),
    (house.files_are_short, append("tests/cases.py", "\n" * 500), "tests/cases.py has .* lines"),
]


def test_every_rule_has_a_violation():
    assert {check for check, _, _ in VIOLATIONS} == set(house.CHECKS)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house") / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "data", "*.npz", "*.png")
    for part in ("csrc", "attnpy", "tests", "benchmarks", "examples", "tools"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    return folder


@pytest.mark.parametrize(("check", "change", "text"), VIOLATIONS, ids=lambda x: getattr(x, "__name__", None))
def test_violation_is_seen(check, change, text, pristine, tmp_path):
    before = set(check(pristine))
    root = tmp_path / "tree"
    shutil.copytree(pristine, root)
    change(root)
    new = [violation for violation in check(root) if violation not in before]
    assert any(re.search(text, violation) for violation in new), new


# --- what was built


def test_the_build_is_of_this_tree():
    """As setup.py hashes it: names, sizes and contents of all C files."""
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.[ch]")):
        content = (ROOT / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    assert _core.config()["csrc_hash"] == digest.hexdigest()[:16], "the build is older than csrc: build again"


def test_signatures_are_those_of_the_descriptors():
    for name in house.public_functions(ROOT):
        function = getattr(attnpy, name)
        if hasattr(function, "signature"):
            assert function.signature == _core.signatures[name], name
    assert {"scaled_dot_product_attention", "softmax", "logsumexp"} <= set(_core.signatures)


def imported(package, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-c", "import attnpy._core as c; print(c.isa)"],
        env={**os.environ, "PYTHONPATH": str(package), **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
def test_forced_level(level):
    """Every level that this CPU has can be forced; one above it is refused, naming both."""
    package = Path(attnpy.__file__).parent.parent
    best = imported(package, ATTNPY_ISA="").stdout.strip()
    done = imported(package, ATTNPY_ISA=level)
    if LEVELS.index(level) <= LEVELS.index(best):
        assert done.stdout.strip() == level, done.stderr
    else:
        assert "ImportError" in done.stderr and level in done.stderr and best in done.stderr


@pytest.mark.skipif(not X86, reason="rewrites x86-64 code")
@pytest.mark.parametrize(("has", "wanted"), [("baseline", "avx2"), ("baseline", "avx512"), ("avx2", "avx512")])
def test_level_above_the_cpu_is_refused(has, wanted, tmp_path):
    """A copy of the module whose attn_cpu_level returns a lower level."""
    symbols = subprocess.run(["nm", _core.__file__], capture_output=True, text=True, check=False).stdout
    found = re.search(r"^([0-9a-f]+) [tT] attn_cpu_level$", symbols, re.M)
    if not found:
        pytest.skip("the module is stripped: attn_cpu_level cannot be found")
    package = tmp_path / "attnpy"
    shutil.copytree(Path(attnpy.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "_core*"))
    code = bytearray(Path(_core.__file__).read_bytes())
    at = file_offset(_core.__file__, int(found[1], 16))
    code[at : at + 6] = b"\xb8" + LEVELS.index(has).to_bytes(4, "little") + b"\xc3"  # mov eax, level; ret
    (package / Path(_core.__file__).name).write_bytes(code)
    done = imported(tmp_path, ATTNPY_ISA=wanted)
    assert done.returncode != 0, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "ImportError" in last and wanted in last and has in last, done.stderr
    assert imported(tmp_path, ATTNPY_ISA="").stdout.strip() == has


def file_offset(path, address):
    """Where a virtual address lies in an ELF file."""
    text = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
    for line in text.splitlines():
        found = re.match(r"\s*LOAD\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)", line)
        if found:
            offset, first, size = (int(x, 16) for x in found.groups())
            if first <= address < first + size:
                return address - first + offset
    raise LookupError(hex(address))


def test_unknown_level_is_refused():
    done = imported(Path(attnpy.__file__).parent.parent, ATTNPY_ISA="sse9")
    assert "ImportError" in done.stderr and "ATTNPY_ISA" in done.stderr and "sse9" in done.stderr


# --- machine code

# Vectors of lanes in the groups of each level (attention_tile.inc.h, GROUP_VECTORS): a function by each number.
GROUPS = {"avx512": (4, 2, 1), "avx2": (2, 1), "baseline": (2, 1)}
TILES = ("scores", "output", "product_rows")
NAMES = [(level, f"{what}_by_{nv}") for level in LEVELS for nv in GROUPS[level] for what in TILES]


def accumulators(level, nv):
    """Rows times vectors of a tile, as TILE_ROWS says for the level."""
    text = (ROOT / "csrc/kernels/attention_tile.inc.h").read_text(encoding="utf-8")
    rows = re.findall(r"#define TILE_ROWS\(nv\) \((.*)\)", text)[list(GROUPS).index(level)]
    chosen = {int(n): int(count) for n, count in re.findall(r"\(nv\) == (\d+) \? (\d+)", rows)}
    return nv * chosen.get(nv, int(re.search(r": (\d+)$", rows)[1]))


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """C file → its functions: of the module itself; where that is stripped, of objects compiled with its flags."""
    if not X86 or shutil.which("objdump") is None:
        pytest.skip("needs objdump, on x86-64")
    built = disassembly.by_file(_core.__file__)
    if all(f"{level}.c" in built for level in LEVELS):
        return built
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    flags = re.search(r"flags = (\[.*?\])", (ROOT / "setup.py").read_text(encoding="utf-8"), re.S)[1]
    folder = tmp_path_factory.mktemp("objects")
    for level in LEVELS:
        made = folder / f"{level}.o"
        source = ROOT / "csrc" / "isa" / f"{level}.c"
        subprocess.run([compiler, *re.findall(r'"([^"]+)"', flags), "-fPIC", "-c", source, "-o", made], check=True)
        built |= disassembly.by_file(made)
    return built


@pytest.mark.parametrize("real", ["f32", "f64"])
@pytest.mark.parametrize(("level", "name"), NAMES)
def test_tile_loops(level, name, real, objects):
    """A loop of a whole tile does as many multiply-adds on whole vectors as it has accumulators, and spills nothing."""
    found = disassembly.innermost_loops(objects[f"{level}.c"][f"{name}_{real}"], level)
    loops = [loop for loop in found if loop.steps and not loop.stores]
    steps = [loop.steps for loop in loops]
    wanted = accumulators(level, int(name[-1]))
    assert steps and max(steps) == wanted, (
        f"{level} {name}_{real}: multiply-adds in its loops: {steps}, wanted {wanted}"
    )
    spills = [spill for loop in loops for spill in loop.spills]
    assert not spills, f"{level} {name}_{real}: vectors on the stack inside a tile loop: {spills}"
    assert not any(loop.other for loop in loops), f"{level} {name}_{real}: vectors of less than the whole width"


def test_spills_and_narrow_loops_are_seen():
    text = """
0000000000000000 <scores>:
   0:	vxorps %xmm0,%xmm0,%xmm0
   4:	vmovups (%rsi),%zmm1
   8:	vfmadd231ps (%rdi){1to16},%zmm1,%zmm0
   c:	vmovaps %zmm0,0x40(%rsp)
  10:	vfmadd231ps %ymm1,%ymm2,%ymm3
  14:	vmovups %zmm4,(%rdx)
  16:	mov    %rax,0x8(%rsp)
  18:	jne    4 <scores+0x4>
  1c:	ret
"""
    ((name, body),) = disassembly.functions(text)
    assert name == "scores"
    assert list(disassembly.innermost_loops(body, "avx512")) == [
        disassembly.Loop(1, 1, ["vmovaps %zmm0,0x40(%rsp)"], 1)
    ]
