"""From scores to shares: noise floor, confidence, gate, STS, LIP, weights.

Two different sigmas appear and must not be mixed. The *noise floor* belongs to the gate: it says how large a cosine
chance alone produces, and is compared with the cosine. The *sd* belongs to STS: it is the spread of this query's scores
over the catalogue, and is compared with the score.

Two gates say which songs may be paid, and either can decide: the printed one, which compares the cosine with a noise
floor, and the calibrated one, which asks what songs outside of the catalogue score (`calibration`). With the calibrated
gate shares are parts of the weights of all songs, so that what chance explains stays unattributed.

Every degenerate case has a defined result: no spread, fewer than three songs, or nobody qualified mean that all shares
are 0 and the unattributed remainder is 1. No finite input yields NaN.
"""

import dataclasses
import functools
import math
import typing as tp

import numpy as np
import numpy.typing as npt
from scipy.special import erf, erfinv

from .calibration import Null, q_values
from .errors import LuminaError
from .scoring import EXACT_SONGS, FloatArray, StackedRows, finite_rows, unit_rows

BoolArray = npt.NDArray[np.bool_]

MIN_SONGS = 3  # with two songs every STS is +1 or -1: a spread says nothing
TAILS = ('two_sided', 'one_sided')
_ROUNDING = 1e-9  # an STS of exactly 1 must not earn money through its last bit
_EQUAL = 1e-9  # spread of cosines below which only rounding is left
_MARGIN = 1e-5  # relative; more than what fp32 scores of a large catalogue are rounded by
_FLAT = 1e-12  # spread, relative to the largest score, below which all scores count as equal


def noise_floor(width: int) -> float:
    """1/√D: standard deviation of the cosine of unrelated directions in D dimensions (LUMINA v7, noise floor)."""
    if width < 1:
        raise LuminaError(f"A fingerprint's width is {width}, but it must be at least 1: "
                          "check recipe key 'projection.dim'.")
    return 1.0 / math.sqrt(width)


def measured_noise(
    songs: tp.Union[npt.ArrayLike, tp.Sequence[tp.Union[npt.ArrayLike, StackedRows]]],
    rank: tp.Optional[int] = None,
    max_songs: int = 4096,
    unit: bool = True,
) -> tp.Tuple[float, float]:
    """Mean and standard deviation of the cosines between different songs of the store: what counts as unremarkable.

    For gradients that are not centred, whose cosines lie about a common value above 0, and for projections fitted on
    the songs, where 1/√D does not hold.

    Args:
        songs: `[N, D]`, or one such array per checkpoint: then both are those of the mean cosine over checkpoints.
        rank: rank of a fitted projection that keeps nothing outside the songs' own span. A query without any relation
            to the songs still has a root mean square cosine of 1/√rank in there (C checkpoints: 1/√(C·rank)), however
            different the songs look from each other, so σ is never put below that. Leave it out where the
            projection keeps residual directions, which let an unrelated query be far from every song.
        max_songs: above this many songs a fixed random sample of them is used.
        unit: False for fingerprints whose length counts (`scoring.fit_scorers`).
    Returns:
        The mean, and σ > 0. Without two songs to compare they are 0 and 1 (nothing passes a gate); where all cosines
        are the same σ is 1/√D.
    """
    rows = _checkpoints(songs)
    return noise_of(unit_sample(rows, noise_sample(rows[0].shape[0], max_songs), unit), len(rows), rank)


def noise_sample(count: int, max_songs: int = 4096) -> npt.NDArray[np.int64]:
    """Which of `count` songs `measured_noise` looks at, ascending: always the same ones."""
    if count <= max_songs:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, max_songs, replace=False))


def unit_sample(songs: tp.Any, index: npt.NDArray[np.int64], unit: bool = True) -> FloatArray:
    """Unit vectors [n, C * D] of some songs, those of C checkpoints side by side; arguments as for `measured_noise`."""
    found = [_loaded(rows, index) for rows in _checkpoints(songs)]
    return np.concatenate([unit_rows(rows) if unit else rows for rows in found], axis=1)


