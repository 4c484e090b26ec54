"""Which cases the engine benchmark has, and the token ids of their prompts. Knows no engine."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rag.bench.engine_report import CaseKind

__all__ = ["BATCHES", "CONTEXTS", "GROUPS", "TAIL", "Case", "Prompts", "make_cases", "passages_of"]

TAIL = 16  # tokens of a decoding prompt that are its own: the rest is a cached passage, as in an answer

PREFILL = (128, 512, 1024, 2048)
WARM = ((16, 1024), (16, 2048), (32, 1024), (32, 2048), (110, 1024), (110, 1600), (110, 2048))
BATCHES = (1, 4, 8, 16, 32)
CONTEXTS = (256, 1024, 4096)
SHARING = 16  # sequences
SHARED = 2048  # tokens that they share

GROUPS = tuple(kind.value for kind in CaseKind)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time.

    Attributes:
        kind: prefill and warm time the first token, decode and shared a decode step.
        new: prompt tokens to compute.
        cached: prompt tokens before them that are in the cache.
        batch: sequences at once.
        shared: whether their cached tokens are the same ones.
    """

    kind: CaseKind
    new: int
    cached: int = 0
    batch: int = 1
    shared: bool = False

    @property
    def name(self) -> str:
        """Say in a few words what it is."""
        if self.kind is CaseKind.PREFILL:
            return f"prefill {self.new}"
        if self.kind is CaseKind.WARM:
            return f"warm {self.new} after {self.cached}"
        if self.kind is CaseKind.DECODE:
            return f"decode {self.batch} x {self.context}"
        return f"decode {self.batch} x {self.context}, {'sharing' if self.shared else 'not sharing'} {self.cached}"

    @property
    def context(self) -> int:
        """Tokens of each prompt."""
        return self.cached + self.new

    @property
    def decodes(self) -> bool:
        """Whether a decode step is timed, not a first token."""
        return self.kind in (CaseKind.DECODE, CaseKind.SHARED)


def make_cases(
    groups: Iterable[str] = GROUPS, *, batches: Sequence[int] = BATCHES, contexts: Sequence[int] = CONTEXTS
) -> tuple[Case, ...]:
    """Return the cases of some groups, in the order of the report."""
    wanted = set(groups)
    cases = [Case(CaseKind.PREFILL, new) for new in PREFILL]
    cases += [Case(CaseKind.WARM, new, cached) for new, cached in WARM]
    cases += [Case(CaseKind.DECODE, TAIL, context - TAIL, batch) for context in contexts for batch in batches]
    cases += [Case(CaseKind.SHARED, TAIL, SHARED, SHARING, shared) for shared in (True, False)]
    return tuple(case for case in cases if case.kind in wanted)


def passages_of(case: Case) -> tuple[tuple[int, int], ...]:
    """Return the cached passages that a case needs, each as (length, number); cases of one length share them."""
    if not case.cached:
        return ()
    return tuple((case.cached, number) for number in range(1 if case.shared else case.batch))


class Prompts:
    """Random token ids, the same for every contestant and every run of a seed.

    Args:
        vocabulary: ids to draw from, at least one.
        seed: of all of them.
    """

    def __init__(self, vocabulary: Sequence[int], seed: int) -> None:
        self._vocabulary = vocabulary
        self._seed = seed

    def passage(self, length: int, number: int) -> tuple[int, ...]:
        """Return the cached passage of a length and number."""
        return self._draw(f"passage/{length}/{number}", length)

    def make(self, case: Case, repeat: int) -> list[tuple[int, ...]]:
        """Return the prompts of a case: what is cached is the same in every repeat, what is new differs."""
        prompts = []
        for number in range(case.batch):
            head = self.passage(case.cached, 0 if case.shared else number) if case.cached else ()
            prompts.append(head + self._draw(f"{case.name}/{repeat}/{number}", case.new))
        return prompts

    def _draw(self, name: str, count: int) -> tuple[int, ...]:
        return tuple(random.Random(f"{self._seed}/{name}").choices(self._vocabulary, k=count))
