"""What a comparison of two runs says."""

from math import inf

from pydantic import BaseModel, ConfigDict

from rag.bench.statistics import Estimate

__all__ = ["Change", "Comparison", "Side", "change_size", "is_large"]

NOTICED = 0.1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Side(_Part):
    """One of the two runs."""

    file: str
    started: str
    command: str


class Change(_Part):
    """One measure of one engine in one experiment, before and after.

    Attributes:
        contestant: an engine, or a variant of the answers for measures of quality.
        measure: what it is, with its unit.
        before: the value in the first file.
        after: in the second.
        requests: that both answered.
        raw: after over before for times (median of the ratios by request where engines took turns, else the ratio of
            the medians); after minus before for shares, F1 and KL. With its interval within the runs.
        relative: for times, the same as a multiple of the reference's: what the machine did to both is not in it.
        reference: the engine that `relative` is a multiple of; its own name for the reference itself; empty without.
        p: chance of a difference as large if nothing changed; None where that is not known, see `unjudged`.
        q: the same after Benjamini and Hochberg's correction for the number of comparisons.
        changed: beyond noise, and large enough to matter.
        unjudged: why it is not judged; empty where it is.
        share: it is a share of tokens or answers, whose change counts as a difference, not as a ratio.
    """

    experiment: str
    contestant: str
    measure: str
    before: float
    after: float
    requests: int | None = None
    raw: Estimate | None = None
    relative: Estimate | None = None
    reference: str = ""
    p: float | None = None
    q: float | None = None
    changed: bool = False
    unjudged: str = ""
    share: bool = False


class Comparison(_Part):
    """Two runs.

    Attributes:
        notices: how the runs differ otherwise, and what could not be compared.
        changes: every measure that both have, changed or not.
        judged: how many of them were judged.
        level: of the false discovery rate: the share of false alarms among changes, on average; where nothing has
            changed, the chance of any.
        least: the smallest change, as a share of the value before, that is called one.
        least_share: the smallest difference of shares that is called a change.
    """

    before: Side
    after: Side
    notices: tuple[str, ...]
    changes: tuple[Change, ...]
    judged: int
    level: float
    least: float
    least_share: float

    @property
    def found(self) -> list[Change]:
        """Changes beyond noise, the largest first."""
        return sorted((one for one in self.changes if one.changed), key=change_size, reverse=True)

    @property
    def open(self) -> list[Change]:
        """What is other by at least a tenth, where nobody knows whether by chance; the largest first."""
        doubtful = [one for one in self.changes if one.unjudged and one.reference != one.contestant and _apart(one)]
        large = [one for one in doubtful if change_size(one) >= NOTICED and is_large(one, NOTICED, self.least_share)]
        return sorted(large, key=change_size, reverse=True)

    @property
    def machine(self) -> list[Change]:
        """The first time of each experiment's reference."""
        references = [one for one in self.changes if one.reference == one.contestant and one.unjudged]
        return list({one.experiment: one for one in reversed(references)}.values())[::-1]


def change_size(change: Change) -> float:
    """Return how large a change is, as a share of the value before, without what the reference's time did."""
    if change.relative is not None:
        return abs(change.relative.value - 1)
    if change.before == 0:
        return 0.0 if change.after == 0 else inf
    return abs(change.after / change.before - 1)


def is_large(change: Change, least: float, least_share: float) -> bool:
    """Return whether a change is large enough to be called one."""
    if change.share:
        return abs(change.after - change.before) >= least_share - 1e-12
    return change_size(change) >= least


def _apart(change: Change) -> bool:
    """Whether no change lies outside the interval within the runs, where there is one; of a ratio."""
    shown = change.relative or change.raw
    if shown is None or shown.low is None or shown.high is None:
        return True
    return not shown.low <= 1 <= shown.high
