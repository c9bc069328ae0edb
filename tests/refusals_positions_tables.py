"""What sinusoidal encodings and learned tables must refuse."""

import numpy as np
from refusals import _out, _overlapping, _read_only, _typed, of, ones

NOT_FORMULAS = [
    ({"dim": 0}, ValueError, "dim is 0"),
    ({"dim": -4}, ValueError, "dim is -4"),
    ({"dim": 4.0}, TypeError, "dim"),
    ({"base": 0.0}, ValueError, "base is 0.0; it must be positive"),
    ({"base": -1e4}, ValueError, "base"),
    ({"base": 1e101}, ValueError, "base"),
    ({"base": float("nan")}, ValueError, "base"),
    ({"base": "1e4"}, TypeError, "base"),
    ({"layout": "split"}, ValueError, "layout is 'split'; it must be 'interleaved' or 'concatenated'"),
    ({"layout": None}, ValueError, "layout"),
    ({"layout": ["interleaved"]}, ValueError, "layout"),
    ({"denominator": "half"}, ValueError, "denominator is 'half'"),
    ({"dtype": np.int32}, TypeError, "dtype is int32"),
    ({"dtype": bool}, TypeError, "dtype"),
    ({"dtype": np.complex64}, TypeError, "dtype"),
    ({"dtype": np.dtype(np.float32).newbyteorder()}, TypeError, "dtype"),
]
SINUSOIDAL = of(
    {"positions": ones(2, 3), "dim": 4, "dtype": np.float32},
    *_typed("positions", ones(2, 3)),
    *NOT_FORMULAS,
    *_out(2, 3, 4),
    ({"positions": -1}, ValueError, "positions is -1"),
    ({"positions": True}, TypeError, "positions"),
    ({"positions": 2**60}, MemoryError, ""),
    ({"out": ones(2, 3, 4, dtype=bool), "dtype": None}, TypeError, "out"),
)
SINUSOIDAL_2D = of(
    {"rows": 2, "columns": ones(3), "dim": 4, "dtype": np.float32},
    *_typed("columns", ones(3)),
    *NOT_FORMULAS,
    *_out(2, 3, 4),
    ({"dim": 7}, ValueError, "dim is 7; it must be even"),
    ({"order": "yx"}, ValueError, "order is 'yx'"),
    ({"rows": -2}, ValueError, "rows is -2"),
    ({"columns": False}, TypeError, "columns"),
    ({"columns": ones(3, 1)}, ValueError, r"columns has shape \(3, 1\)"),
    ({"rows": np.float64(3)}, ValueError, "rows has shape"),
    ({"rows": 2**40, "columns": 2**40}, MemoryError, ""),
)
TABLES = [
    *_typed("table", ones(9, 5)),
    ({"table": ones(5)}, ValueError, r"table has shape \(5,\)"),
    ({"table": ones(9, 1)}, ValueError, "table has shape.* the last must be 5"),
    ({"table": ones(3, 9, 5)}, ValueError, "table"),
    ({"table": ones(1, 2, 9, 5)}, ValueError, "table"),
    ({"offset": -1}, ValueError, "offset holds -1; with 6 tokens a table of 9 rows needs each in 0 ... 3"),
    ({"offset": 4}, ValueError, "offset holds 4"),
    ({"offset": [0, 2**63]}, ValueError, "offset"),
    ({"offset": [0, 0, 0]}, ValueError, "offset"),
    ({"offset": 1.0}, TypeError, "offset"),
    ({"offset": True}, TypeError, "offset"),
    ({"offset": None}, TypeError, "offset"),
    ({"table": ones(5, 5)}, ValueError, "offset holds 0"),
]
ADD = of(
    {"x": ones(2, 6, 5), "table": ones(9, 5)},
    *_typed("x", ones(2, 6, 5)),
    *TABLES,
    *_out(2, 6, 5),
    ({"x": ones(5)}, ValueError, "x has shape"),
)
ADD_BACKWARD = of(
    {"grad_output": ones(2, 6, 5), "table": ones(9, 5)},
    *_typed("grad_output", ones(2, 6, 5)),
    *TABLES,
    ({"out": ones(9, 4)}, ValueError, "out"),
    ({"out": ones(9, 5, dtype=np.float64)}, TypeError, "out"),
    ({"out": ones(9, 5).tolist()}, TypeError, "out"),
    ({"out": _read_only(9, 5)}, ValueError, "out"),
    ({"out": _overlapping(9, 5)}, ValueError, "out"),
)
NOT_LENGTHS = [
    ({"length": -1}, ValueError, "length is -1"),
    ({"length": 2**31}, ValueError, "length"),
    ({"length": 3.0}, TypeError, "length"),
    ({"length": [3]}, TypeError, "length"),
]
LINE = of(
    {"table": ones(2, 6, 5), "length": 4},
    *_typed("table", ones(2, 6, 5)),
    *NOT_LENGTHS,
    *_out(2, 4, 5),
    ({"table": ones(5)}, ValueError, "table has shape"),
    ({"table": ones(0, 5)}, ValueError, r"table has shape \(0, 5\); nothing can be interpolated"),
)
LINE_BACKWARD = of(
    {"grad_output": ones(2, 6, 5), "length": 4},
    *_typed("grad_output", ones(2, 6, 5)),
    *NOT_LENGTHS,
    *_out(2, 4, 5),
    ({"length": 0}, ValueError, "grad_output has shape.* nothing can be interpolated"),
)
NOT_GRIDS = [
    ({"from_grid": (2, 4)}, ValueError, "grad_output|table has shape.* 2 x 4 grid points after 1 prefix tokens"),
    ({"from_grid": 6}, TypeError, "from_grid"),
    ({"from_grid": (2, 3, 1)}, ValueError, "from_grid"),
    ({"from_grid": (2, -3)}, ValueError, "from_grid"),
    ({"to_grid": (2.0, 3)}, TypeError, "to_grid"),
    ({"to_grid": "ab"}, TypeError, "to_grid"),
    ({"to_grid": (2**30, 2**31)}, ValueError, "to_grid"),
    ({"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens"),
    ({"num_prefix_tokens": 2}, ValueError, "table|grad_output"),
    ({"num_prefix_tokens": 1.0}, TypeError, "num_prefix_tokens"),
]
GRID = of(
    {"table": ones(2, 7, 5), "from_grid": (2, 3), "to_grid": (4, 2), "num_prefix_tokens": 1},
    *_typed("table", ones(2, 7, 5)),
    *NOT_GRIDS,
    *_out(2, 9, 5),
    ({"to_grid": (2**30, 2**30)}, MemoryError, ""),
    ({"table": ones(1, 5), "from_grid": (0, 3)}, ValueError, "table has shape.* nothing can be interpolated"),
)
GRID_BACKWARD = of(
    {"grad_output": ones(2, 9, 5), "from_grid": (2, 3), "to_grid": (4, 2), "num_prefix_tokens": 1},
    *_typed("grad_output", ones(2, 9, 5)),
    *NOT_GRIDS[1:],
    *_out(2, 7, 5),
    ({"to_grid": (4, 3)}, ValueError, "grad_output has shape.* 4 x 3 grid points after 1 prefix tokens"),
    ({"from_grid": (0, 3)}, ValueError, "grad_output has shape.* nothing can be interpolated"),
)
