"""From labels in generated text to numbered sources, whole and streamed; repetition; quotations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.output import Generation, TokenDelta
from engine.request import FinishReason
from engine.stats import CacheReport, Timings
from rag.answer import QUOTE_INTRODUCTION, AnswerAssembler
from rag.citations import CitationFilter
from rag.config import AnswerSettings
from rag.extractive import best_sentence
from rag.logprobs import LogprobTexts
from rag.repetition import RepetitionGuard
from rag.schemas import Answer, Citation, Source

NUMBERS = {"k7q2": 1, "abcd": 2, "from": 3}


def cite(parts: list[str]) -> tuple[str, list[Citation]]:
    found = CitationFilter(NUMBERS)
    shown, citations = "", []
    for part in parts:
        text, new = found.push(part)
        shown += text
        citations += new
    text, new = found.flush()
    assert found.length == len(shown + text)
    return shown + text, citations + new


@pytest.mark.parametrize(
    ("text", "shown", "sources"),
    [
        ("Built in 1874 [k7q2].", "Built in 1874 [1].", [1]),
        ("Built in 1874[K7Q2]", "Built in 1874[1]", [1]),
        ("Upper [[abcd]] and (abcd) and 【abcd】.", "Upper [2] and [2] and [2].", [2, 2, 2]),
        ("Two [k7q2, abcd]; again [abcd and k7q2].", "Two [1][2]; again [2][1].", [1, 2, 2, 1]),
        ("Named [Source: k7q2] and [label abcd.]", "Named [1] and [2]", [1, 2]),
        ("A label that is a word [from].", "A label that is a word [3].", [3]),
        ("One invented [k7q2, zzzz].", "One invented [1].", [1]),
        ("Nothing: [zzzz] a[0] f(abcd) [](x) [abcd", "Nothing: [zzzz] a[0] f(abcd) [](x) [abcd", []),
        ("Bare k7q2 is a word.", "Bare k7q2 is a word.", []),
        ("Doubled [[k7q2]] or uneven [abcd]] and [[abcd].", "Doubled [1] or uneven [2]] and [[2].", [1, 2, 2]),
        ("In words (see [k7q2]) or 【[abcd]】.", "In words (see [1]) or 【[2]】.", [1, 2]),
        ("Two lines [k7q2\n]", "Two lines [k7q2\n]", []),
    ],
)
def test_labels_become_numbers(text: str, shown: str, sources: list[int]) -> None:
    for parts in ([text], list(text), [text[i : i + 3] for i in range(0, len(text), 3)]):
        answer, citations = cite(parts)
        assert answer == shown
        assert [citation.source for citation in citations] == sources
        assert all(answer[c.start : c.end] == c.marker == f"[{c.source}]" for c in citations)


PIECES = st.sampled_from(["[", "]", "(", ")", "k7q2", "abcd", " ", ",", "word", "\n", "[k7q2]", "é", "【", "】"])


@given(st.lists(PIECES, max_size=30), st.data())
def test_streaming_changes_nothing(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert cite(parts) == cite([text])


def test_text_without_brackets_is_not_held_back() -> None:
    found = CitationFilter(NUMBERS)
    assert found.push("The lamp is lit ")[0] == "The lamp is lit "
    assert found.push("every evening [k7")[0] == "every evening "
    assert found.push("q2] by")[0] == "[1] by"


def guard(text: str, step: int = 1) -> tuple[str, bool]:
    watch, shown = RepetitionGuard(), ""
    for at in range(0, len(text), step):
        part, ends = watch.push(text[at : at + step])
        shown += part
        if ends:
            return shown, True
    return shown + watch.flush(), False


SENTENCE = "A lambda is a small anonymous function. "


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_answer_ends_where_it_repeats_itself(step: int) -> None:
    once = SENTENCE + "It may stand where a def may not. "
    assert guard(once + once * 3, step) == (once, True)
    assert guard(once + "So it is handy.", step) == (once + "So it is handy.", False)


def test_a_sentence_that_is_wrapped_otherwise_is_a_repetition() -> None:
    first = "The prompt is used to set breakpoints\nand to step. "
    assert guard(first + "The prompt is used\nto set breakpoints and to step. More") == (first, True)
    items = "- integers: whole numbers of any size\n- floats: numbers with a point in them\n"
    assert guard(items + items) == (items, True)


def test_a_sentence_that_begins_like_another_is_shown() -> None:
    text = "The lamp is lit every evening by Mara. The lamp is lit every evening by her, not by him. Yes. Yes. Done"
    assert guard(text) == (text, False)


def test_a_loop_of_a_few_characters_ends_the_answer() -> None:
    shown, ended = guard("The clause try-finally" + "-finally" * 50)
    assert ended
    assert len(shown) < 80


def test_the_best_sentence_shares_rare_words_with_the_question() -> None:
    passages = [
        "The lighthouse of Orrin was built in 1874. Its lamp is lit every evening by Mara Venn.",
        "The harbour of Orrin freezes in January. Ships wait for the ice to break in the bay.",
    ]
    assert best_sentence("Who lights the lamp?", passages) == (0, "Its lamp is lit every evening by Mara Venn.")
    assert best_sentence("When does the harbour freeze?", passages) == (1, "The harbour of Orrin freezes in January.")
    said = "The harbour freezes and ships wait for the ice to break in the bay in January."
    assert best_sentence("Who lights the lamp?", passages, said) == (0, "Its lamp is lit every evening by Mara Venn.")
    assert best_sentence("Quantum chromodynamics?", passages) is None
    assert best_sentence("Who?", []) is None


def make_answer(*texts: str, reason: FinishReason = FinishReason.STOP, **settings: bool) -> tuple[Answer, str]:
    source = Source(
        n=1,
        label="k7q2",
        document_id="d",
        title="Lights",
        uri="u",
        passage_id=2**62 + 1,
        page=None,
        start=0,
        end=9,
        score=0.5,
        text="The lighthouse was built in 1874. Its lamp is lit every evening by Mara Venn.",
    )
    assembler = AnswerAssembler(
        "Who lights the lamp?",
        [source],
        "m",
        started=0.0,
        retrieval_ms=(1.0, 2.0),
        settings=AnswerSettings(**settings),
        logprob_texts=LogprobTexts(None),
    )
    events = []
    for text in texts:
        events += assembler.take(TokenDelta((1,), text))
    timings = Timings(arrival=1.0, first_scheduled=1.5, first_token=2.0, finished=3.0)
    events += assembler.take(Generation((1, 2), "".join(texts), reason, 10, CacheReport(), timings))
    assert events[-1].type == "done"
    return events[-1].answer, "".join(event.text for event in events if event.type == "delta")


def test_an_answer_that_cites_is_left_alone() -> None:
    answer, streamed = make_answer("Mara [k7", "q2] does.")
    assert answer.answer == streamed == "Mara [1] does."
    assert answer.citations == [Citation(marker="[1]", source=1, start=5, end=8)]
    assert answer.timings_ms.model_dump() == {
        "embed": 1.0, "search": 2.0, "queue": 500.0, "load": 0.0, "prefill": 500.0, "ttft": 2000.0, "total": 3000.0
    }  # fmt: skip


def test_an_answer_that_cites_nothing_gets_a_quotation() -> None:
    answer, streamed = make_answer("Mara does.")
    assert (
        answer.answer
        == streamed
        == f"Mara does.\n\n{QUOTE_INTRODUCTION}“Its lamp is lit every evening by Mara Venn.” [1]"
    )
    [citation] = answer.citations
    assert answer.answer[citation.start : citation.end] == "[1]"


def test_a_sentence_that_was_said_already_gets_its_source_only() -> None:
    answer, streamed = make_answer("Its lamp is lit\nevery evening ", "by Mara Venn.\n\n")
    assert answer.answer == streamed == "Its lamp is lit\nevery evening by Mara Venn. [1]"
    [citation] = answer.citations
    assert answer.answer[citation.start : citation.end] == "[1]"


def test_white_space_around_an_answer_is_dropped() -> None:
    answer, streamed = make_answer("\n ", "Mara [k7q2]", " \n", " does. ", "\n")
    assert answer.answer == streamed == "Mara [1] \n does."


def test_the_quotation_can_be_switched_off() -> None:
    answer, _ = make_answer("Mara does.", extractive=False)
    assert (answer.answer, answer.citations) == ("Mara does.", [])


def test_a_cancelled_answer_gets_no_quotation() -> None:
    answer, _ = make_answer("Mara", reason=FinishReason.CANCELLED)
    assert (answer.answer, answer.finish_reason) == ("Mara", "cancelled")


def test_repetition_ends_the_answer_as_a_stop() -> None:
    answer, streamed = make_answer(SENTENCE, SENTENCE, "More.", reason=FinishReason.CANCELLED, extractive=False)
    assert (answer.answer, answer.finish_reason) == (streamed, "stop")
    assert streamed.strip() == SENTENCE.strip()
