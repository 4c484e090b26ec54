"""Certificates: what they cover, where they are found, and what a damaged one does."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from certify_helpers import a_certificate, a_row

from engine.certificate import Band, Certificate, CertificateRow, Certificates, certificate_key, shipped_certificates
from engine.kv_identity import KVIdentity
from engine.models.config import ModelConfig
from engine.tokenizer import Tokenizer
from rag.config import RagConfig
from rag.prompt_layout import PassageTokens, PromptLayout
from rag.prompt_template import PromptTemplate

TEMPLATE = (1, 2, 3)


def an_identity(**changed) -> KVIdentity:
    facts = {"weights": "w", "model": "{}", "compute_mode": "float16", "kv_dtype": "float16", "block_size": 16}
    return KVIdentity(**(facts | changed))


def issued(folder: Path, *, identity: KVIdentity | None = None, **changed) -> Path:
    key = certificate_key(identity or an_identity(), TEMPLATE)
    return a_certificate(**({"key": key} | changed)).write(folder)


@pytest.mark.parametrize(
    ("num_passages", "lengths", "covered"),
    [
        (2, [20, 300], True),
        (10, [300] * 10, True),
        (11, [200] * 11, False),
        (1, [9000], True),
        (3, [200, 301, 200], False),
        (3, [200, 19, 200], False),
        (3, [200, 16, 3], True),
    ],
    ids=["least", "most", "too many", "one is never shifted", "too long", "too short", "computed whole by the repair"],
)
def test_it_covers_the_range_that_was_measured(num_passages, lengths, covered):
    assert a_certificate(repair=16).covers(num_passages, lengths) is covered


def test_the_allowance_is_that_of_the_next_measured_number_of_passages():
    rows = [a_row(passages=k, reordered=0.01 * k) for k in (10, 2, 5)]
    screened = a_row(passages=2, reordered=9.0).model_copy(update={"stage": "screening"})
    certificate = a_certificate(rows=(screened, *rows))
    assert [certificate.allowance(k) for k in (2, 3, 5, 6, 10, 12)] == [
        rows[i].reordered.kl.high for i in (1, 2, 2, 0, 0, 0)
    ]


def bands(*triples: tuple[int, int, int]) -> tuple[Band, ...]:
    return tuple(Band(min_passages=low, max_passages=high, repair=repair) for low, high, repair in triples)


def rows_of(some: tuple[Band, ...]) -> tuple[CertificateRow, ...]:
    return tuple(a_row(passages=band.max_passages, repair=band.repair) for band in some)


def test_each_number_of_passages_has_its_repair():
    some = bands((2, 2, 16), (3, 5, 64))
    certificate = a_certificate(bands=some, rows=rows_of(some))
    assert [certificate.repair_for(n) for n in (1, 2, 3, 5, 6)] == [0, 16, 64, 64, None]
    assert (certificate.min_passages, certificate.max_passages) == (2, 5)
    assert certificate.covers(2, [17, 200]) is False, "17 of its tokens are shifted, and nothing so short was measured"
    assert certificate.covers(3, [17, 200, 200]), "the repair computes it whole"
    assert not certificate.covers(6, [200] * 6)


@pytest.mark.parametrize(
    "wrong",
    [bands((2, 2, 16), (4, 5, 64)), bands((2, 3, 16), (3, 5, 64)), ()],
    ids=["a gap", "an overlap", "none"],
)
def test_bands_rise_without_a_gap(wrong):
    with pytest.raises(ValueError, match=r"gap|at least 1"):
        a_certificate(bands=wrong, rows=rows_of(wrong))


def test_a_joined_certificate_asks_for_the_longer_repair_of_each_number(tmp_path):
    careful, light = bands((2, 2, 64), (3, 5, 64)), bands((2, 5, 16), (6, 10, 80))
    issued(tmp_path, corpus="a", bands=careful, rows=rows_of(careful))
    issued(tmp_path, corpus="b", bands=light, rows=rows_of(light))
    found = Certificates([tmp_path]).find(an_identity(), TEMPLATE)
    assert found is not None
    assert [found.repair_for(n) for n in (2, 3, 5, 6)] == [64, 64, 64, None]
    even, odd = bands((2, 4, 16)), bands((2, 3, 32), (4, 4, 48))
    issued(tmp_path / "x", corpus="a", bands=even, rows=rows_of(even))
    issued(tmp_path / "x", corpus="b", bands=odd, rows=rows_of(odd))
    found = Certificates([tmp_path / "x"]).find(an_identity(), TEMPLATE)
    assert found is not None
    assert [found.repair_for(n) for n in (2, 3, 4, 5)] == [32, 32, 48, None]


def test_it_is_found_by_model_and_template(tmp_path):
    issued(tmp_path)
    certificates = Certificates([tmp_path / "missing", tmp_path])
    found = certificates.find(an_identity(), TEMPLATE)
    assert found is not None
    assert found.repairs == (32,)
    assert certificates.find(an_identity(), (1, 2)) is None, "another template"
    for name in ("weights", "model", "compute_mode", "kv_dtype"):
        assert certificates.find(an_identity(**{name: "other"}), TEMPLATE) is None, name


def test_numerics_are_part_of_the_key_and_the_layout_is_not(monkeypatch):
    key = certificate_key(an_identity(), TEMPLATE)
    for name in ("FORMAT_VERSION", "LAYOUT_VERSION"):
        monkeypatch.setattr(f"engine.kv_identity.{name}", 99)
    assert certificate_key(an_identity(), TEMPLATE) == key
    monkeypatch.setattr("engine.kv_identity.NUMERICS_REVISION", 99)
    assert certificate_key(an_identity(), TEMPLATE) != key


def test_tokens_do_not_run_together_in_the_key():
    assert certificate_key(an_identity(), (1, 23)) != certificate_key(an_identity(), (12, 3))


def test_the_users_own_counts_first_and_then_the_most_careful(tmp_path):
    issued(tmp_path / "shipped", corpus="a", repair=16)
    issued(tmp_path / "shipped", corpus="b", repair=64, min_passage_tokens=400, max_passage_tokens=500)
    shipped = Certificates([tmp_path / "shipped"]).find(an_identity(), TEMPLATE)
    assert shipped is not None
    assert shipped.repairs == (64,)
    issued(tmp_path / "own", repair=32)
    own = Certificates([tmp_path / "own", tmp_path / "shipped"]).find(an_identity(), TEMPLATE)
    assert own is not None
    assert own.repairs == (32,)


@pytest.mark.parametrize(
    ("other", "lengths"),
    [
        ({"min_passage_tokens": 5, "max_passage_tokens": 100}, (5, 300)),
        ({"min_passage_tokens": 301, "max_passage_tokens": 400}, (20, 400)),
        ({"min_passage_tokens": 30, "max_passage_tokens": 40}, (20, 300)),
        ({"min_passage_tokens": 302, "max_passage_tokens": 400}, (20, 300)),
        ({"min_passage_tokens": 200, "max_passage_tokens": 400, "min_passages": 11, "max_passages": 12}, (20, 300)),
        ({"min_passage_tokens": 200, "max_passage_tokens": 400, "repair": 16}, (20, 400)),
        ({"min_passage_tokens": 200, "max_passage_tokens": 400, "identity": an_identity(weights="x")}, (20, 300)),
    ],
    ids=["shorter", "longer", "inside", "a gap between", "other numbers", "another repair", "another model"],
)
def test_two_corpora_make_one_certificate_where_nothing_was_left_out(tmp_path, other, lengths):
    issued(tmp_path, corpus="a")
    repair = other.get("repair", 32)
    most = other.get("max_passages", 10)
    rows = (a_row(passages=2, repair=repair, reordered=0.01), a_row(passages=most, repair=repair, reordered=0.09))
    issued(tmp_path, corpus="b", rows=rows, **other)
    found = Certificates([tmp_path]).find(an_identity(), TEMPLATE)
    assert found is not None
    assert (found.min_passage_tokens, found.max_passage_tokens) == lengths
    joined = "and" in found.corpus
    assert found.allowance(2) == pytest.approx(0.055), "the higher one"
    assert found.allowance(9) == pytest.approx(0.099 if joined else 0.055)


def test_a_repair_that_is_no_whole_number_of_blocks_is_of_no_use(tmp_path):
    wide = an_identity(block_size=32)
    issued(tmp_path, repair=16)
    assert Certificates([tmp_path]).find(wide, TEMPLATE) is None
    issued(tmp_path, repair=32)
    assert Certificates([tmp_path]).find(wide, TEMPLATE) is not None


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda text: text[: len(text) // 2], "EOF"),
        (lambda text: "", "EOF"),
        (lambda text: text.replace('"repair": 32', '"repair": "much"'), "repair"),
        (lambda text: text.replace('"repair": 32', '"repair": 16', 1), "confirmed"),
        (lambda text: text.replace("certificate-2", "certificate-9"), "format"),
        (lambda text: text.replace('"stage": "confirmation"', '"stage": "screening"'), "confirmed"),
        (lambda text: text.replace('"failures": []', '"failures": ["too far"]'), "confirmed"),
    ],
    ids=["cut", "empty", "wrong type", "another repair", "of another version", "not confirmed", "failed"],
)
def test_a_damaged_file_is_ignored_with_a_reason_and_hides_no_other(tmp_path, caplog, damage, named):
    path = issued(tmp_path)
    text = path.read_text()
    path.write_text(damage(text))
    (tmp_path / "whole.json").write_text(text.replace('"corpus": "topics"', '"corpus": "other"'))
    with caplog.at_level(logging.WARNING):
        found = Certificates([tmp_path]).find(an_identity(), TEMPLATE)
    assert found is not None
    assert found.corpus == "other"
    (record,) = caplog.records
    assert str(path) in record.message
    assert named in record.message


def test_a_certificate_survives_its_file(tmp_path):
    certificate = a_certificate()
    path = certificate.write(tmp_path / "new")
    assert Certificate.model_validate_json(path.read_text()) == certificate
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing half-written is left"


def test_shipped_certificates_are_whole():
    paths = list(shipped_certificates().glob("*.json"))
    assert paths
    for path in paths:
        certificate = Certificate.model_validate_json(path.read_text())
        assert certificate.command.startswith("rag certify")
        assert {row.passages for row in certificate.confirmed} >= {certificate.min_passages, certificate.max_passages}


@pytest.mark.model
def test_the_default_model_and_template_come_with_a_certificate(smollm2):
    """A change of template or numerics needs another run of the command that the certificate names."""
    tokenizer = Tokenizer(smollm2)
    head = PromptLayout(tokenizer, PromptTemplate(), PassageTokens(tokenizer)).head
    model = ModelConfig.from_folder(smollm2)
    identity = KVIdentity.of(smollm2, model, dtype="float16", kv_dtype="float16", block_size=16)
    certificate = Certificates([shipped_certificates()]).find(identity, head.tokens)
    assert certificate is not None
    assert certificate.covers(RagConfig().top_k, [200] * RagConfig().top_k)


def test_it_needs_no_torch():
    script = "import sys, engine.certificate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
