"""Geometry of the report's charts. The templates draw it as inline SVG.

Horizontal positions are percentages and vertical ones pixels, so a chart fills any width, from a phone to A4, while its
lettering keeps its size.
"""

import dataclasses
import math
import typing as tp

import numpy as np

from .schema import ChannelReport, SongRow
from .words import between, clean, confidence, count, number, odds, paid, percent, seconds, song

MAX_BARS = 6
MAX_LANES = 5
BINS = 60


@dataclasses.dataclass(frozen=True)
class Bar:
    """One line of a channel's division. `kind` is song, others or unattributed; width and interval are in percent."""
    kind: str
    title: str
    detail: str
    value: str
    width: float
    interval: tp.Optional[tp.Tuple[float, float]] = None


def share_bars(channel: ChannelReport) -> tp.List[Bar]:
    """The largest shares, the others together, and always the unattributed remainder."""
    rows = paid(channel)
    shown = rows if len(rows) <= MAX_BARS else rows[:MAX_BARS - 1]
    bars = [dataclasses.replace(_bar('song', clean(row.title), _detail(row), row.share), interval=_interval(row))
            for row in shown]
    others = rows[len(shown):]
    if others:
        rest = sum(row.share for row in others)
        bars.append(_bar('others', count(len(others), 'other song'), 'listed in the full table', rest))
    bars.append(_bar('unattributed', 'Unattributed', '', channel.unattributed))
    return bars


def _bar(kind: str, title: str, detail: str, share: float) -> Bar:
    return Bar(kind, title, detail, percent(share), round(100 * share, 3))


def _interval(row: SongRow) -> tp.Optional[tp.Tuple[float, float]]:
    if row.share_low is None or row.share_high is None:
        return None
    return round(100 * row.share_low, 3), round(100 * row.share_high, 3)


def _detail(row: SongRow) -> str:
    sure = f'confidence {confidence(row.confidence)}' if row.p_value is None else f'chance {odds(row.p_value)}'
    return ' · '.join(part for part in (clean(row.artist), sure, between(row)) if part)


@dataclasses.dataclass(frozen=True)
class Column:
    """One bin of the catalogue: x and width in percent, heights in pixels."""
    x: float
    width: float
    rest: float
    paid: float


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the songs stand on the axis of cosines, against the gate."""
    columns: tp.List[Column]
    ticks: tp.List[tp.Tuple[float, str]]
    gate: float
    gate_label: str
    mark: tp.Optional[float]
    mark_label: str
    height: int
    description: str


def position(channel: ChannelReport, height: int = 64) -> tp.Optional[Position]:
    """Histogram of the cosines of all songs; None for an empty store."""
    if not channel.rows:
        return None
    cosines = np.array([row.cosine for row in channel.rows])
    is_paid = np.array([row.share > 0 for row in channel.rows])
    gate = channel.noise_mean + channel.gate.z_threshold * channel.noise_floor
    low = min(0.0, float(cosines.min()))
    high = max(float(cosines.max()), min(gate, 1.0), 1e-9)
    low, high = low - 0.02 * (high - low), high + 0.04 * (high - low)
    edges = np.linspace(low, high, BINS + 1)
    everyone, _ = np.histogram(cosines, edges)
    earners, _ = np.histogram(cosines[is_paid], edges)
    columns = []
    for index in np.flatnonzero(everyone):
        # A single song among hundreds must stay visible: no column is lower than 3 pixels.
        tall = max(3.0, height * float(everyone[index]) / float(everyone.max()))
        part = max(3.0, tall * float(earners[index]) / float(everyone[index])) if earners[index] else 0.0
        columns.append(Column(x=round(100 * index / BINS, 3), width=round(100 / BINS - 0.25, 3),
                              rest=round(tall, 1), paid=round(part, 1)))
    name = 'printed gate' if channel.calibrated else 'gate'
    best = (paid(channel) or [max(channel.rows, key=lambda row: row.cosine)])[0]
    return Position(
        columns=columns, ticks=_ticks(low, high), gate=_place(gate, low, high), gate_label=f'{name} {number(gate)}',
        mark=_place(best.cosine, low, high) if best.cosine > 0 else None, mark_label=clean(best.title, 32),
        height=height,
        description=f'{count(channel.songs, "song")} by cosine, from {number(float(cosines.min()))} '
                    f'to {number(float(cosines.max()))}. The {name} is at {number(gate)}; {channel.passing} reach it. '
                    f'{song(best)} is at {number(best.cosine)}.')


def _place(value: float, low: float, high: float) -> float:
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 3)


def _ticks(low: float, high: float) -> tp.List[tp.Tuple[float, str]]:
    rough = (high - low) / 4
    power = math.floor(math.log10(rough))
    factor = next(factor for factor in (1, 2, 2.5, 5, 10) if factor * 10.0 ** power >= rough or factor == 10)
    step = factor * 10.0 ** power
    digits = max(0, -math.floor(math.log10(step))) + (factor == 2.5)
    first, last = math.ceil(low / step), math.floor(high / step)
    values = [index * step for index in range(first, last + 1)]
    return [(_place(value, low, high), f'{value:.{digits}f}'.replace('-', '−') if value else '0') for value in values]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One segment of one song: its number, x and width in percent, height in pixels."""
    segment: int
    x: float
    width: float
    height: float
    first: bool
    label: str
    description: str


