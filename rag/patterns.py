"""How passages are read over and over: popularity, reuse distance, and what a cache of another size would find.

The forecast is for the device's memory and for reuse in any order. Where only exact reuse is allowed, fewer passages
are found; where KV is also kept on disk, what memory does not have is loaded from there.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from rag.retrieval_log import Read
from rag.schemas.usage import CacheForecast, PassageUse, PopularityPoint, ReusePoint, UsagePatterns
from rag.stack_distance import NEVER, Integers, stack_distances

__all__ = ["Owner", "usage_patterns"]

TOP = 10
STEPS = (1, 2, 5)  # of the popularity curve's points, and powers of ten of them
SHORTEST = 6  # power of two of the shortest reuse distance that is told apart
HALVINGS = 8  # of the cache's size, from all passages down


class Owner(NamedTuple):
    """Where a passage is from."""

    uri: str
    collection: str


class _Reads(NamedTuple):
    passages: Integers  # [n] ids
    sizes: Integers  # [n] tokens of whole blocks
    tokens: Integers  # [n]


def usage_patterns(
    reads: Sequence[Read],
    owners: Callable[[Iterable[int]], dict[int, Owner]],
    *,
    block_size: int,
    cache_tokens: int | None,
) -> UsagePatterns:
    """Look at how answers have read passages.

    Args:
        reads: of the answers, in order.
        owners: tells where passages are from that are still there.
        block_size: KV comes in whole blocks of so many tokens.
        cache_tokens: for how many tokens the engine has room; None where that is not known.
    """
    flat = _flatten(reads, block_size)
    distances = stack_distances(flat.passages, flat.sizes)
    again = distances != NEVER
    _, first = np.unique(flat.passages, return_index=True)
    counts = _documents(flat.passages, owners)
    largest = max((sum(-(-n // block_size) * block_size for _, n in read.passages) for read in reads), default=1)
    return UsagePatterns(
        answers=len(reads),
        since=_moment(reads[0].at) if reads else None,
        until=_moment(reads[-1].at) if reads else None,
        reads=len(flat.passages),
        passages=len(first),
        tokens=int(flat.sizes[first].sum()),
        popularity=_popularity([count for _, count in counts]),
        top=[
            PassageUse(uri=owner and owner.uri, collection=owner and owner.collection, reads=count)
            for owner, count in counts[:TOP]
        ],
        reuse_distance=_reuse(np.sort((distances - flat.sizes)[again])),
        forecast=_forecast(flat, distances, largest, cache_tokens),
        best_hit_rate=_share(flat.tokens[again].sum(), flat.tokens.sum()),
    )


def _flatten(reads: Sequence[Read], block_size: int) -> _Reads:
    pairs = np.array([pair for read in reads for pair in read.passages], np.int64).reshape(-1, 2)
    passages, tokens = pairs[:, 0], pairs[:, 1]
    _, index = np.unique(passages, return_inverse=True)
    latest = np.zeros(len(tokens), np.int64)
    latest[index] = tokens  # a passage that has changed its tokens counts as what it is now
    sizes = -(-latest[index] // block_size) * block_size
    return _Reads(passages, sizes, latest[index])


def _documents(
    passages: Integers, owners: Callable[[Iterable[int]], dict[int, Owner]]
) -> list[tuple[Owner | None, int]]:
    """Return documents by falling number of reads; one without owner is a passage that was deleted."""
    ids, counts = np.unique(passages, return_counts=True)
    known = owners(ids.tolist())
    reads: Counter[Owner | int] = Counter()
    for passage, count in zip(ids.tolist(), counts.tolist(), strict=True):
        reads[known.get(passage, passage)] += count
    return [(name if isinstance(name, Owner) else None, count) for name, count in reads.most_common()]


def _popularity(counts: Sequence[int]) -> list[PopularityPoint]:
    sums = np.cumsum(counts)
    wanted = {step * 10**power for power in range(len(str(len(counts)))) for step in STEPS} | {len(counts)}
    points = sorted(n for n in wanted if 0 < n <= len(counts))
    return [PopularityPoint(documents=n, share=_share(sums[n - 1], sums[-1])) for n in points]


def _reuse(distances: Integers) -> list[ReusePoint]:
    """Return the share of distances up to each of some lengths, which double."""
    if not len(distances):
        return []
    longest = max(int(distances[-1]).bit_length(), SHORTEST)
    lengths = [0, *(2**power for power in range(SHORTEST, longest + 1))]
    found = np.searchsorted(distances, lengths, side="right")
    return [ReusePoint(tokens=n, share=_share(k, len(distances))) for n, k in zip(lengths, found, strict=True)]


def _forecast(flat: _Reads, distances: Integers, largest: int, current: int | None) -> list[CacheForecast]:
    """Return hit rates of caches that hold from one answer's passages to all, and of the one that there is."""
    _, first = np.unique(flat.passages, return_index=True)
    everything = int(flat.sizes[first].sum())
    order = np.argsort(distances)
    found = np.concatenate([[0], np.cumsum(np.where(distances == NEVER, 0, flat.tokens)[order])])
    sizes = {everything >> halving for halving in range(HALVINGS)} | {everything * 3 >> h for h in range(2, HALVINGS)}
    sizes = {size for size in sizes if size >= largest} | ({current} if current else set())
    return [
        CacheForecast(
            cache_tokens=size,
            hit_rate=_share(found[np.searchsorted(distances[order], size, side="right")], flat.tokens.sum()),
            is_current=size == current,
        )
        for size in sorted(sizes)
    ]


def _share(part: float, whole: float) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
