"""The C++ library: one variant a processor, one OpenMP runtime a process."""

import subprocess
import sys

import pytest
import torch

from kernels.cpu_library import VARIANTS, available_variants, load_library, unavailable_reason
from kernels.errors import BackendUnavailableError

needs_kernels = pytest.mark.skipif(unavailable_reason() is not None, reason="the C++ kernels are not compiled")

ONE_RUNTIME = """
import re
from pathlib import Path
import engine, kernels
from kernels.cpu_library import load_library
import torch
torch.set_num_threads(2)
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
library = load_library()
assert library.num_threads == 2, library.num_threads
torch.set_num_threads(1)
assert library.num_threads == 1, library.num_threads
maps = Path("/proc/self/maps").read_text()
print(sorted(set(re.findall(r"\\S*lib(?:gomp|omp|iomp5)[^/\\s]*", maps))))
"""


@needs_kernels
def test_the_library_uses_the_openmp_runtime_of_torch():
    result = subprocess.run([sys.executable, "-c", ONE_RUNTIME], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    runtimes = eval(result.stdout)
    assert len(runtimes) == 1, runtimes
    assert "torch" in runtimes[0]


@needs_kernels
def test_the_best_variant_is_the_first_that_runs():
    variants = available_variants()
    assert variants[-1] == "portable"
    assert list(variants) == [name for name in VARIANTS if name in variants]
    assert load_library().variant == variants[0]
    assert load_library("portable") is load_library("portable")


def test_a_variant_that_does_not_exist_is_refused_by_name():
    with pytest.raises(BackendUnavailableError, match="'avx1024'"):
        load_library("avx1024")


def test_without_a_compiler_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr("kernels.cpu_library._path", lambda variant: None)
    assert available_variants() == ()
    with pytest.raises(BackendUnavailableError, match=r"install a C\+\+ compiler"):
        load_library()


@needs_kernels
def test_time_inside_the_kernels_is_counted():
    from kernels.cpu_linear import PackedLinear

    library = load_library()
    before = library.busy_seconds()
    linear = PackedLinear.pack(torch.ones(64, 64), library=library)
    linear(torch.ones(3, 64))
    assert library.busy_seconds() > before
