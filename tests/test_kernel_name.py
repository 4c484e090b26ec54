"""`kernels` is also the name of a PyPI package that transformers probes for; ours must not pass for it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    """Run code in a new interpreter at the repository root, where `import kernels` finds ours."""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_transformers_imports_and_does_not_take_ours_for_the_hub_package():
    code = (
        "import kernels, transformers\n"
        "from transformers.models.llama.modeling_llama import LlamaForCausalLM\n"
        "from transformers.utils import is_kernels_available\n"
        "print(kernels.__file__, is_kernels_available())"
    )
    path, available = run(code).rsplit(" ", 1)
    assert Path(path) == ROOT / "kernels" / "__init__.py"
    assert available == "False"


def test_kernels_is_light_and_has_a_version():
    code = (
        "import sys, kernels, kernels.runs, kernels.errors, kernels.backend\n"
        "print(kernels.__version__, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    version, has_torch, has_numpy = run(code).split()
    assert version[0].isdigit()
    assert (has_torch, has_numpy) == ("False", "False")
