"""The fidelity benchmark's report for people."""

from rich.table import Table

from rag.bench.environment import describe_machine
from rag.bench.fidelity_report import ChoiceFidelity, FidelityReport
from rag.bench.printed import as_text, facts_table
from rag.bench.statistics import Interval

__all__ = ["render"]


def render(report: FidelityReport, *, width: int = 140) -> str:
    """Return the report as a table and a few lines, ending with a line break."""
    title = "next-token distributions against float32 on the reference kernels"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="")
    table.add_column("compute mode, weights", no_wrap=True)
    for name in ("mean KL, nats a token (95 %)", "p99", "most", "first token", "same top token (95 %)", "8-bit rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in report.choices:
        if choice.reason is None:
            table.add_row(*_cells(choice, report))
    return as_text(
        table,
        "* is what the settings give here; intervals resample answers\n",
        facts_table(_facts(report)),
        *(
            f"not measured: {choice.dtype}, {choice.weights}: {choice.reason}"
            for choice in report.choices
            if choice.reason is not None
        ),
        width=width,
    )


def _cells(choice: ChoiceFidelity, report: FidelityReport) -> list[str]:
    assert choice.mean_kl is not None, "a measured choice has its figures"
    assert choice.agreement is not None, "a measured choice has its figures"
    mark = " *" if [choice.dtype, choice.weights] == report.setting.configured else ""
    return [
        f"{choice.dtype}, {choice.weights} ({choice.backend}){mark}",
        _interval(choice.mean_kl, ".2g"),
        f"{choice.p99_kl:.2g}",
        f"{choice.max_kl:.2g}",
        f"{choice.first_kl:.2g}",
        _interval(choice.agreement, ".2%"),
        f"{choice.lean_rows} of {sum(report.setting.answer_tokens)}",
    ]


def _interval(value: Interval, style: str) -> str:
    return f"{value.value:{style}} ({value.low:{style}} to {value.high:{style}})"


def _facts(report: FidelityReport) -> list[tuple[str, str]]:
    setting, environment = report.setting, report.environment
    answers = (
        f"{len(setting.questions)} questions over {setting.corpus}, {setting.k} passages each, "
        f"{sum(setting.prompt_tokens) / len(setting.prompt_tokens):.0f} prompt tokens on average; "
        f"{sum(setting.answer_tokens)} answer tokens, at most {setting.max_tokens} an answer; seed {setting.seed}"
    )
    return [
        ("answers", answers),
        ("model", setting.model),
        ("machine", describe_machine(environment)),
        ("run", f"{environment.started}, {report.seconds:.0f} s: {environment.command}"),
    ]
