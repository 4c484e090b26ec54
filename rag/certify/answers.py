"""Scores of free answers: token F1 and containment of a gold text. Knows strings only."""

import re
from collections import Counter
from collections.abc import Sequence

from rag.certify.figures import AnswerFigures

__all__ = ["score_answer", "token_f1"]

WORD = re.compile(r"\w+")


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of the answer's words, case aside; two empty texts agree.

    Source: Rajpurkar et al., "SQuAD", 2016, section 6.
    """
    ours, theirs = (Counter(WORD.findall(text.lower())) for text in (answer, reference))
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total())


def score_answer(answer: str, full: str, golds: Sequence[str]) -> AnswerFigures:
    """Score an answer against that of full prefill and against the gold texts, of which there may be none."""
    squeezed = _squeeze(answer)
    return AnswerFigures(
        f1_full=token_f1(answer, full),
        f1_gold=max((token_f1(answer, gold) for gold in golds), default=0.0),
        has_gold=any(_squeeze(gold) in squeezed for gold in golds),
    )


def _squeeze(text: str) -> str:
    return " ".join(text.lower().split())
