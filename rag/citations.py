"""From passage labels in generated text to numbered sources.

The model is asked to write a passage's label, such as `[k7q2]`; readers see `[1]`. Labels are known strings, so that
only they are replaced: brackets that hold anything else stay as they are. Knows no prompt and no retrieval.
"""

import re
from collections.abc import Mapping

from rag.schemas import Citation

__all__ = ["CitationFilter"]

INSIDE = r"[^\[\]()【】\n]"  # no bracket of any kind, so that groups never overlap
GROUP = re.compile(
    rf"\[\[({INSIDE}{{1,80}})\]\]|\[({INSIDE}{{1,80}})\]|(?<![^\s])\(({INSIDE}{{1,80}})\)|【({INSIDE}{{1,80}})】"
)
# What may still become a group when more text comes.
UNFINISHED = re.compile(
    rf"(\[(?!\[){INSIDE}{{0,80}}|\[\[{INSIDE}{{0,80}}\]?|(?<![^\s])\({INSIDE}{{0,80}}|【{INSIDE}{{0,80}})$"
)
NOISE = re.compile(r"^\s*(?:sources?|passages?|labels?|see|from|and|cf\.?)?\s*[:#^]?\s*|[\s.]+$", re.IGNORECASE)
SEPARATORS = re.compile(r"[,;/&]|\band\b")


class CitationFilter:
    """Replaces labels while text streams through; holds back what could still become a label.

    Args:
        numbers: label -> number of its source.
    """

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = {label.lower(): number for label, number in numbers.items()}
        self._held = ""
        self._previous = ""  # the last character shown, for what must not follow a word
        self._length = 0

    @property
    def length(self) -> int:
        """How many characters the answer has so far."""
        return self._length

    def push(self, text: str) -> tuple[str, list[Citation]]:
        """Add generated text; return what may be shown, and the citations in it."""
        held = self._held + text
        unfinished = UNFINISHED.search(self._previous + held)
        cut = len(held) if unfinished is None else max(unfinished.start() - len(self._previous), 0)
        self._held = held[cut:]
        return self._replace(held[:cut])

    def flush(self) -> tuple[str, list[Citation]]:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return self._replace(held)

    def quote(self, text: str, source: int) -> tuple[str, Citation]:
        """Add text of our own that ends with the marker of a source."""
        marker = f"[{source}]"
        self._length += len(text)
        citation = Citation(marker=marker, source=source, start=self._length, end=self._length + len(marker))
        self._length += len(marker)
        return text + marker, citation

    def _replace(self, text: str) -> tuple[str, list[Citation]]:
        shown: list[str] = []
        citations: list[Citation] = []
        whole, done = self._previous + text, len(self._previous)
        for match in GROUP.finditer(whole, done):
            sources = self._sources(next(group for group in match.groups() if group is not None))
            if not sources:
                continue
            shown.append(whole[done : match.start()])
            self._length += match.start() - done
            for source in sources:
                marker, citation = self.quote("", source)
                shown.append(marker)
                citations.append(citation)
            done = match.end()
        shown.append(whole[done:])
        self._length += len(whole) - done
        self._previous = whole[-1:]
        return "".join(shown), citations

    def _sources(self, inside: str) -> list[int]:
        """Return the sources that a bracket names, each once; none where it is no citation."""
        found = [self._number(item.strip().lower()) for item in SEPARATORS.split(inside)]
        return list(dict.fromkeys(number for number in found if number is not None))

    def _number(self, item: str) -> int | None:
        return self._numbers.get(item) or self._numbers.get(NOISE.sub("", item))
