"""How much of a method's attribution lies on how few songs.

Methods measure on scales of their own: cosines of embeddings are nearly all positive, distances all negative. So each
query's scores count in two ways: as they are, what is below 0 left out, and by what they exceed the mean of the songs.
"""

import typing as tp

import numpy as np
import numpy.typing as npt

from ..validation.lds import RESAMPLES, Interval, interval
from ..validation.truth import FloatArray

KINDS = {'above the mean': True, 'as they are': False}  # what is subtracted from a query's scores beforehand
TOPS = (1, 5, 10)  # songs whose share is told


class Concentration(tp.NamedTuple):
    """How a method's positive scores are spread over songs, mean over the queries that have any.

    Args:
        queries (int): How many have any. curve (array): Share of the top k songs, k = 1..N, [N].
        low, high (array): Its 95 % bootstrap interval over queries, [N].
        tops (dict): Share of the top k songs, by k. gini (Interval): 0 where all songs have the same, up to 1.
    """
    queries: int
    curve: FloatArray
    low: FloatArray
    high: FloatArray
    tops: tp.Dict[int, Interval]
    gini: Interval


def positive_mass(scores: npt.ArrayLike, centred: bool) -> FloatArray:
    """What counts of scores [Q, N]: their positive part, less the mean of each row beforehand or not."""
    given = np.asarray(scores, dtype=np.float64)
    return np.maximum(given - given.mean(1, keepdims=True) if centred else given, 0.)


def curves(mass: FloatArray) -> FloatArray:
    """Share of the top k songs of each row, [Q, N] -> [Q, N]; NaN where a row has no mass."""
    total = mass.sum(1, keepdims=True)
    sums = np.cumsum(-np.sort(-mass, axis=1), axis=1)
    return np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)


def gini(mass: FloatArray) -> FloatArray:
    """Gini coefficient of each row, [Q, N] -> [Q], in [0, 1 - 1/N]; NaN where a row has no mass."""
    count = mass.shape[1]
    ranked = np.sort(mass, axis=1)
    total = ranked.sum(1)
    weighed = ranked @ (2. * np.arange(1, count + 1) - count - 1)
    return np.divide(weighed, count * total, out=np.full(len(mass), np.nan), where=total > 0)


def concentration(scores: npt.ArrayLike, centred: bool) -> Concentration:
    """Of scores [Q, N]."""
    mass = positive_mass(scores, centred)
    known = mass.sum(1) > 0
    count = mass.shape[1]
    if not known.any():
        empty, none = np.full(count, np.nan), Interval(np.nan, np.nan, np.nan)
        return Concentration(0, empty, empty, empty, dict.fromkeys(TOPS, none), none)
    shares = curves(mass[known])
    low, high = _bounds(shares)
    tops = {k: interval(shares[:, min(k, count) - 1]) for k in TOPS}
    return Concentration(int(known.sum()), shares.mean(0), low, high, tops, interval(gini(mass[known])))


def _bounds(values: FloatArray, seed: int = 0) -> tp.Tuple[FloatArray, FloatArray]:
    """2.5 % and 97.5 % quantiles of the means of rows [n, N] drawn again, [N] each; the draws of `interval`."""
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    weights = np.stack([np.bincount(row, minlength=len(values)) for row in drawn]) / len(values)  # [RESAMPLES, n]
    low, high = np.quantile(weights @ values, [.025, .975], axis=0)
    return low, high


def picture(by_method: tp.Mapping[str, tp.Mapping[str, Concentration]]) -> bytes:
    """Curves of all methods, one panel per kind of mass; PNG.

    Args:
        by_method (mapping): By method and kind.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from ..validation.results import png
    figure = Figure(figsize=(11.5, 4.6), layout='constrained')
    axes = figure.subplots(1, len(KINDS), sharey=True)
    colours, styles = colormaps['tab10'], ('-', '--', ':')
    for axis, kind in zip(axes, KINDS, strict=True):
        for place, (name, found) in enumerate(by_method.items()):
            one, count = found[kind], len(found[kind].curve)
            ranks, colour = np.arange(1, count + 1), colours(place % 10)
            about = name if one.queries else f'{name} (nothing positive)'
            axis.plot(ranks, one.curve, color=colour, linestyle=styles[place // 10 % 3], linewidth=1.7, label=about)
            axis.fill_between(ranks, one.low, one.high, color=colour, alpha=.12, linewidth=0)
            axis.plot(ranks, ranks / count, color='0.6', linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        axis.set_title(f'scores {kind}', fontsize=10)
        axis.set_xscale('log')
        axis.set_xlim(1, count)
        axis.set_xticks(*[[k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= count]] * 2)
        axis.minorticks_off()
        axis.set_ylim(0, 1.005)
        axis.grid(color='0.93', linewidth=.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel('share of the positive scores', fontsize=9)
    axes[-1].legend(fontsize=8.5, frameon=False, loc='center left', bbox_to_anchor=(1.01, .5))
    figure.supxlabel('songs, best first; mean over queries with 95 % interval, dotted: all songs alike', fontsize=9)
    return png(figure)
