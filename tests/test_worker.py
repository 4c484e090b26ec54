"""The thread that owns an engine: many readers, readers that leave, steps that fail, the end."""

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
from engine_helpers import ask, check_settled, collect, passage, random_tokens, tail, template, tiny_engine

from engine import EngineWorker, FinishReason, Prompt, SamplingParams, TokenDelta
from engine.errors import (
    ConfigError,
    DeadlineExceededError,
    EngineStoppedError,
    PromptTooLongError,
    QueueFullError,
    StepFailedError,
)

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = random_tokens(random.Random(1), 37)
SAMPLING = SamplingParams(max_tokens=12)
LONG = SamplingParams(max_tokens=200)
TIMEOUT = 30


@pytest.fixture(scope="module")
def answer(tiny_folder):
    return ask(tiny_engine(tiny_folder), PROMPT, LONG)


@pytest.fixture
def worker(tiny_folder):
    worker = EngineWorker(tiny_engine(tiny_folder)).start()
    yield worker
    worker.close()
    check_settled(worker.engine)


def run(coroutine):
    async def limited():
        async with asyncio.timeout(TIMEOUT):
            return await coroutine

    return asyncio.run(limited())


def begins_with(batch, token: int) -> bool:
    """Whether a step computes the first token of a prompt, and it is this one."""
    return token in batch.token_ids[batch.positions == 0].tolist()


def wait_until_idle(worker: EngineWorker) -> None:
    """Wait until nothing runs; fail when that takes too long."""
    deadline = time.monotonic() + TIMEOUT
    while worker.call(lambda engine: engine.scheduler.has_work).result(TIMEOUT):
        assert time.monotonic() < deadline, "requests go on although their readers have left"
        time.sleep(0.01)
    worker.call(check_settled).result(TIMEOUT)


async def read(worker: EngineWorker, prompt, sampling=SAMPLING, **settings):
    handle = await worker.submit(prompt, sampling, **settings)
    return collect([event async for event in worker.stream(handle)])


def test_an_answer_to_an_async_reader(worker, answer):
    result = run(read(worker, PROMPT, LONG))
    assert result.token_ids == answer.token_ids
    assert result.text == answer.text


def test_an_answer_to_a_thread(worker, answer):
    handle = worker.submit_sync(PROMPT, LONG)
    assert collect(worker.stream_sync(handle)).token_ids == answer.token_ids


def test_deltas_come_while_the_answer_is_computed(worker):
    handle = worker.submit_sync(PROMPT, LONG)
    stream = worker.stream_sync(handle)
    assert isinstance(next(stream), TokenDelta)
    assert handle.request.state == "running"
    stream.close()
    wait_until_idle(worker)


def test_what_submit_refuses_reaches_the_caller(worker):
    with pytest.raises(PromptTooLongError):
        run(worker.submit(random_tokens(random.Random(0), 300), SAMPLING))
    with pytest.raises(ConfigError):
        worker.submit_sync([1000], SAMPLING)
    with pytest.raises(TypeError):
        worker.submit_sync(PROMPT, SAMPLING, tenant="unknown")
    assert worker.is_alive


def test_a_full_queue_reaches_the_caller(tiny_folder):
    worker = EngineWorker(tiny_engine(tiny_folder, max_num_seqs=1, max_num_waiting=1)).start()

    async def flood():
        tries = [worker.submit(PROMPT, LONG) for _ in range(12)]
        return await asyncio.gather(*tries, return_exceptions=True)

    results = run(flood())
    refused = [result for result in results if isinstance(result, Exception)]
    assert refused
    assert all(isinstance(result, QueueFullError) for result in refused)
    for handle in results:
        if handle not in refused:
            worker.cancel(handle)
    wait_until_idle(worker)
    worker.close()


def test_cancel(worker):
    async def cancelled():
        handle = await worker.submit(PROMPT, LONG)
        events = []
        async for event in worker.stream(handle):
            events.append(event)
            if len(events) == 3:
                worker.cancel(handle)
                worker.cancel(handle)
        return collect(events)

    result = run(cancelled())
    assert result.finish_reason is FinishReason.CANCELLED
    assert 3 <= len(result.token_ids) < 200
    wait_until_idle(worker)


