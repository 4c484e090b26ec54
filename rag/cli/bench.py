"""`rag bench`: measurements."""

import typer

from rag.cli import (
    bench_compare,
    bench_drafts,
    bench_engine,
    bench_fidelity,
    bench_overlap,
    bench_prefix,
    bench_report,
    bench_reuse,
    bench_run,
    bench_service,
    bench_trace,
    bench_workload,
)

__all__ = ["app"]

app = typer.Typer(help="Measure.", no_args_is_help=True)
app.command("compare")(bench_compare.compare)
app.command("prefix")(bench_prefix.prefix)
app.command("engine")(bench_engine.engine)
app.command("fidelity")(bench_fidelity.fidelity)
app.command("drafts")(bench_drafts.drafts)
app.command("overlap")(bench_overlap.overlap)
app.command("report")(bench_report.report)
app.command("reuse")(bench_reuse.reuse)
app.command("run")(bench_run.run)
app.command("service")(bench_service.service)
app.command("trace")(bench_trace.trace)
app.command("workload")(bench_workload.workload)


@app.callback()
def _group() -> None:
    """Measure."""
