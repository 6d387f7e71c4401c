"""How well scores rank what is known to be right: ranks, NDCG, and what a ranking by chance reaches."""

import typing as tp

import numpy as np
import numpy.typing as npt
from scipy import stats

from .lds import spearman
from .truth import FloatArray

SHUFFLES = 400


def ranks(scores: npt.ArrayLike) -> FloatArray:
    """Rank of each score in its row [Q, N], 1 the highest; equal ones share the mean of their ranks."""
    return np.asarray(stats.rankdata(-np.asarray(scores, dtype=np.float64), axis=1), dtype=np.float64)


def ranks_of(scores: npt.ArrayLike, columns: tp.Sequence[int]) -> FloatArray:
    """Rank of one column per row, [Q, N] and [Q] -> [Q]."""
    return ranks(scores)[np.arange(len(columns)), np.asarray(columns, dtype=np.int64)]


def ndcg(scores: npt.ArrayLike, gains: npt.ArrayLike) -> FloatArray:
    """Normalised discounted cumulative gain of each row (Järvelin and Kekäläinen 2002), [Q, N] twice -> [Q].

    Σ gain/log₂(1 + rank), divided by what the best order reaches; equal scores share their discounts. Gains below 0
    count as 0; a row without any gain is NaN.
    """
    given, gain = np.asarray(scores, dtype=np.float64), np.maximum(np.asarray(gains, dtype=np.float64), 0.)
    discount = 1 / np.log2(2 + np.arange(given.shape[1]))
    first, last = (np.asarray(stats.rankdata(-given, method, axis=1), dtype=np.int64) for method in ('min', 'max'))
    sums = np.concatenate([[0.], np.cumsum(discount)])
    shared = (sums[last] - sums[first - 1]) / (last - first + 1)  # over the places that equal scores hold together
    best = (-np.sort(-gain, axis=1) * discount).sum(1)
    return np.divide((gain * shared).sum(1), best, out=np.full(len(given), np.nan), where=best > 0)


def top_agrees(scores: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """1 where the column with the highest truth has the highest score, and no other has it too; [Q, N] twice -> [Q]."""
    right = np.asarray(truth, dtype=np.float64).argmax(1)
    return (ranks_of(scores, right.tolist()) == 1).astype(np.float64)


def row_spearman(scores: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """Rank correlation of each row, [Q, N] twice -> [Q]; 0 where one is constant."""
    return spearman(np.asarray(scores, dtype=np.float64).T, np.asarray(truth, dtype=np.float64).T)


class Chance(tp.NamedTuple):
    """What scores that know nothing reach on average over queries: the mean, and 2.5 % and 97.5 % of all draws."""
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]'


def chance(measure: tp.Callable[[FloatArray, FloatArray], FloatArray], truth: npt.ArrayLike, seed: int = 0) -> Chance:
    """Chance level of a measure on a truth [Q, N]: its mean over queries where each one's columns are shuffled."""
    given = np.asarray(truth, dtype=np.float64)
    rng = np.random.default_rng(seed)
    order = np.tile(np.arange(given.shape[1], dtype=np.float64), (SHUFFLES * len(given), 1))
    values = measure(rng.permuted(order, axis=1), np.tile(given, (SHUFFLES, 1))).reshape(SHUFFLES, -1)
    known = values[:, np.isfinite(values).all(0)]  # what one query's measure cannot be taken of, no order changes
    if not known.size:
        return Chance(np.nan, np.nan, np.nan)
    low, high = np.quantile(known.mean(1), [.025, .975])
    return Chance(float(known.mean()), float(low), float(high))
