"""The fidelity benchmark: how far the next-token distributions of each way to compute are from float32's.

Real prompts (questions with their retrieved passages), the reference's greedy answers, teacher-forced through the
engine itself: passages cached, the question and the answer's tokens in the steps and with the weights that a user's
would have.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from data.corpora import load_corpus
from data.questions import make_questions
from engine.config import DTYPES, WEIGHTS, EngineConfig
from engine.engine import Engine
from engine.errors import ConfigError
from engine.models.config import ModelConfig
from engine.prompt import Prompt
from rag.bench.checks import check_at_least_one, check_corpus
from rag.bench.collection import ingest_corpus, with_collection
from rag.bench.environment import RunClock
from rag.bench.fidelity_report import AnswerFidelity, ChoiceFidelity, FidelityReport, FidelitySetting
from rag.bench.progress import Counter, Progress
from rag.bench.statistics import ratio_of_means
from rag.bench.teacher import Dictated, Teacher
from rag.config import RagConfig
from rag.data_dir import open_owned
from rag.errors import InvalidRequestError
from rag.model_hub import ModelHub
from rag.service import Service
from retriever.embedder import TextEmbedder

__all__ = ["FidelityBenchConfig", "compare", "run", "summary_of"]

KV_BYTES = 512 << 20  # a prompt at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityBenchConfig:
    """What to measure.

    Attributes:
        corpus: of `data.corpora`.
        questions: how many.
        k: passages a question.
        max_tokens: length of an answer at most.
        dtypes: compute modes.
        weights: of rows whose KV is never published; every one with every compute mode.
        seed: of questions and intervals.
        work_dir: where collections of benchmarks are kept; None is a folder in the user's cache.

    Raises:
        InvalidRequestError: a value that cannot work.
    """

    corpus: str = "python-topics"
    questions: int = 12
    k: int = 2
    max_tokens: int = 48
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16", "int8")
    weights: tuple[str, ...] = ("full", "int8")
    seed: int = 0
    work_dir: Path | None = None

    def __post_init__(self) -> None:
        check_at_least_one(self, ("questions", "k", "max_tokens"))
        check_corpus(self.corpus)
        for name, known in (("dtypes", DTYPES), ("weights", WEIGHTS)):
            for value in getattr(self, name):
                if value not in known:
                    raise InvalidRequestError(f"{name} has {value!r}; choose from: {', '.join(known)}")


def run(
    config: RagConfig, bench: FidelityBenchConfig, progress: Progress, *, embedder: TextEmbedder | None = None
) -> FidelityReport:
    """Measure every choice against float32 on the reference kernels.

    Args:
        config: models, engine and splitting; its data directory is not touched.
        bench: what to measure.
        progress: called as it advances, in the calling thread.
        embedder: used instead of the configured one (tests).

    Raises:
        QuestionError: the corpus does not give so many questions.
        DataDirBusyError: another benchmark of the same collection is running.
    """
    clock = RunClock()
    questions = [q.text for q in make_questions(load_corpus(bench.corpus), count=bench.questions, seed=bench.seed)]
    prompts = _prompts(config, bench, questions, progress, embedder)
    folder = ModelHub(config.models_dir).resolve(config.model)
    choices = list(product(bench.dtypes, bench.weights))
    advance = Counter(progress, "measure", (1 + len(choices)) * len(prompts)).advance
    base = replace(config.engine.build(), max_draft_tokens=0, kv_cache_bytes=KV_BYTES)
    reference = _answers(folder, base, prompts, bench.max_tokens, advance)
    configured = _configured(folder, base)
    found = [
        _measure(folder, replace(base, dtype=dtype, weights=weights), prompts, reference, bench.seed, advance)
        for dtype, weights in choices
    ]
    return FidelityReport(
        setting=FidelitySetting(
            model=config.model,
            configured=list(configured),
            corpus=bench.corpus,
            questions=questions,
            k=bench.k,
            prompt_tokens=[prompt.num_tokens for prompt in prompts],
            answer_tokens=[len(answer.tokens) for answer in reference],
            max_tokens=bench.max_tokens,
            seed=bench.seed,
        ),
        environment=clock.environment(),
        seconds=clock.seconds,
        choices=found,
    )


def compare(reference: Dictated, other: Dictated) -> AnswerFidelity:
    """Return KL(reference || other) of each token, in nats, in double precision, and whether the likeliest agree."""
    assert reference.tokens == other.tokens, "the answers differ"
    kl, agrees = [], []
    for ours, theirs in zip(reference.logits, other.logits, strict=True):
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        kl.append(max(0.0, float((p.exp() * (p - q)).sum())))
        agrees.append(bool(ours.argmax() == theirs.argmax()))
    return AnswerFidelity(kl=kl, agrees=agrees)


def _prompts(
    config: RagConfig,
    bench: FidelityBenchConfig,
    questions: Sequence[str],
    progress: Progress,
    embedder: TextEmbedder | None,
) -> list[Prompt]:
    """Retrieve passages for each question and lay the prompts out as the pipeline does."""
    corpus = load_corpus(bench.corpus)
    config = with_collection(config, bench.work_dir, corpus)
    with open_owned(config.data_dir), Service(config, embedder=embedder) as service:
        ingest_corpus(service, corpus, progress)
        layout = service.components.layout()
        folder = ModelHub(config.models_dir).resolve(config.model)
        limit = ModelConfig.from_folder(folder).max_position_embeddings - bench.max_tokens
        prompts = []
        for question in questions:
            hits = service.pipeline.preparation.retrieve(question, corpus.name, bench.k).hits
            prompts.append(layout.lay_out(question, [hit.passage for hit in hits], max_tokens=limit).prompt)
    return prompts


def _answers(
    folder: Path, base: EngineConfig, prompts: Sequence[Prompt], max_tokens: int, advance: Callable[[], None]
) -> list[Dictated]:
    """Let the reference answer."""
    teacher = _opened(folder, replace(base, dtype="float32", kv_dtype="auto", weights="full", backend="reference"))
    answers = []
    for prompt in prompts:
        answers.append(teacher.answer(prompt, max_tokens=max_tokens))
        advance()
    return answers


def _opened(folder: Path, config: EngineConfig) -> Teacher:
    return Teacher(Engine.from_pretrained(folder, config))


def _measure(
    folder: Path,
    config: EngineConfig,
    prompts: Sequence[Prompt],
    reference: Sequence[Dictated],
    seed: int,
    advance: Callable[[], None],
) -> ChoiceFidelity:
    """Dictate the reference's answers to an engine of another choice; one that cannot be had says why."""
    try:
        teacher = _opened(folder, config)
        if config.weights == "int8" and teacher.engine.runner.lean is None:
            raise ConfigError(f"backend {teacher.engine.runner.model.backend.name!r} has no 8-bit weights")
    except ConfigError as error:
        for _ in prompts:
            advance()
        return ChoiceFidelity(dtype=config.dtype, weights=config.weights, reason=str(error))
    answers, lean_rows = [], 0
    for prompt, expected in zip(prompts, reference, strict=True):
        dictated = teacher.dictate(prompt, expected.tokens)
        answers.append(compare(expected, dictated))
        lean_rows += dictated.lean_rows
        advance()
    return summary_of(
        answers,
        dtype=config.dtype,
        weights=config.weights,
        backend=teacher.engine.runner.model.backend.name,
        lean_rows=lean_rows,
        seed=seed,
    )


