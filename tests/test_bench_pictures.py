"""Pictures of a run, and the page with them: what they show, that they can be read, that they come out the same."""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations, pairwise
from math import dist
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from xml.etree import ElementTree as Tree

import pytest
from bench_results import EVERYBODY, OWN, Making, make_results, write_results
from hypothesis import given
from hypothesis import strategies as st
from page_helpers import Visitor, chromium, visiting
from test_page import contrast

from rag.bench.analysis.figures import figures_of
from rag.bench.analysis.markdown import render_markdown
from rag.bench.analysis.models import Figures
from rag.bench.pictures import album, axes, page, style
from rag.bench.pictures.album import pictures_of, write_pictures
from rag.bench.pictures.axes import round_ticks
from rag.bench.pictures.export import png, svg
from rag.bench.pictures.page import make_page
from rag.bench.pictures.sheet import NARROW, WIDE, Picture, Sheet, settings, spread
from rag.bench.pictures.style import DARK, ENGINES, FAINT, GROUND, INK, KNOWN, MUTED, looks
from rag.bench.suite.records import AnswerRecord, ContestantRecord, WindowRecord
from rag.bench.suite.results import Results

pytest.importorskip("matplotlib", reason="matplotlib is not installed; it comes with .[test]")

if TYPE_CHECKING:
    from playwright.sync_api import Browser

KINDS = (
    "questions", "grid-2-256", "grid-2-512", "grid-6-256", "grid-6-512", "load", "goodput", "quality", "simulation",
)  # fmt: skip
NASTY = "http://a-long-name.of-a-server.example:8000/<b>$x_1$</b>"
CLONES = {  # further engines: whose answers they give, and how much later
    "preread-chunk@16": ("preread-chunk", 1.3),
    "preread-chunk#2": ("preread-chunk", 1.0),
    NASTY: ("llamacpp", 300.0),
    "vllm": ("openvino", 0.9),
    "sglang": ("openvino", 0.02),
}


@pytest.fixture(scope="module")
def figures() -> Figures:
    """A run with every kind of experiment in it."""
    return figures_of(make_results(Making(requests=12, chosen=KINDS)))


@pytest.fixture(scope="module")
def pictures(figures: Figures) -> list[Picture]:
    return pictures_of(figures)


@pytest.fixture(scope="module")
def html(figures: Figures) -> str:
    return make_page(render_markdown(figures), figures)


@pytest.fixture(scope="module")
def crowd() -> Figures:
    """Twelve engines, one of them with an unpleasant name, times from milliseconds to minutes."""
    chosen = ("questions", "grid-2-256", "grid-6-256")
    return figures_of(_crowded(make_results(Making(requests=12, chosen=chosen))))


@pytest.fixture(scope="module")
def crowded_html(crowd: Figures) -> str:
    return make_page(render_markdown(crowd), crowd)


@pytest.fixture(scope="module")
def lonely() -> Figures:
    """One engine, with too few answers for any interval."""
    return figures_of(_alone(make_results(Making(requests=12, chosen=KINDS)), "preread-exact", 6))


def test_every_kind_of_picture_is_drawn(pictures: list[Picture]) -> None:
    assert [one.name for one in pictures] == [
        "speedup", "ttft-questions", "ttft-load", "cached-questions", "passages-number", "passages-length",
        "goodput-goodput", "quality-quality", "simulation-simulation", "footprint",
    ]  # fmt: skip


