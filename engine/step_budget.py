"""How many tokens a step computes, so that running answers keep their pace while prompts are prefilled.

Knows counts and seconds: neither requests nor clocks.
"""

from collections import deque
from statistics import median

__all__ = ["StepBudget"]

REMEMBERED_STEPS = 8  # of each kind; the median of so few follows a change soon, and one stray step does not move it


class StepBudget:
    """Learns what steps cost, and limits the prefill work beside decodes by it.

    A step takes what its decode rows take alone, plus a time for each prefill token: both are medians over the last
    steps. Prefill work is limited so that the sum stays below `max_slowdown` times the first part.

    Args:
        max_tokens: the most that a step computes, and all that limits it while no answer runs.
        min_prefill_tokens: what prefill work gets beside decodes whatever was measured, so that it always advances.
        max_slowdown: how many times longer than its decode rows alone a step may take.
    """

    def __init__(self, max_tokens: int, min_prefill_tokens: int, max_slowdown: float) -> None:
        self._max_tokens = max_tokens
        self._min_prefill_tokens = min_prefill_tokens
        self._max_slowdown = max_slowdown
        self._decode_seconds: dict[int, deque[float]] = {}  # by the rows' bit length: 1, 2-3, 4-7, ...
        self._token_seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)

    def tokens(self, decode_rows: int) -> int:
        """Return how many tokens a step with so many decode rows may compute, those rows included."""
        return min(self._max_tokens, decode_rows + self._prefill_tokens(decode_rows))

    def record(self, decode_rows: int, prefill_tokens: int, seconds: float) -> None:
        """Learn from a step without drafts that has run."""
        if prefill_tokens == 0:
            self._recent(decode_rows).append(seconds)
            return
        decoding = self.decode_seconds(decode_rows) if decode_rows else 0.0
        if decoding is None:  # answers have always run beside prefills: take the prefill's part off
            decoding = max(seconds - prefill_tokens * self._seconds_per_token(), seconds / 10)
            self._recent(decode_rows).append(decoding)
        if prefill_tokens >= self._min_prefill_tokens:  # the time of fewer is mostly noise
            self._token_seconds.append(max(seconds - decoding, seconds / 10) / prefill_tokens)

    def decode_seconds(self, rows: int) -> float | None:
        """Estimate a step of so many decode rows and nothing else; None before anything was measured.

        Where no step of about so many rows is known, the nearest known with fewer stands for it, or else with more.
        """
        size = rows.bit_length()
        nearest = min(self._decode_seconds, key=lambda known: (known > size, abs(known - size)), default=None)
        return None if nearest is None else median(self._decode_seconds[nearest])

    def _prefill_tokens(self, decode_rows: int) -> int:
        if decode_rows == 0:
            return self._max_tokens
        decoding, per_token = self.decode_seconds(decode_rows), self._seconds_per_token()
        if decoding is None or per_token <= 0:
            return self._min_prefill_tokens
        affordable = (self._max_slowdown - 1) * decoding / per_token
        return int(max(self._min_prefill_tokens, min(self._max_tokens, affordable)))

    def _seconds_per_token(self) -> float:
        """The time of one more prefill token; 0 before anything was measured."""
        return median(self._token_seconds) if self._token_seconds else 0.0

    def _recent(self, decode_rows: int) -> deque[float]:
        return self._decode_seconds.setdefault(decode_rows.bit_length(), deque(maxlen=REMEMBERED_STEPS))
