"""The latest responses, so that the next one can go on from them; each is known to the key that asked for it alone."""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from rag.transcripts import Said

if TYPE_CHECKING:
    from rag.openai.response_schemas import Response

__all__ = ["ResponseStore", "Stored"]

MAX_RESPONSES = 2048
MAX_CHARACTERS = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, and the conversation up to it and with it."""

    response: "Response"
    turns: tuple[Said, ...]

    @property
    def size(self) -> int:
        """Roughly how many characters it takes."""
        texts = sum(len(text) for _, text in self.turns)
        found = sum(len(item.model_dump_json()) for item in self.response.output)
        return texts + found


class ResponseStore:
    """Keeps responses in memory, the latest ones.

    Args:
        max_responses: how many.
        max_characters: of all of them together, roughly.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_responses = max_responses
        self._max_characters = max_characters
        self._stored: OrderedDict[tuple[str, str], tuple[Stored, int]] = OrderedDict()
        self._characters = 0
        self._lock = Lock()

    def add(self, principal: str, stored: Stored) -> None:
        """Keep a response."""
        size = stored.size
        with self._lock:
            self._stored[principal, stored.response.id] = stored, size
            self._characters += size
            while len(self._stored) > self._max_responses or self._characters > self._max_characters:
                _, (_, gone) = self._stored.popitem(last=False)
                self._characters -= gone

    def get(self, principal: str, response_id: str) -> Stored | None:
        """Return a response of a principal's; None where there is none, or it is another's."""
        with self._lock:
            found = self._stored.get((principal, response_id))
        return found[0] if found else None

    def remove(self, principal: str, response_id: str) -> bool:
        """Forget a response of a principal's; tell whether there was one."""
        with self._lock:
            found = self._stored.pop((principal, response_id), None)
            self._characters -= found[1] if found else 0
        return found is not None
