"""Runs the cases on every contestant in turn, and makes results of what they took."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rag.bench.engine_cases import Case, Prompts
from rag.bench.engine_floor import ModelShape, Storage, floor_of
from rag.bench.engine_own import OwnEngine
from rag.bench.engine_report import CaseKind, CaseResult, Machine, PeerFigure
from rag.bench.peers.errors import PeerError, UnsupportedCaseError
from rag.bench.peers.opening import Peer
from rag.bench.statistics import Interval, median_ratio, summarise

__all__ = ["PEER_TOKENS", "CaseRunner", "Measured", "result_of", "sharing_of"]

PEER_TOKENS = 40_000  # a peer reads a batch's prompts in minutes where they have more


@dataclass(slots=True)
class Measured:
    """What a case took: seconds by contestant, one a repeat; why a peer has none.

    Attributes:
        own: of our engine.
        tokens_per_step: of our engine's sequences, one a repeat.
        peers: by name.
        reasons: by name.
    """

    own: list[float] = field(default_factory=list)
    tokens_per_step: list[float] = field(default_factory=list)
    peers: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Round:
    """One turn of every contestant at a case."""

    own: float = 0.0
    tokens_per_step: float = 1.0
    peers: dict[str, float] = field(default_factory=dict)


class CaseRunner:
    """Lets the contestants take turns.

    Args:
        own: our engine.
        peers: the others.
        prompts: the same ones for all.
        steps: decode steps timed a repeat.
        seed: of the order of the turns.
    """

    def __init__(self, own: OwnEngine, peers: Sequence[Peer], prompts: Prompts, *, steps: int, seed: int) -> None:
        self._own = own
        self._peers = peers
        self._prompts = prompts
        self._steps = steps
        self._order = random.Random(seed)

    def measure(
        self, cases: Sequence[Case], *, repeats: int, advance: Callable[[], None]
    ) -> tuple[dict[Case, Measured], bool]:
        """Run every case `repeats` times, after one round that is not kept.

        Within a repeat the cases take turns, and within a case the contestants do, in a random order: what the
        machine does meanwhile happens to all of them.

        Returns:
            What was measured, and whether Ctrl-C cut it short; then what is kept is of whole rounds.
        """
        measured = {case: Measured() for case in cases}
        try:
            for repeat in range(-1, repeats):
                for case in cases:
                    found = self._round(case, repeat, measured[case], advance)
                    if repeat >= 0:
                        _keep(measured[case], found)
        except KeyboardInterrupt:
            if not any(result.own for result in measured.values()):
                raise
            return measured, True
        return measured, False

    def _round(self, case: Case, repeat: int, measured: Measured, advance: Callable[[], None]) -> _Round:
        found = _Round()
        prompts = self._prompts.make(case, repeat)
        contestants: list[Peer | OwnEngine] = [self._own, *self._peers]
        for contestant in self._order.sample(contestants, len(contestants)):
            if isinstance(contestant, OwnEngine):
                self._run_own(case, prompts, found)
            elif contestant.name not in measured.reasons:
                self._run_peer(contestant, case, prompts, measured, found)
            advance()
        return found

    def _run_own(self, case: Case, prompts: Sequence[tuple[int, ...]], found: _Round) -> None:
        if case.decodes:
            decoded = self._own.decode(prompts, case.cached, self._steps)
            found.own, found.tokens_per_step = decoded.seconds, decoded.tokens
        else:
            found.own = self._own.first_token(prompts[0], case.cached)

    def _run_peer(
        self, peer: Peer, case: Case, prompts: Sequence[tuple[int, ...]], measured: Measured, found: _Round
    ) -> None:
        """Time a peer, or note why it cannot do the case and leave it out from then on."""
        try:
            if case.batch * case.context > PEER_TOKENS:
                raise UnsupportedCaseError(f"{case.batch * case.context} prompt tokens would take it minutes")
            if case.decodes:
                found.peers[peer.name] = peer.decode(prompts, case.cached, self._steps)
            else:
                found.peers[peer.name] = peer.first_token(prompts[0], case.cached)
        except PeerError as error:
            measured.reasons[peer.name] = str(error)


def _keep(measured: Measured, found: _Round) -> None:
    measured.own.append(found.own)
    measured.tokens_per_step.append(found.tokens_per_step)
    for name, seconds in found.peers.items():
        measured.peers.setdefault(name, []).append(seconds)


def result_of(
    case: Case, measured: Measured, shape: ModelShape, storage: Storage, machine: Machine, *, seed: int
) -> CaseResult:
    """Summarise a case that has at least one sample."""
    floor = floor_of(case, shape, storage, machine)
    samples = [1e3 * seconds for seconds in measured.own]
    times = summarise(samples)
    tokens_per_step = sum(measured.tokens_per_step) / len(measured.tokens_per_step)
    tokens = case.batch * (tokens_per_step if case.decodes else case.new)
    return CaseResult(
        name=case.name,
        kind=case.kind,
        new=1 if case.decodes else case.new,
        cached=case.context if case.decodes else case.cached,
        batch=case.batch,
        shared=case.cached if case.shared else 0,
        samples_ms=samples,
        time_ms=times,
        tokens_per_second=1e3 * tokens / times.median,
        tokens_per_step=tokens_per_step,
        floor=floor,
        over_floor=times.median / floor.ms,
        over_linear=times.median / floor.linear_ms,
        peers=_peer_figures(measured, samples, seed),
    )


def _peer_figures(measured: Measured, samples: Sequence[float], seed: int) -> dict[str, PeerFigure]:
    figures = {name: PeerFigure(reason=reason) for name, reason in measured.reasons.items()}
    for name, seconds in measured.peers.items():
        if name in figures:
            continue
        theirs = [1e3 * value for value in seconds]
        figures[name] = PeerFigure(
            samples_ms=theirs, time_ms=summarise(theirs), ratio=median_ratio(theirs, samples[: len(theirs)], seed=seed)
        )
    return figures


def sharing_of(measured: Mapping[Case, Measured], *, seed: int) -> Interval | None:
    """Return the decode step over a shared prefix over the one without sharing, the median of the repeats."""
    pairs = {case.shared: found.own for case, found in measured.items() if case.kind is CaseKind.SHARED and found.own}
    if set(pairs) != {True, False}:
        return None
    n = min(len(pairs[True]), len(pairs[False]))
    return median_ratio(pairs[True][:n], pairs[False][:n], seed=seed)
