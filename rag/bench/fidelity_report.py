"""What a run of the fidelity benchmark leaves behind."""

from pydantic import BaseModel, ConfigDict

from rag.bench.environment import Environment
from rag.bench.statistics import Interval

__all__ = ["FORMAT", "AnswerFidelity", "ChoiceFidelity", "FidelityReport", "FidelitySetting"]

FORMAT = "preread-bench-fidelity-1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerFidelity(_Part):
    """One answer, token by token.

    Attributes:
        kl: of each next-token distribution from the reference's, KL(reference || choice), in nats.
        agrees: whether each most likely token is the reference's.
    """

    kl: list[float]
    agrees: list[bool]


class ChoiceFidelity(_Part):
    """How far a way to compute is from the reference.

    Attributes:
        dtype: compute mode.
        weights: of the rows whose KV is never published.
        backend: kernels that computed it.
        lean_rows: rows that 8-bit weights computed, of those whose distribution was compared.
        mean_kl: nats a token, with the 95 % interval of resampled answers.
        p99_kl: of the tokens.
        max_kl: of the tokens.
        first_kl: mean of the answers' first tokens, whose rows are those of the question.
        agreement: share of tokens with the reference's most likely one, with its interval.
        answers: every measurement.
        reason: why it was not measured, where it was not.
    """

    dtype: str
    weights: str
    backend: str = ""
    lean_rows: int = 0
    mean_kl: Interval | None = None
    p99_kl: float | None = None
    max_kl: float | None = None
    first_kl: float | None = None
    agreement: Interval | None = None
    answers: list[AnswerFidelity] = []
    reason: str | None = None


class FidelitySetting(_Part):
    """What was measured.

    Attributes:
        configured: compute mode, and weights of an answer's tokens, that the settings give on this machine.
        prompt_tokens: of each prompt.
        answer_tokens: of each answer: those that the reference chose greedily, at most `max_tokens`.
    """

    model: str
    configured: list[str]
    corpus: str
    questions: list[str]
    k: int
    prompt_tokens: list[int]
    answer_tokens: list[int]
    max_tokens: int
    seed: int


class FidelityReport(_Part):
    """The whole run; the reference is float32 on the reference kernels."""

    format: str = FORMAT
    setting: FidelitySetting
    environment: Environment
    seconds: float
    choices: list[ChoiceFidelity]
