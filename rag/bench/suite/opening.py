"""Opens the contestants that a run asks for, and says why others are left out."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.prompt import Prompt, Segment, SegmentKind
from rag.bench.peers.errors import PeerError
from rag.bench.peers.gguf import fetch_gguf
from rag.bench.peers.opening import ADAPTERS, python_of, reason
from rag.bench.suite.contestant import AGAIN, OWN, SHORT, Contestant
from rag.bench.suite.http import UrlContestant, url_of
from rag.bench.suite.lineup import awake
from rag.bench.suite.processes import ServingProcess
from rag.bench.suite.records import ContestantRecord, SkippedRecord
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.suite.server import open_vllm
from rag.config import RagConfig
from rag.errors import InvalidRequestError, ModelHubError
from rag.model_download import Report

__all__ = ["ContestantSetting", "check_contestant", "open_contestants"]

CHUNK = "preread-chunk"
STORE_SHARE = 4  # of the disk space that is free, the KV of passages takes a fourth at most
STEP_TOKENS = 2048  # computed at once, so that a prompt does not wait for all that came after it
WARM_TOKENS = (32, 256, 256, 32)  # template, passages, question
WARM_ANSWER = 8
WARM_SECONDS = 900.0  # some compile kernels with the first request


@dataclass(frozen=True, slots=True, kw_only=True)
class ContestantSetting:
    """What contestants are opened with.

    Attributes:
        folder: of the model.
        model: its name.
        models_dir: where the GGUF is kept.
        config: whose engine settings ours runs with, but for the memory for KV.
        work_dir: for what is kept on disk meanwhile.
        context: tokens of the longest prompt with its answer.
        kv_gib: memory for KV, of each.
        threads: to compute with.
        dtype: for peers that convert the weights; `auto` is what is fastest here.
        gguf: the user's own; None is the one that the model was made of.
        pythons: name of a contestant -> the Python that has it; "" is for every other peer, else ours.
        report: told how far the GGUF's download is.
    """

    folder: Path
    model: str
    models_dir: Path
    config: RagConfig
    work_dir: Path
    context: int
    kv_gib: int
    threads: int
    dtype: str = "auto"
    gguf: Path | None = None
    pythons: dict[str, Path] = field(default_factory=dict)
    report: Report = lambda _stage, _fraction: None


def check_contestant(name: str) -> None:
    """Raise `InvalidRequestError` unless it names a contestant."""
    engine = name.removesuffix(AGAIN)
    _own_mode(engine)
    if not url_of(engine) and engine not in (*OWN, *ADAPTERS, SHORT) and not engine.startswith(f"{CHUNK}@"):
        raise InvalidRequestError(
            f"{name!r} is no contestant; choose from: {', '.join((*OWN, f'{CHUNK}@TOKENS', *ADAPTERS))}, "
            "or NAME=URL of a server"
        )


@contextmanager
def open_contestants(
    names: Sequence[str], setting: ContestantSetting
) -> Iterator[tuple[list[Contestant], list[ContestantRecord], list[SkippedRecord]]]:
    """Start the contestants that work, each warmed up and paused; they are ended afterwards.

    Raises:
        InvalidRequestError: a name is not one of a contestant.
    """
    for name in names:
        check_contestant(name)
    contestants: list[Contestant] = []
    records, skipped = list[ContestantRecord](), list[SkippedRecord]()
    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            began = time.monotonic()
            try:
                contestant = stack.enter_context(_opened(name, setting))
            except (PeerError, ModelHubError) as error:
                why = reason(name.removesuffix(AGAIN), setting.pythons, error)
                skipped.append(SkippedRecord(name=name, reason=why))
                continue
            seconds = time.monotonic() - began
            contestants.append(contestant)
            records.append(
                ContestantRecord(name=name, version=contestant.version, detail=contestant.detail, start_seconds=seconds)
            )
        yield contestants, records, skipped


@contextmanager
def _opened(name: str, setting: ContestantSetting) -> Iterator[Contestant]:
    """Give a contestant that has answered a request, paused; it is ended afterwards."""
    contestant = _open(name, setting)
    try:
        _warm_up(contestant, setting.context)
        yield contestant
    finally:
        contestant.close()


def _open(name: str, setting: ContestantSetting) -> Contestant:
    threads = {"OMP_NUM_THREADS": str(setting.threads)}
    engine = name.removesuffix(AGAIN)
    if url := url_of(engine):
        return UrlContestant(name, url)
    if engine == "vllm":
        return open_vllm(
            name,
            python_of(engine, setting.pythons),
            setting.folder,
            context=setting.context,
            kv_gib=setting.kv_gib,
            threads=setting.threads,
            dtype=setting.dtype,
        )
    if mode := _own_mode(engine):
        adapter, python, settings = "preread", Path(sys.executable), _own_settings(*mode, setting)
    elif engine == SHORT:
        adapter, python, settings = SHORT, Path(sys.executable), dict[str, Any]()
    else:
        adapter, python, settings = engine, python_of(engine, setting.pythons), _peer_settings(engine, setting)
    return ServingProcess(name, adapter, python, settings, work_dir=setting.work_dir, variables=threads)


def _own_mode(name: str) -> tuple[str, int | None] | None:
    """Return the mode and the repair that a name of ours says; None for others.

    Raises:
        InvalidRequestError: the repair is no number.
    """
    kind, at, repair = name.partition("@")
    if kind not in OWN or (at and kind != CHUNK):
        return None
    if at and not repair.isdecimal():
        raise InvalidRequestError(f"{name!r}: what follows @ is a number of tokens")
    return kind.removeprefix("preread-"), int(repair) if at else None


def _own_settings(mode: str, repair: int | None, setting: ContestantSetting) -> dict[str, Any]:
    from rag.certify.folders import certificates_of
    from rag.model_hub import ModelHub

    engine = setting.config.engine
    if repair is not None and repair % engine.block_size:
        raise PeerError(f"a repair of {repair} tokens is not whole blocks of {engine.block_size}")
    config = replace(engine.build(), kv_cache_bytes=setting.kv_gib << 30)
    setting.work_dir.mkdir(parents=True, exist_ok=True)
    return {
        "folder": str(setting.folder),
        "engine": asdict(config),
        "threads": setting.threads,
        "mode": mode,
        "repair": repair,
        "certificates": [str(one) for one in certificates_of(ModelHub(setting.models_dir), setting.model).folders],
        "store_bytes": engine.kv_store_bytes or shutil.disk_usage(setting.work_dir).free // STORE_SHARE,
    }


def _peer_settings(name: str, setting: ContestantSetting) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "folder": str(setting.folder),
        "context": setting.context,
        "tokens": min(setting.context, STEP_TOKENS),
        "kv_gib": setting.kv_gib,
        "threads": setting.threads,
        "dtype": setting.dtype,
    }
    if name in ADAPTERS and ADAPTERS[name][1]:
        settings["gguf"] = str(setting.gguf or fetch_gguf(setting.model, setting.models_dir, setting.report))
    return settings


def _warm_up(contestant: Contestant, context: int) -> None:
    """Let it answer the same request twice, so that kernels are compiled and memory is mapped; it forgets it then.

    Raises:
        PeerError: it does not answer.
    """
    stream = RequestStream(tuple(_warm_request(number, context) for number in range(2)), "warm-up")
    with awake(contestant):
        contestant.prepare(stream)
        for request in stream.requests:
            contestant.submit(request)
            _wait_for(contestant, request.number)


def _wait_for(contestant: Contestant, number: int) -> None:
    until = time.monotonic() + WARM_SECONDS
    while time.monotonic() < until:
        for event in contestant.events(1.0):
            if event.number == number and event.error:
                raise PeerError(f"{contestant.name} cannot answer: {event.error}")
            if event.number == number and event.done:
                return
    raise PeerError(f"{contestant.name} did not answer its first request in {WARM_SECONDS:.0f} seconds")


def _warm_request(number: int, context: int) -> BenchRequest:
    """Make a request of ordinary token ids; every vocabulary has them."""
    kinds = (SegmentKind.TEMPLATE, SegmentKind.PASSAGE, SegmentKind.PASSAGE, SegmentKind.TAIL)
    share = min(1.0, (context - WARM_ANSWER) / sum(WARM_TOKENS))
    segments = [
        Segment(tuple(20 + (7 * n + n // 64 + 3 * i) % 64 for n in range(max(1, int(share * tokens)))), kind)
        for i, (kind, tokens) in enumerate(zip(kinds, WARM_TOKENS, strict=True))
    ]
    return BenchRequest(number=number, time=0.0, prompt=Prompt(segments), output_tokens=WARM_ANSWER)
