"""Question sets made mechanically from a corpus: a name, a template, and the sentence that answers it.

They score retrieval and drive benchmarks. They say nothing about the quality of a written answer.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.corpora import Corpus, CorpusDocument
from data.errors import QuestionError

__all__ = ["Gold", "Question", "make_questions"]

LONGEST_GOLD = 240  # characters: short enough to lie in one passage nearly always
SHORTEST_GOLD = 30

NAME_TEMPLATES = (
    "What does {subject} do?",
    "What is {subject} for?",
    "How would you explain {subject} to a beginner?",
    "When do I need {subject}?",
)
TOPIC_TEMPLATES = (
    "What does the Python reference say about {subject}?",
    "How would you use {subject} in Python?",
    "Can you explain {subject} in Python?",
    "What should I know about {subject}?",
)
SECTION_TEMPLATES = (
    "What does the documentation say about {subject}?",
    "Can you explain {subject}?",
    "What should I know about {subject}?",
)
ANSWERED_TEMPLATES = ("{subject}", "I would like to know: {subject}")  # a heading that is a question
PLACE_TEMPLATES = ("Where is this explained? {gold}",)
SEARCH_TEMPLATES = (
    "Which part of Python is described like this: {gold}",
    "What is it called in Python? {gold}",
)

# object.__add__(self, other)  followed by its indented description
DEFINITION = re.compile(
    r"^(?:class |async )?(?P<name>[\w.]+)\(.*\)(?:\n[\w.]+\(.*\))*\n\n(?P<body>(?: {3,}\S.*\n?)+)", re.M
)
HEADING = re.compile(
    r"^(?P<title>\S.*)\n(?P<sign>[=~^\"'-])(?P=sign){2,}\n\n(?P<body>(?:[A-Z](?:.*\n)(?:\S.*\n?)*))", re.M
)
SECTION_NUMBER = re.compile(r"^(?:Chapter |Appendix )?(?:[A-Z]|\d+)(?:\.\d+)*\.\s+")
PARAGRAPH = re.compile(r"(?:^\S.*\n?)+", re.M)
SENTENCE_END = re.compile(r"[.:;](?=\s|$)")


@dataclass(frozen=True, slots=True)
class Gold:
    """A piece of a document's text that answers a question.

    Attributes:
        document_id: of the corpus document.
        uri: of the same document.
        start: first character in the document's text.
        end: one past the last character.
        text: `document.text[start:end]`.
    """

    document_id: str
    uri: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the pieces of text that answer it, each alone.

    Attributes:
        text: the question.
        golds: at least one; several where documents describe the same thing, as Python's do.
    """

    text: str
    golds: tuple[Gold, ...]

    @property
    def gold_document_id(self) -> str:
        """Return the id of the first document that answers it."""
        return self.golds[0].document_id

    @property
    def gold_text(self) -> str:
        """Return the first text that answers it."""
        return self.golds[0].text

    def is_answered_by(self, uri: str, text: str) -> bool:
        """Tell whether a passage of document `uri` holds a gold text; any run of white space counts as one space."""
        squeezed = _squeeze(text)
        return any(gold.uri == uri and _squeeze(gold.text) in squeezed for gold in self.golds)


@dataclass(frozen=True, slots=True)
class _Fact:
    subject: str
    gold: Gold
    templates: tuple[str, ...]

    def ask(self, *, quoting: bool) -> Iterator[str]:
        gold = _squeeze(self.gold.text)
        asked = (template.format(subject=self.subject, gold=gold) for template in self.templates)
        return (text for text in asked if quoting or gold not in text)


