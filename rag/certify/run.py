"""One run of the test: questions and passages, measurements, judgement, and the certificate where it is earned."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.certificate import Band, Certificate, CertificateRow, certificate_key
from rag.bench.environment import Environment, RunClock, describe_machine
from rag.bench.progress import Progress
from rag.certify.config import CertifyConfig
from rag.certify.folders import own_certificates
from rag.certify.judgement import choose_bands, judge
from rag.certify.measurements import Measurements
from rag.certify.probes import make_probes
from rag.certify.report import CertifyReport, CertifySetting, answer_rows
from rag.config import RagConfig
from rag.model_hub import ModelHub

if TYPE_CHECKING:
    from engine.engine import Engine
    from retriever.embedder import TextEmbedder

__all__ = ["run"]


def run(
    config: RagConfig, certify: CertifyConfig, progress: Progress, *, embedder: "TextEmbedder | None" = None
) -> CertifyReport:
    """Run the test and write the certificate where it passes.

    An interrupted run has lost nothing but its last question; the next one with the same settings goes on from there.

    Args:
        config: models, engine, splitting and prompt.
        certify: what to test.
        progress: called as it advances, in the calling thread.
        embedder: used instead of the configured one (tests).

    Raises:
        InvalidRequestError: too few questions or passages for what is asked.
        DataDirBusyError: another process owns the data directory.
    """
    clock = RunClock()
    hub = ModelHub(config.models_dir)
    folder = own_certificates(hub, config.model)  # a wrong name is told before anything is measured
    probes = make_probes(config, certify, progress, embedder)
    engine = _open_engine(config, hub)
    template = probes[0].prompts[certify.ks[0]].segments[0]
    key = certificate_key(engine.identity, template.tokens)
    measurements = Measurements(engine, certify, key, probes, progress)
    bands, rows = choose_bands(
        certify.ks,
        certify.repairs,
        lambda k, repair: judge("screening", measurements.screening()[k], repair, seed=certify.seed),
        lambda k, repair: judge("confirmation", measurements.confirmation()[k], repair, seed=certify.seed),
    )
    environment = clock.environment()
    setting = _setting(config, certify, engine)
    path = None
    if bands and certify.template:
        path = _certificate(setting, environment, key, bands, rows, measurements.lengths()).write(folder)
    return CertifyReport(
        setting=setting,
        environment=environment,
        rows=tuple(rows),
        answers=tuple(answer_rows(measurements.screening(), seed=certify.seed)),
        bands=tuple(bands),
        certificate=None if path is None else str(path),
        seconds=clock.seconds,
        measured=measurements.count,
    )


def _open_engine(config: RagConfig, hub: ModelHub) -> "Engine":
    """Open the engine in the configured compute mode; 8-bit weights of private rows would only add the same noise."""
    from engine.engine import Engine

    return Engine.from_pretrained(hub.resolve(config.model), replace(config.engine.build(), weights="full"))


def _setting(config: RagConfig, certify: CertifyConfig, engine: "Engine") -> CertifySetting:
    return CertifySetting(
        model=config.model,
        compute_mode=engine.identity.compute_mode,
        kv_dtype=engine.identity.kv_dtype,
        corpus=certify.corpus or certify.collection,
        sets=certify.sets,
        ks=certify.ks,
        repairs=certify.repairs,
        max_tokens=certify.max_tokens,
        orders=certify.orders,
        seed=certify.seed,
        template=certify.template,
    )


def _certificate(
    setting: CertifySetting,
    environment: Environment,
    key: str,
    bands: Sequence[Band],
    rows: Sequence[CertificateRow],
    lengths: Sequence[int],
) -> Certificate:
    return Certificate(
        key=key,
        model=setting.model,
        compute_mode=setting.compute_mode,
        kv_dtype=setting.kv_dtype,
        bands=tuple(bands),
        min_passage_tokens=min(lengths),
        max_passage_tokens=max(lengths),
        corpus=setting.corpus,
        max_tokens=setting.max_tokens,
        orders=setting.orders,
        seed=setting.seed,
        rows=tuple(rows),
        command=environment.command,
        machine=describe_machine(environment),
        created=environment.started,
    )