def noise_of(unit: FloatArray, checkpoints: int = 1, rank: tp.Optional[int] = None) -> tp.Tuple[float, float]:
    """`measured_noise` from the `unit_sample` of so many checkpoints."""
    width = unit.shape[1] // checkpoints
    # The mean of C cosines is the inner product of the concatenated unit vectors, divided by C.
    unit = unit[np.any(unit != 0, axis=1)] / math.sqrt(checkpoints)  # silent songs are no comparison
    if len(unit) < 2:
        return 0.0, 1.0
    mean, sigma = _off_diagonal(unit)
    if sigma < _EQUAL:
        sigma = noise_floor(width)
    if rank is not None:
        sigma = max(sigma, noise_floor(rank * checkpoints))
    return mean, sigma


def _loaded(rows: tp.Any, index: npt.NDArray[np.int64]) -> FloatArray:
    taken = rows.take(index) if isinstance(rows, StackedRows) else rows[index]
    return finite_rows(np.asarray(taken, dtype=np.float64), 'song')


def _checkpoints(songs: tp.Any) -> tp.List[tp.Any]:
    rows = songs if hasattr(songs, 'shape') else [row if hasattr(row, 'shape') else np.asarray(row) for row in songs]
    if hasattr(rows, 'shape'):
        rows = [rows] if len(rows.shape) == 2 else list(rows)
    elif rows and len(rows[0].shape) == 1:
        rows = [np.asarray(rows)]
    if not rows or any(len(row.shape) != 2 or row.shape != rows[0].shape for row in rows):
        raise LuminaError("The noise floor is measured on [N, D] fingerprints, "
                          "the same songs at every checkpoint: check the store.")
    return list(rows)


def _off_diagonal(unit: FloatArray, block: int = 512) -> tp.Tuple[float, float]:
    """Mean and standard deviation of the inner products of different rows, in two passes, never N×N at once."""
    pairs = len(unit) * (len(unit) - 1)
    mean = (float(np.square(unit.sum(axis=0)).sum()) - float(np.square(unit).sum())) / pairs
    total = 0.0
    for start in range(0, len(unit), block):
        gram = unit[start:start + block] @ unit.T - mean  # [n, N]
        gram[np.arange(len(gram)), np.arange(start, start + len(gram))] = 0.0
        total += float(np.square(gram).sum())
    return mean, math.sqrt(total / pairs)


