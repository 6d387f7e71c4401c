"""What a query would score if it had other chunks and checkpoints: drawn with replacement from those that it has.

A resample draws as many chunks and as many checkpoints as there are. Its query is, per checkpoint, the mean of the
drawn chunks' fingerprints, weighted by valid frames and brought to the length of the query's own. All scores are linear
in the query but for its length, so that a resample's score is a sum of the chunks' scores, which are known already.
What is drawn is laid around the query's own scores: the mean of the chunks' fingerprints is not quite the fingerprint
of their mean.

A query that is the mean of a prompt's fingerprint and of that of what follows has its chunks in two groups, cut where
the prompt ends. Each group draws from its own, and the resample's query is the mean of what the two become.
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
        vectors: per checkpoint, fingerprints [P, D].
        whole: per checkpoint, the query's own [D]; or those of its G groups [G, D], of which it is the mean.
        frames: [P], how much each chunk counts in its group.
        cosines, scores: per checkpoint, [P, N] against all songs.
        unit: whether cosine and score look at directions alone.
        groups: [P], which of the G groups each chunk belongs to; all to one unless given.
    """
    vectors: tp.Sequence[FloatArray]
    whole: tp.Sequence[FloatArray]
    frames: npt.ArrayLike
    cosines: tp.Sequence[FloatArray]
    scores: tp.Sequence[FloatArray]
    unit: tp.Tuple[bool, bool]
    groups: tp.Optional[tp.Sequence[int]] = None

    @property
    def member(self) -> npt.NDArray[np.bool_]:
        """Which chunks belong to each group, [G, P]."""
        groups = np.zeros(len(self.vectors[0]), dtype=int) if self.groups is None else np.asarray(self.groups)
        return groups == np.unique(groups)[:, None]

    @property
    def counts(self) -> tp.Tuple[int, int]:
        """Chunks that are not alone in their group, 1 where all are, and checkpoints; where both are 1 nothing can be
        drawn anew."""
        sizes = self.member.sum(axis=1)
        return int(sizes[sizes > 1].sum()) or 1, len(self.vectors)


def draws_of(parts: Parts, seed: int) -> tp.Tuple[FloatArray, FloatArray]:
    """How often each resample has each chunk [1 + B, P] and each checkpoint [1 + B, C]; the first has each once."""
    rng = np.random.default_rng(seed)
    chunks = np.ones((1 + RESAMPLES, len(parts.vectors[0])))
    for member in parts.member:
        chunks[1:, member] = _drawn(rng, int(member.sum()))
    return chunks, np.concatenate([np.ones((1, len(parts.vectors))), _drawn(rng, len(parts.vectors))])


def _drawn(rng: np.random.Generator, count: int) -> FloatArray:
    """How often each of so many is drawn, [B, count]."""
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)


def mixture_of(parts: Parts, draws: tp.Tuple[FloatArray, FloatArray], unit: bool) -> FloatArray:
    """What a resample's score takes of each chunk's score at each checkpoint, [1 + B, C * P]."""
    chunks, checkpoints = draws
    frames = chunks * np.asarray(parts.frames, dtype=np.float64)
    columns = []
    for checkpoint, vectors in enumerate(parts.vectors):
        rows = np.asarray(vectors, dtype=np.float64)
        wholes = np.atleast_2d(np.asarray(parts.whole[checkpoint], dtype=np.float64))  # [G, D]
        taken = np.zeros_like(frames)  # of each chunk's fingerprint
        for whole, member in zip(wholes, parts.member, strict=True):
            share = np.where(member, frames, 0.)
            share /= share.sum(axis=1, keepdims=True)
            taken += _brought(share, rows, float(np.linalg.norm(whole))) / len(wholes)
        if unit:  # and a score by direction lacks the chunks' lengths
            taken = _brought(taken, rows, 1.) * np.linalg.norm(rows, axis=1)
        columns.append(checkpoints[:, checkpoint, None] / len(parts.vectors) * taken)
    return np.concatenate(columns, axis=1)


def _brought(taken: FloatArray, rows: FloatArray, length: float) -> FloatArray:
    """What to take of rows [P, D], as `taken` [1 + B, P] says, so that their sum has a length."""
    found = np.linalg.norm(taken @ rows, axis=1, keepdims=True)
    return taken * np.divide(length, found, out=np.zeros_like(found), where=found > 0)


class Resamples:
    """Scores of the B resamples, of some of the N songs at a time.

    Mean and sd over all N songs follow from those of the chunks' scores, of which there are few.

    Args:
        point: the query's own scores [N]. scores: per checkpoint, the chunks' [P, N].
        mixture: what a resample takes of each, [1 + B, C * P], from `mixture_of`.
    Attributes:
        count, songs (int): B and N. change: what a resample takes of each of `rows`, [B, 1 + C * P].
        centre: medians [B, 1] over all songs, as far as they follow the means.
    """

    def __init__(self, point: FloatArray, scores: tp.Sequence[FloatArray], mixture: FloatArray):
        self.count, self.songs = len(mixture) - 1, len(point)
        self._rows = [point[None], *scores]
        self.change = np.concatenate([np.ones((self.count, 1)), mixture[1:] - mixture[:1]], axis=1)
        means = np.concatenate([rows.mean(axis=1, dtype=np.float64) for rows in self._rows])  # [1 + C * P]
        covariance = np.zeros((len(means), len(means)))
        for block in self.blocks():
            away = self.rows(block) - means[:, None]
            covariance += away @ away.T / self.songs
        mean = self.change @ means
        sd = np.sqrt(np.maximum(np.einsum('bi,ij,bj->b', self.change, covariance, self.change), 0.))
        flat = sd <= _FLAT * max(float(np.abs(point).max()), 1e-300)
        self._scale = np.where(flat, 0., 1 / np.where(flat, 1., sd))[:, None]  # STS = score * scale - shift
        self._shift = mean[:, None] * self._scale
        self.centre = (float(np.median(point)) + mean - means[0])[:, None]

    def blocks(self) -> tp.Iterator[slice]:
        """All songs, a block at a time."""
        for first in range(0, self.songs, BLOCK):
            yield slice(first, min(first + BLOCK, self.songs))

    def rows(self, songs: Some) -> FloatArray:
        """The query's own and the chunks' scores, [1 + C * P, K]."""
        return np.concatenate([rows[:, songs] for rows in self._rows], dtype=np.float64)

    def __call__(self, songs: Some) -> FloatArray:
        """Scores [B, K]."""
        return self.change @ self.rows(songs)

    def weights(self, drawn: FloatArray) -> FloatArray:
        """Weights [B, K] of songs with these scores."""
        return weights(drawn * self._scale - self._shift)
