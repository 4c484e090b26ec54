"""A whole engine over the Triton kernels, and over padded steps: the same tokens as with the reference."""

import random

import pytest
from engine_helpers import check_settled, passage, random_tokens, tail, template, tiny_engine

from engine import Engine, Prompt, SamplingParams
from engine.cuda_graphs import CudaGraphs
from kernels.triton_kernels import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
GREEDY = SamplingParams(max_tokens=3, ignore_eos=True)

pytestmark = pytest.mark.usefixtures("one_thread")


def answers(engine: Engine, asked: list[Prompt]) -> list[tuple[int, ...]]:
    """What is said to the first prompt, then to both in one batch with their common passages known."""
    told = [*engine.generate(asked[:1], GREEDY), *engine.generate(asked, GREEDY)]
    check_settled(engine)
    return [generation.token_ids for generation in told]


@pytest.fixture
def asked() -> list[Prompt]:
    """Two prompts that share a template and a passage, of which a block is partly filled."""
    generator = random.Random(4)
    head = [template(random_tokens(generator, 9)), passage(random_tokens(generator, 21))]
    return [Prompt([*head, passage(random_tokens(generator, 14 + i)), tail((3, 4, 5 + i))]) for i in range(2)]


@pytest.fixture
def expected(tiny_folder, asked) -> list[tuple[int, ...]]:
    return answers(tiny_engine(tiny_folder, block_size=4), asked)


def test_an_engine_answers_as_with_the_reference(tiny_folder, asked, expected):
    assert answers(tiny_engine(tiny_folder, block_size=4, backend="triton", device=DEVICE), asked) == expected


def test_an_engine_answers_so_by_padded_steps(tiny_folder, asked, expected, monkeypatch):
    engine = tiny_engine(tiny_folder, block_size=4, backend="triton", device=DEVICE)
    plain, runner, taken = engine.runner.run, engine.runner, []
    graphs = CudaGraphs(runner.model, runner.kv_cache, max_rows=4, max_model_len=256, capture=not INTERPRETED)

    def run(batch):
        logits = graphs.run(batch)
        taken.append(logits is not None)
        return plain(batch) if logits is None else logits

    monkeypatch.setattr(runner, "run", run)
    assert answers(engine, asked) == expected
    assert any(taken), "decode steps have few rows"
    assert not all(taken), "prompts have more"
