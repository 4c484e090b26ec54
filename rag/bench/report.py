"""What a run of the prefix benchmark leaves behind: every measurement, and what follows from them.

The summaries can be computed again from `questions` and `records` alone (`summary.py`).
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from rag.bench.environment import Environment
from rag.bench.statistics import Interval, Summary

__all__ = [
    "FORMAT", "MODES", "AnswerComparison", "AskedQuestion", "Mode", "ModeSummary", "PrefixReport", "Ratios", "Recall",
    "Record", "Setting", "Summaries",
]  # fmt: skip

FORMAT = "preread-bench-prefix-1"


class Mode(StrEnum):
    """How a question meets the cache.

    `off`: a cache of its own, empty before and dropped after. `cold`: one cache for the stream, empty at its start.
    `warm`: a cache that has seen the whole stream before.
    """

    OFF = "off"
    COLD = "cold"
    WARM = "warm"


MODES = tuple(Mode)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(_Part):
    """One answer in one mode. Times are in milliseconds.

    Attributes:
        mode: see `Mode`.
        repeat: which pass over the stream, from 0.
        index: place of the question in the stream, from 0.
        question: its place in `PrefixReport.questions`.
        turn: which of the modes of this question was measured first, second, third, from 0.
        ttft_ms: from the question's arrival to its first token: embedding, search, layout, queue and prefill.
        embed_ms: of it, the question's vector.
        search_ms: of it, the search.
        queue_ms: of it, waiting in the engine.
        prefill_ms: of it, computing the prompt and sampling the first token.
        total_ms: from arrival to the last token.
        prompt: digest of the prompt's tokens.
        prompt_tokens: its length.
        passage_tokens: of them, those of passages.
        cached_tokens: prompt tokens whose KV was not computed for this answer.
        passage_hit_tokens: of them, those of passages.
        hit_tokens: cached tokens by the outcome of their segment; `computed` are leading blocks of a segment whose
            rest was computed.
        passage_outcomes: passages by outcome.
        answer_tokens: token ids of the answer.
        finish_reason: why it ended.
    """

    mode: Mode
    repeat: int
    index: int
    question: int
    turn: int
    ttft_ms: float
    embed_ms: float
    search_ms: float
    queue_ms: float
    prefill_ms: float
    total_ms: float
    prompt: str
    prompt_tokens: int
    passage_tokens: int
    cached_tokens: int
    passage_hit_tokens: int
    hit_tokens: dict[str, int]
    passage_outcomes: dict[str, int]
    answer_tokens: list[int]
    finish_reason: str


class AskedQuestion(_Part):
    """A distinct question of the stream and what the retriever found for it.

    Attributes:
        text: the question.
        gold_uris: documents that answer it.
        gold_rank: rank, from 1, of the first passage that holds a gold text; null where none of the k does.
        passage_ids: what was found, best first; strings, because they have 64 bits.
        scores: of those passages.
    """

    text: str
    gold_uris: list[str]
    gold_rank: int | None
    passage_ids: list[str]
    scores: list[float]


class Setting(_Part):
    """What was measured: stream, collection, models, engine.

    Attributes:
        questions: length of the stream.
        workload_seed: that the stream was drawn with.
        seed: of the order of the modes and of the intervals.
    """

    corpus: str
    corpus_source: str
    documents: int
    passages: int
    passage_tokens: int
    model: str
    embedder: str
    dtype: str
    backend: str
    device: str
    block_size: int
    kv_blocks: int
    questions: int
    zipf_s: float
    popularity: str
    k: int
    max_tokens: int
    workload_seed: int
    seed: int
    repeats: int


class ModeSummary(_Part):
    """A mode over every measured question; rates are shares of all prompt or passage tokens, 0 to 1."""

    ttft_ms: Summary
    prefill_ms: Summary
    prompt_tokens: int
    cached_tokens: int
    hit_rate: float
    passage_hit_rate: float
    hit_tokens: dict[str, int]
    passage_outcomes: dict[str, int]


class Ratios(_Part):
    """How many times shorter than with the cache off, with 95 % intervals.

    Attributes:
        ttft: median of the per-question ratios.
        prefill: the same of the prefill.
        mean_ttft: ratio of the means. It tells more of the cold cache, where a question hits nearly all or nearly
            nothing and the median is one of the two.
        mean_prefill: the same of the prefill.
    """

    ttft: Interval
    prefill: Interval
    mean_ttft: Interval
    mean_prefill: Interval


class AnswerComparison(_Part):
    """Answers whose token ids differ from those with the cache off, which rounding alone can cause.

    Attributes:
        compared: how many answers.
        differing: how many of them differ.
        records: `[repeat, index]` of those.
    """

    compared: int
    differing: int
    records: list[tuple[int, int]]


class Recall(_Part):
    """Share of questions with a gold text among the first n passages, by n.

    Attributes:
        distinct: every question once.
        stream: as often as it was asked.
    """

    distinct: dict[int, float]
    stream: dict[int, float]


class Summaries(_Part):
    """What follows from the records; ratios and answers compare `cold` and `warm` with `off`."""

    measured: int
    distinct_questions: int
    distinct_passages: int
    modes: dict[Mode, ModeSummary]
    off_over: dict[Mode, Ratios]
    answers: dict[Mode, AnswerComparison]
    recall: Recall


class PrefixReport(_Part):
    """The whole run.

    Attributes:
        format: of this file.
        interrupted: the stream was not measured to its end.
        problems: self-checks that failed; the figures are void where there is one.
        warnings: what a reader of the figures has to know.
        seconds: the measurement took, without ingestion and loading.
        evicted_blocks: KV blocks that had to make room meanwhile.
    """

    format: str = FORMAT
    setting: Setting
    environment: Environment
    interrupted: bool
    problems: list[str]
    warnings: list[str]
    seconds: float
    evicted_blocks: int
    summaries: Summaries
    questions: list[AskedQuestion]
    records: list[Record]