@dataclasses.dataclass(frozen=True)
class Lane:
    """One song along the query."""
    track_id: str
    title: str
    artist: str
    cells: tp.List[Cell]
    description: str


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Songs closest to each segment, along the query's time. Spans are (x, width) in percent."""
    lanes: tp.List[Lane]
    silent: tp.List[tp.Tuple[float, float]]
    masked: tp.List[tp.Tuple[float, float]]
    borders: tp.List[float]
    ticks: tp.List[tp.Tuple[float, str]]
    height: int


def timeline(channel: ChannelReport, height: int = 34) -> tp.Optional[Timeline]:
    """The evidence per segment of the songs that matter most; None without segments."""
    segments = channel.segments
    end = max((segment.end for segment in segments), default=0.0)
    if end <= 0:
        return None
    known = {row.track_id: row for row in channel.rows}
    peak = max((hit.cosine for segment in segments for hit in segment.top), default=0.0)
    lanes = []
    for track_id in _lane_songs(channel):
        cells = [_cell(channel, index, rank, end, peak, height) for index, segment in enumerate(segments)
                 for rank, hit in enumerate(segment.top) if hit.track_id == track_id]
        row = known.get(track_id)
        title = clean(row.title if row else track_id, 60)
        lanes.append(Lane(track_id=track_id, title=title, artist=clean(row.artist, 60) if row else '', cells=cells,
                          description=f'{title}: ' + '; '.join(cell.description for cell in cells)))
    spans = [(round(100 * part.start / end, 3), round(100 * (part.end - part.start) / end, 3)) for part in segments]
    masked = [(round(100 * part.start / end, 3), round(100 * min(part.masked_seconds, part.end - part.start) / end, 3))
              for part in segments if part.masked_seconds > 0]
    silent = [span for span, part in zip(spans, segments, strict=True) if part.silent]
    return Timeline(lanes=lanes, silent=silent, masked=masked,
                    borders=[x for x, _ in spans if x > 0] if len(spans) <= 60 else [],
                    ticks=_time_ticks(end), height=height)


def _lane_songs(channel: ChannelReport) -> tp.List[str]:
    """Songs that lead a segment come first, then those that are paid, then the closest."""
    firsts: tp.Dict[str, int] = {}
    best: tp.Dict[str, float] = {}
    for segment in channel.segments:
        for rank, hit in enumerate(segment.top):
            firsts[hit.track_id] = firsts.get(hit.track_id, 0) + (rank == 0)
            best[hit.track_id] = max(best.get(hit.track_id, -1.0), hit.cosine)
    share = {row.track_id: row.share for row in channel.rows}
    ranked = sorted(best, key=lambda track: (-firsts[track], -share.get(track, 0.0), -best[track], track))
    return ranked[:MAX_LANES]


def _cell(channel: ChannelReport, index: int, rank: int, end: float, peak: float, height: int) -> Cell:
    segment = channel.segments[index]
    hit = segment.top[rank]
    tall = height * max(hit.cosine, 0.0) / peak if peak > 0 else 0.0
    # The prompt's part of a segment carries no evidence, so its bar starts after it.
    start = min(segment.start + segment.masked_seconds, segment.end)
    gap = min(0.5, 12 / len(channel.segments))
    width = max(100 * (segment.end - start) / end - gap, 0.2)
    return Cell(
        segment=index, x=round(100 * start / end + gap / 2, 3), width=round(width, 3),
        height=round(max(tall, 1.0), 1) if hit.cosine > 0 else 0.,  # what points away has no bar
        first=rank == 0,
        label=number(hit.cosine, 2) if len(channel.segments) <= 6 and width > 8 else '',
        description=f'{seconds(segment.start)} to {seconds(segment.end)} cosine {number(hit.cosine)}'
                    + (', closest of all' if rank == 0 else ''))


def _time_ticks(end: float) -> tp.List[tp.Tuple[float, str]]:
    step = next((step for step in (5, 10, 20, 30, 60, 120, 300, 600, 1800) if end / step <= 6), end / 6)
    values = [index * step for index in range(int(end / step) + 1)]
    return [(round(100 * value / end, 3), f'{int(value) // 60}:{int(value) % 60:02d}') for value in values]
