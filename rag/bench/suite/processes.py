"""Contestants in processes of their own, and what a process group holds."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rag.bench.peers.process import Child
from rag.bench.suite.contestant import Event, Footprint, Prepared
from rag.bench.suite.requests import BenchRequest, RequestStream
from rag.file_stats import stats_below

__all__ = ["ServingProcess", "group_footprint"]

PREPARE_SECONDS = 3600.0
CANCEL_SECONDS = 180.0  # for the step that an engine is in the middle of


class ServingProcess:
    """An engine behind an adapter of `rag.bench.peers`, see `Contestant`.

    Args:
        name: of the contestant.
        adapter: that runs the engine.
        python: that runs the adapter.
        settings: what the adapter is told; `scratch` is added, a folder that is gone afterwards.
        work_dir: where that folder is made.
        variables: of the process's environment, besides ours.

    Raises:
        PeerMissingError: this Python has no such package.
        PeerError: it does not start, or not in time.
    """

    def __init__(
        self,
        name: str,
        adapter: str,
        python: Path,
        settings: Mapping[str, Any],
        *,
        work_dir: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        work_dir.mkdir(parents=True, exist_ok=True)
        self._scratch = TemporaryDirectory(dir=work_dir, prefix=f"{adapter}-", ignore_cleanup_errors=True)
        self._open: set[int] = set()
        try:
            told = {**settings, "scratch": self._scratch.name}
            self._child = Child(adapter, python, told, name=name, variables=variables)
        except BaseException:
            self._scratch.cleanup()
            raise
        self.version, self.detail = self._child.version, self._child.detail
        self.pause()

    def prepare(self, stream: RequestStream) -> Prepared:
        """See `Contestant.prepare`."""
        passages = [list(passage.tokens) for passage in stream.passages]
        template = list(stream.template.tokens)
        answer = self._ask({"do": "prepare", "template": template, "passages": passages}, "prepared", PREPARE_SECONDS)
        return Prepared(tokens=int(answer["tokens"]), seconds=float(answer["seconds"]))

    def submit(self, request: BenchRequest) -> None:
        """See `Contestant.submit`."""
        self._open.add(request.number)
        self._child.send(
            {
                "do": "submit",
                "number": request.number,
                "segments": [[one.kind.value, one.tokens, one.name] for one in request.prompt.segments],
                "tokens": request.output_tokens,
                "conversation": request.conversation,
            }
        )

    def events(self, timeout: float) -> Sequence[Event]:
        """See `Contestant.events`."""
        events = [self._event(message) for message in self._child.messages(timeout)]
        self._open -= {event.number for event in events if event.done}
        return events

    def cancel(self) -> None:
        """See `Contestant.cancel`; an engine that does not hear of it is ended."""
        if self._open:
            self._ask({"do": "cancel"}, "cancelled", CANCEL_SECONDS)

    def footprint(self) -> Footprint:
        """See `Contestant.footprint`."""
        kept = sum(512 * one.st_blocks for one in stats_below(Path(self._scratch.name)))  # KV extents have holes
        return group_footprint(self._child.pid, disk=kept)

    def pause(self) -> None:
        """See `Contestant.pause`."""
        self._child.stop()

    def resume(self) -> None:
        """See `Contestant.resume`."""
        self._child.go_on()

    def close(self) -> None:
        """See `Contestant.close`."""
        self._child.close()
        self._scratch.cleanup()

    def _ask(self, work: Mapping[str, Any], key: str, seconds: float) -> Any:
        """Return the answer to work that ends every request; what comes of those before it is dropped."""
        self._child.send(work)
        until = time.monotonic() + seconds
        while key not in (message := self._child.receive(max(until - time.monotonic(), 0.0))):
            pass
        self._open.clear()
        return message[key]

    def _event(self, message: dict[str, Any]) -> Event:
        try:
            return Event(**{**message, "tokens": tuple(message.get("tokens", ()))})
        except TypeError as error:
            raise self._child.end(f"says {str(message)[:100]!r}, which makes no sense, and was ended") from error


def group_footprint(group: int, *, disk: int = 0) -> Footprint:
    """Measure a process group now; where the system does not tell, only what is known is.

    `Pss` counts a page that several processes share once for all of them. `VmHWM`, the system's own peak, does not, so
    that an engine of many processes would seem to need more.
    """
    memory, ticks = 0, 0
    for process in _members(group):
        try:
            memory += _sizes(process / "smaps_rollup").get("Pss", 0)
            ticks += sum(map(int, _stat(process)[11:13]))
        except OSError:
            continue  # it has just ended
    if not ticks and not memory:
        return Footprint(disk=disk)
    return Footprint(memory=memory, disk=disk, cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"))


def _members(group: int) -> list[Path]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(_stat(process)[2]) == group:
                found.append(process)
        except OSError:
            continue  # it has just ended
    return found


def _stat(process: Path) -> list[str]:
    """Return the fields of `/proc/PID/stat` from the state on."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _sizes(path: Path) -> dict[str, int]:
    """Return the sizes that a file of /proc tells, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1:] == ["kB"]}
