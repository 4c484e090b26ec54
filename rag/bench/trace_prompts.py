"""Prompts of a trace: real text of its lengths, laid out as every prompt of ours is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle

from data.corpora import CORPUS_NAMES, load_corpus
from data.trace_text import lay_text, parts_of
from data.traces import TracePart, TraceRequest
from engine.prompt import Prompt, Segment, SegmentKind
from engine.tokenizer import Tokenizer
from rag.chat_format import Spoken
from rag.prompt_layout import PassageTokens, PromptLayout
from rag.prompt_template import PromptTemplate

__all__ = ["TracePrompts", "read_documentation"]


def read_documentation(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of Python's documentation: the corpora, one after the other."""
    documents = [document.text for name in CORPUS_NAMES for document in load_corpus(name).documents]
    return [token for ids in tokenizer.encode_batch(documents) for token in ids]


@dataclass(frozen=True)
class TracePrompts:
    """The prompts of a trace's requests.

    One template stands for the first piece of every recorded system prompt. What follows it there is volatile, so it
    is in the tail, with history, web results and question. A dialogue's history is in the chat format, turn by turn.

    Attributes:
        template: the same for all.
        prompts: one a request, in their order.
    """

    template: Segment
    prompts: tuple[Prompt, ...]

    @classmethod
    def make(
        cls,
        requests: Sequence[TraceRequest],
        tokenizer: Tokenizer,
        words: PromptTemplate,
        text: Sequence[int],
        *,
        dialogue: bool = False,
    ) -> "TracePrompts":
        """Lay the requests out for a model.

        Args:
            requests: in order of time.
            tokenizer: of the model.
            words: around passages and question.
            text: tokens to cut the pieces from.
            dialogue: whether a history is questions and answers by turns, and not text before the question.
        """
        laid = lay_text(parts_of(requests), text)
        layout = PromptLayout(tokenizer, words, PassageTokens(tokenizer))

        def spoken(part: TracePart) -> tuple[int, ...]:  # as it is when it is asked, and encoded from words
            return tuple(tokenizer.encode(tokenizer.decode(laid[part.id])))

        def prompt(request: TraceRequest) -> Prompt:
            passages = [
                Segment(laid[one.id], SegmentKind.PASSAGE, str(one.id)) for one in request.passages if one.num_tokens
            ]
            loose = () if dialogue else request.history
            before = _joined(laid, (*request.system_prompt[1:], *loose, *request.web_search))
            question = tokenizer.decode(_joined(laid, request.user_input))
            said = zip(cycle(("user", "assistant")), map(spoken, request.history if dialogue else ()), strict=False)
            tail = layout.tail(question, [Spoken(role, tokens) for role, tokens in said])
            return Prompt([layout.head, *passages, Segment(before + tail.tokens, SegmentKind.TAIL)])

        return cls(layout.head, tuple(map(prompt, requests)))

    @cached_property
    def passages(self) -> list[Segment]:
        """Every passage of the prompts once, in the order in which they are first read."""
        segments = (segment for prompt in self.prompts for segment in prompt.segments)
        return list({one.tokens: one for one in segments if one.kind is SegmentKind.PASSAGE}.values())

    @property
    def distinct_tokens(self) -> int:
        """How many tokens these passages have together."""
        return sum(len(passage.tokens) for passage in self.passages)

    def longest_blocks(self, block_size: int, repair: int) -> int:
        """Count the blocks that the largest prompt needs with one token of an answer and repaired heads beside it."""
        return max(_blocks_needed(prompt, block_size, repair) for prompt in self.prompts)

    def all_blocks(self, block_size: int, repair: int) -> int:
        """Count blocks that are enough for every prompt and the canonical KV of every passage at once."""
        canonical = Prompt([self.template, *self.passages]).num_blocks(block_size)
        return canonical + sum(_blocks_needed(prompt, block_size, repair) for prompt in self.prompts)


def _joined(laid: dict[int, tuple[int, ...]], parts: Iterable[TracePart]) -> tuple[int, ...]:
    return tuple(token for part in parts for token in laid[part.id])


def _blocks_needed(prompt: Prompt, block_size: int, repair: int) -> int:
    return prompt.num_blocks(block_size, extra_tokens=1) + len(prompt.segments) * (repair // block_size)
