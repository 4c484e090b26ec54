"""What a suite consists of: experiments, each a workload, the engines that meet it, and how they are driven."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ArrivalKind", "Arrivals", "Check", "Drive", "Experiment", "Suite", "WorkloadKind", "WorkloadSpec"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkloadKind(StrEnum):
    """Where requests come from.

    `questions`: about a real corpus, with retrieval; `documents` and `passages`: RAGCache-style, long documents or
    short passages with a skewed popularity; `fusion`: CacheBlend-style, many passages of one length in random order;
    `orders`: few passages, every time in an order never seen; `conversations`: several turns over the same passages;
    `ragpulse`: a recorded trace; `file`: a saved workload.
    """

    QUESTIONS = "questions"
    DOCUMENTS = "documents"
    PASSAGES = "passages"
    FUSION = "fusion"
    ORDERS = "orders"
    CONVERSATIONS = "conversations"
    RAGPULSE = "ragpulse"
    FILE = "file"


class ArrivalKind(StrEnum):
    """When requests come.

    `turns`: each after the last one's answer, engines taking turns at every request; `closed`: so many clients, each
    asking again when it is answered; `poisson`, `bursty` (gamma gaps) and `recorded` (as in the trace, scaled): at
    their time, whatever the engine does.
    """

    TURNS = "turns"
    CLOSED = "closed"
    POISSON = "poisson"
    BURSTY = "bursty"
    RECORDED = "recorded"


class Arrivals(_Part):
    """When requests come.

    Attributes:
        kind: of the process.
        rate: requests a second on average; for poisson and bursty.
        cv: coefficient of variation of the gaps, for bursty.
        clients: that ask at once, for closed.
        scale: recorded times are multiplied by it.
    """

    kind: ArrivalKind = ArrivalKind.TURNS
    rate: float | None = Field(default=None, gt=0)
    cv: float = Field(default=3.0, gt=0)
    clients: int = Field(default=1, ge=1)
    scale: float = Field(default=1.0, gt=0)


class WorkloadSpec(_Part):
    """A stream of requests, drawn from a seed.

    Attributes:
        kind: where they come from.
        count: how many; of a file or a trace, at most.
        seed: of every draw.
        k: passages a request; None is the kind's own number.
        length: tokens of a passage, for kinds without real text; None is the kind's own.
        pool: distinct passages, documents or questions to draw from; None is the kind's own.
        skew: Zipf exponent over documents or questions; None is the kind's own.
        turns: of a conversation.
        question_tokens: length of a question, for kinds without real text.
        output_tokens: of an answer, no more and no less.
        corpus: name of a corpus, or a folder of documents, for questions.
        path: of a saved workload or of a trace's folder.
        first: which request of a file or a trace comes first.
        arrivals: when they come.
    """

    kind: WorkloadKind
    count: int = Field(ge=1)
    seed: int = 0
    k: int | None = Field(default=None, ge=1)
    length: int | None = Field(default=None, ge=1)
    pool: int | None = Field(default=None, ge=1)
    skew: float | None = Field(default=None, ge=0)
    turns: int = Field(default=4, ge=1)
    question_tokens: int = Field(default=32, ge=1)
    output_tokens: int = Field(default=16, ge=1)
    corpus: str = "python-topics"
    path: str | None = None
    first: int = Field(default=0, ge=0)
    arrivals: Arrivals = Arrivals()


class Drive(StrEnum):
    """How an experiment is run.

    `turns`: one request at a time, engines taking turns; `load`: each engine alone, requests at their times; `goodput`:
    the same at rising rates; `quality`: answers against those of full prefill; `simulation`: hit rates by cache size
    and policy, without a model.
    """

    TURNS = "turns"
    LOAD = "load"
    GOODPUT = "goodput"
    QUALITY = "quality"
    SIMULATION = "simulation"


class Check(StrEnum):
    """What the records of an experiment must show, so that the benchmark is one that can fail.

    `reuse-off`: `preread-off` hits nothing where `preread-exact` does, and is as fast as `preread-off#2`;
    `wrong-shift`: reuse that attends at a wrong shift is seen in its quality; `seed`: the seed alone decides what is
    asked; `short`: an engine that gives too few tokens is found out at every answer; `generator`: driving costs less
    than 2 % of the machine.
    """

    REUSE_OFF = "reuse-off"
    WRONG_SHIFT = "wrong-shift"
    SEED = "seed"
    SHORT = "short"
    GENERATOR = "generator"


class Experiment(_Part):
    """A question put to several engines.

    Attributes:
        name: unique in its suite; letters, digits and hyphens.
        title: what it shows, for tables and plots.
        drive: how it is run.
        workload: the requests, the same for all.
        contestants: names, see `contestant.py`; those that are not there are skipped.
        repeats: whole passes; engines change places from one to the next.
        warmup: requests at the beginning of each pass that are reported apart.
        estimate: seconds that it takes on the reference machine, to begin the estimate of the time left with.
        repairs: tokens recomputed a passage, for quality.
        checks: what its records must show.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    title: str
    drive: Drive
    workload: WorkloadSpec
    contestants: tuple[str, ...] = ()
    repeats: int = Field(default=1, ge=1)
    warmup: int = Field(default=0, ge=0)
    estimate: float = Field(default=60.0, gt=0)
    repairs: tuple[int, ...] = ()
    checks: tuple[Check, ...] = ()

    @model_validator(mode="after")
    def _check_repairs(self) -> "Experiment":
        if Check.WRONG_SHIFT in self.checks and not self.repairs:
            raise ValueError("a wrong shift is compared with the right one at the first of the repairs: name one")
        return self


class Suite(_Part):
    """Experiments that are run together."""

    name: str
    experiments: tuple[Experiment, ...]
