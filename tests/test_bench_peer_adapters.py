"""OpenVINO and llama.cpp as contestants: what their adapters do with libraries that only pretend to compute."""

import array
import ctypes
import random
from types import SimpleNamespace

import numpy
import pytest

from rag.bench.peers import llamacpp_adapter, openvino_adapter
from rag.bench.peers.llamacpp_adapter import States, common
from rag.bench.peers.serving import OneByOne

CONTEXT = 64
TOKEN_BYTES = 4
VOCABULARY = 1000


def a_job(number, prompt, tokens=4):
    return {"number": number, "prompt": list(prompt), "tokens": tokens, "conversation": ""}


def next_token(tokens):
    """What a model writes after tokens: it depends on all of them, in order."""
    return sum(place * token for place, token in enumerate(tokens, 1)) % VOCABULARY


def greedy(prompt, tokens=4):
    written = list(prompt)
    for _ in range(tokens):
        written.append(next_token(written))
    return written[len(prompt) :]


class FakeLlama:
    """Keeps tokens where llama.cpp keeps their KV."""

    def __init__(self, _path, **options):
        assert options["n_ctx"] == CONTEXT
        self.n_tokens, self.cells, self.computed, self.broken = 0, [], 0, False
        self.ctx = self

    def eval(self, tokens):
        if self.broken:
            raise RuntimeError("llama_decode returned 1")
        assert tokens, "nothing to compute, so there are no logits"
        assert self.n_tokens <= len(self.cells), "KV that was never computed"
        self.cells[self.n_tokens :] = tokens
        self.n_tokens = len(self.cells)
        self.computed += len(tokens)

    def sample(self, temp):
        assert temp == 0.0
        assert self.n_tokens == len(self.cells)
        return next_token(self.cells)

    def reset(self):
        self.n_tokens = 0


def state_data(llama):
    return array.array("i", llama.cells).tobytes()


def read_state(llama, buffer, size, _sequence):
    ctypes.memmove(buffer, state_data(llama), size)


def write_state(llama, buffer, size, _sequence):
    llama.cells = list(array.array("i", bytes(buffer)))
    return size


@pytest.fixture
def llama_cpp(monkeypatch):
    api = SimpleNamespace(
        Llama=FakeLlama,
        llama_state_seq_get_size=lambda llama, _: len(state_data(llama)),
        llama_state_seq_get_data=read_state,
        llama_state_seq_set_data=write_state,
    )
    monkeypatch.setattr(llamacpp_adapter, "import_module", lambda _: api)
    monkeypatch.setattr(llamacpp_adapter, "version", lambda _: "0.0")

    def load(kept_tokens=1000):
        gib = kept_tokens * TOKEN_BYTES / 2**30
        return llamacpp_adapter.load({"gguf": "x.gguf", "context": CONTEXT, "threads": 2, "kv_gib": gib})

    return load


def answered(adapter, number, prompt, tokens=4):
    """The answer to a prompt, how much of it was found, and how many tokens were computed."""
    before = adapter._llama.computed
    news = list(adapter.answer(a_job(number, prompt, tokens)))
    assert [one.get("done", False) for one in news] == [False] * (tokens - 1) + [True]
    assert all(one["started"] <= one["at"] for one in news)
    written = [token for one in news for token in one["tokens"]]
    assert len(written) == tokens == sum(one["count"] for one in news)
    return written, news[-1]["cached"]["device"], adapter._llama.computed - before


def test_llamacpp_goes_on_from_the_longest_prefix_of_what_it_read_last(llama_cpp):
    adapter, prompt = llama_cpp(), range(100, 120)
    assert answered(adapter, 0, prompt) == (greedy(prompt), 0, 20 + 3)
    assert answered(adapter, 1, prompt) == (greedy(prompt), 19, 1 + 3), "one token has to be computed for its logits"
    other = [*range(100, 115), 7, 8, 9]
    assert answered(adapter, 2, other) == (greedy(other), 15, 3 + 3)
    turn = [*other, *greedy(other), 1, 2]
    assert answered(adapter, 3, turn) == (greedy(turn), 18 + 3, 3 + 3), "the last token's KV was not computed"


def test_llamacpp_keeps_sequences_that_would_be_lost(llama_cpp):
    adapter = llama_cpp()
    one, other = [5, *range(100, 120)], [5, *range(200, 220)]
    assert answered(adapter, 0, one)[1] == 0
    assert answered(adapter, 1, other)[1] == 1
    assert answered(adapter, 2, one) == (greedy(one), 20, 1 + 3), "it was not brought back"
    assert answered(adapter, 3, other) == (greedy(other), 20, 1 + 3)
    longer = [*one, 1, 2, 3]
    assert answered(adapter, 4, longer) == (greedy(longer), 21, 3 + 3)
    adapter.forget()
    assert answered(adapter, 5, one) == (greedy(one), 0, 21 + 3)
    assert answered(adapter, 6, other)[1] == 1


