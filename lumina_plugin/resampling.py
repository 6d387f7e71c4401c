"""What a query would score if it had other chunks and checkpoints: drawn with replacement from those that it has.

A resample draws as many chunks and as many checkpoints as there are. Its query is, per checkpoint, the mean of the
drawn chunks' fingerprints, weighted by valid frames and brought to the length of the query's own. All scores are linear
in the query but for its length, so that a resample's score is a sum of the chunks' scores, which are known already.
What is drawn is laid around the query's own scores: the mean of the chunks' fingerprints is not quite the fingerprint
of their mean.
"""

import dataclasses
import typing as tp

import numpy as np
import numpy.typing as npt

from .scoring import FloatArray
from .statistics import weights

RESAMPLES = 200
BLOCK = 512  # songs looked at together: the resamples' scores of them stay in a processor's cache
Some = tp.Union[slice, npt.NDArray[np.int64]]  # of the songs

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


def draws_of(parts: Parts, seed: int) -> tp.Tuple[FloatArray, FloatArray]:
    """How often each resample has each chunk [1 + B, P] and each checkpoint [1 + B, C]; the first has each once."""
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
              for n in parts.counts]
    chunks, checkpoints = (np.concatenate([np.ones((1, drawn.shape[1])), drawn]) for drawn in counts)
    return chunks, checkpoints


def mixture_of(parts: Parts, draws: tp.Tuple[FloatArray, FloatArray], unit: bool) -> FloatArray:
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


class Resamples:
    """Scores of the B resamples, of some of the N songs at a time.

    Mean and sd over all N songs follow from those of the chunks' scores, of which there are few.

    Args:
        point: the query's own scores [N]. scores: per checkpoint, the chunks' [P, N].
        mixture: what a resample takes of each, [1 + B, C * P], from `mixture_of`.
    Attributes:
        count, songs (int): B and N. centre: medians [B, 1] over all songs, as far as they follow the means.
    """

    def __init__(self, point: FloatArray, scores: tp.Sequence[FloatArray], mixture: FloatArray):
        self.count, self.songs = len(mixture) - 1, len(point)
        self._rows = [point[None], *scores]
        self._change = np.concatenate([np.ones((self.count, 1)), mixture[1:] - mixture[:1]], axis=1)
        means = np.concatenate([rows.mean(axis=1, dtype=np.float64) for rows in self._rows])  # [1 + C * P]
        covariance = np.zeros((len(means), len(means)))
        for block in self.blocks():
            away = self._of(block) - means[:, None]
            covariance += away @ away.T / self.songs
        mean = self._change @ means
        sd = np.sqrt(np.maximum(np.einsum('bi,ij,bj->b', self._change, covariance, self._change), 0.))
        flat = sd <= _FLAT * max(float(np.abs(point).max()), 1e-300)
        self._scale = np.where(flat, 0., 1 / np.where(flat, 1., sd))[:, None]  # STS = score * scale - shift
        self._shift = mean[:, None] * self._scale
        self.centre = (float(np.median(point)) + mean - means[0])[:, None]

    def blocks(self) -> tp.Iterator[slice]:
        """All songs, a block at a time."""
        for first in range(0, self.songs, BLOCK):
            yield slice(first, min(first + BLOCK, self.songs))

    def _of(self, songs: Some) -> FloatArray:
        """The query's own and the chunks' scores, [1 + C * P, K]."""
        return np.concatenate([rows[:, songs] for rows in self._rows], dtype=np.float64)

    def __call__(self, songs: Some) -> FloatArray:
        """Scores [B, K]."""
        return self._change @ self._of(songs)

    def weights(self, drawn: FloatArray) -> FloatArray:
        """Weights [B, K] of songs with these scores."""
        return weights(drawn * self._scale - self._shift)
