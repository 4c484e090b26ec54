"""What runs in the next step: no phases, only spans and how far each request is along them.

Knows requests and the prefix cache; tensors, sampling and text are elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.drafts import Drafts
from engine.errors import QueueFullError, ShareFullError
from engine.fair_queue import FairQueue
from engine.prefix_cache import PrefixCache
from engine.request import Request, RequestState
from engine.step_budget import StepBudget
from engine.turns import Turns

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
    """A fair share for every principal, first come, first served for each, under a token budget a step.

    Args:
        cache: admits, extends and releases.
        step_budget: how many tokens a step computes.
        drafts: guesses at what answers say next.
        max_num_seqs: how many requests run at once.
        max_num_waiting: how many requests may wait.
        max_share_waiting: how many of them may be one principal's; None is all.
    """

    def __init__(
        self,
        cache: PrefixCache,
        step_budget: StepBudget,
        drafts: Drafts,
        *,
        max_num_seqs: int,
        max_num_waiting: int,
        max_share_waiting: int | None = None,
    ) -> None:
        self.cache = cache
        self.step_budget = step_budget
        self.drafts = drafts
        self.waiting = FairQueue()
        self.background = FairQueue()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._turns = Turns(self.waiting, self.running)
        self._max_num_seqs = max_num_seqs
        self._max_num_waiting = max_num_waiting
        self._max_share_waiting = max_num_waiting if max_share_waiting is None else max_share_waiting
        self._refused: tuple[Request, int] | None = None  # who found no place, and the state of the cache then

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running or self.background)

    def has_room(self, principal: str) -> bool:
        """Tell whether one more request of a principal may wait."""
        share = self.waiting.num_waiting(principal)
        return len(self.waiting) < self._max_num_waiting and share < self._max_share_waiting

    def add(self, request: Request, before: Sequence[Request] = ()) -> None:
        """Queue a request behind those that compute what it needs, which wait nowhere yet.

        Raises:
            QueueFullError: as many requests wait as may.
            ShareFullError: as many of its principal wait as may.
        """
        queue = self._queue(request)
        if len(queue) >= self._max_num_waiting:
            raise QueueFullError(f"{len(queue)} requests are waiting already; try again in a moment")
        share = queue.num_waiting(request.principal)
        if share >= self._max_share_waiting and not request.background:
            raise ShareFullError(f"{share} requests of yours are waiting already; try again when some have ended")
        if not (self.waiting or self.running):
            self.waiting.forget_service()
        for one in (*before, request):
            queue.add(one)

    def schedule(self) -> list[ScheduledWork]:
        """Choose the next step's work: decodes first, then prefills under way and new requests.

        Of those, the least served principal's come first. Background requests advance in steps in which no other does.
        """
        for request in self.running:
            self._queue(request).charge_output(request)
        self._yield_to_others()
        preempted = self._make_room_for_running()
        running = [request for request in self.running if not request.background]
        decodes = [request for request in running if request.held.num_remaining_tokens == 1]
        budget = self.step_budget.tokens(len(decodes))
        work: list[ScheduledWork] = []
        for request in decodes:
            budget -= self._schedule_one(request, budget, work)
        prefills = [request for request in running if request.held.num_remaining_tokens > 1]
        self._schedule_prefills(prefills, decodes, work, may_admit=not (preempted and running))
        budget = max(self.step_budget.tokens(len(decodes)) - sum(item.num_tokens for item in work), 0)
        if not work:
            self._schedule_background(budget, work)
        assert work or not self.has_work, "requests wait, and none can ever run"
        if all(item.decodes for item in work):
            work = [self._with_draft(item, budget // len(work), len(work)) for item in work]
        return work

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks."""
        if request.state is RequestState.RUNNING:
            self._queue(request).charge_output(request)
            self.running.remove(request)
            self._release(request)
        elif request.state is RequestState.WAITING:
            self._queue(request).remove(request)
        request.state = RequestState.FINISHED
        self.drafts.forget(request)

    def _queue(self, request: Request) -> FairQueue:
        return self.background if request.background else self.waiting

    def _schedule_prefills(
        self, prefills: list[Request], decodes: Sequence[Request], work: list[ScheduledWork], *, may_admit: bool
    ) -> None:
        """Give what is left of the step to prompts, the least served principal's first.

        A principal's own go in order: those under way, then what waits. When the one whose turn it is cannot be
        admitted, nobody is in its place, so that a large request is not overtaken by small ones for ever.
        """
        while True:
            principal = self._turns.whose({request.principal for request in prefills}, may_admit=may_admit)
            if principal is None:
                return
            spared = len(decodes) if self._turns.must_spare(principal, decodes) else 0
            left = self.step_budget.tokens(spared) - sum(item.num_tokens for item in work)
            if left <= 0:
                return
            under_way = next((request for request in prefills if request.principal == principal), None)
            if under_way is not None:
                prefills.remove(under_way)
                self._schedule_one(under_way, left, work)
            elif self._admit_next(principal):
                self._schedule_one(self.running[-1], left, work)
            else:
                may_admit = False

    def _yield_to_others(self) -> None:
        """Preempt a request for a principal that has none running, has been served least and found no place.

        It loses little: the passages of its prompt are published.
        """
        principal = self._turns.whose((), may_admit=True)
        if principal is None or self._turns.num_running(principal) or self._background_running():
            return
        request = self.waiting.next_of(principal)
        if request is None or not (len(self.running) >= self._max_num_seqs or self._is_refused(request)):
            return
        yielding = self._turns.who_yields_to(principal)
        if yielding is not None:
            self._preempt(yielding)

    def _schedule_background(self, budget: int, work: list[ScheduledWork]) -> None:
        """Fill a step with what runs and waits in the background."""
        for request in self.running:
            budget -= self._schedule_one(request, budget, work)
        while budget > 0 and self.background and len(self.running) < self._max_num_seqs:
            following = self.background.next_of(min(self.background.principals, key=self.background.served))
            if following is None or not self._admit(following):
                return
            budget -= self._schedule_one(following, budget, work)

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
        """Send a request back to the head of its principal's queue; it keeps its tokens and computes again."""
        self.running.remove(request)
        self._release(request)
        request.state = RequestState.WAITING
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._queue(request).put_back(request)

    def _background_running(self) -> Request | None:
        """The newest running request that others come before."""
        return next((request for request in reversed(self.running) if request.background), None)

    def _release(self, request: Request) -> None:
        self.cache.release(request)
        request.admission = None

    def _admit_next(self, principal: str) -> bool:
        """Admit the request that a principal's turn is for, if there is a place for it.

        One whose prefix a running request is computing waits for it, and so does the queue behind: nobody overtakes,
        so none can starve. It is for one step only. A request is considered when the budget outlasts every running
        one, so this very step computes what it waits for and publishes it; and whatever else ends the other (cancelled,
        preempted, failed) takes away the reason to wait.
        """
        request = self.waiting.next_of(principal)
        if request is None or self._is_refused(request):
            return False
        if len(self.running) >= self._max_num_seqs and self._background_running() is None:
            return False
        self.cache.arrange(request)
        if self.cache.is_being_computed(request):
            return False
        while len(self.running) >= self._max_num_seqs or not self._admit(request):
            yielding = self._background_running()
            if yielding is None:
                return False
            self._preempt(yielding)
        return True

    def _is_refused(self, request: Request) -> bool:
        """Tell whether there was no room for a request, and nothing has happened since that could make some."""
        return self._refused == (request, self.cache.num_changes)

    def _admit(self, request: Request) -> bool:
        """Admit a request if there is room for it."""
        admission = None if self._is_refused(request) else self.cache.admit(request)
        if admission is None:
            self._refused = request, self.cache.num_changes
            return False
        queue = self._queue(request)
        queue.remove(request)
        request.admission = admission
        if not request.first_admission:
            queue.charge_prompt(request, admission)
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
