"""Ends a process group whose parent dies, however it dies, and whatever state the group is in.

Run as a script it is the watcher: it needs the standard library only.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress

__all__ = ["Watcher"]


class Watcher:
    """A process that waits for ours to end, and then kills a group that ours has started.

    It is in a group of its own, so that it is not stopped with the one that it watches, nor ended with ours.

    Args:
        group: whose processes are to be killed.
    """

    def __init__(self, group: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this file
            [sys.executable, "-I", "-S", __file__, str(group)],
            stdin=subprocess.PIPE,  # which ends with our process
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    def close(self) -> None:
        """Watch no longer; the group is left alone."""
        assert self._process.stdin is not None, "opened with a pipe"
        self._process.kill()  # before the pipe ends
        self._process.wait()
        self._process.stdin.close()


def _watch(group: int) -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for number in (signal.SIGCONT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(group, number)


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
