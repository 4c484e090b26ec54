"""The benchmark of drafts: the same answers with and without them, on prompts that invite quoting or do not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from data.corpora import load_corpus
from engine.config import SamplingParams
from engine.drafts import Drafts
from engine.engine import Engine
from engine.output import Generation
from rag.bench.checks import check_at_least_one, check_corpus
from rag.bench.draft_cases import KINDS, DraftCase, make_cases
from rag.bench.drafts_report import AnswerTimes, DraftsReport, DraftsSetting, KindResult
from rag.bench.environment import RunClock
from rag.bench.progress import BenchEvent, Progress
from rag.bench.statistics import ratio_of_means
from rag.config import RagConfig
from rag.errors import InvalidRequestError
from rag.model_hub import ModelHub

__all__ = ["DraftsBenchConfig", "run"]

MAX_DRAFT_TOKENS = 16  # where the settings turn drafts off
SHORTEST = 8  # tokens of an answer whose time says something


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftsBenchConfig:
    """What to measure.

    Attributes:
        corpus: of `data.corpora`, where passages and questions come from.
        kinds: of prompts; none means all of them.
        prompts: of each kind.
        batch: prompts that are answered at once.
        max_tokens: length of an answer at most.
        repeats: of every batch, with and without drafts.
        seed: of the prompts, and of sampled answers.

    Raises:
        InvalidRequestError: a value that cannot work.
    """

    corpus: str = "python-topics"
    kinds: tuple[str, ...] = ()
    prompts: int = 8
    batch: int = 1
    max_tokens: int = 128
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least_one(self, ("prompts", "batch", "max_tokens", "repeats"))
        check_corpus(self.corpus)
        for kind in self.kinds:
            if kind not in KINDS:
                raise InvalidRequestError(f"kinds has {kind!r}; choose from: {', '.join(KINDS)}")


def run(config: RagConfig, bench: DraftsBenchConfig, progress: Progress) -> DraftsReport:
    """Measure; the first answers to each batch, which fill the cache and warm the machine, do not count.

    Args:
        config: model and engine; its data directory is not touched.
        bench: what to measure.
        progress: called as it advances, in the calling thread.

    Raises:
        UnknownModelError: the model is not here.
        QuestionError: the corpus gives no questions.
    """
    clock = RunClock()
    settings = config.engine.build()
    longest = settings.max_draft_tokens or MAX_DRAFT_TOKENS
    settings = replace(settings, max_num_seqs=max(settings.max_num_seqs, bench.batch))
    engine = Engine.from_pretrained(ModelHub(config.models_dir).resolve(config.model), settings)
    kinds = bench.kinds or KINDS
    cases = make_cases(engine.tokenizer, load_corpus(bench.corpus), kinds, bench.prompts, bench.seed)
    results = []
    for done, kind in enumerate(kinds):
        progress(BenchEvent("measure", done, len(kinds)))
        chosen = [case for case in cases if case.kind == kind]
        batches = [chosen[at : at + bench.batch] for at in range(0, len(chosen), bench.batch)]
        answers = [_measure(engine, batch, bench, longest) for batch in batches]
        results.append(_result(kind, [times for times in answers if times is not None], bench.seed))
    progress(BenchEvent("measure", len(kinds), len(kinds)))
    return DraftsReport(
        setting=DraftsSetting(
            model=config.model,
            dtype=str(engine.runner.kv_cache.dtype).removeprefix("torch."),
            corpus=bench.corpus,
            prompts=bench.prompts,
            batch=bench.batch,
            max_tokens=bench.max_tokens,
            max_draft_tokens=longest,
            repeats=bench.repeats,
            seed=bench.seed,
        ),
        environment=clock.environment(),
        warnings=clock.warnings,
        seconds=clock.seconds,
        kinds=results,
    )


def _measure(engine: Engine, batch: Sequence[DraftCase], bench: DraftsBenchConfig, longest: int) -> AnswerTimes | None:
    """Answer a batch with and without drafts by turns; None where the answers are too short to be timed."""
    without, with_drafts = Drafts(0), Drafts(longest)
    times: dict[Drafts, list[float]] = {without: [], with_drafts: []}
    answers: dict[Drafts, list[tuple[int, ...]]] = {}
    _answer(engine, batch, bench, without)
    before = replace(engine.totals)
    for repeat in range(bench.repeats):
        for drafts in (without, with_drafts) if repeat % 2 == 0 else (with_drafts, without):
            generations = _answer(engine, batch, bench, drafts)
            if (seconds := _seconds_a_token(generations)) is None:
                return None
            times[drafts].append(seconds)
            answers[drafts] = [generation.token_ids for generation in generations]
    return AnswerTimes(
        without=median(times[without]),
        with_drafts=median(times[with_drafts]),
        drafted=(engine.totals.drafted_tokens - before.drafted_tokens) // bench.repeats,
        accepted=(engine.totals.accepted_tokens - before.accepted_tokens) // bench.repeats,
        tokens=sum(map(len, answers[with_drafts])),
        same=answers[without] == answers[with_drafts],
    )


def _answer(engine: Engine, batch: Sequence[DraftCase], bench: DraftsBenchConfig, drafts: Drafts) -> list[Generation]:
    engine.scheduler.drafts = drafts
    requests = [
        engine.submit(
            case.prompt,
            SamplingParams(max_tokens=bench.max_tokens, temperature=case.temperature, seed=bench.seed),
            namespace="bench-drafts",
        )
        for case in batch
    ]
    generations = []
    for request in requests:
        *_, generation = engine.stream(request)
        assert isinstance(generation, Generation), f"request {request.id} ended with {generation}"
        generations.append(generation)
    return generations


def _seconds_a_token(generations: Sequence[Generation]) -> float | None:
    """The decode time of a batch over the tokens after each first one; None for very short answers."""
    tokens = sum(len(generation.token_ids) - 1 for generation in generations)
    if tokens < SHORTEST * len(generations):
        return None
    first = [generation.timings.first_token or 0.0 for generation in generations]
    finished = [generation.timings.finished or 0.0 for generation in generations]
    return (max(finished) - max(first)) / tokens


def _result(kind: str, answers: list[AnswerTimes], seed: int) -> KindResult:
    speedup = None
    if answers:
        pairs = [a.without for a in answers], [a.with_drafts for a in answers]
        speedup = ratio_of_means(*pairs, seed=seed)
    return KindResult(kind=kind, speedup=speedup, answers=answers)
