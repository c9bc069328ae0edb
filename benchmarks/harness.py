"""How a row is measured: samples of at most about 20 ms, with what the machine can do
measured right before and after each.

Machines are shared, so a number alone says little: the same binary reads 85 or 68 % of the peak minutes apart. A row
therefore reports its
share of yardsticks that ran beside it, as median and quartiles:

fma      fused multiply-adds in registers: the arithmetic peak
tile     the inner loops of attention on data that stays in L1
read     a read loop over the row's own memory, on all threads
memcpy   a copy of the row's own arrays, on all threads
others   a second way to compute the row, named by the row itself (one core; float32)
"""

import concurrent.futures
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from attnpy import _core

SAMPLE = 10e-3  # seconds a sample aims at, by repeating calls shorter than that
PROBE = 2e-3  # seconds of one run of the fma and tile yardsticks
ROUNDS = 41


@dataclass
class Work:
    """What a row runs. A list of callables is rotated over, so that each finds its memory cold."""

    ours: Callable | Sequence[Callable] = ()
    flops: float = 0  # of visible scores; value and shares count these
    computed: float = 0  # of the tiles that hold them
    bytes: float = 0  # moved, where there are no flops
    dtype: str = "float32"  # computed in
    yardsticks: tuple = ("fma", "tile")
    head_dim: int = 64  # of the tile yardstick
    memory: Sequence[
        Sequence[np.ndarray]
    ] = ()  # per callable: what the read yardstick reads; (source, target) of memcpy
    beside: dict = field(default_factory=dict)  # further yardsticks: name → callable doing the same work
    threads: int | None = None  # 1: the yardsticks run on one core too; None: on all
    peers: dict = field(default_factory=dict)  # name → callable, list of callables, or the reason why there is none
    tolerance: float | None = None  # largest difference allowed between a peer's result and ours; None: not compared
    figure: Callable | None = None  # for rows that are no rate: returns the value itself, in `unit`
    unit: str = ""
    samples: int = ROUNDS  # most samples of a figure


@dataclass
class Row:
    """One line of the table. `case` is the name computed from what is measured; `prepare(peers)` allocates and
    returns the Work."""

    function: str
    case: str
    prepare: Callable[[Sequence[str]], Work]
    goal: tuple | None = None  # (yardstick, share at least) or (unit, value at most)

    @property
    def name(self):
        return f"{self.function} {self.case}"


def quartiles(values):
    if len(values) == 1:
        return {"q1": values[0], "median": values[0], "q3": values[0], "samples": 1}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3, "samples": len(values)}


def quiet():
    """Waits until no library's threads spin any more (OpenMP and BLAS do after each call): 10 ms to 0.3 s."""
    end = time.perf_counter() + 0.3
    time.sleep(0.01)
    while time.perf_counter() < end:
        spent = time.process_time()
        time.sleep(0.004)
        if time.process_time() - spent < 0.0004:
            return


