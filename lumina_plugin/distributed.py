"""Queries against songs of which several processes hold a part each, answered as one process would answer them.

| what depends on all songs       | how the processes agree on it                                     | when           |
|---------------------------------|-------------------------------------------------------------------|----------------|
| kernel regression               | Gram matrices [D, D] are summed                                   | at the start   |
| the noise of the gate           | the very sample that one process would take is gathered           | at the start   |
| mean and sd of a query's scores | those of the parts are joined by the decomposition of variance    | first gather   |
| what the songs earn together    | weights are summed                                                | second gather  |
| the highest songs               | the k highest of each process, with their numbers, are merged     | second gather  |

No song leaves its process, but for those of the noise's sample. Up to `scoring.EXACT_SONGS` songs the results are those
of one process but for rounding in fp64; beyond, each process chooses its precision by the songs that it holds, and the
highest songs are exact as ever.
"""

import dataclasses
import typing as tp

import numpy as np
import numpy.typing as npt

from . import statistics
from .scoring import DEFAULT_RIDGE, FloatArray, fit_scorers, highest, mean_scores
from .statistics import ChannelStatistics, Gate, Spread
from .workers import Workers

Item = tp.TypeVar('Item')


class Totals(tp.NamedTuple):
    """Of all songs: their number, how many pass the gate, how many qualify, and the Σ of these ones' weights."""
    songs: int
    passing: int
    qualified: int
    weight: float


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
    Raises:
        LuminaError: for songs that cannot be scored.
    """

    def __init__(self, workers: Workers, songs: tp.Sequence[tp.Any], method: str = 'cosine',
                 ridge: float = DEFAULT_RIDGE, gate: tp.Optional[Gate] = None,
                 noise: tp.Optional[tp.Tuple[float, float]] = None, unit: bool = True):
        self.workers, self.method, self.gate, self._unit = workers, method, gate or Gate(), unit
        counts = workers.gather(songs[0].shape[0])
        self.count, self.offset = sum(counts), sum(counts[:workers.rank])
        names = list(dict.fromkeys(['cosine', method]))
        self._scorers = [fit_scorers(names, rows, ridge, workers.sum, unit) for rows in songs]
        self.noise_mean, self.noise_floor = self._measured(songs) if noise is None else noise

    def answer(self, queries: tp.Sequence[npt.ArrayLike], k: int) -> tp.List[Answer]:
        """What each query owes to whom; every process gets all answers.

        Args:
            queries: per checkpoint, [Q, D]; the same ones in every process.
            k: how many songs to name; all of them where there are fewer.
        """
        cosines, scores = mean_scores(self._scorers, queries, self.method)  # [Q, n]
        spreads = self.workers.gather([statistics.spread_of(score) for score in scores])
        answers = self.workers.gather([
            self._part(cosine, score, statistics.joint_spread(spread), k)
            for cosine, score, *spread in zip(cosines, scores, *spreads, strict=True)])
        return [joined(parts, k) for parts in zip(*answers, strict=True)]

    def _part(self, cosine: FloatArray, score: FloatArray, spread: Spread, k: int) -> Answer:
        values = statistics.channel_statistics(cosine, score, self.noise_floor, self.gate, self.noise_mean, spread)
        return part_of_answer(values, k, self.offset)

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
    totals = Totals(len(values.score), int(values.passes_gate.sum()), int(qualified.sum()), values.earned)
    return Answer(index + offset, values.at(index), totals)


def joined(parts: tp.Sequence[Answer], k: int) -> Answer:
    """The answer of all processes from those of each, by rank."""
    totals = Totals(*(sum(column) for column in zip(*(part.totals for part in parts), strict=True)))
    cosine, score = (np.concatenate([getattr(part.statistics, name) for part in parts]) for name in ('cosine', 'score'))
    values = dataclasses.replace(parts[0].statistics, cosine=cosine, score=score, earned=totals.weight)
    order = highest(values.score, k)  # parts are in the songs' order, and so are ties within each
    return Answer(np.concatenate([part.index for part in parts])[order], values.at(order), totals)


def consecutive(items: tp.Sequence[Item], rank: int, count: int) -> tp.List[Item]:
    """The items (a store's shards, say) of process `rank` of `count`, where each takes a run of them, by rank."""
    return list(items[len(items) * rank // count:len(items) * (rank + 1) // count])
