"""A reuse report for people."""

from rich.console import RenderableType
from rich.table import Table

from rag.bench.environment import describe_machine
from rag.bench.printed import as_text, facts_table
from rag.bench.reuse_report import DiskFigure, Endurance, PrecomputeFigure, ReuseReport, ReuseResult
from rag.bench.statistics import Interval

__all__ = ["render"]


def render(report: ReuseReport, *, width: int = 120) -> str:
    """Return the report as a table and a few lines, ending with a line break."""
    cases: list[RenderableType] = []
    if report.cases:
        cases = [
            _cases(report.cases),
            "chunk: passages on the device, read before in other company and order; full: the same prompt,",
            "nothing cached; one piece: as many new tokens after one cached prefix; 95 % intervals\n",
        ]
    return as_text(
        *cases,
        facts_table(_facts(report)),
        *(f"WARNING: {warning}" for warning in report.warnings),
        *(["INTERRUPTED: parts are missing"] if report.interrupted else []),
        width=width,
    )


def _cases(cases: list[ReuseResult]) -> Table:
    table = Table(title="first token, ms (medians)", title_justify="left", box=None, pad_edge=False, header_style="")
    for name in ("passages", "repair", "prompt", "new", "chunk", "full", "one piece", "full/chunk", "chunk/one piece"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in cases:
        table.add_row(
            f"{one.case.passages} x {one.case.length}",
            str(one.case.repair),
            f"{one.prompt_tokens:,}",
            str(one.new_tokens),
            *(f"{times.median:.1f}" for times in (one.chunk_ms, one.full_ms, one.contiguous_ms)),
            _interval(one.full_over_chunk),
            _interval(one.chunk_over_contiguous),
        )
    return table


def _interval(ratio: Interval) -> str:
    digits = 2 if ratio.value < 10 else 1
    return f"{ratio.value:.{digits}f} ({ratio.low:.{digits}f}-{ratio.high:.{digits}f})"


def _facts(report: ReuseReport) -> list[tuple[str, str]]:
    setting, environment = report.setting, report.environment
    facts = []
    if report.endurance is not None:
        facts.append(("endurance", _endurance(report.endurance)))
    if report.precompute is not None:
        facts.append(("ingestion", _precompute(report.precompute)))
    if report.disk is not None:
        facts.append(("disk", _disk(report.disk)))
    facts += [("skipped", f"{one.name}: {one.reason}") for one in report.skipped]
    engine = (
        f"{setting.model}, {setting.dtype}, backend {setting.backend}, blocks of {setting.block_size}; template "
        f"{setting.template}, question {setting.question} tokens; {setting.repeats} repeats, seed {setting.seed}"
    )
    return [
        *facts,
        ("engine", engine),
        ("machine", describe_machine(environment)),
        ("run", f"{environment.started}, {report.seconds:.0f} s: {environment.command}"),
    ]


def _endurance(found: Endurance) -> str:
    return (
        f"{len(found.chunk_ms)} new orders of {found.case.passages} x {found.case.length} tokens, repair "
        f"{found.case.repair}: {found.first:.1f} x sooner in the first ones, {found.last:.1f} x in the last "
        f"({found.drift:+.1%}); the tree held {found.cached_blocks_before} blocks before and "
        f"{found.cached_blocks_after} after, {found.evicted_blocks} evicted"
    )


def _precompute(found: PrecomputeFigure) -> str:
    return (
        f"{found.precompute.median:,.0f} passage tokens/s read and written ({found.passages} x {found.length}), "
        f"plain prompts {found.prefill.median:,.0f} tokens/s: {_interval(found.share)}"
    )


def _disk(found: DiskFigure) -> str:
    return (
        f"{found.tokens:,} tokens ({found.bytes / 2**20:.1f} MiB) into blocks in {found.load_ms.median:.1f} ms, "
        f"{found.load_ms.most:.1f} at most; first token {found.disk_ms.median:.1f} ms from the disk, "
        f"{found.device_ms.median:.1f} from the device"
    )
