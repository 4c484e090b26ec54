"""vLLM over the model folder, in this process: continuous batching with prefix caching."""

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

__all__ = ["Vllm", "load"]


class Vllm:
    """Times `LLM.generate` over token ids.

    Args:
        settings: `folder`, `context`, `kv_gib`, `dtype` and `tokens` (of the longest batch).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(settings["kv_gib"])
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._vllm = import_module("vllm")
        try:
            self.version = version("vllm-cpu")
        except PackageNotFoundError:
            self.version = version("vllm")
        self._llm = self._vllm.LLM(
            settings["folder"],
            dtype=settings["dtype"],
            max_model_len=settings["context"],
            max_num_batched_tokens=settings["tokens"],
            max_num_seqs=64,
            enable_prefix_caching=True,
        )
        self.detail = f"{settings['dtype']}, prefix caching, LLM.generate"

    def first_token(self, prompt: list[int], cached: int) -> float:
        """Return the seconds of one `generate` of one token."""
        if cached:
            self._generate([prompt[:cached]], 1)  # quick where it is cached already
        return self._generate([prompt], 1)

    def decode(self, prompts: list[list[int]], _cached: int, steps: int) -> float:
        """Return the seconds a step: answers of 1 + `steps` tokens less answers of 1, over `steps`."""
        self._generate(prompts, 1)  # now both find the whole prompts in the cache
        return (self._generate(prompts, 1 + steps) - self._generate(prompts, 1)) / steps

    def _generate(self, prompts: list[list[int]], tokens: int) -> float:
        sampling = self._vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        began = perf_counter()
        self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return perf_counter() - began


def load(settings: dict[str, Any]) -> Vllm:
    """Load the engine."""
    return Vllm(settings)
