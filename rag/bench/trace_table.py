"""A trace report for people."""

from rich.table import Table

from rag.bench.environment import describe_machine
from rag.bench.printed import as_text, facts_table
from rag.bench.trace_report import TraceReport, TraceRun

__all__ = ["render"]


def render(report: TraceReport, *, width: int = 132) -> str:
    """Return the report as a table and a few lines, ending with a line break."""
    return as_text(
        _runs(report),
        "hits: passage tokens whose KV was not computed for the request, of all passage tokens; beyond:",
        "without the tokens at each passage's head that chunk reuse computes in context by design\n",
        facts_table(_facts(report)),
        *_notices(report),
        width=width,
    )


def _runs(report: TraceReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("reuse", "order", "policy"):
        table.add_column(name)
    columns = ["device tokens", "hits", "beyond", "from device", "from disk", "computed", "evicted blocks"]
    if report.ttft_ms is not None:
        columns += ["TTFT ms p50", "p90", "p99"]
    for name in columns:
        table.add_column(name, justify="right")
    for run in report.runs:
        table.add_row(*_cells(run))
    return table


def _cells(run: TraceRun) -> list[str]:
    variant, figures = run.variant, run.figures
    cells = [variant.reuse, variant.order, variant.policy]
    cells.append("unbounded" if variant.device is None else f"{variant.device:,}")
    cells += [f"{figures.passage_hit_rate:.1%}", f"{figures.passage_hit_rate_beyond_repair:.2%}"]
    cells += [f"{figures.hit_tokens[tier] / max(figures.passage_tokens, 1):.1%}" for tier in ("device", "disk")]
    cells.append(f"{1 - figures.passage_hit_rate:.1%}")
    cells.append(f"{run.evicted_blocks:,}")
    if figures.ttft_ms is not None:
        cells += [f"{value:.0f}" for value in (figures.ttft_ms.p50, figures.ttft_ms.p90, figures.ttft_ms.p99)]
    return cells


def _facts(report: TraceReport) -> list[tuple[str, str]]:
    setting, figures = report.setting, report.runs[0].figures
    trace = (
        f"{setting.trace}, {figures.requests:,} requests from number {setting.first} on, {figures.passages:,} passages "
        f"of {figures.passage_tokens:,} tokens; distinct: {setting.distinct_passages:,} of "
        f"{setting.distinct_tokens:,} tokens"
    )
    store = "no disk: passages are read when they are first retrieved"
    if setting.store:
        store = "the KV of every passage is on disk before the first request"
    if setting.fill_seconds is not None:
        store += f" ({setting.distinct_tokens / setting.fill_seconds:,.0f} tokens/s to compute and write it)"
    how = "simulated: the engine's own bookkeeping, nothing computed" if setting.simulated else f"{setting.dtype}"
    return [
        ("trace", trace),
        ("store", store),
        ("engine", f"{setting.model}, {how}; blocks of {setting.block_size}, repair {setting.repair}"),
        ("machine", describe_machine(report.environment)),
        ("run", f"{report.environment.started}, {report.seconds:.0f} s: {report.environment.command}"),
    ]


def _notices(report: TraceReport) -> list[str]:
    lines = [f"WARNING: {warning}" for warning in report.warnings]
    if report.interrupted:
        lines.append("INTERRUPTED: the figures are of the requests that were answered")
    return lines + [f"FAILED SELF-CHECK, the figures are void: {problem}" for problem in report.problems]
