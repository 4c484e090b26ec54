"""One engine in one experiment of two runs: its times and hits, before and after."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

from rag.bench.analysis.comparison import Change
from rag.bench.analysis.resampling import FEWEST, RESAMPLES, Drawn, chance, lasting, mean, quantile, quantile_ratio
from rag.bench.analysis.times import Time, decode_ms, grid_of, ttft_ms
from rag.bench.statistics import Estimate
from rag.bench.suite.experiment import Drive, Experiment
from rag.bench.suite.records import AnswerRecord
from rag.bench.suite.results import Results

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]

__all__ = ["TIMES", "Answers", "EnginePair", "relative_change"]

TIMES: Mapping[str, Time] = {"TTFT, ms": ttft_ms, "per output token, ms": decode_ms}
ONE_WINDOW = "one pass each: how much the machine's speed differs from window to window is not known"
NO_REFERENCE = "one pass each, and no engine beside it to tell what the machine did"
LOST = "requests were left without an answer: times of the others alone say too little"
TOO_FEW = f"fewer than {FEWEST} requests"
THE_REFERENCE = "the reference: it tells what the machine did"


def relative_change(change: "Floats", seed: int) -> dict[str, Any]:
    """Return the fields of a change of times that are divided by a reference's, from logarithms by request."""

    def drawn(resamples: int) -> Drawn:
        return quantile(change[None], 0.5, block=1, seed=seed, resamples=resamples)

    return {"relative": _ratio(drawn(RESAMPLES)), "p": chance(drawn)}


@dataclass(frozen=True)
class Answers:
    """Answers that count, of one file and experiment, without warm-up, by engine in the experiment's order.

    `lost` are the engines that left requests without an answer under load, where the others alone say too little.
    """

    answers: Mapping[str, Sequence[AnswerRecord]]
    repeats: Mapping[str, int]
    lost: frozenset[str] = frozenset()

    @classmethod
    def of(cls, results: Results, experiment: Experiment) -> "Answers":
        """Pick an experiment's answers."""
        asked = [one for one in results.answers(experiment.name) if not one.warmup]
        counted = [one for one in asked if one.status == "ok"]
        there = {one.contestant for one in counted}
        names = [*(one for one in experiment.contestants if one in there), *sorted(there - {*experiment.contestants})]
        lost = {one.contestant for one in asked if one.status != "ok" and experiment.drive is Drive.LOAD}
        return cls(
            {name: [one for one in counted if one.contestant == name] for name in names},
            {unit: record.repeat for unit, record in results.units.items()},
            frozenset(lost),
        )

    @property
    def engines(self) -> list[str]:
        """Those with an answer."""
        return list(self.answers)

    def grid(self, name: str, time: Time, requests: Sequence[int]) -> "Floats":
        """Logarithms of an engine's times, [passes, requests]."""
        return grid_of(self.answers[name], time, self.repeats, requests)

    def beside(self, name: str, reference: str, time: Time, requests: Sequence[int]) -> "Floats":
        """Logarithms of an engine's times over the reference's in the same turn, [requests], medians over passes."""
        passes = sorted(set(self.repeats.values()))
        own, other = (grid_of(self.answers[one], time, self.repeats, requests, passes) for one in (name, reference))
        return _middle(own - other)

    def cached(self, name: str) -> dict[int, float]:
        """Cached tokens of each request, on average over the passes, where the engine tells."""
        told: dict[int, list[int]] = {}
        for one in self.answers[name]:
            if one.cached is not None:
                told.setdefault(one.request, []).append(sum(one.cached.values()))
        return {request: sum(tokens) / len(tokens) for request, tokens in told.items()}


