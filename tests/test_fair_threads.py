"""The threads in which questions are prepared: everybody in turn, errors to whom they belong."""

import threading
from concurrent.futures import CancelledError

import pytest

from engine.errors import ShareFullError
from rag.fair_threads import FairThreads


@pytest.fixture
def threads():
    one = FairThreads(1)
    yield one
    one.close()


def test_a_flood_holds_up_nobody_else(threads):
    gate, order = threading.Event(), []
    threads.submit("flood", gate.wait)
    flood = [threads.submit("flood", lambda i=i: order.append(("flood", i))) for i in range(20)]
    others = [threads.submit(name, lambda name=name: order.append((name, 0))) for name in ("a", "b")]
    gate.set()
    for future in [*flood, *others]:
        future.result(30)
    assert [name for name, _ in order[:3]] == ["flood", "a", "b"]
    assert [i for name, i in order if name == "flood"] == list(range(20))


def test_errors_and_results_reach_whoever_waits(threads):
    assert threads.submit("a", lambda: 42).result(30) == 42
    with pytest.raises(ZeroDivisionError):
        threads.submit("a", lambda: 1 // 0).result(30)
    assert threads.submit("a", lambda: threading.current_thread().name).result(30).startswith("question")


def test_whoever_has_left_costs_no_time(threads):
    gate, ran = threading.Event(), []
    threads.submit("a", gate.wait)
    left = threads.submit("a", lambda: ran.append("left"))
    stays = threads.submit("a", lambda: ran.append("stays"))
    assert left.cancel()
    gate.set()
    stays.result(30)
    assert ran == ["stays"]
    with pytest.raises(CancelledError):
        left.result(30)


def test_no_more_of_one_principal_wait_than_may():
    threads, gate, started = FairThreads(1, 2), threading.Event(), threading.Event()
    try:
        threads.submit("flood", lambda: started.set() or gate.wait())
        assert started.wait(30)
        flood = [threads.submit("flood", lambda: 1) for _ in range(2)]
        with pytest.raises(ShareFullError, match="2 questions of yours"):
            threads.submit("flood", lambda: 1)
        other = threads.submit("other", lambda: 2)
        gate.set()
        assert [future.result(30) for future in [*flood, other]] == [1, 1, 2]
        assert threads.submit("flood", lambda: 3).result(30) == 3
    finally:
        gate.set()
        threads.close()
