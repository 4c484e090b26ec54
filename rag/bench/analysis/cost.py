"""What a thousand answers cost, by a price book and by the hour of a machine."""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from pydantic import BaseModel, ConfigDict

from rag.bench.suite.experiment import Drive, Experiment
from rag.bench.suite.records import AnswerRecord, WindowRecord
from rag.bench.suite.results import Results
from rag.ledger import Tokens
from rag.prices import PriceBook

__all__ = ["CostRow", "costs"]

THOUSAND = 1000
HOUR_SECONDS = 3600


class CostRow(BaseModel):
    """What an engine's answers cost in an experiment, without its warm-up.

    Attributes:
        answers: that count.
        total: of a thousand answers, by the price book; None without one, or without a price for the model.
        uncached: of a thousand answers, had nothing come from a cache.
        cache_told: whether the engine told what came from its cache; where not, everything was priced as computed.
        prepared: of what was read ahead before a pass, once; not in `total`.
        hourly: of a thousand answers at the throughput seen, by the price of the machine's hour; None without one, and
            where no answer counts.
        answers_per_hour: that throughput: under load, answers over the time of the windows, at the rate that was
            offered; in turns, one request after the other without a pause.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    contestant: str
    answers: int
    total: Decimal | None = None
    uncached: Decimal | None = None
    cache_told: bool = True
    prepared: Decimal | None = None
    hourly: Decimal | None = None
    answers_per_hour: float | None = None


def costs(results: Results, book: PriceBook | None = None, *, hour_price: Decimal | None = None) -> list[CostRow]:
    """Return the costs of every engine in every experiment that it answered in; goodput is left out.

    Args:
        results: of a run.
        book: prices of tokens; the model's name is the run's.
        hour_price: of an hour of the machine, in the currency of the book.
    """
    timed = [one for one in results.experiments if one.drive in (Drive.TURNS, Drive.LOAD)]
    return [row for experiment in timed for row in _rows(results, experiment, book, hour_price)]


def _rows(
    results: Results, experiment: Experiment, book: PriceBook | None, hour_price: Decimal | None
) -> Iterator[CostRow]:
    windows = results.windows(experiment.name)
    counted = [one for one in results.answers(experiment.name) if one.status == "ok"]
    for contestant in experiment.contestants:
        whole = [one for one in counted if one.contestant == contestant]
        answers = [one for one in whole if not one.warmup]
        own = [one for one in windows if one.contestant == contestant]
        if not answers:
            continue
        row = CostRow(
            experiment=experiment.name,
            contestant=contestant,
            answers=len(answers),
            cache_told=all(one.cached is not None for one in answers),
            answers_per_hour=_per_hour(whole, own, experiment.drive),
        )
        yield row.model_copy(update=_by_book(results, answers, own, book) | _by_hour(row, hour_price))


def _by_book(
    results: Results, answers: Sequence[AnswerRecord], windows: Sequence[WindowRecord], book: PriceBook | None
) -> dict[str, Decimal]:
    if book is None:
        return {}
    model = results.header.model
    used = sum((_tokens(one) for one in answers), Tokens())
    cost = book.cost(model, used)
    ahead = book.cost(model, Tokens(prompt=max((one.prepared_tokens for one in windows), default=0)))
    if cost is None or ahead is None:
        return {}
    each = Decimal(THOUSAND) / len(answers)
    return {"total": cost.total * each, "uncached": cost.uncached * each, "prepared": ahead.total}


def _by_hour(row: CostRow, price: Decimal | None) -> dict[str, Decimal]:
    if price is None or not row.answers_per_hour:
        return {}
    return {"hourly": THOUSAND * price / Decimal(row.answers_per_hour)}


def _tokens(answer: AnswerRecord) -> Tokens:
    return Tokens(
        answers=1, prompt=answer.prompt_tokens, cached=sum((answer.cached or {}).values()), output=answer.count
    )


def _per_hour(answers: Sequence[AnswerRecord], windows: Sequence[WindowRecord], drive: Drive) -> float | None:
    """Return answers an hour; warm-up counts here, since the windows have it too."""
    if drive is Drive.LOAD:
        driven, seconds = {one.unit for one in windows}, sum(one.seconds for one in windows)
        answered = sum(one.unit in driven for one in answers)  # a window in which the engine was lost has no time
        return HOUR_SECONDS * answered / seconds if seconds else None
    steady = [one for one in answers if not one.warmup]
    seconds = sum(one.finished - one.arrival for one in steady if one.finished is not None)
    return HOUR_SECONDS * len(steady) / seconds if seconds else None
