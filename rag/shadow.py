"""The shadow check: a share of the answers over reused KV is looked at again in full, while nobody waits.

It watches that live answers stay as near to full prefill as the certificate says, and turns chunk reuse off where they
do not.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Full, Queue
from threading import Lock, Thread
from typing import TYPE_CHECKING

from engine.errors import EngineError, EngineStoppedError, OutdatedPromptError
from engine.ladder import Outcome
from engine.output import Generation
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import FinishReason

if TYPE_CHECKING:
    from torch import Tensor

    from engine.certificate import Certificate
    from engine.stats import CacheReport
    from engine.worker import EngineWorker

__all__ = ["FEWEST_CHECKS", "ShadowChecker", "ShadowStats"]

logger = logging.getLogger(__name__)

MAX_TOKENS = 64  # of an answer, as in the certificate's test
MAX_PENDING = 4  # more than these are not checked: a busy engine has no time for them
WINDOW = 128  # checks that count
FEWEST_CHECKS = 32  # before them a mean says nothing


@dataclass(frozen=True, slots=True)
class ShadowStats:
    """What was found so far.

    Attributes:
        checked: answers, in all.
        skipped: sampled answers that were left out, since earlier ones still waited, what they read was deleted, or no
            certificate says what they may cost.
        failed: checks that the engine refused or did not finish.
        drift: mean KL(full || reused) an answer token, in nats, of the latest checks; None before the first.
        allowance: what their templates' certificates allow the same answers on average; None before the first.
        fallen_back: whether chunk reuse has been turned off.
    """

    checked: int
    skipped: int
    failed: int
    drift: float | None
    allowance: float | None
    fallen_back: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer that is to be looked at: its tokens, the prompt as the model read it, and what that was made of."""

    prompt: Prompt
    tokens: Sequence[int]
    namespace: str
    as_of: int


