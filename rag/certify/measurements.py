"""What is measured for the test, question by question, and never twice."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from blake3 import blake3

from engine.certificate import Stage
from rag.bench.collection import default_work_dir
from rag.bench.progress import Counter, Progress
from rag.certify.config import CertifyConfig
from rag.certify.figures import FiguresFile, SetFigures
from rag.certify.probes import Probe
from rag.certify.scorer import Scorer

if TYPE_CHECKING:
    from engine.engine import Engine

__all__ = ["Measurements", "Sets"]

Sets = Mapping[int, Sequence[SetFigures]]  # by number of passages


class Measurements:
    """The figures of both stages, each measured when it is first asked for, and kept in a file.

    Attributes:
        count: questions measured here; the others were in the file.

    Args:
        engine: nobody else uses it.
        certify: what to test.
        key: of the certificate that may come of it.
        probes: of both stages, in that order.
        progress: called as it advances.
    """

    def __init__(
        self, engine: "Engine", certify: CertifyConfig, key: str, probes: Sequence[Probe], progress: Progress
    ) -> None:
        self._certificate_key = key
        self.count = 0
        self._certify = certify
        self._probes = probes
        self._progress = progress
        self._file = FiguresFile((certify.work_dir or default_work_dir()) / f"certify-{key[:16]}.jsonl")
        self._scorer = Scorer(engine, certify.repairs, certify.max_tokens, certify.orders, template=certify.template)
        self._stages: dict[Stage, Sets] = {}

    def screening(self) -> Sets:
        """Return the figures of the first half of the questions."""
        return self._stage("screening", self._probes[: self._certify.sets], answers=self._certify.answers)

    def confirmation(self) -> Sets:
        """Return those of the second half."""
        return self._stage("confirmation", self._probes[self._certify.sets :])

    def lengths(self) -> list[int]:
        """Return the length of every passage that was measured."""
        stages = self._stages.values()
        return [length for sets in stages for some in sets.values() for one in some for length in one.passage_tokens]

    def _stage(self, stage: Stage, probes: Sequence[Probe], *, answers: bool = False) -> Sets:
        if stage not in self._stages:
            counter, found = Counter(self._progress, stage, len(probes)), []
            for probe in probes:
                found.append(self._measured(probe, answers=answers))
                counter.advance()
            self._stages[stage] = {k: [sets[k] for sets in found] for k in self._certify.ks}
        return self._stages[stage]

    def _measured(self, probe: Probe, *, answers: bool) -> Mapping[int, SetFigures]:
        """Return a question's figures, with free answers where they are asked for; only what is missing is measured."""
        keys = {k: self._key(probe, k) for k in self._certify.ks}
        sets = {k: figures for k, key in keys.items() if (figures := self._file.get(key)) is not None}
        seed = f"{self._certify.seed}/{probe.asked.question}"
        unknown = [k for k in self._certify.ks if k not in sets]
        if unknown:
            sets |= self._scorer.measure({k: probe.prompts[k] for k in unknown}, seed=seed)
        silent = [k for k in self._certify.ks if answers and not sets[k].answers]
        if silent:
            spoken = self._scorer.answer({k: probe.prompts[k] for k in silent}, probe.asked.golds, seed=seed)
            sets |= {k: sets[k].model_copy(update={"answers": scores}) for k, scores in spoken.items()}
        for k in {*unknown, *silent}:
            self._file.add(keys[k], sets[k])
        self.count += bool(unknown or silent)
        return {k: sets[k] for k in self._certify.ks}

    def _key(self, probe: Probe, k: int) -> str:
        """Hash everything that the figures of a set depend on, but what free answers are scored by."""
        certify = self._certify
        prompt = [segment.tokens for segment in probe.prompts[k].segments]
        how = (certify.repairs, certify.max_tokens, certify.orders, certify.seed, certify.template)
        facts = json.dumps([self._certificate_key, probe.asked.question, prompt, how])
        return blake3(facts.encode()).hexdigest()
