"""What the documentation says runs and is complete."""

import doctest
import inspect
import operator
import re
from pathlib import Path

import numpy as np
import pytest

import attnpy
from attnpy import reference

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = [name for name in attnpy.__all__ if inspect.isroutine(getattr(attnpy, name))]
CLASSES = [name for name in attnpy.__all__ if inspect.isclass(getattr(attnpy, name))]
METHODS = [  # constructors, and other methods with a name
    f"{name}.{method}"
    for name in CLASSES
    for method, thing in vars(getattr(attnpy, name)).items()
    if not method.startswith("_") and (isinstance(thing, classmethod) or inspect.isfunction(thing))
]
OF_MODULES = [f"{module}.{name}" for module in ("nn", "io") for name in getattr(attnpy, module).__all__]
ORDER = ["Parameters", "Attributes", "Returns", "Raises", "See Also", "Notes", "References", "Examples"]
MATHS = {"attention_received", "attention_weights", "dropout_mask", "log_softmax", "logsumexp", "merge_attention"}
MATHS |= {"rotary_embedding", "rotary_frequencies", "rotary_tables", "rotary_tables_2d"}
MATHS |= {"linear", "linear_backward", "PackedWeight"}
MATHS |= {"BlockMask", "attention_with_cache", "paged_attention"}
MATHS |= {"scaled_dot_product_attention", "softmax", "scaled_dot_product_attention_jvp"}
MATHS |= {"scaled_dot_product_attention_backward", "attention_weights_backward"}
MATHS |= {"softmax_backward", "log_softmax_backward", "logsumexp_backward", "merge_attention_backward"}


def sections(text):
    """Headings of a numpydoc docstring, in order, each with its text."""
    parts = re.split(r"^(\w[\w ]+)\n-{3,}\n", inspect.cleandoc(text), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2]))


def described(text):
    """Names of a Parameters section, in order."""
    return [
        name for line in re.findall(r"^(\w[\w, ]*)(?: :.*)?$", text, flags=re.MULTILINE) for name in line.split(", ")
    ]


@pytest.mark.parametrize("name", FUNCTIONS + CLASSES + METHODS + OF_MODULES)
def test_examples_run(name):
    thing = operator.attrgetter(name)(attnpy)
    found = [test for test in doctest.DocTestFinder(recurse=False).find(thing, name) if test.examples]
    assert found, f"{name} has no example"
    for test in found:
        said = []
        results = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        assert results.failed == 0, "".join(said)


@pytest.mark.parametrize("name", FUNCTIONS + CLASSES + METHODS)
def test_docstrings_are_complete(name):
    thing = operator.attrgetter(name)(attnpy)
    parts = sections(thing.__doc__)
    summary = parts[""].splitlines()
    assert summary[0].endswith(".") and (len(summary) == 1 or summary[1] == ""), "one line that says what it does"
    headings = [heading for heading in parts if heading]
    assert headings == [heading for heading in ORDER if heading in headings], "the sections of numpydoc, in its order"
    parameters = [parameter for parameter in inspect.signature(thing).parameters if parameter != "self"]
    assert described(parts.get("Parameters", "")) == parameters
    wanted = {"Examples"} if name in METHODS else {"See Also", "Examples"}
    wanted |= {"Parameters", "Raises"} if parameters else set()
    if name not in ("set_num_threads", *CLASSES):
        wanted |= {"Returns"}
    assert wanted <= set(headings)


@pytest.mark.parametrize("name", sorted(MATHS))
def test_maths_is_stated_and_sourced(name):
    parts = sections(getattr(attnpy, name).__doc__)
    assert ".. math::" in parts[""]
    assert re.search(r"arXiv:\d{4}\.\d{5}|doi:10\.", parts["References"])
    for line in parts.get("Parameters", "").splitlines():
        if "array_like" in line and not line.startswith(" "):
            assert "(" in line, f"no shape in: {line}"


@pytest.mark.parametrize("name", FUNCTIONS + CLASSES + OF_MODULES)
def test_see_also_leads_somewhere(name):
    thing = operator.attrgetter(name)(attnpy)
    neighbours = getattr(attnpy, name.split(".")[0]) if "." in name else attnpy
    text = sections(thing.__doc__)["See Also"]
    for target in re.findall(r"[\w.]+", re.sub(r" : .*$", "", text, flags=re.MULTILINE)):
        found = {"attnpy": attnpy, "numpy": np}.get(
            target.split(".")[0], getattr(neighbours, target.split(".")[0], None)
        )
        for part in target.split(".")[1:]:
            found = getattr(found, part)
        assert callable(found), target


@pytest.mark.parametrize("name", reference.__all__)
def test_references_state_equation_and_shapes(name):
    text = getattr(reference, name).__doc__
    assert re.search(r"\((\.\.\.|[THR]|num_buckets)[,)]", text) and any(
        sign in text for sign in ("=", "sum_i", "1 / (1 - p)", "P_ij")
    )


def run_readme(word):
    """What is named after the one example that holds this word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_readme_example_runs(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names = run_readme("heatmap")
    assert names["last_row"].shape == (2, 8, 1, 100)
    assert names["output"].shape == names["exact"].shape == (2, 8, 100, 64)
    matplotlib.pyplot.close("all")
    assert run_readme("import autograd")["gradient"].shape == (4, 10, 16)
    layers = run_readme("from attnpy import nn")
    assert layers["output"].shape == (2, 10, 64)
    assert layers["gradients"]["self_attn"]["query_weight"].shape == (64, 64)
    long = run_readme("BlockMask.longformer")
    assert long["output"].shape == (8, 8192, 64)
    assert repr(long["mask"]) in (ROOT / "README.md").read_text()


def test_readme_names_every_public_function():
    text = (ROOT / "README.md").read_text()
    assert [name for name in FUNCTIONS if f"`{name}" not in text] == []


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        assert target.startswith("http") or (ROOT / target).exists(), target
