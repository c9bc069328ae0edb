"""Threads: how many, the same bits for any number, many callers at once, fork, Ctrl-C, and the GIL."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import attnpy

HOME = str(Path(attnpy.__file__).parent.parent)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="sched_setaffinity is Linux's")


@pytest.fixture(autouse=True)
def threads_restored():
    former = attnpy.get_num_threads()
    yield
    attnpy.set_num_threads(former)


# A shell starts what runs in its background with SIGINT ignored, and Python then leaves it so.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def run(code, timeout=120, **environment):
    """What a fresh interpreter prints."""
    environment = {name: x for name, x in {**os.environ, "PYTHONPATH": HOME, **environment}.items() if x is not None}
    command = [sys.executable, "-P", "-c", INTERRUPTIBLE + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def operands(length=300, heads=4, size=32, dtype=np.float32, seed=0):
    return tuple(np.random.default_rng(seed).standard_normal((3, 2, heads, length, size)).astype(dtype))


def test_set_and_get():
    for n in (1, 3, 1024, np.int64(2)):
        attnpy.set_num_threads(n)
        assert attnpy.get_num_threads() == n
        assert type(attnpy.get_num_threads()) is int


@pytest.mark.parametrize("n, error", [(0, ValueError), (-1, ValueError), (1025, ValueError), (2**70, ValueError)]
                         + [(1.5, TypeError), ("2", TypeError), (None, TypeError)])  # fmt: skip
def test_wrong_numbers_are_refused(n, error):
    attnpy.set_num_threads(3)
    with pytest.raises(error, match="num_threads"):
        attnpy.set_num_threads(n)
    with pytest.raises(error, match="num_threads"), attnpy.num_threads(n):
        raise AssertionError("must not be entered")
    assert attnpy.get_num_threads() == 3


def test_context_restores():
    attnpy.set_num_threads(4)
    context = attnpy.num_threads(2)
    assert attnpy.get_num_threads() == 4
    with context as entered:
        assert entered is context and attnpy.get_num_threads() == 2
        with attnpy.num_threads(3), context:
            assert attnpy.get_num_threads() == 2
            attnpy.set_num_threads(7)
        assert attnpy.get_num_threads() == 2
    assert attnpy.get_num_threads() == 4
    with pytest.raises(KeyError), context:
        raise KeyError
    assert attnpy.get_num_threads() == 4


NUMBER = "import attnpy; print(attnpy.get_num_threads())"
CLEAN = {"ATTNPY_NUM_THREADS": None, "OMP_NUM_THREADS": None}


def test_environment():
    assert run(NUMBER, **CLEAN | {"ATTNPY_NUM_THREADS": "1"}) == "1"
    assert run(NUMBER, **CLEAN | {"OMP_NUM_THREADS": "1"}) == "1"
    free = int(run(NUMBER, **CLEAN))
    assert 1 <= free <= len(os.sched_getaffinity(0)) if sys.platform == "linux" else free >= 1
    assert int(run(NUMBER, **CLEAN | {"ATTNPY_NUM_THREADS": str(free), "OMP_NUM_THREADS": "1"})) == free
    for nonsense in ("", "0", "-3", "many", "99999999999999999999"):
        assert int(run(NUMBER, **CLEAN | {"ATTNPY_NUM_THREADS": nonsense})) in range(1, free + 1)


@LINUX
def test_affinity():
    code = """
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import attnpy
    print(attnpy.get_num_threads())
    """
    assert run(code, **CLEAN) == "1"


AFFINITIES = """
import os, time
import numpy as np, attnpy
attnpy.set_num_threads(2)
x = np.ones((8, 300, 64), "f")

def call_after_a_pause():
    time.sleep(0.05)
    attnpy.scaled_dot_product_attention(x, x, x)
    (worker,) = set(map(int, os.listdir("/proc/self/task"))) - others
    return worker