def make_questions(
    corpus: Corpus, *, count: int | None = None, seed: int = 0, quoting: bool = True
) -> tuple[Question, ...]:
    """Make distinct questions over a corpus, in an order drawn from `seed`.

    Several questions may ask for the same text in other words. The first n questions are the same for every `count`.

    Args:
        corpus: one of this package; questions over a folder ask for its sections.
        count: how many; None means all.
        seed: of the order.
        quoting: whether some quote the text that answers them and ask where it is. They suit retrieval; an answer that
            is scored by that text would be right by saying the question again.

    Raises:
        QuestionError: the corpus does not give `count` questions, or none at all.
    """
    facts_of = _FACTS_OF.get(corpus.name, _section_facts)
    golds: dict[str, list[Gold]] = {}
    for document in corpus.documents:
        for fact in facts_of(document):
            for text in fact.ask(quoting=quoting):
                golds.setdefault(text, []).append(fact.gold)
    if not golds:
        raise QuestionError(f"{corpus.source}: no heading is followed by a sentence; give documentation with sections")
    if count is not None and not 0 < count <= len(golds):
        raise QuestionError(f"{count} questions asked for, {corpus.name} gives 1 to {len(golds)}: change the count")
    questions = [Question(text, tuple(found)) for text, found in golds.items()]
    random.Random(seed).shuffle(questions)
    return tuple(questions[:count])


def _topic_facts(document: CorpusDocument) -> Iterator[_Fact]:
    body = document.text.index("\n", document.text.index("\n") + 1)  # after the title and its underline
    for paragraph in PARAGRAPH.finditer(document.text, body):
        lines = paragraph.group().splitlines()
        underlined = len(lines) > 1 and not lines[1].strip("*=-~^")
        if underlined or paragraph.group().startswith(("*", "New in", "Changed in", "See also")):
            continue
        if gold := _gold(document, paragraph):
            yield _Fact(document.title.lower(), gold, TOPIC_TEMPLATES + SEARCH_TEMPLATES)
            break
    for definition in DEFINITION.finditer(document.text):
        if gold := _gold(document, definition, "body"):
            yield _Fact(definition["name"], gold, NAME_TEMPLATES + SEARCH_TEMPLATES)


def _docstring_facts(document: CorpusDocument) -> Iterator[_Fact]:
    for paragraph in PARAGRAPH.finditer(document.text, document.text.index("\n\n")):
        if gold := _gold(document, paragraph):
            yield _Fact(document.title, gold, NAME_TEMPLATES + SEARCH_TEMPLATES)
            return


def _section_facts(document: CorpusDocument) -> Iterator[_Fact]:
    """Ask for the first sentence below each heading, by that heading and, but for the first, by the document's."""
    for number, section in enumerate(HEADING.finditer(document.text)):
        gold = _gold(document, section, "body")
        subject = SECTION_NUMBER.sub("", section["title"])
        if gold is None or not gold.text.endswith("."):
            continue
        if subject.endswith("?"):
            yield _Fact(subject, gold, ANSWERED_TEMPLATES + PLACE_TEMPLATES)
        else:
            place = f" in {SECTION_NUMBER.sub('', document.title)}" if number else ""
            yield _Fact(f"{subject}{place}", gold, SECTION_TEMPLATES + PLACE_TEMPLATES)


_FACTS_OF: dict[str, Callable[[CorpusDocument], Iterator[_Fact]]] = {
    "python-topics": _topic_facts,
    "python-stdlib": _docstring_facts,
}


def _gold(document: CorpusDocument, match: re.Match[str], group: str | int = 0) -> Gold | None:
    """Return the first sentence of a match, or None where it is no sentence worth asking for."""
    text = match[group].strip()
    start = match.start(group) + len(match[group]) - len(match[group].lstrip())
    lengths = [end.end() for end in SENTENCE_END.finditer(text) if end.end() >= SHORTEST_GOLD]
    length = lengths[0] if lengths else len(text)
    if not SHORTEST_GOLD <= length <= LONGEST_GOLD:
        return None
    return Gold(document.id, document.uri, start, start + length, text[:length])


def _squeeze(text: str) -> str:
    return " ".join(text.split())
