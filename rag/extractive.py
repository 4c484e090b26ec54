"""Finds the sentence of the sources that best answers a question, by the words that they share.

Rare words weigh more (inverse document frequency over the passages at hand), words of the model's answer count a
little, and earlier passages win ties. Needs no model.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["best_sentence"]

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n\s*\n")
WORD = re.compile(r"\w+")
STOP_WORDS = frozenset(
    """
    a an and are as at be but by can could do does did for from had has have how i if in into is it its me my no not of
    on or our should so than that the their them then there these they this to use used using was we were what when
    where which who whom whose why will with would you your
    """.split()  # noqa: SIM905 - a list of literals would take a screen
)
ANSWER_WEIGHT = 0.3
RANK_DISCOUNT = 0.1  # a passage one rank further down must be this much better
SHORTEST, LONGEST = 30, 400  # characters of a sentence worth quoting


def best_sentence(question: str, passages: Sequence[str], answer: str = "") -> tuple[int, str] | None:
    """Return the index of a passage and a sentence of it, or None where no sentence shares a word.

    Args:
        question: what was asked.
        passages: texts of the sources, best first.
        answer: what the model said.
    """
    sentences = [(index, text) for index, passage in enumerate(passages) for text in _sentences(passage)]
    words = [_words(text) for _, text in sentences]
    frequency = Counter(word for found in words for word in found)
    asked, said = _words(question), _words(answer)
    best, best_score = None, 0.0
    for (index, text), found in zip(sentences, words, strict=True):
        weight = {word: math.log(1 + len(sentences) / frequency[word]) for word in found}
        shared = sum(weight[word] for word in found & asked)
        echoed = ANSWER_WEIGHT * sum(weight[word] for word in found & (said - asked))
        score = (shared + min(echoed, shared / 2)) / math.sqrt(len(found) + 8) * (1 - RANK_DISCOUNT) ** index
        if score > best_score:
            best, best_score = (index, text), score
    return best


def _sentences(passage: str) -> list[str]:
    found = (" ".join(part.split()) for part in SENTENCE_END.split(passage))
    return [text for text in found if SHORTEST <= len(text) <= LONGEST]


def _words(text: str) -> set[str]:
    return {_stem(word) for word in WORD.findall(text.lower())} - STOP_WORDS


def _stem(word: str) -> str:
    """Drop the commonest endings, so that "slices" meets "slice"."""
    if len(word) > 4 and word.endswith(("es", "ed")) and word[-3] not in "aeious":
        return word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
