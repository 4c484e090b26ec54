"""What goes over HTTP and out of `--json`: requests, answers, and the events of a streamed answer.

`Answer` is a stable format. Offsets count Unicode code points. Passage ids have 64 bits and are strings in JSON, so
that clients whose numbers are doubles keep every digit. Unknown fields of a request are refused.
"""

from rag.schemas.answers import (
    Answer,
    AnswerRequest,
    Cache,
    Citation,
    HitTokens,
    PassageCache,
    PromptSegment,
    Timings,
    Usage,
)
from rag.schemas.base import PassageId
from rag.schemas.collections import (
    Answering,
    CollectionInfo,
    CollectionList,
    CollectionPatch,
    NewCollection,
    Splitting,
    Template,
)
from rag.schemas.documents import (
    DeletedDocument,
    DocumentInfo,
    DocumentList,
    DocumentPatch,
    DocumentWithPassages,
    PassageInfo,
)
from rag.schemas.events import (
    AnswerEvent,
    CitationEvent,
    DeltaEvent,
    DoneEvent,
    LogprobsEvent,
    RetrievalEvent,
    UsageEvent,
)
from rag.schemas.ingest import DocumentInput, IngestReport, IngestRequest, SkippedDocument
from rag.schemas.metadata import Condition, DocumentMetadata
from rag.schemas.passage_kv import KeptPassage, KVStoreInfo, PrecomputePlan, PrecomputeProgress, Purge
from rag.schemas.sampling import ResponseFormat, Sampling, TokenLogprob, TopLogprob, Turn
from rag.schemas.search import SearchRequest, SearchResult, SearchTimings, Source

__all__ = [
    "Answer",
    "AnswerEvent",
    "AnswerRequest",
    "Answering",
    "Cache",
    "Citation",
    "CitationEvent",
    "CollectionInfo",
    "CollectionList",
    "CollectionPatch",
    "Condition",
    "DeletedDocument",
    "DeltaEvent",
    "DocumentInfo",
    "DocumentInput",
    "DocumentList",
    "DocumentMetadata",
    "DocumentPatch",
    "DocumentWithPassages",
    "DoneEvent",
    "HitTokens",
    "IngestReport",
    "IngestRequest",
    "KVStoreInfo",
    "KeptPassage",
    "LogprobsEvent",
    "NewCollection",
    "PassageCache",
    "PassageId",
    "PassageInfo",
    "PrecomputePlan",
    "PrecomputeProgress",
    "PromptSegment",
    "Purge",
    "ResponseFormat",
    "RetrievalEvent",
    "Sampling",
    "SearchRequest",
    "SearchResult",
    "SearchTimings",
    "SkippedDocument",
    "Source",
    "Splitting",
    "Template",
    "Timings",
    "TokenLogprob",
    "TopLogprob",
    "Turn",
    "Usage",
    "UsageEvent",
]
