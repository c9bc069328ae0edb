"""Positions: what is made of them before attention, beside copies of the same arrays and others' formulas."""

import concurrent.futures

import numpy as np
from bench_masks import made
from harness import Row, Work

import attnpy


def rows():
    yield from sinusoids()
    yield from learned()
    yield from relative()
    yield from rotary()


# --- ALiBi and T5


def relative():
    slopes = attnpy.alibi_slopes(8).astype(np.float32)
    yield Row("alibi_slopes", "H112", made(lambda: attnpy.alibi_slopes(112)))
    yield Row("alibi_bias", "H8 L2048 S2048 float32", alibi_bias(slopes, 2048), ("memcpy", 0.9))
    distances = np.arange(2048) - np.arange(2048)[:, None]
    yield Row("relative_position_bucket", "2048 x 2048 int64", buckets(distances))
    table = np.random.default_rng(0).standard_normal((32, 8), np.float32)
    bias = attnpy.t5_relative_bias(table, 2048, 2048)
    yield Row("t5_relative_bias", "H8 L2048 S2048", made(lambda: attnpy.t5_relative_bias(table, 2048, 2048)))
    backward = made(lambda: attnpy.t5_relative_bias_backward(bias, table, 2048, 2048))
    yield Row("t5_relative_bias_backward", "H8 L2048 S2048", backward)


def alibi_bias(slopes, length):
    """Bytes are those written; a copy reads as many besides."""

    def prepare(wanted):
        out = np.empty((len(slopes), length, length), np.float32)
        distance = np.abs(np.arange(length) - np.arange(length)[:, None]).astype(np.float32)
        compared = {}
        if "numpy" in wanted:
            compared["numpy"] = lambda: -slopes[:, None, None] * distance
        if "torch" in wanted:
            import torch

            slope, far = torch.from_numpy(slopes), torch.from_numpy(distance)
            compared["torch"] = lambda: (-slope[:, None, None] * far).numpy()
        return Work(
            ours=lambda: attnpy.alibi_bias(slopes, length, length, out=out),
            bytes=out.nbytes,
            yardsticks=("memcpy",),
            memory=[(out, np.empty_like(out))],
            peers=compared,
            tolerance=1e-4,
        )

    return prepare


def buckets(distances):
    """Beside the formula in floating point."""

    def prepare(wanted):
        others = {}
        if "numpy" in wanted:
            others["numpy"] = lambda: by_logarithm(distances)
        return made(lambda: attnpy.relative_position_bucket(distances), others)(wanted)

    return prepare


def by_logarithm(x, num_buckets=32, max_distance=128):
    n = num_buckets // 2
    m, d = n // 2, np.abs(x)
    far = m + (np.log(np.maximum(d, m) / m) / np.log(max_distance / m) * (n - m)).astype(np.int64)
    return n * (x > 0) + np.where(d < m, d, np.minimum(far, n - 1))


# --- sinusoids: bytes are those written, beside a loop that writes as many


def sinusoids():
    for dtype in ("float32", "float64", "float16"):
        case, goal = f"16384 x 1024 {dtype} out=", ("fill", 0.9) if dtype == "float32" else None
        yield Row("sinusoidal_encoding", case, encoding(16384, 1024, dtype), goal)
    scattered = 2.0**20 * np.random.default_rng(0).random(16384)
    yield Row(
        "sinusoidal_encoding", "16384 x 1024 float32 fractional positions out=", encoding(scattered, 1024, "float32")
    )
    yield Row("sinusoidal_encoding_2d", "128 x 128 x 1024 float32 out=", image(128, 1024), ("fill", 0.9))


def numpy_encoding(positions, dim):
    frequencies = 10000.0 ** -(np.arange(0, dim, 2) / dim)
    angle = (np.arange(positions) if isinstance(positions, int) else positions)[:, None] * frequencies
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(-1, dim)


def encoding(positions, dim, dtype):
    def prepare(wanted):
        length = positions if isinstance(positions, int) else len(positions)
        out = np.empty((length, dim), dtype)
        others = {"numpy": lambda: numpy_encoding(positions, dim).astype(dtype)} if "numpy" in wanted else {}
        return written(lambda: attnpy.sinusoidal_encoding(positions, dim, out=out), out, others)

    return prepare


