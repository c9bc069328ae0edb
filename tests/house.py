"""The rules of the house, each a function from a source tree to its violations."""

import ast
import re
from pathlib import Path

FLOORS = ("core", "kernels", "isa", "bindings")  # and module.c above them: includes point down
PYTHON_AND_NUMPY = re.compile(r"#\s*include\s*[<\"](Python\.h|numpy/)|\bPy_?[A-Z]\w+\s*\(|\bPyObject\b|\bnpy_\w+")
HEADINGS = ("Computes", "Given", "Returns", "Special", "Accuracy", "Source")

FAMILIES = ("softmax", "attention", "masks", "positions", "layers")
PARTED = ("positions", "layers")  # families of several parts, which have no place in common: FAMILY_part on every floor
WITHOUT_KERNELS = ("masks",)  # what kernels of other families are given
MODULES = ("reference", "plot", "integrations", "nn", "io")  # public names that are modules
# What families there are besides: stems of one floor or two, which compute nothing that a user calls.
TOOLS = {
    "kernels": ("probe", "all"),
    "bindings": ("engine", "families", "level", "numpy_api", "probe", "threads"),
    "faces": ("arguments", "native", "threads"),
}
THREADS = "controls threads, computes nothing"
OF_GRADIENTS = ("AttentionGradients", "RelativeAttentionGradients")
WITHOUT_REFERENCE = {
    "PackedWeight": "holds weights; unpack() gives them to the reference of linear",
    "DropoutKey": "holds four words",
    "KVCache": "holds keys and values; view() gives them to the reference of attention_with_cache",
    "dropout_key": "draws four words from NumPy's own generator",
    "get_num_threads": THREADS,
    "set_num_threads": THREADS,
    "num_threads": THREADS,
    "show_config": "prints facts",
}
WITHOUT_BENCHMARK = {
    "LinearGradients": "what linear_backward returns, which has rows",
    "BlockMask": "has a row for each constructor",
    "DropoutKey": "what dropout_key returns, which has a row",
    "KVCache": "what attention_with_cache reads, which has rows",
    **dict.fromkeys(OF_GRADIENTS, "what the backward functions return, which have rows"),
    "show_config": "prints facts",
}
WITHOUT_README = {
    "LinearGradients": "what linear_backward returns, which has a line",
    "DropoutKey": "what dropout_key returns, which has a line",
    **dict.fromkeys(OF_GRADIENTS, "what the backward functions return, which have lines"),
}

LINES_OF_A_FUNCTION = 60
LINES_OF_A_FILE = 450  # about 400
LONG_FUNCTIONS = {}  # "file:function" → the reason
LONG_FILES = {}  # file → the reason

LIBRARIES = {
    "torch": {"torch", "transformers", "ml_dtypes"},
    "autograd": {"autograd"},
}  # what a module of integrations may import
READ_BY_REFERENCE = {"numpy", "math", "typing"}


def floor_of(path, root):
    parts = path.relative_to(root / "csrc").parts
    return FLOORS.index(parts[0]) if parts[0] in FLOORS else len(FLOORS)


def c_files(root, *floors):
    folders = [root / "csrc" / floor for floor in floors] if floors else [root / "csrc"]
    return sorted(path for folder in folders for path in folder.rglob("*.[ch]"))


def python_files(root):
    return sorted(
        path
        for folder in ("attnpy", "tests", "benchmarks", "examples", "tools")
        for path in (root / folder).rglob("*.py")
    )


def without_comments(text):
    return re.sub(r"/\*.*?\*/|//[^\n]*", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)


def stem(name):
    """attention_rows.inc.h → attention_rows"""
    return name.split(".")[0]


def family_of(name):
    return stem(name).lstrip("_").split("_")[0]


# --- C


def core_and_kernels_know_no_python(root):
    for path in c_files(root, "core", "kernels", "isa"):
        for n, line in enumerate(without_comments(path.read_text()).splitlines(), 1):
            if PYTHON_AND_NUMPY.search(line):
                yield f"{path.relative_to(root)}:{n} names Python or NumPy: {line.strip()}"


