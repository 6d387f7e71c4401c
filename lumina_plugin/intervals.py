"""How far shares depend on which chunks and which checkpoints there happen to be: bootstrap intervals.

Each resample (`resampling`) goes the whole way again: score, STS, gate, shares. All songs count in every one of them, a
block of songs at a time, so that memory hardly grows with the catalogue. A first look at all songs (matrix products and
comparisons) sums up what each resample divides, and finds the few songs that could be paid in any; only these are
looked at again. For the calibrated gate the first look counts, per resample, how many z lie above each of a few bounds.
That tells how many songs Benjamini and Hochberg's procedure can let through at most, and so who cannot be among them.

A query of three chunks at four checkpoints against a million songs takes 2.7 s of a processor (AMD EPYC) and 0.04 GiB a
channel, 0.27 s against 100,000, as `benchmarks/intervals.py` prints.
"""

import dataclasses
import typing as tp

import numpy as np
import numpy.typing as npt

from .calibration import Null, QuerySpread, spread_of_sums
from .resampling import BLOCK, RESAMPLES, Parts, Resamples, Some, draws_of, mixture_of
from .scoring import FloatArray
from .statistics import MIN_SONGS, ChannelStatistics, z_score

__all__ = ['LEVEL', 'RESAMPLES', 'Intervals', 'Parts', 'share_intervals']

LEVEL = 0.95
COARSE = 4  # each bound of the first look is for so many times as many songs let through as the next
EXACT_STEPS, STEPS = 4096, 64  # let through, up to so many songs are told apart; beyond, so many steps per doubling


@dataclasses.dataclass(frozen=True, eq=False)
class Intervals:
    """Shares' lower and upper ends `[K]`, of the songs `index`."""
    index: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray


