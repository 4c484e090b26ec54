"""Prompts as segments: template, passages, tail, from the model's own chat format.

A passage's tokens depend on the passage alone: its label, its heading and its text, tokenised without special tokens.
Rank, number, score and date are nowhere before the tail, so every order of the same passages is made of the same
segments. Text that is not ours (passages, questions) can never become a control token.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

from engine.errors import PromptError
from engine.prompt import Prompt, Segment, SegmentKind
from engine.tokenizer import Tokenizer
from rag.chat_format import Spoken, mark, splice
from rag.errors import QuestionTooLongError, TemplateError
from rag.prompt_template import QUESTION, PromptTemplate
from retriever.document import Passage, PassageDraft

__all__ = [
    "PASSAGE_VERSION",
    "TEMPLATE_VERSION",
    "LaidOut",
    "PassageTokens",
    "PromptLayout",
    "render_passage",
    "volatile_text",
]

logger = logging.getLogger(__name__)

TEMPLATE_VERSION = 1  # raise it when the template's words or the way it is cut change
PASSAGE_VERSION = 1  # raise it when `render_passage` changes: stored tokens are then made anew

# Private-use characters: no chat template and no passage has them by chance.
PASSAGES_MARK = "\ue000passages\ue001"
MAX_HEADING = 100  # characters
REMEMBERED_PASSAGES = 4096

VOLATILE = re.compile(
    r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}:\d{2}(:\d{2})?\b|\b\d{1,2}/\d{1,2}/\d{2,4}\b"
    r"|\b\d{1,2}\.? (jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* \d{4}\b"
    r"|\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]* \d{1,2},? \d{4}\b"
    r"|\{(question|date|time|user)\}",
    re.IGNORECASE,
)


def volatile_text(text: str) -> list[str]:
    """Return the parts of a template's head that change between questions (dates, times, the question itself)."""
    return [match.group() for match in VOLATILE.finditer(text)]


def render_passage(passage: PassageDraft | Passage) -> str:
    """Return a passage as the model reads it: label and heading, text, separator."""
    heading = " > ".join((passage.title, *passage.heading_path[-1:]))[:MAX_HEADING]
    return f"[{passage.label}] {heading}\n{passage.text.strip()}\n\n"


