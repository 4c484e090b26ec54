"""A peer's process: reads work as JSON lines from stdin, writes results as JSON lines to what stdout was.

Run as a script by the peer's own Python, where Preread need not be installed: it imports the standard library and what
lies beside it only.
"""

import ctypes
import gc
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

__all__ = ["main"]

HERE = Path(__file__).parent
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    """Load the adapter named on the command line, say hello, then work until stdin ends.

    The folder named `scratch` in its settings is removed in the end, also when the parent was killed.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    _outlive_the_parent()
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    sys.path[:] = [one for one in sys.path if one != str(HERE)]  # which has modules of common names
    try:
        _work(name, settings, answers)
    except BrokenPipeError:
        os.dup2(2, answers.fileno())  # nobody is there to be told; nor may what is left be written at the exit
    finally:
        if "scratch" in settings:
            shutil.rmtree(settings["scratch"], ignore_errors=True)


def _work(name: str, settings: dict[str, Any], answers: TextIO) -> None:
    serving = _beside("serving")
    try:
        adapter = _beside(f"{name}_adapter").load(settings)
    except ModuleNotFoundError as error:
        serving.send(answers, {"missing": str(error.name)})
        return
    except Exception as error:  # noqa: BLE001 - told to the parent, which prints it
        serving.send(answers, {"error": serving.one_line(error)})
        return
    gc.collect()
    gc.freeze()  # what lives as long as the process is not walked through by every later collection, as in a server
    try:
        serving.send(answers, {"version": adapter.version, "detail": adapter.detail})
        serving.serve(adapter, serving.LineReader(0), answers)
    finally:
        if hasattr(adapter, "close"):
            adapter.close()


def _beside(name: str) -> ModuleType:
    """Load a module that lies beside this one."""
    spec = spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None, "it has a loader for files"
    assert spec.loader is not None, "it has a loader for files"
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _outlive_the_parent() -> None:
    """Stay alive for long enough to clean up: a parent that is gone closes stdin, which ends the work."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # sent to a stopped process whose parent has died
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with suppress(AttributeError, OSError):  # not on Linux
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGCONT), 0, 0, 0)


if __name__ == "__main__":
    main()