def summary_of(
    answers: Sequence[AnswerFidelity], *, dtype: str, weights: str, backend: str, lean_rows: int, seed: int
) -> ChoiceFidelity:
    """Summarise at least one answer; answers are resampled, since tokens of one answer are not independent."""
    lengths = [float(len(answer.kl)) for answer in answers]
    every = [value for answer in answers for value in answer.kl]
    return ChoiceFidelity(
        dtype=dtype,
        weights=weights,
        backend=backend,
        lean_rows=lean_rows,
        mean_kl=ratio_of_means([sum(answer.kl) for answer in answers], lengths, seed=seed),
        p99_kl=float(np.percentile(every, 99)),
        max_kl=max(every),
        first_kl=sum(answer.kl[0] for answer in answers) / len(answers),
        agreement=ratio_of_means([float(sum(answer.agrees)) for answer in answers], lengths, seed=seed),
        answers=list(answers),
    )


def _configured(folder: Path, base: EngineConfig) -> tuple[str, str]:
    """Return the compute mode and the weights of an answer's tokens that the settings give on this machine."""
    runner = Engine.from_pretrained(folder, replace(base, kv_dtype="auto")).runner
    lean = runner.lean is not None and (runner.lean_rows is None or runner.lean_rows >= 1)
    dtype = str(runner.kv_cache.dtype).removeprefix("torch.") if base.dtype == "auto" else base.dtype
    return dtype, "int8" if lean else "full"