class Yardsticks:
    """Rates of the machine: floating-point operations or bytes per second."""

    def __init__(self, threads):
        self.threads = threads
        self.team = concurrent.futures.ThreadPoolExecutor(threads)
        self.rounds = {}

    def rate(self, kind, work, turn, amount):
        if kind in ("fma", "tile"):
            return self.arithmetic(kind, work)
        if kind == "read":
            return self.read(work, turn, amount)
        return self.memcpy(work, turn)

    def arithmetic(self, kind, work):
        head_dim = (work.head_dim,) if kind == "tile" else ()
        probe = _core.tile_ceiling if kind == "tile" else _core.fma_peak
        rounds = self.calibrated(probe, (work.dtype, *head_dim))
        return self.together(
            [lambda: probe(work.dtype, *head_dim, rounds)] * (work.threads or self.threads), apart=True
        )

    def calibrated(self, probe, arguments):
        """Rounds that take about PROBE seconds."""
        key = (probe, arguments)
        if key not in self.rounds:
            rounds, seconds = 1, 0.0
            while seconds < PROBE / 2:
                rounds *= 2
                start = time.perf_counter()
                probe(*arguments, rounds)
                seconds = time.perf_counter() - start
            self.rounds[key] = max(1, round(rounds * PROBE / seconds))
        return self.rounds[key]

    def read(self, work, turn, amount):
        """Reads the memory of the next `amount` callables of the rotation; each thread takes its part of every
        array."""
        arrays = [a for i in range(amount) for a in work.memory[(turn + i) % len(work.memory)]]
        threads = work.threads or self.threads

        def reader(part):
            return lambda: sum(_core.read_bandwidth(p) for p in part)

        return self.together([reader([split(a, threads)[i] for a in arrays]) for i in range(threads)])

    def memcpy(self, work, turn):
        """Copies as often as takes about PROBE seconds; both the bytes read and the bytes written count."""
        source, target = work.memory[turn % len(work.memory)]
        threads = work.threads or self.threads
        times = max(1, int(PROBE * 20e9 / (2 * source.nbytes)))

        def copier(there, here):
            def copy():
                for _ in range(times):
                    np.copyto(there, here)
                return times * 2 * here.nbytes

            return copy

        return self.together(
            [copier(t, s) for t, s in zip(split(target, threads), split(source, threads), strict=True)]
        )

    def together(self, calls, *, apart=False):
        """Runs one call per thread and returns the rate of all: each over its own time if `apart`, else over the
        time of the whole."""

        def timed(call):
            start = time.perf_counter()
            amount = call()
            return amount, start, time.perf_counter()

        runs = [timed(calls[0])] if len(calls) == 1 else list(self.team.map(timed, calls))
        if apart:
            return sum(amount / (end - start) for amount, start, end in runs)
        return sum(amount for amount, _, _ in runs) / (
            max(end for *_, end in runs) - min(start for _, start, _ in runs)
        )


def split(array, parts):
    """The bytes of a contiguous array, in equal parts."""
    return np.array_split(array.reshape(-1).view(np.uint8), parts)


class Rotation:
    """Callables called in turn, as many to a sample as last about SAMPLE seconds."""

    def __init__(self, calls):
        self.calls = list(calls) if isinstance(calls, Sequence) else [calls]
        self.turn = 0
        self.repeat = 1
        self.last = None
        self.spent = 0.0
        self.seconds = []

    def warm(self):
        """Calls twice: the first compiles, allocates and starts threads."""
        self.run(1)
        self.repeat = max(1, int(SAMPLE / self.run(1)))

    def run(self, repeat):
        start = time.perf_counter()
        for _ in range(repeat):
            self.last = self.calls[self.turn % len(self.calls)]()
            self.turn += 1
        seconds = time.perf_counter() - start
        self.spent += seconds
        return seconds / repeat

    def sample(self):
        self.seconds.append(self.run(self.repeat))
        return self.seconds[-1]