others = set(map(int, os.listdir("/proc/self/task")))
allowed = os.sched_getaffinity(0)
worker = call_after_a_pause()
"""


@LINUX
def test_a_worker_is_woken_elsewhere_than_its_caller():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    code = """
    here = min(allowed)
    for here in (here, max(allowed), here):
        os.sched_setaffinity(0, {here})
        assert call_after_a_pause() == worker
        assert os.sched_getaffinity(worker) == allowed - {here}, (allowed, here, os.sched_getaffinity(worker))
    os.sched_setaffinity(worker, {here})
    os.sched_setaffinity(0, {max(allowed)})
    call_after_a_pause()
    assert os.sched_getaffinity(worker) == {here}
    os.sched_setaffinity(0, {here})
    call_after_a_pause()
    print(os.sched_getaffinity(worker) == {here})
    """
    assert run(AFFINITIES + textwrap.dedent(code), OPENBLAS_NUM_THREADS="1") == "True"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "window_size": (100, 0)}, {"kv_lengths": [7, 290], "sinks": [0, 1, 2, 3]}]
)
def test_same_bits_for_any_number_of_threads(dtype, options):
    arrays = operands(dtype=dtype)
    results = []
    for n in range(1, 6):
        with attnpy.num_threads(n):
            results.append(
                [
                    *attnpy.scaled_dot_product_attention(*arrays, **options, return_lse=True),
                    *attnpy.scaled_dot_product_attention(arrays[0][..., -1:, :], *arrays[1:], return_lse=True),
                    attnpy.attention_weights(*arrays[:2], **options),
                    attnpy.attention_received(*arrays[:2], **options),
                    attnpy.softmax(arrays[0], axis=(1, 3)),
                    attnpy.logsumexp(arrays[0], axis=2),
                    attnpy.dropout_mask((2, 4, 300, 300), 0.5, attnpy.DropoutKey(1), dtype=dtype),
                ]
            )
    for others in results[1:]:
        for one, other in zip(results[0], others):
            assert one.tobytes() == other.tobytes()


def test_many_python_threads_at_once():
    """Each call gives what it gives alone, whoever else computes, whatever number of threads is set meanwhile."""
    jobs = [
        operands(length, 3, 16, dtype, seed)
        for seed, (length, dtype) in enumerate([(64, np.float32), (257, np.float64), (500, np.float16)])
    ]
    alone = [attnpy.scaled_dot_product_attention(*job, is_causal=True) for job in jobs]
    soft = [attnpy.softmax(job[0]) for job in jobs]

    def work(i):
        if i % 7 == 0:
            attnpy.set_num_threads(1 + i % 4)
        got = attnpy.scaled_dot_product_attention(*jobs[i % 3], is_causal=True)
        return np.array_equal(got, alone[i % 3]) and np.array_equal(attnpy.softmax(jobs[i % 3][0]), soft[i % 3])

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(work, range(240), timeout=120))


FORK = """
import os, sys, time, threading
import numpy as np, attnpy
attnpy.set_num_threads(4)
arrays = np.random.default_rng(0).standard_normal((3, 4, 500, 32))
wanted = attnpy.scaled_dot_product_attention(*arrays)   # the pool has started
busy = {busy}
stop = threading.Event()
def keep_busy():
    while not stop.is_set():
        attnpy.scaled_dot_product_attention(*arrays)
workers = [threading.Thread(target=keep_busy) for _ in range(2 * busy)]
[worker.start() for worker in workers]
for _ in range(8):
    child = os.fork()
    if child == 0:
        right = attnpy.get_num_threads() == 4
        for _ in range(3):
            right = right and np.array_equal(attnpy.scaled_dot_product_attention(*arrays), wanted)
        os._exit(0 if right else 1)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert done == (child, 0), done
