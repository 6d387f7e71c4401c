"""What a store's scores look like over many queries: signs that they say the same of everything, or nothing at all.

None of these knows the truth. They tell how far scores can be trusted to tell queries apart: rankings that hardly
depend on the query cannot be attributions, however confident each one looks. Every report prints them for its store, of
the songs from outside the catalogue by which chance is measured; `lumina validate diagnose` of any reports.
"""

import dataclasses
import typing as tp

import numpy as np
import numpy.typing as npt
from scipy import stats

from .errors import LuminaError
from .scoring import FloatArray

TOP = 5  # songs of a query that count as its neighbours
SONGS = 4096  # of more songs, a diagnosis of a store looks at so many
FIGURES = ('ranking_correlation', 'rank_one_energy', 'effective_rank', 'concentration', 'hub_skewness')
# Beyond these a figure is a doubt: no store of the validation suite whose scores foretell retraining (LDS of 0.6 and
# more) reaches them. Nor does one whose LDS is about 0: no doubt is no proof (docs/validation.md).
MOST = {'ranking_correlation': 0.5, 'rank_one_energy': 0.6, 'concentration': 0.6, 'hub_skewness': 5.}
LEAST = {'effective_rank': 5.}
SMALL = 20  # songs, with fewer of which there are few patterns and large shares whatever the scores


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Figures of one channel.

    Args:
        queries, songs (int): How many.
        ranking_correlation (float): Mean absolute rank correlation between two queries' scores; 1: one ranking for all.
        rank_one_energy (float): Share of the score matrix's sum of squares, each query's mean taken out, that a single
            pattern explains; 1: one pattern for all.
        effective_rank (float): How many patterns there are: the exponential of the entropy of the singular values'
            squares; at most the smaller of queries and songs.
        concentration (float): Mean over queries of the largest share that one song is paid; 1: all goes to one.
        hub_skewness (float): Skewness of how often songs are among the first `TOP`; about 0: all songs alike, well
            above 1: a few are everybody's neighbours.
        hubs (list): (song, how often) of the most frequent ones.
    """
    queries: int
    songs: int
    ranking_correlation: float
    rank_one_energy: float
    effective_rank: float
    concentration: float
    hub_skewness: float
    hubs: tp.List[tp.Tuple[str, int]]


def diagnose(scores: npt.ArrayLike, songs: tp.Sequence[str], shares: tp.Optional[npt.ArrayLike] = None) -> Diagnosis:
    """Diagnose the scores [Q, N] of a channel.

    Args:
        songs (sequence of str): Ids of the N songs. shares (array, optional): [Q, N], what the songs are paid.
    Raises:
        LuminaError: for fewer than three queries or songs.
    """
    given = np.asarray(scores, dtype=np.float64)
    queries, count = given.shape
    if queries < 3 or count < 3:
        raise LuminaError(f"{queries} queries on {count} songs say nothing about a store; give at least three of each.")
    centred = given - given.mean(1, keepdims=True)
    squares = np.square(np.linalg.svd(centred, compute_uv=False))
    part = squares / squares.sum() if squares.sum() > 0 else np.ones(1)
    kept = part[part > 0]
    ranks = np.asarray(stats.rankdata(given, axis=1))
    correlation = _correlations(ranks)
    top = np.argsort(-given, axis=1, kind='stable')[:, :min(TOP, count)]
    often = np.bincount(top.ravel(), minlength=count)
    order = np.argsort(-often, kind='stable')[:TOP]
    first = 0. if shares is None else float(np.asarray(shares, dtype=np.float64).max(1).mean())
    return Diagnosis(queries, count, correlation, float(part[0]), float(np.exp(-(kept * np.log(kept)).sum())), first,
                     float(stats.skew(often)) if often.std() > 0 else 0., [(songs[i], int(often[i])) for i in order])


def _correlations(ranks: FloatArray) -> float:
    """Mean absolute correlation between different rows [Q, N]; a constant row correlates with nothing."""
    centred = ranks - ranks.mean(1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    gram = np.abs(unit @ unit.T)
    return float((gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1)))


def diagnose_store(scores: npt.ArrayLike, songs: tp.Sequence[str]) -> tp.Optional[Diagnosis]:
    """Diagnose what outside songs score against a channel's songs, [n, N], with the shares that the weights of LUMINA
    (v7, weights) would give, gates aside; None where there are too few to tell.

    Of a large catalogue, songs at equal distances are looked at.
    """
    given = np.asarray(scores)
    step = max(1, -(-given.shape[1] // SONGS))
    given, names = given[:, ::step], list(songs)[::step]
    if min(given.shape) < 3:
        return None
    spread = given.std(axis=1, keepdims=True)
    sts = np.divide(given - given.mean(axis=1, keepdims=True), spread, out=np.zeros(given.shape), where=spread > 0)
    weight = np.square(np.maximum(sts - 1, 0))
    total = weight.sum(axis=1, keepdims=True)
    return diagnose(given, names, np.divide(weight, total, out=np.zeros(given.shape), where=total > 0))


def doubts(found: Diagnosis) -> tp.List[str]:
    """Which figures lie beyond their limits; none of a catalogue of so few songs that any scores would."""
    if min(found.queries, found.songs) < SMALL:
        return []
    return [*(key for key, limit in MOST.items() if getattr(found, key) > limit),
            *(key for key, limit in LEAST.items() if getattr(found, key) < limit)]