def test_llamacpp_keeps_no_more_than_it_may(llama_cpp):
    adapter = llama_cpp(kept_tokens=50)
    prompts = [range(start, start + 20) for start in (100, 200, 300)]
    for number, prompt in enumerate(prompts):
        assert answered(adapter, number, prompt)[1] == 0
    assert answered(adapter, 3, prompts[1])[1] == 19, "there was room for two of 23"
    assert answered(adapter, 4, prompts[0])[1] == 0, "the one unused for longest had to go"


def test_llamacpp_answers_in_any_order_as_it_would_alone(llama_cpp):
    adapter, draw = llama_cpp(kept_tokens=90), random.Random(3)
    parts = [[100 * n + i for i in range(8)] for n in range(1, 5)]
    for number in range(60):
        prompt = [1, 2, *(token for part in draw.sample(parts, 3) for token in part), number % 3]
        written, cached, computed = answered(adapter, number, prompt)
        assert written == greedy(prompt)
        assert cached + computed == len(prompt) + 3


def test_llamacpp_in_the_loop_of_a_child(llama_cpp):
    adapter = llama_cpp()
    engine, prompt = OneByOne(adapter), list(range(100, 120))
    engine.submit(a_job(0, prompt))
    assert engine.step()[0]["tokens"] == greedy(prompt)[:1]
    engine.cancel()
    assert not engine.busy
    engine.submit(a_job(1, [*prompt[:10], 3]))
    engine.submit(a_job(2, range(CONTEXT)))
    engine.submit(a_job(3, prompt))
    news = []
    while engine.busy:
        news += engine.step()
    written = {
        number: [t for one in news if one["number"] == number for t in one.get("tokens", ())] for number in (1, 3)
    }
    assert written == {1: greedy([*prompt[:10], 3]), 3: greedy(prompt)}
    assert [one["error"] for one in news if "error" in one] == [
        "ValueError: 64 tokens and an answer of 4 are more than 64"
    ]
    assert engine.prepare([], []) == {"tokens": 0, "seconds": 0.0}
    assert answered(adapter, 4, prompt)[1] == 0


def test_llamacpp_goes_on_after_a_failure(llama_cpp):
    adapter, prompt = llama_cpp(), range(100, 120)
    answered(adapter, 0, prompt)
    adapter._llama.broken = True
    with pytest.raises(RuntimeError, match="llama_decode"):
        answered(adapter, 1, [*range(100, 110), 7])
    adapter._llama.broken = False
    assert answered(adapter, 2, prompt)[0] == greedy(prompt)


def test_llamacpp_times_what_follows_a_cached_prefix(llama_cpp):
    adapter, prompt = llama_cpp(), list(range(100, 120))
    for computed in (20, 5):
        before = adapter._llama.computed
        assert adapter.first_token(prompt, 15) > 0
        assert adapter._llama.computed - before == computed, "the prefix is read once"
        assert adapter._llama.cells == prompt
    before = adapter._llama.computed
    assert adapter.decode([prompt], 15, 3) > 0
    assert adapter._llama.computed - before == 5 + 3
    assert adapter._llama.cells[20:] == greedy(prompt)[:3]
    with pytest.raises(NotImplementedError, match="one sequence"):
        adapter.decode([prompt, prompt], 0, 3)


def test_sequences_that_are_kept():
    states = States(10)
    states.add((1, 2, 3), b"abc")
    states.add((1, 2, 3, 4), b"abcd")
    assert states.holds((1, 2, 3))
    assert not states.holds((1, 3))
    assert states.best((1, 2, 9), 2) is None, "the context has as much"
    assert states.best((1, 2, 9), 1) == ((1, 2, 3, 4), b"abcd")
    states.add((7, 8), b"12345")
    assert states.best((1, 2), 0) is not None
    states.add((9,), b"6")
    assert states.best((7, 8), 0) is not None
    states.add((5, 6), b"123")
    assert states.best((1, 2), 0) is None, "it was used before all others"
    states.clear()
    assert states.best((7, 8), 0) is None


def test_shared_beginnings():
    draw = random.Random(0)
    for _ in range(200):
        one, other = ([draw.randrange(2) for _ in range(draw.randrange(9))] for _ in range(2))
        expected = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        assert common(one, other) == (min(len(one), len(other)) if expected is None else expected)


class Status:
    RUNNING, FINISHED, IGNORED, CANCEL, STOP = range(5)


class FakeHandle:
    def __init__(self, prompt, config):
        self.prompt, self.config, self.unread = list(prompt), config, []
        self.status, self.written = Status.RUNNING, 0

    def get_status(self):
        return self.status

    def can_read(self):
        return bool(self.unread)

    def read(self):
        return {0: SimpleNamespace(generated_ids=[self.unread.pop(0)])}

    def cancel(self):
        self.status = Status.CANCEL


