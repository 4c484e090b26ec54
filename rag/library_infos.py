"""What is told of the library: its rows as the API shows them."""

from collections.abc import Iterable

from rag.answering import answering_of
from rag.schemas import CollectionInfo, DocumentInfo, DocumentWithPassages, IngestReport, PassageInfo, SkippedDocument
from retriever.document import Document, Passage
from retriever.ingest import IngestReport as LibraryReport
from retriever.records import Collection

__all__ = ["collection_info", "document_info", "document_with_passages", "ingest_report"]


def collection_info(row: Collection) -> CollectionInfo:
    """Describe a collection."""
    return CollectionInfo(
        name=row.name,
        id=row.id,
        documents=row.num_documents,
        passages=row.num_passages,
        embedder=row.embedder_name,
        passage_tokens=row.settings.split.passage_tokens,
        overlap_tokens=row.settings.split.overlap_tokens,
        index_factory=row.settings.index_factory,
        index_parameters=row.settings.index_parameters,
        answering=answering_of(row),
        created_at=row.created_at,
    )


def document_info(row: Document) -> DocumentInfo:
    """Describe a document."""
    return DocumentInfo(
        id=row.id,
        uri=row.uri,
        title=row.title,
        content_hash=row.content_hash,
        passages=row.num_passages,
        characters=row.num_characters,
        tokens=row.num_tokens,
        ingested_at=row.ingested_at,
        metadata=dict(row.metadata),
    )


def document_with_passages(row: Document, passages: Iterable[Passage]) -> DocumentWithPassages:
    """Describe a document and the passages that it was cut into."""
    infos = [
        PassageInfo(
            passage_id=passage.id,
            label=passage.label,
            page=passage.page,
            start=passage.start,
            end=passage.end,
            heading_path=list(passage.heading_path),
            tokens=len(passage.token_ids),
            text=passage.text,
        )
        for passage in passages
    ]
    return DocumentWithPassages(**document_info(row).model_dump(), passage_list=infos)


def ingest_report(collection: str, report: LibraryReport, seconds: float) -> IngestReport:
    """Tell what an ingestion did."""
    return IngestReport(
        collection=collection,
        added=report.added,
        updated=report.updated,
        unchanged=report.unchanged,
        removed=report.removed,
        skipped=[SkippedDocument(uri=uri, reason=reason) for uri, reason in report.skipped],
        passages=report.passages,
        seconds=seconds,
    )
