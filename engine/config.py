"""The engine's settings: small, frozen, checked when they are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import ConfigError
from engine.eviction import policy_named
from engine.grammar import Grammar

__all__ = ["DTYPES", "WEIGHTS", "EngineConfig", "SamplingParams"]

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
WEIGHTS = ("auto", "full", "int8")
MOST_LOGPROBS = 20

Checks = dict[str, tuple[bool, str]]  # by setting: whether its value fits, and what would


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine runs its model.

    Attributes:
        dtype: KV compute mode: `float32`, `bfloat16`, `float16`, or `auto` (the fastest of these on this machine); or
            `int8`, the C++ kernels' products of 8-bit weights and 8-bit activations, faster still and less faithful.
        kv_dtype: how keys and values are kept, on the device and on disk: `auto` in the numbers in which they are
            computed, or as named; `int8`, with a scale a token and head, takes about half the bytes of 16-bit numbers.
        weights: how rows whose KV is never published (answers and their questions) are computed: `full` in the
            compute mode like all others, `int8` with 8-bit weights, `auto` with 8-bit weights in steps where that is
            faster (by a profile measured once) unless `dtype` asks for float32.
        device: torch device of weights and KV.
        backend: kernel backend, or `auto`.
        block_size: KV slots a block.
        kv_cache_bytes: memory for KV blocks; None takes an eighth of the machine's, between 256 MiB and 4 GiB.
        max_num_seqs: requests that run at once.
        max_num_batched_tokens: token budget of a step.
        max_slowdown: how many times longer a step may take for the prompts that are prefilled beside running answers.
        max_draft_tokens: longest guess, copied from passages and answer, that a decode step verifies; 0 turns it off.
        max_num_waiting: requests that may wait.
        max_share_waiting: how many of them may be of one principal; None is all of them.
        max_model_len: prompt and answer tokens at most; None is the model's own limit.
        eviction: policy that chooses what leaves the cache first.

    Raises:
        ConfigError: a value that cannot work.
    """

    dtype: str = "auto"
    kv_dtype: str = "auto"
    weights: str = "auto"
    device: str = "cpu"
    backend: str = "auto"
    block_size: int = 16
    kv_cache_bytes: int | None = None
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 1024
    max_slowdown: float = 3.0
    max_draft_tokens: int = 16
    max_num_waiting: int = 1024
    max_share_waiting: int | None = None
    max_model_len: int | None = None
    eviction: str = "lru"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is not one of: {', '.join(DTYPES)}")
        if self.kv_dtype not in DTYPES:
            raise ConfigError(f"kv_dtype {self.kv_dtype!r} is not one of: {', '.join(DTYPES)}")
        if self.weights not in WEIGHTS:
            raise ConfigError(f"weights {self.weights!r} is not one of: {', '.join(WEIGHTS)}")
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_num_waiting"):
            _check_positive(name, getattr(self, name))
        for name in ("kv_cache_bytes", "max_model_len", "max_share_waiting"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if not _is_number(self.max_slowdown) or not self.max_slowdown >= 1:
            raise ConfigError(f"max_slowdown is {self.max_slowdown!r}; it must be a number of at least 1")
        if not _is_count(self.max_draft_tokens):
            raise ConfigError(f"max_draft_tokens is {self.max_draft_tokens!r}; it must be a whole number, 0 for none")
        policy_named(self.eviction)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when the answer ends.

    Attributes:
        max_tokens: tokens to sample at most; 0 computes the prompt only.
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens; 0 is all.
        top_p: sample among the fewest tokens whose probability reaches this sum.
        min_p: sample among tokens at least so many times as likely as the likeliest; 0 is all.
        repetition_penalty: makes every token of prompt and answer so far less likely (above 1) or likelier (below):
            its logit is divided by this, or multiplied where it is negative. 1 changes nothing.
        presence_penalty: taken from the logit of every token that the answer has already.
        frequency_penalty: taken from a token's logit once for each time that the answer has it.
        logit_bias: added to the logits of these tokens, by id.
        seed: makes sampling repeatable; None draws a fresh one.
        stop: the answer ends before the first of these strings.
        stop_token_ids: the answer ends with the first of these tokens, besides the model's own.
        ignore_eos: go on after the model's end token.
        min_tokens: no token ends the answer before it has so many, and no stop string that is complete by then.
        logprobs: give each token's log-probability, and so many of the likeliest tokens'; None gives none.
        grammar: what the answer has to be. It ends when nothing can be added, whatever the rest of these says.

    The rules are vLLM's, and so is their order, which matters where several are given: grammar, `min_tokens`,
    `logit_bias`, penalties (repetition, frequency, presence), temperature, `min_p`, `top_k`, `top_p`. transformers
    cuts off by `min_p` after `top_p`, which leaves more tokens.

    Raises:
        ConfigError: a value that cannot work.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        checks = self._cut_off_checks() | self._preference_checks() | self._ending_checks()
        for name, (fits, wanted) in checks.items():
            if not fits:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {wanted}")

    def _cut_off_checks(self) -> Checks:
        return {
            "temperature": (_is_between(0, self.temperature, 100), "between 0 and 100"),
            "top_k": (_is_count(self.top_k), "a whole number, 0 (all) or more"),
            "top_p": (_is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (_is_between(0, self.min_p, 1), "between 0 (all) and 1"),
            "seed": (self.seed is None or (_is_count(self.seed) and self.seed < 2**63), "between 0 and 2**63 - 1"),
            "logprobs": (
                self.logprobs is None or (_is_count(self.logprobs) and self.logprobs <= MOST_LOGPROBS),
                f"between 0 and {MOST_LOGPROBS}, or None for none",
            ),
        }

    def _preference_checks(self) -> Checks:
        penalty = self.repetition_penalty
        return {
            "repetition_penalty": (_is_between(0, penalty, 100) and penalty > 0, "above 0 and at most 100; 1 is none"),
            "presence_penalty": (_is_between(-2, self.presence_penalty, 2), "between -2 and 2"),
            "frequency_penalty": (_is_between(-2, self.frequency_penalty, 2), "between -2 and 2"),
            "logit_bias": (_is_bias(self.logit_bias), "token ids, each with a number between -100 and 100"),
            "grammar": (
                self.grammar is None or isinstance(self.grammar, Grammar),
                "a JsonSchema, JsonObject, Regex or Lark, or None",
            ),
        }

    def _ending_checks(self) -> Checks:
        return {
            "max_tokens": (_is_count(self.max_tokens), "a whole number, 0 or more"),
            "stop": (
                _is_list_of(self.stop, lambda s: isinstance(s, str) and s),
                "a list of strings that are not empty",
            ),
            "stop_token_ids": (_is_list_of(self.stop_token_ids, _is_count), "a list of token ids"),
            "ignore_eos": (isinstance(self.ignore_eos, bool), "true or false"),
            "min_tokens": (
                _is_count(self.min_tokens) and (not _is_count(self.max_tokens) or self.min_tokens <= self.max_tokens),
                f"a whole number, at most max_tokens ({self.max_tokens})",
            ),
        }


def _check_positive(name: str, value: object) -> None:
    if not _is_count(value) or value == 0:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _is_count(value: object) -> bool:
    """Whether it is a whole number from 0 on; true and false are not numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_between(least: float, value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_count(token) and _is_between(-100, bias, 100) for token, bias in value.items()
    )


def _is_list_of(values: object, fits: Callable[[object], object]) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | bytes) and all(map(fits, values))
