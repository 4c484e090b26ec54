"""Conversations as tokens: the model's own chat format around turns whose tokens are given.

Text that is not ours is never parsed for control tokens, and an answer of the model's goes back in as the very tokens
that it wrote, so that their KV is found again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.errors import PromptError
from engine.tokenizer import Tokenizer
from rag.errors import TemplateError

__all__ = ["ChatFormat", "Spoken", "mark", "splice"]

MARK = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: no chat template has them by chance


class Spoken(NamedTuple):
    """Something that was said: by whom, and its tokens."""

    role: str
    tokens: Sequence[int]


def mark(number: int) -> str:
    """Return what stands for a turn's tokens while the chat template is rendered."""
    return f"\ue000{number}\ue001"


def splice(tokenizer: Tokenizer, rendered: str, contents: Sequence[Sequence[int]]) -> list[int]:
    """Tokenise a rendered chat whose marks, counted from 0, stand for these tokens.

    Raises:
        TemplateError: not every mark is there once, in order.
    """
    ours, numbers = MARK.split(rendered)[::2], [int(found) for found in MARK.findall(rendered)]
    if numbers != list(range(len(contents))):
        raise TemplateError("the model's chat template drops, repeats or moves messages; use another model")
    tokens = tokenizer.encode(ours[0], special_tokens=True)
    for content, after in zip(contents, ours[1:], strict=True):
        tokens += [*content, *tokenizer.encode(after, special_tokens=True)]
    return tokens


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Lays out conversations without passages.

    Attributes:
        tokenizer: with the model's chat format.
    """

    tokenizer: Tokenizer

    def encode(self, turns: Sequence[Spoken]) -> list[int]:
        """Return the prompt after which the model answers the last turn.

        Raises:
            PromptError: the model has no chat template, or it refuses such turns.
        """
        messages = [{"role": turn.role, "content": mark(number)} for number, turn in enumerate(turns)]
        try:
            rendered = self.tokenizer.render_chat(messages)
        except PromptError:
            if [turn.role for turn in turns[:2]] != ["system", "user"]:
                raise
            said = {"role": "user", "content": f"{mark(0)}\n\n{mark(1)}"}  # some chat formats have no system role
            rendered = self.tokenizer.render_chat([said, *messages[2:]])
        return splice(self.tokenizer, rendered, [turn.tokens for turn in turns])
