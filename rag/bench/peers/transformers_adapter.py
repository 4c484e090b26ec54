"""Transformers over the model folder: eager PyTorch with a `DynamicCache`."""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from time import monotonic, perf_counter
from typing import Any

__all__ = ["Transformers", "load"]

KEPT_CACHES = 24
DTYPES = ("float32", "bfloat16", "float16")
TRIAL_LENGTHS = (16, 128)  # tokens of a prompt
TRIAL_TOKENS = 3  # of an answer
LARGEST_BATCH = 10_000  # tokens; eager prefill of more takes minutes


class Transformers:
    """Times forward passes with a cache that is cut back after each of them.

    Args:
        settings: `folder`, `threads` and `dtype`; `auto` is the one that answers a short prompt first on this machine.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._torch = import_module("torch")
        self._transformers = import_module("transformers")
        self.version = version("transformers")
        self._torch.set_num_threads(settings["threads"])
        self._caches: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._cache: Any = None
        dtype = settings["dtype"]
        if dtype == "auto":
            dtype = min(DTYPES, key=lambda one: self._seconds(settings["folder"], one))
        self._model = self._loaded(settings["folder"], dtype)
        self.detail = f"{dtype}, eager, DynamicCache, torch {version('torch')}"

    def first_token(self, prompt: list[int], cached: int) -> float:
        """Return the seconds of the forward pass over what is not cached, with the choice of the next token."""
        with self._torch.inference_mode():
            self._restore([prompt], cached)
            began = perf_counter()
            self._forward([prompt[cached:]])
            return perf_counter() - began

    def decode(self, prompts: list[list[int]], cached: int, steps: int) -> float:
        """Return the mean seconds of a step of one token a sequence."""
        with self._torch.inference_mode():
            self._restore(prompts, cached)
            tokens = self._forward([prompt[cached:] for prompt in prompts])
            began = perf_counter()
            for _ in range(steps):
                tokens = self._forward(tokens)
            return (perf_counter() - began) / steps

    def answer(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answer a request with a new cache: nothing is kept from one request to the next."""
        news: dict[str, Any] = {"started": monotonic()}
        self._cache, tokens = self._transformers.DynamicCache(), [job["prompt"]]
        for left in range(job["tokens"], 0, -1):
            with self._torch.inference_mode():
                tokens = self._forward(tokens)
            news |= {"tokens": tokens[0], "count": 1}
            yield news if left > 1 else {**news, "done": True, "cached": {"device": 0}}
            news = {}

    def forget(self) -> None:
        """Drop every cache."""
        self._caches.clear()

    def _loaded(self, folder: str, dtype: str) -> Any:
        model = self._transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(self._torch, dtype))
        return model.eval()

    def _seconds(self, folder: str, dtype: str) -> float:
        """Time a short answer, after one over fewer tokens."""
        self._model, seconds = self._loaded(folder, dtype), 0.0
        for length in TRIAL_LENGTHS:
            job = {"prompt": [20 + n % 64 for n in range(length)], "tokens": TRIAL_TOKENS}  # every vocabulary has them
            began = perf_counter()
            for _ in self.answer(job):
                pass
            seconds = perf_counter() - began
        return seconds

    def _restore(self, prompts: list[list[int]], cached: int) -> None:
        """Bring the cache to where the first `cached` tokens of each prompt have been read."""
        if sum(map(len, prompts)) > LARGEST_BATCH:
            raise NotImplementedError(f"prompts of more than {LARGEST_BATCH} tokens would take it minutes")
        prefix = tuple(tuple(prompt[:cached]) for prompt in prompts)
        if cached and prefix in self._caches:
            self._cache = self._caches[prefix]
            self._cache.crop(cached - self._cache.get_seq_length())  # negative: so many tokens less
            return
        self._cache = self._transformers.DynamicCache()
        if cached:
            self._forward([list(head) for head in prefix])
            while len(self._caches) >= KEPT_CACHES:
                self._caches.pop(next(iter(self._caches)))
            self._caches[prefix] = self._cache

    def _forward(self, tokens: list[list[int]]) -> list[list[int]]:
        ids = self._torch.tensor(tokens)
        logits = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
        chosen: list[list[int]] = logits[:, -1:].argmax(-1).tolist()
        return chosen


def load(settings: dict[str, Any]) -> Transformers:
    """Load the model."""
    return Transformers(settings)
