"""The shipped dashboard asks for metrics, labels and values that there are."""

import json
import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
from telemetry_helpers import Samples, Watched, delta, done, generation, passage, report, state_of

from engine.kv_report import StoreStats
from engine.ladder import Outcome
from engine.stats import EngineStats, Totals
from rag.caller import NOBODY
from rag.shadow import ShadowStats

DASHBOARD = json.loads(resources.files("rag.telemetry").joinpath("grafana.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SELECTOR = re.compile(r"\b((?:preread|process)_[a-z0-9_]+)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*=~?\s*"([^"]*)"')


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Every metric that a server with all its parts has."""
    stats = EngineStats(2, 3, 100, 60, 30, 4, 5, Totals())
    parts = {
        "worker": SimpleNamespace(is_alive=True, call=lambda _: done((stats, 1024))),
        "store": SimpleNamespace(stats=lambda: StoreStats(capacity_bytes=1000)),
        "shadow": SimpleNamespace(stats=lambda: ShadowStats(5, 1, 0, 0.25, 0.5, False)),
    }
    watched = Watched(Path(tmp_path_factory.mktemp("library")), state_of(**parts))
    for outcome in (Outcome.SHIFTED, Outcome.COMPUTED):
        with watched.telemetry.answering(NOBODY, pipeline="rag", model="small", collection="docs") as one:
            one.take(delta(1))
            one.take(generation(report(passage("1", Outcome.PATH), passage("2", outcome))))
    with watched.telemetry.answering(NOBODY, pipeline="rag", model="small", collection="docs") as one:
        one.take(generation(report(passage("1", Outcome.COMPUTED))))
    with pytest.raises(KeyError), watched.telemetry.answering(NOBODY, pipeline="rag", model="small"):
        raise KeyError
    watched.telemetry.http.observe("/v1/answer", "POST", 200, 0.1)
    found = watched.samples()
    watched.close()
    return found


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{i}-{title}" for i, (title, _) in enumerate(QUERIES)])
def test_a_panel_asks_for_what_there_is(samples: Samples, title: str, query: str) -> None:
    assert query.count("(") == query.count(")")
    selectors = SELECTOR.findall(query)
    assert selectors
    for name, matchers in selectors:
        labels = [dict(found) for known, found in samples if known == name]
        assert labels, f"{title} asks for {name}"
        for label, wanted in MATCHER.findall(matchers):
            values = {one.get(label) for one in labels}
            assert None not in values, f"{name} has no label {label}"
            if not wanted.startswith("$"):
                assert any(re.fullmatch(wanted, str(value)) for value in values), f"{label} of {name} is never {wanted}"
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            assert set(grouped.replace(" ", "").split(",")) <= set().union(*labels)


def test_the_variables_are_there(samples: Samples) -> None:
    names = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)|\$\{(\w+)\}", json.dumps(PANELS)))
    assert {a or b for a, b in used} - {"__rate_interval"} == set(names)
    asked = names["model_name"]["query"]["query"]
    assert asked == "label_values(preread_build_info, model_name)"
    assert any(name == "preread_build_info" and "model_name" in dict(labels) for name, labels in samples)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