def test_a_reader_that_leaves_early(worker, answer):
    async def leave():
        handle = await worker.submit(PROMPT, LONG)
        events = worker.stream(handle)
        async for _ in events:
            break
        await events.aclose()
        return handle

    handle = run(leave())
    wait_until_idle(worker)
    assert len(handle.request.output_tokens) < 200
    assert run(read(worker, PROMPT, LONG)).token_ids == answer.token_ids


def test_a_reader_whose_task_is_cancelled(worker):
    async def leave():
        task = asyncio.create_task(read(worker, PROMPT, LONG))
        while not worker.engine.totals.output_tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(leave())
    wait_until_idle(worker)
    assert worker.engine.totals.cancelled == 1


def test_a_submitter_cancelled_before_it_has_its_handle(worker):
    """The engine is busy with a call; the request must not run for nobody."""
    release = threading.Event()
    started = threading.Event()

    def busy(engine):
        started.set()
        release.wait(TIMEOUT)

    async def leave():
        worker.call(busy)
        assert await asyncio.to_thread(started.wait, TIMEOUT)
        task = asyncio.create_task(worker.submit(PROMPT, LONG))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()

    run(leave())
    wait_until_idle(worker)
    assert worker.engine.totals.output_tokens == 0


def test_a_loop_that_closes_while_its_request_runs(worker, answer):
    handles = [run(worker.submit(PROMPT, LONG)) for _ in range(3)]
    assert run(read(worker, PROMPT, LONG)).token_ids == answer.token_ids
    for handle in handles:
        worker.cancel(handle)
    wait_until_idle(worker)
    assert worker.is_alive


@pytest.mark.parametrize("seed", range(2))
def test_many_readers_with_random_departures(tiny_folder, seed):
    generator = random.Random(seed)
    engine = tiny_engine(tiny_folder, num_blocks=30, max_num_seqs=6, max_num_batched_tokens=40)
    worker = EngineWorker(engine).start()
    reference = tiny_engine(tiny_folder)
    head, passages = template(PROMPT[:20]), [passage([i] * (11 + 7 * i)) for i in range(4)]

    async def client(number: int):
        chosen = generator.sample(passages, generator.randint(0, 2))
        prompt = Prompt([head, *chosen, tail([number % 97, 5])])
        sampling = SamplingParams(max_tokens=generator.randint(1, 30))
        conversation = generator.choice([None, None, f"c{number % 3}"])
        await asyncio.sleep(generator.random() * 0.3)
        task = asyncio.create_task(read(worker, prompt, sampling, conversation=conversation))
        if generator.random() < 0.5:
            await asyncio.sleep(generator.random() * 0.2)
            task.cancel()
        try:
            return prompt, sampling, await task
        except asyncio.CancelledError:
            return None

    async def clients():
        return await asyncio.gather(*(client(number) for number in range(40)))

    results = run(clients())
    wait_until_idle(worker)
    finished = [result for result in results if result is not None]
    assert 0 < len(finished) < 40
    for prompt, sampling, result in finished:
        assert result.token_ids == ask(reference, prompt, sampling).token_ids
    worker.close()
    check_settled(engine)


def test_threads_and_tasks_at_once(worker, answer):
    prompts = [PROMPT[i:] for i in range(12)]
    expected = worker.call(lambda engine: engine.generate(prompts, SAMPLING)).result(TIMEOUT)
    tokens = [result.token_ids for result in expected]

    def in_thread(prompt):
        return collect(worker.stream_sync(worker.submit_sync(prompt, SAMPLING))).token_ids

    def in_loop(part):
        async def together():
            return [result.token_ids for result in await asyncio.gather(*(read(worker, p) for p in part))]

        return run(together())

    with ThreadPoolExecutor(6) as pool:
        singles = [pool.submit(in_thread, prompt) for prompt in prompts]
        loops = [pool.submit(in_loop, prompts[i : i + 6]) for i in (0, 6)]
        assert [single.result(TIMEOUT) for single in singles] == tokens
        assert [token_ids for loop in loops for token_ids in loop.result(TIMEOUT)] == tokens
    wait_until_idle(worker)


