"""The prompts that the pipeline would lay out: questions with their passages, over a corpus or the user's documents."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.corpora import Corpus, load_corpus
from engine.models.config import ModelConfig
from engine.prompt import Prompt
from rag.bench.collection import collection_dir, ingest_corpus
from rag.bench.progress import Counter, Progress
from rag.certify.config import CertifyConfig
from rag.certify.questions import Asked, ask_corpus, ask_file, ask_passages
from rag.config import RagConfig
from rag.data_dir import open_owned
from rag.errors import InvalidRequestError, QuestionTooLongError
from rag.model_hub import ModelHub
from rag.service import Service
from retriever.document import Passage

if TYPE_CHECKING:
    from retriever.embedder import TextEmbedder

__all__ = ["Probe", "make_probes"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A question with its prompts by number of passages, every one a prefix of the next one's passages."""

    asked: Asked
    prompts: Mapping[int, Prompt]


def make_probes(
    config: RagConfig, certify: CertifyConfig, progress: Progress, embedder: "TextEmbedder | None"
) -> list[Probe]:
    """Retrieve passages and lay out prompts for both stages; the collection is closed again when they are there.

    Args:
        config: models, splitting and prompt; the data directory of the user's own collection.
        certify: what to test.
        progress: called as it advances.
        embedder: used instead of the configured one (tests).

    Raises:
        InvalidRequestError: too few questions or passages for what is asked.
        DataDirBusyError: another process owns the data directory.
    """
    corpus = load_corpus(certify.corpus) if certify.corpus else None
    if corpus is not None:
        config = config.model_copy(update={"data_dir": collection_dir(config, certify.work_dir, corpus)})
    collection = corpus.name if corpus is not None else certify.collection
    wanted = 2 * certify.sets
    with open_owned(config.data_dir), Service(config, embedder=embedder) as service:
        if corpus is not None:
            ingest_corpus(service, corpus, progress)
        asked = _questions(service, certify, corpus)
        if len(asked) < wanted:
            raise InvalidRequestError(
                f"{collection!r} gives {len(asked)} questions, and {certify.sets} sets need {wanted}, since the chosen "
                f"repair is confirmed on fresh ones: lower --sets to {len(asked) // 2}"
            )
        folder = ModelHub(config.models_dir).resolve(config.model)
        room = ModelConfig.from_folder(folder).max_position_embeddings - certify.max_tokens
        counter, probes = Counter(progress, "retrieve", wanted), []
        for one in asked[:wanted]:
            probes.append(_lay_out(service, one, collection, certify.ks, room=room))
            counter.advance()
    return probes


def _questions(service: Service, certify: CertifyConfig, corpus: Corpus | None) -> list[Asked]:
    if corpus is not None:
        return ask_corpus(corpus, seed=certify.seed)
    if certify.questions is not None:
        return ask_file(certify.questions)
    return ask_passages(service.components.library().passages(certify.collection), seed=certify.seed)


def _lay_out(service: Service, asked: Asked, collection: str, ks: Sequence[int], *, room: int) -> Probe:
    """Retrieve passages for the greatest k and lay a prompt out for every k, as the pipeline does.

    Args:
        service: with the collection.
        asked: the question.
        collection: its name.
        ks: numbers of passages.
        room: tokens that a prompt may have.

    Raises:
        InvalidRequestError: the collection has too few passages, or they do not fit the model's context.
    """
    hits = service.pipeline.preparation.retrieve(asked.question, collection, max(ks)).hits
    if len(hits) < max(ks):
        raise InvalidRequestError(
            f"{max(ks)} passages a question asked for, collection {collection!r} has {len(hits)}: lower --k"
        )
    return Probe(asked, dict(_prompts(service, asked, [hit.passage for hit in hits], ks, room)))


def _prompts(
    service: Service, asked: Asked, passages: Sequence[Passage], ks: Sequence[int], room: int
) -> Iterator[tuple[int, Prompt]]:
    layout = service.components.layout()
    for k in ks:
        try:
            laid_out = layout.lay_out(asked.question, passages[:k], max_tokens=room)
        except QuestionTooLongError as error:
            raise InvalidRequestError(str(error)) from error
        if laid_out.left_out:
            raise InvalidRequestError(
                f"{k} passages do not fit the {room} tokens that the model's context leaves for a prompt: lower --k"
            )
        yield k, laid_out.prompt
