"""What the engine raises.

EngineError
├── ConfigError                a setting that cannot work
├── UnsupportedModelError      an architecture or rope type this engine does not run
├── ModelFileError             a model folder with missing, extra or mis-shaped files
├── PromptError                a prompt that cannot be laid out
│   └── PromptTooLongError     a prompt that exceeds the model or the pool
├── OutdatedPromptError        a prompt made before something that it may hold was deleted
├── GrammarError               a schema, expression or grammar that no answer can be held to
├── ReuseNotCertifiedError     chunk reuse asked for without a certificate
├── QueueFullError             too many requests are waiting; try again later
│   └── ShareFullError         too many of them are the same principal's
├── DeadlineExceededError      nobody waits for the request any more
├── StepFailedError            a step raised; the request got no complete answer
└── EngineStoppedError         the worker has stopped and takes no more requests
"""

__all__ = [
    "ConfigError",
    "DeadlineExceededError",
    "EngineError",
    "EngineStoppedError",
    "GrammarError",
    "ModelFileError",
    "OutdatedPromptError",
    "PromptError",
    "PromptTooLongError",
    "QueueFullError",
    "ReuseNotCertifiedError",
    "ShareFullError",
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


class OutdatedPromptError(EngineError):
    """Report a prompt that was made before something that it may hold was deleted."""


class GrammarError(EngineError):
    """Report a schema, regular expression or grammar that an answer cannot be held to."""


class ReuseNotCertifiedError(EngineError):
    """Report chunk reuse asked for without a certificate."""


class QueueFullError(EngineError):
    """Report that too many requests are waiting.

    Args:
        message: says how many.
        retry_after: seconds after which there is probably a place; None where nothing is known of it.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ShareFullError(QueueFullError):
    """Report that too many requests of one principal are waiting; those of others are taken."""


class DeadlineExceededError(EngineError):
    """Report a request that was not complete when nobody waited for it any more."""


class StepFailedError(EngineError):
    """Report that the engine failed in a step; the request got no complete answer."""


class EngineStoppedError(EngineError):
    """Report that the worker has stopped and takes no more requests."""
