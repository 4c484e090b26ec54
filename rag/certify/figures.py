"""What was measured of each set, kept in a file, so that an interrupted run is taken up by the next one."""

import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["AnswerFigures", "FiguresFile", "SetFigures", "WayFigures"]

logger = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WayFigures(_Part):
    """One way to compute one set, against full prefill.

    Attributes:
        kl: KL(full || this), in nats, mean of the answer's tokens.
        agreement: share of them with the same most likely token.
        first_kl: of the first token.
    """

    kl: float
    agreement: float
    first_kl: float


class AnswerFigures(_Part):
    """An answer that one way gives when it is free to.

    Attributes:
        f1_full: token F1 against the answer of full prefill.
        f1_gold: token F1 against the gold text, the best where there are several.
        has_gold: whether it contains one.
    """

    f1_full: float
    f1_gold: float
    has_gold: bool


class SetFigures(_Part):
    """A question with its k best passages.

    Attributes:
        passage_tokens: length of each passage.
        answer_tokens: length of the answer of full prefill.
        reordered: mean over the random orders.
        no_passages: the question alone.
        chunk: by repair.
        answers: by way; empty where they were not asked for.
    """

    passage_tokens: tuple[int, ...]
    answer_tokens: int
    reordered: WayFigures
    no_passages: WayFigures
    chunk: Mapping[int, WayFigures]
    answers: Mapping[str, AnswerFigures] = {}


class _Line(_Part):
    key: str
    figures: SetFigures


class FiguresFile:
    """Figures by key in a file of JSON lines; a key is the hash of everything that was measured and how.

    Of several lines with one key the last counts. A line that a crash has cut is measured again. Figures of other keys
    are kept and not used.

    Args:
        path: made on the first write, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {line.key: line.figures for line in self._read()}

    def get(self, key: str) -> SetFigures | None:
        """Return what was measured, or None."""
        return self._known.get(key)

    def add(self, key: str, figures: SetFigures) -> None:
        """Keep figures; they are in the file when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            end = file.tell()
            if end:  # a cut line ends here, and not in the middle of the next one
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(_Line(key=key, figures=figures).model_dump_json().encode() + b"\n")
        self._known[key] = figures

    def _read(self) -> list[_Line]:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(_Line.model_validate_json(line))
            except ValidationError:
                logger.warning("line %d of %s is damaged; its set is measured again", number, self._path)
        return found
