"""What data raises.

DataError
├── UnknownCorpusError      a corpus name that does not exist
├── CorpusUnavailableError  the files of a corpus are missing or cannot be read
├── QuestionError           more questions asked for than a corpus gives
├── TraceError              a trace file with a missing or malformed line
└── WorkloadError           a workload that cannot be made or read
"""

__all__ = [
    "CorpusUnavailableError",
    "DataError",
    "QuestionError",
    "TraceError",
    "UnknownCorpusError",
    "WorkloadError",
]


class DataError(Exception):
    """Base of every error that data raises for a caller's mistake."""


class UnknownCorpusError(DataError):
    """Report a corpus name that does not exist."""


class CorpusUnavailableError(DataError):
    """Report that the files of a corpus are missing or cannot be read."""


class QuestionError(DataError):
    """Report that a corpus gives fewer questions than asked for."""


class TraceError(DataError):
    """Report a missing trace file or a malformed line."""


class WorkloadError(DataError):
    """Report a workload that cannot be made or read."""