class ShadowChecker:
    """Checks answers in a thread of its own, with requests that run only where the engine has nothing else to do.

    Args:
        worker: of the engine that gave the answers.
        rate: share of the answers over reused KV to check, 0 to 1.
        certificate_of: finds the certificate of a template, by its tokens; None allows it no reuse.
        seed: of the choice.
    """

    def __init__(
        self,
        worker: "EngineWorker",
        rate: float,
        certificate_of: "Callable[[Sequence[int]], Certificate | None]",
        *,
        seed: int = 0,
    ) -> None:
        assert 0 <= rate <= 1, f"a rate of {rate} is no share"
        self._worker = worker
        self._rate = rate
        self._certificate_of = certificate_of
        self._random = random.Random(seed)
        self._lock = Lock()
        self._found: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # drift, allowance
        self._checked = self._skipped = self._failed = 0
        self._fallen_back = False
        self._queue: Queue[_Answer | None] = Queue(MAX_PENDING)
        self._thread = Thread(target=self._loop, name="shadow", daemon=True)
        self._thread.start()

    def reuse(self, wanted: Reuse) -> Reuse:
        """Return how a request may reuse KV: as it wants to, or exactly once reuse has drifted too far."""
        return Reuse.EXACT if self._fallen_back else wanted

    def observe(self, prompt: Prompt, generation: Generation, namespace: str, as_of: int) -> None:
        """Take note of an answer; returns at once.

        Args:
            prompt: as submitted.
            generation: what came of it.
            namespace: that it was submitted to.
            as_of: the state of the namespace that it was made of.
        """
        if not generation.token_ids or all(one.outcome is not Outcome.SHIFTED for one in generation.cache.segments):
            return
        with self._lock:
            if self._fallen_back or self._random.random() >= self._rate:
                return
            try:
                as_read = _in_final_order(prompt, generation.cache)
                self._queue.put_nowait(_Answer(as_read, generation.token_ids[:MAX_TOKENS], namespace, as_of))
            except Full:
                self._skipped += 1

    def stats(self) -> ShadowStats:
        """Return a snapshot."""
        with self._lock:
            drift, allowance = self._means() if self._found else (None, None)
            return ShadowStats(
                checked=self._checked,
                skipped=self._skipped,
                failed=self._failed,
                drift=drift,
                allowance=allowance,
                fallen_back=self._fallen_back,
            )

    def close(self) -> None:
        """End the thread; close the worker first, or this waits for the checks that are left."""
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._check(item)
            except OutdatedPromptError:
                self._count_skipped()
            except EngineStoppedError:
                logger.debug("the engine has stopped; its answers are not checked any more")
                self._count_failure()
            except EngineError as error:
                logger.warning("an answer over reused KV could not be checked: %s", error)
                self._count_failure()
            except Exception:
                logger.exception("the check of an answer over reused KV failed; please report this")
                self._count_failure()

    def _check(self, answer: _Answer) -> None:
        """Force the answer over reused KV and over full prefill, and compare."""
        from rag.certify.scorer import drift_of

        certificate = self._certificate_of(answer.prompt.segments[0].tokens)
        if certificate is None:  # an answer under no certificate has no allowance
            self._count_skipped()
            return
        reused = self._forced(answer.prompt, answer, reuse=Reuse.CHUNK)
        full = self._forced(_all_private(answer.prompt), answer)
        kl, _ = drift_of(full, reused)
        num_passages = sum(segment.kind is SegmentKind.PASSAGE for segment in answer.prompt.segments)
        self._record(float(kl.mean()), certificate.allowance(num_passages))

    def _forced(self, prompt: Prompt, answer: _Answer, reuse: Reuse = Reuse.EXACT) -> "Tensor":
        handle = self._worker.submit_sync(
            prompt, forced=answer.tokens, background=True, namespace=answer.namespace, as_of=answer.as_of, reuse=reuse
        )
        *_, generation = self._worker.stream_sync(handle)
        if isinstance(generation, Generation) and generation.finish_reason is FinishReason.CANCELLED:
            raise OutdatedPromptError("what it read was deleted")
        if (
            not isinstance(generation, Generation)
            or generation.forced_logprobs is None
            or len(generation.forced_logprobs) == 0
        ):
            raise EngineStoppedError("the engine ended a check before its time")
        return generation.forced_logprobs

    def _record(self, drift: float, allowance: float) -> None:
        with self._lock:
            self._checked += 1
            self._found.append((drift, allowance))
            drift, allowance = self._means()
            if self._fallen_back or len(self._found) < FEWEST_CHECKS or drift <= allowance:
                return
            self._fallen_back = True
        logger.warning(
            "chunk reuse moved the last %d checked answers by %.3f nats a token, and their certificates allow %.3f: "
            "from now on requests run exact, until a restart. Run `rag certify` on this collection and start again",
            len(self._found), drift, allowance,
        )  # fmt: skip

    def _means(self) -> tuple[float, float]:
        """Mean drift and mean allowance of the checks that count, of which there is one at least."""
        drifts, allowances = zip(*self._found, strict=True)
        return sum(drifts) / len(drifts), sum(allowances) / len(allowances)

    def _count_skipped(self) -> None:
        with self._lock:
            self._skipped += 1

    def _count_failure(self) -> None:
        with self._lock:
            self._failed += 1


def _in_final_order(prompt: Prompt, report: "CacheReport") -> Prompt:
    """Return the prompt with its passages in the order in which the model read them."""
    passages = {segment.name: segment for segment in prompt.segments if segment.kind is SegmentKind.PASSAGE}
    names = [one.name for one in report.segments if one.kind is SegmentKind.PASSAGE]
    if sorted(names) != sorted(passages):
        return prompt  # passages without names of their own were not re-ordered by name either
    others = [segment for segment in prompt.segments if segment.kind is not SegmentKind.PASSAGE]
    return Prompt([others[0], *(passages[name] for name in names), *others[1:]])


def _all_private(prompt: Prompt) -> Prompt:
    """Return the same tokens so that all behind the template is computed anew and leaves nothing in the cache."""
    template, *others = prompt.segments
    tokens = tuple(token for segment in others for token in segment.tokens)
    return Prompt([template, Segment(tokens, SegmentKind.TAIL)])
