"""Importing attnpy: what it offers, what it costs, and what is left without the compiled module."""

import ast
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import attnpy
from attnpy import reference

PACKAGE = Path(attnpy.__file__).parent
PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"

OPTIONS = (
    "scale=None, bias=None, causal_offset=None, window_size=None, softcap=None, alibi_slopes=None, sinks=None, "
    "query_lengths=None, kv_lengths=None, "
)
RELATIVE = "relative_bias=None, "
ROTARY = "rotary=None, rotary_interleaved=False, query_positions=None, key_positions=None, "
PACKED = (
    "cu_seqlens_q, cu_seqlens_k, max_seqlen_q=None, max_seqlen_k=None, *, dropout_p=0.0, is_causal=False, scale=None, "
    "causal_offset=None, window_size=None, softcap=None, alibi_slopes=None, sinks=None, "
)
CACHE_OPTIONS = (
    "scale=None, causal_offset=None, window_size=None, softcap=None, alibi_slopes=None, sinks=None, "
    "query_lengths=None, relative_bias=None, rotary=None, rotary_interleaved=False, return_lse=False, out=None)"
)
DISTANT = (
    "attn_mask=None, is_causal=False, scale=None, bias=None, causal_offset=None, window_size=None, "
    "query_lengths=None, kv_lengths=None, "
)
SIGNATURES = {
    "scaled_dot_product_attention": "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, "
    + OPTIONS
    + RELATIVE
    + ROTARY
    + "rng=None, return_lse=False, enable_gqa=None, out=None)",
    "scaled_dot_product_attention_jvp": "(query, key, value, query_tangent, key_tangent, value_tangent, *, "
    "attn_mask=None, dropout_p=0.0, is_causal=False, "
    + OPTIONS
    + RELATIVE
    + ROTARY
    + "rng=None, bias_tangent=None, sinks_tangent=None, relative_bias_tangent=None, return_lse=False, out=None)",
    "attention_weights": "(query, key, attn_mask=None, *, is_causal=False, "
    + OPTIONS
    + RELATIVE
    + ROTARY
    + "rows=None, out=None)",
    "scaled_dot_product_attention_backward": "(grad_output, query, key, value, output, lse, *, attn_mask=None, "
    + "dropout_p=0.0, is_causal=False, "
    + OPTIONS
    + RELATIVE
    + ROTARY
    + "rng=None, grad_lse=None, needs=('query', 'key', 'value'), out=None)",
    "attention_weights_backward": "(grad_weights, query, key, *, attn_mask=None, is_causal=False, "
    + OPTIONS
    + RELATIVE
    + ROTARY
    + "rows=None, needs=('query', 'key'), out=None)",
    "AttentionGradients": "(query=None, key=None, value=None, attn_mask=None, bias=None, sinks=None, "
    + "alibi_slopes=None, relative_bias=None)",
    "varlen_attention": "(query, key, value, " + PACKED + RELATIVE + ROTARY + "rng=None, return_lse=False, out=None)",
    "varlen_attention_backward": "(grad_output, query, key, value, output, lse, "
    + PACKED
    + RELATIVE
    + ROTARY
    + "rng=None, grad_lse=None, needs=('query', 'key', 'value'), out=None)",
    "attention_received": "(query, key, attn_mask=None, *, is_causal=False, "
    + OPTIONS
    + RELATIVE
    + ROTARY
    + "out=None)",
    "multi_head_attention": "(query, key, value, *, output_weight, query_weight=None, key_weight=None, value_weight=None, "  # noqa: E501
    "qkv_weight=None, query_bias=None, key_bias=None, value_bias=None, output_bias=None, qkv_bias=None, "
    "num_heads, num_kv_heads=None, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, bias=None, "
    "causal_offset=None, window_size=None, softcap=None, alibi_slopes=None, sinks=None, query_lengths=None, "
    "kv_lengths=None, relative_bias=None, rotary=None, rotary_interleaved=False, query_positions=None, "
    "key_positions=None, rng=None, need_weights=False, out=None)",
    "merge_attention": "(outputs, lses, *, out=None)",
    "KVCache": "(num_layers, batch, num_kv_heads, max_length, head_dim, *, value_head_dim=None, "
    "dtype=<class 'numpy.float32'>, window=None)",
    "attention_with_cache": "(query, cache, layer, *, is_causal=True, " + CACHE_OPTIONS,
    "paged_attention": "(query, key_pages, value_pages, block_table, kv_lengths, *, is_causal=False, " + CACHE_OPTIONS,
    "BlockMask": "()",
    "longformer_attention": "(query, key, value, global_query, global_key, global_value, *, window, global_tokens, "
    "scale=None, kv_lengths=None, out=None)",
    "dropout_key": "(rng)",
    "dropout_mask": "(shape, dropout_p, key, *, dtype)",
    "sinusoidal_encoding": "(positions, dim, *, base=10000.0, layout='interleaved', denominator='dim', dtype=None, "
    "out=None)",
    "sinusoidal_encoding_2d": "(rows, columns, dim, *, base=10000.0, layout='interleaved', denominator='dim', "
    "order='rows_first', dtype=None, out=None)",
    "add_positions": "(x, table, offset=0, *, out=None)",
    "add_positions_backward": "(grad_output, table, offset=0, *, out=None)",
    "interpolate_positions": "(table, length, *, out=None)",
    "interpolate_positions_backward": "(grad_output, length, *, out=None)",
    "interpolate_positions_2d": "(table, from_grid, to_grid, *, num_prefix_tokens=0, out=None)",
    "interpolate_positions_2d_backward": "(grad_output, from_grid, to_grid, *, num_prefix_tokens=0, out=None)",
    "rotary_frequencies": "(head_dim, base=10000.0, *, scaling=None, sequence_length=None, "
    "max_position_embeddings=None, rotary_dim=None)",
    "rotary_tables": "(positions, inverse_frequencies, attention_factor=1.0, *, dtype=<class 'numpy.float32'>)",
    "rotary_tables_2d": "(rows, columns, inverse_frequencies, attention_factor=1.0, *, dtype=<class 'numpy.float32'>)",
    "rotary_embedding": "(x, cos=None, sin=None, *, positions=None, inverse_frequencies=None, interleaved=False, "
    "rotary_dim=None, inverse=False, out=None)",
    "permute_rotary_weights": "(weight, num_heads, *, to, axis=0, rotary_dim=None)",
    "alibi_slopes": "(num_heads)",
    "alibi_bias": "(slopes, query_length, key_length, *, offset=None, out=None)",
    "relative_position_bucket": "(relative_position, bidirectional=True, num_buckets=32, max_distance=128, *, "
    "out=None)",
    "t5_relative_bias": "(table, query_length, key_length, *, offset=None, bidirectional=True, max_distance=128, "
    "out=None)",
    "t5_relative_bias_backward": "(grad_output, table, query_length, key_length, *, offset=None, bidirectional=True, "
    "max_distance=128, out=None)",
    "relative_attention_shaw": "(query, key, value, key_table, value_table=None, *, "
    + DISTANT
    + "return_lse=False, out=None)",
    "relative_attention_xl": "(query, key, value, position_keys, content_bias, position_bias, *, "
    + DISTANT
    + "return_lse=False, out=None)",
    "relative_attention_shaw_backward": "(grad_output, query, key, value, key_table, value_table, output, lse, *, "
    + DISTANT
    + "grad_lse=None, needs=('query', 'key', 'value', 'key_table'), out=None)",
    "relative_attention_xl_backward": "(grad_output, query, key, value, position_keys, content_bias, position_bias, "
    "output, lse, *, " + DISTANT + "grad_lse=None, needs=('query', 'key', 'value', 'position_keys'), out=None)",
    "RelativeAttentionGradients": "(query=None, key=None, value=None, attn_mask=None, bias=None, key_table=None, "
    "value_table=None, position_keys=None, content_bias=None, position_bias=None)",
    "softmax": "(x, axis=-1, *, where=None, out=None)",
    "log_softmax": "(x, axis=-1, *, where=None, out=None)",
    "logsumexp": "(x, axis=-1, *, where=None, keepdims=False, out=None)",
    "merge_attention_backward": "(grad_output, outputs, lses, output, lse, *, grad_lse=None, out=None)",
    "linear": "(x, weight, bias=None, *, activation=None, residual=None, out=None)",
    "linear_backward": "(grad_output, x, weight, bias=None, *, activation=None, preactivation=None, "
    "needs=('x', 'weight'), out=None)",
    "LinearGradients": "(x=None, weight=None, bias=None)",
    "PackedWeight": "(weight, dtype=None)",
    "softmax_backward": "(grad_output, output, axis=-1, *, where=None, out=None)",
    "log_softmax_backward": "(grad_output, output, axis=-1, *, where=None, out=None)",
    "logsumexp_backward": "(grad_output, x, output, axis=-1, *, where=None, keepdims=False, out=None)",
    "layer_norm": "(x, weight=None, bias=None, *, axis=-1, eps=1e-05, residual=None, return_sum=False, out=None)",
    "rms_norm": "(x, weight=None, *, axis=-1, eps=1e-05, residual=None, return_sum=False, out=None)",
    "layer_norm_backward": "(grad_output, x, weight=None, *, axis=-1, eps=1e-05, grad_sum=None, out=None)",
    "rms_norm_backward": "(grad_output, x, weight=None, *, axis=-1, eps=1e-05, grad_sum=None, out=None)",
    "gelu": "(x, *, approximate='none', out=None)",
    "silu": "(x, *, out=None)",
    "relu": "(x, *, out=None)",
    "swiglu": "(x, gate=None, *, out=None)",
    "geglu": "(x, gate=None, *, approximate='none', out=None)",
    "gelu_backward": "(grad_output, x, *, approximate='none', out=None)",
    "silu_backward": "(grad_output, x, *, out=None)",
    "relu_backward": "(grad_output, x, *, out=None)",
    "swiglu_backward": "(grad_output, x, gate=None, *, out=None)",
    "geglu_backward": "(grad_output, x, gate=None, *, approximate='none', out=None)",
    "embedding": "(indices, table, *, out=None)",
    "embedding_backward": "(grad_output, indices, num_embeddings, *, out=None)",
    "cross_entropy": "(logits, targets, *, ignore_index=-100, label_smoothing=0.0, reduction='mean', out=None)",
    "cross_entropy_backward": "(grad_output, logits, targets, *, ignore_index=-100, label_smoothing=0.0, "
    "reduction='mean', out=None)",
    "get_num_threads": "()",
    "set_num_threads": "(num_threads)",
    "num_threads": "(num_threads)",
    "show_config": "(mode='stdout')",
    "DropoutKey": "(key)",
}


