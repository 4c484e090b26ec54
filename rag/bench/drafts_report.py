"""What a run of the benchmark of drafts leaves behind, and how people see it."""

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from rag.bench.environment import Environment, describe_machine
from rag.bench.printed import as_text, facts_table
from rag.bench.statistics import Interval

__all__ = ["FORMAT", "AnswerTimes", "DraftsReport", "DraftsSetting", "KindResult", "render"]

FORMAT = "preread-bench-drafts-1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerTimes(_Part):
    """The answers to one batch, after their first tokens; medians of the repeats.

    Attributes:
        without: seconds a token without drafts.
        with_drafts: seconds a token with them.
        drafted: tokens guessed.
        accepted: of those, the ones that were right.
        tokens: of the answers.
        same: whether the answers are the same, token by token.
    """

    without: float
    with_drafts: float
    drafted: int
    accepted: int
    tokens: int
    same: bool


class KindResult(_Part):
    """One kind of prompts.

    Attributes:
        speedup: mean seconds a token without drafts over those with them, with the 95 % interval of resampled answers;
            null when no answer was long enough.
    """

    kind: str
    speedup: Interval | None
    answers: list[AnswerTimes]


class DraftsSetting(_Part):
    """What was measured."""

    model: str
    dtype: str
    corpus: str
    prompts: int
    batch: int
    max_tokens: int
    max_draft_tokens: int
    repeats: int
    seed: int


class DraftsReport(_Part):
    """A run."""

    format: str = FORMAT
    setting: DraftsSetting
    environment: Environment
    warnings: list[str]
    seconds: float
    kinds: list[KindResult]


def render(report: DraftsReport, *, width: int = 140) -> str:
    """Return the report as a table and a few lines, ending with a line break."""
    table = Table(title="answers with drafts", title_justify="left", box=None, pad_edge=False, header_style="")
    table.add_column("prompts", no_wrap=True)
    for name in ("times faster (95 %)", "least", "most", "ms a token", "with drafts", "accepted", "same answers"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.kinds:
        table.add_row(*_cells(result))
    setting = report.setting
    answers = (
        f"{setting.prompts} prompts a kind from {setting.corpus}, {setting.batch} at once, at most "
        f"{setting.max_tokens} tokens; medians of {setting.repeats}; seed {setting.seed}"
    )
    facts = [
        ("model", f"{setting.model}, {setting.dtype}; drafts of at most {setting.max_draft_tokens} tokens"),
        ("answers", answers),
        ("machine", describe_machine(report.environment)),
        ("run", f"{report.environment.started}, {report.seconds:.0f} s: {report.environment.command}"),
    ]
    warnings = [f"warning: {warning}" for warning in report.warnings]
    return as_text(table, "", facts_table(facts), *warnings, width=width)


def _cells(result: KindResult) -> list[str]:
    if result.speedup is None:
        return [result.kind, "answers too short"]
    ratios = [answer.without / answer.with_drafts for answer in result.answers]
    without, with_drafts = (
        1e3 * sum(times) / len(times)
        for times in ([a.without for a in result.answers], [a.with_drafts for a in result.answers])
    )
    drafted, accepted = sum(a.drafted for a in result.answers), sum(a.accepted for a in result.answers)
    return [
        result.kind,
        f"{result.speedup.value:.2f} ({result.speedup.low:.2f} to {result.speedup.high:.2f})",
        f"{min(ratios):.2f}",
        f"{max(ratios):.2f}",
        f"{without:.1f}",
        f"{with_drafts:.1f}",
        f"{accepted} of {drafted}",
        f"{sum(answer.same for answer in result.answers)} of {len(result.answers)}",
    ]
