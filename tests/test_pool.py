"""The thread pool and the scratch memory, without Python: tests/c/pool_stress.c says what is checked."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ["own", *(["portable"] if sys.platform == "linux" else [])]


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module", params=SYSTEMS)
def program(request, tmp_path_factory):
    """The stress test built for this system, and with what other systems use in place of futexes."""
    compiler = shutil.which("cc")
    assert compiler, "the tests need the C compiler that built attnpy"
    sources = sorted([*ROOT.glob("tests/c/pool_stress*.c"), *ROOT.glob("csrc/core/*.c")])
    target = tmp_path_factory.mktemp("pool") / "pool_stress"
    portable = ["-DATTN_PORTABLE"] if request.param == "portable" else []
    flags = ["-std=gnu11", "-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
    run([compiler, *flags, *portable, *sources, "-lm", "-o", target])
    return target


@pytest.mark.parametrize("debug", ["0", "1"])
def test_stress(program, debug):
    output = run([program], env={"ATTNPY_DEBUG_SCRATCH": debug})
    counts = re.fullmatch(r"(\d+) passed, 0 failed\n", output)
    assert counts, output
    assert int(counts[1]) > 1000  # most checks are made by calling threads: none of them was lost


def test_failures_are_told(tmp_path):
    """A pool that forgets a task does not pass."""
    core = tmp_path / "csrc" / "core"
    shutil.copytree(ROOT / "csrc" / "core", core)
    shutil.copytree(ROOT / "tests" / "c", tmp_path / "tests" / "c")
    pool = core / "pool.c"
    text = pool.read_text()
    broken = text.replace("if (task >= job->tasks)\n", "if (task >= job->tasks - 1)\n")
    assert broken != text
    pool.write_text(broken)
    sources = sorted([*tmp_path.glob("tests/c/pool_stress*.c"), *core.glob("*.c")])
    run(["cc", "-std=gnu11", "-O1", "-pthread", *sources, "-lm", "-o", tmp_path / "pool_stress"])
    result = subprocess.run([tmp_path / "pool_stress"], capture_output=True, text=True, timeout=180)
    assert result.returncode == 1
    assert re.search(r"passed, [1-9]\d* failed", result.stdout)
