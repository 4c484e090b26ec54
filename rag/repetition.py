"""Ends an answer that starts to repeat itself, as small models do under greedy decoding.

Streams: a sentence is held back only while it repeats an earlier one so far.
"""

import re

__all__ = ["RepetitionGuard"]

# A line break inside a paragraph is not an end: the same sentence may be wrapped otherwise the second time.
SENTENCE = re.compile(r".*?(?:[.!?](?=\s)|\n\s*\n|\n(?=\s*[-*#\d]))\s*", re.DOTALL)
SHORTEST_SENTENCE = 20  # characters, without spaces; "Yes." may come twice
LOOP = re.compile(r"(.{2,40}?)\1{4,}$", re.DOTALL)
LONGEST_LOOP = 240


class RepetitionGuard:
    """Lets text through until a sentence comes for the second time, or a few characters over and over."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._sentence = ""  # the unfinished sentence
        self._shown = 0  # how much of it has been let through
        self._recent = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return what may be shown, and whether the answer ends here."""
        self._sentence += text
        shown: list[str] = []
        while match := SENTENCE.match(self._sentence):
            sentence, key = match.group(), _key(match.group())
            if key in self._seen:
                return "".join(shown), True
            if len(key) >= SHORTEST_SENTENCE:
                self._seen.add(key)
            shown.append(sentence[self._shown :])
            self._sentence, self._shown = self._sentence[match.end() :], 0
        key = _key(self._sentence)
        if not any(known.startswith(key) for known in self._seen):
            shown.append(self._sentence[self._shown :])
            self._shown = len(self._sentence)
        released = "".join(shown)
        self._recent = (self._recent + released)[-LONGEST_LOOP:]
        return released, LOOP.search(self._recent) is not None

    def flush(self) -> str:
        """Return what was held back, at the end of the text; nothing where it repeats an earlier sentence so far."""
        held, key = self._sentence[self._shown :], _key(self._sentence)
        self._sentence, self._shown = "", 0
        repeats = not key or (len(key) >= SHORTEST_SENTENCE and any(known.startswith(key) for known in self._seen))
        return "" if repeats else held


def _key(sentence: str) -> str:
    return re.sub(r"[\W_]+", "", sentence).lower()