class PassageTokens:
    """The retriever's `PassageEncoder`: gives passages the tokens of one language model.

    Args:
        tokenizer: of the language model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._foreign: OrderedDict[tuple[int, str], tuple[int, ...]] = OrderedDict()
        self._warned = False
        self._lock = Lock()

    @property
    def fingerprint(self) -> str:
        """Return what tokens depend on: tokenizer and passage layout."""
        return f"{self._tokenizer.fingerprint}/passage-v{PASSAGE_VERSION}"

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return [len(ids) for ids in self._tokenizer.encode_batch(texts)]

    def encode(self, passages: Sequence[PassageDraft]) -> list[list[int]]:
        """Return the token ids of each passage."""
        return self._tokenizer.encode_batch([render_passage(passage) for passage in passages])

    def of(self, passage: Passage) -> tuple[int, ...]:
        """Return a stored passage's tokens; those of another model or layout are never used, but made anew."""
        if passage.encoder_fingerprint == self.fingerprint:
            return passage.token_ids
        with self._lock:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "the collection's passages were tokenised for another model or layout; they are tokenised again "
                    "for each use. Ingest the documents again with this model to store its tokens"
                )
            key = passage.id, passage.label  # of the same text ingested anew, the label may be another
            if key not in self._foreign:
                self._foreign[key] = tuple(self._tokenizer.encode(render_passage(passage)))
                while len(self._foreign) > REMEMBERED_PASSAGES:
                    self._foreign.popitem(last=False)
            self._foreign.move_to_end(key)
            return self._foreign[key]


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A prompt, the passages in it in prompt order, and those that did not fit."""

    prompt: Prompt
    passages: tuple[Passage, ...]
    left_out: tuple[Passage, ...]


@dataclass(frozen=True)
class PromptLayout:
    """Lays prompts out for one model.

    Attributes:
        tokenizer: with the model's chat format.
        template: the words around the passages.
        passage_tokens: gives passages their tokens.

    Raises:
        TemplateError: on first use, when the chat format drops or repeats the user's words.

    A conversation has its passages in its first question: later turns change nothing before themselves, and where the
    same passages are found again the conversation's own KV can be used.
    """

    tokenizer: Tokenizer
    template: PromptTemplate
    passage_tokens: PassageTokens

    def _render(self, turns: Sequence[str], *, with_instructions: bool = False) -> tuple[str, str]:
        """Render a chat of these roles, which ends with a question: the part up to the passages, and the rest.

        The passages are in the first question, so that they are read once for the whole conversation, and marks stand
        for what is said, the instructions of whoever asks first.
        """
        template, first = self.template, int(with_instructions)
        said = [
            template.after.replace(QUESTION, mark(first + number)) if role == "user" else mark(first + number)
            for number, role in enumerate(turns)
        ]
        instructions = f"{mark(0)}\n\n" if with_instructions else ""
        said[0] = f"{template.before}{PASSAGES_MARK}{instructions}{said[0]}"
        messages = [{"role": role, "content": content} for role, content in zip(turns, said, strict=True)]
        try:
            chat = self.tokenizer.render_chat([{"role": "system", "content": template.system}, *messages])
        except PromptError:  # some chat formats have no system role
            messages[0]["content"] = f"{template.system}\n\n{messages[0]['content']}"
            chat = self.tokenizer.render_chat(messages)
        head, *tail = chat.split(PASSAGES_MARK)
        if len(tail) != 1:
            raise TemplateError("the model's chat template drops or repeats the user's message; use another model")
        return head, tail[0]

    @cached_property
    def _one_question(self) -> tuple[str, str]:
        head, tail = self._render(["user"])
        if found := volatile_text(head):
            logger.warning(
                "the prompt template has text that changes before the passages (%s): every change makes the cache "
                "useless. Move it behind the passages, into `after`",
                ", ".join(repr(part) for part in found),
            )
        return head, tail

    @cached_property
    def head(self) -> Segment:
        """The template: the same tokens for every question."""
        return Segment(tuple(self.tokenizer.encode(self._one_question[0], special_tokens=True)), SegmentKind.TEMPLATE)

    def passage(self, passage: Passage) -> Segment:
        """Return a passage's segment, named by its id."""
        return Segment(self.passage_tokens.of(passage), SegmentKind.PASSAGE, str(passage.id))

    def tail(self, question: str, history: Sequence[Spoken] = (), instructions: str = "") -> Segment:
        """Return the segment of a question: private, and never parsed for control tokens.

        Args:
            question: what to answer.
            history: what was said before, in turns that begin with a question.
            instructions: of whoever asks, for the whole conversation.
        """
        turns = [*history, Spoken("user", self.tokenizer.encode(question))]
        contents = [turn.tokens for turn in turns]
        if instructions:
            contents.insert(0, self.tokenizer.encode(instructions))
        if len(contents) == 1:
            rendered = self._one_question[1]
        else:
            _, rendered = self._render([turn.role for turn in turns], with_instructions=bool(instructions))
        return Segment(tuple(splice(self.tokenizer, rendered, contents)), SegmentKind.TAIL)

    def lay_out(
        self,
        question: str,
        passages: Sequence[Passage],
        *,
        max_tokens: int,
        history: Sequence[Spoken] = (),
        instructions: str = "",
    ) -> LaidOut:
        """Make a prompt of at most `max_tokens`; passages are fitted in the order given, best first.

        Raises:
            QuestionTooLongError: the question with what was said before, or they with the first passage, do not fit.
        """
        tail = self.tail(question, history, instructions)
        room = max_tokens - len(self.head.tokens) - len(tail.tokens)
        segments, used, left_out = [], [], []
        for passage in passages:
            segment = self.passage(passage)
            if len(segment.tokens) <= room:
                segments.append(segment)
                used.append(passage)
                room -= len(segment.tokens)
            else:
                left_out.append(passage)
        if not used:
            raise QuestionTooLongError(
                f"the question takes {len(tail.tokens)} tokens with what was said before and leaves no room for a "
                f"passage: template, passages and question may have {max_tokens} tokens together. Ask a shorter "
                "question, leave out earlier turns, ask for a shorter answer, or use a model with a longer context"
            )
        return LaidOut(Prompt([self.head, *segments, tail]), tuple(used), tuple(left_out))
