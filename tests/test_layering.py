"""Who may import whom, what imports no torch, and that `__all__` tells the public names."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROWS = {
    "rag": {"engine", "retriever", "data"},
    "engine": {"kernels"},
    "retriever": set(),
    "kernels": set(),
    "data": set(),
}
BOOKKEEPING = (
    "block_pool", "radix_tree", "prefix_cache", "scheduler", "request", "prompt", "ladder", "eviction", "ordering",
    "recompute_cost",
)  # fmt: skip
MODULES = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of every module imported anywhere, also in functions, type checking and by string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def forbidden_arrows(package: str, source: str) -> list[str]:
    """The imports of one module that DESIGN section 2 does not allow."""
    wrong = []
    for name in imported_names(ast.parse(source)):
        top = name.split(".")[0]
        if name.startswith("."):
            wrong.append(f"{package} -> {name} (relative)")
        elif top in {*ARROWS, "tests"} - {package} - ARROWS[package]:
            wrong.append(f"{package} -> {name}")
    return wrong


def defined_names(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Yield each public name that a module defines at its top level, and whether it must be in `__all__`.

    Classes and functions must, unless a decorator has given the function away (a route, a command). Constants and
    types may, and must once another module takes them.
    """
    for node in tree.body:
        found: list[tuple[str, bool]] = []
        if isinstance(node, ast.ClassDef):
            found = [(node.name, True)]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found = [(node.name, not node.decorator_list)]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            found = [(name, False) for name in stored]
        yield from ((name, needed) for name, needed in found if not name.startswith("_"))


def declared_names(tree: ast.Module) -> list[str]:
    """The list in `__all__`, empty without one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def names_taken(sources: Iterable[str]) -> dict[str, set[str]]:
    """What modules take from each other by `from module import name`, by module."""
    taken: dict[str, set[str]] = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module:
                taken.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return taken


def wrong_all(source: str, taken: set[str] = frozenset()) -> str:
    """What is wrong with a module's `__all__`, or an empty string."""
    tree = ast.parse(source)
    defined, declared = dict(defined_names(tree)), declared_names(tree)
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    public = {name for name, needed in defined.items() if needed or name in taken}
    problems = {
        "twice in __all__": {name for name in declared if declared.count(name) > 1},
        "public and not in __all__": public - set(declared),
        "in __all__ and not there": set(declared) - set(defined) - imported,
        "private and taken by another module": {name for name in taken if name.startswith("_")},
    }
    return "; ".join(f"{problem}: {sorted(names)}" for problem, names in problems.items() if names)


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_package_is_checked() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ARROWS)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(ARROWS), "a new package needs its arrows here"


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_arrows_go_down_only(path: Path) -> None:
    assert forbidden_arrows(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8")) == []


@pytest.fixture(scope="session")
def taken() -> dict[str, set[str]]:
    return names_taken(path.read_text(encoding="utf-8") for path in MODULES)


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=module_id)
def test_all_equals_the_public_names(path: Path, taken: dict[str, set[str]]) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert wrong_all(path.read_text(encoding="utf-8"), taken.get(module, set())) == ""


@pytest.mark.parametrize("package", ARROWS)
def test_a_package_exports_what_it_says(package: str) -> None:
    """Lazy exports resolve too."""
    module = __import__(package)
    missing = [name for name in getattr(module, "__all__", []) if not hasattr(module, name)]
    assert missing == []


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("engine", "import rag", ["engine -> rag"]),
        ("engine", "from retriever.store import Library", ["engine -> retriever.store"]),
        ("kernels", "def f():\n    from engine import prompt", ["kernels -> engine"]),
        ("kernels", "import torch, engine.prompt as p", ["kernels -> engine.prompt"]),
        ("retriever", "if TYPE_CHECKING:\n    from engine import Engine", ["retriever -> engine"]),
        ("data", "importlib.import_module('rag.cli')", ["data -> rag.cli"]),
        ("rag", "from kernels.backend import get_backend", ["rag -> kernels.backend"]),
        ("engine", "from . import prompt", ["engine -> . (relative)"]),
        ("rag", "from tests.tiny import model", ["rag -> tests.tiny"]),
        ("rag", "import engine, retriever.store\nfrom data import corpora\nimport ragged", []),
        ("engine", "from kernels.plan import AttentionPlan\nimport engine.prompt\nimport dataclasses", []),
    ],
)
def test_the_arrow_checker_finds_violations(package: str, source: str, wrong: list[str]) -> None:
    assert forbidden_arrows(package, source) == wrong


@pytest.mark.parametrize(
    ("source", "taken", "finding"),
    [
        ("def f(): pass", (), "public and not in __all__: ['f']"),
        ("__all__ = ['f']\ndef f(): pass\nclass G: pass", (), "public and not in __all__: ['G']"),
        ("__all__ = ['f', 'g']\ndef f(): pass", (), "in __all__ and not there: ['g']"),
        ("__all__ = ['f', 'f']\ndef f(): pass", (), "twice in __all__: ['f']"),
        ("__all__ = []\nLIMIT = 3", ("LIMIT",), "public and not in __all__: ['LIMIT']"),
        ("LIMIT: int = 3", ("LIMIT",), "public and not in __all__: ['LIMIT']"),
        ("_LIMIT = 3", ("_LIMIT",), "private and taken by another module: ['_LIMIT']"),
        ("__all__ = ['path']\nimport os.path", (), "in __all__ and not there: ['path']"),
    ],
)
def test_the_name_checker_finds_violations(source: str, taken: tuple[str, ...], finding: str) -> None:
    assert wrong_all(source, set(taken)) == finding


def test_the_name_checker_accepts_a_clean_module() -> None:
    source = "__all__ = ['f', 'Kind', 'OK']\nimport os\nlogger = 1\nKind = str | int\nOK, BAD = 0, 1\ndef f(): pass\n"
    assert wrong_all(source + "def _g(): pass\n@app.get('/')\ndef route(): pass", {"OK"}) == ""
    assert wrong_all("__all__ = ['path']\nfrom os import path") == "", "a name may be passed on"
    assert wrong_all('"""Nothing here."""\nimport os') == ""
    assert names_taken([source, "def f():\n    from a.b import c, d\n", "from a.b import e"]) == {"a.b": {*"cde"}}


def imports_torch(statement: str) -> bool:
    script = f"import sys\n{statement}\nsys.exit(3 if 'torch' in sys.modules else 0)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode in (0, 3), result.stderr
    return result.returncode == 3


def test_bookkeeping_imports_no_torch_even_indirectly() -> None:
    statements = "; ".join(f"import engine.{name}" for name in BOOKKEEPING)
    assert not imports_torch(statements), f"torch comes with one of: {statements}"


def test_light_modules_import_no_torch() -> None:
    """What `rag --help` reaches."""
    assert not imports_torch("import engine, kernels, retriever, data, rag, rag.cli.main")


def test_the_torch_checker_finds_torch() -> None:
    assert imports_torch("import engine.engine")
