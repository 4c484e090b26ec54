"""llama.cpp over the GGUF, through llama-cpp-python: one sequence, and a cache of sequences in memory."""

import ctypes
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any

__all__ = ["LlamaCpp", "States", "common", "load"]

KEPT_STATES = 8
KEEP_SHARE = 0.5  # a sequence that would lose more than this is kept, as llama.cpp's server does


class States:
    """Sequences that were saved, forgotten least recently used first.

    Args:
        capacity: bytes that they may take together.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._states: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def best(self, prompt: Sequence[int], at_least: int) -> tuple[tuple[int, ...], Any] | None:
        """Return the sequence that shares most with a prompt's beginning, where that is more than `at_least`."""
        shared, best = max(((common(tokens, prompt), tokens) for tokens in self._states), default=(0, ()))
        if shared <= at_least:
            return None
        self._states.move_to_end(best)
        return best, self._states[best]

    def add(self, tokens: tuple[int, ...], state: Any) -> None:
        """Keep a sequence in place of those that it begins with."""
        for shorter in [one for one in self._states if common(one, tokens) == len(one)]:
            del self._states[shorter]
        self._states[tokens] = state
        while sum(map(len, self._states.values())) > self._capacity:
            self._states.popitem(last=False)

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether one of them begins with these tokens."""
        return any(common(one, tokens) == len(tokens) for one in self._states)

    def clear(self) -> None:
        """Forget them."""
        self._states.clear()


class LlamaCpp:
    """Evaluates token ids and chooses greedily.

    Args:
        settings: `gguf`, `context`, `threads` and `kv_gib` (of sequences that are kept).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._api = import_module("llama_cpp")
        self.version = version("llama-cpp-python")
        self._context = settings["context"]
        self._llama = self._api.Llama(
            settings["gguf"],
            n_ctx=self._context,
            n_batch=2048,
            n_ubatch=512,
            n_threads=settings["threads"],
            n_threads_batch=settings["threads"],
            verbose=False,
        )
        self.detail = (
            f"{Path(settings['gguf']).name}, {settings['threads']} threads, batches of 2048, float16 KV, one "
            "request at a time; prompt cache: the sequence read last, others in "
            f"{settings['kv_gib']} GiB as in its server"
        )
        self._prefixes: dict[tuple[int, ...], Any] = {}  # of timed cases
        self._read: tuple[int, ...] = ()  # tokens whose KV the context holds
        self._states = States(int(settings["kv_gib"] * 2**30))

    def first_token(self, prompt: list[int], cached: int) -> float:
        """Return the seconds from a kept prefix to the choice of the first token."""
        self._restore(tuple(prompt[:cached]))
        began = perf_counter()
        self._llama.eval(prompt[cached:])
        self._choice()
        return perf_counter() - began

    def decode(self, prompts: list[list[int]], cached: int, steps: int) -> float:
        """Return the median seconds of a step: one token evaluated, the next one chosen."""
        if len(prompts) > 1:
            raise NotImplementedError("llama-cpp-python runs one sequence at a time")
        self._restore(tuple(prompts[0][:cached]))
        self._llama.eval(prompts[0][cached:])
        token = self._choice()
        seconds = []
        for _ in range(steps):
            began = perf_counter()
            self._llama.eval([token])
            token = self._choice()
            seconds.append(perf_counter() - began)
        return median(seconds)

    def answer(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer a request token by token, from the KV of what was read before.

        Raises:
            ValueError: it is longer than the context.
        """
        prompt, wanted = tuple(job["prompt"]), job["tokens"]
        if len(prompt) + wanted > self._context:
            raise ValueError(f"{len(prompt)} tokens and an answer of {wanted} are more than {self._context}")
        started = monotonic()
        cached = self._recall(prompt)
        unread: tuple[int, ...] = prompt[cached:]
        for left in range(wanted - 1, -1, -1):
            self._eval(unread)
            token = self._choice()
            unread = (token,)
            news = {"at": monotonic(), "started": started, "tokens": [token], "count": 1}
            yield {**news, "done": True, "cached": {"device": cached}} if left == 0 else news

    def forget(self) -> None:
        """Forget every sequence."""
        self._llama.reset()
        self._read = ()
        self._states.clear()

    def _recall(self, prompt: tuple[int, ...]) -> int:
        """Bring the context to the longest beginning of a prompt that was read before; return its length.

        One token is left to compute at least: logits are not kept.
        """
        shared = common(self._read, prompt)
        if shared < KEEP_SHARE * len(self._read) and not self._states.holds(self._read):
            self._states.add(self._read, self._saved())
        if found := self._states.best(prompt, shared):
            self._read, state = found
            self._load(state, len(self._read))
            shared = common(self._read, prompt)
        shared = min(shared, len(prompt) - 1)
        self._read = prompt[:shared]
        self._llama.n_tokens = shared  # what follows is dropped by the next evaluation
        return shared

    def _eval(self, tokens: tuple[int, ...]) -> None:
        self._llama.eval(list(tokens))
        self._read += tokens

    def _choice(self) -> int:
        return int(self._llama.sample(temp=0.0))

    def _restore(self, prefix: tuple[int, ...]) -> None:
        """Bring the KV to where a prefix has been read; its KV is computed once and kept.

        `Llama.save_state` would copy the logits of every position too, hundreds of megabytes.
        """
        self._llama.reset()
        if prefix and prefix not in self._prefixes:
            self._llama.eval(list(prefix))
            while len(self._prefixes) >= KEPT_STATES:
                self._prefixes.pop(next(iter(self._prefixes)))
            self._prefixes[prefix] = self._saved()
        elif prefix:
            self._load(self._prefixes[prefix], len(prefix))

    def _saved(self) -> Any:
        size = self._api.llama_state_seq_get_size(self._llama.ctx, 0)
        state = (ctypes.c_uint8 * size)()
        self._api.llama_state_seq_get_data(self._llama.ctx, state, size, 0)
        return state

    def _load(self, state: Any, tokens: int) -> None:
        if not self._api.llama_state_seq_set_data(self._llama.ctx, state, len(state), 0):
            raise RuntimeError("llama.cpp refuses KV that it saved")
        self._llama.n_tokens = tokens


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens two sequences share, by bisection: slices are compared at C's speed."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def load(settings: dict[str, Any]) -> LlamaCpp:
    """Load the model."""
    return LlamaCpp(settings)