def share_intervals(values: ChannelStatistics, null: tp.Optional[Null], parts: Parts, seed: int
                    ) -> tp.Optional[Intervals]:
    """Percentile intervals on a channel's shares, at 95 %, by 200 resamples; None where there is nothing to resample.

    Args:
        values: what the channel says of the query. null: by which its calibrated gate decides, if it does.
        seed (int): Of the draws.
    """
    if parts.counts == (1, 1) or len(values.score) < MIN_SONGS:
        return None
    draws = draws_of(parts, seed)
    score = Resamples(values.score, parts.scores, mixture_of(parts, draws, parts.unit[1]))
    gate: tp.Union[_Calibrated, _Printed]
    if values.calibrated and null is not None and values.chance is not None:
        gate = _Calibrated(null, values.chance.rate, score)
    else:
        gate = _Printed(values, score, score if parts.scores is parts.cosines else Resamples(
            values.cosine, parts.cosines, mixture_of(parts, draws, parts.unit[0])))
    divided = np.zeros((score.count, 1))
    for block in score.blocks():
        drawn = score(block)
        divided += gate.look(drawn, score.weights(drawn), block)[:, None]
    low, high = np.zeros(score.songs), values.share.copy()  # of songs that no resample pays
    for songs in _runs(gate.settle()):
        drawn = score(songs)
        paid = np.where(gate.passes(drawn, songs), score.weights(drawn), 0.)
        share = np.divide(paid, divided, out=np.zeros_like(paid), where=divided > 0)
        ends = np.quantile(share, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        low[songs], high[songs] = np.minimum(ends[0], high[songs]), np.maximum(ends[1], high[songs])
    return Intervals(np.arange(score.songs), low, high)


def _runs(index: npt.NDArray[np.int64]) -> tp.Iterator[npt.NDArray[np.int64]]:
    """Indices, as many at a time as songs are looked at."""
    for first in range(0, len(index), BLOCK):
        yield index[first:first + BLOCK]


class _Printed:
    """The printed gate, which judges a song by its cosine alone; the weights of those that pass are divided."""

    def __init__(self, values: ChannelStatistics, score: Resamples, cosine: Resamples):
        self._values, self._score, self._cosine = values, score, cosine
        self._paid = np.zeros(score.songs, dtype=bool)

    def look(self, drawn: FloatArray, weight: FloatArray, block: slice) -> FloatArray:
        """What a block of songs, with scores and weights [B, K], adds to what each resample divides, [B]."""
        earning = np.flatnonzero(weight > 0)
        paid = earning[self._pass(self._cosines(drawn, block).ravel()[earning])]
        row, song = np.divmod(paid, weight.shape[1])
        self._paid[block.start + song] = True
        return np.asarray(np.bincount(row, weight.ravel()[paid], minlength=len(weight)), dtype=np.float64)

    def settle(self) -> npt.NDArray[np.int64]:
        """The songs that could be paid in any resample; after a look at all of them."""
        return np.flatnonzero(self._paid)

    def passes(self, drawn: FloatArray, songs: Some) -> npt.NDArray[np.bool_]:
        """Whether songs with scores `drawn` [B, K] pass in each resample."""
        return self._pass(self._cosines(drawn, songs))

    def _cosines(self, drawn: FloatArray, songs: Some) -> FloatArray:
        return drawn if self._cosine is self._score else self._cosine(songs)

    def _pass(self, cosines: FloatArray) -> npt.NDArray[np.bool_]:
        return self._values.gate.passes(z_score(cosines, self._values.noise_floor, self._values.noise_mean))


class _Calibrated:
    """The calibrated gate, which judges a song's p in view of all songs'; the weights of all songs are divided.

    Exact where no resample lets more than `EXACT_STEPS` songs through; beyond, what one lets through is counted in
    steps of about 1 %, rounded down.
    """

    def __init__(self, null: Null, rate: float, score: Resamples):
        self._null, self._rate, self._score = null, rate, score
        most = [score.songs]  # songs let through: all, a quarter, a sixteenth … one
        while most[-1] > 1:
            most.append(most[-1] // COARSE or 1)
        self._most = np.array(most)
        self._bounds = least_z(null, self._limits(self._most))
        self._counts = np.zeros((score.count, len(most)), dtype=np.int64)  # of songs, by the highest bound they reach
        self._highest = np.full(score.songs, -np.inf)  # each song's z in any resample
        self._spread = self._spread_of_all()

    def _spread_of_all(self) -> QuerySpread:
        """Mean and sd of each resample's deviations over all songs, [B, 1] each.

        A deviation is linear in the score and the centre, so that they follow from the deviations of the few rows of
        scores that resamples are made of, and of a centre alone.
        """
        score = self._score
        taken = np.concatenate([score.change, score.centre, np.ones_like(score.centre)], axis=1)  # [B, rows + 2]
        total, squares = np.zeros(taken.shape[1]), np.zeros((taken.shape[1], taken.shape[1]))
        for block in score.blocks():
            rows = score.rows(block)
            nothing, centre = (self._null.deviations(np.zeros((1, rows.shape[1])), of, block) for of in (0., 1.))
            each = np.concatenate([self._null.deviations(rows, 0., block) - nothing, centre - nothing, nothing])
            total += each.sum(axis=1)
            squares += each @ each.T
        return spread_of_sums(taken @ total[:, None], np.einsum('bi,ij,bj->b', taken, squares, taken)[:, None],
                              score.songs)

    def _z(self, drawn: FloatArray, songs: Some) -> FloatArray:
        return self._null.z(drawn, self._score.centre, songs, self._spread)

    def _limits(self, through: npt.NDArray[np.int64]) -> FloatArray:
        """The p up to which so many songs would be let through."""
        return self._rate * through / self._score.songs

    def look(self, drawn: FloatArray, weight: FloatArray, block: slice) -> FloatArray:
        """As `_Printed.look`."""
        z = self._z(drawn, block)
        self._highest[block] = z.max(axis=0)
        far = np.flatnonzero(z >= self._bounds[0])
        bound = np.searchsorted(self._bounds, z.ravel()[far], side='right') - 1
        self._counts += _counted(far // z.shape[1], bound, self._counts.shape)
        return weight.sum(axis=1)

    def settle(self) -> npt.NDArray[np.int64]:
        """As `_Printed.settle`. Makes known the p up to which each resample lets songs through."""
        reached = self._counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # [B, bounds]: how many lie at or above each
        more = reached > np.append(self._most[1:], 0)  # than the next bound allows for: until then it is not so many
        open_bounds = np.flatnonzero(more.any(axis=0))
        self._limit = np.full((self._score.count, 1), -1.)
        if not len(open_bounds):
            return open_bounds
        index = np.flatnonzero(self._highest >= self._bounds[open_bounds[0]])
        steps = _steps(int(min(self._most[open_bounds[0]], reached[:, open_bounds[0]].max())))
        limits = self._limits(steps)
        counts = np.zeros((self._score.count, len(steps) + 1), dtype=np.int64)
        for songs in _runs(index):
            step = np.searchsorted(limits, self._p(self._score(songs), songs))
            counts += _counted(np.arange(len(step))[:, None], step, counts.shape)
        met = counts.cumsum(axis=1)[:, :-1] >= steps
        last = met.shape[1] - 1 - met[:, ::-1].argmax(axis=1)
        self._limit = np.where(met.any(axis=1), limits[last], -1.)[:, None]
        return index

    def _p(self, drawn: FloatArray, songs: Some) -> FloatArray:
        return self._null.p_values(self._z(drawn, songs))

    def passes(self, drawn: FloatArray, songs: Some) -> npt.NDArray[np.bool_]:
        """As `_Printed.passes`."""
        return self._p(drawn, songs) <= self._limit


def least_z(null: Null, p: FloatArray) -> FloatArray:
    """A z for each p in (0, 1), below which p-values are larger: the highest one, or less by a hair. Infinite where no
    p-value is so small."""
    low, high = np.full(len(p), -1.), np.full(len(p), 1.)
    while (within := null.p_values(low) <= p).any():
        low[within] *= 2
    while (above := (null.p_values(high) > p) & (p >= null.smallest)).any():
        high[above] *= 2
    for _ in range(64):
        middle = (low + high) / 2
        larger = null.p_values(middle) > p
        low, high = np.where(larger, middle, low), np.where(larger, high, middle)
    return np.where(p < null.smallest, np.inf, low - 1e-9 * np.maximum(np.abs(low), 1.))


def _steps(most: int) -> npt.NDArray[np.int64]:
    """Numbers of songs let through, ascending from 1 to at most `most`."""
    exact = np.arange(1, min(most, EXACT_STEPS) + 1)
    doublings = np.log2(max(most, EXACT_STEPS) / EXACT_STEPS)
    beyond = EXACT_STEPS * 2 ** (np.arange(1, int(doublings * STEPS) + 1) / STEPS)
    return np.append(exact, beyond.astype(np.int64))


def _counted(row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], shape: tp.Tuple[int, int]
             ) -> npt.NDArray[np.int64]:
    """How often each row and column come together, of `shape`."""
    return np.bincount((row * shape[1] + column).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
