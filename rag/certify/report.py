"""What a run of the test leaves behind."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from engine.certificate import Band, CertificateRow, Interval
from rag.bench.environment import Environment
from rag.certify.figures import SetFigures
from rag.certify.judgement import estimate

__all__ = ["AnswerRow", "CertifyReport", "CertifySetting", "answer_rows"]

FORMAT = "preread-certify-2"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CertifySetting(_Part):
    """What was tested.

    Attributes:
        corpus: built-in corpus or collection.
        sets: questions a stage.
        ks: passages a question.
        template: whether passages were read after the template when their KV was made for reuse.
    """

    model: str
    compute_mode: str
    kv_dtype: str
    corpus: str
    sets: int
    ks: tuple[int, ...]
    repairs: tuple[int, ...]
    max_tokens: int
    orders: int
    seed: int
    template: bool


class AnswerRow(_Part):
    """Answers that one way gave when it was free to; means over sets.

    Attributes:
        passages: retrieved passages a question (k).
        way: full, reordered, repair N or no passages.
        f1_full: token F1 against the answers of full prefill.
        f1_gold: token F1 against the gold texts.
        has_gold: share of answers that contain one.
    """

    passages: int
    way: str
    f1_full: Interval
    f1_gold: Interval
    has_gold: Interval


class CertifyReport(_Part):
    """The whole run.

    Attributes:
        rows: every row that the choice is based on.
        answers: empty where answers were not asked for.
        bands: the numbers of passages that passed, with the smallest repair of each; empty where nothing did.
        certificate: file of the certificate, or None where none was written.
        seconds: of this run.
        measured: questions measured in this run; the others were measured before.
    """

    format: str = FORMAT
    setting: CertifySetting
    environment: Environment
    rows: tuple[CertificateRow, ...]
    answers: tuple[AnswerRow, ...]
    bands: tuple[Band, ...]
    certificate: str | None
    seconds: float
    measured: int


def answer_rows(sets: Mapping[int, Sequence[SetFigures]], *, seed: int) -> Iterable[AnswerRow]:
    """Summarise the free answers of each number of passages; nothing where there are none."""
    for k, figures in sets.items():
        for way in figures[0].answers:
            scores = [one.answers[way] for one in figures]
            yield AnswerRow(
                passages=k,
                way=way,
                f1_full=estimate([score.f1_full for score in scores], seed=seed),
                f1_gold=estimate([score.f1_gold for score in scores], seed=seed),
                has_gold=estimate([float(score.has_gold) for score in scores], seed=seed),
            )
