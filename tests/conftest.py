"""What every test may use."""

from pathlib import Path

import pytest


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
