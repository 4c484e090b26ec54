"""Corpora that every machine with Python has. They follow the running Python's version, and nothing else.

The modules of the standard library are parsed, never imported.
"""

import ast
import importlib
import sys
import sysconfig
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import CorpusUnavailableError, UnknownCorpusError

__all__ = ["CORPUS_NAMES", "Corpus", "CorpusDocument", "load_corpus", "load_python_stdlib", "load_python_topics"]

PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
PYTHON_LICENCE = "PSF-2.0"

# Tests, bundled programs and generated tables: no documentation in them.
SKIPPED_FOLDERS = {"ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "turtledemo"}
SHORTEST_DOCSTRING = 40  # characters; "Return self." answers nothing


@dataclass(frozen=True, slots=True)
class CorpusDocument:
    """One document of a corpus.

    Attributes:
        id: unique in its corpus and the same on every load; in a folder, its path there.
        title: what a reader would call it.
        text: the whole text.
        media_type: `text/plain` or `text/x-rst`.
        uri: names corpus and document.
    """

    id: str
    title: str
    text: str
    media_type: str
    uri: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """A named set of documents, ordered by id.

    Attributes:
        name: of `CORPUS_NAMES`, or made from a folder's path.
        source: where the text comes from, with its version.
        licence: SPDX identifier; `NOASSERTION` for a folder.
        documents: at least one.
    """

    name: str
    source: str
    licence: str
    documents: tuple[CorpusDocument, ...]


def load_corpus(name: str) -> Corpus:
    """Load a corpus by name; `folders.find_corpus` takes folders, too.

    Raises:
        UnknownCorpusError: there is none of this name.
        CorpusUnavailableError: this Python lacks its files.
    """
    if name == "python-topics":
        return load_python_topics()
    if name == "python-stdlib":
        return load_python_stdlib()
    raise UnknownCorpusError(f"unknown corpus {name!r}: choose one of {', '.join(CORPUS_NAMES)}")


CORPUS_NAMES = ("python-topics", "python-stdlib")


def load_python_topics() -> Corpus:
    """Load the chapters of the language reference that `help()` shows, from `pydoc_data.topics`.

    Raises:
        CorpusUnavailableError: this Python comes without them.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise CorpusUnavailableError(
            f"{sys.executable} has no pydoc_data.topics: install the complete standard library or use python-stdlib"
        ) from error
    documents = tuple(
        CorpusDocument(name, text.split("\n", 1)[0].replace('"', ""), text, "text/x-rst", f"python-topics:{name}")
        for name, text in sorted(topics.items())
    )
    return Corpus("python-topics", f"{PYTHON} language reference (pydoc_data.topics)", PYTHON_LICENCE, documents)


def load_python_stdlib(modules: Collection[str] | None = None) -> Corpus:
    """Load the docstrings of the standard library's public modules, classes, functions and methods.

    A document is a signature and a docstring. Docstrings of less than 40 characters are left out.

    Args:
        modules: only these top-level modules and packages; None means all (about four seconds).

    Raises:
        CorpusUnavailableError: this Python comes without sources, or without one of `modules`.
    """
    root = Path(sysconfig.get_path("stdlib"))
    wanted = sys.stdlib_module_names if modules is None else frozenset(modules)
    found: dict[str, CorpusDocument] = {}
    seen: set[str] = set()
    for path in _source_files(root, wanted):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        seen.add(module.partition(".")[0])
        for document in _documents_of(module, path):
            found.setdefault(document.id, document)  # a redefinition for another platform comes second
    missing = sorted(wanted - seen) if modules is not None else []
    if missing or not found:
        raise CorpusUnavailableError(
            f"{root} has no sources of {', '.join(missing) or 'the standard library'}: use a Python with its sources"
        )
    documents = tuple(found[key] for key in sorted(found))
    return Corpus("python-stdlib", f"{PYTHON} standard library docstrings", PYTHON_LICENCE, documents)


def _source_files(root: Path, wanted: Collection[str]) -> Iterator[Path]:
    for top in sorted(wanted):
        candidates = [root / f"{top}.py", *sorted((root / top).rglob("*.py"))]
        for path in candidates:
            inner = path.relative_to(root).parts
            private = any(part.startswith("_") and part != "__init__.py" for part in inner)
            if path.is_file() and not private and not SKIPPED_FOLDERS.intersection(inner):
                yield path


def _documents_of(module: str, path: Path) -> Iterator[CorpusDocument]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escape sequences in somebody else's code
        tree = ast.parse(path.read_bytes(), filename=str(path))
    docstring = ast.get_docstring(tree)
    if docstring and len(docstring) >= SHORTEST_DOCSTRING:
        yield _document(module, f"module {module}", docstring)
    yield from _members(tree.body, module)


def _members(body: list[ast.stmt], owner: str) -> Iterator[CorpusDocument]:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if not node.name.startswith("_"):
                name = f"{owner}.{node.name}"
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) >= SHORTEST_DOCSTRING:
                    yield _document(name, _signature(node, name), docstring)
                if isinstance(node, ast.ClassDef):
                    yield from _members(node.body, name)
            case ast.If():
                yield from _members(node.body + node.orelse, owner)
            case ast.Try():
                yield from _members(node.body + node.orelse + node.finalbody, owner)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return f"{prefix}{name}({ast.unparse(node.args)}){returns}"


def _document(name: str, heading: str, docstring: str) -> CorpusDocument:
    return CorpusDocument(name, name, f"{heading}\n\n{docstring}\n", "text/plain", f"python-stdlib:{name}")
