"""Who asks, as the server knows it: from the API key and the connection, never from the body of a request."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

__all__ = ["CHAT", "NOBODY", "Caller", "Reserve"]

CHAT = "chat"  # one conversation for all of a principal's: whatever it has asked may serve it again

Reserve = Callable[[int], AbstractContextManager[None]]


def _unlimited(_tokens: int) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a question comes from.

    Attributes:
        principal: whose conversations and prompts are apart from those of others; an API key's id, empty without keys.
        request_id: of the HTTP request, for logs.
        conversation: keeps this question's own KV for the conversation's next turn; seen by this principal alone.
        deadline: when nobody waits for the answer any more, in seconds of `time.perf_counter`.
        reserve: sets tokens aside of what the caller may still use, as many as prompt and answer may come to, until
            the answer has ended; raises where there are not so many. Called on the event loop.
    """

    principal: str = ""
    request_id: str = ""
    conversation: str | None = None
    deadline: float | None = None
    reserve: Reserve = field(default=_unlimited, compare=False, repr=False)


NOBODY = Caller()
