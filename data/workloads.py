"""Streams of questions with a known skew and arrival times, kept in a file so that they can be replayed."""

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from data.errors import WorkloadError
from data.questions import Gold, Question

__all__ = ["Arrival", "Popularity", "Workload", "zipf_workload"]

Popularity = Literal["question", "document"]
Kinds = Mapping[str, type | tuple[type, ...]]  # of a record's fields
FORMAT = "preread-workload-1"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A question and when it comes, in seconds from the start."""

    time: float
    question: Question


@dataclass(frozen=True, slots=True)
class Workload:
    """A stream of questions.

    Attributes:
        corpus: name of the corpus that the questions are about, or its folder.
        seed: that it was drawn with.
        s: Zipf exponent; 0 is uniform.
        rate: arrivals a second on average; None means that all are there at time 0.
        popularity: what the skew is over.
        arrivals: by ascending time.
        settings: of whoever drew it, beside these; whatever JSON holds.
    """

    corpus: str
    seed: int
    s: float
    rate: float | None
    popularity: Popularity
    arrivals: tuple[Arrival, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON lines, the settings first and then one arrival a line, in one step."""
        settings = {
            "format": FORMAT,
            "corpus": self.corpus,
            "seed": self.seed,
            "s": self.s,
            "rate": self.rate,
            "popularity": self.popularity,
            "settings": dict(self.settings),
        }
        lines = [settings, *({"time": one.time, **asdict(one.question)} for one in self.arrivals)]
        partial = path.with_name(f"{path.name}.part")
        partial.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Workload":
        """Read what `save` wrote.

        Raises:
            WorkloadError: the file is missing or a line is malformed; the message has its number.
        """
        number = 0
        try:
            with path.open(encoding="utf-8") as file:
                number, settings = 1, json.loads(file.readline())
                if settings.pop("format") != FORMAT:
                    raise ValueError(f"the format is not {FORMAT}")
                _check_settings(settings)
                arrivals = []
                for number, line in enumerate(file, start=2):  # noqa: B007 - the message below names it
                    arrivals.append(_arrival(json.loads(line)))
                    if not arrivals[-1].time >= (arrivals[-2].time if arrivals[1:] else 0.0):
                        raise ValueError(f"time {arrivals[-1].time:g} is before the line above it")
                if not arrivals:
                    raise ValueError("it holds no question")
                return cls(**settings, arrivals=tuple(arrivals))
        except OSError as error:
            raise WorkloadError(f"{path} cannot be read ({error}): save a workload there first") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkloadError(
                f"{path}:{number}: not a workload ({type(error).__name__}: {error}): save it again"
            ) from error


def zipf_workload(
    questions: Sequence[Question],
    *,
    corpus: str,
    count: int,
    s: float = 1.0,
    rate: float | None = None,
    popularity: Popularity = "question",
    seed: int = 0,
) -> Workload:
    """Draw a stream in which the item of rank r is asked for in proportion to `r ** -s`.

    Ranks are given out by `seed`, so that what is popular does not depend on the order of the questions.

    Args:
        questions: to draw from, with replacement.
        corpus: name of their corpus.
        count: length of the stream.
        s: Zipf exponent, 0 or more.
        rate: mean arrivals a second of a Poisson process; None puts all at time 0.
        popularity: `question` ranks the questions; `document` ranks the documents they ask for, and then draws one
            of the document's questions evenly, so that known passages are asked for in new words.
        seed: of ranks, draws and times.

    Raises:
        WorkloadError: a setting that cannot work.
    """
    _check(questions, count, s, rate)
    rng = random.Random(seed)
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.text if popularity == "question" else question.gold_document_id, []).append(question)
    ranked = list(groups.values())
    rng.shuffle(ranked)
    weights = list(itertools.accumulate(rank**-s for rank in range(1, len(ranked) + 1)))
    drawn = [rng.choice(group) for group in rng.choices(ranked, cum_weights=weights, k=count)]
    gaps = (rng.expovariate(rate) if rate else 0.0 for _ in drawn)
    times = itertools.accumulate(gaps)
    arrivals = tuple(Arrival(time, question) for time, question in zip(times, drawn, strict=True))
    return Workload(corpus, seed, s, rate, popularity, arrivals)


def _check_settings(settings: dict[str, Any]) -> None:
    kinds: Kinds = {"corpus": str, "seed": int, "s": (int, float), "rate": (int, float, NoneType), "settings": dict}
    _check_kinds({"settings": {}, **settings}, kinds)
    if settings["popularity"] not in get_args(Popularity):
        raise ValueError(f"popularity is {settings['popularity']!r}")


def _arrival(record: dict[str, Any]) -> Arrival:
    _check_kinds(record, {"time": (int, float), "text": str, "golds": list})
    for gold in record["golds"]:
        _check_kinds(gold, {"document_id": str, "uri": str, "start": int, "end": int, "text": str})
    golds = tuple(Gold(**gold) for gold in record["golds"])
    return Arrival(float(record["time"]), Question(record["text"], golds))


def _check_kinds(record: dict[str, Any], kinds: Kinds) -> None:
    for name, kind in kinds.items():
        value = record[name]
        infinite = isinstance(value, float) and not math.isfinite(value)
        if infinite or isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{name} is {value!r}")


def _check(questions: Sequence[Question], count: int, s: float, rate: float | None) -> None:
    if not questions:
        raise WorkloadError("a workload needs at least one question")
    if count < 1:
        raise WorkloadError(f"count is {count}: a workload has at least one arrival")
    if not (math.isfinite(s) and s >= 0):
        raise WorkloadError(f"s is {s}: the Zipf exponent is a number of 0 or more")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise WorkloadError(f"rate is {rate}: give arrivals a second above 0, or None for all at once")