@dataclass(frozen=True)
class EnginePair:
    """One engine in one experiment, in both files."""

    experiment: Experiment
    before: Answers
    after: Answers
    name: str
    reference: str

    @cached_property
    def requests(self) -> list[int]:
        """Those that the engine answered in both files."""
        found = [{one.request for one in side.answers[self.name]} for side in (self.before, self.after)]
        return sorted(found[0] & found[1])

    def time(self, measure: str) -> Change | None:
        """Compare a time; None where either file has none."""
        import numpy as np

        time = TIMES[measure]
        grids = [side.grid(self.name, time, self.requests) for side in (self.before, self.after)]
        if any(np.isnan(grid).all() for grid in grids):
            return None
        change = Change(
            experiment=self.experiment.name,
            contestant=self.name,
            measure=measure,
            before=float(np.exp(np.nanmedian(grids[0]))),
            after=float(np.exp(np.nanmedian(grids[1]))),
            requests=len(self.requests),
        )
        if len(self.requests) < FEWEST:
            return change.model_copy(update={"unjudged": TOO_FEW})
        if self.experiment.drive is Drive.TURNS:
            return change.model_copy(update=self._in_turns(grids, time))
        if {self.name, self.reference} & (self.before.lost | self.after.lost):
            return change.model_copy(update={"unjudged": LOST})
        return change.model_copy(update=self._under_load(grids, time))

    def _in_turns(self, grids: "Sequence[Floats]", time: Time) -> dict[str, Any]:
        found: dict[str, Any] = {"raw": _ratio(self._raw(grids))}
        if self.name == self.reference:
            return {**found, "reference": self.name, "unjudged": THE_REFERENCE}
        if not self.reference:
            repeated = all(len(grid) > 1 for grid in grids)
            return found | ({"p": chance(partial(self._raw, grids))} if repeated else {"unjudged": NO_REFERENCE})
        change = self.beside(time)
        if len(change) < FEWEST:
            return {**found, "unjudged": TOO_FEW}
        return {**found, "reference": self.reference, **relative_change(change, self._seed)}

    def beside(self, time: Time) -> "Floats":
        """Logarithms of how much each request's time changed against the reference's; of those that have all four."""
        import numpy as np

        sides = self.before, self.after
        before, after = (side.beside(self.name, self.reference, time, self.requests) for side in sides)
        changes: Floats = (after - before)[~(np.isnan(after) | np.isnan(before))]
        return changes

    def middle(self, side: int, time: Time) -> "Floats":
        """Logarithms of each request's time in the first file (0) or the second (1), medians over passes."""
        import numpy as np

        answers = (self.before, self.after)[side]
        found = _middle(answers.grid(self.name, time, self.requests))
        known: Floats = found[~np.isnan(found)]
        return known

    def _under_load(self, grids: "Sequence[Floats]", time: Time) -> dict[str, Any]:
        found: dict[str, Any] = {"raw": _ratio(self._raw(grids))}
        if self.name == self.reference:
            return {**found, "reference": self.name, "unjudged": THE_REFERENCE}
        compared: Sequence[Floats] = grids
        if self.reference:
            others = [side.grid(self.reference, time, self.requests) for side in (self.before, self.after)]
            compared = [*grids, *others]
            found |= {"relative": _ratio(self._against(compared)), "reference": self.reference}
        if any(len(grid) < 2 for grid in compared):
            return {**found, "unjudged": ONE_WINDOW}
        return {**found, "p": chance(partial(self._against, compared))}

    def _against(self, grids: "Sequence[Floats]", resamples: int = RESAMPLES) -> Drawn:
        """The change, without that of a reference whose grids come after the engine's."""
        raw = self._raw(grids[:2], resamples)
        if len(grids) == 2:
            return raw
        other = self._raw(grids[2:], resamples, seed=self._seed + 1)
        draws = min(len(raw.draws), len(other.draws))
        return Drawn(raw.value - other.value, raw.draws[:draws] - other.draws[:draws])

    def _raw(self, grids: "Sequence[Floats]", resamples: int = RESAMPLES, seed: int | None = None) -> Drawn:
        block, chosen = lasting(len(self.requests)), self._seed if seed is None else seed
        return quantile_ratio(grids[1], grids[0], 0.5, block=block, seed=chosen, resamples=resamples)

    def hits(self) -> Iterator[Change]:
        """Compare the shares of prompt tokens that came from the cache, where the engine tells in both files."""
        import numpy as np

        cached = self.before.cached(self.name), self.after.cached(self.name)
        prompts = {one.request: one.prompt_tokens for one in self.before.answers[self.name]}
        both = [request for request in self.requests if request in cached[0] and request in cached[1]]
        if not both:
            return
        size = sum(prompts[request] for request in both) / len(both)
        shares = [np.asarray([found[request] for request in both]) / size for found in cached]
        change = Change(
            experiment=self.experiment.name,
            contestant=self.name,
            measure="prompt tokens from cache, share",
            before=float(shares[0].mean()),
            after=float(shares[1].mean()),
            requests=len(both),
            share=True,
        )
        if len(both) < FEWEST:
            yield change.model_copy(update={"unjudged": TOO_FEW})
            return
        grid = (shares[1] - shares[0])[None]

        def difference(resamples: int) -> Drawn:
            return mean(grid, block=lasting(len(both)), seed=self._seed, resamples=resamples)

        yield change.model_copy(update={"raw": difference(RESAMPLES).estimate(), "p": chance(difference)})

    @property
    def _seed(self) -> int:
        return crc32(f"{self.experiment.name} {self.name}".encode())


def _middle(grid: "Floats") -> "Floats":
    """The median of each request over the passes; NaN for one without any."""
    import numpy as np

    found = np.full(grid.shape[1], np.nan)
    known = ~np.isnan(grid).all(axis=0)
    found[known] = np.nanmedian(grid[:, known], axis=0)
    return found


def _ratio(drawn: Drawn) -> Estimate:
    import numpy as np

    return drawn.estimate(np.exp)
