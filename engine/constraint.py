"""Holds an answer to a grammar: of the next token it leaves those with which the answer can still become what it must.

Grammars are compiled and followed by llguidance, byte by byte, so a token may span several parts of the grammar, and a
character several tokens. It is imported when the first grammar is asked for.
"""

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.errors import GrammarError
from engine.grammar import Grammar, JsonObject, JsonSchema, Lark, Regex
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["Constraint", "Grammars"]

MOST_COMPILED = 64
# Between the parts of JSON, as llama.cpp bounds it: where any amount is allowed, a small model may write nothing else.
JSON_WHITESPACE = r" |\n{1,2}[ \t]{0,20}"
ANY_OBJECT = '{"type": "object"}'


class Constraint:
    """One answer's way through its grammar.

    Args:
        matcher: at the grammar's start; used by this answer alone.
    """

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def apply(self, scores: Tensor) -> None:
        """Rule out in place, of scores [vocab], the tokens that the grammar does not allow next.

        Raises:
            GrammarError: the grammar has become too complex to follow.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = torch.from_numpy(np.unpackbits(mask, count=len(scores), bitorder="little"))
        scores.masked_fill_((allowed == 0).to(scores.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on behind a token.

        Raises:
            GrammarError: the grammar has become too complex to follow.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the answer is what it has to be, and nothing can be added to it."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher)
            raise GrammarError(f"the answer cannot be held to its grammar any further: {reason}; simplify the grammar")


class Grammars:
    """Compiles grammars for a model's tokens, each once. Any thread may.

    Args:
        tokenizer: of the model.
        vocab_size: how many logits the model has.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._compiled = lru_cache(MOST_COMPILED)(self._compile)

    def prepare(self, grammar: Grammar) -> "LLMatcher":
        """Compile a grammar that an answer will need, for as long as that takes; return it for `constraint`.

        Raises:
            GrammarError: it cannot be compiled.
        """
        return self._compiled(grammar)

    def constraint(self, grammar: Grammar, compiled: "LLMatcher | None" = None) -> Constraint:
        """Return a new answer's way through a grammar; at once where it comes compiled, however many there are.

        Raises:
            GrammarError: it cannot be compiled.
        """
        compiled = self._compiled(grammar) if compiled is None else compiled
        return Constraint(compiled.deep_copy())

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokens, _definition(grammar), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what this finds out about the tokens, the copies know
        if matcher.is_error():
            raise GrammarError(f"the {_name(grammar)} cannot be used: {_reason(matcher)}")
        return matcher

    @cached_property
    def _tokens(self) -> "LLTokenizer":
        """The tokens' bytes as a trie; making it takes a second or two, once."""
        from llguidance import LLTokenizer

        ends = sorted(token for token in self._tokenizer.eos_token_ids if token < self._vocab_size)
        if not ends:
            raise GrammarError("this model has no token that ends an answer, so its answers can follow no grammar")
        try:
            return LLTokenizer(self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=ends)
        except ValueError as error:
            raise GrammarError(f"this model's kind of tokenizer can follow no grammar: {error}") from error


def _definition(grammar: Grammar) -> str:
    """The grammar in llguidance's own form."""
    from llguidance import LLMatcher

    if isinstance(grammar, Regex):
        return LLMatcher.grammar_from_regex(grammar.pattern)
    if isinstance(grammar, Lark):
        return LLMatcher.grammar_from_lark(grammar.grammar)
    schema = grammar.schema if isinstance(grammar, JsonSchema) else ANY_OBJECT
    try:
        return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": JSON_WHITESPACE})
    except ValueError as error:
        raise GrammarError(f"the {_name(grammar)} cannot be used: {error}") from error


def _reason(matcher: "LLMatcher") -> str:
    """Why a matcher is out of order."""
    reason = matcher.get_error().replace("<non-verbose/>", "").strip()
    return "no answer can satisfy it" if reason == "NoExtensionBias" else reason


def _name(grammar: Grammar) -> str:
    names = {JsonSchema: "JSON schema", JsonObject: "JSON object", Regex: "regular expression", Lark: "grammar"}
    return names[type(grammar)]