def run(code, path=None, **environment):
    """What a fresh interpreter prints that searches `path` first, and not the folder it starts in (-P)."""
    environment = {**os.environ, "PYTHONPATH": str(path or PACKAGE.parent), **environment}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain(signature, without=()):
    """A signature without annotations."""
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name not in without]
    return str(inspect.Signature(kept))


def test_every_public_name_is_there_and_listed():
    assert len(set(attnpy.__all__)) == len(attnpy.__all__)
    assert set(SIGNATURES) | {"reference", "plot", "integrations", "nn", "io"} == set(attnpy.__all__)
    for name in attnpy.__all__:
        assert getattr(attnpy, name) is not None and name in dir(attnpy)
    with pytest.raises(AttributeError, match="module 'attnpy' has no attribute 'attention'"):
        attnpy.attention  # noqa: B018


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_documented_ones(name):
    assert plain(inspect.signature(getattr(attnpy, name))) == SIGNATURES[name]


@pytest.mark.parametrize("name", reference.__all__)
def test_the_reference_takes_the_same_arguments(name):
    face, plain_one = (inspect.signature(getattr(module, name)) for module in (attnpy, reference))
    assert plain(plain_one) == plain(face, without=["out"])


def test_core_signatures_are_those_of_the_faces():
    from attnpy import _core

    named = {
        name: getattr(attnpy, name).signature for name in attnpy.__all__ if hasattr(getattr(attnpy, name), "signature")
    }
    assert named.items() <= _core.signatures.items()
    assert {"scaled_dot_product_attention", "attention_weights", "attention_received"} <= set(named)
    assert {"softmax", "log_softmax", "logsumexp"} <= set(named)


