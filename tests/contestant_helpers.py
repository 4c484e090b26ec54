"""Contestants' processes with made-up engines in them."""

import time
from pathlib import Path

import pytest

from engine.prompt import Prompt, Segment, SegmentKind
from rag.bench.suite.requests import BenchRequest

# Answers a prompt with its own tokens, one a step. What comes first in a prompt may say otherwise.
BATCHING = """
import os, sys, time
HANG, DIE, SHORT, FAIL, REFUSE = range(90, 95)
class Batching:
    version, detail = "1.0", "fake"
    def __init__(self, settings):
        self.settings, self.open, self.steps = settings, {}, 0
        if settings.get("print"):
            print(settings["print"], flush=True)
        if settings.get("broken"):
            raise RuntimeError("no such file")
    @property
    def busy(self):
        return bool(self.open)
    def submit(self, job):
        if job["prompt"][0] == REFUSE:
            raise ValueError("too long")
        self.open[job["number"]] = job, 0
    def step(self):
        self.steps += 1
        news = []
        for number, (job, given) in list(self.open.items()):
            trouble = job["prompt"][0]
            if trouble == HANG:
                time.sleep(60)
            if trouble == DIE:
                print("out of luck", file=sys.stderr)
                os._exit(7)
            if trouble == FAIL:
                raise RuntimeError("broken step")
            given += 1
            last = given == job["tokens"] - (trouble == SHORT)
            self.open[number] = job, given
            news.append({"number": number, "tokens": [job["prompt"][given % len(job["prompt"])]], "count": 1,
                         "done": last})
            if last:
                news[-1] |= {"cached": {"device": self.steps}, "started": time.monotonic()}
                del self.open[number]
        return news
    def cancel(self):
        self.open.clear()
    def prepare(self, template, passages):
        with open(os.path.join(self.settings["scratch"], "kv"), "wb") as file:
            file.write(bytes(1 << 20))
        return {"tokens": len(template) + 1000 * sum(map(len, passages)), "seconds": 0.5}
    def close(self):
        print("closed")
def load(settings):
    return Batching(settings)
"""
SINGLE = """
class Single:
    version, detail = "1.0", "fake"
    def __init__(self):
        self.kept = []
    def answer(self, job):
        if job["prompt"][0] == 93:
            raise RuntimeError("broken answer")
        self.kept.append(job["number"])
        for left in reversed(range(job["tokens"])):
            yield {"tokens": [job["number"]], "count": 1, "done": not left,
                   **({} if left else {"cached": {"device": len(self.kept)}})}
    def forget(self):
        self.kept.clear()
def load(settings):
    return Single()
"""
HANG, DIE, SHORT, FAIL, REFUSE = range(90, 95)


# Opens a contestant, says which process it is, and waits.
OWNER = """
import sys, time
from pathlib import Path
from rag.bench.peers import process
from rag.bench.suite.processes import ServingProcess
process.CHILD = Path(sys.argv[1])
one = ServingProcess("toy", "batching", Path(sys.executable), {}, work_dir=Path(sys.argv[2]))
if sys.argv[3] == "awake":
    one.resume()
print(one._child.pid, flush=True)
time.sleep(60)
"""


def a_request(number, first=1, *, output=3, tokens=(5, 6), passages=()):
    """A request whose prompt begins with some token."""
    segments = [Segment((first,), SegmentKind.TEMPLATE)]
    segments += [Segment(one, SegmentKind.PASSAGE) for one in passages]
    prompt = Prompt([*segments, Segment(tuple(tokens), SegmentKind.TAIL)])
    return BenchRequest(number=number, time=0.0, prompt=prompt, output_tokens=output)


def hear(contestant, *numbers):
    """Wait until requests have ended; return all events by request."""
    events, left = {number: [] for number in numbers}, set(numbers)
    while left:
        for event in contestant.events(10.0):
            events[event.number].append(event)
            if event.done:
                left.remove(event.number)
    return events


def ask(contestant, request):
    contestant.resume()
    contestant.submit(request)
    return hear(contestant, request.number)[request.number]


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came true")


def hear_for(contestant, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        contestant.events(0.1)
