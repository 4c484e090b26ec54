"""What runs in the next step: no phases, only spans and how far each request is along them.

Knows requests and the prefix cache; tensors, sampling and text are elsewhere.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.drafts import Drafts
from engine.errors import QueueFullError
from engine.prefix_cache import PrefixCache
from engine.request import Request, RequestState
from engine.step_budget import StepBudget

__all__ = ["ScheduledWork", "Scheduler"]


@dataclass(frozen=True, slots=True)
class ScheduledWork:
    """One request's share of a step.

    Attributes:
        request: whose tokens are computed.
        positions: the prompt positions to compute, as ranges in order.
        num_tokens: how many they are.
        samples: whether they reach the newest token, so that the next one is sampled from its logits.
        draft: guesses at the tokens after the newest, computed behind it as if they had been sampled.
    """

    request: Request
    positions: tuple[range, ...]
    num_tokens: int
    samples: bool
    draft: tuple[int, ...] = ()

    @property
    def num_certain_tokens(self) -> int:
        """How many of them are the request's, whatever becomes of the draft."""
        return self.num_tokens - len(self.draft)

    @property
    def decodes(self) -> bool:
        """Whether it computes the newest token alone, with or without a draft."""
        return self.samples and self.num_certain_tokens == 1


class Scheduler:
    """First come, first served, under a token budget a step.

    Args:
        cache: admits, extends and releases.
        step_budget: how many tokens a step computes.
        drafts: guesses at what answers say next.
        max_num_seqs: how many requests run at once.
        max_num_waiting: how many requests may wait.
    """

    def __init__(
        self, cache: PrefixCache, step_budget: StepBudget, drafts: Drafts, *, max_num_seqs: int, max_num_waiting: int
    ) -> None:
        self.cache = cache
        self.step_budget = step_budget
        self.drafts = drafts
        self.waiting: deque[Request] = deque()
        self.background: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._max_num_seqs = max_num_seqs
        self._max_num_waiting = max_num_waiting

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running or self.background)

    def add(self, request: Request, before: Sequence[Request] = ()) -> None:
        """Queue a request behind those that compute what it needs, which wait nowhere yet.

        Raises:
            QueueFullError: as many requests wait as may.
        """
        queue = self.background if request.background else self.waiting
        if len(queue) >= self._max_num_waiting:
            raise QueueFullError(f"{len(queue)} requests are waiting already; try again in a moment")
        queue += [*before, request]

    def schedule(self) -> list[ScheduledWork]:
        """Choose the next step's work: decodes first, then prefills under way, then new requests.

        Background requests advance in steps in which no other does.
        """
        preempted = self._make_room_for_running()
        running = [request for request in self.running if not request.background]
        budget = self.step_budget.tokens(sum(r.held.num_remaining_tokens == 1 for r in running))
        work: list[ScheduledWork] = []
        for request in sorted(running, key=lambda r: r.held.num_remaining_tokens > 1):
            budget -= self._schedule_one(request, budget, work)
        while budget > 0 and not (preempted and running) and self._admit_next():
            budget -= self._schedule_one(self.running[-1], budget, work)
        if not work:
            self._schedule_background(budget, work)
        assert work or not self.has_work, "requests wait, and none can ever run"
        if all(item.decodes for item in work):
            work = [self._with_draft(item, budget // len(work), len(work)) for item in work]
        return work

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks."""
        if request.state is RequestState.RUNNING:
            self.running.remove(request)
            self._release(request)
        elif request.state is RequestState.WAITING:
            self._queue(request).remove(request)
        request.state = RequestState.FINISHED
        self.drafts.forget(request)

    def _queue(self, request: Request) -> deque[Request]:
        return self.background if request.background else self.waiting

    def _schedule_background(self, budget: int, work: list[ScheduledWork]) -> None:
        """Fill a step with what runs and waits in the background."""
        for request in self.running:
            budget -= self._schedule_one(request, budget, work)
        while budget > 0 and self.background and len(self.running) < self._max_num_seqs:
            if not self.background[0].is_ready or not self._admit(self.background):
                return
            budget -= self._schedule_one(self.running[-1], budget, work)

    def _make_room_for_running(self) -> bool:
        """Give every running request room for its next token; the newest ones yield when blocks run out.

        Even the last one may have to: it holds copies of blocks that the tree cannot give up, because it published
        its own below them. Admitted again, it takes the tree's in their place.
        """
        preempted = False
        for request in self.running:
            self.cache.trim(request)  # before anybody has to yield for want of a block
        for request in list(self.running):
            while request.state is RequestState.RUNNING and not self.cache.extend(request):
                self._preempt(self._background_running() or self.running[-1])
                preempted = True
        return preempted

    def _preempt(self, request: Request) -> None:
        """Send a request back to the head of the queue; it keeps its sampled tokens and computes again."""
        self.running.remove(request)
        self._release(request)
        request.state = RequestState.WAITING
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._queue(request).appendleft(request)

    def _background_running(self) -> Request | None:
        """The newest running request that others come before."""
        return next((request for request in reversed(self.running) if request.background), None)

    def _release(self, request: Request) -> None:
        self.cache.release(request)
        request.admission = None

    def _admit_next(self) -> bool:
        """Admit the request that has waited longest, if there is a place for it.

        One whose prefix a running request is computing waits for it, and so does the queue behind: nobody overtakes,
        so none can starve. It is for one step only. A request is considered when the budget outlasts every running
        one, so this very step computes what it waits for and publishes it; and whatever else ends the other (cancelled,
        preempted, failed) takes away the reason to wait.
        """
        if not self.waiting or not self.waiting[0].is_ready:
            return False
        request = self.waiting[0]
        self.cache.arrange(request)
        if self.cache.is_being_computed(request):
            return False
        while len(self.running) >= self._max_num_seqs or not self._admit(self.waiting):
            yielding = self._background_running()
            if yielding is None:
                return False
            self._preempt(yielding)
        return True

    def _admit(self, queue: deque[Request]) -> bool:
        """Admit the first of a queue if there is room for it."""
        request = queue[0]
        admission = self.cache.admit(request)
        if admission is None:
            return False
        queue.popleft()
        request.admission = admission
        request.first_admission = request.first_admission or admission.placements
        request.state = RequestState.RUNNING
        self.running.append(request)
        return True

    def _schedule_one(self, request: Request, budget: int, work: list[ScheduledWork]) -> int:
        """Put as much of a request into the step as the budget allows; return the tokens used."""
        remaining = request.held.num_remaining_tokens
        n = min(remaining, budget)
        if n == 0:
            return 0
        positions = tuple(request.held.next_positions(n))
        work.append(ScheduledWork(request, positions, n, samples=n == remaining and request.max_tokens > 0))
        return n

    def _with_draft(self, item: ScheduledWork, limit: int, decode_rows: int) -> ScheduledWork:
        """Put a draft behind a request's newest token where that pays and free blocks allow it."""
        request = item.request
        limit = min(limit, request.max_tokens - len(request.output_tokens) - 1)  # the step samples one more itself
        if request.forced is None:
            draft = self.drafts.propose(request, limit, decode_rows)
        else:
            done = len(request.output_tokens)
            draft = request.forced[done : done + limit]
        draft = draft[: self.cache.extend_for_draft(request, len(draft))]
        newest = item.positions[0].start
        return replace(
            item, positions=(range(newest, newest + 1 + len(draft)),), num_tokens=1 + len(draft), draft=draft
        )
