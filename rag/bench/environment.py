"""What a measurement was taken on: figures mean nothing without it."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Environment",
    "RunClock",
    "busy_warnings",
    "count_cores",
    "describe_environment",
    "describe_machine",
    "load_average",
    "physical_memory",
]

BUSY = 0.5  # load average a core above which the figures are not those of a quiet machine


class Environment(BaseModel):
    """Machine, versions and command.

    Attributes:
        started: when, in ISO 8601.
        command: the command line.
        load_average: of the last minute, before the run began; null where the system does not tell.
        torch_threads: that the engine computes with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: str
    command: str
    cpu: str
    cores: int
    platform: str
    python: str
    preread: str
    torch: str
    torch_threads: int
    load_average: float | None


class RunClock:
    """The beginning of a run, which is when this is made: the time, and how busy the machine was before."""

    def __init__(self) -> None:
        self._started, self._load, self._began = datetime.now(UTC), load_average(), perf_counter()

    @property
    def seconds(self) -> float:
        """How long the run has taken."""
        return perf_counter() - self._began

    @property
    def warnings(self) -> list[str]:
        """What makes its figures doubtful: other work that shared the machine."""
        return busy_warnings(self._load)

    def environment(self, *, torch_threads: int | None = None) -> Environment:
        """Describe this machine and process; torch's threads are those of the calling thread if None."""
        import torch

        threads = torch_threads or torch.get_num_threads()
        return describe_environment(self._started, load=self._load, torch_threads=threads)


def describe_environment(started: datetime, *, load: float | None, torch_threads: int) -> Environment:
    """Describe this machine and process; imports torch."""
    import torch

    return Environment(
        started=started.astimezone(UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        cpu=_cpu_name(),
        cores=count_cores(),
        platform=platform.platform(),
        python=platform.python_version(),
        preread=_own_version(),
        torch=torch.__version__,
        torch_threads=torch_threads,
        load_average=load,
    )


def describe_machine(environment: Environment) -> str:
    """Say in one line what a run was taken on."""
    return (
        f"{environment.cpu}, {environment.cores} cores, torch {environment.torch} with {environment.torch_threads} "
        f"threads, Python {environment.python}, load average {environment.load_average} before"
    )


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def load_average() -> float | None:
    """Return how many processes ran or waited for a core in the last minute, or None."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def busy_warnings(load: float | None) -> list[str]:
    """Return a warning where other work shared the machine before a run, for a load average of `load_average`."""
    cores = count_cores()
    if load is None or load <= BUSY * cores:
        return []
    text = (
        f"the load average was {load} on {cores} cores before the run: other work shared the machine, so times are "
        "longer and noisier than on a quiet one"
    )
    return [text]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _own_version() -> str:
    try:
        return version("preread")
    except PackageNotFoundError:
        return "unknown"
