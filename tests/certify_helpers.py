"""Certificates and their rows, made up."""

from typing import Any

from engine.certificate import Band, Certificate, CertificateRow, Drift, Interval


def an_interval(value: float) -> Interval:
    return Interval(value=value, low=value * 0.9, high=value * 1.1)


def a_drift(kl: float, agreement: float = 0.9) -> Drift:
    return Drift(kl=an_interval(kl), agreement=an_interval(agreement), first_kl=an_interval(2 * kl))


def a_row(*, passages: int = 2, repair: int = 32, chunk: float = 0.04, reordered: float = 0.05) -> CertificateRow:
    return CertificateRow(
        stage="confirmation",
        passages=passages,
        repair=repair,
        sets=64,
        answer_tokens=3000,
        chunk=a_drift(chunk),
        reordered=a_drift(reordered),
        no_passages=a_drift(0.4),
        difference=an_interval(chunk - reordered),
        upper_bound=(chunk - reordered) / 2,
        failures=(),
    )


def a_certificate(*, repair: int = 32, min_passages: int = 2, max_passages: int = 10, **changed: Any) -> Certificate:
    """One for 2 to 10 passages of 20 to 300 tokens."""
    fields = {
        "key": "k",
        "model": "tiny",
        "compute_mode": "float16",
        "kv_dtype": "float16",
        "bands": (Band(min_passages=min_passages, max_passages=max_passages, repair=repair),),
        "min_passage_tokens": 20,
        "max_passage_tokens": 300,
        "corpus": "topics",
        "max_tokens": 64,
        "orders": 4,
        "seed": 0,
        "rows": (a_row(repair=repair), a_row(passages=max_passages, repair=repair)),
        "command": "rag certify",
        "machine": "one",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Certificate(**(fields | changed))