def test_files_are_written_in_both_formats(tmp_path: Path) -> None:
    small = figures_of(make_results(Making(requests=10, chosen=("simulation",))))
    files = write_pictures(small, tmp_path / "plots")
    assert sorted(one.name for one in files) == ["simulation-simulation.png", "simulation-simulation.svg"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    root = Tree.fromstring(files[0].read_text())
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in files[0].read_text()
    assert "Hit rates" in "".join(root.itertext())


def test_a_run_without_any_measurement_has_no_picture(tmp_path: Path) -> None:
    nothing = figures_of(Results(make_results(Making(chosen=("questions",))).header, ()))
    assert write_pictures(nothing, tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()
    assert "<h1>" in make_page(render_markdown(nothing), nothing)


def test_without_matplotlib_there_is_a_page_that_says_how_to_get_pictures(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (album, page):
        monkeypatch.setattr(module, "can_draw", lambda: False)
    assert write_pictures(figures, tmp_path / "plots") == []
    html = make_page(render_markdown(figures), figures)
    assert "pip install &#x27;preread[bench]&#x27;" in html
    assert "<svg" not in html


def test_another_process_draws_the_very_same_files(tmp_path: Path, pictures: list[Picture]) -> None:
    """Whatever the seed of its hashes."""
    path = write_results(tmp_path / "results.jsonl", Making(requests=12, chosen=KINDS))
    program = (
        "import sys; from pathlib import Path; from rag.bench.suite.results import Results\n"
        "from rag.bench.analysis.figures import figures_of\n"
        "from rag.bench.pictures.album import pictures_of; from rag.bench.pictures.export import png, svg\n"
        "for one in pictures_of(figures_of(Results.load(Path(sys.argv[1])))):\n"
        "    if one.name in {'ttft-load'}:\n"
        "        Path(sys.argv[2], one.name).write_text(svg(one, 880, alone=True))\n"
        "        Path(sys.argv[2], one.name + '.png').write_bytes(png(one))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, path, tmp_path], check=True, env=environment)
    for one in pictures:
        if one.name in {"ttft-load"}:
            assert (tmp_path / one.name).read_text() == svg(one, WIDE, alone=True)
            assert (tmp_path / f"{one.name}.png").read_bytes() == png(one)


def test_pictures_show_the_figures(figures: Figures, pictures: list[Picture]) -> None:
    by_name = {one.name: one for one in pictures}
    engines = figures.experiments["questions"].contestants
    speedup = engines["preread-chunk"].speedup
    assert speedup
    assert f"{speedup.value:.2f}x" in svg(by_name["speedup"], WIDE, alone=True)
    ttft = engines["transformers"].ttft
    assert ttft
    assert f"transformers {ttft.p50.value / 1000:.2f}".rstrip("0") in by_name["ttft-questions"].alt
    assert by_name["ttft-questions"].alt.index("preread-chunk") < by_name["ttft-questions"].alt.index("llamacpp")
    assert "transformers, openvino: not told" in by_name["cached-questions"].note
    chunk = figures.experiments["goodput"].goodput["preread-chunk"]
    assert chunk.goodput
    least = "" if chunk.failing else "at least "
    assert f"preread-chunk {least}{chunk.goodput:.0f}/s" in by_name["goodput-goodput"].alt
    assert "preread-chunk 900 MiB of memory, 340 MiB on disk" in by_name["footprint"].alt
    assert "openvino 900 MiB of memory, 0 MiB on disk" in by_name["footprint"].alt


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("run", ["figures", "crowd", "lonely"])
def test_no_text_leaves_the_picture_or_covers_another(run: str, width: int, request: pytest.FixtureRequest) -> None:
    drawn = pictures_of(request.getfixturevalue(run))
    assert len(drawn) > 3
    for picture in drawn:
        complaints = _clashes(picture.sheet(width, titled=True))
        assert not complaints, (picture.name, complaints)


def test_a_picture_of_one_engine_says_so_without_comparisons(lonely: Figures) -> None:
    names = {one.name: one for one in pictures_of(lonely)}
    assert "speedup" not in names
    assert "density" not in names["ttft-questions"].note
    assert "4 answers an engine" in names["ttft-questions"].note


def test_engines_without_figures_are_named(figures: Figures) -> None:
    found = figures.experiments["load"]
    mute = found.contestants["preread-exact"].model_copy(update={"ttft": None, "ttft_ms": ()})
    load = found.model_copy(update={"contestants": {**found.contestants, "preread-exact": mute}})
    goodput = figures.experiments["goodput"]
    silent = goodput.goodput["openvino"].model_copy(update={"unloaded_ms": None})
    rates = goodput.model_copy(update={"goodput": {**goodput.goodput, "openvino": silent}})
    changed = figures.model_copy(update={"experiments": {"load": load, "goodput": rates}})
    notes = {one.name: one.note for one in pictures_of(changed)}
    assert notes["ttft-load"].endswith("Without an answer that counts: preread-exact.")
    assert notes["goodput-goodput"].endswith("Without an answer to a single client: openvino.")


def test_a_sheet_without_a_title_leaves_no_room_for_one() -> None:
    with settings():
        assert Sheet(WIDE, 100).whole == (WIDE, 100)
        assert Sheet(WIDE, 100, "title").whole[1] < Sheet(WIDE, 100, "title", "note").whole[1]


def test_every_colour_has_a_dark_counterpart(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert drawings
    for drawing in drawings:
        found = re.findall(r'(?:fill|stroke)="([^"]+)"', drawing)
        assert set(found) - {"none"} <= set(DARK)
        assert "style=" not in drawing, "no rule could replace what stands there"


@pytest.mark.parametrize("ground", [GROUND, FAINT])
def test_every_text_can_be_read_in_light_and_dark(ground: str) -> None:
    """Engines' colours are those of their names, too."""
    for colour in (INK, MUTED, *ENGINES):
        assert contrast(colour, ground) >= 4.5, colour
        assert contrast(DARK[colour], DARK[ground]) >= 4.5, DARK[colour]


def test_our_ways_of_reuse_are_told_apart_by_people_who_confuse_red_and_green() -> None:
    """Colours as seen with deuteranopia. Source: Machado and others, IEEE TVCG 15 (2009), table 1."""
    matrix = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))

    def seen(colour: str) -> list[float]:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        mixed = [sum(weight * c for weight, c in zip(row, linear, strict=True)) for row in matrix]
        return [max(0.0, c) ** (1 / 2.4) for c in mixed]

    own = [KNOWN[name].colour for name in OWN]
    for one, other in combinations(own, 2):
        assert dist(seen(one), seen(other)) > 0.14, (one, other)
        assert dist(seen(DARK[one]), seen(DARK[other])) > 0.14, (DARK[one], DARK[other])


def test_engines_that_we_know_always_look_alike_and_no_two_of_a_dozen_do() -> None:
    names = [*KNOWN, "my-server=http://x", "preread-chunk@16", "other"]
    forward, backward = looks(names), looks(reversed(names))
    assert all(forward[name] == backward[name] == KNOWN[name] for name in KNOWN)
    assert len(set(forward.values())) == len(names)
    markers = [look.marker for look in forward.values()]
    assert len(set(markers)) == len(names), "they can be told apart without colour"
    assert len(looks(f"engine-{number}" for number in range(40))) == 40


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.floats(1, 12))
def test_labels_are_moved_apart_and_no_farther(places: list[float], gap: float) -> None:
    moved = spread(places, gap, 0, 100)
    ordered = sorted(range(len(places)), key=lambda index: places[index])
    values = [moved[index] for index in ordered]
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(values))
    assert min(values) >= -1e-6
    assert max(values) <= 100 + 1e-6
    if all(b - a >= gap for a, b in pairwise(sorted(places))):
        assert moved == pytest.approx(places)


@pytest.mark.parametrize("module", [style, axes], ids=["style", "axes"])
def test_examples_are_true(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@given(st.floats(1e-4, 1e4), st.floats(1.05, 1e6), st.integers(1, 12))
def test_ticks_are_inside_and_as_many_as_fit(low: float, ratio: float, most: int) -> None:
    ticks = round_ticks(low, low * ratio, lambda found: len(found) <= most)
    assert 1 <= len(ticks) <= most
    assert ticks == sorted(ticks)
    assert all(low * 0.94 <= tick <= low * ratio * 1.06 for tick in ticks)


def test_the_page_is_one_document_that_loads_nothing(html: str) -> None:
    assert not re.search(r"<(script|img|iframe|link|object|image)\b", html)
    assert not re.search(r"url\((?!#)|@import|xlink", html)
    assert set(re.findall(r"https?://[\w./-]+", html)) == {"http://www.w3.org/2000/svg"}
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([\w-]+)', html)
    assert targets
    assert set(targets) <= set(ids)


def test_every_picture_stands_in_its_section_and_has_a_text(html: str, pictures: list[Picture]) -> None:
    sections = dict(re.findall(r'<h2 id="([^"]+)">(.*?)(?=<h2|</main>)', html, re.DOTALL))
    for picture in pictures:
        section = page.PLACES.get(picture.section, picture.section)
        place = sections[section] if section else html.split("<h2", 1)[0]
        assert place.count(f'<figure id="{picture.name}">') == 1, picture.name
        assert html.count(f'<figure id="{picture.name}">') == 1
    assert html.count('role="img" aria-label="') == 2 * len(pictures)
    assert html.count("<figcaption><strong>") == len(pictures)


def test_names_are_text_and_nothing_else(crowded_html: str, lonely: Figures) -> None:
    assert "<b>" not in crowded_html
    assert "&lt;b&gt;$x_1$&lt;/b&gt;" in crowded_html
    evil = lonely.header.suite.model_copy(update={"name": "a<script>b</script> ![x](http://elsewhere/x.png)"})
    header = lonely.header.model_copy(update={"suite": evil})
    other = lonely.model_copy(update={"header": header, "experiments": {}})
    html = make_page(render_markdown(other), other)
    assert "<script" not in html
    assert "<img" not in html


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as found:
        yield found


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (800, "light"), (1280, "dark")])
def test_the_page_fits_phones_and_desktops_in_light_and_dark(
    browser: "Browser", crowded_html: str, tmp_path: Path, width: int, scheme: str
) -> None:
    (tmp_path / "report.html").write_text(crowded_html)
    viewport = {"width": width, "height": 800}
    with visiting(browser, f"file://{tmp_path}", viewport=viewport, color_scheme=scheme) as visitor:
        visitor.page.goto(f"file://{tmp_path}/report.html")
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == width
        shown = visitor.page.evaluate("[...document.querySelectorAll('svg')].filter(one => one.clientWidth).length")
        assert shown == visitor.page.evaluate("document.querySelectorAll('figure').length")
        shape = visitor.page.evaluate("[...document.querySelectorAll('svg')].find(one => one.clientWidth).classList[0]")
        assert shape == ("narrow" if width == 360 else "wide")
        assert _ground_of_pictures(visitor) == (GROUND if scheme == "light" else DARK[GROUND])


