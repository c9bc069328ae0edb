"""Builds attnpy._core. Everything else that describes the package is in pyproject.toml.

Environment: ATTNPY_EXTRA_CFLAGS, compiler flags that come last (sanitizers, -O0).
"""

import hashlib
import os
import shlex
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
if sys.platform == "win32":
    sys.exit("attnpy cannot be built on Windows yet: it needs gcc or clang, and POSIX threads. WSL works.")

STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have none
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.[ch]"))


def csrc_hash():
    """Names and contents of all C files; show_config() tells it, so that a stale build can be seen."""
    digest = hashlib.sha256()
    for name in FILES:
        content = (ROOT / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def extension():
    macros = [
        ("NPY_TARGET_VERSION", "NPY_2_1_API_VERSION"),
        ("NPY_NO_DEPRECATED_API", "NPY_2_1_API_VERSION"),
        ("ATTNPY_CSRC_HASH", f'"{csrc_hash()}"'),
        ("ATTNPY_VERSION", f'"{version()}"'),
    ]
    if STABLE_ABI:
        macros.append(("Py_LIMITED_API", "0x030b0000"))
    flags = ["-std=gnu11", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden"]
    extra = shlex.split(os.environ.get("ATTNPY_EXTRA_CFLAGS", ""))
    link = ["-Wl,-z,nodelete"] if sys.platform.startswith("linux") else []  # worker threads outlive a dlclose
    return Extension(
        "attnpy._core",
        sources=[name for name in FILES if name.endswith(".c")],
        depends=[name for name in FILES if name.endswith(".h")] + ["pyproject.toml"],
        include_dirs=[numpy.get_include()],
        define_macros=macros,
        extra_compile_args=flags + extra,
        extra_link_args=link,
        libraries=["m", "pthread"],
        py_limited_api=STABLE_ABI,
    )


class ParallelBuild(build_ext):
    """One compiler for each file and CPU at a time; the longest files first."""

    def build_extension(self, ext):
        compile_all = self.compiler.compile

        def compile_parallel(sources, **options):
            longest_first = sorted(sources, key=lambda name: "/isa/" not in name)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                built = dict(zip(longest_first, pool.map(lambda name: compile_all([name], **options), longest_first)))
            return [name for source in sources for name in built[source]]

        self.compiler.compile = compile_parallel
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_all


class StableWheel(bdist_wheel):
    """Tagged cp311-abi3: one wheel for every Python from 3.11 on."""

    def finalize_options(self):
        if STABLE_ABI:
            self.py_limited_api = "cp311"
        super().finalize_options()


setup(ext_modules=[extension()], cmdclass={"build_ext": ParallelBuild, "bdist_wheel": StableWheel})
