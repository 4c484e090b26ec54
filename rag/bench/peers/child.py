"""A peer's process: reads work as JSON lines from stdin, writes results as JSON lines to what stdout was.

Run as a script by the peer's own Python, where Preread need not be installed: it imports the standard library and the
adapter beside it only.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

__all__ = ["main", "serve"]


def main() -> None:
    """Load the adapter named on the command line, say hello, then work until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        adapter = import_module(f"{name}_adapter").load(settings)
        _send(answers, {"version": adapter.version, "detail": adapter.detail})
    except ModuleNotFoundError as error:
        _send(answers, {"missing": str(error.name)})
        return
    except Exception as error:  # noqa: BLE001 - told to the parent, which prints it
        _send(answers, {"error": _one_line(error)})
        return
    serve(adapter, sys.stdin, answers)


def serve(adapter: Any, questions: TextIO, answers: TextIO) -> None:
    """Answer one line with one line: seconds, why the adapter does not do that, or an error."""
    for line in questions:
        work = json.loads(line)
        try:
            if work["do"] == "first_token":
                seconds = adapter.first_token(work["prompt"], work["cached"])
            else:
                seconds = adapter.decode(work["prompts"], work["cached"], work["steps"])
            _send(answers, {"seconds": seconds})
        except NotImplementedError as error:
            _send(answers, {"unsupported": str(error)})
        except Exception as error:  # noqa: BLE001 - told to the parent, which prints it
            _send(answers, {"error": _one_line(error)})


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    main()
