"""What can be asked about use and costs, whoever does it: this process, or a running server."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import httpx

from rag.patterns import Owner, usage_patterns
from rag.prices import PriceBook
from rag.schemas.usage import PatternsRequest, UsagePatterns, UsageReport, UsageRequest
from rag.usage import usage_report

if TYPE_CHECKING:
    from rag.components import Components

__all__ = ["RemoteUsage", "StoredUsage", "UsageOperations"]

OWNERS = """
SELECT p.id, d.uri, c.name FROM passages p JOIN documents d ON d.key = p.document_key
JOIN collections c ON c.id = p.collection_id WHERE p.id IN (SELECT value FROM json_each(?))
"""


class UsageOperations(Protocol):
    """Tells what was used."""

    def report(self, wanted: UsageRequest) -> UsageReport:
        """Sum tokens and costs."""

    def patterns(self, wanted: PatternsRequest) -> UsagePatterns:
        """Look at how passages are read over and over."""


class StoredUsage:
    """The use of this process's data directory.

    Args:
        components: library, ledger, keys and engine.
    """

    def __init__(self, components: "Components") -> None:
        self._components = components

    def report(self, wanted: UsageRequest) -> UsageReport:
        """Sum tokens and costs.

        Raises:
            ConfigurationError: the price book cannot be used.
            InvalidRequestError: the last day is before the first.
        """
        path = self._components.config.server.price_book
        prices = PriceBook.load(path) if path else None
        names = {key.id: key.name for key in self._components.keys().list()}
        return usage_report(self._components.ledger(), wanted, prices=prices, key_names=names)

    def patterns(self, wanted: PatternsRequest) -> UsagePatterns:
        """Look at how passages are read over and over.

        Raises:
            UnknownCollectionError: there is no such collection.
        """
        collection = None if wanted.collection is None else self._components.library().collection(wanted.collection).id
        reads = self._components.retrieval_log().latest(wanted.answers, collection)
        worker, block_size = self._components.worker.if_made, self._components.config.engine.block_size
        room = worker.engine.cache.pool.num_blocks * block_size if worker else None
        return usage_patterns(reads, self._owners, block_size=block_size, cache_tokens=room)

    def _owners(self, passages: Iterable[int]) -> dict[int, Owner]:
        import json

        with self._components.library().store.read() as reader:
            found = reader.connection.execute(OWNERS, (json.dumps(list(passages)),)).fetchall()
        return {passage: Owner(uri, collection) for passage, uri, collection in found}


class RemoteUsage:
    """The use of a running server.

    Args:
        call: sends a request and checks the response.
    """

    def __init__(self, call: Callable[..., httpx.Response]) -> None:
        self._call = call

    def report(self, wanted: UsageRequest) -> UsageReport:
        """Sum tokens and costs."""
        params = wanted.model_dump(mode="json", exclude_none=True)
        return UsageReport.model_validate(self._call("GET", "/v1/usage", params=params).json())

    def patterns(self, wanted: PatternsRequest) -> UsagePatterns:
        """Look at how passages are read over and over."""
        params = wanted.model_dump(mode="json", exclude_none=True)
        return UsagePatterns.model_validate(self._call("GET", "/v1/usage/patterns", params=params).json())
