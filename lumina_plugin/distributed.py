"""Queries against songs of which several processes hold a part each, answered as one process would answer them.

| what depends on all songs       | how the processes agree on it                                     | when           |
|---------------------------------|-------------------------------------------------------------------|----------------|
| kernel regression               | Gram matrices [D, D] are summed                                   | at the start   |
| the noise of the gate           | the very sample that one process would take is gathered           | at the start   |
| mean and sd of a query's scores | those of the parts are joined by the decomposition of variance    | first gather   |
| chance: the null of the songs   | variances are summed, pools of outside songs' z put side by side  | at the start   |
| a query's centre                | its median over all songs (`joint.medians`)                       | two gathers    |
| a query's mean and sd of z      | sums and sums of squares are summed                               | one gather     |
| q of a query's songs            | every process' different p, and how often it has each             | one gather     |
| what the songs earn together    | weights are summed                                                | last gather    |
| the highest songs               | the k highest of each process, with their numbers, are merged     | last gather    |

Chance is asked about only where outside songs are given. No song leaves its process, but for those of the noise's
sample. Up to `scoring.EXACT_SONGS` songs the results are those of one process but for rounding in fp64; beyond, each
process chooses its precision by the songs that it holds, and the highest songs are exact as ever. A pool that is too
large to keep (`calibration.EXACT_POOL`) is exact at its upper end, and below as coarse as one process keeps it.
"""

import dataclasses
import typing as tp

import numpy as np
import numpy.typing as npt

from . import joint, statistics
from .calibration import Null
from .scoring import DEFAULT_RIDGE, FloatArray, fit_scorers, highest, mean_scores, score_together
from .statistics import Chance, ChannelStatistics, Gate, Spread
from .workers import Workers

Item = tp.TypeVar('Item')


