"""Builds the C++ kernels: the same sources once per instruction set, each a shared library of its own.

Everything else about the package is in pyproject.toml. The libraries are optional: without a compiler the package
installs, and `rag doctor` says that the `cpu` backend is missing.
"""

import copy
import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
VARIANTS = {
    "portable": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
    "avx512fp16": [*AVX512, "-mavx512vnni", "-mavx512bf16", "-mavx512fp16"],
}
# No -ffast-math: masked scores are -inf and must stay so.
COMMON = [
    "-O3",
    "-std=c++17",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
]


class BuildKernels(build_ext):
    """Compiles with OpenMP and links without it: its symbols are those of the runtime that torch has loaded."""

    def finalize_options(self) -> None:
        """Compile variants side by side."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        """Build; a variant that fails leaves no older library behind, which would be called with other structures."""
        in_place = self.inplace
        super().run()
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name))
            fresh = built.is_file() and all(
                built.stat().st_mtime >= Path(s).stat().st_mtime for s in (*ext.sources, *ext.depends)
            )
            if not fresh:
                built.unlink(missing_ok=True)
                if in_place:
                    self.inplace = True
                    Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        """Build one variant, in an object folder of its own."""
        own = copy.copy(self)
        own.build_temp = str(Path(self.build_temp) / ext.name)
        super(BuildKernels, own).build_extension(ext)


def kernel_libraries() -> list[Extension]:
    """One optional library a variant that this architecture has."""
    sources = sorted(map(str, Path("kernels/cpu").glob("*.cpp")))
    headers = sorted(map(str, Path("kernels/cpu").glob("*.h")))
    names = list(VARIANTS) if platform.machine() in ("x86_64", "AMD64") else ["portable"]
    return [
        Extension(
            f"kernels._cpu_{name}",
            sources,
            depends=[*headers, "setup.py"],
            language="c++",
            extra_compile_args=[*COMMON, *VARIANTS[name]],
            optional=True,
        )
        for name in names
    ]


setup(ext_modules=kernel_libraries(), cmdclass={"build_ext": BuildKernels})
