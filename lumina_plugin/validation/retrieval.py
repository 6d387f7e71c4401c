"""Average precision of crossed songs: are those of one composition found first, or those of one production?

Every song of a grid, compositions times productions, is a query against all others. Songs that share neither, and
songs that share what is not asked for, are all wrong answers.
"""

import typing as tp

import numpy as np
import numpy.typing as npt

from ..errors import LuminaError
from ..separation import FACTOR, OTHER, ChannelFigures, Estimate
from .truth import FloatArray

RESAMPLES = 2000


def average_precision(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> float:
    """AP = Σ (R_n - R_{n-1}) · P_n over the n distinct scores from the highest down; equal scores count as one step.

    Args:
        scores (array): [N]. relevant (array): [N], True for right answers; at least one.
    """
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    order = np.argsort(-values, kind='stable')
    found = np.cumsum(right[order])
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)  # of each run of equal scores
    recall, precision = found[last] / found[-1], found[last] / (last + 1)
    return float((np.diff(recall, prepend=0.) * precision).sum())


def chance_precision(relevant: int, songs: int) -> float:
    """Mean AP over all orders of N songs of which R are right: (H_N + (R - 1)/(N - 1) · (N - H_N))/N, with the
    harmonic number H_N."""
    if songs < 2:
        return 1.
    harmonic = float((1 / np.arange(1, songs + 1)).sum())
    return (harmonic + (relevant - 1) / (songs - 1) * (songs - harmonic)) / songs


def precision_of_queries(scores: npt.ArrayLike, labels: npt.ArrayLike) -> FloatArray:
    """Chance-corrected AP, (AP - chance)/(1 - chance), of each song as a query against all others.

    Args:
        scores (array): [N, N]; a song's score with itself is left out. labels (array): [N], equal ones are right.
    Returns:
        array: [N]; 0 is chance, 1 is perfect. NaN where no other song has a query's label.
    """
    given, of = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    found = np.full(len(of), np.nan)
    for query in range(len(of)):
        others = np.arange(len(of)) != query
        right = of[others] == of[query]
        if right.any() and not right.all():
            chance = chance_precision(int(right.sum()), len(right))
            found[query] = (average_precision(given[query, others], right) - chance) / (1 - chance)
    return found


class Retrieval(tp.NamedTuple):
    """What a channel finds, chance-corrected.

    Args:
        composition, production (Estimate): AP of songs of the same composition, of the same production.
        composition_lead, production_lead (Estimate): composition - `FACTOR` · production, and the reverse: above 0
            where a channel finds one so many times better than the other.
    """
    composition: Estimate
    production: Estimate
    composition_lead: Estimate
    production_lead: Estimate

    def figures(self, kept: str) -> ChannelFigures:
        """As `separation.verdict` takes them, for a channel that is to find 'composition' or 'production'."""
        return ChannelFigures(getattr(self, kept), getattr(self, OTHER[kept]), getattr(self, f'{kept}_lead'))


def retrieval(scores: npt.ArrayLike, compositions: npt.ArrayLike, productions: npt.ArrayLike, seed: int = 0
              ) -> Retrieval:
    """Both APs of crossed songs, with bootstrap intervals over compositions and productions.

    Compositions and productions are drawn again, independently, and a query counts as often as both of its own were
    drawn together (the pigeonhole bootstrap, Owen 2007): songs of one composition are no independent trials.

    Args:
        scores (array): [N, N] of each song as a query against each song.
        compositions, productions (array): [N], what each song is.
    Raises:
        LuminaError: where no composition has two productions, or the reverse.
    """
    first, second = (precision_of_queries(scores, labels) for labels in (compositions, productions))
    if np.isnan(first).all() or np.isnan(second).all():
        raise LuminaError("Crossed songs need at least two compositions in two productions each; give more.")
    rows, columns = (np.unique(np.asarray(labels), return_inverse=True)[1] for labels in (compositions, productions))
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
             for count in (rows.max() + 1, columns.max() + 1)]
    weights = np.concatenate([np.ones((1, len(rows))), drawn[0][:, rows] * drawn[1][:, columns]])  # [1 + resamples, N]
    composition, production = (_means(weights, values) for values in (first, second))
    return Retrieval(*(_estimate(values) for values in (
        composition, production, composition - FACTOR * production, production - FACTOR * composition)))


def _means(weights: FloatArray, values: FloatArray) -> FloatArray:
    """Weighted means of values [N] that are known, [resamples]."""
    known = ~np.isnan(values)
    total = weights[:, known].sum(1)
    return np.divide(weights[:, known] @ values[known], total, out=np.full(len(total), np.nan), where=total > 0)


def _estimate(values: FloatArray) -> Estimate:
    """Of the means of all queries, which come first, and of their resamples."""
    low, high = np.nanquantile(values[1:], [.025, .975])
    return Estimate(float(values[0]), float(low), float(high))
