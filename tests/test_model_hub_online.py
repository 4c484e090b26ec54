"""Pulls from the Hugging Face hub, played by a server of ours and asked by the real hub client."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from rag.model_hub import ModelHub

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
def hub(tmp_path):
    return ModelHub(tmp_path / "models")


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for three repositories: one good, one of an unsupported family, one unknown."""

    commit = "a" * 40
    files: ClassVar = {
        "config.json": json.dumps(LLAMA).encode(),
        "model.safetensors": b"w" * 5000,
        "tokenizer.json": b"{}",
        "README.md": b"not wanted",
        "pytorch_model.bin": b"not wanted",
        "onnx/model.safetensors": b"not wanted",
    }

    def do_GET(self):
        path = self.path.partition("?")[0]
        listing = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in self.files.items()
        ]
        if path.startswith("/api/models/org/") and "/none" not in path:
            answer = tree if "/tree/" in path else {"id": "org/any", "sha": self.commit, "siblings": listing}
            self.reply(json.dumps(answer).encode())
        elif "/resolve/" in path:
            content = self.files[path.partition(f"{self.commit}/")[2]]
            self.reply(content.replace(b"LlamaFor", b"MambaFor") if "/mamba/" in path else content)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def reply(self, content):
        if self.path.endswith(".safetensors") and self.command == "GET":
            self.server.weights_served += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{len(content)}-{content[:40]!r}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        server.weights_served = 0
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pull_from_hub(models_dir: Path, name: str, **environment) -> str:
    """Pull in a new process, because the hub client reads its settings at import; return what it printed."""
    code = (
        "import sys; from pathlib import Path; from rag.model_hub import ModelHub\n"
        "try: print(ModelHub(Path(sys.argv[1])).pull(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(models_dir), name]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(models_dir / "hf"), **environment}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_hub_repository_is_pulled_once(hub, endpoint):
    url = f"http://127.0.0.1:{endpoint.server_port}"
    assert "org--tiny" in pull_from_hub(hub.models_dir, "org/tiny", HF_ENDPOINT=url)
    (info,) = hub.list()
    assert (info.name, info.source, info.version) == ("org--tiny", "org/tiny", FakeHub.commit)
    assert hub.resolve("org/tiny") == hub.resolve("org--tiny") == info.path
    assert {path.name for path in info.path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preread-model.json",
    }
    assert hub.pull("org/tiny") == info  # this process is offline as far as that hub goes
    assert endpoint.weights_served == 1


def test_an_unsupported_repository_is_refused_before_its_weights_are_fetched(hub, endpoint):
    url = f"http://127.0.0.1:{endpoint.server_port}"
    assert "UnsupportedModelError" in pull_from_hub(hub.models_dir, "org/mamba", HF_ENDPOINT=url)
    assert endpoint.weights_served == 0
    assert hub.list() == ()


def test_hub_failures_are_explained(hub, endpoint):
    url = f"http://127.0.0.1:{endpoint.server_port}"
    printed = pull_from_hub(hub.models_dir, "org/none", HF_ENDPOINT=url)
    assert printed.startswith("DownloadError 'org/none' is not on the Hugging Face hub")
    printed = pull_from_hub(hub.models_dir, "org/tiny", HF_HUB_OFFLINE="1")
    assert printed.startswith("DownloadError 'org/tiny' cannot be downloaded (OfflineModeIsEnabled")
    printed = pull_from_hub(hub.models_dir, "org/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert printed.startswith("DownloadError 'org/tiny' cannot be downloaded (ConnectError")
    assert "rag model pull PATH" in printed
