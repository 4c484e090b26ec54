"""The stable answer format, and requests that refuse what they do not know."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rag.schemas import Answer, AnswerRequest, DocumentInput, IngestRequest, PassageCache, SearchRequest

ANSWER = {
    "answer": "",
    "citations": [{"marker": "", "source": 0, "start": 0, "end": 0}],
    "sources": [
        dict.fromkeys(
            ("n", "label", "document_id", "title", "uri", "passage_id", "page", "start", "end", "score", "text")
        )
    ],
    "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens")),
    "cache": {
        "passages": [dict.fromkeys(("passage_id", "tokens", "outcome", "tier"))],
        "hit_tokens": dict.fromkeys(("device", "disk")),
        "segments": [
            dict.fromkeys(
                ("kind", "passage_id", "source", "tokens", "cached_tokens", "repaired_tokens", "outcome", "tier")
            )
        ],
    },
    "timings_ms": dict.fromkeys(("embed", "search", "queue", "load", "prefill", "ttft", "total")),
    "model": "",
    "finish_reason": "",
}


def fields_of(model: Any) -> Any:
    """The field names of a model, all the way down; a list is a list of one."""
    arguments = getattr(model, "__args__", ())
    if getattr(model, "__origin__", None) is list:
        return [fields_of(arguments[0])]
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: fields_of(field.annotation) for name, field in model.model_fields.items()}
    return None


def names_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: names_of(item) for name, item in value.items()}
    return [names_of(value[0])] if isinstance(value, list) else None


def test_the_answer_format_is_stable() -> None:
    assert fields_of(Answer) == names_of(ANSWER)


def test_passage_ids_keep_every_digit_in_json() -> None:
    cache = PassageCache(passage_id=2**63 - 1, tokens=3, outcome="path", tier="device")
    assert json.loads(cache.model_dump_json())["passage_id"] == "9223372036854775807"
    assert cache.model_dump()["passage_id"] == 2**63 - 1
    assert PassageCache.model_validate_json(cache.model_dump_json()) == cache


@pytest.mark.parametrize(
    ("kind", "fields", "name"),
    [
        (AnswerRequest, {"question": "Why?", "flavour": 1}, "flavour"),
        (AnswerRequest, {"question": "  "}, "question"),
        (AnswerRequest, {}, "question"),
        (AnswerRequest, {"question": "Why?", "k": 0}, "k"),
        (AnswerRequest, {"question": "Why?", "k": 1000}, "k"),
        (AnswerRequest, {"question": "Why?", "temperature": -1}, "temperature"),
        (AnswerRequest, {"question": "Why?", "temperature": float("nan")}, "temperature"),
        (AnswerRequest, {"question": "Why?", "seed": 2**63}, "seed"),
        (SearchRequest, {"query": ""}, "query"),
        (SearchRequest, {"query": "x", "collection": ""}, "collection"),
        (IngestRequest, {"urls": "https://example.org"}, "urls"),
        (DocumentInput, {"uri": "u", "text": "t", "path": "/etc/passwd"}, "path"),
        (DocumentInput, {"uri": "u", "data": "no base64!"}, "data"),
    ],
)
def test_a_bad_request_names_its_field(kind: type[BaseModel], fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        kind(**fields)
    assert caught.value.errors()[0]["loc"] == (name,)


@pytest.mark.parametrize("fields", [{}, {"text": "t", "data": "dA=="}])
def test_a_document_has_one_content(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="either text or data"):
        DocumentInput(uri="u", **fields)


def test_data_is_base64() -> None:
    assert DocumentInput(uri="u", data="JVBERg==").data == b"%PDF"
