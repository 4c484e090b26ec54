"""A question and what was said before it: what to look for, and the conversation as the model reads it."""

from collections.abc import Sequence
from itertools import dropwhile
from typing import TYPE_CHECKING

from engine.request import FinishReason
from rag.caller import Caller
from rag.chat_format import Spoken
from rag.schemas import AnswerRequest
from rag.transcripts import Said, Transcripts

if TYPE_CHECKING:
    from engine.output import Generation
    from engine.tokenizer import Tokenizer

__all__ = ["Dialogues", "said_before", "search_query", "written_tokens"]

SHORT_WORDS = 3  # "And in winter?" says too little to be looked for alone


def search_query(question: str, history: Sequence[Said]) -> str:
    """Return what passages are looked for by: the question, after the one before where it has few words."""
    if len(question.split()) > SHORT_WORDS:
        return question
    before = next((text for role, text in reversed(history) if role == "user"), "")
    return f"{before}\n{question}" if before.strip() else question


def written_tokens(generation: "Generation", tokenizer: "Tokenizer") -> tuple[int, ...] | None:
    """Return an answer's tokens as they belong into the next turn's prompt; None where it was cut off at a string."""
    *tokens, last = generation.token_ids or (-1,)
    if last in tokenizer.eos_token_ids:
        return tuple(tokens)
    return generation.token_ids if generation.finish_reason is FinishReason.LENGTH else None


class Dialogues:
    """The conversations of questions to collections.

    Args:
        transcripts: remembers what the model wrote.
    """

    def __init__(self, transcripts: Transcripts) -> None:
        self._transcripts = transcripts

    def history(self, request: AnswerRequest, caller: Caller, tokenizer: "Tokenizer") -> list[Spoken]:
        """Return what was said before a question, as tokens."""
        return self._transcripts.spoken(_whose(request, caller), said_before(request), tokenizer)

    def note(
        self, request: AnswerRequest, caller: Caller, answer: str, generation: "Generation", tokenizer: "Tokenizer"
    ) -> None:
        """Remember what the model wrote for an answer, where its conversation may go on."""
        tokens = written_tokens(generation, tokenizer)
        if tokens and (request.history or caller.conversation is not None):
            turns = [*said_before(request), ("user", request.question), ("assistant", answer)]
            self._transcripts.note(_whose(request, caller), turns, tokens)


def _whose(request: AnswerRequest, caller: Caller) -> tuple[str, ...]:
    return caller.principal, request.collection, request.instructions or ""


def said_before(request: AnswerRequest) -> list[Said]:
    """Return the turns from the first question on: a greeting before it would stand between passages and question."""
    turns = dropwhile(lambda turn: turn.role != "user", request.history)
    return [(turn.role, turn.content) for turn in turns]
