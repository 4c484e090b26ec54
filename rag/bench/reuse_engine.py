"""First tokens of one engine: passages read in pieces, in one piece, or not at all before."""

import random
from collections.abc import Sequence
from time import perf_counter

from engine.config import SamplingParams
from engine.engine import Engine
from engine.ladder import Outcome
from engine.output import Generation
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from rag.bench.engine_cases import Prompts
from rag.bench.engine_own import CacheMismatchError
from rag.bench.reuse_report import ReuseCase

__all__ = ["FRESH", "KNOWN", "QUESTION", "TEMPLATE", "ReuseEngine"]

TEMPLATE = 32  # tokens
QUESTION = 30
KNOWN = "bench-reuse/known"  # namespace of passages that are read before
FRESH = "bench-reuse/fresh"  # of prompts that must not hit anything
ONE_PIECE = "bench-reuse/one-piece"  # of the long prefix


class ReuseEngine:
    """Times first tokens.

    Args:
        engine: nobody else uses it.
        seed: of token ids and orders.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.block_size = engine.config.block_size
        ends = engine.tokenizer.eos_token_ids
        self._prompts = Prompts(sorted({*range(engine.runner.model.config.vocab_size)} - set(ends)), seed)
        self._random = random.Random(seed)
        self.template = Segment(self._prompts.passage(TEMPLATE, -1), SegmentKind.TEMPLATE)

    def passages(self, length: int, count: int) -> list[Segment]:
        """Return the first passages of a length."""
        return [Segment(self._prompts.passage(length, n), SegmentKind.PASSAGE, str(n)) for n in range(count)]

    def new_passage(self, length: int) -> Segment:
        """Return a passage that nobody has seen."""
        return Segment(self._new(length), SegmentKind.PASSAGE)

    def read(self, passages: Sequence[Segment]) -> None:
        """Bring the canonical KV of passages onto the device."""
        known = [self.engine.cache.is_cached(KNOWN, [self.template, passage]) for passage in passages]
        missing = [passage for passage, is_known in zip(passages, known, strict=True) if not is_known]
        prompts = [Prompt([self.template, passage]) for passage in missing]
        self.engine.generate(prompts, SamplingParams(max_tokens=0), namespace=KNOWN)

    def shuffled(self, passages: Sequence[Segment], count: int) -> list[Segment]:
        """Return so many of them in a random order."""
        return self._random.sample(passages, count)

    def question(self, passages: Sequence[Segment]) -> Prompt:
        """Ask a new question over passages."""
        tail = self._prompts.passage(QUESTION, self._random.getrandbits(60))
        return Prompt([self.template, *passages, Segment(tail, SegmentKind.TAIL)])

    def chunk_ms(self, prompt: Prompt, repair: int) -> float:
        """Time a prompt whose passages are known, in an order that was not read before.

        Raises:
            CacheMismatchError: a passage was computed.
        """
        generation, ms = self._first_token(prompt, KNOWN, repair=repair)
        passages = [one for one in generation.cache.segments if one.kind is SegmentKind.PASSAGE]
        outcomes = [one.outcome for one in passages]
        if outcomes[0] is not Outcome.CANONICAL or set(outcomes[1:]) - {Outcome.SHIFTED}:
            raise CacheMismatchError(f"passages that were read before ended as {', '.join(outcomes)}")
        return ms

    def full_ms(self, prompt: Prompt) -> float:
        """Time a prompt of which nothing is known; it is plain text, so that nothing of it is on the disk either.

        Raises:
            CacheMismatchError: something was.
        """
        generation, ms = self._first_token(Prompt.from_tokens(prompt.tokens), FRESH)
        self.engine.cache.drop_namespace(FRESH)
        if generation.cache.cached_tokens:
            raise CacheMismatchError(f"{generation.cache.cached_tokens} tokens were cached")
        return ms

    def contiguous_ms(self, case: ReuseCase, prompt_tokens: int) -> float:
        """Time as many new tokens as chunk reuse computes, after one cached prefix.

        What chunk reuse would repair is a passage here, so that the same rows are computed in the same mode.

        Raises:
            CacheMismatchError: more or less was cached.
        """
        repaired = (case.passages - 1) * case.repair
        cached = (prompt_tokens - QUESTION - repaired) // self.block_size * self.block_size
        longest = self._long_passage()
        segments = [Segment(longest.tokens[:cached], SegmentKind.PASSAGE)]
        if repaired:
            segments.append(self.new_passage(repaired))
        prompt = Prompt([*segments, Segment(self._new(QUESTION), SegmentKind.TAIL)])
        generation, ms = self._first_token(prompt, ONE_PIECE)
        self.engine.cache.purge(ONE_PIECE, [one.tokens for one in segments[1:]])
        if generation.cache.cached_tokens != cached:
            raise CacheMismatchError(f"{generation.cache.cached_tokens} tokens were cached, not {cached}")
        return ms

    def _new(self, count: int) -> tuple[int, ...]:
        return self._prompts.passage(count, self._random.getrandbits(60))

    def _long_passage(self) -> Segment:
        """Return the passage whose beginnings are the cached prefixes, read when it is first needed."""
        room = self.engine.max_model_len - 1
        longest = Segment(self._prompts.passage(room // self.block_size * self.block_size, 0), SegmentKind.PASSAGE)
        if not self.engine.cache.is_cached(ONE_PIECE, [longest]):
            self.engine.generate([Prompt([longest])], SamplingParams(max_tokens=0), namespace=ONE_PIECE)
        return longest

    def _first_token(self, prompt: Prompt, namespace: str, repair: int | None = None) -> tuple[Generation, float]:
        began = perf_counter()
        request = self.engine.submit(
            prompt,
            SamplingParams(max_tokens=1, ignore_eos=True),
            reuse=Reuse.EXACT if repair is None else Reuse.CHUNK,
            uncertified_repair=repair,
            namespace=namespace,
        )
        *_, generation = self.engine.stream(request)
        assert isinstance(generation, Generation), f"request {request.id} ended with {generation}"
        assert generation.timings.first_token is not None, "a finished request has a token"
        return generation, 1e3 * (generation.timings.first_token - began)
