"""Linear datamodeling score: do the scores foretell what retraining does?

For a query, the scores of the songs in a random half of the catalogue are summed: that is what a method foretells of a
model trained on that half. LDS is the Spearman correlation, over halves, of these sums with the negative losses of the
models that were really trained (Park et al. 2023, TRAK, definition 2.3; Ilyas et al. 2022).
"""

import collections
import math
import typing as tp

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..errors import LuminaError
from .truth import FloatArray, GroundTruth

RESAMPLES = 2000


class HalfLosses(tp.NamedTuple):
    """What the retrained halves say of some queries.

    Args:
        members (array): 1 where a half holds a song, [H, N].
        losses (array): Of each query under each half, mean over its seeds, [H, Q].
        ceiling (array): Per query, the correlation that perfect knowledge of the expected losses would reach, as far as
            halves that were trained twice tell it; NaN without such. [Q]
    """
    members: FloatArray
    losses: FloatArray
    ceiling: FloatArray


def half_losses(truth: GroundTruth, columns: tp.Sequence[int], masked: bool) -> HalfLosses:
    """Losses of queries under the halves.

    The noise ceiling is the square root of a loss's reliability: the rank correlation r between seeds, and for the mean
    of s seeds by Spearman and Brown s·r/(1 + (s - 1)·r).

    Raises:
        LuminaError: when the truth holds fewer than two halves.
    """
    rows = collections.defaultdict(list)
    for row in truth.rows('half'):
        rows[truth.models[row].group].append(row)
    if len(rows) < 2:
        raise LuminaError(f"This ground truth holds {len(rows)} halves; LDS needs at least two, and tells little "
                          "below thirty.")
    losses = np.stack([truth.losses(seeds, columns, masked).mean(0) for seeds in rows.values()])  # [H, Q]
    members = truth.members([seeds[0] for seeds in rows.values()])
    return HalfLosses(members, losses, _ceilings(truth, list(rows.values()), columns, masked))


def _ceilings(truth: GroundTruth, rows: tp.Sequence[tp.Sequence[int]], columns: tp.Sequence[int], masked: bool
              ) -> FloatArray:
    twice = [seeds for seeds in rows if len(seeds) > 1]
    if len(twice) < 3:
        return np.full(len(columns), np.nan)
    first, second = (truth.losses([seeds[i] for seeds in twice], columns, masked) for i in (0, 1))
    r = spearman(first, second)
    seeds = sum(len(one) for one in rows) / len(rows)
    reliability = max(0., float(np.mean(r)))  # of one query it is too noisy to take a root of
    return np.full(len(columns), math.sqrt(seeds * reliability / (1 + (seeds - 1) * reliability)))


def spearman(first: FloatArray, second: FloatArray) -> FloatArray:
    """Rank correlation of each column of two arrays [H, Q]: [Q], 0 where one is constant."""
    ranks = [np.asarray(stats.rankdata(values, axis=0)) for values in (first, second)]
    centred = [rank - rank.mean(0) for rank in ranks]
    lengths = [np.sqrt(np.square(one).sum(0)) for one in centred]
    scale: FloatArray = lengths[0] * lengths[1]
    together: FloatArray = (centred[0] * centred[1]).sum(0)
    return np.where(scale > 0, together / np.where(scale > 0, scale, 1.), 0.)


def lds(scores: npt.ArrayLike, halves: HalfLosses) -> FloatArray:
    """LDS of each query.

    Args:
        scores (array): Of each query against each song, [Q, N]; more means more influence.
    Returns:
        array: [Q], in [-1, 1].
    """
    foretold = halves.members @ np.asarray(scores, dtype=np.float64).T  # [H, Q]
    return spearman(foretold, -halves.losses)


def own_lds(scores: npt.ArrayLike, halves: HalfLosses) -> FloatArray:
    """LDS of what is each query's own: what a half of the songs does to all queries alike is taken out.

    What is foretold and what retraining says are brought to spread 1 over the halves, and each query's is compared less
    the mean of the other queries'. Songs that are good for everybody foretell losses, but say nothing of who shaped
    what; scores that look at no query come to 0 here.

    Args:
        scores (array): As `lds`, of at least two queries.
    Returns:
        array: [Q], in [-1, 1].
    """
    foretold = halves.members @ np.asarray(scores, dtype=np.float64).T  # [H, Q]
    return spearman(_own(foretold), -_own(halves.losses))


def _own(values: FloatArray) -> FloatArray:
    """Columns [H, Q] at mean 0 and spread 1, less the mean of the others."""
    spread = values.std(0)
    unit = (values - values.mean(0)) / np.where(spread > 0, spread, 1.)
    others = (unit.sum(1, keepdims=True) - unit) / (values.shape[1] - 1)
    return np.asarray((unit - others).round(9))  # equal columns leave nothing, not rounding errors


class Interval(tp.NamedTuple):
    """A mean with its 95 % bootstrap interval."""
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]'


def interval(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Mean of values [n] and the 2.5 % and 97.5 % quantiles of means of n values drawn from them again."""
    given = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = given[rng.integers(0, len(given), (RESAMPLES, len(given)))].mean(1)
    low, high = np.quantile(means, [.025, .975])
    return Interval(float(given.mean()), float(low), float(high))
