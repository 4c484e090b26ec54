"""A prompt as a list of segments: what is cached together, in the order in which the model reads it.

Knows token ids only; text, documents and passages' ranks stay outside.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from engine.errors import PromptError

__all__ = ["Prompt", "Reuse", "Segment", "SegmentKind", "block_keys"]


class SegmentKind(StrEnum):
    """What a run of prompt tokens is, which decides how its KV may be shared."""

    TEMPLATE = "template"
    PASSAGE = "passage"
    TEXT = "text"
    TAIL = "tail"


class Reuse(StrEnum):
    """Which cached KV a request accepts (DESIGN section 4)."""

    EXACT = "exact"
    CHUNK = "chunk"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt tokens that is cached as one thing.

    Attributes:
        tokens: token ids, at least one.
        kind: template, passage, text or tail.
        name: the caller's name for it (a passage id, say), echoed in the cache report.
    """

    tokens: tuple[int, ...]
    kind: SegmentKind
    name: str = ""

    def __post_init__(self) -> None:
        if not self.tokens:
            raise PromptError(f"segment {self.name or self.kind.value!r} has no tokens; leave it out of the prompt")

    @property
    def sealed(self) -> bool:
        """Whether its last block ends with it, partly filled or not, and is never extended."""
        return self.kind in (SegmentKind.TEMPLATE, SegmentKind.PASSAGE)

    def num_blocks(self, block_size: int) -> int:
        """Count the blocks that hold it."""
        return -(-len(self.tokens) // block_size)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Segments in prompt order: an optional template, passages, an optional tail; or one plain text.

    Raises:
        PromptError: no segments, or segments out of that order.
    """

    segments: tuple[Segment, ...]
    tokens: tuple[int, ...]

    def __init__(self, segments: Iterable[Segment]) -> None:
        object.__setattr__(self, "segments", tuple(segments))
        object.__setattr__(self, "tokens", tuple(token for segment in self.segments for token in segment.tokens))
        if not self.segments:
            raise PromptError("a prompt needs at least one segment")
        kinds = [segment.kind for segment in self.segments]
        if SegmentKind.TEXT in kinds and len(kinds) > 1:
            raise PromptError("a text segment stands alone; use template, passages and tail for a structured prompt")
        if SegmentKind.TEMPLATE in kinds[1:]:
            raise PromptError("the template comes first and once: volatile text before it would defeat the cache")
        if SegmentKind.TAIL in kinds[:-1]:
            raise PromptError("the tail comes last: nothing after private text can be shared")

    @classmethod
    def from_tokens(cls, tokens: Sequence[int]) -> "Prompt":
        """Make a plain prompt: one text segment."""
        return cls([Segment(tuple(tokens), SegmentKind.TEXT)])

    @property
    def num_tokens(self) -> int:
        """How many tokens the segments have together."""
        return len(self.tokens)

    @property
    def starts(self) -> list[int]:
        """The prompt position of each segment's first token."""
        return [0, *accumulate(len(segment.tokens) for segment in self.segments)][:-1]

    def num_blocks(self, block_size: int, *, extra_tokens: int = 0) -> int:
        """Count the blocks that hold it, each segment in blocks of its own, with `extra_tokens` after it."""
        blocks = sum(segment.num_blocks(block_size) for segment in self.segments[:-1])
        last = self.segments[-1]
        if last.sealed:
            return blocks + last.num_blocks(block_size) + -(-extra_tokens // block_size)
        return blocks + -(-(len(last.tokens) + extra_tokens) // block_size)


def block_keys(tokens: Sequence[int], block_size: int, *, sealed: bool) -> list[tuple[int, ...]]:
    """Cut tokens into the keys of their blocks.

    A sealed segment keeps its partly filled last block; otherwise only full blocks have a key.
    """
    end = len(tokens) if sealed else len(tokens) - len(tokens) % block_size
    return [tuple(tokens[i : min(i + block_size, end)]) for i in range(0, end, block_size)]
