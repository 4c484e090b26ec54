"""What documents come in: JSON, or a form with files."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from rag.schemas import DocumentInput, IngestRequest
from rag.server.problems import ProblemError, refused
from retriever.extract import is_told_by_name

__all__ = ["FILES", "FORM", "JSON", "METADATA", "URLS", "read_documents"]

JSON, FORM = "application/json", "multipart/form-data"
FILES, URLS, METADATA = "files", "urls", "metadata"
UNTYPED = "application/octet-stream"
MAX_LIST_BYTES = 2**20

T = TypeVar("T")


async def read_documents(request: Request, max_files: int) -> IngestRequest:
    """Return the documents of a body of either kind.

    Raises:
        ProblemError: it is of another kind, has more than `max_files`, or a part of the form cannot be used.
        RequestValidationError: a field cannot be used.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == FORM:
        return _few(await _read_form(request, max_files), max_files)
    if media_type != JSON:
        raise ProblemError(
            415,
            "unsupported-media-type",
            f"the body's Content-Type is {media_type!r}; send documents as {JSON}, or files as {FORM}",
            headers={"Accept-Post": f"{JSON}, {FORM}"},
        )
    body = await request.body()
    return _few(await to_thread.run_sync(_checked, IngestRequest.model_validate_json, body), max_files)


def _checked(validate: Callable[[T], IngestRequest], given: T) -> IngestRequest:
    try:
        return validate(given)
    except ValidationError as error:
        raise refused(error) from error


def _few(wanted: IngestRequest, max_files: int) -> IngestRequest:
    count = len(wanted.documents) + len(wanted.urls)
    if count > max_files:
        raise ProblemError(
            413,
            "too-many-files",
            f"the request has {count} documents, above {max_files}; send them in several requests, or raise the "
            "server's PREREAD_SERVER__MAX_FILES",
        )
    return wanted


async def _read_form(request: Request, max_files: int) -> IngestRequest:
    files: list[DocumentInput] = []
    urls: list[str] = []
    metadata: Any = None
    async with request.form(max_files=max_files + 1) as form:  # beyond that it is not even received
        for name, part in form.multi_items():
            if name == FILES and isinstance(part, UploadFile) and part.filename:
                files.append(await _read_file(part))
            elif name == URLS:
                urls += (await _read_text(part, name)).split()
            elif name == METADATA:
                metadata = _json_of(await _read_text(part, name))
            else:
                raise ProblemError(
                    422,
                    "invalid-request",
                    f"the part {name!r} is not a file named {FILES!r}, nor {URLS!r} or {METADATA!r}; send such parts",
                )
    if not (files or urls):
        raise ProblemError(422, "invalid-request", f"the form has no files; send them in parts named {FILES!r}")
    given = {"documents": files, "urls": urls, "metadata": metadata}
    return await to_thread.run_sync(_checked, IngestRequest.model_validate, given)


async def _read_file(part: UploadFile) -> DocumentInput:
    assert part.filename, "a file has a name"
    is_guess = part.content_type == UNTYPED or is_told_by_name(part.filename)  # clients guess by the name too
    media_type = None if is_guess else part.content_type
    data = await part.read()
    try:  # what has been read needs no decoding, which validation would do
        checked = DocumentInput(uri=part.filename, text="", name=part.filename, media_type=media_type)
    except ValidationError as error:
        raise refused(error) from error
    return checked.model_copy(update={"text": None, "data": data})


async def _read_text(part: UploadFile | str, name: str) -> str:
    data = part.encode() if isinstance(part, str) else await part.read()
    try:
        if len(data) <= MAX_LIST_BYTES:
            return data.decode()
    except UnicodeDecodeError:
        pass
    raise ProblemError(422, "invalid-request", f"the part {name!r} is not a text of at most 1 MiB in UTF-8; correct it")


def _json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ProblemError(
            422, "invalid-request", f"the part {METADATA!r} is not JSON ({error}); correct it"
        ) from error