def test_version_is_the_same_everywhere():
    version = tomllib.loads(PROJECT.read_text())["project"]["version"]
    assert attnpy.__version__ == version
    try:
        assert metadata.version("attnpy") == version
    except metadata.PackageNotFoundError:  # an in-place build
        assert PACKAGE.parent == PROJECT.parent


def test_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_import_is_quick():
    code = "import time, numpy; t = time.perf_counter(); import attnpy; print((time.perf_counter() - t) * 1e3)"
    assert min(float(run(code)) for _ in range(7)) < 15


def test_import_loads_nothing_but_itself():
    code = "import sys, numpy; before = set(sys.modules); import attnpy; print(*sorted(set(sys.modules) - before))"
    loaded = run(code).split()
    assert [name for name in loaded if name.split(".")[0] not in ("attnpy", "__future__")] == []
    assert not {"attnpy.plot", "attnpy.reference", "attnpy.integrations", "attnpy.nn", "attnpy.io"} & {*loaded}


def test_the_reference_imports_numpy_only():
    for file in (PACKAGE / "reference").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {name.name for name in node.names} <= {"numpy", "math", "typing"}, file
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, file


def test_reference_and_plot_load_when_first_used():
    code = "import attnpy; print(attnpy.reference.softmax([0, 0]), attnpy.plot.heatmap.__name__)"
    assert run(code) == "[0.5 0.5] heatmap\n"