class Measurement:
    """One row: ours between its yardsticks, then the peers, round by round in one process."""

    def __init__(self, work, yardsticks, budget):
        self.work, self.yardsticks, self.budget = work, yardsticks, budget
        self.amount = work.flops or work.bytes
        self.ours = Rotation(work.ours)
        self.beside = {name: Rotation(calls) for name, calls in work.beside.items()}
        self.refused = {name: why for name, why in work.peers.items() if isinstance(why, str)}
        self.peers = {name: Rotation(calls) for name, calls in work.peers.items() if not isinstance(calls, str)}
        self.shares = {kind: [] for kind in (*(work.yardsticks if self.amount else ()), *work.beside)}
        self.rates = {kind: [] for kind in self.shares}
        self.ratios = {name: [] for name in self.peers}

    def run(self):
        self.ours.warm()
        for rotation in self.beside.values():
            rotation.warm()
        for name in list(self.peers):
            self.warm_peer(name)
        quiet()
        end = time.perf_counter() + self.budget
        for done in range(ROUNDS):
            self.round()
            if done >= 4 and time.perf_counter() > end:
                break
        return self.result()

    def warm_peer(self, name):
        """A peer that fails, or computes something else, is left out, saying why."""
        try:
            self.peers[name].warm()
            if self.work.tolerance is not None:
                theirs = np.asarray(self.peers[name].last, np.float64).ravel()
                self.ours.turn = self.peers[name].turn - 1
                self.ours.run(1)
                ours = np.asarray(self.ours.last, np.float64).ravel()
                apart = float(np.abs(theirs - ours).max())
                if not apart <= self.work.tolerance:
                    raise ArithmeticError(f"its result differs by {apart:.2g}")
        except Exception as error:
            self.refused[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            del self.peers[name]

    def round(self):
        before = self.probe()
        seconds = self.ours.sample()
        after = self.probe()
        for kind in before:
            rate = (before[kind] + after[kind]) / 2
            self.rates[kind].append(rate)
            self.shares[kind].append(self.amount / seconds / rate)
        for name, rotation in self.beside.items():
            other = rotation.sample()
            self.rates[name].append(self.amount / other)
            self.shares[name].append(other / seconds)
        for name, rotation in self.peers.items():
            if self.due(rotation):
                self.ratios[name].append(rotation.sample() / seconds)
                quiet()

    def probe(self):
        """Every yardstick once. Reading moves the rotation on: the next sample finds its memory cold again."""
        rates = {}
        for kind in self.shares:
            if kind in self.beside:
                continue
            rates[kind] = self.yardsticks.rate(kind, self.work, self.ours.turn, self.ours.repeat)
            if kind == "read":
                self.ours.turn += self.ours.repeat
        return rates

    def due(self, rotation):
        """Peers share half of the row's time; each gets three samples at least, or one if a call takes over two
        seconds."""
        if not rotation.seconds:
            return True
        least = 1 if rotation.seconds[0] > 2 else 3
        return len(rotation.seconds) < least or sum(rotation.seconds) * rotation.repeat < self.budget / 2 / len(
            self.peers
        )

    def result(self):
        peers = {}
        for name, rotation in self.peers.items():
            peers[name] = {"seconds": quartiles(rotation.seconds), "ratio": quartiles(self.ratios[name])}
            if self.amount:
                rate = self.amount / statistics.median(rotation.seconds)
                peers[name]["share"] = {kind: rate / statistics.median(rates) for kind, rates in self.rates.items()}
        seconds = quartiles(self.ours.seconds)
        return {
            "unit": ("GF/s" if self.work.flops else "GB/s") if self.amount else "us",
            "value": quartiles([self.amount / s / 1e9 if self.amount else s * 1e6 for s in self.ours.seconds]),
            "seconds": seconds,
            "flops": {"visible": self.work.flops, "computed": self.work.computed or self.work.flops},
            "bytes": self.work.bytes,
            "yardsticks": {kind: quartiles(rates) for kind, rates in self.rates.items()},
            "shares": {kind: quartiles(shares) for kind, shares in self.shares.items()},
            "peers": peers,
            "refused": self.refused,
        }


def measure_figure(work, budget):
    """A row that is a value of its own (milliseconds of an import, megabytes), taken a few times."""
    values = repeated(work.figure, work.samples, budget)
    peers, refused = {}, {}
    for name, figure in work.peers.items():
        if isinstance(figure, str):
            refused[name] = figure
            continue
        try:
            theirs = quartiles(repeated(figure, work.samples, budget / len(work.peers)))
        except Exception as error:
            refused[name] = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            continue
        peers[name] = {"value": theirs, "ratio": quartiles([theirs["median"] / statistics.median(values)])}
    value = quartiles(values)
    return {"unit": work.unit, "value": value, "shares": {}, "yardsticks": {}, "peers": peers, "refused": refused}


def repeated(figure, samples, budget):
    end = time.perf_counter() + budget
    values = [figure()]
    while len(values) < samples and time.perf_counter() < end:
        values.append(figure())
    return values


def judge(goal, result):
    """Whether the goal is reached. Shares of the arithmetic peak by the upper quartile (quiet moments), everything
    else by the median."""
    if goal is None:
        return None
    of, wanted = goal
    if of in result["shares"]:
        reached = result["shares"][of]["q3" if of == "fma" else "median"] >= wanted
        return {"of": of, "at_least": wanted, "reached": reached}
    return {"of": of, "at_most": wanted, "reached": result["value"]["median"] <= wanted}


def measure(row, yardsticks, peers, budget):
    work = row.prepare(peers)
    result = measure_figure(work, budget) if work.figure else Measurement(work, yardsticks, budget).run()
    return {"function": row.function, "case": row.case, **result, "goal": judge(row.goal, result)}
