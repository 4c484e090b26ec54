"""What every test may use."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Triton reads it when it is imported, which transformers does: its kernels are then interpreted, on the CPU. To test
# them compiled, on a GPU, set it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")
if find_spec("triton") is None:  # it exists for Linux alone
    collect_ignore_glob = ["test_triton_[!p]*.py", "test_cuda_graphs.py"]


@pytest.fixture(scope="session", autouse=True)
def _own_profiles(tmp_path_factory):
    """Keep what tests measure out of the user's profiles."""
    folder = tmp_path_factory.mktemp("profiles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.profile.default_profiles_dir", lambda: folder)
        yield


def _pulled(name: str) -> Path:
    from rag.model_hub import default_models_dir

    folder = default_models_dir() / name
    if not folder.is_dir():
        pytest.fail(f"{folder} is missing; run `make models` first")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the pulled SmolLM2-135M-Instruct."""
    return _pulled("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the pulled all-MiniLM-L6-v2."""
    return _pulled("minilm")


@pytest.fixture(scope="module")
def one_thread():
    """Give torch one thread: tiny models lose more to handing work over than they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """The folder of a tiny random Llama with a tokenizer."""
    from tiny_models import make_engine_folder

    folder = tmp_path_factory.mktemp("tiny")
    make_engine_folder(folder, "llama-tied")
    return folder
