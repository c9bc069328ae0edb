"""Measures attnpy beside what the machine can do and beside other libraries.
The whole takes about 10 minutes, --quick about 2.

    python benchmarks/run.py [--only PATTERN] [--quick] [--json FILE] [--peers torch,numpy,onnxruntime,jax]

A fast part of the tests runs first: no speed is reported on red tests. harness.py says how a row is measured.
"""

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAMILIES = (
    "bench_attention",
    "bench_attention_backward",
    "bench_attention_jvp",
    "bench_layers_encoder",
    "bench_layers_linear",
    "bench_positions",
    "bench_positions_vectors",
    "bench_masks",
    "bench_attention_varlen",
    "bench_softmax",
    "bench_layers",
    "bench_call",
)
TESTS = ("test_golden.py", "test_softmax.py", "test_layers.py", "test_attention.py")
BUDGET, QUICK = 6.0, 1.2  # seconds a row
MISLEADING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # would choose NumPy's matrix kernel by hand


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples' quartiles there too")
    parser.add_argument("--only", metavar="PATTERN", default="", help="rows whose name matches this regular expression")
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--peers", default="torch,numpy,onnxruntime,jax", help="comma-separated; none: ''")
    return parser.parse_args()


def correct():
    """The fast tests, on the attnpy that will be measured (from a folder that holds no other)."""
    found = [str(HERE.parent / "tests" / name) for name in TESTS if (HERE.parent / "tests" / name).exists()]
    if not found:
        return False
    configuration = ["-c", str(HERE.parent / "pyproject.toml"), "--rootdir", str(HERE.parent)]
    with tempfile.TemporaryDirectory() as away:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *configuration, *found]
        done = subprocess.run(command, cwd=away, capture_output=True, text=True, check=False)
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip(), flush=True)
    return done.returncode == 0


def blas():
    """The kernel set that NumPy's BLAS chose."""
    try:
        import threadpoolctl
    except ImportError:
        return "unknown (threadpoolctl is not installed)"
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return (
        ", ".join(
            f"{p['internal_api']} {p['version']} {p.get('architecture', '')} {p['num_threads']} threads" for p in pools
        )
        or "none"
    )


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def machine(versions):
    import attnpy
    from attnpy import _core

    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": processor(),
        "level": _core.isa,
        "threads": attnpy.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "attnpy": attnpy.__version__,
        "blas": blas(),
        "peers": versions,
    }


def main():
    if any(name in os.environ for name in MISLEADING):
        kept = {name: value for name, value in os.environ.items() if name not in MISLEADING}
        os.execve(sys.executable, [sys.executable, *sys.argv], kept)
    chosen = options()
    if not correct():
        sys.exit("the tests fail (or are missing): no speed is reported")
    import peers
    import report
    from harness import Yardsticks, measure

    import attnpy

    versions = peers.installed([name for name in chosen.peers.split(",") if name])
    threads = attnpy.get_num_threads()
    peers.set_threads(versions, threads)
    facts = machine(versions)
    report.head(facts)
    yardsticks = Yardsticks(threads)
    results = []
    for family in FAMILIES:
        for row in importlib.import_module(family).rows():
            if re.search(chosen.only, row.name):
                results.append(measure(row, yardsticks, list(versions), QUICK if chosen.quick else BUDGET))
                report.line(results[-1])
    report.foot(results)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": facts, "rows": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
