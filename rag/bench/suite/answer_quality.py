"""Free answers of every engine, beside those of our own full prefill and beside the gold texts."""

from collections.abc import Iterator, Sequence

from engine.tokenizer import Tokenizer
from rag.bench.suite.records import AnswerRecord, QualityRecord
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.certify.answers import score_answer
from rag.certify.ways import passages_of

__all__ = ["REFERENCES", "answer_text", "score_answers"]

REFERENCES = ("preread-off", "preread-exact")  # neither approximates anything; the first that answered


def answer_text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text of an answer up to the first token that ends one; engines were told to go on after it."""
    end = next((i for i, token in enumerate(tokens) if token in tokenizer.eos_token_ids), len(tokens))
    return tokenizer.decode(tokens[:end])


def score_answers(
    unit: str, stream: RequestStream, answers: Sequence[AnswerRecord], tokenizer: Tokenizer
) -> Iterator[QualityRecord]:
    """Score the answers of an experiment's unit.

    Only whole ones, to questions in words, of engines that tell the tokens' ids; and only where there is something to
    compare with: an answer of `REFERENCES` to the same request, or gold texts.

    Args:
        unit: that the answers belong to.
        stream: what was asked.
        answers: of any engines.
        tokenizer: of the model.
    """
    requests = {request.number: request for request in stream.requests if request.question}
    whole = [one for one in answers if one.status == "ok" and one.tokens and one.request in requests]
    texts = {(one.contestant, one.request): answer_text(one.tokens, tokenizer) for one in whole}
    for (contestant, number), text in texts.items():
        full = next((texts[name, number] for name in REFERENCES if (name, number) in texts), None)
        if full is not None or requests[number].golds:
            yield _score(unit, requests[number], contestant, text, full)


def _score(unit: str, request: BenchRequest, contestant: str, text: str, full: str | None) -> QualityRecord:
    scores = score_answer(text, full or "", request.golds)
    return QualityRecord(
        unit=unit,
        request=request.number,
        variant=contestant,
        k=len(passages_of(request.prompt)),
        f1=None if full is None else scores.f1_full,
        gold_f1=scores.f1_gold if request.golds else None,
        gold=scores.has_gold if request.golds else None,
    )