def z_score(cosine: npt.ArrayLike, sigma: float, mean: float = 0.0) -> FloatArray:
    """z = (cosine − mean)/σ, any shape; the printed z = cosine/σ has mean 0.

    Quotients that overflow are held at the largest finite number.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise LuminaError(f"The noise floor is {sigma}, but it must be above 0: measure it again on the store.")
    with np.errstate(over='ignore'):
        return np.nan_to_num((np.asarray(cosine, dtype=np.float64) - mean) / sigma)


def confidence(cosine: npt.ArrayLike, sigma: float, mean: float = 0.0) -> FloatArray:
    """erf(z/√2), and 0 below z = 0; any shape, in [0, 1] (LUMINA v7, confidence).

    This is the two-sided probability that chance alone stays within ±z.
    """
    return _confidence_of(z_score(cosine, sigma, mean))


def _confidence_of(z: FloatArray) -> FloatArray:
    return erf(np.maximum(z, 0.0) / math.sqrt(2.0))


@dataclasses.dataclass(frozen=True)
class Gate:
    """What a cosine must reach before its song can be paid.

    The paper prints both the formula erf(z/√2) >= 95 %, which z = 1.960 meets (`two_sided`, the default), and a bound
    of about 1.65 σ, which is the one-sided 95 % (`one_sided`). They disagree; a recipe says which it uses.

    Attributes:
        level: in [0, 1).
        tail: `two_sided` or `one_sided`.
    """
    level: float = 0.95
    tail: str = 'two_sided'

    def __post_init__(self) -> None:
        if not 0 <= self.level < 1:
            raise LuminaError(f"Recipe key 'gate.level' is {self.level}, but it must be at least 0 and below 1: "
                              "try 0.95.")
        if self.tail not in TAILS:
            raise LuminaError(f"Recipe key 'gate.tail' is {self.tail!r}: use one of {', '.join(TAILS)}.")

    @property
    def threshold(self) -> float:
        """The z at which the gate opens: 1.960 or 1.645 at 95 %."""
        level = self.level if self.tail == 'two_sided' else max(2 * self.level - 1, 0.0)
        return math.sqrt(2.0) * float(erfinv(level))

    def passes(self, z: npt.ArrayLike) -> BoolArray:
        """Whether each z passes; z <= 0 never does."""
        values = np.asarray(z, dtype=np.float64)
        return (values >= self.threshold) & (values > 0)


class Spread(tp.NamedTuple):
    """How scores lie: their number, their largest magnitude, and mean and sd (ddof 0) of the scores divided by that."""
    songs: int
    peak: float
    mean: float
    sd: float


def spread_of(score: npt.ArrayLike) -> Spread:
    """The spread of scores `[N]`. It scales with them: sums stay in range."""
    values = np.asarray(score)
    peak = float(max(values.max(initial=0.0), -values.min(initial=0.0)))
    if peak == 0:
        return Spread(len(values), 0.0, 0.0, 0.0)
    if len(values) > EXACT_SONGS:  # the last bit is not worth a sort, or another type
        scaled = values * values.dtype.type(1 / peak)
        mean = float(scaled.mean(dtype=np.float64))
        scaled -= scaled.dtype.type(mean)
        return Spread(len(values), peak, mean, math.sqrt(float(np.dot(scaled, scaled)) / len(values)))
    ordered = np.sort(values.astype(np.float64) / peak)  # sums that do not depend on the songs' order, to the last bit
    return Spread(len(values), peak, float(ordered.mean()), float(ordered.std()))


def joint_spread(parts: tp.Sequence[Spread]) -> Spread:
    """The spread of all scores from those of its parts, by decomposition of variance: N·SD² = Σ n·(sd² + (m - M)²)."""
    count, peak = sum(part.songs for part in parts), max(part.peak for part in parts)
    if peak == 0:
        return Spread(count, 0.0, 0.0, 0.0)
    scaled = [part._replace(mean=part.mean * part.peak / peak, sd=part.sd * part.peak / peak) for part in parts]
    mean = math.fsum(part.songs * part.mean for part in scaled) / count
    squares = math.fsum(part.songs * (part.sd ** 2 + (part.mean - mean) ** 2) for part in scaled)
    return Spread(count, peak, mean, math.sqrt(squares / count))


def standardised_scores(score: npt.ArrayLike, spread: tp.Optional[Spread] = None) -> FloatArray:
    """STS = (score - μ)/sd over the catalogue, ddof 0: `[N]` -> `[N]`; all 0 for fewer than 3 songs or equal scores.

    `spread` is the whole catalogue's, where these are the scores of some of its songs.
    """
    values = np.asarray(score, dtype=np.float64)
    spread = spread_of(values) if spread is None else spread
    if spread.songs < MIN_SONGS or spread.peak == 0 or spread.sd <= _FLAT:
        return np.zeros(len(values))
    standardised = values / spread.peak
    standardised -= spread.mean
    standardised /= spread.sd
    return standardised


def lip(sts: npt.ArrayLike) -> FloatArray:
    """LIP = tanh(STS/2), in [-1, 1]; any shape (LUMINA v7, LIP)."""
    return np.tanh(0.5 * np.asarray(sts, dtype=np.float64))


def weights(sts: npt.ArrayLike) -> FloatArray:
    """w = max(0, STS - 1)²; any shape (LUMINA v7, weights)."""
    excess = np.asarray(sts, dtype=np.float64) - 1.0
    return np.square(np.where(excess > _ROUNDING, excess, 0.0))


def total_weight(weight: npt.ArrayLike, qualified: npt.ArrayLike) -> float:
    """Σw over the qualified songs: `[N]`, `[N]` -> a number."""
    return _sum(_counted(weight, qualified))


def shares(weight: npt.ArrayLike, qualified: npt.ArrayLike, total: tp.Optional[float] = None) -> FloatArray:
    """w/Σw over the qualified songs, 0 for the others: `[N]`, `[N]` -> `[N]`, with sum 1, or 0 if nobody qualifies.

    `total` is what is divided, where that is not these songs' own Σw: the whole catalogue's, where these are some of
    its songs, or that of all songs, qualified or not (calibrated gate).
    """
    counted = _counted(weight, qualified)
    total = _sum(counted) if total is None else total
    return counted / total if total > 0 else np.zeros(len(counted))


def _counted(weight: npt.ArrayLike, qualified: npt.ArrayLike) -> FloatArray:
    return np.where(np.asarray(qualified, dtype=bool), np.asarray(weight, dtype=np.float64), 0.0)


def _sum(counted: FloatArray) -> float:
    return float((np.sort(counted) if len(counted) <= EXACT_SONGS else counted).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Chance:
    """What the outside songs say of one query; arrays `[N]`.

    Attributes:
        p: how often chance alone scores as high. q: the same after Benjamini and Hochberg, over all songs.
        rate: q at which a song passes.
        outside: how many outside songs there are.
    """
    p: FloatArray
    q: FloatArray
    rate: float
    outside: int

    def at(self, index: npt.NDArray[np.int64]) -> 'Chance':
        """The same of some songs."""
        return dataclasses.replace(self, p=self.p[index], q=self.q[index])

    @functools.cached_property
    def passes(self) -> BoolArray:
        """Whether each song passes the calibrated gate."""
        return self.q <= self.rate


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """What one channel says about one query. Arrays are `[N]`, in the store's order of songs.

    All but cosine and score is made from them when it is first asked for: of a million songs a reader looks at few.

    Attributes:
        cosine: mean cosine over checkpoints, which the gate judges.
        score: the recipe's score, from which STS and everything after it follow.
        spread: of the whole catalogue's scores.
        earned: Σ of the weights of all songs that qualify.
        noise_floor: σ of the gate.
        noise_mean: the cosine that counts as unremarkable; 0 for the printed gate.
        gate: the printed gate that was used.
        chance: the calibrated gate's verdict, where the store has outside songs.
        calibrated: whether it decides who is paid; else the printed gate does.
        divided: Σ of the weights that shares are parts of: with the calibrated gate of all songs, qualified or not.
    """
    cosine: FloatArray
    score: FloatArray
    spread: Spread
    earned: float
    noise_floor: float
    noise_mean: float
    gate: Gate
    chance: tp.Optional[Chance] = None
    calibrated: bool = False
    divided: tp.Optional[float] = None

    def at(self, index: npt.NDArray[np.int64]) -> 'ChannelStatistics':
        """The same numbers, of some songs only, in the order of `index`; shares stay those among all songs."""
        return dataclasses.replace(self, cosine=self.cosine[index], score=self.score[index],
                                   chance=None if self.chance is None else self.chance.at(index))

    @property
    def unattributed(self) -> float:
        """What is left of 1 when all shares are paid."""
        if self.earned <= 0:
            return 1.0
        return 0.0 if self.divided is None else max(0.0, 1.0 - self.earned / self.divided)

    @functools.cached_property
    def z(self) -> FloatArray:
        """(cosine - noise mean) / noise floor."""
        return z_score(self.cosine, self.noise_floor, self.noise_mean)

    @functools.cached_property
    def sts(self) -> FloatArray:
        """Standardised score."""
        return standardised_scores(self.score, self.spread)

    @functools.cached_property
    def passes_gate(self) -> BoolArray:
        """z reaches the printed gate's threshold."""
        return self.gate.passes(self.z)

    @functools.cached_property
    def weight(self) -> FloatArray:
        """max(0, STS - 1)², for every song, qualified or not."""
        return weights(self.sts)

    @functools.cached_property
    def qualified(self) -> BoolArray:
        """Passes the gate that decides, and STS > 1."""
        passes = self.chance.passes if self.calibrated and self.chance is not None else self.passes_gate
        return passes & (self.weight > 0)

    @functools.cached_property
    def share(self) -> FloatArray:
        """Fraction of the channel's money; sums to 1 - `unattributed` over all songs."""
        return shares(self.weight, self.qualified, self.earned if self.divided is None else self.divided)

    @functools.cached_property
    def confidence(self) -> FloatArray:
        """In [0, 1]."""
        return _confidence_of(self.z)

    @functools.cached_property
    def lip(self) -> FloatArray:
        """In [-1, 1]."""
        return lip(self.sts)

    @functools.cached_property
    def lip_percent(self) -> FloatArray:
        """(LIP + 1)/2 · 100."""
        return (self.lip + 1.0) * 50.0

    @functools.cached_property
    def candidates(self) -> npt.NDArray[np.int64]:
        """Indices, ascending, of songs among which are all that qualify: those whose score lies above the mean by
        (nearly) one sd."""
        if self.spread.sd <= 0:
            return np.arange(0)
        least = (self.spread.mean + self.spread.sd * (1 - _MARGIN)) * self.spread.peak
        return np.flatnonzero(self.score >= least - abs(least) * _MARGIN)


