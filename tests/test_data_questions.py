from dataclasses import replace

import pytest

from data.corpora import load_python_stdlib, load_python_topics
from data.errors import QuestionError
from data.questions import make_questions

CORPORA = {
    "python-topics": load_python_topics(),
    "python-stdlib": load_python_stdlib(["json", "textwrap", "argparse", "pathlib"]),
}


@pytest.fixture(params=CORPORA)
def corpus(request):
    return CORPORA[request.param]


def test_gold_texts_are_where_they_say(corpus):
    texts = {document.id: document.text for document in corpus.documents}
    uris = {document.id: document.uri for document in corpus.documents}
    for question in make_questions(corpus):
        for gold in question.golds:
            assert texts[gold.document_id][gold.start : gold.end] == gold.text
            assert uris[gold.document_id] == gold.uri
            assert 30 <= len(gold.text) <= 240


def test_questions_differ_and_cover_nearly_every_document(corpus):
    questions = make_questions(corpus)
    assert len({question.text for question in questions}) == len(questions)
    openings = {" ".join(question.text.split()[:2]) for question in questions}
    assert len(openings) >= 5
    covered = {gold.document_id for question in questions for gold in question.golds}
    assert len(covered) >= 0.9 * len(corpus.documents)


def test_seed_decides_the_order_and_count_cuts_it(corpus):
    assert make_questions(corpus, count=50, seed=1) == make_questions(corpus, seed=1)[:50]
    assert make_questions(corpus, count=50, seed=1) != make_questions(corpus, count=50, seed=2)
    assert set(make_questions(corpus, seed=1)) == set(make_questions(corpus, seed=2))


def squeezed(text):
    return " ".join(text.split())


def quotes(question):
    return any(squeezed(gold.text) in squeezed(question.text) for gold in question.golds)


def test_those_that_quote_their_answer_can_be_left_out(corpus):
    everything = make_questions(corpus)
    assert any(map(quotes, everything))
    without = make_questions(corpus, quoting=False)
    assert not any(map(quotes, without))
    assert set(without) == {question for question in everything if not quotes(question)}
    assert {q.gold_document_id for q in without} == {q.gold_document_id for q in everything}
    assert make_questions(corpus, count=20, seed=1, quoting=False) == make_questions(corpus, seed=1, quoting=False)[:20]


def test_only_a_passage_with_the_gold_answers():
    (question,) = [q for q in make_questions(CORPORA["python-stdlib"]) if q.text == "What does json.dumps do?"]
    assert question.gold_document_id == "json.dumps"
    assert question.gold_text.startswith("Serialize ``obj`` to a JSON formatted ``str``")
    uri = "python-stdlib:json.dumps"
    assert question.is_answered_by(uri, f"heading\n  {'   '.join(question.gold_text.split())} more")
    assert not question.is_answered_by(uri, question.gold_text[:-10])
    assert not question.is_answered_by("python-stdlib:json.dump", question.gold_text)


def test_what_two_topics_describe_has_two_golds():
    (question,) = [q for q in make_questions(CORPORA["python-topics"]) if q.text == "What does object.__add__ do?"]
    documents = {gold.document_id for gold in question.golds}
    assert {"numeric-types", "specialnames"} <= documents
    assert all(question.is_answered_by(gold.uri, gold.text) for gold in question.golds)


def test_impossible_counts_and_corpora_without_headings_are_refused(corpus):
    for count in (0, -1, 10**6):
        with pytest.raises(QuestionError, match=str(count)):
            make_questions(corpus, count=count)
    bare = replace(corpus.documents[0], text="No heading, and not much to ask for.\n")
    with pytest.raises(QuestionError, match="no heading is followed by a sentence"):
        make_questions(replace(corpus, name="mine", documents=(bare,)))
