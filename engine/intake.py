"""From a prompt to a request: checked, its kind of reuse decided, and what has to be computed before it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.errors import ConfigError, PromptTooLongError, ReuseNotCertifiedError
from engine.models.config import ModelConfig
from engine.prefix_cache import PrefixCache
from engine.promotion import usable_passages
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import Request
from engine.tier import Tier

if TYPE_CHECKING:
    from engine.certificate import Certificates
    from engine.kv_identity import KVIdentity

__all__ = ["Intake"]

logger = logging.getLogger(__name__)


class Intake:
    """Makes requests.

    Args:
        cache: asked what it has; nothing in it is changed.
        tier: the same.
        config: block size, longest prompt.
        model: vocabulary, context, windows.
        identity: of the engine's KV; called when a certificate is looked for.
        certificates: what chunk reuse is allowed by; None allows none.
    """

    def __init__(
        self,
        cache: PrefixCache,
        tier: Tier | None,
        config: EngineConfig,
        model: ModelConfig,
        identity: "Callable[[], KVIdentity]",
        certificates: "Certificates | None",
    ) -> None:
        limit = model.max_position_embeddings
        self.max_model_len = min(config.max_model_len or limit, limit)
        self._cache = cache
        self._tier = tier
        self._config = config
        self._model = model
        self._identity = identity
        self._certificates = certificates
        self._ids = count()
        self._coming: dict[tuple[str, bool, tuple[Segment, ...]], Request] = {}  # what others wait for
        self._warned = False

    def make(self, request: Request, *, uncertified_repair: int | None = None) -> Request:
        """Check a request as it was asked for, and return it as it can run; new ones it depends on are not queued yet.

        Raises:
            PromptTooLongError: prompt and answer exceed the model's context or the block pool.
            ConfigError: a token id that the model does not have, or settings that cannot work together.
            ReuseNotCertifiedError: chunk reuse without a certificate that covers the prompt.
        """
        self._check_vocabulary(request)
        reuse, repair = self._resolve(request, uncertified_repair)
        request = replace(request, id=next(self._ids), reuse=reuse, repair=repair)
        self._check_groups(request)
        request.max_tokens = self._check_length(request)
        request.prerequisites = tuple(self._prerequisites(request))
        return request

    def missing(self, template: Segment, passages: Sequence[Segment], namespace: str) -> list[int]:
        """Return the indexes of passages, each once, whose canonical KV is not stored; without a store, not cached."""
        first = {passage.tokens: i for i, passage in reversed(list(enumerate(passages)))}
        tier = self._tier
        if tier is not None:
            return sorted(i for tokens, i in first.items() if not tier.has(namespace, template.tokens, tokens))
        return sorted(i for i in first.values() if not self._cache.is_cached(namespace, [template, passages[i]]))

    def allows_chunk(self, prompt: Prompt) -> bool:
        """Tell whether chunk reuse is certified for a prompt; any thread may ask."""
        passages = [segment for segment in prompt.segments if segment.kind is SegmentKind.PASSAGE]
        refusal, _ = self._certified_repair(prompt, passages) if len(passages) > 1 else ("nothing to shift", 0)
        return not refusal

    def forget(self, request: Request) -> None:
        """Tell that a request has ended."""
        name = _name(request)
        if self._coming.get(name) is request:
            del self._coming[name]

    @cached_property
    def _shortest_window(self) -> int | None:
        return min((window for window in self._model.layer_windows if window is not None), default=None)

    def _resolve(self, request: Request, uncertified_repair: int | None) -> tuple[Reuse, int]:
        """Decide between exact and chunk reuse; only an explicit `CHUNK` is refused, `AUTO` runs as exact then."""
        passages = [s for s in request.prompt.segments if s.kind is SegmentKind.PASSAGE]
        template = request.prompt.segments[0]
        if request.reuse is Reuse.EXACT:
            return Reuse.EXACT, 0
        if uncertified_repair is not None:
            if uncertified_repair < 0 or uncertified_repair % self._config.block_size:
                raise ConfigError(
                    f"a repair of {uncertified_repair} tokens is not whole blocks of {self._config.block_size}"
                )
            return Reuse.CHUNK, uncertified_repair
        if template.kind is not SegmentKind.TEMPLATE or len(passages) < 2:
            return Reuse.EXACT, 0  # nothing to shift
        refusal, repair = self._certified_repair(request.prompt, passages)
        if not refusal:
            chunk = replace(request, reuse=Reuse.CHUNK, repair=repair)
            fits = self._blocks_needed(chunk, request.max_tokens) <= self._cache.pool.num_blocks
            return (Reuse.CHUNK, repair) if fits else (Reuse.EXACT, 0)
        if request.reuse is Reuse.CHUNK:
            raise ReuseNotCertifiedError(refusal)
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(level, "reuse 'auto' runs as 'exact': %s", refusal)
        return Reuse.EXACT, 0

    def _certified_repair(self, prompt: Prompt, passages: Sequence[Segment]) -> tuple[str, int]:
        """Return why chunk reuse is refused, or nothing and the repair with which it is allowed."""
        window = self._shortest_window
        if window is not None and window < prompt.num_tokens:
            return f"chunk reuse cannot work under the model's sliding window of {window} tokens; use reuse 'exact'", 0
        template = prompt.segments[0].tokens
        certificate = self._certificates.find(self._identity(), template) if self._certificates is not None else None
        if certificate is None:
            return (
                "chunk reuse has no certificate for this model, compute mode and template; "
                "run `rag certify`, or use reuse 'exact' or 'auto'"
            ), 0
        lengths = [len(passage.tokens) for passage in passages]
        if not certificate.covers(len(passages), lengths):
            return (
                f"chunk reuse is certified for {certificate.min_passages} to {certificate.max_passages} passages of "
                f"{certificate.min_passage_tokens} to {certificate.max_passage_tokens} tokens, not for {len(passages)} "
                f"of {min(lengths)} to {max(lengths)}; use reuse 'exact' or 'auto'"
            ), 0
        repair = certificate.repair_for(len(passages))
        assert repair is not None, "a certificate has a repair for every number of passages that it covers"
        return "", repair

    def _prerequisites(self, request: Request) -> list[Request]:
        """Requests, new or under way, that compute canonical KV which nobody has.

        The first passage needs none where it stays the first: the request computes its canonical KV itself.
        """
        if request.reuse is not Reuse.CHUNK:
            return []
        segments = request.prompt.segments
        usable = [segments[i] for i in usable_passages(request, segments) if i != 1 or request.groups]
        needed: list[Request] = []
        for passage in {passage.tokens: passage for passage in usable}.values():
            if self._is_known(request.namespace, segments[0], passage):
                continue
            prompt = Prompt([segments[0], passage])
            reading = Request(
                next(self._ids), prompt, 0,
                namespace=request.namespace, background=request.background, principal=request.principal,
            )  # fmt: skip
            needed.append(self._coming.setdefault(_name(reading), reading))
        return needed

    def _is_known(self, namespace: str, template: Segment, passage: Segment) -> bool:
        if self._cache.is_cached(namespace, [template, passage]):
            return True
        if self._tier is None or not self._tier.has(namespace, template.tokens, passage.tokens):
            return False
        return self._cache.is_cached(namespace, [template]) or self._tier.has(namespace, template.tokens, ())

    def _check_groups(self, request: Request) -> None:
        passages = sum(segment.kind is SegmentKind.PASSAGE for segment in request.prompt.segments)
        if request.groups and (sum(request.groups) != passages or min(request.groups) < 1):
            raise ConfigError(f"groups {request.groups} do not add up to the prompt's {passages} passages")

    def _check_length(self, request: Request) -> int:
        """Return how many tokens may be sampled: what was asked for, or what the context leaves."""
        prompt, max_tokens = request.prompt, request.max_tokens
        room = self.max_model_len - prompt.num_tokens
        if room < min(max_tokens, 1):
            raise PromptTooLongError(
                f"the prompt has {prompt.num_tokens} tokens and the model reads at most {self.max_model_len} with its "
                "answer; use fewer or shorter passages, or a model with a longer context"
            )
        max_tokens = min(max_tokens, room)
        needed = self._blocks_needed(request, max_tokens)
        if needed > self._cache.pool.num_blocks:
            raise PromptTooLongError(
                f"prompt and answer need {needed} KV blocks and the pool has {self._cache.pool.num_blocks}; "
                "raise kv_cache_bytes, or ask for fewer tokens"
            )
        return max_tokens

    def _blocks_needed(self, request: Request, max_tokens: int) -> int:
        """Count the blocks of a request alone: canonical heads stay beside the repaired ones that replace them."""
        blocks = request.prompt.num_blocks(self._config.block_size, extra_tokens=max_tokens)
        if request.reuse is not Reuse.CHUNK:
            return blocks
        shifted = len(usable_passages(request, request.prompt.segments))
        return blocks + shifted * request.repair // self._config.block_size

    def _check_vocabulary(self, request: Request) -> None:
        tokens, vocab_size = (*request.prompt.tokens, *(request.forced or ())), self._model.vocab_size
        if not 0 <= min(tokens) <= max(tokens) < vocab_size:
            raise ConfigError(
                f"token ids from {min(tokens)} to {max(tokens)} are not all of the model's {vocab_size}; "
                "encode the text with the model's own tokenizer"
            )


def _name(request: Request) -> tuple[str, bool, tuple[Segment, ...]]:
    """What it computes, and how soon: nobody waits for what is read in the background but the background."""
    segments = tuple(replace(segment, name="") for segment in request.prompt.segments)
    return request.namespace, request.background, segments
