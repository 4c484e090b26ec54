"""Shifted passages and repaired heads through the whole engine, against dense attention written out."""

import random

import pytest
import torch
from dense_oracle import chunk_answer
from engine_helpers import BLOCK, check_settled, collect, passage, random_tokens, tail, template, tiny_engine
from tiny_models import MODELS, make_engine_folder

from engine import Engine, Prompt, Reuse, SamplingParams
from engine.request import Request
from engine.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = random.Random(21)
TEMPLATE = template(random_tokens(GENERATOR, 19))
# off a block boundary, on it, a block and one token, no longer than a repair, several blocks
PASSAGES = [passage(random_tokens(GENERATOR, n), f"p{n}") for n in (37, 32, 17, 9, 50)]
QUESTION = tail(random_tokens(GENERATOR, 7))
ORDERS = [(0, 1), (1, 0), (4, 3, 2), (2, 3, 0, 1, 4)]
STEPS = 5


class ChunkEngine:
    """An engine whose requests run with chunk reuse, without a certificate, and that keeps their first logits."""

    def __init__(self, folder, *, repair: int, **settings) -> None:
        self.engine: Engine = tiny_engine(folder, **settings)
        self.repair = repair
        self.first_logits: dict[Request, torch.Tensor] = {}

    def submit(self, prompt: Prompt, *, reuse: Reuse = Reuse.CHUNK, max_tokens: int = STEPS) -> Request:
        sampling = SamplingParams(max_tokens=max_tokens)
        request = self.engine.submit(prompt, sampling, reuse=reuse, uncertified_repair=self.repair)
        self.engine._answers[request].sampler = RecordingSampler(self.first_logits, request)
        return request

    def answer(self, prompts: list[Prompt], **settings):
        """Answer all in one batch; return the first logits and the generations."""
        requests = [self.submit(prompt, **settings) for prompt in prompts]
        results = [collect(self.engine.stream(request)) for request in requests]
        return [self.first_logits[request] for request in requests], results


class RecordingSampler(Sampler):
    """A greedy sampler that keeps the first logits it sees."""

    def __init__(self, first_logits: dict[Request, torch.Tensor], request: Request) -> None:
        super().__init__(SamplingParams())
        self._first_logits, self._request = first_logits, request

    def sample(self, logits: torch.Tensor) -> int:
        self._first_logits.setdefault(self._request, logits.clone())
        return super().sample(logits)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each model, made when it is asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            make_engine_folder(made[name], name)
        return made[name]

    return folder


def prompt_of(order) -> Prompt:
    return Prompt([TEMPLATE, *(PASSAGES[i] for i in order), QUESTION])


def expected(engine: Engine, order, repair: int):
    passages = [list(PASSAGES[i].tokens) for i in order]
    decoder = engine.runner.model
    return chunk_answer(decoder, list(TEMPLATE.tokens), passages, list(QUESTION.tokens), repair=repair, steps=STEPS)


def check_against_oracle(chunks: ChunkEngine, repair: int, *, tolerance: float, exact_tokens: bool = True) -> None:
    chunks.engine.precompute(TEMPLATE, PASSAGES)
    before = chunks.engine.stats()
    logits, results = chunks.answer([prompt_of(order) for order in ORDERS])
    for order, ours, result in zip(ORDERS, logits, results, strict=True):
        theirs, tokens = expected(chunks.engine, order, repair)
        spread = float(theirs.max() - theirs.min())
        assert float((ours - theirs).abs().max()) < tolerance * spread, f"order {order}"
        if exact_tokens:
            assert list(result.token_ids) == tokens
        reports = result.cache.segments
        assert [str(report.outcome) for report in reports[:2]] == ["path", "canonical"]
        for report in reports[2:-1]:
            shifted = report.num_tokens > repair
            assert report.outcome == ("shifted" if shifted else "computed")
            assert report.hit_tokens == (report.num_tokens - repair if shifted else 0)
        assert reports[-1].hit_tokens == 0
    after = chunks.engine.stats()
    assert after.cached_blocks == before.cached_blocks, "a new order of known passages writes nothing"
    assert after.evicted_blocks == 0
    check_settled(chunks.engine)


