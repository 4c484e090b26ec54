"""The engine benchmark's report for people."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from rag.bench.engine_report import CaseResult, EngineReport, Machine, PeerFigure, SearchFigure
from rag.bench.environment import describe_machine
from rag.bench.printed import as_text, facts_table

__all__ = ["render"]


def render(report: EngineReport, *, width: int = 160) -> str:
    """Return the report as tables and a few lines, ending with a line break."""
    parts: list[RenderableType] = []
    if report.machine is not None:
        parts += [_machine(report.machine), f"read bandwidth: {_bandwidth(report.machine)}\n"]
    if report.cases:
        parts += [_cases(report), _legend(report) + "\n"]
    facts = facts_table((*_figures(report), *_peers(report), *_setting(report)))
    return as_text(*parts, facts, *_notices(report), width=width)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="")
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _machine(machine: Machine) -> Table:
    """A row a kernel, a column a number of rows: GFLOP/s, and GB/s of weights for a single row."""
    rows = sorted({rate.rows for rate in machine.gemm})
    headers = [f"{n} rows" if n > 1 else "1 row, GB/s" for n in rows]
    table = _table(f"linear layers of the model, GFLOP/s, {machine.threads} threads", "kernel", *headers)
    for kernel in dict.fromkeys((rate.kernel, rate.dtype) for rate in machine.gemm):
        rates = {rate.rows: rate for rate in machine.gemm if (rate.kernel, rate.dtype) == kernel}
        cells = [
            "" if n not in rates else f"{rates[n].gflops:.0f}" if n > 1 else f"{rates[n].gbytes:.1f}" for n in rows
        ]
        table.add_row(" ".join(kernel), *cells)
    return table


def _bandwidth(machine: Machine) -> str:
    return ", ".join(f"{item.gbytes:.1f} GB/s over {item.bytes >> 20} MiB" for item in machine.bandwidth)


def _cases(report: EngineReport) -> Table:
    names = [peer.name for peer in report.peers if peer.reason is None]
    columns = [heading for name in names for heading in (f"{name} ms", "/ours")]
    table = _table(
        "milliseconds to the first token, or of a decode step",
        "case", "median", "least", "tokens/s", "floor", "bound", "x floor", "linear", "x linear", *columns,
    )  # fmt: skip
    for case in report.cases:
        figures = [cell for name in names for cell in _peer_cells(case.peers.get(name))]
        table.add_row(*_case_cells(case), *figures)
    return table


def _case_cells(case: CaseResult) -> list[str]:
    floor = case.floor
    return [
        case.name,
        _ms(case.time_ms.median),
        _ms(case.time_ms.least),
        f"{case.tokens_per_second:.0f}",
        _ms(floor.ms),
        floor.bound.value,
        f"{case.over_floor:.2f}",
        _ms(floor.linear_ms),
        f"{case.over_linear:.2f}",
    ]


def _peer_cells(figure: PeerFigure | None) -> tuple[str, str]:
    if figure is None or figure.time_ms is None or figure.ratio is None:
        return "-", "-"
    return _ms(figure.time_ms.median), f"{figure.ratio.value:.2f}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _legend(report: EngineReport) -> str:
    text = (
        "floor: operations (attention counted) over the best GEMM rate of the compute mode, or bytes (weights once, "
        "KV) over read bandwidth, the longer one; linear: the linear layers alone at the best rate any kernel reached "
        "with as many rows (8-bit activations, int8x8, left out)"
    )
    return f"{text}; /ours: the peer's time over ours" if report.peers else text


def _figures(report: EngineReport) -> Iterator[tuple[str, str]]:
    if (sharing := report.sharing) is not None:
        value = f"{sharing.value:.2f} ({sharing.low:.2f}-{sharing.high:.2f})"
        yield "sharing", f"a decode step over a shared prefix takes {value} of one without sharing"
    if (overhead := report.overhead) is not None:
        if overhead.outside_ms is None:
            inside = "outside kernels: not measured, the backend does not count its time"
        else:
            inside = f"{overhead.kernel_ms:.2f} ms in kernels, {overhead.outside_ms:.2f} ms outside"
        yield "overhead", f"decode step, batch 1, context {overhead.context}: {overhead.step_ms:.2f} ms; {inside}"
    if (search := report.search) is not None:
        yield "search", _search(search)
    if (server := report.server) is not None:
        runs = ", ".join(f"{seconds:.1f}" for seconds in server.seconds)
        yield "serve", f"ready {server.median:.1f} s after its start ({runs})"


def _search(search: SearchFigure) -> str:
    return (
        f"FAISS over {search.vectors} x {search.dimension}: {search.search_ms:.2f} ms alone; a decode step "
        f"{search.step_ms:.2f} ms alone, {search.step_beside_ms:.2f} ms beside it: it costs {search.slowdown:.2f} x "
        "its own time"
    )


def _peers(report: EngineReport) -> Iterator[tuple[str, str]]:
    for peer in report.peers:
        if peer.reason is not None:
            yield peer.name, f"left out: {peer.reason}"
            continue
        yield peer.name, ", ".join(text for text in (peer.version, peer.detail) if text)
        reasons: dict[str, list[str]] = {}
        for case in report.cases:
            if (figure := case.peers.get(peer.name)) is not None and figure.reason is not None:
                reasons.setdefault(figure.reason, []).append(case.name)
        for reason, names in reasons.items():
            yield "", f"not measured: {'; '.join(names)}: {reason}"


def _setting(report: EngineReport) -> Iterator[tuple[str, str]]:
    setting, environment = report.setting, report.environment
    upto = "" if setting.lean_rows is None else f" up to {setting.lean_rows} rows"
    engine = (
        f"{setting.model}, {setting.dtype}, KV {setting.kv_dtype}, weights {setting.weights} (decode: "
        f"{setting.decode_weights}{upto}), backend {setting.backend}, block size {setting.block_size}, "
        f"{setting.kv_blocks} KV blocks, steps of {setting.max_num_batched_tokens} tokens"
    )
    model = (
        f"{2e-6 * setting.linear_parameters:.1f} MFLOP a token in linear layers, "
        f"{2e-6 * setting.head_parameters:.1f} in the head, {setting.operations_per_pair} FLOP a query-key pair, "
        f"{setting.kv_bytes_per_token} bytes of KV a token"
    )
    run = f"{environment.started}, {report.seconds:.0f} s, {setting.repeats} repeats: {environment.command}"
    yield from (("engine", engine), ("model", model), ("machine", describe_machine(environment)), ("run", run))


def _notices(report: EngineReport) -> list[str]:
    lines = [f"not measured: {part.name}: {part.reason}" for part in report.skipped]
    drafted = [case.name for case in report.cases if case.tokens_per_step > 1]
    if drafted:
        lines.append(f"several tokens a step: {'; '.join(drafted)}")
    lines += [f"WARNING: {warning}" for warning in report.warnings]
    if report.interrupted:
        lines.append("INTERRUPTED: not every case was measured as often as it should be; the figures are of the others")
    return lines + [f"FAILED SELF-CHECK, the figures are void: {problem}" for problem in report.problems]
