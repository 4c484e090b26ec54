"""How much else was read between two reads of the same thing: exact, for any size of cache at once.

A cache that evicts what was read least recently finds a thing again if, and only if, it has room for the thing and for
everything else that was read since (R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems
Journal 9(2), 1970). So one pass over a log gives the hit rate of every size.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEVER", "Integers", "stack_distances"]

NEVER = -1  # it was not read before

Integers = NDArray[np.int64]


def stack_distances(things: Integers, sizes: Integers) -> Integers:
    """Return for each read the size of the different things read since the last read of the same, itself included.

    Takes O(n log^2 n) in numpy: a second for some hundred thousand reads.

    Args:
        things: what was read, in order [n].
        sizes: of each of them, above 0; always the same for the same thing [n].

    Returns:
        Distances [n]; `NEVER` for a thing that was not read before.
    """
    before = _previous(things)
    # With p(i) the previous read of the thing of read i: a read j counts for i where p(i) < j < i and p(j) <= p(i), as
    # the first of its thing since. All j up to p(i) fulfil the second condition too, so they are taken off as a whole.
    sums = np.concatenate([[0], np.cumsum(sizes)])
    distances = _sums_below(before, sizes) - sums[before + 1] + sizes
    return np.where(before == NEVER, NEVER, distances)


def _previous(things: Integers) -> Integers:
    """Return the index of the previous read of the same thing, or `NEVER`."""
    order = np.argsort(things, kind="stable")
    same = things[order[1:]] == things[order[:-1]]
    before = np.full(len(things), NEVER, np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before


def _sums_below(keys: Integers, weights: Integers) -> Integers:
    """Return for each i the sum of weights[j] over all j < i with keys[j] <= keys[i].

    Goes over pairs of neighbouring blocks of 1, 2, 4, ... reads: each read of a right block gets the weights of the
    left block's reads whose key is not larger. Each pair of reads meets in exactly one pair of blocks.
    """
    n = len(keys)
    positions = np.arange(n)
    by_key = np.argsort(keys, kind="stable")
    result = np.zeros(n, np.int64)
    for level in range(max(n - 1, 0).bit_length()):
        order = by_key[np.argsort(positions[by_key] >> (level + 1), kind="stable")]  # by block pair, then by key
        is_left = (order >> level) & 1 == 0
        passed = np.cumsum(np.where(is_left, weights[order], 0))
        first = order >> (level + 1) << (level + 1)  # each pair's sum begins anew
        earlier = np.concatenate([[0], passed])[first]
        result[order] += np.where(is_left, 0, passed - earlier)
    return result