class Totals(tp.NamedTuple):
    """Of all songs: their number, how many pass the printed gate, how many qualify, and the Σ of these ones' weights;
    where chance was asked about, how many pass the calibrated gate, and the Σ of all songs' weights."""
    songs: int
    passing: int
    qualified: int
    weight: float
    passing_calibrated: int = 0
    divided: float = 0.


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What one channel says about one query.

    Attributes:
        index: `[k]`, the songs of highest score, best first, ties in their order; counted over all processes by rank.
        statistics: theirs, every array `[k]`; shares and `unattributed` are those among all songs.
        totals: of all songs.
    """
    index: npt.NDArray[np.int64]
    statistics: ChannelStatistics
    totals: Totals


class DistributedScorer:
    """One channel's songs, spread over processes, ready for queries. All processes make it and ask it together.

    Args:
        workers: the processes.
        songs: per checkpoint this one's songs [n, D]: arrays, tensors or `StackedRows`; perhaps none. By rank they
            make up the catalogue (see `consecutive`).
        method: the score. ridge: λ, for scores that have one.
        gate: 95 %, two-sided unless given.
        noise: mean and σ of the gate; measured unless given.
        unit: False for fingerprints whose length counts.
        outside: per checkpoint the fingerprints [n, D] of the same outside songs (`store.null`), for the calibrated
            gate; the same ones in every process. rate: of that gate. calibrated: whether it decides.
    Raises:
        LuminaError: for songs that cannot be scored, or too few outside songs.
    """

    def __init__(self, workers: Workers, songs: tp.Sequence[tp.Any], method: str = 'cosine',
                 ridge: float = DEFAULT_RIDGE, gate: tp.Optional[Gate] = None,
                 noise: tp.Optional[tp.Tuple[float, float]] = None, unit: bool = True,
                 outside: tp.Optional[tp.Sequence[npt.ArrayLike]] = None, rate: float = 0.05, calibrated: bool = True):
        self.workers, self.method, self.gate, self._unit = workers, method, gate or Gate(), unit
        self.rate, self.calibrated = rate, calibrated
        counts = workers.gather(songs[0].shape[0])
        self.count, self.offset = sum(counts), sum(counts[:workers.rank])
        names = list(dict.fromkeys(['cosine', method]))
        self._scorers = [fit_scorers(names, rows, ridge, workers.sum, unit) for rows in songs]
        self.noise_mean, self.noise_floor = self._measured(songs) if noise is None else noise
        self._null = None if outside is None else self._null_of(outside)

    def answer(self, queries: tp.Sequence[npt.ArrayLike], k: int) -> tp.List[Answer]:
        """What each query owes to whom; every process gets all answers.

        Args:
            queries: per checkpoint, [Q, D]; the same ones in every process.
            k: how many songs to name; all of them where there are fewer.
        """
        cosines, scores = mean_scores(self._scorers, queries, self.method)  # [Q, n]
        spreads = self.workers.gather([statistics.spread_of(score) for score in scores])
        chances = self._chances(scores)
        answers = self.workers.gather([
            self._part(cosine, score, chance, statistics.joint_spread(spread), k)
            for cosine, score, chance, *spread in zip(cosines, scores, chances, *spreads, strict=True)])
        return [joined(parts, k) for parts in zip(*answers, strict=True)]

    def _part(self, cosine: FloatArray, score: FloatArray, chance: tp.Optional[Chance], spread: Spread, k: int
              ) -> Answer:
        values = statistics.channel_statistics(cosine, score, self.noise_floor, self.gate, self.noise_mean, spread,
                                               calibrated=self.calibrated, chance=chance)
        return part_of_answer(values, k, self.offset)

    @property
    def _gather(self) -> tp.Optional[joint.Gather]:
        """How others are asked, where there are any."""
        return self.workers.gather if self.workers.count > 1 else None

    def _null_of(self, outside: tp.Sequence[npt.ArrayLike]) -> Null:
        """What the outside songs score against all songs."""
        total: tp.Any = 0.
        for scorers, vectors in zip(self._scorers, outside, strict=True):  # one after the other: each is [n, N]
            total = total + score_together([scorers[self.method]], vectors)[0]
        return Null(total / len(self._scorers), self._gather)

    def _chances(self, scores: FloatArray) -> tp.Sequence[tp.Optional[Chance]]:
        """What chance says of this process' songs, in view of all, for each query with scores [Q, n]."""
        null = self._null
        if null is None:
            return [None] * len(scores)
        p = null.p_values(null.z(scores, joint.medians(scores, self._gather)[:, None], gather=self._gather))
        q = joint.q_values(p, self._gather or joint.alone)
        return [Chance(*both, self.rate, null.outside) for both in zip(p, q, strict=True)]

    def _measured(self, songs: tp.Sequence[tp.Any]) -> tp.Tuple[float, float]:
        """`statistics.measured_noise` of all songs."""
        index = statistics.noise_sample(self.count) - self.offset
        index = index[(index >= 0) & (index < songs[0].shape[0])]
        parts = self.workers.gather(statistics.unit_sample(songs, index, self._unit))
        found = statistics.noise_of(np.concatenate(parts), len(songs)) if self.workers.rank == 0 else None
        return self.workers.broadcast(found)


def part_of_answer(values: ChannelStatistics, k: int, offset: int) -> Answer:
    """The answer as far as one process knows it: of its own songs, the first of which has number `offset`."""
    index = highest(values.score, k)
    qualified = values.at(values.candidates).qualified
    totals = Totals(len(values.score), int(values.passes_gate.sum()), int(qualified.sum()), values.earned,
                    0 if values.chance is None else int(values.chance.passes.sum()), values.divided or 0.)
    return Answer(index + offset, values.at(index), totals)


def joined(parts: tp.Sequence[Answer], k: int) -> Answer:
    """The answer of all processes from those of each, by rank."""
    totals = Totals(*(sum(column) for column in zip(*(part.totals for part in parts), strict=True)))
    cosine, score = (np.concatenate([getattr(part.statistics, name) for part in parts]) for name in ('cosine', 'score'))
    chances = [part.statistics.chance for part in parts if part.statistics.chance is not None]
    chance = None if not chances else dataclasses.replace(
        chances[0], p=np.concatenate([each.p for each in chances]), q=np.concatenate([each.q for each in chances]))
    values = dataclasses.replace(parts[0].statistics, cosine=cosine, score=score, chance=chance, earned=totals.weight,
                                 divided=totals.divided if parts[0].statistics.calibrated else None)
    order = highest(values.score, k)  # parts are in the songs' order, and so are ties within each
    return Answer(np.concatenate([part.index for part in parts])[order], values.at(order), totals)


def consecutive(items: tp.Sequence[Item], rank: int, count: int) -> tp.List[Item]:
    """The items (a store's shards, say) of process `rank` of `count`, where each takes a run of them, by rank."""
    return list(items[len(items) * rank // count:len(items) * (rank + 1) // count])
