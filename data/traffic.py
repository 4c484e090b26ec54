"""Made-up traffic in the shapes that papers about cached retrieval use: ids and lengths drawn from a seed, no text.

| kind | follows | ours |
|---|---|---|
| `documents` | RAGCache (arXiv 2404.12457): long documents, two a request, 3 % of them draw 60 % of requests | the power law by which 3 % of them are 60 % of all documents that requests name, log-normal lengths, about a thousand tokens in place of its 3,700 |
| `passages` | RAGCache's larger numbers of passages; RAGPulse's (arXiv 2511.12979) six a request and its long tail | a Zipf exponent of 0.7 over as many passages as are drawn, so that most distinct ones are asked for once |
| `fusion` | CacheBlend (arXiv 2405.16444): six chunks of 512 tokens, cached ones in any place | a pool of 24, drawn evenly, in random order |
| `orders` | nobody: orders that are new to the end | six passages, no order twice; only what two orders begin with alike is found by prefix caching |
| `conversations` | nobody: turns over the same passages, as a chat over documents has them | interleaved, history by recorded answers |

Retrieval decides what is asked together; here passages of a request are drawn independently of each other.
"""  # noqa: E501 - a table

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import neg
from typing import Literal, NamedTuple, get_args

from data.errors import WorkloadError
from data.traces import Trace, TracePart, TraceRequest

__all__ = ["HOT_DRAWS", "HOT_SHARE", "SHAPES", "Shape", "Traffic", "TrafficKind", "draw_traffic", "skew_of"]

TrafficKind = Literal["documents", "passages", "fusion", "orders", "conversations"]

HOT_SHARE = 0.03  # of the documents are
HOT_DRAWS = 0.6  # of those that requests name, each with its k; more requests than that have one of them
SPREAD = 0.5  # of the logarithm of a document's length
LONGEST = 2.0  # times the mean: a prompt has to fit a model's context
TALKING_AT_ONCE = 4  # conversations
MOST_SKEW = 10.0  # by then the second passage is asked for once where the first is a thousand times


class Shape(NamedTuple):
    """What a kind of traffic is like where nothing else is asked for.

    Attributes:
        k: passages a request.
        length: tokens of a passage; of documents on average.
        pool: distinct passages to draw from; None depends on how many are drawn.
        skew: Zipf exponent; None is the one that gives `HOT_SHARE` of them `HOT_DRAWS` of the draws.
    """

    k: int
    length: int
    pool: int | None
    skew: float | None


