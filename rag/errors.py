"""What rag raises.

RagError
└── ModelHubError              a model cannot be had
    ├── UnknownModelError      a name that is neither known, pulled, a folder nor a hub id
    ├── DownloadError          pip or the hub could not deliver it
    │   └── ChecksumError      what arrived is not what was pinned
    └── ModelFolderError       a folder that is not a usable model
"""

__all__ = [
    "ChecksumError",
    "DownloadError",
    "ModelFolderError",
    "ModelHubError",
    "RagError",
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