WITHOUT = """
import numpy as np, attnpy
print(attnpy.reference.scaled_dot_product_attention(np.eye(2), np.eye(2), np.eye(2), scale=0))
print(attnpy.DropoutKey(1) == attnpy.DropoutKey([1, 0, 0, 0]))
calls = {
    "scaled_dot_product_attention": lambda: attnpy.scaled_dot_product_attention(np.eye(2), np.eye(2), np.eye(2)),
    "softmax": lambda: attnpy.softmax([1.0]),
    "dropout_mask": lambda: attnpy.dropout_mask((1, 2, 2), 0.5, attnpy.DropoutKey(1), dtype=bool),
    "get_num_threads": attnpy.get_num_threads,
}
for name, call in calls.items():
    for _ in range(2):
        try:
            call()
        except ImportError as error:
            print(name, error, "|", type(error.__cause__).__name__)
attnpy.show_config()
"""


@pytest.fixture
def without_core(tmp_path):
    ignore = shutil.ignore_patterns("_core*", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "attnpy", ignore=ignore)
    return tmp_path


def test_without_the_compiled_module_the_reference_works(without_core):
    lines = run(WITHOUT, path=without_core).splitlines()
    assert lines[:3] == ["[[0.5 0.5]", " [0.5 0.5]]", "True"]
    reason = "attnpy's compiled module attnpy._core cannot be loaded: No module named 'attnpy._core'"
    for name in ("scaled_dot_product_attention", "softmax", "dropout_mask", "get_num_threads"):
        said = [line for line in lines if line.startswith(name)]
        assert len(said) == 2 and all(line.startswith(f"{name} {reason}") for line in said)
        assert all(line.endswith("| ModuleNotFoundError") for line in said)
    assert any(line.startswith("compiled module") and "No module named 'attnpy._core'" in line for line in lines)


def test_a_broken_compiled_module_says_why(without_core):
    (without_core / "attnpy" / "_core.abi3.so").write_bytes(b"not a shared object")
    code = """
import attnpy
try:
    attnpy.softmax([1.0])
except ImportError as error:
    print(error)
"""
    assert "_core.abi3.so: file too short" in run(code, path=without_core)


def test_an_unknown_level_is_named():
    code = """
import attnpy
try:
    attnpy.softmax([1.0])
except ImportError as error:
    print(error)
"""
    said = run(code, ATTNPY_ISA="fancy")
    assert "ATTNPY_ISA" in said and "fancy" in said


def test_scalars_are_numpy_scalars():
    assert type(attnpy.logsumexp(np.ones(3, np.float32))) is np.float32
