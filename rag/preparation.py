"""From a question to a prompt: find passages, put them in order, lay them out."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine.prompt import Reuse
from rag.answer import source_of
from rag.answering import answering_of, filled_in
from rag.caller import CHAT, NOBODY, Caller
from rag.components import Components
from rag.dialogue import Dialogues, said_before, search_query
from rag.errors import NoPassagesError
from rag.living_store import claims_of, namespace_of
from rag.overlap import Overlap
from rag.sampling import sampling_params
from rag.schemas import AnswerRequest, Source
from retriever.ingest import check_embedder
from retriever.search import ignore_candidates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.config import SamplingParams
    from engine.prompt import Prompt
    from rag.config import RagConfig
    from rag.prompt_layout import LaidOut
    from retriever.document import Hit
    from retriever.records import Collection

__all__ = ["Preparation", "Prepared", "Retrieved", "tied_groups"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Passages by falling score in groups that tie, of a collection as it was, and how many milliseconds that took."""

    groups: "tuple[tuple[Hit, ...], ...]"
    collection: "Collection"
    embed_ms: float
    search_ms: float

    @property
    def hits(self) -> "tuple[Hit, ...]":
        """The passages, best first."""
        return tuple(hit for group in self.groups for hit in group)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question that is ready for the engine.

    Attributes:
        request: what was asked, with what the collection's settings say where it says nothing.
        started: when the question arrived, in seconds of `time.perf_counter`.
        prompt: template, passages, tail.
        sampling: how the engine chooses tokens.
        namespace: the collection's tree of cached KV.
        as_of: the collection's generation before the search.
        reuse: which cached KV may serve.
        groups: sizes of consecutive passages of the prompt that may change places; empty where none may.
        caller: who asks.
        sources: the passages of the prompt, numbered by rank.
        warnings: what could not be used, and why.
        overlap: what was begun for it; drop it when the question is not submitted.
        embed_ms: time spent on the question's vector.
        search_ms: time spent on the search.
    """

    request: AnswerRequest
    started: float
    prompt: "Prompt"
    sampling: "SamplingParams"
    namespace: str
    as_of: int
    reuse: Reuse
    groups: tuple[int, ...]
    caller: Caller
    sources: tuple[Source, ...]
    warnings: tuple[str, ...]
    overlap: Overlap
    embed_ms: float
    search_ms: float

    @property
    def most_tokens(self) -> int:
        """What prompt and answer may come to."""
        return self.prompt.num_tokens + self.sampling.max_tokens

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `Engine.submit` besides prompt and sampling."""
        return {
            "namespace": self.namespace,
            "as_of": self.as_of,
            "reuse": self.reuse,
            "groups": self.groups,
            "principal": self.caller.principal,
            "conversation": self.caller.conversation,
            "deadline": self.caller.deadline,
        }


