"""The server that the service benchmark asks, in a process of its own: `rag serve`, and a look at itself at the end.

Takes its settings as JSON; prints an `Inspection` when it has ended.
"""

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from rag.bench.service_report import Inspection
from rag.config import RagConfig
from rag.data_dir import open_owned
from rag.server.app import create_app
from rag.server.running import Server, listen, stop_signals_ignored
from rag.service import Service

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.worker import EngineWorker
    from retriever.embedder import TextEmbedder

__all__ = ["serve_and_inspect"]

Steps = list[tuple[float, float, int]]


def serve_and_inspect(config: RagConfig, *, embedder: "TextEmbedder | None" = None) -> Inspection:
    """Serve until SIGTERM, then return what the engine looks like."""
    steps: Steps = []
    with (
        open_owned(config.data_dir) as owned,
        listen(config.host, config.port) as listener,
        Service(config, embedder=embedder) as service,
    ):
        service.warm_up()
        worker = service.components.worker()
        worker.call(lambda engine: _prepare(engine, steps)).result()
        server = Server(create_app(service), owned, listener)
        with stop_signals_ignored():
            server.run(sockets=[listener])
        return _inspect(worker, steps)


def _prepare(engine: "Engine", steps: Steps) -> None:
    """Use all memory for KV once, so that what grows later is something else; note what steps take from now on."""
    engine.runner.kv_cache.erase(engine.cache.pool.free_blocks)
    setattr(engine, "step", _timed(engine, engine.step, steps))  # noqa: B010 - a type checker minds the assignment


def _timed(engine: "Engine", step: Callable[[], None], steps: Steps) -> Callable[[], None]:
    def timed() -> None:
        began = perf_counter()
        step()
        steps.append((began, perf_counter() - began, len(engine.scheduler.running)))

    return timed


def _inspect(worker: "EngineWorker", steps: Steps) -> Inspection:
    engine = worker.engine
    broken = "" if worker.is_alive else "the engine had to be stopped"
    try:
        engine.check_invariants()
    except AssertionError as error:
        broken = str(error) or "an invariant without a message"
    stats = engine.stats()
    leaked = stats.num_blocks - stats.free_blocks - stats.cached_blocks
    return Inspection(
        broken=broken, running=stats.running, waiting=stats.waiting, leaked_blocks=leaked, step_seconds=steps
    )


if __name__ == "__main__":
    sys.stdout.write(serve_and_inspect(RagConfig(**json.loads(sys.argv[1]))).model_dump_json())
