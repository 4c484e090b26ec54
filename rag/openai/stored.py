"""The latest responses, so that the next one can go on from them; each is known to the key that asked for it alone."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from rag.transcripts import Said

if TYPE_CHECKING:
    from rag.openai.response_schemas import Response

__all__ = ["ResponseStore", "Stored"]

MAX_RESPONSES = 2048
MAX_CHARACTERS = 32 * 2**20
LARGEST = 1 / 16  # of all characters, what one response may have


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, and the conversation up to it and with it."""

    response: "Response"
    turns: tuple[Said, ...]

    @property
    def size(self) -> int:
        """Roughly how many characters it takes."""
        return sum(len(text) for _, text in self.turns) + len(self.response.model_dump_json())


@dataclass(slots=True)
class _Own:
    """A principal's responses with their sizes, the oldest first."""

    stored: OrderedDict[str, tuple[Stored, int]] = field(default_factory=OrderedDict)
    characters: int = 0


class ResponseStore:
    """Keeps responses in memory, the latest ones; where there is no more room, who has most of it loses his oldest.

    Args:
        max_responses: how many.
        max_characters: of all of them together, roughly; one that has more than a sixteenth of them is not kept.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_responses = max_responses
        self._max_characters = max_characters
        self._of: defaultdict[str, _Own] = defaultdict(_Own)
        self._lock = Lock()

    def add(self, principal: str, stored: Stored) -> bool:
        """Keep a response; tell whether it is kept, which a large one is not."""
        size = stored.size
        if size > self._max_characters * LARGEST:
            return False
        with self._lock:
            own = self._of[principal]
            own.stored[stored.response.id] = stored, size
            own.characters += size
            while self._is_full():
                largest = max(self._of, key=self._share)
                self._remove(largest, next(iter(self._of[largest].stored)))
        return True

    def get(self, principal: str, response_id: str) -> Stored | None:
        """Return a response of a principal's; None where there is none, or it is another's."""
        with self._lock:
            found = self._of[principal].stored.get(response_id) if principal in self._of else None
        return found[0] if found else None

    def remove(self, principal: str, response_id: str) -> bool:
        """Forget a response of a principal's; tell whether there was one."""
        with self._lock:
            if principal not in self._of or response_id not in self._of[principal].stored:
                return False
            self._remove(principal, response_id)
            return True

    def _remove(self, principal: str, response_id: str) -> None:
        own = self._of[principal]
        _, size = own.stored.pop(response_id)
        own.characters -= size
        if not own.stored:
            del self._of[principal]

    def _is_full(self) -> bool:
        responses = sum(len(own.stored) for own in self._of.values())
        characters = sum(own.characters for own in self._of.values())
        return responses > self._max_responses or characters > self._max_characters

    def _share(self, principal: str) -> float:
        """Return how much of the store a principal has, by what he has most of."""
        own = self._of[principal]
        return max(len(own.stored) / self._max_responses, own.characters / self._max_characters)
