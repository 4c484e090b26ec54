"""Messages of a conversation as OpenAI's clients send them, and what is read of them."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from rag.openai.fields import Ignored, OpenAIRequest, Refused
from rag.schemas.answers import MAX_TURNS
from rag.server.problems import ProblemError
from rag.transcripts import Said

__all__ = [
    "Conversation",
    "Message",
    "Messages",
    "TextPart",
    "conversation",
]


class TextPart(OpenAIRequest):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Ignored = None


class Message(OpenAIRequest):
    """Something that was said; `developer` counts as `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: Refused = None
    function_call: Refused = None
    tool_calls: Refused = None

    @property
    def text(self) -> str:
        """What was said."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_TURNS)]


class Conversation(NamedTuple):
    """Messages in the shape that a question to a collection has."""

    instructions: str
    history: list[Said]
    question: str

    @property
    def turns(self) -> list[Said]:
        """All of it, for the language model itself."""
        first: list[Said] = [("system", self.instructions)] if self.instructions else []
        return [*first, *self.history, ("user", self.question)]


def conversation(said: Sequence[Said]) -> Conversation:
    """Take a conversation apart: what the system is told, wherever that stands, what was said, and the question.

    Raises:
        ProblemError: the last message is not the user's, or says nothing.
    """
    instructions = "\n\n".join(text for role, text in said if role == "system" and text.strip())
    turns = [(role, text) for role, text in said if role != "system"]
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        raise ProblemError(422, "invalid-request", "the last message has to be the user's, and to say something")
    *history, (_, question) = turns
    return Conversation(instructions, history, question)
