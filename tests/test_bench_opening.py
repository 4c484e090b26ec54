"""Contestants as a run opens them: names, warm-up, what is left out and why, and a stream from end to end."""

import random
import shutil
import sys

import pytest
from engine_helpers import passage, random_tokens, tail, template, tiny_engine

from engine import Prompt, Reuse, SamplingParams
from rag.bench.peers import child, preread_adapter, process, serving
from rag.bench.peers import opening as peers
from rag.bench.suite import opening, parts
from rag.bench.suite.experiment import Suite
from rag.bench.suite.lineup import awake
from rag.bench.suite.opening import ContestantSetting, check_contestant, open_contestants
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.bench.suite.suites import SUITES
from rag.config import load_config
from rag.errors import InvalidRequestError

# Tells what it was asked, and refuses every request where it is told to.
FAKE = """
import json, os
class Fake:
    version = "1.0"
    def __init__(self, settings):
        self.settings = settings
        threads = os.environ["OMP_NUM_THREADS"]
        self.detail = json.dumps({**settings, "OMP_NUM_THREADS": threads})
    def answer(self, job):
        for left in reversed(range(job["tokens"])):
            yield {"tokens": job["prompt"][:1], "count": 1, "done": not left}
    def forget(self):
        pass
def load(settings):
    return Fake(settings)
"""
REFUSING = (
    FAKE
    + """
def answer(self, job):
    raise MemoryError("no room")
Fake.answer = answer
"""
)


@pytest.fixture
def setting(tmp_path, tiny_folder, monkeypatch):
    """Peers of our own beside our engine, which runs the tiny model."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    for module in (child, serving, preread_adapter):
        shutil.copy(module.__file__, folder)
    for name, text in (("fake", FAKE), ("refusing", REFUSING), ("absent", "import no_such_package_at_all")):
        (folder / f"{name}_adapter.py").write_text(text)
        monkeypatch.setitem(peers.ADAPTERS, name, (f"{name}-package", False))
    monkeypatch.setattr(process, "CHILD", folder / "child.py")
    config = load_config(engine={"dtype": "float32", "backend": "reference"}, models_dir=tmp_path / "models")
    return ContestantSetting(
        folder=tiny_folder,
        model=str(tiny_folder),
        models_dir=tmp_path / "models",
        config=config,
        work_dir=tmp_path / "work",
        context=256,
        kv_gib=1,
        threads=1,
    )


def a_stream(count):
    """Requests for two of three passages each, and a question."""
    generator = random.Random(5)
    head = template(random_tokens(generator, 19))
    passages = [passage(random_tokens(generator, length), str(length)) for length in (37, 40, 50)]
    requests = []
    for number in range(count):
        prompt = Prompt([head, *generator.sample(passages, 2), tail(random_tokens(generator, 7))])
        requests.append(BenchRequest(number=number, time=0.0, prompt=prompt, output_tokens=4))
    return RequestStream(tuple(requests), "made up")


def answers_of(contestant, stream):
    """Hand over a whole stream, and return each request's events."""
    contestant.resume()
    for request in stream.requests:
        contestant.submit(request)
    events = {request.number: [] for request in stream.requests}
    while not all(one and one[-1].done for one in events.values()):
        for event in contestant.events(30.0):
            events[event.number].append(event)
    contestant.pause()
    return list(events.values())


def test_a_stream_on_our_engine_in_its_own_process(setting):
    stream, work_dir = a_stream(6), setting.work_dir
    with open_contestants(["preread-chunk@16"], setting) as ([contestant], [record], skipped):
        assert (record.name, skipped) == ("preread-chunk@16", [])
        assert "16 tokens" in record.detail
        assert record.start_seconds > 0
        with awake(contestant):
            prepared = contestant.prepare(stream)
        assert prepared.tokens == 37 + 40 + 50
        found = answers_of(contestant, stream)
        held = contestant.footprint()
        assert len(list(work_dir.iterdir())) == 1
    assert not list(work_dir.iterdir())
    assert held.disk > 0
    for events in found:
        assert sum(event.count for event in events) == 4
        assert [event.at for event in events] == sorted(event.at for event in events)
        assert events[-1].outcomes.keys() == {"canonical", "shifted"}
        assert (events[-1].repair, events[-1].certified) == (16, False)
    assert sum(events[-1].cached["disk"] for events in found) > 0
    engine = tiny_engine(setting.folder)
    sampling = SamplingParams(max_tokens=4, ignore_eos=True)
    engine.precompute(stream.template, stream.passages)
    for request, events in zip(stream.requests, found, strict=True):
        answer = engine.stream(engine.submit(request.prompt, sampling, reuse=Reuse.CHUNK, uncertified_repair=16))
        assert [t for event in events for t in event.tokens] == list([*answer][-1].token_ids)


def test_those_that_do_not_work_are_left_out(setting):
    names = ["fake", "absent", "refusing", "fake#2", "fake", "preread-chunk@7"]
    with open_contestants(names, setting) as (contestants, records, skipped):
        assert [one.name for one in contestants] == [one.name for one in records] == ["fake", "fake#2"]
        reasons = {one.name: one.reason for one in skipped}
        assert len(answers_of(contestants[1], a_stream(2))[1]) == 4
        running = contestants[0]._child
        assert len(list(setting.work_dir.iterdir())) == 2, "those that are left out are ended at once"
    assert running._process.poll() == 0
    assert reasons.keys() == {"absent", "refusing", "preread-chunk@7"}
    assert f"`{sys.executable} -m pip install absent-package`" in reasons["absent"]
    assert "--peer-python absent=PATH" in reasons["absent"]
    assert reasons["refusing"] == "refusing cannot answer: MemoryError: no room"
    assert "not whole blocks of 16" in reasons["preread-chunk@7"]
    assert '"threads": 1' in records[0].detail
    assert '"OMP_NUM_THREADS": "1"' in records[0].detail


def test_one_that_never_answers_is_left_out(setting, monkeypatch):
    monkeypatch.setattr(opening, "WARM_SECONDS", 0.0)
    with open_contestants(["fake"], setting) as (contestants, _, [skipped]):
        assert contestants == []
    assert "did not answer its first request" in skipped.reason


@pytest.mark.parametrize("name", ["preread", "preread-off@16", "preread-chunk@", "preread-chunk@x", "ollama"])
def test_names_that_mean_nothing(setting, name):
    with pytest.raises(InvalidRequestError, match=name), open_contestants(["fake", name], setting):
        pytest.fail("it was opened")


def test_names_of_contestants():
    for name in ("preread-off", "preread-chunk@32", "preread-exact#2", "transformers", "openvino", "llamacpp", "short"):
        check_contestant(name)


def test_a_warm_up_fits_a_short_context(setting):
    request = opening._warm_request(0, 64)
    assert request.prompt.num_tokens + request.output_tokens <= 64


def test_pools_fit_the_machine_together(monkeypatch):
    for memory, wanted, engines, given in (
        (24, 2, 9, 2),
        (24, 2, 20, 1),
        (8, 2, 8, 1),
        (64, 4, 3, 4),
        (None, 3, 50, 3),
    ):
        monkeypatch.setattr(parts, "physical_memory", lambda gib=memory: gib and gib << 30)
        experiment = SUITES["quick"].experiments[0]
        names = tuple(f"e{number}=http://host" for number in range(engines))
        suite = Suite(name="x", experiments=(experiment.model_copy(update={"contestants": names}),))
        assert parts.RunOptions(kv_gib=wanted).settled(suite).kv_gib == given
