"""What peers raise.

PeerError                  a peer that does not work
├── PeerMissingError       it is not installed
└── UnsupportedCaseError   it does not do this case
"""

from rag.errors import RagError

__all__ = ["PeerError", "PeerMissingError", "UnsupportedCaseError"]


class PeerError(RagError):
    """Report a peer that does not start, fails or is gone."""


class PeerMissingError(PeerError):
    """Report a peer that is not installed."""


class UnsupportedCaseError(PeerError):
    """Report a case that a peer does not do."""
