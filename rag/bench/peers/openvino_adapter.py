"""OpenVINO GenAI over the GGUF: its continuous batching with prefix caching."""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any

__all__ = ["OpenVino", "load"]

WARM_STEPS = 2  # decode steps before those that are timed
SEQUENCES = 64
WARM_PROMPT = [0] * 64  # answered after every load, since kernels are compiled with the first prompt; none begins so


@dataclass(slots=True)
class _Asked:
    """A request that has not ended.

    Attributes:
        handle: that its tokens come through.
        left: tokens that are to come.
        started: when its first step began, where nothing else ran then; otherwise nobody tells.
        stepped: whether it has had its first step.
    """

    handle: Any
    left: int
    started: float | None = None
    stepped: bool = False


class OpenVino:
    """Steps `ContinuousBatchingPipeline`, which is what `LLMPipeline` runs too.

    Args:
        settings: `gguf`, `kv_gib`, `tokens` (computed in one step at most) and `threads`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._genai = import_module("openvino_genai")
        self._openvino = import_module("openvino")
        self._numpy = import_module("numpy")
        self.version = version("openvino-genai")
        self.detail = (
            f"ContinuousBatchingPipeline over {Path(settings['gguf']).name}, {settings['threads']} threads, prefix "
            "caching, its default precisions"
        )
        self._settings = settings
        self._ids = count()
        self._asked: dict[int, _Asked] = {}
        self._pipeline: Any = self._loaded()
        self._warm_up()

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

    @property
    def busy(self) -> bool:
        """Whether requests run."""
        return bool(self._asked)

    def submit(self, job: dict[str, Any]) -> None:
        """Add a request."""
        self._used = True
        self._asked[job["number"]] = _Asked(self._add(job["prompt"], job["tokens"]), job["tokens"])

    def step(self) -> list[dict[str, Any]]:
        """Advance all requests by a step, and tell what became of them; it does not tell what was cached."""
        alone, began = len(self._asked) == 1, monotonic()
        self._pipeline.step()
        at = monotonic()
        news = []
        for number, asked in list(self._asked.items()):
            if not asked.stepped:
                asked.started, asked.stepped = began if alone else None, True
            if told := self._told(asked):
                news.append({"number": number, "at": at, "started": asked.started, **told})
                if told["done"]:
                    del self._asked[number]
        return news

    def cancel(self) -> None:
        """Drop every request."""
        for asked in self._asked.values():
            asked.handle.cancel()
        self._asked.clear()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def prepare(self, _template: list[int], _passages: list[list[int]]) -> dict[str, float]:
        """Forget everything: the pipeline is loaded anew, since nothing else empties its cache."""
        if self._used:
            self._asked.clear()
            self._pipeline = None  # the memory of the old one first
            self._pipeline = self._loaded()
            self._warm_up()
        return {"tokens": 0, "seconds": 0.0}

    def _loaded(self) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = self._settings["kv_gib"]
        scheduler.max_num_batched_tokens = self._settings["tokens"]
        scheduler.max_num_seqs = SEQUENCES
        properties = {"INFERENCE_NUM_THREADS": self._settings["threads"]}
        return self._genai.ContinuousBatchingPipeline(self._settings["gguf"], scheduler, "CPU", properties)

    def _warm_up(self) -> None:
        self._answer([WARM_PROMPT], 1 + WARM_STEPS)
        self._used = False

    def _told(self, asked: _Asked) -> dict[str, Any] | None:
        """Return the tokens that came with the last step, and whether they are all."""
        tokens: list[int] = []
        while asked.handle.can_read():
            tokens += [token for output in asked.handle.read().values() for token in output.generated_ids]
        asked.left -= len(tokens)
        status = asked.handle.get_status()
        if status == self._genai.GenerationStatus.IGNORED:
            return {"done": True, "error": "a prompt was not answered; give it more KV memory"}
        done = status != self._genai.GenerationStatus.RUNNING
        return {"tokens": tokens, "count": len(tokens), "done": done} if tokens or done else None

    def _answer(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Answer prompts together; return the seconds of each step."""
        self._used = True
        handles = [self._add(prompt, tokens) for prompt in prompts]
        seconds = []
        while self._pipeline.has_non_finished_requests():
            began = perf_counter()
            self._pipeline.step()
            seconds.append(perf_counter() - began)
        if any(handle.get_status() != self._genai.GenerationStatus.FINISHED for handle in handles):
            raise RuntimeError("a prompt was not answered whole; give it more KV memory")
        return seconds

    def _add(self, prompt: list[int], tokens: int) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        ids = self._openvino.Tensor(self._numpy.array([prompt], dtype=self._numpy.int64))
        return self._pipeline.add_request(next(self._ids), ids, config)


def load(settings: dict[str, Any]) -> OpenVino:
    """Load the pipeline."""
    return OpenVino(settings)
