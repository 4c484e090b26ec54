"""Figures and experiments in words and tables of Markdown."""

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath

from rag.bench.analysis.models import Times
from rag.bench.statistics import Estimate
from rag.bench.suite.experiment import ArrivalKind, Arrivals, Drive, Experiment, WorkloadKind, WorkloadSpec
from rag.bench.suite.records import Header, StreamRecord

__all__ = [
    "EMPTY", "asked", "command", "engine_label", "estimate", "hardware", "mebibytes", "median", "milliseconds",
    "minutes", "percent", "plain", "significant", "span", "table",
]  # fmt: skip

EMPTY = ""
LABELS = {
    "preread-off": "Preread, no reuse",
    "preread-exact": "Preread, exact reuse",
    "preread-order": "Preread, exact reuse, passages ordered for the cache",
    "preread-chunk": "Preread, chunk reuse",
    "transformers": "transformers",
    "openvino": "OpenVINO GenAI",
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a table without the columns that are empty in every row; the first `left` of them are text."""
    kept = [i for i in range(len(columns)) if i < left or any(row[i] != EMPTY for row in rows)]
    lines = [[columns[i] for i in kept], ["---" if i < left else "---:" for i in kept]]
    lines += [[plain(row[i]) for i in kept] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def plain(text: str) -> str:
    """Return text of anybody's, such as a peer's error, so that it stays in its line and cell and is no markup."""
    return re.sub(r"(?<!\\)([<|])", r"\\\1", " ".join(text.split()))


def span(numbers: Sequence[int]) -> str:
    """Write from which number to which some are: 12-16, or 16."""
    return "-".join(f"{number:,}" for number in dict.fromkeys((min(numbers, default=0), max(numbers, default=0))))


def significant(value: float, digits: int = 3) -> str:
    """Write a number with so many digits that mean something, in groups of three: 0.0123, 1.23, 12.3, 1,230."""
    if value == 0:
        return "0"
    text = f"{float(f'{value:.{digits - 1}e}'):,.12f}"
    whole = len(text.partition(".")[0].replace(",", "").lstrip("-0"))
    if whole >= digits:
        return text.partition(".")[0]
    leading = 0 if whole else len(text.partition(".")[2]) - len(text.partition(".")[2].lstrip("0"))
    return f"{value:,.{digits - whole + leading}f}"


def milliseconds(value: float | None) -> str:
    """Write milliseconds: whole ones from 10 on."""
    if value is None:
        return EMPTY
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def estimate(found: Estimate | None, *, digits: int = 3, scale: float = 1.0) -> str:
    """Write a value with its interval, all with the decimals of the value."""
    if found is None:
        return EMPTY
    value = significant(found.value * scale, digits)
    if found.low is None or found.high is None:
        return value
    decimals = len(value.partition(".")[2])
    low, high = (f"{bound * scale:,.{decimals}f}" for bound in (found.low, found.high))
    return f"{value} ({low} to {high})" if "-" in low else f"{value} ({low}-{high})"


def median(times: Times | None, *, interval: bool = False) -> str:
    """Write a median of milliseconds; of one that is among the lost, what it is longer than."""
    if times is None:
        return EMPTY
    if times.p50 is None:
        return f">{milliseconds(times.most)}"
    low, high = times.p50.low, times.p50.high
    shown = milliseconds(times.p50.value)
    return f"{shown} ({milliseconds(low)}-{milliseconds(high)})" if interval and low is not None else shown


def percent(share: float | None, decimals: int = 0) -> str:
    """Write a share."""
    return EMPTY if share is None else f"{share:.{decimals}%}".replace("%", " %")


def mebibytes(size: int | None) -> str:
    """Write bytes in MiB, without the unit; nothing for none."""
    return f"{size / 2**20:,.0f}" if size else EMPTY


def minutes(seconds: float) -> str:
    """Write a duration."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def engine_label(name: str) -> str:
    """Return what an engine is called where a reader does not know the suite's names."""
    engine, _, again = name.partition("=http")[0].partition("#")
    base, _, repair = engine.partition("@")
    label = LABELS.get(base, base) + (f", {repair} tokens repaired" if repair else "")
    return f"{label}, number {again}" if again else label


def command(line: str) -> str:
    """Return a command line without the folders of the machine that it was run on."""
    shown = []
    for word in shlex.split(line):
        name, equals, value = word.rpartition("=")
        shown.append(f"{name}{equals}.../{PurePath(value).name}" if PurePath(value).is_absolute() else word)
    return shlex.join(shown)


def hardware(header: Header) -> str:
    """Say in one line what machine a run was taken on."""
    environment = header.environment
    memory = f", {header.memory / 2**30:.0f} GiB" if header.memory else ""
    flags = f" ({', '.join(header.flags)})" if header.flags else ""
    return f"{environment.cpu}, {environment.cores} cores{memory}{flags}"


def asked(experiment: Experiment, stream: StreamRecord | None) -> str:
    """Say what an experiment asks, how, and how much of it is warm-up."""
    spec = experiment.workload
    sentences = [f"{_requests(spec)}; {_length(experiment)}."]
    if stream is not None:
        sentences.append(
            f"Prompts have {stream.prompt_tokens:,.0f} tokens on average, over {stream.passages:,} distinct passages "
            f"of {stream.passage_tokens:,} tokens together ({stream.source})."
        )
    sentences.append(_driven(experiment))
    if experiment.warmup:
        sentences.append(f"The first {experiment.warmup} requests of a pass are warm-up, reported apart.")
    return " ".join(sentences)


def _requests(spec: WorkloadSpec) -> str:
    k = f", {spec.k} passages each" if spec.k else ""
    length = f" of {spec.length} tokens" if spec.length else ""
    kinds = {
        WorkloadKind.QUESTIONS: f"{spec.count} questions about {spec.corpus}{k}, as the retriever finds them",
        WorkloadKind.DOCUMENTS: f"{spec.count} requests for long documents with a skewed popularity{k}{length}",
        WorkloadKind.PASSAGES: f"{spec.count} requests for short passages with a skewed popularity{k}{length}",
        WorkloadKind.FUSION: f"{spec.count} requests for passages of one length in random order{k}{length}",
        WorkloadKind.ORDERS: f"{spec.count} requests for known passages, each in an order never seen{k}{length}",
        WorkloadKind.CONVERSATIONS: f"{spec.count} requests in conversations of {spec.turns} turns{k}{length}",
        WorkloadKind.RAGPULSE: f"{spec.count} recorded requests (RAGPulse)",
        WorkloadKind.FILE: f"{spec.count} requests of a saved workload",
    }
    return kinds[spec.kind]


def _length(experiment: Experiment) -> str:
    tokens = experiment.workload.output_tokens
    if experiment.drive is Drive.QUALITY:
        return "answers as long as full prefill's, and freely"
    if experiment.drive is Drive.SIMULATION:
        return "nothing is answered"
    return f"every answer has {tokens} token{'' if tokens == 1 else 's'}"


def _driven(experiment: Experiment) -> str:
    passes = "" if experiment.repeats == 1 else f" {experiment.repeats} passes."
    drives = {
        Drive.TURNS: "One request at a time; engines take turns at every request, in random order.",
        Drive.LOAD: f"{_arrivals(experiment.workload.arrivals)}, whatever the engine does; each engine alone.",
        Drive.GOODPUT: f"{_shape(experiment.workload.arrivals)} arrivals at rising rates; each engine alone.",
        Drive.QUALITY: "Each answer is compared with that of full prefill of the same prompt, by our own engine.",
        Drive.SIMULATION: "The engine's own bookkeeping runs without a model.",
    }
    return drives[experiment.drive] + passes


def _arrivals(arrivals: Arrivals) -> str:
    rate = f", {arrivals.rate:g} a second on average" if arrivals.rate else ""
    return {
        ArrivalKind.TURNS: "One request after the other",
        ArrivalKind.CLOSED: f"{arrivals.clients} clients, each asking again when it is answered",
        ArrivalKind.RECORDED: f"Arrivals as recorded, times multiplied by {arrivals.scale:g}",
    }.get(arrivals.kind, f"{_shape(arrivals)} arrivals{rate}")


def _shape(arrivals: Arrivals) -> str:
    return f"Bursty (CV {arrivals.cv:g})" if arrivals.kind is ArrivalKind.BURSTY else "Poisson"
