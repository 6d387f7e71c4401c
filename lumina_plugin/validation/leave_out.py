"""What leaving a whole group of songs out of training does to a query, and whether scores foretell it.

The groups are the compositions and artists that a ground truth left out of one model each. A group's true influence on
a query is what the query's loss rises by without it: its loss under that model less its mean under the models of all
songs. A method's is the sum of its songs' scores.
"""

import dataclasses
import math
import typing as tp

import numpy as np

from ..errors import LuminaError
from .lds import Interval, interval
from .ranking import Chance, chance, ndcg, ranks, row_spearman, top_agrees
from .results import wilson
from .truth import FloatArray, GroundTruth

FAMILIES = (('free', False, 'free generations'), ('continued', True, 'continuations, prompt masked'),
            ('continued', False, 'continuations, whole'), ('heldout', False, 'held-out songs'),
            ('songs', False, 'training songs'))
KINDS = ('artist', 'composition', 'all')
MEASURES: tp.Dict[str, tp.Callable[[FloatArray, FloatArray], FloatArray]] = {
    'top-1': top_agrees, 'NDCG': ndcg, 'Spearman': row_spearman}


@dataclasses.dataclass(frozen=True)
class Losses:
    """What leaving groups out does to some queries.

    Args:
        groups (list of str): G of them, as 'artist:…' or 'composition:…'.
        members (array): 1 where a group holds a song, [G, N].
        delta (array): Loss without a group less the mean of the models of all songs, nats per code, [Q, G].
        noise (float): Standard deviation that `delta` would have if no group mattered: how the models of all songs
            differ by their seeds, pooled over the queries.
        queries (list of str): Ids, Q. sources (list): Id of the song that each comes from, or None.
    """
    groups: tp.List[str]
    members: FloatArray
    delta: FloatArray
    noise: float
    queries: tp.List[str]
    sources: tp.List[tp.Optional[str]]

    def columns(self, kind: str) -> tp.List[int]:
        """Groups of a kind ('artist', 'composition', 'all')."""
        return [column for column, group in enumerate(self.groups) if kind in ('all', group.partition(':')[0])]


def losses_without(truth: GroundTruth, family: str, masked: bool) -> Losses:
    """What leaving groups out does to the queries of a family.

    Raises:
        LuminaError: when the truth holds fewer than two models of all songs, or fewer than two left-out groups.
    """
    rows, whole = truth.rows('without'), truth.rows('whole')
    if len(whole) < 2 or len(rows) < 2:
        raise LuminaError(f"This ground truth holds {len(rows)} models without a group and {len(whole)} of all songs; "
                          "two of each are needed, so make it with `lumina validate ground-truth`.")
    columns = truth.columns(family)
    known = truth.losses(whole, columns, masked)  # [W, Q]
    delta = (truth.losses(rows, columns, masked) - known.mean(0)).T
    noise = math.sqrt(known.var(0, ddof=1).mean() * (1 + 1 / len(whole))) if columns else math.nan
    queries = [truth.queries[column] for column in columns]
    return Losses([str(truth.models[row].group) for row in rows], 1 - truth.members(rows), delta, noise,
                  [query.id for query in queries], [query.source for query in queries])


def largest_losses(losses: Losses, count: int) -> tp.List[tp.Tuple[str, str, float, float]]:
    """Whom a missing group costs most: query, group, loss in nats per code, and the same in units of the noise."""
    order = np.argsort(-losses.delta, axis=None, kind='stable')[:count]
    places = [divmod(int(one), len(losses.groups)) for one in order]
    return [(losses.queries[q], losses.groups[g], float(losses.delta[q, g]),
             float(losses.delta[q, g] / losses.noise) if losses.noise else math.nan) for q, g in places]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a method's groups are ranked as retraining ranks them.

    Args:
        family, method, channel, kind (str): Of which queries, by what, among which groups.
        groups (int): How many. queries (dict): How many each measure could be taken of.
        measures (dict): By name, the mean over queries with its interval.
    """
    family: str
    method: str
    channel: str
    kind: str
    groups: int
    queries: tp.Dict[str, int]
    measures: tp.Dict[str, Interval]


def agreement(family: str, method: str, channel: str, scores: FloatArray, losses: Losses) -> tp.List[Agreement]:
    """Compare a method's scores [Q, N] with what leaving groups out did, by kind of group."""
    by_group = scores @ losses.members.T  # [Q, G]
    rows = []
    for kind in KINDS:
        columns = losses.columns(kind)
        if len(columns) < 2:
            continue
        values = {name: measure(by_group[:, columns], losses.delta[:, columns]) for name, measure in MEASURES.items()}
        known = {name: one[np.isfinite(one)] for name, one in values.items()}
        rows.append(Agreement(family, method, channel, kind, len(columns), {name: len(one) for name, one in
                                                                            known.items()},
                              {name: _interval(name, one) for name, one in known.items()}))
    return rows


def _interval(name: str, values: FloatArray) -> Interval:
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    return wilson(int(values.sum()), len(values)) if name == 'top-1' else interval(values)


def chances(losses: Losses) -> tp.Dict[str, tp.Dict[str, Chance]]:
    """What each measure reaches by guessing, by kind of group: scores shuffled within each query."""
    kinds = {kind: losses.columns(kind) for kind in KINDS}
    return {kind: {name: chance(measure, losses.delta[:, columns]) for name, measure in MEASURES.items()}
            for kind, columns in kinds.items() if len(columns) > 1}


@dataclasses.dataclass(frozen=True)
class SourceGroup:
    """Where the group of a query's own source ranks among the left-out groups of its kind.

    Args:
        family, method, channel, kind (str): As above; the method 'retraining' is the truth itself.
        groups (int): How many of the kind. queries (int): Those whose source is in one of them.
        first (Interval): Share at rank 1. mean (float): Mean rank.
    """
    family: str
    method: str
    channel: str
    kind: str
    groups: int
    queries: int
    first: Interval
    mean: float


def source_groups(family: str, method: str, channel: str, by_group: FloatArray, losses: Losses,
                  songs: tp.Sequence[str]) -> tp.List[SourceGroup]:
    """Rank the groups by what each query [Q, G] is said to owe them, and look for its source's.

    Args:
        songs (sequence of str): Ids of the N songs, in the order of `losses.members`.
    """
    place = {song: column for column, song in enumerate(songs)}
    rows = []
    for kind in KINDS[:2]:
        columns = losses.columns(kind)
        right = [(query, int(np.argmax(inside))) for query, source in enumerate(losses.sources) if source is not None
                 and (inside := losses.members[columns, place[source]]).any()] if len(columns) > 1 else []
        if not right:
            continue
        values = np.array([ranks(by_group[[query]][:, columns])[0, column] for query, column in right])
        rows.append(SourceGroup(family, method, channel, kind, len(columns), len(values),
                                wilson(int((values == 1).sum()), len(values)), float(values.mean())))
    return rows