assert np.array_equal(attnpy.scaled_dot_product_attention(*arrays), wanted)
stop.set()
[worker.join() for worker in workers]
print("fine")
"""


@pytest.mark.parametrize("busy", [0, 1])
def test_fork(busy):
    assert run(FORK.format(busy=busy)) == "fine"


def in_a_child(seed):
    return attnpy.scaled_dot_product_attention(*operands(seed=seed))


@LINUX
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_multiprocessing_by_fork():
    attnpy.set_num_threads(4)
    wanted = [in_a_child(seed) for seed in range(6)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        for got, right in zip(pool.map_async(in_a_child, range(6)).get(timeout=60), wanted):
            assert got.tobytes() == right.tobytes()


LONG = """
import os, signal, sys, threading, time
import numpy as np, attnpy
rng = np.random.default_rng(0)
query, key, value = rng.standard_normal((3, 2, 100_000, 64), np.float32)
small = [x[:2, :200] for x in (query, key, value)]
wanted = attnpy.scaled_dot_product_attention(*small)
attnpy.set_num_threads({threads})
def interrupt():
    time.sleep(0.3)
    global sent
    sent = time.perf_counter()
    os.kill(os.getpid(), signal.SIGINT)
late = []
while len(late) < 3 and min(late, default=1) > 0.3:   # others may use the machine meanwhile
    threading.Thread(target=interrupt).start()
    try:
        {call}
        print("was not interrupted")
    except KeyboardInterrupt:
        late.append(time.perf_counter() - sent)
    assert np.array_equal(attnpy.scaled_dot_product_attention(*small), wanted)