def test_call_gives_results_and_exceptions(worker):
    assert worker.call(lambda engine: engine.stats().waiting).result(TIMEOUT) == 0
    assert worker.call(lambda engine: threading.current_thread().name).result(TIMEOUT) == "engine"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda engine: 1 // 0).result(TIMEOUT)
    with pytest.raises(ConfigError):
        worker.call(lambda engine: engine.generate([[1], [1000]])).result(TIMEOUT)
    assert worker.call(lambda engine: engine.precompute(template([1]), [passage([2, 3])])).result(TIMEOUT) == 1


def test_a_call_beside_running_requests(worker, answer):
    handle = worker.submit_sync(PROMPT, LONG)
    stream = worker.stream_sync(handle)
    first = next(stream)
    passages = [passage([i] * 30) for i in range(3)]
    assert worker.call(lambda engine: engine.precompute(template([1, 2]), passages)).result(TIMEOUT) == 3
    assert collect([first, *stream]).token_ids == answer.token_ids


def fail_next_steps(worker: EngineWorker, monkeypatch, count: int) -> None:
    """Make the model fail so many times, from between two steps on."""
    original, left = worker.engine.runner.run, [count]

    def failing(batch):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("the model is out of luck")
        return original(batch)

    worker.call(lambda engine: monkeypatch.setattr(engine.runner, "run", failing)).result(TIMEOUT)


def test_a_step_that_fails_ends_its_requests_and_the_next_one_works(worker, answer, monkeypatch, caplog):
    running = worker.submit_sync(PROMPT, LONG)
    stream = worker.stream_sync(running)
    next(stream)
    fail_next_steps(worker, monkeypatch, 1)
    with pytest.raises(StepFailedError, match=r"out of luck.*ask again"):
        list(stream)
    assert "out of luck" in caplog.text
    worker.call(check_settled).result(TIMEOUT)
    assert run(read(worker, PROMPT, LONG)).token_ids == answer.token_ids


def test_what_fails_together_may_succeed_in_parts(worker, answer, monkeypatch):
    """A step that fails once, for want of memory perhaps, costs nobody anything."""
    fail_next_steps(worker, monkeypatch, 1)
    release = threading.Event()
    worker.call(lambda engine: release.wait(TIMEOUT))

    async def all_readers():
        tasks = [asyncio.create_task(read(worker, PROMPT[i:], LONG)) for i in range(3)]
        await asyncio.sleep(0.01)
        release.set()
        return await asyncio.gather(*tasks)

    results = run(all_readers())
    assert results[0].token_ids == answer.token_ids
    assert worker.engine.totals.failed == 0


