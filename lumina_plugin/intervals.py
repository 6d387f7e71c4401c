"""How far shares depend on which chunks and which checkpoints there happen to be: bootstrap intervals.

A resample draws as many chunks and as many checkpoints as there are, with replacement. Its query is, per checkpoint,
the mean of the drawn chunks' fingerprints, weighted by valid frames and brought to the length of the query's own, and
it goes the whole way again: score, STS, gate, shares. All scores are linear in the query but for its length, so that a
resample is a sum of the chunks' scores, which are known already. What is drawn is laid around the query's own scores:
the mean of the chunks' fingerprints is not quite the fingerprint of their mean.
"""

import dataclasses
import typing as tp

import numpy as np
import numpy.typing as npt

from .calibration import Null, let_through
from .scoring import FloatArray
from .statistics import MIN_SONGS, ChannelStatistics, weights, z_score

RESAMPLES, LEVEL = 200, 0.95
ALL_SONGS = 4096  # of a larger catalogue, only songs that could qualify are looked at
_FLAT = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """A query's P chunks at C checkpoints.

    Args:
        vectors: per checkpoint, fingerprints [P, D]. whole: per checkpoint, the query's own [D].
        frames: [P], how much each chunk counts.
        cosines, scores: per checkpoint, [P, N] against all songs.
        unit: whether cosine and score look at directions alone.
    """
    vectors: tp.Sequence[FloatArray]
    whole: tp.Sequence[FloatArray]
    frames: npt.ArrayLike
    cosines: tp.Sequence[FloatArray]
    scores: tp.Sequence[FloatArray]
    unit: tp.Tuple[bool, bool]

    @property
    def counts(self) -> tp.Tuple[int, int]:
        """Chunks and checkpoints; one of each, and nothing can be drawn anew."""
        return len(self.vectors[0]), len(self.vectors)


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
    songs = len(values.score)
    if parts.counts == (1, 1) or songs < MIN_SONGS:
        return None
    index = np.arange(songs) if songs <= ALL_SONGS else values.candidates
    draws = _draws(parts, seed)
    score, centre, sts = _resampled(values.score, parts.scores, _mixture(parts, draws, parts.unit[1]), index)
    weight = weights(sts)
    if values.calibrated and null is not None and values.chance is not None:
        passes = let_through(null.p_values(null.z(score, centre, index)), values.chance.rate, songs)
        divided = weight
    else:
        if parts.scores is not parts.cosines:
            score, _, _ = _resampled(values.cosine, parts.cosines, _mixture(parts, draws, parts.unit[0]), index)
        passes = values.gate.passes(z_score(score, values.noise_floor, values.noise_mean))
        divided = np.where(passes, weight, 0.)
    total = divided.sum(axis=1, keepdims=True)
    share = np.divide(np.where(passes, weight, 0.), total, out=np.zeros_like(weight), where=total > 0)
    low, high = np.quantile(share, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    point = values.at(index).share
    return Intervals(index, np.minimum(low, point), np.maximum(high, point))


def _draws(parts: Parts, seed: int) -> tp.Tuple[FloatArray, FloatArray]:
    """How often each resample has each chunk [1 + B, P] and each checkpoint [1 + B, C]; the first has each once."""
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
              for n in parts.counts]
    chunks, checkpoints = (np.concatenate([np.ones((1, drawn.shape[1])), drawn]) for drawn in counts)
    return chunks, checkpoints


def _mixture(parts: Parts, draws: tp.Tuple[FloatArray, FloatArray], unit: bool) -> FloatArray:
    """What a resample's score takes of each chunk's score at each checkpoint, [1 + B, C * P]."""
    chunks, checkpoints = draws
    share = chunks * np.asarray(parts.frames, dtype=np.float64)
    share /= share.sum(axis=1, keepdims=True)
    columns = []
    for checkpoint, vectors in enumerate(parts.vectors):
        rows = np.asarray(vectors, dtype=np.float64)
        mean = share @ rows  # [1 + B, D]
        length = np.linalg.norm(mean, axis=1, keepdims=True)
        target = 1. if unit else float(np.linalg.norm(parts.whole[checkpoint]))
        brought = np.divide(target, length, out=np.zeros_like(length), where=length > 0)
        own = np.linalg.norm(rows, axis=1) if unit else np.ones(len(rows))  # a score by direction lacks these lengths
        columns.append(checkpoints[:, checkpoint, None] / len(parts.vectors) * brought * share * own)
    return np.concatenate(columns, axis=1)


def _resampled(point: FloatArray, scores: tp.Sequence[FloatArray], mixture: FloatArray, index: npt.NDArray[np.int64]
               ) -> tp.Tuple[FloatArray, FloatArray, FloatArray]:
    """Scores [B, K] of the resamples, their medians [B, 1] over all songs (as far as they follow the means) and STS.

    Mean and sd over all N songs follow from those of the chunks' scores, of which there are few.
    """
    rows = np.concatenate([point[None], *scores])  # [1 + C * P, N]
    change = np.concatenate([np.ones((len(mixture) - 1, 1)), mixture[1:] - mixture[:1]], axis=1)
    means = rows.mean(axis=1, dtype=np.float64)
    away = rows - means[:, None].astype(rows.dtype)
    covariance = np.asarray(away @ away.T, dtype=np.float64) / len(point)
    mean = change @ means
    sd = np.sqrt(np.maximum(np.einsum('bi,ij,bj->b', change, covariance, change), 0.))
    drawn = change @ rows[:, index]
    flat = sd <= _FLAT * max(float(np.abs(point).max()), 1e-300)
    sts = np.where(flat[:, None], 0., (drawn - mean[:, None]) / np.where(flat, 1., sd)[:, None])
    return drawn, (float(np.median(point)) + mean - means[0])[:, None], sts