print("late" if min(late) > 0.3 else "in time", late)
"""
CALLS = {  # each would take many seconds
    # one row block and eight million keys: interrupted in the middle of a task
    "one task": (
        "attnpy.scaled_dot_product_attention(query[:1, :65], *np.broadcast_to(key[:1, :1], (2, 1, 8_000_000, 64)))"
    ),
    "forward": "attnpy.scaled_dot_product_attention(query, key, value)",
    "decode": "attnpy.scaled_dot_product_attention(np.broadcast_to(query[:, :1], (3000, 2, 1, 64)), key, value)",
    "received": "attnpy.attention_received(query, key)",
    "logsumexp": "attnpy.logsumexp(np.broadcast_to(query, (20_000, 2, 100_000, 64)), axis=(-2, -1))",
}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", CALLS)
def test_interrupt(name, threads):
    said = run(LONG.format(threads=threads, call=CALLS[name]))
    assert said.startswith("in time"), said


def test_an_interrupt_leaves_no_mark():
    """Interrupted again and again, the process neither grows nor errs."""
    code = """
    import os, signal, threading, time
    import numpy as np, attnpy
    arrays = np.random.default_rng(0).standard_normal((3, 4, 20_000, 64), np.float32)
    small = arrays[:, :, :300]
    wanted = attnpy.scaled_dot_product_attention(*small)
    interrupted = 0
    for i in range(12):
        timer = threading.Timer(0.03 + 0.02 * (i % 4), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            attnpy.scaled_dot_product_attention(*arrays)
            time.sleep(1)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert np.array_equal(attnpy.scaled_dot_product_attention(*small), wanted)
    print(interrupted)
    """
    assert run(code) == "12"


def test_a_signal_handler_may_call_attnpy():
    code = """
    import os, signal, threading
    import numpy as np, attnpy
    arrays = np.random.default_rng(0).standard_normal((3, 8, 6_000, 64), np.float32)
    small = arrays[:, :, :200]
    wanted = attnpy.scaled_dot_product_attention(*small)
    seen = []
    def handler(number, frame):
        seen.append(np.array_equal(attnpy.scaled_dot_product_attention(*small), wanted))
    signal.signal(signal.SIGUSR1, handler)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    one = attnpy.scaled_dot_product_attention(*arrays)
    timer.join()
    assert np.array_equal(one, attnpy.scaled_dot_product_attention(*arrays))
    print(seen)
    """
    assert run(code) == "[True]"


def test_an_error_in_a_signal_handler_comes_out():
    code = """
    import os, signal, threading
    import numpy as np, attnpy
    class Trouble(Exception): pass
    def handler(number, frame):
        raise Trouble
    signal.signal(signal.SIGUSR1, handler)
    arrays = np.random.default_rng(0).standard_normal((3, 8, 30_000, 64), np.float32)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        attnpy.scaled_dot_product_attention(*arrays)
    except Trouble:
        print("came out")
    """
    assert run(code) == "came out"


def longest_pause(call):
    """Seconds that another Python thread had to wait at most during a call, and how long the call took."""
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    done.set()
    thread.join()
    inside = [start, *[t for t in ticks if start < t < end], end]
    return max(np.diff(inside)), end - start


@pytest.mark.parametrize(
    "name", ["scaled_dot_product_attention", "attention_weights", "attention_received", "softmax", "dropout_mask"]
)
def test_the_gil_is_released_in_long_calls(name):
    """Another thread goes on while one computes; one computing thread, so that a core is free for the other."""
    query, key, value = operands(length=2500, heads=2, size=64)
    calls = {
        "scaled_dot_product_attention": lambda: attnpy.scaled_dot_product_attention(query, key, value),
        "attention_weights": lambda: attnpy.attention_weights(query, key),
        "attention_received": lambda: attnpy.attention_received(query, key),
        "softmax": lambda: attnpy.softmax(np.broadcast_to(query[:, :, None], (2, 2, 60, 2500, 64)), axis=-2),
        "dropout_mask": lambda: attnpy.dropout_mask((4, 2500, 2500), 0.5, attnpy.DropoutKey(1), dtype=np.float32),
    }
    attnpy.set_num_threads(1)
    pauses = [longest_pause(calls[name]) for _ in range(3)]
    pause, whole = min(pauses)
    assert pause < whole / 3, pauses


def test_threadpoolctl_sees_and_limits():
    pytest.importorskip("threadpoolctl")
    code = """
    import {first}
    import {second}
    import numpy as np
    attnpy.set_num_threads(3)
    info = [x for x in threadpoolctl.threadpool_info() if x["user_api"] == "attnpy"]
    assert len(info) == 1, info
    assert info[0]["internal_api"] == "attnpy" and info[0]["num_threads"] == 3, info
    assert info[0]["version"] == attnpy.__version__ and info[0]["filepath"] == attnpy._core.__file__, info
    with threadpoolctl.threadpool_limits(limits=1):
        assert attnpy.get_num_threads() == 1
    assert attnpy.get_num_threads() == 3
    with threadpoolctl.threadpool_limits(limits=2, user_api="attnpy"):
        assert attnpy.get_num_threads() == 2
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        assert attnpy.get_num_threads() == 3
    with threadpoolctl.threadpool_limits(limits={{"attnpy": 1}}):
        assert attnpy.get_num_threads() == 1
    print("fine")
    """
    assert run(code.format(first="attnpy", second="threadpoolctl")) == "fine"
    assert run(code.format(first="threadpoolctl", second="attnpy")) == "fine"


def test_threadpoolctl_knows_attnpy_from_import_on():
    pytest.importorskip("threadpoolctl")
    code = """
    import threadpoolctl, attnpy
    print(sum(x["user_api"] == "attnpy" for x in threadpoolctl.threadpool_info()))
    """
    assert run(code) == "1"


def test_show_config(capsys):
    attnpy.set_num_threads(3)
    facts = attnpy.show_config(mode="dicts")
    assert capsys.readouterr().out == ""
    assert facts["attnpy"] == attnpy.__version__ and facts["numpy"] == np.__version__ and facts["threads"] == 3
    assert facts["level"] in ("baseline", "avx2", "avx512")
    assert facts["compiler"] and facts["csrc_hash"] and "cpu" in facts
    assert attnpy.show_config() is None
    text = capsys.readouterr().out
    assert [line.split(maxsplit=1)[0] for line in text.splitlines()] == [name.split()[0] for name in facts]
    assert np.__version__ in text
    with pytest.raises(ValueError, match="mode is 'text'"):
        attnpy.show_config("text")
