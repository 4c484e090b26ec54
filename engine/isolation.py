"""A step that fails costs the request that is to blame, not those beside it.

The requests of a step do not depend on each other, so a part of them can be run alone and gives the same tokens.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from engine.request import Request
from engine.scheduler import ScheduledWork

__all__ = ["run_isolated"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def run_isolated(
    run: Callable[[Sequence[ScheduledWork]], T],
    work: Sequence[ScheduledWork],
    give_up: Callable[[Request, Exception], None],
) -> Iterator[tuple[Sequence[ScheduledWork], T]]:
    """Run work; where that fails run each half alone, down to single requests.

    Args:
        run: computes work, and can be called again after it has failed. What it needs too much memory for may succeed
            in parts.
        work: of a step.
        give_up: called with a request that fails alone, and why.

    Yields:
        Parts of the work that succeeded, with what came of them.
    """
    try:
        done = run(work)
    except Exception as error:
        if len(work) == 1:
            logger.exception("request %d failed in a step and is ended; the others go on", work[0].request.id)
            give_up(work[0].request, error)
            return
        logger.warning("a step of %d requests failed (%s); its halves are run alone", len(work), error)
    else:
        yield work, done
        return
    middle = len(work) // 2
    for half in (work[:middle], work[middle:]):
        yield from run_isolated(run, half, give_up)
