"""Serving: token ids and segments in, tokens and a cache report out.

`Engine` and what needs torch load on first use, so that importing this package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.config import EngineConfig, SamplingParams
from engine.grammar import JsonObject, JsonSchema, Lark, Regex
from engine.logprobs import TokenLogprob
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import FinishReason
from engine.stats import CacheReport

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.output import Generation, TokenDelta
    from engine.worker import EngineWorker

__all__ = [
    "CacheReport",
    "Engine",
    "EngineConfig",
    "EngineWorker",
    "FinishReason",
    "Generation",
    "JsonObject",
    "JsonSchema",
    "Lark",
    "Prompt",
    "Regex",
    "Reuse",
    "SamplingParams",
    "Segment",
    "SegmentKind",
    "TokenDelta",
    "TokenLogprob",
]

_LAZY = {
    "Engine": "engine.engine",
    "EngineWorker": "engine.worker",
    "Generation": "engine.output",
    "TokenDelta": "engine.output",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
