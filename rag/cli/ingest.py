"""`rag ingest`: files, folders and built-in corpora into a collection."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli.conditions import MetadataOption, parse_metadata
from rag.cli.failures import FAILED, OK, PARTLY
from rag.cli.options import AsJson, CollectionOption, config_of
from rag.cli.output import ingest_progress, mebibytes, number, precompute_progress, print_json, printable, waiting

if TYPE_CHECKING:
    from rag.fetch import UrlSource
    from rag.operations import Operations
    from rag.schemas import IngestReport, PrecomputeProgress, SkippedDocument
    from retriever.document import FileSource, TextSource

__all__ = ["corpus_sources", "describe", "ingest"]

URL_SECONDS = 30.0  # to fetch one document


def ingest(
    context: typer.Context,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="Files and folders.")] = None,
    *,
    collection: CollectionOption = "default",
    corpus: Annotated[list[str] | None, typer.Option(help="A built-in corpus: python-topics or python-stdlib.")] = None,
    urls: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file of URLs, one a line; what is there is fetched from here.")
    ] = None,
    metadata: MetadataOption = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove documents of the folders and corpora given that are gone.")
    ] = False,
    passage_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a passage's text at most; for a new collection.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="FACTORY", help="FAISS index, such as HNSW32; for a new collection.")
    ] = None,
    precompute: Annotated[
        bool, typer.Option("--precompute", help="Then read the collection's passages ahead: store their KV.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read documents into a collection: new ones are added, changed ones updated, others left alone.

    A file that cannot be read is reported and skipped, and the exit code is 3. An interrupted run is taken up by the
    next one.
    """
    if not (paths or corpus or urls or precompute):
        raise typer.BadParameter("name files or folders to read, a corpus with --corpus, or a list with --urls")
    from rag.connect import connect

    known = _checked(parse_metadata(metadata))
    sources, scope, missing = _gather(paths or [], corpus or [])
    all_sources = [replace(source, metadata=known) for source in (*sources, *_web_sources(urls))]
    if not all_sources and missing:
        raise typer.BadParameter("; ".join(item.reason for item in missing))
    if prune and missing:
        print("WARNING: nothing is pruned, since paths are missing; check them and run it again", file=sys.stderr)
    given = {"passage_tokens": passage_tokens, "index_factory": index}
    settings = {name: value for name, value in given.items() if value is not None}
    more = {}
    with connect(config_of(context, retriever=settings)) as operations:
        with ingest_progress() as progress:
            prune_scope = scope if prune and not missing else None
            report = operations.ingest(collection, all_sources, prune_scope=prune_scope, progress=progress)
        report = report.model_copy(update={"skipped": [*missing, *report.skipped]})
        if all_sources and not as_json:
            _print(report)
        if precompute and (report.added or report.updated or report.unchanged or not all_sources):
            more["precompute"] = _read_ahead(operations, collection, quiet=as_json).model_dump(mode="json")
    if as_json:
        print_json(report.model_dump(mode="json") | more)
    raise typer.Exit(_exit_code(report) if all_sources or missing else OK)


def _checked(metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    from retriever.errors import MetadataError
    from retriever.metadata import check_metadata

    try:
        check_metadata(metadata or {})
    except MetadataError as error:
        raise typer.BadParameter(str(error)) from error
    return metadata


def _web_sources(path: str | None) -> "list[UrlSource]":
    """Return a source for each line of a file that is not empty or a comment."""
    if path is None:
        return []
    from rag.fetch import UrlSource

    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--urls {path} cannot be read: {error}") from error
    urls = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [UrlSource(url, URL_SECONDS) for url in dict.fromkeys(urls)]


def corpus_sources(name: str) -> "list[TextSource]":
    """Return the documents of a built-in corpus.

    Raises:
        UnknownCorpusError: there is none of this name.
    """
    from data.corpora import load_corpus
    from retriever.document import TextSource

    return [TextSource(d.uri, d.text, d.title, d.media_type) for d in load_corpus(name).documents]


def describe(report: "IngestReport") -> str:
    """Say in one line what an ingestion did."""
    counts = ("added", "updated", "unchanged", "removed")
    parts = [f"{number(getattr(report, name))} {name}" for name in counts if getattr(report, name)]
    parts += [f"{len(report.skipped)} skipped"] if report.skipped else []
    return f"{', '.join(parts) or 'nothing to do'}; {number(report.passages)} passages in {report.seconds:.1f} s"


def _gather(
    paths: list[str], corpora: list[str]
) -> "tuple[list[FileSource | TextSource], list[str], list[SkippedDocument]]":
    """Return sources, the uri prefixes of folders and corpora, and paths that do not exist.

    A file that is named covers nothing but itself: `a.txt` is no reason to remove `a.txt.old`.
    """
    from rag.schemas import SkippedDocument
    from retriever.errors import SourceError
    from retriever.found_files import sources_from_paths

    sources: list[FileSource | TextSource] = []
    scope: list[str] = []
    missing: list[SkippedDocument] = []
    for path in paths:
        resolved = Path(path).expanduser().resolve()
        try:
            sources += sources_from_paths([path])
        except SourceError as error:
            missing.append(SkippedDocument(uri=str(resolved), reason=str(error)))
        else:
            scope += [f"{resolved}/"] if resolved.is_dir() else []
    for name in corpora:
        sources += corpus_sources(name)
        scope.append(f"{name}:")
    return list({source.uri: source for source in sources}.values()), scope, missing


def _read_ahead(operations: "Operations", collection: str, *, quiet: bool) -> "PrecomputeProgress":
    """Store the KV of a collection's passages, and say before how much disk space that takes."""
    with waiting("loading the models"):
        plan = operations.precompute_plan(collection)
    left_out = plan.passages - plan.stored - plan.to_compute
    print(
        f"{number(plan.to_compute)} of {number(plan.passages)} passages to read ahead ({number(plan.tokens)} tokens): "
        f"{mebibytes(plan.bytes_needed)} of KV, beside {mebibytes(plan.bytes_stored)} that is stored; the budget is "
        f"{mebibytes(plan.bytes_budget)}",
        file=sys.stderr,
    )
    if left_out:
        print(
            f"WARNING: there is no room for {number(left_out)} more, those found least; "
            "raise PREREAD_ENGINE__KV_STORE_BYTES to read them ahead too",
            file=sys.stderr,
        )
    with precompute_progress(plan.to_compute) as show:
        for progress in operations.precompute(collection):
            show(progress)
    if progress.skipped:
        print(
            f"WARNING: {number(progress.skipped)} of them are too long for the model or its memory; "
            "see the log, and split the documents into shorter passages",
            file=sys.stderr,
        )
    if not progress.finished:
        print("WARNING: some of them could not be stored; look at `rag doctor`, and run it again", file=sys.stderr)
    if not quiet:
        rate = progress.tokens / progress.seconds if progress.tokens else 0
        print(
            f"{collection}: {number(progress.passages)} passages read ahead in {progress.seconds:.1f} s "
            f"({number(round(rate))} tokens/s)"
        )
    return progress


def _print(report: "IngestReport") -> None:
    for item in report.skipped:
        print(printable(f"skipped: {item.reason}"), file=sys.stderr)
    print(f"{report.collection}: {describe(report)}")


def _exit_code(report: "IngestReport") -> int:
    if not report.skipped:
        return OK
    return PARTLY if report.added or report.updated or report.unchanged else FAILED
