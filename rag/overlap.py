"""Work that is begun for the passages which a question will probably get, while it is not certain yet.

A wrong guess costs what it has begun: reading ahead costs the disk's time, speculation at most one step of the engine.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from engine.config import SamplingParams
from engine.errors import EngineError
from engine.prompt import Prompt, Reuse
from rag.living_store import namespace_of

if TYPE_CHECKING:
    from engine.worker import Handle
    from rag.components import Components
    from rag.config import AnswerSettings
    from retriever.document import Passage
    from retriever.records import Collection

__all__ = ["Overlap"]


class Overlap:
    """What was begun for one question; as a context, it drops that when the question fails in it.

    Args:
        components: layout and engine.
        settings: what to begin.
        reuse: which cached KV may serve the question.
    """

    def __init__(self, components: "Components", settings: "AnswerSettings", reuse: Reuse) -> None:
        self._components = components
        self._settings = settings
        self.reuse = reuse
        self._speculation: Handle | None = None
        self._guess: list[int] = []

    def begin(self, collection: "Collection", passages: "Sequence[Passage]") -> None:
        """Begin with a collection's candidates of the first stage, as far as the settings say."""
        settings = self._settings
        if not passages or not (settings.prefetch or settings.speculate):
            return
        engine = self._components.worker().engine
        layout = self._components.layout_of(collection)
        segments = [layout.passage(passage) for passage in passages]
        namespace = namespace_of(collection.id)
        if settings.prefetch and engine.tier is not None:
            is_chunk = self.reuse is not Reuse.EXACT and engine.allows_chunk(Prompt([layout.head, *segments]))
            usable = segments if is_chunk else segments[:1]
            engine.tier.prefetch(namespace, layout.head.tokens, [segment.tokens for segment in usable])
        if settings.speculate and not engine.scheduler.has_work:
            self._speculation = self._speculate(collection, Prompt([layout.head, *segments]))
            self._guess = [passage.id for passage in passages]

    def settle(self, passage_ids: Sequence[int]) -> None:
        """Drop what was begun for other passages than these, which the question gets in this order."""
        if self._guess != list(passage_ids):
            self.drop()

    def drop(self) -> None:
        """Drop what was begun; harmless when it has ended."""
        if self._speculation is not None:
            self._components.worker().cancel(self._speculation)

    def __enter__(self) -> None:
        """Begin what may fail."""

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Nobody comes for what was begun when the question has failed."""
        if failure is not None:
            self.drop()

    def _speculate(self, collection: "Collection", prompt: Prompt) -> "Handle | None":
        """Let the engine compute the prompt up to the question; nobody waits for that, and nobody misses it."""
        how = {"namespace": namespace_of(collection.id), "as_of": collection.generation, "reuse": self.reuse}
        with suppress(EngineError):  # the question itself will tell it
            return self._components.worker().submit_sync(prompt, SamplingParams(max_tokens=0), background=True, **how)
        return None
