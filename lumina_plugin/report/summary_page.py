"""The page of a summary: one HTML file for whoever pays, and whoever is paid."""

import dataclasses
import math
import typing as tp

from ..atomic import write_atomic
from . import words
from .plots import Bar
from .render import MAX_HTML_BYTES, environment
from .schema import PathLike
from .summary import ChannelSummary, Entry, Owed, Summary

BARS, PRINTED = 10, 5  # songs with a bar on a screen, and on paper, where one page is to hold both channels
NAMED = 3
TABLE_ROWS = 2000


def render_summary(summary: Summary, out_path: PathLike) -> tp.Any:
    """Write a summary as one HTML file that loads nothing from anywhere and runs no script, of at most 1.5 MB.

    Of very many songs or recordings the tables show the first ones and say how many they leave to the CSV files.

    Raises:
        LuminaError: for a folder that cannot be written.
    """
    limit = TABLE_ROWS
    page = _page(summary, limit)
    while (size := len(page.encode())) > MAX_HTML_BYTES and limit > 10:
        limit = min(int(0.9 * limit * MAX_HTML_BYTES / size), limit // 2 if limit < 100 else limit)
        page = _page(summary, limit)
    return write_atomic(out_path, page)


def _page(summary: Summary, limit: int) -> str:
    template = environment().get_template('summary.html.j2')
    return template.render(
        summary=summary, headline=headline(summary), facts=_facts(summary),
        channels=[_view(summary, key, channel, limit) for key, channel in summary.channels.items()],
        recordings=[_recording(entry) for entry in summary.recordings[:limit]],
        more_recordings=max(0, len(summary.recordings) - limit), left_out=summary.left_out[:limit],
        more_left_out=max(0, len(summary.left_out) - limit), unit=_unit(summary),
        own=sum(entry.kind != 'file' for entry in summary.recordings))


def headline(summary: Summary) -> str:
    """The page's title."""
    return f'Who is owed what for {words.count(len(summary.recordings), "recording")}'


def _facts(summary: Summary) -> tp.List[tp.Tuple[str, str]]:
    counted = {'recordings': 'each recording the same', 'seconds': 'each second the same'}[summary.by]
    return [('Of', words.clean(summary.name)), ('Made on', f'{summary.created:%d %B %Y, %H:%M} UTC'.lstrip('0')),
            ('Length', words.length(summary.seconds)), ('Counted', counted), ('Model', words.clean(summary.model)),
            ('Catalogue', f'{words.clean(summary.store)}, {words.count(summary.store_songs, "song")}'),
            ('Recipe', words.clean(summary.recipe))]


def _unit(summary: Summary) -> str:
    return 'recording' if summary.by == 'recordings' else 'second'


@dataclasses.dataclass(frozen=True)
class _Scale:
    """An axis from 0 to `end`, with ticks (x in percent, label)."""
    end: float
    ticks: tp.List[tp.Tuple[float, str]]


def _view(summary: Summary, key: str, channel: ChannelSummary, limit: int) -> tp.Dict[str, tp.Any]:
    shown = channel.owed[:BARS]
    scale = _scale([song.share_high or song.share for song in shown])
    rest = channel.owed[len(shown):]
    paid = max(0., 1 - channel.unattributed)  # which sums can put above 1 by rounding
    return dict(
        key=key, words=words.channel_words(key), channel=channel, summary=sentence(summary, key, channel),
        bars=[_bar(song, scale) for song in shown], scale=scale, rest=len(rest),
        rest_share=math.fsum(song.share for song in rest),
        not_printed=max(0, len(channel.owed) - PRINTED),
        not_printed_share=math.fsum(song.share for song in channel.owed[PRINTED:]), paid=paid,
        rows=channel.owed[:limit], left_off=max(0, len(channel.owed) - limit),
        remainder=words.span(channel.unattributed_low, channel.unattributed_high),
        paying=len(summary.recordings) - channel.nobody)


def sentence(summary: Summary, key: str, channel: ChannelSummary) -> str:
    """Who gets what of one channel, in a sentence."""
    money = f'{words.channel_words(key).money} of {words.count(len(summary.recordings), "recording")}'
    rest = f'{words.percent(channel.unattributed)} stays unattributed'
    if not channel.owed:
        return f'The whole {money} stays unattributed: no song stands out from what chance explains.'
    parts = [f'{words.percent(song.share)} {"goes " if not index else ""}to {_song(song)}'
             for index, song in enumerate(channel.owed[:NAMED])]
    others = channel.owed[NAMED:]
    if others:
        parts.append(f'{words.percent(math.fsum(song.share for song in others))} to '
                     f'{words.count(len(others), "other song")}')
    listed = parts[0] if len(parts) == 1 else ', '.join(parts[:-1]) + ' and ' + parts[-1]
    return f'Of the {money}, {listed}; {rest}.'


def _song(song: Owed) -> str:
    return f'“{words.clean(song.title)}”' + (f' by {words.clean(song.artist)}' if song.artist else '')


def _scale(values: tp.Sequence[float]) -> _Scale:
    """A round axis on which the longest bar fills most of the width: small shares of a large catalogue stay legible."""
    most = max([*values, 1e-4])
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * 4.001 >= most)
    count = max(1, math.ceil(most / step - 1e-9))
    end = min(1., count * step)
    digits = max(0, -math.floor(math.log10(100 * step) + 1e-9)) + (round(step / power, 1) == 2.5)
    ticks = [(round(100 * index * step / end, 3), f'{100 * index * step:.{digits}f}') for index in range(count + 1)
             if index * step <= end + 1e-9]
    return _Scale(end, ticks)


def _bar(song: Owed, scale: _Scale) -> Bar:
    interval = None if song.share_low is None or song.share_high is None else (
        round(100 * song.share_low / scale.end, 3), round(min(100., 100 * song.share_high / scale.end), 3))
    details = (words.clean(song.artist), words.span(song.share_low, song.share_high),
               words.count(song.recordings, 'recording'))
    return Bar('song', words.clean(song.title), ' · '.join(filter(None, details)), words.percent(song.share),
               round(100 * song.share / scale.end, 3), interval)


def _recording(entry: Entry) -> tp.Dict[str, tp.Any]:
    """One row of the table of recordings."""
    most = {key: max(channel.paid, key=lambda paid: paid.share, default=None) for key, channel in
            entry.channels.items()}
    return dict(entry=entry, most=most)
