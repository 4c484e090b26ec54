"""Times of answers as grids of passes and requests, and how they are distributed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rag.bench.analysis.models import Times
from rag.bench.analysis.resampling import FEWEST, Drawn, enough_for, lasting, quantile, quantile_ratio
from rag.bench.statistics import Estimate
from rag.bench.suite.records import AnswerRecord

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float64]]

__all__ = ["Time", "decode_ms", "grid_of", "prefill_ms", "speedup", "times_of", "total_ms", "ttft_ms"]

Time = Callable[[AnswerRecord], float | None]
NEVER = 30.0  # logarithm of milliseconds, longer than any time


def ttft_ms(answer: AnswerRecord) -> float | None:
    """Return the time from when the request was due to its first token."""
    return None if answer.first is None else 1000 * (answer.first - answer.arrival)


def prefill_ms(answer: AnswerRecord) -> float | None:
    """Return the time from the engine's start on the prompt to the first token, where it tells."""
    return None if answer.first is None or answer.started is None else 1000 * (answer.first - answer.started)


def decode_ms(answer: AnswerRecord) -> float | None:
    """Return the time per output token after the first."""
    if answer.first is None or answer.finished is None or answer.count < 2:
        return None
    return 1000 * (answer.finished - answer.first) / (answer.count - 1)


def total_ms(answer: AnswerRecord) -> float | None:
    """Return the time from when the request was due to its last token."""
    return None if answer.finished is None else 1000 * (answer.finished - answer.arrival)


def grid_of(
    answers: Iterable[AnswerRecord],
    time: Time,
    repeats: Mapping[str, int],
    requests: Sequence[int],
    passes: Sequence[int] | None = None,
) -> "Floats":
    """Return logarithms of times, [passes, requests]; NaN where there is no answer, or no time.

    Args:
        answers: of one engine, one a pass and request.
        time: of an answer, in milliseconds.
        repeats: the pass of each unit.
        requests: the columns.
        passes: the rows; None is those with an answer.
    """
    import numpy as np

    found = {(repeats[answer.unit], answer.request): value for answer in answers if (value := time(answer))}
    passes = sorted({one for one, _ in found}) if passes is None else passes
    rows = [[found.get((one, request), np.nan) for request in requests] for one in passes]
    grid: Floats = np.log(np.asarray(rows, float).reshape(len(passes), len(requests)))
    return grid


def times_of(rows: "Floats | Sequence[Sequence[float]]", *, block: int | None = None) -> Times | None:
    """Summarise milliseconds, [passes, requests] (not logarithms); None where there are none.

    A value that is infinite was lost: no answer came, or none that counts.
    """
    import numpy as np

    values = np.asarray(rows, float)
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    block = block or lasting(values.shape[1])
    middle, high, highest = (_percentile(np.log(values), share, block) for share in (0.5, 0.9, 0.99))
    return Times(
        n=len(known),
        lost=int(np.isinf(values).sum()),
        windows=len(values),
        p50=middle,
        p90=high,
        p99=highest,
        most=float(known.max()),
        mean=float(known.mean()),
    )


def speedup(own: "Floats", base: "Floats", *, paired: bool) -> Estimate | None:
    """Return how many times as long the baseline takes, from logarithms of times of the same requests.

    Args:
        own: [passes, requests].
        base: the same of the baseline.
        paired: passes are the same, and each cell was measured beside the other grid's: the median of the cells'
            ratios; otherwise the ratio of the medians.
    """
    import numpy as np

    if paired:
        ratios = base - own
        ratios = ratios[~np.isnan(ratios).all(axis=1)]
        return _shown(quantile(ratios, 0.5, block=1), interval=_columns(ratios) >= FEWEST) if len(ratios) else None
    if np.isnan(own).all() or np.isnan(base).all() or _lost(own, 0.5) or _lost(base, 0.5):
        return None
    drawn = quantile_ratio(_finite(base), _finite(own), 0.5, block=lasting(own.shape[1]))
    lost = np.isinf(own).any() or np.isinf(base).any()
    return _shown(drawn, interval=not lost and min(_columns(own), _columns(base)) >= FEWEST)


def _percentile(logarithms: "Floats", share: float, block: int) -> Estimate | None:
    import numpy as np

    values = int((~np.isnan(logarithms)).sum())
    if _lost(logarithms, share) or (share != 0.5 and not enough_for(share, values, interval=False)):
        return None
    drawn = quantile(_finite(logarithms), share, block=block)
    most = float(np.exp(logarithms[np.isfinite(logarithms)].max()))
    interval = enough_for(share, values, interval=True) and _columns(logarithms) >= FEWEST
    shown = _shown(drawn, interval=interval)
    unknown = np.isinf(logarithms).any() and shown.high is not None and shown.high > most
    return Estimate(value=shown.value) if unknown else shown


def _lost(logarithms: "Floats", share: float) -> bool:
    """Whether a quantile lies among the lost, or between them and the greatest value."""
    import numpy as np

    ordered = np.sort(logarithms[~np.isnan(logarithms)])
    return bool(np.isinf(ordered[int(np.ceil((len(ordered) - 1) * share))]))


def _finite(logarithms: "Floats") -> "Floats":
    """The same with a long time in place of the lost, since resamples interpolate."""
    import numpy as np

    found: Floats = np.where(np.isposinf(logarithms), NEVER, logarithms)
    return found


def _shown(drawn: Drawn, *, interval: bool) -> Estimate:
    import numpy as np

    return drawn.estimate(np.exp) if interval else Estimate(value=float(np.exp(drawn.value)))


def _columns(grid: "Floats") -> int:
    """Requests with a value: of several passes of one request there is one to draw."""
    import numpy as np

    return int((~np.isnan(grid)).any(axis=0).sum())
