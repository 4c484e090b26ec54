"""A report for people."""

from rich.table import Table

from rag.bench.environment import describe_machine
from rag.bench.printed import as_text, facts_table
from rag.bench.report import MODES, Mode, PrefixReport
from rag.bench.statistics import Interval

__all__ = ["render"]


def render(report: PrefixReport, *, width: int = 120) -> str:
    """Return the report as a table and a few lines, ending with a line break."""
    return as_text(
        _times(report),
        "off/this: median of the per-question ratios, with its 95 % bootstrap interval",
        f"ratio of the mean TTFTs: {_mean_ratios(report)}\n",
        facts_table((*_stream(report), *_machine(report))),
        *_notices(report),
        width=width,
    )


def _times(report: PrefixReport) -> Table:
    table = Table(title="milliseconds", title_justify="left", box=None, pad_edge=False, header_style="")
    table.add_column("cache")
    for name in ("TTFT median", "p90", "mean", "off/this", "prefill median", "p90", "mean", "off/this", "hits"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("passage hits", justify="right")
    for mode in MODES:
        part = report.summaries.modes[mode]
        ratios = report.summaries.off_over.get(mode)
        cells = [mode.value]
        for times, ratio in ((part.ttft_ms, ratios and ratios.ttft), (part.prefill_ms, ratios and ratios.prefill)):
            cells += [f"{value:.0f}" for value in (times.median, times.p90, times.mean)]
            cells.append(_interval(ratio) if ratio else "")
        table.add_row(*cells, f"{part.hit_rate:.1%}", f"{part.passage_hit_rate:.1%}")
    return table


def _mean_ratios(report: PrefixReport) -> str:
    return ", ".join(f"off/{mode} {_interval(found.mean_ttft)}" for mode, found in report.summaries.off_over.items())


def _interval(ratio: Interval) -> str:
    digits = 2 if ratio.value < 10 else 1
    return f"{ratio.value:.{digits}f} ({ratio.low:.{digits}f}-{ratio.high:.{digits}f})"


def _stream(report: PrefixReport) -> list[tuple[str, str]]:
    summaries, setting = report.summaries, report.setting
    off, answers = summaries.modes[Mode.OFF], summaries.answers
    stream = (
        f"{summaries.measured} questions, {summaries.distinct_questions} distinct, over "
        f"{summaries.distinct_passages} distinct passages; Zipf s={setting.zipf_s:g} over {setting.popularity}s, "
        f"seed {setting.workload_seed}; {setting.k} passages a question, "
        f"{off.prompt_tokens / off.ttft_ms.n:.0f} prompt tokens on average"
    )
    collection = (
        f"{setting.corpus} ({setting.corpus_source}): {setting.documents} documents, {setting.passages} passages"
    )
    recall = (
        f"{_recall(summaries.recall.distinct)} of the distinct questions, {_recall(summaries.recall.stream)} of the "
        f"stream ({setting.embedder})"
    )
    differing = ", ".join(f"{answers[m].differing} of {answers[m].compared} {m}" for m in (Mode.COLD, Mode.WARM))
    return [
        ("stream", stream),
        ("collection", collection),
        ("recall", recall),
        ("answers", f"differ from those with the cache off: {differing} (greedy, up to {setting.max_tokens} tokens)"),
    ]


def _recall(shares: dict[int, float]) -> str:
    return " ".join(f"@{n} {share:.3f}" for n, share in shares.items())


def _machine(report: PrefixReport) -> list[tuple[str, str]]:
    setting, environment = report.setting, report.environment
    engine = (
        f"{setting.model}, {setting.dtype}, backend {setting.backend}, block size {setting.block_size}, "
        f"{setting.kv_blocks} KV blocks, {report.evicted_blocks} evicted"
    )
    return [
        ("engine", engine),
        ("machine", describe_machine(environment)),
        ("run", f"{environment.started}, {report.seconds:.0f} s: {environment.command}"),
    ]


def _notices(report: PrefixReport) -> list[str]:
    lines = [f"WARNING: {warning}" for warning in report.warnings]
    if report.interrupted:
        measured, wanted = len(report.records), 3 * report.setting.questions * report.setting.repeats
        lines.append(f"INTERRUPTED: {measured} of {wanted} answers were measured; the figures are theirs alone")
    return lines + [f"FAILED SELF-CHECK, the figures are void: {problem}" for problem in report.problems]
