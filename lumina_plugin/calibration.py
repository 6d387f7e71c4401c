"""What chance alone does: an empirical null of scores from songs outside of the catalogue, and p-values against it.

The printed gate takes the noise for isotropic. Here it is measured: outside songs owe nobody, so that whatever they
score against the catalogue is chance. Scores become comparable by being standardised twice:

    by song     mean and sd of that song's scores over the outside songs, each query's median taken off first: a song
                that is found whatever is asked (a hub) is not evidence
    by query    mean and sd (no less than 1) over the N songs of what that gives: a query that is alike to everything
                owes nobody for that, and one whose scores scatter more widely than outside songs' proves nothing by it

Then all n·N of them, of n outside songs, are one pool: p = (1 + how many lie at or above z) / (1 + n·N). It is the pool
that makes p as small as a lone source among N songs needs.

Several processes with some of the songs each make one null together: medians, the pooled variance, a query's mean and
sd and the pool are those of all songs (`joint`).
"""

import dataclasses
import typing as tp

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control

from .errors import LuminaError
from .joint import Gather, alone, medians
from .scoring import FloatArray

MIN_SONGS = 64  # outside songs, below which a song's own mean and sd are guesses
PRIOR = 16.  # songs' worth of the pooled variance in each song's own
EXACT_POOL = 1 << 20  # numbers of a pool that are kept as they are
EXACT_TAIL, STEPS = 1 << 18, 1 << 12  # of a larger one: its highest, and so many steps for the rest
QuerySpread = tp.Tuple[FloatArray, FloatArray]  # mean and sd of a query's deviations over the songs
_TINY = 1e-12  # spread, relative to the largest score, below which only rounding is left


