"""Compile the Triton kernels for a GPU that need not be there: one JSON line each, for test_triton_compile.py."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton_attention import DTYPES
from kernels.triton_kernels import attend_items, merge_states, reduce_parts, sensible_configs, store_kv

TYPES = {name: dtype for dtype in DTYPES.values() for name in [str(dtype)]}
POINTERS = {
    "positions": "*i64",
    "slots": "*i64",
    "key_scales": "*fp32",
    "value_scales": "*fp32",
    **dict.fromkeys(("items", "rows", "entries", "bounds"), "*i32"),
    **dict.fromkeys(("cos", "sin", "lse", "lse_a", "lse_b", "parts", "parts_lse"), "*fp32"),
}
SCALARS = {"scale": "fp32"}
SHAPE = {"DIM": 64, "DIM_PAD": 64, "ROTARY": 64, "INTERLEAVED": False, "BLOCK_SIZE": 16}
# low and high tiles, and shapes that are less usual; of what autotuning chooses from, the most demanding is compiled
ATTEND = [
    ("bf16", {"LANES": 16}),
    ("fp16", {"LANES": 128, "HAS_WINDOW": True, "DIRECT": True}),
    ("fp32", {"LANES": 16, "BLOCK_SIZE": 3, "INTERLEAVED": True}),
    ("bf16", {"LANES": 64, "DIM": 80, "DIM_PAD": 128, "ROTARY": 40}),
    ("fp16", {"LANES": 128, "SCALED": True}),
]


def most_demanding(tile: dict[str, object]) -> tuple[dict[str, object], dict[str, int]]:
    """Constants and options of the configuration that needs most registers for a tile."""
    configs = sensible_configs(attend_items.configs, {}, **tile)
    config = max(configs, key=lambda config: (tile["DIM_PAD"] + config.kwargs["KEYS"]) / config.num_warps)
    return config.kwargs, {"num_warps": config.num_warps, "num_stages": config.num_stages}


def report(kernel: object, dtype: str, constants: dict[str, object], options: dict[str, int], capability: int) -> None:
    """Compile one variant; what an argument is follows from its name and the dtype."""
    function = kernel
    while not isinstance(function, triton.runtime.jit.JITFunction):
        function = function.fn
    signature, alignment = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        is_scalar = name.endswith("stride") or name.startswith("num_") or name in ("window", "longest")
        if name in ("keys", "values") and constants["SCALED"]:
            signature[name] = "*i8"
            continue
        signature[name] = POINTERS.get(name) or SCALARS.get(name) or ("i32" if is_scalar else f"*{dtype}")
        if signature[name].startswith("*") or name.endswith("stride"):
            alignment[index,] = [["tt.divisibility", 16]]
    indexed = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=indexed, attrs=alignment)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = compiled.asm["ptx"]
    result = {
        "name": function.__name__,
        "dtype": dtype,
        "shared": compiled.metadata.shared,
        "spilled": spilled_bytes(text, capability),
        "tensor_cores": bool(re.search(r"\b(mma\.sync|wgmma\.mma_async)", text)),
    }
    print(json.dumps(result))


def spilled_bytes(ptx: str, capability: int) -> int:
    """What ptxas says about registers that did not suffice."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        architecture = f"-arch=sm_{capability}{'a' if capability >= 90 else ''}"
        command = [triton.knobs.nvidia.ptxas.path, "-v", architecture, str(source), "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", said)[1])


def main(capability: int) -> None:
    for dtype, constants in ATTEND:
        flags = {"HAS_WINDOW": False, "SCALED": False, "DIRECT": False}
        tile = {**SHAPE, "GROUP": 3, **flags, "COMPUTE": TYPES[dtype], "OPERAND": TYPES[dtype], **constants}
        chosen, options = most_demanding(tile)
        report(attend_items, dtype, {**tile, **chosen}, options, capability)
    for only_lse in (False, True):
        constants = {"HEADS": 9, "DIM": 64, "ONLY_LSE": only_lse, "ELEMENTS": 1024}
        report(reduce_parts, "fp32" if only_lse else "bf16", constants, {}, capability)
    report(merge_states, "bf16", {"DIM": 64, "DIM_PAD": 64, "STATES": 16}, {}, capability)
    for rotary, scaled in ((0, False), (64, True)):
        constants = {**SHAPE, "ROTARY": rotary, "TOKENS": 16, "SCALED": scaled}
        report(store_kv, "bf16", constants, {}, capability)


if __name__ == "__main__":
    main(int(sys.argv[1]))