SHAPES: dict[TrafficKind, Shape] = {
    "documents": Shape(2, 1024, 1000, None),
    "passages": Shape(6, 192, None, 0.7),
    "fusion": Shape(6, 512, 24, 0.0),
    "orders": Shape(6, 256, None, 0.0),
    "conversations": Shape(4, 256, None, 0.7),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What to draw; None is what `SHAPES` says.

    Attributes:
        kind: of `SHAPES`.
        count: requests.
        seed: of every draw.
        k: passages a request.
        length: tokens of a passage.
        pool: distinct passages.
        skew: Zipf exponent.
        turns: of a conversation.
        question_tokens: of a question.
        output_tokens: of an answer.

    Raises:
        WorkloadError: a value that cannot work.
    """

    kind: TrafficKind
    count: int
    seed: int = 0
    k: int | None = None
    length: int | None = None
    pool: int | None = None
    skew: float | None = None
    turns: int = 4
    question_tokens: int = 32
    output_tokens: int = 16

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise WorkloadError(f"kind is {self.kind!r}: choose one of {', '.join(get_args(TrafficKind))}")
        for name in ("count", "k", "length", "pool", "turns", "question_tokens", "output_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise WorkloadError(f"{name} is {value}: give 1 or more")
        if self.skew is not None and not 0 <= self.skew <= MOST_SKEW:
            raise WorkloadError(f"skew is {self.skew}: the Zipf exponent is a number from 0 to {MOST_SKEW:g}")

    @property
    def shape(self) -> Shape:
        """What is drawn, settled but for a skew that depends on the pool.

        Raises:
            WorkloadError: the pool is smaller than a request.
        """
        usual = SHAPES[self.kind]
        k = self.k or usual.k
        drawn = math.ceil(self.count / self.turns) if self.kind == "conversations" else self.count
        pool = self.pool or usual.pool or (k if self.kind == "orders" else k * drawn)
        if pool < k:
            raise WorkloadError(f"pool is {pool}: {k} different passages a request need as many")
        return Shape(k, self.length or usual.length, pool, usual.skew if self.skew is None else self.skew)


def draw_traffic(traffic: Traffic) -> Trace:
    """Draw a trace; all its times are 0, see `arrivals`.

    Raises:
        WorkloadError: fewer different orders than requests, or a pool too small for its skew.
    """
    requests = itertools.islice(DRAWN[traffic.kind](_Pieces(traffic)), traffic.count)
    return Trace(traffic.kind, tuple(requests))


def skew_of(pool: int, k: int) -> float:
    """Return the Zipf exponent at which 3 % of a pool get 60 % of the draws, k different ones a request.

    Successive draws without replacement are a race of exponential clocks; stopped at the time at which k have rung on
    average, item i has rung with probability 1 - exp(-weight_i x time) (Rosen 1972), which is close for large pools.

    Raises:
        WorkloadError: the pool is so small that no exponent gives it.
    """
    hot = max(1, round(HOT_SHARE * pool))

    def share(exponent: float) -> float:
        weights = [rank**-exponent for rank in range(1, pool + 1)]
        stop = _solve(lambda time: sum(-math.expm1(-weight * time) for weight in weights), k)
        return sum(-math.expm1(-weight * stop) for weight in weights[:hot]) / k

    if hot < HOT_DRAWS * k / 0.9 or hot >= HOT_DRAWS * pool:
        raise WorkloadError(
            f"pool is {pool}: {HOT_SHARE:.0%} of so few documents cannot be {HOT_DRAWS:.0%} of {k} a request; "
            " give a larger pool or a skew"
        )
    return _solve(share, HOT_DRAWS)


def _solve(rising: Callable[[float], float], wanted: float) -> float:
    """Return where a function that rises above a value from 0 on has it."""
    low, high = 0.0, 1.0
    while rising(high) < wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return high


class _Pieces:
    """Gives ids and lengths: passages from 0, in an order without relation to their popularity; then what is said."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.rng = random.Random(f"traffic/{traffic.kind}/{traffic.seed}")
        self.k, length, pool, skew = traffic.shape
        assert pool is not None, "the shape of a traffic has a pool"
        lengths = self._lengths(length, pool)
        self._ranked = [TracePart(number, tokens) for number, tokens in enumerate(lengths)]
        self.rng.shuffle(self._ranked)
        skew = skew_of(pool, self.k) if skew is None else skew
        weights = (rank**-skew for rank in range(pool, 0, -1))
        self._rest = [*itertools.accumulate(weights, initial=0.0)][::-1]  # of a place and all after it
        self._ids = itertools.count(pool)

    def draw(self) -> tuple[TracePart, ...]:
        """Draw k different passages by popularity, one after the other."""
        places: list[int] = []
        for _ in range(self.k):
            places.append(self._place(places))
        return tuple(self._ranked[place] for place in places)

    def draw_evenly(self) -> tuple[TracePart, ...]:
        """Draw k different passages, every order as likely as any other."""
        return tuple(self.rng.sample(self._ranked, self.k))

    def _place(self, drawn: Sequence[int]) -> int:
        """Draw a place that is not among those drawn: first between which of them it is, then where there."""
        rest = self._rest
        gaps = [(before + 1, after) for before, after in pairwise((-1, *sorted(drawn), len(self._ranked)))]
        weights = [rest[first] - rest[end] for first, end in gaps]
        ((first, end),) = self.rng.choices(gaps, weights)
        wanted = self.rng.uniform(rest[end], rest[first])
        place = bisect_right(rest, -wanted, first, end, key=neg) - 1
        return min(max(place, first), end - 1)  # whatever was rounded

    def question(self) -> TracePart:
        """Return a question that nobody asked before."""
        return TracePart(next(self._ids), self.traffic.question_tokens)

    def answer(self) -> TracePart:
        """Return an answer that nobody gave before."""
        return TracePart(next(self._ids), self.traffic.output_tokens)

    def request(
        self, session: str, passages: Sequence[TracePart], question: TracePart, history: Sequence[TracePart] = ()
    ) -> TraceRequest:
        """Make a request at time 0."""
        return TraceRequest(
            timestamp=0.0,
            session_id=session,
            input_length=sum(part.num_tokens for part in (*passages, *history, question)),
            output_length=self.traffic.output_tokens,
            system_prompt=(),
            passages=tuple(passages),
            history=tuple(history),
            web_search=(),
            user_input=(question,),
        )

    def _lengths(self, mean: int, pool: int) -> list[int]:
        """Return the passages' lengths: all the same, but for documents."""
        if self.traffic.kind != "documents":
            return [mean] * pool
        logarithm = math.log(mean) - SPREAD**2 / 2
        drawn = (self.rng.lognormvariate(logarithm, SPREAD) for _ in range(pool))
        return [max(1, round(min(tokens, LONGEST * mean))) for tokens in drawn]


def _popular(pieces: _Pieces) -> Iterator[TraceRequest]:
    for number in itertools.count():
        yield pieces.request(str(number), pieces.draw(), pieces.question())


def _shuffled(pieces: _Pieces) -> Iterator[TraceRequest]:
    for number in itertools.count():
        passages = list(pieces.draw())
        pieces.rng.shuffle(passages)
        yield pieces.request(str(number), passages, pieces.question())


def _never_twice(pieces: _Pieces) -> Iterator[TraceRequest]:
    """Draw by popularity; an order that was there already is replaced by one that is drawn evenly from all."""
    shape, count = pieces.traffic.shape, pieces.traffic.count
    if shape.skew and shape.pool == shape.k:
        raise WorkloadError(
            f"skew is {shape.skew:g}: all {shape.k} passages are in every request; leave it out, or give a larger pool"
        )
    if (orders := math.perm(shape.pool or 0, shape.k)) < count:
        raise WorkloadError(
            f"count is {count}: {shape.k} of {shape.pool} passages have {orders} orders; give more of them"
        )
    seen: set[tuple[TracePart, ...]] = set()
    while True:
        passages = pieces.draw()
        while passages in seen:
            passages = pieces.draw_evenly()
        seen.add(passages)
        yield pieces.request(str(len(seen) - 1), passages, pieces.question())


def _talks(pieces: _Pieces) -> Iterator[TraceRequest]:
    """Let several conversations go on at once; whose turn it is is drawn, and one that ends makes room for another."""
    traffic = pieces.traffic
    waiting = (_talk(pieces, str(number)) for number in range(math.ceil(traffic.count / traffic.turns)))
    talking = list(itertools.islice(waiting, TALKING_AT_ONCE))
    while talking:
        place = pieces.rng.randrange(len(talking))
        if request := next(talking[place], None):
            yield request
        else:
            talking[place : place + 1] = itertools.islice(waiting, 1)


def _talk(pieces: _Pieces, name: str) -> Iterator[TraceRequest]:
    """Yield a conversation's turns; its history is questions and answers by turns."""
    passages, history = pieces.draw(), list[TracePart]()
    for _ in range(pieces.traffic.turns):
        question = pieces.question()
        yield pieces.request(name, passages, question, history)
        history += [question, pieces.answer()]


DRAWN: dict[TrafficKind, Callable[[_Pieces], Iterator[TraceRequest]]] = {
    "documents": _popular,
    "passages": _popular,
    "fusion": _shuffled,
    "orders": _never_twice,
    "conversations": _talks,
}
