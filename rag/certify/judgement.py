"""The test itself: from the figures of sets to rows that pass or do not, and to the repairs that are chosen.

DESIGN section 4. Knows numbers only.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.certificate import Band, CertificateRow, Drift, Interval, Stage
from rag.certify.figures import SetFigures, WayFigures

if TYPE_CHECKING:
    import numpy as np

__all__ = ["choose_bands", "estimate", "judge", "upper_bound"]

RESAMPLES = 10_000
AGREEMENT_MARGIN = 0.01  # of the answer tokens
SHARE_OF_NO_PASSAGES = 0.25


def upper_bound(values: Sequence[float], *, seed: int) -> float:
    """Return the one-sided 95 % percentile bootstrap upper bound of the mean of at least one value.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Differences of pairs are
    resampled as pairs.
    """
    import numpy as np

    return float(np.percentile(_resampled_means(values, seed), 95))


def estimate(values: Sequence[float], *, seed: int) -> Interval:
    """Return the mean of at least one value with its two-sided 95 % percentile bootstrap interval."""
    import numpy as np

    low, high = np.percentile(_resampled_means(values, seed), [2.5, 97.5])
    return Interval(value=float(np.mean(values)), low=float(low), high=float(high))


def judge(stage: Stage, sets: Sequence[SetFigures], repair: int, *, seed: int) -> CertificateRow:
    """Judge a repair by sets of one number of passages.

    Args:
        stage: of the test.
        sets: at least one, each with figures of this repair.
        repair: tokens.
        seed: of the resampling.
    """
    chunk = [one.chunk[repair] for one in sets]
    reordered = [one.reordered for one in sets]
    differences = [ours.kl - theirs.kl for ours, theirs in zip(chunk, reordered, strict=True)]
    bound = upper_bound(differences, seed=seed)
    ours, theirs, blind = (_drift(ways, seed) for ways in (chunk, reordered, [one.no_passages for one in sets]))
    return CertificateRow(
        stage=stage,
        passages=len(sets[0].passage_tokens),
        repair=repair,
        sets=len(sets),
        answer_tokens=sum(one.answer_tokens for one in sets),
        chunk=ours,
        reordered=theirs,
        no_passages=blind,
        difference=estimate(differences, seed=seed),
        upper_bound=bound,
        failures=tuple(_failures(bound, ours, theirs, blind)),
    )


def choose_bands(
    ks: Sequence[int],
    repairs: Sequence[int],
    screen: Callable[[int, int], CertificateRow],
    confirm: Callable[[int, int], CertificateRow],
) -> tuple[list[Band], list[CertificateRow]]:
    """Choose for each number of passages the first repair that passes on both sets of questions.

    More passages never take a shorter repair than fewer do. Where none passes, what is above is not looked at.

    Args:
        ks: numbers of passages, rising.
        repairs: in the order in which they are tried.
        screen: judges a number of passages and a repair on the first questions.
        confirm: does so on fresh ones; only asked of what passed.

    Returns:
        The bands, none where the least number of passages fails, and every row.
    """
    bands: list[Band] = []
    rows: list[CertificateRow] = []
    tried = 0  # repairs that fewer passages did not pass with
    for k in ks:
        while tried < len(repairs) and not _passes(k, repairs[tried], (screen, confirm), rows):
            tried += 1
        if tried == len(repairs):
            break
        start = bands[-1].max_passages + 1 if bands else k
        bands.append(Band(min_passages=start, max_passages=k, repair=repairs[tried]))
    return bands, rows


def _passes(
    k: int, repair: int, stages: Sequence[Callable[[int, int], CertificateRow]], rows: list[CertificateRow]
) -> bool:
    """Judge one stage after the other until one fails; add every row."""
    for judged in stages:
        rows.append(judged(k, repair))
        if not rows[-1].passes:
            return False
    return True


def _failures(bound: float, chunk: Drift, reordered: Drift, no_passages: Drift) -> list[str]:
    failures = []
    if bound > 0:
        failures.append(f"it may move answers more than another order does: difference of the KL up to {bound:+.4f}")
    if chunk.agreement.value < reordered.agreement.value - AGREEMENT_MARGIN:
        failures.append(
            f"top-1 agreement {chunk.agreement.value:.1%} is more than a point below re-ordering's "
            f"{reordered.agreement.value:.1%}"
        )
    limit = SHARE_OF_NO_PASSAGES * no_passages.kl.value
    if chunk.kl.value > limit:
        failures.append(f"KL {chunk.kl.value:.4f} is above a quarter of that without passages, {limit:.4f}")
    return failures


def _drift(ways: Sequence[WayFigures], seed: int) -> Drift:
    return Drift(
        kl=estimate([way.kl for way in ways], seed=seed),
        agreement=estimate([way.agreement for way in ways], seed=seed),
        first_kl=estimate([way.first_kl for way in ways], seed=seed),
    )


def _resampled_means(values: Sequence[float], seed: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    import numpy as np

    assert len(values) > 0, "nothing to resample"
    given = np.asarray(values, np.float64)
    drawn = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    means: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = given[drawn].mean(axis=1)
    return means
