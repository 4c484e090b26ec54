"""The test's report for people."""

from collections.abc import Iterator
from io import StringIO
from itertools import groupby

from rich.console import Console
from rich.table import Table

from engine.certificate import Band, CertificateRow, Drift, Interval
from rag.bench.environment import describe_machine
from rag.certify.report import CertifyReport

__all__ = ["render"]

COLUMNS = ("KL, nats a token (95 %)", "less re-ordering's", "bound", "same top token", "first token's KL", "")
NOTE = (
    "KL and top tokens are against full prefill, along its greedy answers. A repair passes where the one-sided 95 % "
    "bound of its KL less re-ordering's is at most 0, its top tokens agree at most a point less often than "
    "re-ordering's, and its KL is at most a quarter of that without passages."
)


def render(report: CertifyReport, *, width: int = 150) -> str:
    """Return the report as tables and a few lines, ending with a line break."""
    console = Console(file=StringIO(), width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(_rows(report))
        console.print(f"\n{NOTE}\n")
        if report.answers:
            console.print(_answers(report))
            console.print()
        facts = Table.grid("", "", padding=(0, 2), pad_edge=False)
        for name, text in _facts(report):
            facts.add_row(name, text)
        console.print(facts)
        for row in report.rows:
            for failure in row.failures:
                console.print(f"{row.stage}, {row.passages} passages, repair {row.repair}: {failure}")
        console.print(_verdict(report))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _rows(report: CertifyReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(report.rows, key=lambda row: (row.stage != "screening", row.passages, row.repair))
    for (stage, passages), group in groupby(ordered, key=lambda row: (row.stage, row.passages)):
        rows = list(group)
        table.add_row(f"{stage}, {passages} passages")
        table.add_row("  another order", *_cells(rows[0].reordered))
        for row in rows:
            table.add_row(f"  repair {row.repair}", *_cells(row.chunk, row))
        table.add_row("  no passages", *_cells(rows[0].no_passages))
    return table


def _cells(drift: Drift, row: CertificateRow | None = None) -> list[str]:
    compared = ["", ""] if row is None else [_signed(row.difference), f"{row.upper_bound:+.4f}"]
    verdict = "" if row is None else "passes" if row.passes else "fails"
    return [_plain(drift.kl), *compared, f"{drift.agreement.value:.1%}", f"{drift.first_kl.value:.3f}", verdict]


def _answers(report: CertifyReport) -> Table:
    table = Table(title="free answers", title_justify="left", box=None, pad_edge=False, header_style="")
    table.add_column("", no_wrap=True)
    for name in ("token F1 against full (95 %)", "against the gold text", "contains it"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.answers:
        cells = (_plain(row.f1_full), _plain(row.f1_gold), f"{row.has_gold.value:.1%}")
        table.add_row(f"{row.passages} passages, {row.way}", *cells)
    return table


def _facts(report: CertifyReport) -> Iterator[tuple[str, str]]:
    setting, environment = report.setting, report.environment
    template = "" if setting.template else "; passages read without the template"
    test = (
        f"{setting.corpus}, {setting.sets} sets a row, answers of at most {setting.max_tokens} tokens, "
        f"{setting.orders} orders at most, seed {setting.seed}{template}"
    )
    yield "test", test
    yield "model", f"{setting.model}, {setting.compute_mode}, KV {setting.kv_dtype}"
    yield "machine", describe_machine(environment)
    yield "run", f"{environment.started}, {report.seconds:.0f} s: {environment.command}"


def _verdict(report: CertifyReport) -> str:
    if not report.bands:
        return "REFUSED: no repair passes, so chunk reuse stays off and requests run exact"
    passed = ", ".join(f"repair {band.repair} for {_range(band)} passages" for band in report.bands)
    most, asked = report.bands[-1].max_passages, max(report.setting.ks)
    missing = f"; no repair passes for {asked}, so requests with more than {most} run exact" if most < asked else ""
    if report.certificate is None:
        return f"{passed} passes{missing}; without the template there is no certificate"
    return f"CERTIFIED {passed}{missing}: {report.certificate}"


def _range(band: Band) -> str:
    few, many = band.min_passages, band.max_passages
    return str(few) if few == many else f"{few} to {many}"


def _plain(interval: Interval) -> str:
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