def includes_point_down(root):
    for path in c_files(root):
        for included in re.findall(r'^\s*#\s*include\s*"([^"]+)"', without_comments(path.read_text()), re.M):
            target = (path.parent / included).resolve()
            if not target.is_file():
                yield f"{path.relative_to(root)} includes {included}, which does not exist"
            elif floor_of(target, root.resolve()) > floor_of(path, root):
                yield f"{path.relative_to(root)} includes {included}, which lies above it"


def contracts_have_their_headings(root):
    for path in sorted((root / "csrc" / "kernels").glob("*.h")):
        if path.name.endswith(".inc.h"):
            continue
        comment = path.read_text().split("*/")[0]
        for heading in HEADINGS:
            if not re.search(rf"^ \* {heading}\s+\S", comment, re.M):
                yield f"{path.relative_to(root)} lacks the heading {heading}"


def bodies_are_listed(root):
    """Every body is reached from all.inc.h."""
    kernels = root / "csrc" / "kernels"
    seen, waiting = set(), [kernels / "all.inc.h"]
    while waiting:
        path = waiting.pop().resolve()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        waiting += [path.parent / name for name in re.findall(r'#\s*include\s*"([^"]+)"', path.read_text())]
    for path in c_files(root, "core", "kernels"):
        if path.name.endswith(".inc.h") and path.resolve() not in seen:
            yield f"{path.relative_to(root)} is not listed in kernels/all.inc.h"


# --- Python


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(path):
    return (
        {node.name: node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if path.is_file()
        else {}
    )


def public_functions(root):
    """Name → the module of its face."""
    init = tree(root / "attnpy" / "__init__.py")
    found = {}
    for node in ast.walk(init):  # also where it says what loads later
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {alias.asname or alias.name: node.module for alias in node.names}
    return found


def methods(node, decorator):
    """Of a class: its methods with this decorator, by name."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    return {
        n.name: n for n in body if isinstance(n, ast.FunctionDef) and decorator in map(ast.unparse, n.decorator_list)
    }


def public_definitions(root):
    """Functions, classes, and constructors of classes as Class.constructor → (module, definition or None)."""
    found = {}
    for name, module in public_functions(root).items():
        node = definitions(root / "attnpy" / f"{module}.py").get(name)
        found[name] = module, node
        found |= {f"{name}.{made}": (module, n) for made, n in methods(node, "classmethod").items()}
    return found


def listed_names(root):
    for node in tree(root / "attnpy" / "__init__.py").body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    return []


def all_is_complete(root):
    listed, imported = listed_names(root), public_functions(root)
    for name in sorted(set(listed) ^ {*imported, *MODULES}):
        yield f"attnpy/__init__.py: {name} is imported but not listed in __all__, or the other way round"


def parameters(node):
    """Of a function, or of a class's constructor."""
    if isinstance(node, ast.ClassDef):
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "__new__")]
        return [arg.arg for n in made for arg in (*n.args.args, *n.args.kwonlyargs)][1:]
    names = [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)]
    return names[1:] if "classmethod" in map(ast.unparse, node.decorator_list) else names


def faces_are_documented(root):
    for name, (module, node) in public_definitions(root).items():
        if node is None:
            yield f"attnpy/{module}.py has no face {name}"
            continue
        text = ast.get_docstring(node) or ""
        needed = ["Examples"] if "." in name else ["See Also", "Examples"]
        needed += ["Parameters", "Raises"] if parameters(node) else []
        returns = getattr(node, "returns", None)
        needed += ["Returns"] if returns is not None and ast.unparse(returns) != "None" else []
        for section in needed:
            if not re.search(rf"^{section}\n-{{{len(section)}}}$", text, re.M):
                yield f"attnpy/{module}.py: the docstring of {name} lacks the section {section}"
        described = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n\w[\w ]*\n-+\n|\Z)", text, re.M | re.S)
        for parameter in parameters(node):
            if not described or not re.search(rf"^(\w+, )*{parameter}\b", described[1], re.M):
                yield f"attnpy/{module}.py: the docstring of {name} does not describe {parameter}"


