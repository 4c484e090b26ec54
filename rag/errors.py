"""What rag raises.

RagError
├── ModelHubError              a model cannot be had
│   ├── UnknownModelError      a name that is neither known, pulled, a folder nor a hub id
│   ├── DownloadError          pip or the hub could not deliver it
│   │   └── ChecksumError      what arrived is not what was pinned
│   └── ModelFolderError       a folder that is not a usable model
├── RequestError               a request that cannot be answered as it is
│   ├── InvalidRequestError    a field that is missing, unknown or out of range
│   ├── NoPassagesError        a collection without passages
│   ├── NoKVStoreError         passages to be read ahead where no KV is stored
│   ├── PrecomputeRunningError passages to be read ahead that are being read ahead already
│   ├── QuestionTooLongError   a question that leaves no room in the model's context
│   ├── UnknownJobError        no job of this id
│   ├── KeyInUseError          an idempotency key whose first request is still worked on
│   ├── KeyReusedError         an idempotency key that was used for another request
│   └── NotReadyError          a server that loads its models, or stops
├── ApiKeyError                an API key that cannot be had
│   ├── InvalidKeyError        one that cannot be made like this
│   └── UnknownKeyError        one that does not exist
├── ConfigurationError         a setting that is unknown, ambiguous or cannot work
├── PurgeError                KV of a deleted document that could not be erased
├── TemplateError              a prompt template that cannot be laid out
├── ResultFileError            a benchmark's results that cannot be written
├── AddressError               an address that the server cannot listen on
└── DataDirError               the data directory cannot be used
    ├── DataDirBusyError       another process owns it and does not serve it
    └── ServerError            the server that owns it does not answer, or refuses
"""

__all__ = [
    "AddressError",
    "ApiKeyError",
    "ChecksumError",
    "ConfigurationError",
    "DataDirBusyError",
    "DataDirError",
    "DownloadError",
    "InvalidKeyError",
    "InvalidRequestError",
    "KeyInUseError",
    "KeyReusedError",
    "ModelFolderError",
    "ModelHubError",
    "NoKVStoreError",
    "NoPassagesError",
    "NotReadyError",
    "PrecomputeRunningError",
    "PurgeError",
    "QuestionTooLongError",
    "RagError",
    "RequestError",
    "ResultFileError",
    "ServerError",
    "TemplateError",
    "UnknownJobError",
    "UnknownKeyError",
    "UnknownModelError",
]


class RagError(Exception):
    """Base of every error that rag raises for a caller's mistake."""


class ModelHubError(RagError):
    """Base of the errors of pulling and finding models."""


class UnknownModelError(ModelHubError):
    """Report a name that is neither known, pulled, a folder nor a hub id."""


class DownloadError(ModelHubError):
    """Report that pip or the hub could not deliver a model."""


class ChecksumError(DownloadError):
    """Report a downloaded file that is not the pinned one."""


class ModelFolderError(ModelHubError):
    """Report a folder that is not a usable model."""


class RequestError(RagError):
    """Base of the errors of requests that cannot be answered as they are."""


class InvalidRequestError(RequestError):
    """Report a request field that is missing, unknown or out of range."""


class NoPassagesError(RequestError):
    """Report a question to a collection that has no passages."""


class NoKVStoreError(RequestError):
    """Report that passages cannot be read ahead, since no KV is stored."""


class PrecomputeRunningError(RequestError):
    """Report that a collection's passages are being read ahead already."""


class QuestionTooLongError(RequestError):
    """Report a question that leaves no room in the model's context."""


class NotReadyError(RequestError):
    """Report that the server takes no questions yet, or no more."""


class ApiKeyError(RagError):
    """Base of the errors of making and finding API keys."""


class InvalidKeyError(ApiKeyError):
    """Report a key that cannot be made as asked."""


class UnknownKeyError(ApiKeyError):
    """Report that there is no key of this id or name."""


class UnknownJobError(RequestError):
    """Report that there is no job of this id."""


class KeyInUseError(RequestError):
    """Report an idempotency key whose first request is still worked on."""


class KeyReusedError(RequestError):
    """Report an idempotency key that was used for another request."""


class ConfigurationError(RagError):
    """Report a setting that is unknown, ambiguous or cannot work."""


class PurgeError(RagError):
    """Report that the KV of a document, which is deleted, could not be erased from memory or disk."""


class TemplateError(RagError):
    """Report a prompt template that cannot be laid out."""


class ResultFileError(RagError):
    """Report a benchmark's results that cannot be written: a full disk, say."""


class AddressError(RagError):
    """Report an address that the server cannot listen on."""


class DataDirError(RagError):
    """Base of the errors of using the data directory."""


class DataDirBusyError(DataDirError):
    """Report that another process owns the data directory and does not serve it."""


class ServerError(DataDirError):
    """Report that the server which owns the data directory does not answer, or refuses."""