class Preparation:
    """Prepares questions to collections.

    Args:
        components: embedder, library, layout and engine.
        config: settings.
        dialogues: knows what was said before.
    """

    def __init__(self, components: Components, config: "RagConfig", dialogues: Dialogues) -> None:
        self._components = components
        self._config = config
        self._dialogues = dialogues

    def retrieve(
        self,
        query: str,
        collection: str,
        k: int | None,
        overlap: Overlap | None = None,
        where: "Mapping[str, Any] | None" = None,
    ) -> Retrieved:
        """Embed a question and find the k closest passages, near ties in a fixed order; tell `overlap` candidates.

        With `where`, they are the k closest of those whose documents fit that condition.
        """
        library = self._components.library()
        row = library.collection(collection)
        check_embedder(row, self._components.embedder())
        started = perf_counter()
        vector = library.embed_query(query)
        embedded = perf_counter()
        begin = partial(overlap.begin, row) if overlap else ignore_candidates
        k = k or answering_of(row).k or self._config.top_k
        hits = library.search(collection, vector, k, where=where, on_candidates=begin)
        groups = tied_groups(hits, self._config.answer.order_epsilon)
        return Retrieved(groups, row, 1e3 * (embedded - started), _since(embedded))

    def prepare(self, request: AnswerRequest, caller: Caller = NOBODY) -> Prepared:
        """Retrieve passages and lay the prompt out, best passages first while they fit."""
        started = perf_counter()
        if request.history and caller.conversation is None:
            caller = replace(caller, conversation=CHAT)
        request = filled_in(request, self._components.library().collection(request.collection))
        overlap = Overlap(self._components, self._config.answer, self._reuse(request))
        with overlap:
            return self._prepare(request, caller, overlap, started)

    def _prepare(self, request: AnswerRequest, caller: Caller, overlap: Overlap, started: float) -> Prepared:
        query = search_query(request.question, said_before(request))
        found = self.retrieve(query, request.collection, request.k, overlap, request.where)
        if not found.hits:
            raise _no_passages(request)
        max_tokens = request.max_tokens or self._config.answer.max_tokens
        limit = self._limit(len(found.hits))
        laid_out = self._components.layout_of(found.collection).lay_out(
            request.question,
            [hit.passage for hit in found.hits],
            max_tokens=limit - min(max_tokens, limit // 4),
            history=self._dialogues.history(request, caller, self._components.tokenizer()),
            instructions=request.instructions or "",
        )
        used = {passage.id for passage in laid_out.passages}
        hits = [hit for hit in found.hits if hit.passage.id in used]
        overlap.settle([hit.passage.id for hit in hits])
        self._components.library().popularity.note(used)
        self._expect_kv(found.collection.id, laid_out.prompt)
        return Prepared(
            request=request,
            started=started,
            prompt=laid_out.prompt,
            sampling=sampling_params(request, min(max_tokens, limit - laid_out.prompt.num_tokens)),
            namespace=namespace_of(found.collection.id),
            as_of=found.collection.generation,
            reuse=overlap.reuse,
            groups=self._movable(request, found, used),
            caller=caller,
            sources=tuple(source_of(n, hit) for n, hit in enumerate(hits, 1)),
            warnings=tuple(_warnings(laid_out, limit)),
            overlap=overlap,
            embed_ms=found.embed_ms,
            search_ms=found.search_ms,
        )

    def _reuse(self, request: AnswerRequest) -> Reuse:
        """Return which cached KV may serve; no more than is exact once answers were found to drift."""
        wanted = Reuse(request.reuse or self._config.answer.reuse)
        shadow = self._components.shadow.if_made
        return shadow.reuse(wanted) if shadow else wanted

    def _expect_kv(self, collection_id: int, prompt: "Prompt") -> None:
        """Tell the KV store whose KV this prompt may give it."""
        if store := self._components.store.if_made:
            head, *passages, _ = prompt.segments
            identity = self._components.worker().engine.identity
            store.expect(claims_of(identity, collection_id, head, passages))

    def _movable(self, request: AnswerRequest, found: Retrieved, used: set[int]) -> tuple[int, ...]:
        """Return the sizes of groups of passages that may change places; empty where each is alone in its group."""
        if (request.order or self._config.answer.order) == "cache":
            return (len(used),)
        sizes = [sum(hit.passage.id in used for hit in group) for group in found.groups]
        return tuple(size for size in sizes if size) if max(sizes) > 1 else ()

    def _limit(self, num_passages: int) -> int:
        """How many tokens a prompt with so many passages and its answer may have, by context and by blocks."""
        engine = self._components.worker().engine
        segments = num_passages + 2  # each begins a block of its own
        blocks = engine.cache.pool.num_blocks - segments
        return min(engine.max_model_len, blocks * engine.config.block_size)


def _no_passages(request: AnswerRequest) -> NoPassagesError:
    if request.where:
        return NoPassagesError(
            f"no document of collection {request.collection!r} fits the condition {request.where}; "
            "look at its documents' metadata, and ask with another `where`"
        )
    return NoPassagesError(
        f"collection {request.collection!r} has no passages to answer from; "
        f"add documents with `rag ingest PATH --collection {request.collection}`"
    )


def _warnings(laid_out: "LaidOut", limit: int) -> Iterator[str]:
    if laid_out.left_out:
        num_passages = len(laid_out.passages) + len(laid_out.left_out)
        labels = ", ".join(f"{passage.label} ({passage.title})" for passage in laid_out.left_out)
        message = (
            f"{len(laid_out.left_out)} of {num_passages} passages did not fit the {limit} tokens of prompt and "
            f"answer and were left out: {labels}; ask for fewer passages (k) or a shorter answer"
        )
        logger.info(message)
        yield message


def tied_groups(hits: "Sequence[Hit]", epsilon: float) -> "tuple[tuple[Hit, ...], ...]":
    """Group hits, best first: those within `epsilon` of the first of their group tie, and are put by passage id."""
    groups: list[list[Hit]] = []
    for hit in hits:
        if not groups or groups[-1][0].score - hit.score > epsilon:
            groups.append([])
        groups[-1].append(hit)
    return tuple(tuple(sorted(group, key=lambda item: item.passage.id)) for group in groups)


def _since(moment: float) -> float:
    return 1e3 * (perf_counter() - moment)
