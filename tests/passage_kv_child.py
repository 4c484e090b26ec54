"""Ingests, reads ahead, changes and deletes documents, to be killed at any moment; and looks at what is left."""

import random
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from rag.config import AnswerSettings, EngineSettings, RagConfig, load_config
from rag.operations import final_answer
from rag.schemas import AnswerRequest
from rag.service import Service
from retriever.document import TextSource
from retriever.hash_embedder import HashEmbedder

COUNT = 10
QUESTIONS = ("subject 3", "part of document 5", "words in edition 2")


def config_of(folder: Path, model: Path, **engine: object) -> RagConfig:
    settings = {"dtype": "float32", "kv_cache_bytes": 8 * 2**20, "kv_store_bytes": 2**23, "backend": "torch", **engine}
    return load_config(
        data_dir=folder,
        model=str(model),
        embedder=str(model),
        engine=EngineSettings(**settings),
        answer=AnswerSettings(max_tokens=6, stop_repetition=False),
    )


def opened(folder: Path, model: Path, **engine: object) -> Service:
    import torch

    torch.set_num_threads(1)
    return Service(config_of(folder, model, **engine), embedder=HashEmbedder(32))


def text(number: int, version: int) -> str:
    """Return the text of a document; every third one changes with the version."""
    edition = version if number % 3 == 0 else 1
    return f"Part of document {number} tells of subject {number} in edition {edition}."


def documents(version: int) -> list[TextSource]:
    """Return the documents of a version; it lacks one of them, another one each time."""
    return [TextSource(f"d:{n}", text(n, version), f"{n}") for n in range(COUNT) if n != version % COUNT]


def work(folder: Path, model: Path, seed: int, tell: Callable[[str], None]) -> None:
    """Bring the collection to another version and read it ahead, then delete, purge and ask, in a random order."""
    rng = random.Random(seed)
    with opened(folder, model) as service:
        tell("opened")
        service.ingest(
            "docs", documents(rng.randrange(1, 50)), prune_scope=["d:"], progress=lambda event: tell(event.stage)
        )
        for _ in service.precompute("docs"):
            tell("read ahead")
        for step in rng.sample(range(6), 6):
            ids = [document.id for document in service.documents("docs")]
            if step < 3:
                final_answer(service.answer(AnswerRequest(question=QUESTIONS[step], collection="docs", k=3)))
            else:
                service.delete_document("docs", rng.choice(ids), purge=step > 4)
            tell(f"step {step}")
    tell("done")


def complete(folder: Path, model: Path) -> None:
    """Do everything once more, undisturbed: nothing may be missing then, and nothing left over."""
    with opened(folder, model) as service:
        service.ingest("docs", documents(1), prune_scope=["d:"])
        list(service.precompute("docs"))
        plan = service.precompute_plan("docs")
        assert (plan.passages, plan.stored) == (COUNT - 1, COUNT - 1), plan
        assert service.components.store().stats().records == COUNT, "one for each passage, and the template's"
    check(folder, model)


def check(folder: Path, model: Path) -> None:
    """Assert that what a killed process left is whole, and that answers with its KV are those without."""
    with opened(folder, model) as service:
        library, store = service.components.library(), service.components.store()
        assert store is not None
        assert set(store.keys()) <= library.derived.all(), "a record without a living passage"
        assert library.derived.dead() == [], "what has died was removed at the start"
        if not any(collection.documents for collection in service.collections()):
            return
        library.check_invariants("docs")
        texts = {f"d:{n}": {text(n, version) for version in range(50)} for n in range(COUNT)}
        for document in library.documents("docs"):
            assert library.document_text("docs", document.id) in texts[document.uri]
        asked = [*QUESTIONS, *(library.document_text("docs", one.id) for one in library.documents("docs"))]
        found = answers(service, asked)
        assert store.info().bad_records == 0
        assert store.info().hits or not store.info().records, "every passage was asked for by its own words"
    with opened(folder, model, kv_store_bytes=0) as service:
        assert found == answers(service, asked), "stored KV changed an answer"


def answers(service: Service, questions: Sequence[str]) -> list[tuple[str, list[int]]]:
    found = []
    for question in questions:
        answer = final_answer(service.answer(AnswerRequest(question=question, collection="docs", k=1)))
        found.append((answer.answer, [source.passage_id for source in answer.sources]))
    return found


def work_in_child(folder: Path, model: Path, seed: int, pipe: Connection) -> None:
    """Do the work and send a word a step."""
    work(folder, model, seed, pipe.send)
