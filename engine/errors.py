"""What the engine raises.

EngineError
├── ConfigError                a setting that cannot work
├── UnsupportedModelError      an architecture or rope type this engine does not run
├── ModelFileError             a model folder with missing, extra or mis-shaped files
├── PromptError                a prompt that cannot be laid out
│   └── PromptTooLongError     a prompt that exceeds the model or the pool
├── ReuseNotCertifiedError     chunk reuse asked for without a certificate
├── QueueFullError             too many requests are waiting; try again later
├── StepFailedError            a step raised; the request got no complete answer
└── EngineStoppedError         the worker has stopped and takes no more requests
"""

__all__ = [
    "ConfigError",
    "EngineError",
    "EngineStoppedError",
    "ModelFileError",
    "PromptError",
    "PromptTooLongError",
    "QueueFullError",
    "ReuseNotCertifiedError",
    "StepFailedError",
    "UnsupportedModelError",
]


class EngineError(Exception):
    """Base of every error that the engine raises for a caller's mistake."""


class ConfigError(EngineError):
    """Report a setting that cannot work."""


class UnsupportedModelError(EngineError):
    """Report an architecture or a rope type that this engine does not run."""


class ModelFileError(EngineError):
    """Report a model folder with missing, extra or mis-shaped files."""


class PromptError(EngineError):
    """Report a prompt that cannot be laid out."""


class PromptTooLongError(PromptError):
    """Report a prompt that exceeds the model's context or the block pool."""


class ReuseNotCertifiedError(EngineError):
    """Report chunk reuse asked for without a certificate."""


class QueueFullError(EngineError):
    """Report that too many requests are waiting."""


class StepFailedError(EngineError):
    """Report that the engine failed in a step; the request got no complete answer."""


class EngineStoppedError(EngineError):
    """Report that the worker has stopped and takes no more requests."""
