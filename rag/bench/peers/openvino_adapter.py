"""OpenVINO GenAI over the GGUF: its continuous batching with prefix caching."""

from importlib import import_module
from importlib.metadata import version
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any

__all__ = ["OpenVino", "load"]

WARM_STEPS = 2  # decode steps before those that are timed


class OpenVino:
    """Times steps of `ContinuousBatchingPipeline`, which is what `LLMPipeline` runs too.

    Args:
        settings: `gguf`, `kv_gib` and `tokens` (of the longest batch).
    """

    detail = "ContinuousBatchingPipeline over the GGUF, prefix caching, its default precisions"

    def __init__(self, settings: dict[str, Any]) -> None:
        self._genai = import_module("openvino_genai")
        self._openvino = import_module("openvino")
        self._numpy = import_module("numpy")
        self.version = version("openvino-genai")
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = settings["kv_gib"]
        scheduler.max_num_batched_tokens = settings["tokens"]
        scheduler.max_num_seqs = 64
        self._pipeline = self._genai.ContinuousBatchingPipeline(settings["gguf"], scheduler, "CPU")
        self._ids = count()

    def first_token(self, prompt: list[int], cached: int) -> float:
        """Return the seconds from adding a prompt to its first token."""
        if cached:
            self._answer([prompt[:cached]], 1)  # quick where it is cached already
        began = perf_counter()
        self._answer([prompt], 1)
        return perf_counter() - began

    def decode(self, prompts: list[list[int]], _cached: int, steps: int) -> float:
        """Return the median seconds of a step with every prompt decoding."""
        self._answer(prompts, 1)  # now all of them are in the cache, and reach their first token in one step
        return median(self._answer(prompts, 1 + WARM_STEPS + steps)[-steps:])

    def _answer(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Answer prompts together; return the seconds of each step."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        handles = [self._pipeline.add_request(next(self._ids), self._tensor(prompt), config) for prompt in prompts]
        seconds = []
        while self._pipeline.has_non_finished_requests():
            began = perf_counter()
            self._pipeline.step()
            seconds.append(perf_counter() - began)
        if any(handle.get_status() != self._genai.GenerationStatus.FINISHED for handle in handles):
            raise RuntimeError("a prompt was not answered whole; give it more KV memory")
        return seconds

    def _tensor(self, tokens: list[int]) -> Any:
        return self._openvino.Tensor(self._numpy.array([tokens], dtype=self._numpy.int64))


def load(settings: dict[str, Any]) -> OpenVino:
    """Load the pipeline."""
    return OpenVino(settings)
