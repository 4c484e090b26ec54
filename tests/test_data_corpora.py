import subprocess
import sys

import pytest

from data.corpora import CORPUS_NAMES, load_corpus, load_python_stdlib, load_python_topics
from data.errors import CorpusUnavailableError, UnknownCorpusError


def test_topics_are_complete_ordered_and_licensed():
    corpus = load_python_topics()
    by_id = {document.id: document for document in corpus.documents}
    assert len(by_id) == len(corpus.documents) > 70
    assert list(by_id) == sorted(by_id)
    assert by_id["assignment"].title == "Assignment statements"
    assert by_id["assert"].title == "The assert statement"
    assert by_id["assignment"].uri == "python-topics:assignment"
    assert "Assignment statements are used to (re)bind names" in by_id["assignment"].text
    assert corpus.licence == "PSF-2.0"
    assert "pydoc_data.topics" in corpus.source


def test_stdlib_has_modules_classes_functions_and_methods():
    corpus = load_python_stdlib(["json", "textwrap", "asyncio"])
    by_id = {document.id: document for document in corpus.documents}
    assert {"json", "json.dumps", "json.decoder.JSONDecoder", "json.decoder.JSONDecoder.raw_decode"} <= set(by_id)
    assert {name.partition(".")[0] for name in by_id} == {"json", "textwrap", "asyncio"}
    assert by_id["json.dumps"].text.startswith("json.dumps(obj, *, skipkeys=False")
    assert "Serialize ``obj`` to a JSON formatted ``str``" in by_id["json.dumps"].text
    assert by_id["json.decoder.JSONDecodeError"].text.startswith("class json.decoder.JSONDecodeError(ValueError)")
    assert by_id["asyncio.tasks.wait_for"].text.startswith("async asyncio.tasks.wait_for(")
    assert not [name for name in by_id if any(part.startswith("_") for part in name.split("."))]


def test_stdlib_is_whole_and_deterministic():
    corpus = load_python_stdlib()
    ids = [document.id for document in corpus.documents]
    assert ids == sorted(set(ids))
    assert len(ids) > 3000
    assert not [name for name in ids if name.partition(".")[0] not in sys.stdlib_module_names]
    assert not [name for name in ids if name.startswith(("test.", "idlelib."))]
    assert corpus == load_python_stdlib()


def test_stdlib_imports_nothing_that_it_documents():
    code = (
        "import sys; from data.corpora import load_python_stdlib; before = set(sys.modules)\n"
        "load_python_stdlib(['turtle', 'antigravity', 'this', 'tkinter'])\n"
        "print(sorted(set(sys.modules) & {'turtle', 'antigravity', 'this', 'tkinter'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_names_are_refused_with_what_there_is():
    with pytest.raises(UnknownCorpusError, match="python-topics, python-stdlib"):
        load_corpus("wikipedia")
    with pytest.raises(CorpusUnavailableError, match="no_such_module"):
        load_python_stdlib(["json", "no_such_module"])


def test_every_named_corpus_loads_under_its_name():
    assert [load_corpus(name).name for name in CORPUS_NAMES] == list(CORPUS_NAMES)