@pytest.mark.parametrize("repair", [0, BLOCK, 2 * BLOCK])
@pytest.mark.parametrize("name", ["llama-tied", "llama-yarn-rope", "qwen3-norms", "qwen2-biases", "mistral-window"])
def test_chunk_reuse_is_what_it_says(folders, name, repair):
    check_against_oracle(ChunkEngine(folders(name), repair=repair), repair, tolerance=2e-5)


@pytest.mark.parametrize("budget", [1, 7, 16, 40])
def test_chunked_prefill_stops_anywhere_in_a_span(folders, budget):
    chunks = ChunkEngine(folders("llama-llama3-rope"), repair=BLOCK, max_num_batched_tokens=budget)
    check_against_oracle(chunks, BLOCK, tolerance=2e-5)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3-norms", "qwen2-mixed-windows"])
def test_torch_backend(folders, name):
    chunks = ChunkEngine(folders(name), repair=BLOCK, backend="torch")
    check_against_oracle(chunks, BLOCK, tolerance=1e-4)


def test_the_oracle_without_reuse_is_the_exact_answer(folders):
    """With everything repaired the oracle is a plain forward pass; and reuse does change the logits."""
    engine = tiny_engine(folders("llama-tied"))
    exact = engine.generate([prompt_of((0, 1))], SamplingParams(max_tokens=STEPS))[0]
    whole, tokens = expected(engine, (0, 1), repair=1000)
    assert list(exact.token_ids) == tokens
    reused, _ = expected(engine, (0, 1), repair=0)
    assert float((whole - reused).abs().max()) > 1e-3 * float(whole.max() - whole.min())


def test_exact_and_chunk_requests_in_one_batch(folders):
    chunks = ChunkEngine(folders("llama-tied"), repair=BLOCK)
    chunks.engine.precompute(TEMPLATE, PASSAGES)
    prompt = prompt_of((4, 0))
    exact_alone = tiny_engine(folders("llama-tied")).generate([prompt], SamplingParams(max_tokens=STEPS))[0]
    exact = chunks.submit(prompt, reuse=Reuse.EXACT)
    chunk = chunks.submit(prompt)
    results = [collect(chunks.engine.stream(request)) for request in (exact, chunk)]
    assert results[0].token_ids == exact_alone.token_ids
    assert list(results[1].token_ids) == expected(chunks.engine, (4, 0), BLOCK)[1]
    after = chunks.submit(prompt)  # what the exact request published is a better rung now
    report = collect(chunks.engine.stream(after)).cache
    assert [str(segment.outcome) for segment in report.segments] == ["path", "canonical", "path", "computed"]
    check_settled(chunks.engine)


def test_cancelled_chunk_requests_leave_nothing(folders):
    chunks = ChunkEngine(folders("llama-tied"), repair=BLOCK, max_num_batched_tokens=10)
    chunks.engine.precompute(TEMPLATE, PASSAGES)
    cached = chunks.engine.stats().cached_blocks
    for steps in range(12):
        requests = [chunks.submit(prompt_of(order)) for order in ORDERS]
        for _ in range(steps):
            chunks.engine.step()
        for request in requests:
            chunks.engine.forget(request)
        check_settled(chunks.engine)
    assert chunks.engine.stats().cached_blocks == cached


def test_preempted_chunk_requests_come_to_an_end(folders):
    """A tight pool: requests are preempted, and what they shift may be evicted before they come back."""
    name = "llama-tied"
    assert MODELS[name]
    prompts = [prompt_of(order) for order in ORDERS[:3]]
    blocks = max(prompt.num_blocks(BLOCK, extra_tokens=60) for prompt in prompts)
    chunks = ChunkEngine(folders(name), repair=BLOCK, num_blocks=blocks + 4)
    chunks.engine.precompute(TEMPLATE, PASSAGES)
    requests = [chunks.submit(prompt, max_tokens=60) for prompt in prompts]
    results = []
    for request in requests:
        while request in chunks.engine._answers and request.state != "finished":
            chunks.engine.step()
            chunks.engine.check_invariants()
        results.append(collect(chunks.engine.stream(request)))
    assert all(len(result.token_ids) == 60 for result in results)
    assert sum(result.num_preemptions for result in results) > 0
    check_settled(chunks.engine)