class FakePipeline:
    """Computes no more than so many prompt tokens a step, first come, first served; then all that are read write."""

    loads = 0
    room = 100

    def __init__(self, path, scheduler, device, properties):
        type(self).loads += 1
        assert (path, device, properties) == ("x.gguf", "CPU", {"INFERENCE_NUM_THREADS": 2})
        assert scheduler.enable_prefix_caching
        assert scheduler.cache_size == 3
        self.budget, self.handles, self.unread, self.answered = scheduler.max_num_batched_tokens, [], {}, 0

    def add_request(self, number, ids, config):
        assert config.ignore_eos
        assert not config.do_sample
        handle = FakeHandle(ids[0], config)
        self.handles.append(handle)
        self.unread[handle] = len(handle.prompt)
        return handle

    def has_non_finished_requests(self):
        return bool(self.handles)

    def step(self):
        left = self.budget
        for handle in self.handles:
            if len(handle.prompt) > self.room:
                handle.status = Status.IGNORED
            took = min(left, self.unread[handle])
            self.unread[handle] -= took
            left -= took
            if handle.status == Status.RUNNING and not self.unread[handle]:
                self._write(handle)
        self.handles = [handle for handle in self.handles if handle.status == Status.RUNNING]

    def _write(self, handle):
        handle.prompt.append(next_token(handle.prompt))
        handle.unread.append(handle.prompt[-1])
        handle.written += 1
        if handle.written == handle.config.max_new_tokens:
            handle.status = Status.FINISHED
            self.answered += 1


@pytest.fixture
def openvino(monkeypatch):
    modules = {
        "openvino_genai": SimpleNamespace(
            SchedulerConfig=SimpleNamespace,
            GenerationConfig=SimpleNamespace,
            ContinuousBatchingPipeline=FakePipeline,
            GenerationStatus=Status,
        ),
        "openvino": SimpleNamespace(Tensor=lambda rows: rows.tolist()),
        "numpy": numpy,
    }
    monkeypatch.setattr(openvino_adapter, "import_module", modules.get)
    monkeypatch.setattr(openvino_adapter, "version", lambda _: "0.0")
    monkeypatch.setattr(FakePipeline, "loads", 0)
    return openvino_adapter.load({"gguf": "x.gguf", "kv_gib": 3, "tokens": 10, "threads": 2})


def all_news(engine):
    news = []
    while engine.busy:
        news += engine.step()
    return news


def test_openvino_answers_requests_together(openvino):
    prompts = {0: range(100, 108), 1: range(200, 215), 2: range(300, 304)}
    for number, prompt in prompts.items():
        openvino.submit(a_job(number, prompt))
    news = all_news(openvino)
    for number, prompt in prompts.items():
        own = [one for one in news if one["number"] == number]
        assert [token for one in own for token in one["tokens"]] == greedy(prompt)
        assert [one["done"] for one in own] == [False, False, False, True]
        assert sum(one["count"] for one in own) == 4
        assert [one["at"] for one in own] == sorted(one["at"] for one in own)
        assert own[0]["started"] is None, "nobody tells when one of several began"


def test_openvino_tells_when_a_prompt_began_that_ran_alone(openvino):
    openvino.submit(a_job(0, range(100, 125)))
    assert openvino.step() == []
    assert openvino.step() == []
    openvino.submit(a_job(1, range(200, 205)))
    news = all_news(openvino)
    began = next(one for one in news if one["number"] == 0)
    assert began["started"] < began["at"]
    assert {one["started"] for one in news if one["number"] == 1} == {None}


def test_openvino_without_room_for_a_prompt(openvino):
    openvino.submit(a_job(0, range(100, 250)))
    openvino.submit(a_job(1, range(100, 105)))
    news = all_news(openvino)
    assert [(one["number"], one["error"]) for one in news if "error" in one] == [
        (0, "a prompt was not answered; give it more KV memory")
    ]
    assert [token for one in news if one["number"] == 1 for token in one["tokens"]] == greedy(range(100, 105))


def test_openvino_drops_and_forgets(openvino):
    assert openvino.prepare([], []) == {"tokens": 0, "seconds": 0.0}
    assert FakePipeline.loads == 1, "nothing was in its cache"
    assert openvino._pipeline.answered == 1, "its kernels are not compiled yet"
    openvino.submit(a_job(0, range(100, 108)))
    openvino.step()
    openvino.cancel()
    assert not openvino.busy
    assert not openvino._pipeline.has_non_finished_requests()
    openvino.submit(a_job(1, range(100, 108)))
    assert [token for one in all_news(openvino) for token in one["tokens"]] == greedy(range(100, 108))
    openvino.prepare([], [])
    openvino.prepare([], [])
    assert (FakePipeline.loads, openvino._pipeline.answered) == (2, 1)


def test_openvino_times_what_follows_a_cached_prefix(openvino):
    assert openvino.first_token(list(range(20)), 15) > 0
    assert openvino._pipeline.answered == 1 + 2, "the prefix first, then all of it"
    assert openvino.first_token(list(range(20)), 0) > 0
    assert openvino._pipeline.answered == 1 + 3
    assert openvino.decode([list(range(20)), list(range(30))], 0, 3) > 0
    assert openvino._pipeline.answered == 1 + 3 + 2 + 2
    with pytest.raises(RuntimeError, match="give it more KV memory"):
        openvino.first_token(list(range(101)), 0)