def image(side, dim):
    def prepare(wanted):
        out = np.empty((side, side, dim), np.float32)

        def numpy():
            half = numpy_encoding(side, dim // 2).astype(np.float32)
            shape = (side, side, dim // 2)
            return np.concatenate([np.broadcast_to(half[:, None], shape), np.broadcast_to(half, shape)], -1)

        others = {"numpy": numpy} if "numpy" in wanted else {}
        return written(lambda: attnpy.sinusoidal_encoding_2d(side, side, dim, out=out), out, others)

    return prepare


def written(ours, out, others):
    threads = attnpy.get_num_threads()
    team = concurrent.futures.ThreadPoolExecutor(threads)
    parts = np.array_split(np.empty_like(out).reshape(-1), threads)
    return Work(
        ours=ours, bytes=out.nbytes, yardsticks=(), beside={"fill": lambda: list(team.map(lambda x: x.fill(1), parts))},
        peers=others, tolerance=1e-4 if out.itemsize > 2 else 1e-2,
    )  # fmt: skip


# --- learned tables


def learned():
    yield Row("add_positions", "8 x 2048 x 1024 float32 out=", sums(8, 2048, 1024), ("memcpy", 0.9))
    rng = np.random.default_rng(0)
    table, grad = (rng.standard_normal((8, 512, 768), np.float32) for _ in range(2))
    gradient = made(lambda: attnpy.add_positions_backward(grad, table[0]))
    yield Row("add_positions_backward", "8 x 512 x 768 float32", gradient)
    stretched = rng.standard_normal((1, 2048, 768), np.float32)
    yield Row("interpolate_positions", "512 to 2048 x 768", line(table[:1], 2048))
    yield Row(
        "interpolate_positions_backward", "512 to 2048 x 768",
        made(lambda: attnpy.interpolate_positions_backward(stretched, 512)),
    )  # fmt: skip
    grid, finer = table[:1, :197], stretched[:, :577]
    yield Row("interpolate_positions_2d", "14 x 14 to 24 x 24 x 768", patches(grid))
    yield Row(
        "interpolate_positions_2d_backward", "14 x 14 to 24 x 24 x 768",
        made(lambda: attnpy.interpolate_positions_2d_backward(finer, (14, 14), (24, 24), num_prefix_tokens=1)),
    )  # fmt: skip


def sums(batch, length, dim):
    """What is read of x and written; the table stays in the caches."""

    def prepare(wanted):
        rng = np.random.default_rng(0)
        x, table = rng.standard_normal((batch, length, dim), np.float32), rng.standard_normal((length, dim), np.float32)
        out, other = np.empty_like(x), np.empty_like(x)
        compared = {"numpy": lambda: np.add(x, table, out=other)} if "numpy" in wanted else {}
        if "torch" in wanted:
            import torch

            a, b, c = (torch.from_numpy(array) for array in (x, table, other))
            compared["torch"] = lambda: torch.add(a, b, out=c).numpy()
        return Work(
            ours=lambda: attnpy.add_positions(x, table, out=out), bytes=2 * x.nbytes, yardsticks=("memcpy",),
            memory=[(x, np.empty_like(x))], peers=compared, tolerance=1e-6,
        )  # fmt: skip

    return prepare


def line(table, length):
    def prepare(wanted):
        others = {}
        if "torch" in wanted:
            import torch

            def resized(x):
                y = torch.nn.functional.interpolate(x.transpose(1, 2), size=length, mode="linear", align_corners=False)
                return y.transpose(1, 2).contiguous().numpy()

            others["torch"] = lambda: resized(torch.from_numpy(table))
        return made(lambda: attnpy.interpolate_positions(table, length), others)(wanted)

    return prepare


def patches(table):
    def prepare(wanted):
        others = {}
        if "torch" in wanted:
            import torch

            def resized(x):
                grid = x[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
                y = torch.nn.functional.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False)
                return torch.cat([x[:, :1], y.permute(0, 2, 3, 1).reshape(1, 576, -1)], 1).numpy()

            others["torch"] = lambda: resized(torch.from_numpy(table))
        ours = lambda: attnpy.interpolate_positions_2d(table, (14, 14), (24, 24), num_prefix_tokens=1)  # noqa: E731
        return made(ours, others)(wanted)

    return prepare


# --- rotary embeddings


def rotary():
    sizes = {
        "B1 H32 L4096 D128": (1, 32, 4096, 128),
        "B4 H16 L2048 D64": (4, 16, 2048, 64),
        "B32 H32 L1 D128": (32, 32, 1, 128),
    }
    for name, shape in sizes.items():
        goal = ("memcpy", 0.9) if shape[2] > 1 else None
        yield Row("rotary_embedding", f"{name} float32 out=", turned(shape, np.float32), goal)
    shape = sizes["B1 H32 L4096 D128"]
    yield Row(
        "rotary_embedding",
        "B1 H32 L4096 D128 float32 interleaved out=",
        turned(shape, np.float32, interleaved=True),
        ("memcpy", 0.9),
    )
    yield Row(
        "rotary_embedding", "B1 H32 L4096 D128 float32 out=x", turned(shape, np.float32, in_place=True), ("memcpy", 0.9)
    )
    yield Row("rotary_embedding", "B1 H32 L4096 D128 float16 out=", turned(shape, np.float16))
    frequencies, _ = attnpy.rotary_frequencies(128)
    yield Row("rotary_frequencies", "128", made(lambda: attnpy.rotary_frequencies(128)))
    yield Row("rotary_tables", "4096 x 64", made(lambda: attnpy.rotary_tables(4096, frequencies)))
    yield Row("rotary_tables_2d", "64 x 64, 64", made(lambda: attnpy.rotary_tables_2d(64, 64, frequencies[::2])))
    weight = np.zeros((4096, 4096), np.float32)
    permute = made(lambda: attnpy.permute_rotary_weights(weight, 32, to="half_split"))
    yield Row("permute_rotary_weights", "4096 x 4096 float32", permute)


def turned(shape, dtype, *, interleaved=False, in_place=False):
    """Beside the formula of Hugging Face's Llama in NumPy and PyTorch. Bytes of x and of the result."""

    def prepare(wanted):
        x = np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)
        cos, sin = attnpy.rotary_tables(shape[-2], attnpy.rotary_frequencies(shape[-1])[0])
        out = x if in_place else np.empty_like(x)
        compared = {}
        if not interleaved and not in_place:
            wide = [np.concatenate([table, table], -1).astype(dtype) for table in (cos, sin)]
            if "numpy" in wanted:
                compared["numpy"] = lambda: half_split(np, x, *wide)
            if "torch" in wanted:
                import torch

                tensors = [torch.from_numpy(array) for array in (x, *wide)]
                compared["torch"] = lambda: half_split(torch, *tensors).numpy()
        return Work(
            ours=lambda: attnpy.rotary_embedding(x, cos, sin, interleaved=interleaved, out=out),
            bytes=2 * x.nbytes,
            yardsticks=("memcpy",),
            memory=[(x, np.empty_like(x))],
            peers=compared,
            tolerance=1e-5 if dtype == np.float32 else 1e-2,
        )

    return prepare


def half_split(library, x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + library.concatenate([-x[..., half:], x[..., :half]], -1) * sin
