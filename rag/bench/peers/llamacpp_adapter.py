"""llama.cpp over the GGUF, through llama-cpp-python: one sequence, whose KV is kept between prompts."""

import ctypes
from importlib import import_module
from importlib.metadata import version
from statistics import median
from time import perf_counter
from typing import Any

__all__ = ["LlamaCpp", "load"]

KEPT_STATES = 8


class LlamaCpp:
    """Times evaluations of token ids and greedy choices.

    Args:
        settings: `gguf`, `context` and `threads`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._api = import_module("llama_cpp")
        self.version = version("llama-cpp-python")
        self._llama = self._api.Llama(
            settings["gguf"],
            n_ctx=settings["context"],
            n_batch=2048,
            n_ubatch=512,
            n_threads=settings["threads"],
            n_threads_batch=settings["threads"],
            verbose=False,
        )
        self.detail = f"the GGUF as it is, {settings['threads']} threads, batches of 2048, float16 KV"
        self._states: dict[tuple[int, ...], Any] = {}

    def first_token(self, prompt: list[int], cached: int) -> float:
        """Return the seconds from a kept prefix to the choice of the first token."""
        self._restore(tuple(prompt[:cached]))
        began = perf_counter()
        self._llama.eval(prompt[cached:])
        self._llama.sample(temp=0.0)
        return perf_counter() - began

    def decode(self, prompts: list[list[int]], cached: int, steps: int) -> float:
        """Return the median seconds of a step: one token evaluated, the next one chosen."""
        if len(prompts) > 1:
            raise NotImplementedError("llama-cpp-python runs one sequence at a time")
        self._restore(tuple(prompts[0][:cached]))
        self._llama.eval(prompts[0][cached:])
        token = self._llama.sample(temp=0.0)
        seconds = []
        for _ in range(steps):
            began = perf_counter()
            self._llama.eval([token])
            token = self._llama.sample(temp=0.0)
            seconds.append(perf_counter() - began)
        return median(seconds)

    def _restore(self, prefix: tuple[int, ...]) -> None:
        """Bring the KV to where a prefix has been read; its KV is computed once and kept.

        `Llama.save_state` would copy the logits of every position too, hundreds of megabytes.
        """
        self._llama.reset()
        if prefix and prefix not in self._states:
            self._llama.eval(list(prefix))
            while len(self._states) >= KEPT_STATES:
                self._states.pop(next(iter(self._states)))
            self._states[prefix] = self._saved()
        elif prefix:
            state = self._states[prefix]
            if not self._api.llama_state_seq_set_data(self._llama.ctx, state, len(state), 0):
                raise RuntimeError("llama.cpp refuses KV that it saved")
            self._llama.n_tokens = len(prefix)

    def _saved(self) -> Any:
        size = self._api.llama_state_seq_get_size(self._llama.ctx, 0)
        state = (ctypes.c_uint8 * size)()
        self._api.llama_state_seq_get_data(self._llama.ctx, state, size, 0)
        return state


def load(settings: dict[str, Any]) -> LlamaCpp:
    """Load the model."""
    return LlamaCpp(settings)