@pytest.mark.parametrize("place", ["model", "sampler", "output"])
def test_only_the_request_that_fails_is_ended(worker, answer, monkeypatch, place):
    """Its reader hears why; those beside it in the same steps get the answer that they would have had."""
    poison = 77
    culprit = [poison, *PROMPT[1:]]

    def break_it(engine):
        original = engine.runner.run
        request = max(engine._answers, key=lambda one: one.prompt.tokens[0] == poison)
        if place == "model":
            run_batch = lambda batch: 1 // 0 if begins_with(batch, poison) else original(batch)  # noqa: E731
            monkeypatch.setattr(engine.runner, "run", run_batch)
        elif place == "sampler":
            monkeypatch.setattr(engine._answers[request].sampler, "sample", lambda logits: 1 // 0)
        else:
            monkeypatch.setattr(engine._answers[request].stream, "push", lambda *args, **kwargs: 1 // 0)

    async def all_readers():
        gate = threading.Event()
        worker.call(lambda engine: gate.wait(TIMEOUT))
        tasks = [
            asyncio.create_task(read(worker, prompt, LONG)) for prompt in (PROMPT, culprit, PROMPT[1:], PROMPT[2:])
        ]
        await asyncio.sleep(0.01)
        worker.call(break_it)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, failed, *others = run(all_readers())
    assert isinstance(failed, StepFailedError)
    assert first.token_ids == answer.token_ids
    assert all(len(other.token_ids) == len(answer.token_ids) for other in others)
    assert worker.engine.totals.failed == 1
    assert worker.is_well
    wait_until_idle(worker)


def test_an_engine_whose_steps_all_fail_is_not_well_until_one_succeeds(worker, answer, monkeypatch):
    monkeypatch.setattr("engine.worker.IDLE_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(worker.engine.runner, "run", lambda batch: 1 // 0)
        for number in range(3):
            assert worker.is_well, number
            with pytest.raises(StepFailedError):
                run(read(worker, PROMPT))
        assert not worker.is_well
        time.sleep(0.1)
        assert not worker.is_well, "it tries by itself, and fails"
    deadline = time.monotonic() + TIMEOUT
    while not worker.is_well:
        assert time.monotonic() < deadline, "it does not find out that it works again"
        time.sleep(0.01)
    assert run(read(worker, PROMPT, LONG)).token_ids == answer.token_ids


def test_an_engine_is_well_when_all_it_does_is_end_what_comes_too_late(worker):
    """Each is late before a step has begun it."""
    queue = SimpleQueue()

    def submit_late(engine):
        request = engine.submit(PROMPT, SAMPLING, deadline=time.perf_counter() + 0.01)
        time.sleep(0.02)
        return worker._register(request, queue.put, queue)

    for _ in range(4):
        with pytest.raises(DeadlineExceededError):
            collect(worker.stream_sync(worker.call(submit_late).result(TIMEOUT)))
    assert worker.engine.totals.steps == 0
    assert worker.is_well


def test_how_long_the_engine_has_been_at_one_thing(worker):
    assert worker.busy_seconds == 0
    started, release = threading.Event(), threading.Event()

    def hang(engine):
        started.set()
        release.wait(TIMEOUT)

    hanging = worker.call(hang)
    assert started.wait(TIMEOUT)
    first = worker.busy_seconds
    time.sleep(0.02)
    assert worker.busy_seconds > first > 0
    release.set()
    hanging.result(TIMEOUT)
    wait_until_idle(worker)


def test_a_deadline_ends_what_runs_and_what_waits(tiny_folder, answer):
    worker = EngineWorker(tiny_engine(tiny_folder, max_num_seqs=1)).start()
    soon = time.perf_counter() + 0.3
    endless = SamplingParams(max_tokens=200, ignore_eos=True)

    def slowed(engine):
        original = engine.runner.run
        engine.runner.run = lambda batch: (time.sleep(0.005), original(batch))[1]

    worker.call(slowed).result(TIMEOUT)

    async def readers():
        runs, waits = [asyncio.create_task(read(worker, PROMPT, endless, deadline=soon)) for _ in range(2)]
        stays = asyncio.create_task(read(worker, PROMPT, LONG))
        return await asyncio.gather(runs, waits, stays, return_exceptions=True)

    late, never_begun, stayed = run(readers())
    assert isinstance(late, DeadlineExceededError)
    assert isinstance(never_begun, DeadlineExceededError)
    assert stayed.token_ids == answer.token_ids
    with pytest.raises(DeadlineExceededError, match="ask again"):
        worker.submit_sync(PROMPT, deadline=time.perf_counter())
    wait_until_idle(worker)
    assert (worker.engine.totals.late, worker.engine.totals.failed) == (2, 0)
    assert not worker.engine._answers
    worker.close()


def test_who_leaves_gives_the_blocks_back_before_the_next_step(worker, monkeypatch):
    original, held = worker.engine.runner.run, []

    def watched(batch):
        held.append(worker.engine.stats().running)
        return original(batch)

    worker.call(lambda engine: monkeypatch.setattr(engine.runner, "run", watched)).result(TIMEOUT)
    stays = worker.submit_sync(PROMPT, SamplingParams(max_tokens=150, ignore_eos=True))
    leaves = worker.submit_sync(PROMPT[5:], SamplingParams(max_tokens=200, ignore_eos=True))
    stream = worker.stream_sync(leaves)
    next(stream)
    seen: list[int] = []
    worker.call(lambda engine: seen.append(len(held)))
    stream.close()
    collect(worker.stream_sync(stays))
    assert set(held[seen[0] + 1 :]) == {1}, "at most the step that was under way had it still"


def test_a_scheduler_that_fails_is_no_endless_loop(worker, answer, monkeypatch):
    """Nothing runs yet when admission raises; those who wait must hear of it."""

    def failing(request):
        raise RuntimeError("no admission")

    with monkeypatch.context() as patched:
        patched.setattr(worker.engine.cache, "admit", failing)
        with pytest.raises(StepFailedError, match="no admission"):
            run(read(worker, PROMPT))
    assert run(read(worker, PROMPT, LONG)).token_ids == answer.token_ids


def test_a_thread_that_dies_leaves_nobody_waiting(tiny_folder, monkeypatch, caplog):
    worker = EngineWorker(tiny_engine(tiny_folder)).start()
    stream = worker.stream_sync(worker.submit_sync(PROMPT, LONG))
    next(stream)

    def failing(request):
        raise RuntimeError("broken for good")

    monkeypatch.setattr(worker.engine, "take_events", failing)
    with pytest.raises(EngineStoppedError):
        list(stream)
    worker._thread.join(TIMEOUT)
    assert not worker.is_alive
    assert "broken for good" in caplog.text
    with pytest.raises(EngineStoppedError):
        run(worker.submit(PROMPT))
    worker.close()


def test_closing_while_requests_run(tiny_folder):
    worker = EngineWorker(tiny_engine(tiny_folder, max_num_seqs=2)).start()

    async def readers():
        tasks = [asyncio.create_task(read(worker, PROMPT[i:], LONG)) for i in range(5)]
        while not worker.engine.totals.output_tokens:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(worker.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    handle = worker.submit_sync(PROMPT, LONG)
    results = run(readers())
    assert all(isinstance(result, EngineStoppedError) for result in results), results
    with pytest.raises(EngineStoppedError):
        list(worker.stream_sync(handle))
    check_settled(worker.engine)


def test_after_close(tiny_folder):
    worker = EngineWorker(tiny_engine(tiny_folder)).start()
    worker.close()
    worker.close()
    assert not worker.is_alive
    with pytest.raises(EngineStoppedError):
        worker.submit_sync(PROMPT)
    with pytest.raises(EngineStoppedError):
        run(worker.submit(PROMPT))
    with pytest.raises(EngineStoppedError):
        worker.call(lambda engine: 1)


def test_before_start(tiny_folder):
    worker = EngineWorker(tiny_engine(tiny_folder))
    with pytest.raises(EngineStoppedError, match="not running"):
        worker.submit_sync(PROMPT)
    worker.close()


def test_calls_that_wait_when_it_closes_are_refused(tiny_folder):
    """None of those who called before the end may wait for ever, or run on an engine that has ended."""
    worker = EngineWorker(tiny_engine(tiny_folder)).start()
    release, started, ran = threading.Event(), threading.Event(), []

    def busy(engine):
        started.set()
        release.wait(TIMEOUT)

    first = worker.call(busy)
    assert started.wait(TIMEOUT)
    late = [worker.call(ran.append) for _ in range(3)]
    closing = threading.Thread(target=worker.close)
    closing.start()
    while worker.is_alive:
        time.sleep(0.001)
    release.set()
    closing.join(TIMEOUT)
    assert first.result(TIMEOUT) is None
    for future in late:
        with pytest.raises(EngineStoppedError):
            future.result(TIMEOUT)
    assert not ran


def test_many_closes_race_with_submits(tiny_folder):
    """Whenever close comes, every submit either raises or its reader hears the end."""
    engine = tiny_engine(tiny_folder)
    for round_number in range(15):
        worker = EngineWorker(engine).start()

        def client(number, worker=worker):
            try:
                return collect(worker.stream_sync(worker.submit_sync(PROMPT[number:], SAMPLING)))
            except EngineStoppedError:
                return None

        with ThreadPoolExecutor(5) as pool:
            futures = [pool.submit(client, number) for number in range(5)]
            time.sleep(round_number * 0.004)
            worker.close()
            results = [future.result(TIMEOUT) for future in futures]
        assert all(result is None or len(result.token_ids) == 12 for result in results)
        check_settled(engine)


def test_invariants_are_looked_at_when_idle(worker, monkeypatch, caplog):
    looked = threading.Event()

    def broken():
        looked.set()
        raise AssertionError("block 3 is free and held")

    monkeypatch.setattr("engine.worker.IDLE_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(worker.engine, "check_invariants", broken)
        run(read(worker, PROMPT))
        assert looked.wait(TIMEOUT)
    run(read(worker, PROMPT))
    assert "block 3 is free and held" in caplog.text
