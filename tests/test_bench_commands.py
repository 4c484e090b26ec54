"""What benchmarks have in common: the certified repair, collections without stored KV, and an orderly end."""

import signal
import subprocess
import sys
from pathlib import Path

from certify_helpers import a_certificate
from rag_helpers import make_chat_model

from data.corpora import load_corpus
from engine.certificate import certificate_key
from engine.engine import Engine
from rag.bench.certified import UNCERTIFIED_REPAIR, certified_repair, repair_due
from rag.bench.collection import with_collection
from rag.config import EngineSettings, RagConfig

TEMPLATE = (1, 2, 3)

CHILD = """
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import typer
from pydantic import BaseModel

from rag.cli.bench_output import measure_and_publish


def measure(config, *, progress):
    with TemporaryDirectory(dir=sys.argv[1]) as work:
        Path(work, "extent").write_text("KV")
        print("working", flush=True)
        time.sleep(60)
    return BaseModel()


class Context:
    obj = None

    def find_root(self):
        return self


import rag.cli.bench_output as shared

shared.config_of = lambda context: None
measure_and_publish(Context(), "test", {}, measure, str, output=Path(sys.argv[1], "report.json"), as_json=False)
"""


def test_a_benchmark_that_is_terminated_removes_its_work_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        assert len(list(tmp_path.iterdir())) == 1
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_the_certified_repair_is_that_of_model_mode_and_template(tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "models" / "tiny")
    settings = EngineSettings(dtype="float32", backend="reference", kv_cache_bytes=1 << 20)
    config = RagConfig(models_dir=tmp_path, model=str(folder), engine=settings)
    assert certified_repair(config, TEMPLATE) == UNCERTIFIED_REPAIR
    identity = Engine.from_pretrained(folder, settings.build()).identity
    a_certificate(key=certificate_key(identity, TEMPLATE), repair=48).write(folder / "certificates")
    assert certified_repair(config, TEMPLATE) == 48
    assert certified_repair(config, (*TEMPLATE, 4)) == UNCERTIFIED_REPAIR
    other = config.model_copy(update={"engine": settings.model_copy(update={"dtype": "bfloat16"})})
    assert certified_repair(other, TEMPLATE) == UNCERTIFIED_REPAIR


def test_a_repair_without_certificate_is_whole_blocks() -> None:
    assert repair_due(None, 4, 16) == UNCERTIFIED_REPAIR == 32
    assert (repair_due(None, 4, 24), repair_due(None, 4, 64)) == (48, 64)
    certificate = a_certificate(repair=48)
    assert {repair_due(certificate, k, 16) for k in (certificate.max_passages, certificate.max_passages + 1)} == {48}


def test_only_who_measures_the_disk_stores_kv(tmp_path: Path) -> None:
    config = RagConfig(engine=EngineSettings(kv_store_bytes=2**30))
    corpus = load_corpus("python-topics")
    plain, keeping = (with_collection(config, tmp_path, corpus, keeps_kv=keeps) for keeps in (False, True))
    assert (plain.engine.kv_store_bytes, keeping.engine.kv_store_bytes) == (0, 2**30)
    assert plain.data_dir == keeping.data_dir
    assert tmp_path in plain.data_dir.parents
