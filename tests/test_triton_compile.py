"""The kernels compile for GPUs, which the interpreter cannot tell: types, shapes and what fits on a processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parent / "triton_compile_child.py"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a program may have; autotuning leaves out what needs more
FEW_BYTES = 400  # a thread, that registers did not suffice for


@pytest.mark.parametrize("capability", SHARED_MEMORY, ids=["mma", "wgmma"])
def test_every_kernel_compiles(capability, tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(CHILD), str(capability)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    compiled = [json.loads(line) for line in process.stdout.splitlines()]
    assert {kernel["name"] for kernel in compiled} == {"attend_items", "reduce_parts", "merge_states", "store_kv"}
    for kernel in compiled:
        assert kernel["shared"] <= SHARED_MEMORY[capability], kernel
        assert kernel["spilled"] < FEW_BYTES, kernel
        half = kernel["name"] == "attend_items" and kernel["dtype"] != "fp32"
        assert kernel["tensor_cores"] == half, kernel
