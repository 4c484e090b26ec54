"""Prompts whose answers quote their passages, and prompts whose answers do not, from real text."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.corpora import Corpus
from data.questions import Question, make_questions
from engine.prompt import Prompt, Segment, SegmentKind
from engine.tokenizer import Tokenizer
from rag.prompt_layout import PassageTokens, PromptLayout
from rag.prompt_template import PromptTemplate

__all__ = ["KINDS", "DraftCase", "make_cases"]

PASSAGES = 4  # a prompt
BEFORE, BEHIND = 300, 500  # characters around a gold text: the passage that holds it
OPENING = 60  # characters of a passage that a copying prompt has begun to say again
TOPICS = (
    "the sea", "a lonely robot", "cooking rice", "two brothers", "winter", "a train journey", "music", "the moon",
    "gardens", "a lost letter", "mountains", "a market", "an old clock", "the desert", "a baker", "a lighthouse",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DraftCase:
    """A prompt, and how its answer is sampled.

    Attributes:
        kind: of `KINDS`.
        temperature: 0 is greedy.
    """

    kind: str
    prompt: Prompt
    temperature: float = 0.0


class _Maker:
    """Lays prompts out over one corpus."""

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus, seed: int) -> None:
        self._tokenizer = tokenizer
        self._layout = PromptLayout(tokenizer, PromptTemplate(), PassageTokens(tokenizer))
        self._texts = {document.id: document.text for document in corpus.documents}
        self._questions = make_questions(corpus, seed=seed)
        self._random = random.Random(seed)

    def question(self, number: int) -> DraftCase:
        """A question over passages of which one answers it."""
        question = self._questions[number % len(self._questions)]
        return DraftCase("question", self._structured(question, question.text))

    def quote(self, number: int) -> DraftCase:
        """The same, asked for the passage's own words."""
        question = self._questions[number % len(self._questions)]
        wanted = f"Quote the sentence about this word for word from the passages: {question.text}"
        return DraftCase("quote", self._structured(question, wanted))

    def copy(self, number: int) -> DraftCase:
        """Plain text: passages, then the beginning of one of them again."""
        texts = self._passages(self._questions[number % len(self._questions)])
        chosen = self._random.choice(texts)
        text = "\n\n".join(texts) + f"\n\nThe passage again, word for word:\n\n{chosen[:OPENING]}"
        return DraftCase("copy", Prompt.from_tokens(self._tokenizer.encode(text)))

    def story(self, number: int) -> DraftCase:
        """A story, without passages."""
        return DraftCase("story", self._story(number))

    def sampled_story(self, number: int) -> DraftCase:
        """The same, sampled."""
        return DraftCase("sampled story", self._story(number), temperature=0.8)

    def _story(self, number: int) -> Prompt:
        wanted = f"Write a short story about {TOPICS[number % len(TOPICS)]}."
        chat = self._tokenizer.render_chat([{"role": "user", "content": wanted}])
        return Prompt.from_tokens(self._tokenizer.encode(chat, special_tokens=True))

    def _structured(self, question: Question, wanted: str) -> Prompt:
        segments = [
            Segment(tuple(self._tokenizer.encode(f"[p{i}] {text}\n\n")), SegmentKind.PASSAGE, str(i))
            for i, text in enumerate(self._passages(question))
        ]
        return Prompt([self._layout.head, *segments, self._layout.tail(wanted)])

    def _passages(self, question: Question) -> list[str]:
        """The passage around the question's gold text among those of other questions, in any order."""
        asked = [question, *self._random.sample(self._questions, PASSAGES - 1)]
        self._random.shuffle(asked)
        return [self._passage(each) for each in asked]

    def _passage(self, question: Question) -> str:
        gold = question.golds[0]
        return self._texts[gold.document_id][max(gold.start - BEFORE, 0) : gold.end + BEHIND].strip()


_MAKERS: dict[str, Callable[[_Maker, int], DraftCase]] = {
    "copy": _Maker.copy,
    "quote": _Maker.quote,
    "question": _Maker.question,
    "story": _Maker.story,
    "sampled story": _Maker.sampled_story,
}
KINDS = tuple(_MAKERS)


def make_cases(tokenizer: Tokenizer, corpus: Corpus, kinds: Sequence[str], count: int, seed: int) -> list[DraftCase]:
    """Make so many prompts of each kind."""
    maker = _Maker(tokenizer, corpus, seed)
    return [_MAKERS[kind](maker, number) for kind in kinds for number in range(count)]
