"""Medians and adjusted p-values of numbers of which several processes hold a part each: exact, and without moving them.

A process tells the others only what they cannot do without. Of a median: every so manieth of its numbers in ascending
order, which leaves few that could be it, and then those few. Of p-values, which are counts and repeat themselves: the
different ones, and how often it has each.

All processes call these functions together. `gather` gives what every process gives, by rank, to all of them
(`Workers.gather`); without it the numbers at hand are all there are.
"""

import typing as tp

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[tp.Any]
Gather = tp.Callable[[tp.Any], tp.List[tp.Any]]

PLACES = 1024  # of a process' ordered numbers, that the others are told first


def alone(value: tp.Any) -> tp.List[tp.Any]:
    """The `gather` of one process."""
    return [value]


def medians(rows: npt.ArrayLike, gather: tp.Optional[Gather] = None) -> Array:
    """The median over all processes of each row, `[R, n]` here, `[R]` everywhere; 0 where nobody has a number.

    To the bit what `np.median` of the joined rows gives.
    """
    values = np.asarray(rows)
    if gather is None:
        return np.median(values, axis=1) if values.shape[1] else np.zeros(len(values), values.dtype)
    ordered = np.sort(values, axis=1)
    count = ordered.shape[1]
    places = np.unique(np.linspace(0, count - 1, min(count, PLACES)).astype(np.int64))
    told = [(size, where, some) for size, where, some in gather((count, places, ordered[:, places])) if size]
    total = sum(size for size, _, _ in told)
    if not total:
        return np.zeros(len(values), values.dtype)
    middle = ((total - 1) // 2, total // 2)
    ends = [_bracket([(where, some[row]) for _, where, some in told], middle) for row in range(len(ordered))]
    between = gather([_between(row, *end) for row, end in zip(ordered, ends, strict=True)])
    return np.array([_middle(parts, middle) for parts in zip(*between, strict=True)])


def _bracket(parts: tp.Sequence[tp.Tuple[Array, Array]], middle: tp.Tuple[int, int]) -> tp.Tuple[tp.Any, tp.Any]:
    """Two numbers between which lie those at the two ranks, from some places of each part and the numbers there."""
    known = np.unique(np.concatenate([some for _, some in parts]))
    below = sum(np.append(where, where[-1] + 1)[np.searchsorted(some, known, side='left')]
                for where, some in parts)  # no more than so many numbers lie below each known one
    reached = sum(np.insert(where + 1, 0, 0)[np.searchsorted(some, known, side='right')]
                  for where, some in parts)  # no fewer than so many lie at or below it
    return known[below <= middle[0]][-1], known[reached > middle[1]][0]


def _between(row: Array, low: tp.Any, high: tp.Any) -> tp.Tuple[int, Array, Array]:
    """How many of ascending numbers lie below `low`; and those up to `high`, each once, with how often it is there."""
    first, last = np.searchsorted(row, low, side='left'), np.searchsorted(row, high, side='right')
    return int(first), *np.unique(row[first:last], return_counts=True)


def _middle(parts: tp.Sequence[tp.Tuple[int, Array, Array]], middle: tp.Tuple[int, int]) -> tp.Any:
    """The mean of the numbers at the two ranks, from every process' `_between`."""
    values, counts = (np.concatenate(column) for column in list(zip(*parts, strict=True))[1:])
    order = np.argsort(values, kind='stable')
    reached = sum(first for first, _, _ in parts) + np.cumsum(counts[order])
    return values[order][np.searchsorted(reached, middle, side='right')].mean()


def q_values(p: npt.ArrayLike, gather: Gather = alone) -> Array:
    """Benjamini and Hochberg's adjusted p-values of Q queries over the songs of all processes: `[Q, n]` -> `[Q, n]`.

    What `calibration.q_values` gives for all songs at once.
    """
    values = np.asarray(p, dtype=np.float64)
    told = gather([np.unique(row, return_counts=True) for row in values])
    return np.array([_adjusted(row, parts) for row, *parts in zip(values, *told, strict=True)]).reshape(values.shape)


def _adjusted(p: Array, parts: tp.Sequence[tp.Tuple[Array, Array]]) -> Array:
    """Those of one query's p `[n]`, from every process' different ones and how often it has each."""
    if not len(p):
        return p
    every, place = np.unique(np.concatenate([different for different, _ in parts]), return_inverse=True)
    ranks = np.cumsum(np.bincount(place, np.concatenate([times for _, times in parts])))  # [different], the last: N
    lowest = np.minimum.accumulate((every * (ranks[-1] / ranks))[::-1])[::-1]
    return np.asarray(np.minimum(lowest, 1.)[np.searchsorted(every, p)])