def songs_needed(rate: float) -> int:
    """Outside songs that a gate of this rate takes: fewer than 1/rate, and the smallest p pays no lone source."""
    return max(MIN_SONGS, int(np.ceil(1 / rate - 1e-9)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Pool:
    """Numbers ascending: the highest as they are, and every so manieth of the rest."""
    size: int
    tail: npt.NDArray
    rest: npt.NDArray  # of position 0, step, 2·step …
    step: int

    @classmethod
    def of(cls, numbers: npt.NDArray, whole: bool) -> '_Pool':
        """All of them with `whole`, else `EXACT_TAIL` and `STEPS` of them."""
        ordered = np.sort(numbers, axis=None)
        exact = len(ordered) if whole else min(len(ordered), EXACT_TAIL)
        rest = ordered[:len(ordered) - exact]
        step = max(1, len(rest) // STEPS)
        return cls(len(ordered), ordered[len(ordered) - exact:].copy(), rest[::step].copy(), step)

    def above(self, z: FloatArray) -> npt.NDArray[np.int64]:
        """How many lie at or above each z, any shape; never too few."""
        above = len(self.tail) - np.searchsorted(self.tail, z, side='left')
        if len(self.rest):  # the step below z: those above it are at least as many as those above z
            place = np.maximum(np.searchsorted(self.rest, z, side='right') - 1, 0) * self.step
            place = np.where(z < self.rest[0], 0, place)
            above = np.where(z > self.tail[0], above, self.size - place)
        return above


class Null:
    """The null distribution of one channel of a store.

    Args:
        scores: `[n, N]` of n outside songs against the N songs, as a report's own score.
        gather: where these N songs are one process' part of all: gives what every process gives to all of them
            (`Workers.gather`), and all make their nulls together.
    Attributes:
        outside (int): n. smallest (float): The smallest p-value there can be.
    Raises:
        LuminaError: for fewer than `MIN_SONGS` outside songs, or a score that is not finite.
    """

    def __init__(self, scores: npt.ArrayLike, gather: tp.Optional[Gather] = None):
        array = np.asarray(scores)
        self.outside = len(array)
        if self.outside < MIN_SONGS:
            raise LuminaError(f"Chance was to be measured by {self.outside} outside songs, but takes at least "
                              f"{MIN_SONGS}; name more by `lumina calibrate … --songs FOLDER`.")
        if not np.isfinite(array).all():
            raise LuminaError("An outside song's score is not a finite number; make the null again by `lumina "
                              "calibrate`.")
        array = array - medians(array, gather)[:, None]
        gather = gather or alone
        self._mean = array.mean(axis=0, dtype=np.float64)  # [N]
        squares = np.square(array - self._mean).sum(axis=0, dtype=np.float64)
        self._floor = _TINY * max(gather(float(np.abs(array).max(initial=0.)))) or 1.
        self._sd = self._shrunk(squares, self.outside, _mean_of_all(squares.sum(), len(squares), gather))
        left_out = self._left_out(array, squares, gather)
        z = _standardised(left_out, *_spread(left_out, gather))
        self.pool = sum(gather(z.size))
        self._pools = gather(_Pool.of(z, self.pool <= EXACT_POOL))
        self.smallest = 1 / (1 + self.pool)

    def _shrunk(self, squares: FloatArray, count: int, usual: FloatArray) -> FloatArray:
        """A song's sd [N] from its sum of squares over so many queries, drawn towards that of all songs, which have
        `usual` such a sum."""
        sd = np.sqrt((squares + PRIOR * usual / (count - 1)) / (count - 1 + PRIOR))
        return np.maximum(sd, self._floor)

    def _left_out(self, array: npt.NDArray, squares: FloatArray, gather: Gather) -> npt.NDArray:
        """Deviations [n, N] of the outside songs themselves, each by the mean and sd of the others: by its own, as part
        of them, none could lie far out, and every real query would look remarkable."""
        n, found = self.outside, np.empty_like(array)

        def others(row: npt.NDArray) -> FloatArray:
            return np.maximum(squares - np.square(row - self._mean) * (n / (n - 1)), 0.)
        usual = _mean_of_all(np.array([others(row).sum() for row in array]), len(squares), gather)
        for index, row in enumerate(array):
            found[index] = (row - self._mean) * (n / (n - 1)) / self._shrunk(others(row), n - 1, usual[index])
        return found

    def deviations(self, scores: npt.ArrayLike, centre: tp.Union[None, float, FloatArray] = None,
                   index: tp.Union[slice, npt.NDArray[np.int64]] = slice(None)) -> FloatArray:
        """Scores of queries [..., N], standardised by song: how many sd above what each song scores by chance.

        Args:
            centre: the queries' medians over all N songs, where `scores` are of the songs `index` alone.
        """
        values = np.asarray(scores, dtype=np.float64)
        if centre is None:
            centre = np.median(values, axis=-1, keepdims=True) if values.shape[-1] else 0.
        return (values - centre - self._mean[index]) / self._sd[index]

    def z(self, scores: npt.ArrayLike, centre: tp.Union[None, float, FloatArray] = None,
          index: tp.Union[slice, npt.NDArray[np.int64]] = slice(None), spread: tp.Optional[QuerySpread] = None,
          gather: tp.Optional[Gather] = None) -> FloatArray:
        """Scores of queries [..., N], standardised by song and by query.

        Args:
            centre: as for `deviations`. spread: the deviations' own, over all N songs, where `scores` are of the songs
                `index` alone. gather: where each process has some of the songs and `spread` is not known.
        """
        found = self.deviations(scores, centre, index)
        return _standardised(found, *(_spread(found, gather or alone) if spread is None else spread))

    def p_values(self, z: npt.ArrayLike) -> FloatArray:
        """(1 + how many of the pool lie at or above z) / (1 + n·N), any shape; never too small."""
        values = np.asarray(z, dtype=np.float64)
        above = sum(pool.above(values) for pool in self._pools)
        return np.asarray((1. + above) / (1. + self.pool), dtype=np.float64)

    def at_least(self, z: npt.ArrayLike) -> FloatArray:
        """How many of the n·N numbers of the pool lie at or above each z, any shape; exact where `p_values` is."""
        return np.asarray(self.p_values(z) * (1. + self.pool) - 1., dtype=np.float64)

    def reaching(self, p: float) -> float:
        """The z that a song must exceed for a p-value of at most `p`; the pool's highest where p is rarer than it can
        tell."""
        known = np.unique(np.concatenate([part for pool in self._pools for part in (pool.tail, pool.rest)]))
        beyond = sum(pool.above(np.nextafter(known, np.inf)) for pool in self._pools)
        allowed = max(0, int(np.floor(p * (1 + self.pool) * (1 + 1e-12))) - 1)
        return float(known[np.argmax(beyond <= allowed)])


def spread_of_sums(total: npt.ArrayLike, squares: npt.ArrayLike, count: int) -> QuerySpread:
    """Mean and sd from a sum and a sum of squares of so many numbers: any shape -> the same, twice."""
    mean = np.asarray(total, dtype=np.float64) / max(count, 1)
    return mean, np.sqrt(np.maximum(np.asarray(squares, dtype=np.float64) / max(count, 1) - np.square(mean), 0.))


def _spread(rows: FloatArray, gather: Gather) -> QuerySpread:
    """Mean and sd of each row over the songs of every process: [..., N] -> [..., 1], twice."""
    parts = gather((rows.sum(axis=-1, keepdims=True, dtype=np.float64),
                    np.square(rows).sum(axis=-1, keepdims=True, dtype=np.float64), rows.shape[-1]))
    return spread_of_sums(*(sum(column) for column in zip(*parts, strict=True)))


def _standardised(rows: FloatArray, mean: FloatArray, sd: FloatArray) -> FloatArray:
    """(row - mean)/max(sd, 1): outside songs' deviations have an sd of about 1, and a query that scatters less, as
    silence does, proves nothing by that."""
    return np.asarray((rows - mean) / np.maximum(sd, 1.))


def _mean_of_all(sums: npt.ArrayLike, songs: int, gather: Gather) -> FloatArray:
    """Sums over the songs of every process, divided by how many songs that are: any shape -> the same."""
    every, count = (sum(column) for column in zip(*gather((np.asarray(sums), songs)), strict=True))
    return np.asarray(every / max(count, 1))


def q_values(p: npt.ArrayLike) -> FloatArray:
    """Benjamini and Hochberg's adjusted p-values over the N songs of one query: `[N]` -> `[N]`."""
    values = np.asarray(p, dtype=np.float64)
    return np.asarray(false_discovery_control(values), dtype=np.float64) if len(values) else values


def let_through(p: npt.ArrayLike, rate: float, tests: int) -> npt.NDArray[np.bool_]:
    """Which p-values Benjamini and Hochberg's step-up procedure rejects at `rate`, row by row: [..., K] -> [..., K].

    Args:
        tests: how many songs there are; those that are not among these K count as p = 1.
    """
    values = np.asarray(p, dtype=np.float64)
    if not values.shape[-1]:
        return np.zeros(values.shape, dtype=bool)
    ordered = np.sort(values, axis=-1)
    met = ordered <= rate * np.arange(1, values.shape[-1] + 1) / tests
    limit = np.where(met, ordered, -1.).max(axis=-1, keepdims=True)
    return values <= limit