def faces_call_down_once(root):
    for name, module in public_functions(root).items():
        node = definitions(root / "attnpy" / f"{module}.py").get(name)
        calls = (
            [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func).startswith("_core.")]
            if node
            else []
        )
        if len(calls) > 1:
            yield f"attnpy/{module}.py: {name} calls down {len(calls)} times"


def every_function_has_a_reference(root):
    """Of the same name, on the floor below, with the same parameters but for out=."""
    for name, (module, node) in public_definitions(root).items():
        if name in WITHOUT_REFERENCE:
            continue
        path = root / "attnpy" / "reference" / f"{module}.py"
        owner, _, made = name.partition(".")
        reference = definitions(path).get(owner)
        reference = methods(reference, "staticmethod").get(made) if made else reference
        if reference is None:
            yield f"{path.relative_to(root)} has no reference {name}"
            continue
        face = [p for p in parameters(node) if p != "out"]
        if parameters(reference) != face:
            yield f"{path.relative_to(root)}: {name} takes {parameters(reference)}, its face {face}"


def references_import_numpy_only(root):
    for path in sorted((root / "attnpy" / "reference").glob("*.py")):
        for node in ast.walk(tree(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                outside = node.level > 1 or (node.level == 0 and node.module not in READ_BY_REFERENCE)
                names = [node.module or "."] if outside else []
            for name in set(names) - READ_BY_REFERENCE:
                yield f"{path.relative_to(root)} imports {name}"


def integrations_import_their_library_only(root):
    for path in sorted((root / "attnpy" / "integrations").glob("*.py")):
        known = {"numpy", "attnpy", "collections", "importlib", "typing"} | LIBRARIES.get(path.stem, set())
        for node in ast.walk(tree(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                if name.split(".")[0] not in known:
                    yield f"{path.relative_to(root)} imports {name}"


def integrations_load_late(root):
    """Nothing but the compiled module asks for them, when the first array of another library comes."""
    for path in sorted((root / "attnpy").glob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom) and "integrations" in ast.unparse(node):
                yield f"{path.relative_to(root)} imports integrations"


def integrations_know_every_gradient(root):
    """A function whose backward is public has a rule, by which it takes the arrays of libraries with gradients."""
    public, path = public_functions(root), root / "attnpy" / "integrations" / "_gradients.py"
    rules = set()
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "RULES":
            rules = {key.value for key in node.value.keys}
    wanted = {name.removesuffix("_backward") for name in public if name.endswith("_backward")}
    for name in sorted(wanted - rules):
        yield f"{path.relative_to(root)}: RULES lacks {name}, whose gradient is public"
    for name in sorted(rules - set(public)):
        yield f"{path.relative_to(root)}: RULES has {name}, which is not public"


def packages_are_installed(root):
    listed = re.search(r"^packages = (\[.*?\])", (root / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    found = {path.parent.relative_to(root).as_posix() for path in (root / "attnpy").rglob("__init__.py")}
    for name in sorted({folder.replace("/", ".") for folder in found} ^ set(ast.literal_eval(listed[1]))):
        yield f"pyproject.toml: the package {name} is not listed, or does not exist"


def every_function_has_a_test_row(root):
    tables = {  # name → its keys, and the names of tables that it takes in
        ast.unparse(node.targets[0]): [getattr(k, "value", ast.unparse(x)) for k, x in zip(made.keys, made.values)]
        for path in (root / "tests").glob("cases*.py")
        for node in tree(path).body
        if isinstance(node, ast.Assign) and isinstance(made := node.value, ast.Dict)
    }
    rows = {row for name in tables.get("CASES", []) for row in tables.get(name, [name])}
    for name in sorted(set(public_definitions(root)) ^ rows):
        yield f"tests/cases.py: {name} is public without a row, or has a row without being public"


def every_function_has_a_benchmark(root):
    named = {
        ast.unparse(node.args[0]).strip("'")
        for path in sorted((root / "benchmarks").glob("bench_*.py"))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Row" and node.args
    }
    for name in public_definitions(root):
        if name not in named and name not in WITHOUT_BENCHMARK:
            yield f"benchmarks/bench_*.py: no row measures {name}"


def every_function_is_in_the_readme(root):
    table = "\n".join(
        line for line in (root / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")
    )
    for name in public_definitions(root):
        if not re.search(rf"`{re.escape(name)}\b", table) and name not in WITHOUT_README:
            yield f"README.md: the table of functions lacks {name}"


def stems_agree(root):
    """A family has its place on every floor, and nothing stands there without a family."""
    for family in FAMILIES:
        part = "_*" if family in PARTED else ""
        places = {
            f"csrc/kernels/{family}{part}.h": 1, f"csrc/kernels/{family}*.inc.h": 1, f"csrc/bindings/{family}*.c": 1,
            f"attnpy/_{family}{part}.py": 1, f"attnpy/reference/_{family}{part}.py": 1,
            f"tests/test_{family}*.py": 1, f"benchmarks/bench_{family}.py": 1,
        }  # fmt: skip
        for place in places:
            if place.startswith("csrc/") and family in WITHOUT_KERNELS:
                continue
            if not list(root.glob(place)):
                yield f"{family}: there is no {place}"
    floors = {
        "csrc/kernels/*.h": (*FAMILIES, *TOOLS["kernels"]), "csrc/bindings/*.[ch]": (*FAMILIES, *TOOLS["bindings"]),
        "attnpy/_[a-z]*.py": (*FAMILIES, *TOOLS["faces"]), "attnpy/reference/_[a-z]*.py": FAMILIES,
    }  # fmt: skip
    for pattern, known in floors.items():
        for path in sorted(root.glob(pattern)):
            if family_of(path.name) not in known and stem(path.name).lstrip("_") not in known:
                yield f"{path.relative_to(root)} belongs to no family"


# --- sizes


def c_functions(text):
    """(name, lines) of the definitions: a name that begins a line, then braces in the first column."""
    lines, name, start = without_comments(text).splitlines(), None, None
    for n, line in enumerate(lines):
        found = re.match(r"(?:SUFFIX\()?(\w+)\)?\(", line)
        if found and start is None:
            name = found[1]
        if line == "{" and name:
            start = n
        if line == "}" and start is not None:
            yield name, n - start - 1
            name = start = None


def python_functions(path):
    """(name, lines without docstring and signature)."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0


def functions_are_short(root):
    for path in [*c_files(root), *python_files(root)]:
        found = python_functions(path) if path.suffix == ".py" else c_functions(path.read_text())
        for name, lines in found:
            where = f"{path.relative_to(root)}:{name}"
            if lines > LINES_OF_A_FUNCTION and where not in LONG_FUNCTIONS:
                yield f"{where} has {lines} lines; {LINES_OF_A_FUNCTION} are the limit"


def files_are_short(root):
    """Docstrings of faces do not count: a face is mostly documentation."""
    for path in [*c_files(root), *python_files(root)]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if path.suffix == ".py" and path.parent == root / "attnpy":
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > LINES_OF_A_FILE and str(path.relative_to(root)) not in LONG_FILES:
            yield f"{path.relative_to(root)} has {lines} lines; {LINES_OF_A_FILE} are the limit"


CHECKS = (
    core_and_kernels_know_no_python,
    includes_point_down,
    contracts_have_their_headings,
    bodies_are_listed,
    all_is_complete,
    faces_are_documented,
    faces_call_down_once,
    every_function_has_a_reference,
    references_import_numpy_only,
    integrations_import_their_library_only,
    integrations_load_late,
    integrations_know_every_gradient,
    packages_are_installed,
    every_function_has_a_test_row,
    every_function_has_a_benchmark,
    every_function_is_in_the_readme,
    stems_agree,
    functions_are_short,
    files_are_short,
)
ROOT = Path(__file__).resolve().parent.parent