def channel_statistics(
    cosine: npt.ArrayLike,
    score: npt.ArrayLike,
    noise_floor: float,
    gate: tp.Optional[Gate] = None,
    noise_mean: float = 0.0,
    spread: tp.Optional[Spread] = None,
    null: tp.Optional[Null] = None,
    rate: float = 0.05,
    calibrated: bool = True,
    chance: tp.Optional[Chance] = None,
) -> ChannelStatistics:
    """All statistics of one query in one channel.

    Args:
        cosine: `[N]`, compared with the noise floor.
        score: `[N]`, standardised over the catalogue. May be the cosine itself.
        noise_floor: σ of the gate, from `noise_floor` or `measured_noise`.
        gate: 95 %, two-sided unless given.
        noise_mean: mean of the gate's noise, from `measured_noise`; 0 as printed unless given.
        spread: of the whole catalogue's scores, where these N songs are some of it; shares are then among these N.
        null: what chance alone scores, for the calibrated gate at `rate`.
        calibrated: whether that gate decides, where there is a null; else it is a second opinion.
        chance: the calibrated gate's verdict instead of a null, where these N songs are some of the catalogue.
    Raises:
        LuminaError: where lengths differ, a value is not finite, or the noise floor is not above 0.
    """
    gate = gate or Gate()
    cosines, scores = _vector('cosine', cosine), _vector('score', score)
    if len(cosines) != len(scores):
        raise LuminaError(f"There are {len(cosines)} cosines but {len(scores)} scores: score the same songs for both.")
    z_score(0.0, noise_floor)  # refuses one that is not above 0
    values = ChannelStatistics(cosines, scores, spread_of(scores) if spread is None else spread, 0.0,
                               float(noise_floor), float(noise_mean), gate)
    if null is not None:
        p = null.p_values(null.z(scores))
        chance = Chance(p, q_values(p), rate, null.outside)
    if chance is not None:
        values = dataclasses.replace(values, chance=chance, calibrated=calibrated)
    some = values.at(values.candidates)
    divided = total_weight(some.weight, some.weight > 0) if values.calibrated else None
    return dataclasses.replace(values, earned=total_weight(some.weight, some.qualified), divided=divided)


def _vector(name: str, values: npt.ArrayLike) -> FloatArray:
    array = np.array(values)
    if array.dtype != np.float32 or len(array) <= EXACT_SONGS:
        array = array.astype(np.float64)
    if array.ndim != 1:
        raise LuminaError(f"{name} has shape {array.shape}, but [N] is expected: pass one query's row.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise LuminaError(f"The {name} of song number {int(bad[0])} is not a finite number: "
                          "fingerprint that song again.")
    return array