def _ground_of_pictures(visitor: Visitor) -> str:
    colour = visitor.page.evaluate("getComputedStyle(document.querySelector('svg path')).fill")
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour))


def _clashes(sheet: Sheet) -> list[str]:
    """Texts that are cut off, or whose letters cover those of another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    with settings():
        renderer = FigureCanvasAgg(sheet.figure).get_renderer()
        sheet.figure.draw(renderer)
        texts = [one for one in sheet.figure.findobj(Text) if one.get_visible() and one.get_text().strip()]
        boxes = [(one.get_text(), one.get_window_extent(renderer)) for one in texts]
    cut = [
        f"cut off: {text}"
        for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > sheet.whole[0] + 1 or box.y1 > sheet.whole[1] + 1
    ]
    covering = [
        f"{one} over {other}"
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 2 and min(a.y1, b.y1) - max(a.y0, b.y0) > 4
    ]
    return cut + covering


def _crowded(results: Results) -> Results:
    records = []
    for record in results.records:
        records.append(record)
        for name, (source, factor) in CLONES.items():
            if isinstance(record, ContestantRecord) and record.name == source:
                records.append(record.model_copy(update={"name": name}))
            elif isinstance(record, WindowRecord) and record.contestant == source:
                records.append(record.model_copy(update={"contestant": name}))
            elif isinstance(record, AnswerRecord) and record.contestant == source:
                first = None if record.first is None else record.arrival + (record.first - record.arrival) * factor
                finished = None if first is None else first + 1
                records.append(record.model_copy(update={"contestant": name, "first": first, "finished": finished}))
    everybody = {source: [name for name, (of, _) in CLONES.items() if of == source] for source in EVERYBODY}
    experiments = tuple(
        one.model_copy(update={"contestants": tuple(n for name in one.contestants for n in (name, *everybody[name]))})
        for one in results.experiments
    )
    return _with_experiments(results, tuple(records), experiments)


def _alone(results: Results, name: str, count: int) -> Results:
    def stays(record: object) -> bool:
        if isinstance(record, AnswerRecord):
            return record.contestant == name and record.request < count
        return getattr(record, "contestant", name) == name and (
            not isinstance(record, ContestantRecord) or record.name == name
        )

    records = tuple(record for record in results.records if stays(record))
    experiments = tuple(
        one.model_copy(update={"contestants": tuple({name} & set(one.contestants))}) for one in results.experiments
    )
    return _with_experiments(results, records, experiments)


def _with_experiments(results: Results, records: tuple, experiments: tuple) -> Results:
    suite = results.header.suite.model_copy(update={"experiments": experiments})
    return Results(results.header.model_copy(update={"suite": suite}), records)
