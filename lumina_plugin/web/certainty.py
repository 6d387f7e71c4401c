"""How sure: a query on the null distribution, both gates side by side, and what is known of the store's scores."""

import dataclasses
import typing as tp

import numpy as np

from ..reliability import LEAST, MOST, Diagnosis, doubts
from ..report.schema import AttributionReport, ChannelReport, SongRow
from ..store import GENERATION, RECORDING, Kind

if tp.TYPE_CHECKING:
    from ..attribution import Attributor
    from ..calibration import Null

BINS = 60
_ROUNDING = 1e-9
FARTHEST = 40.  # standard deviations that are drawn
MARKS = 300  # songs of a query that are drawn


@dataclasses.dataclass(frozen=True)
class Mark:
    """A song of the query on the null's axis."""
    title: str
    z: float
    p: float
    share: float


@dataclasses.dataclass(frozen=True)
class NullChart:
    """What chance alone scores in a channel, in standard deviations of each song's own scores.

    Args:
        outside (int): Songs from outside of the catalogue. pool (int): Comparisons of them with it.
        origin (str): Where they come from.
        edges (list): Of the bins, ascending, one more than bins. counts (list): Comparisons in each bin.
        line (float, optional): A song right of it passes the calibrated gate, as this query's other songs lie.
        marks (list): The query's closest songs, the closest first.
    """
    outside: int
    pool: int
    origin: str
    edges: tp.List[float]
    counts: tp.List[int]
    line: tp.Optional[float]
    marks: tp.List[Mark]


@dataclasses.dataclass(frozen=True)
class GateLine:
    """One gate's verdict on a channel.

    Args:
        name (str): Of the gate. asks (str): What it asks of a song.
        decides (bool): Whether its verdict is what is paid.
        passing (int): Songs that pass. paid (list): (title, share) of those that it would pay, the largest first.
        unattributed (float): What it would leave.
    """
    name: str
    asks: str
    decides: bool
    passing: int
    paid: tp.List[tp.Tuple[str, float]]
    unattributed: float


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of the store's diagnosis, with the limit beyond which it is a doubt."""
    name: str
    value: float
    limit: str
    doubt: bool
    meaning: str


@dataclasses.dataclass(frozen=True)
class Certainty:
    """All of one channel; `chart` is None where the store has no outside songs, `gates` empty without a query."""
    channel: str
    chart: tp.Optional[NullChart]
    gates: tp.List[GateLine]
    figures: tp.List[Figure]


def certainty(attributor: 'Attributor', report: tp.Optional[AttributionReport]) -> tp.List[Certainty]:
    """How sure a report is, by channel; without one, what is known of the store alone."""
    found = []
    kind: Kind = RECORDING if report is None or report.query.kind == 'file' else GENERATION
    for key in attributor.store.channels:
        channel = report.channels.get(key) if report is not None else None
        chance = attributor.chance(key, kind)
        chart = None if chance is None else null_chart(chance.null, attributor.song_ids, channel, chance.origin)
        found.append(Certainty(key, chart, [] if channel is None else gate_lines(channel),
                               figures(None if chance is None else chance.diagnosis)))
    return found


def null_chart(null: 'Null', song_ids: tp.Sequence[str], channel: tp.Optional[ChannelReport], origin: str
               ) -> NullChart:
    """The null distribution [pool] as a histogram, with the N songs of a query on it."""
    marks = [] if channel is None else _marks(null, song_ids, channel)
    zs = [mark.z for mark in marks]
    low, high = min([null.reaching(1.), *zs]), max([null.reaching(0.), *zs])
    low, high = max(low, -FARTHEST), min(high, FARTHEST)  # a song that hardly ever scores anything stands anywhere
    room = 0.03 * (high - low) or 1.
    edges = np.linspace(low - room, high + room, BINS + 1)
    above = np.round(null.at_least(edges)).astype(int)
    above[0], above[-1] = null.pool, 0  # the outermost bins hold what lies beyond
    line = None
    if channel is not None and channel.calibration is not None and channel.songs:
        passing = max(1, channel.calibration.passing)  # Benjamini and Hochberg: the more pass, the less each must do
        line = null.reaching(channel.calibration.rate * passing / channel.songs)
    return NullChart(null.outside, null.pool, origin, edges.tolist(), (above[:-1] - above[1:]).tolist(), line, marks)


def _marks(null: 'Null', song_ids: tp.Sequence[str], channel: ChannelReport) -> tp.List[Mark]:
    rows = {row.track_id: row for row in channel.rows}
    if set(rows) != set(song_ids):
        return []  # the store has changed since
    z = null.z(np.array([rows[song].score for song in song_ids]))
    p = null.p_values(z)
    order = np.argsort(-z, kind='stable')[:MARKS]
    return [Mark(rows[song_ids[i]].title, float(z[i]), float(p[i]), rows[song_ids[i]].share) for i in order]


def gate_lines(channel: ChannelReport) -> tp.List[GateLine]:
    """Both gates' verdicts, the calibrated one first; the printed one alone where nothing was calibrated."""
    from ..report import words
    printed = GateLine('Printed', f'confidence of at least {words.gate_words(channel)}', not channel.calibrated,
                       channel.passing, *_paid_by(channel, lambda row: row.passes_gate, False))
    found = channel.calibration
    if found is None:
        return [printed]
    return [GateLine('Calibrated', f'q of at most {found.rate:g}', found.decides, found.passing,
                     *_paid_by(channel, lambda row: bool(row.passes_calibrated_gate), True)), printed]


def _paid_by(channel: ChannelReport, passes: tp.Callable[[SongRow], bool], of_all: bool
             ) -> tp.Tuple[tp.List[tp.Tuple[str, float]], float]:
    """Whom a gate pays, and what it leaves: parts of the weights of all songs, or of those that pass."""
    earning = [row for row in channel.rows if row.weight > 0 and passes(row)]
    total = sum(row.weight for row in (channel.rows if of_all else earning))
    paid = sorted(((row.title, row.weight / total) for row in earning), key=lambda one: -one[1]) if earning else []
    left = 1. - sum(share for _, share in paid)
    return paid, left if left > _ROUNDING else 0.


_NAMES = {'ranking_correlation': ('Rankings agree by', '1: different music gets the same ranking'),
          'rank_one_energy': ('One pattern explains', '1: a single pattern explains all scores'),
          'effective_rank': ('Patterns in the scores', 'few: the scores hardly tell music apart'),
          'concentration': ('The closest song would take', '1: one song takes all, whatever is asked'),
          'hub_skewness': ('Skewness of hubs', 'high: a few songs are close to everything')}


def figures(found: tp.Optional[Diagnosis]) -> tp.List[Figure]:
    """A store's diagnosis, as numbers with limits; none where there is none."""
    if found is None:
        return []
    doubted = doubts(found)
    return [Figure(name, float(getattr(found, key)), f'at most {MOST[key]:g}' if key in MOST else
                   f'at least {LEAST[key]:g}', key in doubted, meaning) for key, (name, meaning) in _NAMES.items()]
