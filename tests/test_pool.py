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
    broken = text.replace("finished = task >= job->tasks;", "finished = task >= job->tasks - 1;")
    assert broken != text
    pool.write_text(broken)
    sources = sorted([*tmp_path.glob("tests/c/pool_stress*.c"), *core.glob("*.c")])
    run(["cc", "-std=gnu11", "-O1", "-pthread", *sources, "-lm", "-o", tmp_path / "pool_stress"])
    result = subprocess.run([tmp_path / "pool_stress"], capture_output=True, text=True, timeout=180)
    assert result.returncode == 1
    assert re.search(r"passed, [1-9]\d* failed", result.stdout)


ROOT_MOUNT = "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
MOUNT = "30 23 0:26 {root} {mount} rw,nosuid shared:9 - {type} cgroup rw{controller}\n"
PERIOD = "cpu.cfs_period_us"
V1, V2 = {"type": "cgroup", "controller": ",cpu,cpuacct"}, {"type": "cgroup2", "controller": ""}
# name: (line of /proc/self/cgroup, mount, root of the mount, quota files below the mount, processors of 64)
QUOTAS = {
    "v2": ("0::/a/b", V2, "/", {"a/b/cpu.max": "150000 100000"}, 2),
    "v2, whole": ("0::/a", V2, "/", {"a/cpu.max": "300000 100000"}, 3),
    "v2, a folder above is stricter": ("0::/a/b", V2, "/", {"a/b/cpu.max": "8000 1000", "a/cpu.max": "2500 1000"}, 3),
    "v2, above without quota": ("0::/a/b", V2, "/", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "max 100000"}, 4),
    "v2, no quota": ("0::/a", V2, "/", {"a/cpu.max": "max 100000"}, 64),
    "v2, more than there is": ("0::/a", V2, "/", {"a/cpu.max": "9900000 100000"}, 64),
    "v2, part of a period": ("0::/", V2, "/", {"cpu.max": "1000 100000"}, 1),
    "v2, outside the namespace": ("0::/../x", V2, "/", {"cpu.max": "500000 100000"}, 5),
    "v1": ("4:cpu,cpuacct:/a", V1, "/", {"a/cpu.cfs_quota_us": "250000", f"a/{PERIOD}": "100000"}, 3),
    "v1, in a container": ("4:cpu:/docker/x", V1, "/docker/x", {"cpu.cfs_quota_us": "700000", PERIOD: "100000"}, 7),
    "v1, no quota": ("4:cpu:/a", V1, "/", {"a/cpu.cfs_quota_us": "-1", f"a/{PERIOD}": "100000"}, 64),
    "v1, another controller": ("4:cpuset:/a", V1, "/", {"a/cpu.cfs_quota_us": "1000", f"a/{PERIOD}": "1000"}, 64),
    "no line": ("", V2, "/", {"cpu.max": "100000 100000"}, 64),
}


@pytest.fixture(scope="module")
def count_processors(tmp_path_factory):
    """A program that takes its /proc/self from the folder it runs in, and 64 processors for granted."""
    folder = tmp_path_factory.mktemp("quota")
    text = (ROOT / "csrc" / "core" / "system_linux.c").read_text()
    for own, replacement in (("/proc/self/", ""), ("int cpus = affinity_count();", "int cpus = 64;")):
        assert own in text
        text = text.replace(own, replacement)
    (folder / "system_linux.c").write_text(text)
    main = 'int main(void) { printf("%d", attn_usable_cpus()); }\n'
    (folder / "main.c").write_text(f'#include "system.h"\n#include <stdio.h>\n{main}')
    sources = [folder / "system_linux.c", folder / "main.c"]
    flags = ["-std=gnu11", "-pthread", "-Wno-unused-function", "-I", ROOT / "csrc" / "core"]
    run(["cc", *flags, *sources, "-o", folder / "count"])
    return folder / "count"


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
@pytest.mark.parametrize("name", QUOTAS)
def test_cgroup_quota(count_processors, tmp_path, name):
    line, kind, root, files, wanted = QUOTAS[name]
    mount = tmp_path / "mount"
    (tmp_path / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    (tmp_path / "mountinfo").write_text(ROOT_MOUNT + MOUNT.format(root=root, mount=mount, **kind))
    for path, content in files.items():
        (mount / path).parent.mkdir(parents=True, exist_ok=True)
        (mount / path).write_text(content + "\n")
    assert int(run([count_processors], cwd=tmp_path)) == wanted
