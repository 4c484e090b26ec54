"""What reuse does to answers: every way to compute a prompt beside full prefill of the same prompt.

Full prefill answers greedily; each way is then made to give that answer, and its next-token distributions are compared.
It also answers freely. The engine is in this process and set up as a user has it.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine.certificate import Certificates
from engine.config import SamplingParams
from engine.output import Generation
from engine.prompt import Prompt, Reuse
from rag.bench.certified import repair_due
from rag.bench.suite.experiment import Check, Experiment
from rag.bench.suite.records import QualityRecord
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.suite.wrong_shift import wrong_shift
from rag.certify.answers import score_answer
from rag.certify.folders import certificates_of
from rag.certify.scorer import draw_orders, figures_of
from rag.certify.ways import Question, ask_all, at_repair, check_reused, passages_of, with_order, without_passages
from rag.config import RagConfig
from rag.model_hub import ModelHub

if TYPE_CHECKING:
    from engine.engine import Engine

__all__ = ["FULL", "WRONG_SHIFT", "Meter", "run_quality"]

MAX_TOKENS = 64  # of an answer
KV_BYTES = 1 << 30  # for a question at a time, where nothing else is configured
FULL, WRONG_SHIFT = "full", "wrong-shift"
READ = "quality/read"  # namespace of passages that were read before


def run_quality(
    experiment: Experiment, stream: RequestStream, config: RagConfig, *, unit: str, threads: int | None = None
) -> Iterator[QualityRecord]:
    """Measure a stream's requests, one after the other; records come as they are measured.

    Variants are full prefill, another order, no passages, `chunk`, and the experiment's repairs; where it checks that a
    wrong shift is seen, also that. `chunk` is chunk reuse as the contestant `preread-chunk` has it: at the certified
    repair where a certificate covers the prompt, else at `repair_due`. Its records do not say which of them it was;
    the contestant's answers to the same requests do.

    Args:
        experiment: its repairs, and the seed of its orders.
        stream: prompts of template, passages and tail.
        config: names the model; its engine settings are those of a user.
        unit: that the records belong to.
        threads: to compute with; None leaves it to torch.

    Raises:
        UnknownModelError: the model is not here.
        PromptTooLongError: a prompt with its answer does not fit the model or the memory for KV.
    """
    certificates = certificates_of(ModelHub(config.models_dir), config.model)
    with _computing_with(threads), _open_engine(config, certificates) as engine:
        meter = Meter(engine, experiment, certificates)
        meter.warm_up(stream.requests[0])
        for request in stream.requests:
            yield from meter.measure(request, unit)


@contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _open_engine(config: RagConfig, certificates: Certificates) -> "Iterator[Engine]":
    from engine.engine import Engine

    hub, settings = ModelHub(config.models_dir), config.engine.build()
    settings = replace(settings, kv_cache_bytes=settings.kv_cache_bytes or KV_BYTES)
    engine = Engine.from_pretrained(hub.resolve(config.model), settings, certificates=certificates)
    try:
        engine.calibrate()  # as a server does before its first question
        yield engine
    finally:
        engine.close()


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures requests, one at a time; nothing of one is left when the next one comes.

    Attributes:
        engine: nobody else uses it.
        experiment: see `run_quality`.
        certificates: what the engine was opened with.
    """

    engine: "Engine"
    experiment: Experiment
    certificates: Certificates

    def warm_up(self, request: BenchRequest) -> None:
        """Run a prompt whose times do not count."""
        ask_all(self.engine, [(request.prompt, FULL, {})], max_tokens=1)
        self._forget([FULL])

    def measure(self, request: BenchRequest, unit: str) -> list[QualityRecord]:
        """Measure every way that the request can be computed in."""
        questions = self._ways(request)
        try:
            self._read(request.prompt)
            times = self._first_tokens(questions, request.number)
            free = self._ask(questions, min(request.output_tokens, MAX_TOKENS))
            answer = free[FULL].token_ids
            forced = self._ask({name: (*way[:2], {**way[2], "forced": answer}) for name, way in questions.items()})
        finally:
            self._forget([name for _, name, _ in questions.values()])
        return list(self._records(request, unit, times, free, forced))

    def _ways(self, request: BenchRequest) -> dict[str, Question]:
        """Name the ways; what is computed in full has a namespace of its own, where nothing of it is known."""
        prompt, experiment = request.prompt, self.experiment
        k = len(passages_of(prompt))
        ways: dict[str, Question] = {FULL: (prompt, FULL, {})}
        if k:
            ways["none"] = (without_passages(prompt), "quality/none", {})
        if k > 1:
            order = draw_orders(1, k, f"{experiment.workload.seed}/{request.number}")[0]
            ways["order"] = (with_order(prompt, order), "quality/order", {})
            ways |= {f"repair-{repair}": (prompt, READ, at_repair(repair)) for repair in experiment.repairs}
            ways["chunk"] = (prompt, READ, self._chunk(prompt, k))
            if Check.WRONG_SHIFT in experiment.checks:
                ways[WRONG_SHIFT] = (prompt, READ, at_repair(experiment.repairs[0]))
        return ways

    def _chunk(self, prompt: Prompt, passages: int) -> dict[str, Any]:
        if self.engine.allows_chunk(prompt):
            return {"reuse": Reuse.CHUNK}
        certificate = self.certificates.find(self.engine.identity, prompt.segments[0].tokens)
        return at_repair(repair_due(certificate, passages, self.engine.config.block_size))

    def _read(self, prompt: Prompt) -> None:
        """Compute the canonical KV of the passages, as ingestion does."""
        read = [Prompt([prompt.segments[0], passage]) for passage in passages_of(prompt)]
        self.engine.generate(read, SamplingParams(max_tokens=0), namespace=READ)

    def _first_tokens(self, questions: Mapping[str, Question], seed: int) -> dict[str, float]:
        """Time the first token of each way alone, in milliseconds; in random order, so that drift favours none."""
        times = {}
        for name in random.Random(seed).sample(list(questions), len(questions)):
            began = perf_counter()
            generation = self._ask({name: questions[name]}, 1)[name]
            assert generation.timings.first_token is not None, "a finished request has a token"
            times[name] = 1e3 * (generation.timings.first_token - began)
        return times

    def _ask(self, questions: Mapping[str, Question], max_tokens: int = 0) -> dict[str, Generation]:
        """Ask side by side; what is broken on purpose is asked apart, since it breaks all that runs with it."""
        sound = {name: question for name, question in questions.items() if name != WRONG_SHIFT}
        found = dict(zip(sound, ask_all(self.engine, list(sound.values()), max_tokens=max_tokens), strict=True))
        if WRONG_SHIFT in questions:
            with wrong_shift(self.engine):
                [found[WRONG_SHIFT]] = ask_all(self.engine, [questions[WRONG_SHIFT]], max_tokens=max_tokens)
        for name, (_, _, how) in questions.items():
            if "uncertified_repair" in how:
                check_reused(found[name], how["uncertified_repair"])
        return found

    def _records(
        self,
        request: BenchRequest,
        unit: str,
        times: Mapping[str, float],
        free: Mapping[str, Generation],
        forced: Mapping[str, Generation],
    ) -> Iterator[QualityRecord]:
        full = forced[FULL].forced_logprobs
        for name, generation in forced.items():
            assert full is not None, "a forced answer comes with its log-probabilities"
            assert generation.forced_logprobs is not None, "a forced answer comes with its log-probabilities"
            figures = figures_of(full, generation.forced_logprobs)
            scores = score_answer(free[name].text, free[FULL].text, request.golds)
            yield QualityRecord(
                unit=unit,
                request=request.number,
                variant=name,
                k=len(passages_of(request.prompt)),
                kl=figures.kl,
                first_kl=figures.first_kl,
                top1=figures.agreement,
                f1=scores.f1_full,
                gold_f1=scores.f1_gold if request.golds else None,
                gold=scores.has_gold if request.golds else None,
                ttft_ms=times[name],
                full_ms=times[FULL],
            )

    def _forget(self, namespaces: Sequence[str]) -> None:
        for namespace in {READ, *namespaces}:
            self.engine.cache.drop_namespace(namespace)
