"""Questions to test with: those of a built-in corpus, of a file, or made from a collection's passages."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.corpora import Corpus
from data.questions import Gold, make_questions
from rag.errors import InvalidRequestError
from retriever.document import Passage

__all__ = ["Asked", "ask_corpus", "ask_file", "ask_passages"]

SENTENCE = re.compile(r"[^.!?:]{30,200}[.!?:]")
TEMPLATES = (
    "What should I know about {subject}?",
    "What does the documentation say about {subject}?",
    "Where is it described: {sentence}",
    "Can you explain this in other words? {sentence}",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and the texts that answer it, of which there may be none."""

    question: str
    golds: tuple[str, ...] = ()


def ask_corpus(corpus: Corpus, *, seed: int) -> list[Asked]:
    """Return questions over a built-in corpus, no two about the same text."""
    by_gold: dict[Gold, Asked] = {}
    for question in make_questions(corpus, seed=seed):
        by_gold.setdefault(question.golds[0], Asked(question.text, tuple(gold.text for gold in question.golds)))
    return list(by_gold.values())


def ask_file(path: Path) -> list[Asked]:
    """Return the questions of a file, one a line, each once.

    Raises:
        InvalidRequestError: it cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the questions cannot be read from {path} ({error})") from error
    return [Asked(question) for question in dict.fromkeys(line.strip() for line in lines) if question]


def ask_passages(passages: Sequence[Passage], *, seed: int) -> list[Asked]:
    """Make a question from each passage, in an order drawn from `seed`; the sentence asked for is the gold text."""
    generator = random.Random(seed)
    questions: dict[str, Asked] = {}
    for passage in generator.sample(passages, len(passages)):
        template = generator.choice(TEMPLATES)
        found = SENTENCE.search(passage.text)
        if found is not None:
            sentence = " ".join(found.group().split())
            subject = " > ".join((passage.title, *passage.heading_path[-1:]))
            text = template.format(subject=subject, sentence=sentence)
            questions.setdefault(text, Asked(text, (sentence,)))
    return list(questions.values())
