"""A report in plain words: sentences and number formats that the HTML page and the terminal's table share."""

import dataclasses
import math
import typing as tp
import unicodedata

from .schema import AttributionReport, ChannelReport, SongRow

NBSP = '\u00a0'
LONGEST = 90  # characters of a title or name that a page shows; the JSON and CSV hold all of it
NAMED = 3  # songs that a summary names


@dataclasses.dataclass(frozen=True)
class ChannelWords:
    """How a channel is called.

    Attributes:
        name: heading.
        money: what is divided in it.
        meaning: one line below the heading.
        style: CSS class.
    """
    name: str
    money: str
    meaning: str
    style: str


_CHANNELS = {
    'P': ChannelWords('Composition / publishing', 'publishing share',
                      "The work that was written, compared through the model’s attention layers.", 'p'),
    'M': ChannelWords('Production / master', 'master share',
                      "The recording that was made, compared through the model’s output layers.", 'm'),
}


def channel_words(key: str) -> ChannelWords:
    other = ChannelWords(f'Channel {key}', f'share of channel {key}', 'A group of the model’s layers.', 'x')
    return _CHANNELS.get(key, other)


def clean(text: str, longest: int = LONGEST) -> str:
    """One line without control or direction characters, shortened."""
    text = ' '.join(text[:10 * longest].split())  # a title of a megabyte is nobody's title
    text = ''.join(char for char in text if unicodedata.category(char) not in ('Cc', 'Cf', 'Cs', 'Co', 'Cn'))
    return text if len(text) <= longest else text[:longest - 1].rstrip() + '…'


def percent(fraction: float, digits: int = 1) -> str:
    """0.714 -> '71.4 %'. A share that is not 0 never reads as 0.0, and one that is not whole never as 100.0."""
    smallest = 10.0 ** -digits
    value = fraction * 100
    if 0 < value < smallest / 2:
        return f'<{NBSP}{smallest:.{digits}f}{NBSP}%'
    if 100 - smallest / 2 <= value < 100 - 1e-9:
        return f'>{NBSP}{100 - smallest:.{digits}f}{NBSP}%'
    return f'{value if abs(value) > 1e-9 else 0:.{digits}f}{NBSP}%'  # no -0.0


def confidence(fraction: float) -> str:
    """A confidence as text. It is never certainty, so the highest that is printed is '> 99.9 %'."""
    return percent(min(fraction, 1 - 1e-7))


def odds(p: tp.Optional[float]) -> str:
    """How often chance does as well: 0.00016 -> '1 in 6,200'. Two digits are kept, and never a rarer chance told."""
    if p is None:
        return '–'
    if p > 0.5:
        return 'likely'
    times = 1 / p
    unit = 10 ** max(0, math.floor(math.log10(times)) - 1)
    return f'1{NBSP}in{NBSP}{math.floor(times / unit + 1e-9) * unit:,}'


def between(row: SongRow) -> str:
    """The interval on a share, '41 to 70 %'; nothing where there is none."""
    if row.share_low is None or row.share_high is None:
        return ''
    low, high = (percent(end, 0) for end in (row.share_low, row.share_high))
    return low if low == high else f'{low.removesuffix(f"{NBSP}%")} to {high}'


def span(low: tp.Optional[float], high: tp.Optional[float]) -> str:
    """'1.2 to 3.4 %', or nothing where there is no interval."""
    if low is None or high is None:
        return ''
    first, last = percent(low), percent(high)
    return first if first == last else f'{first.removesuffix(f"{NBSP}%")} to {last}'


def gates(channel: ChannelReport, row: SongRow) -> tp.Tuple[str, str]:
    """Verdict of the gate that decides, and of the other one ('' where nothing was calibrated)."""
    printed, calibrated = ('passes' if passes else 'below'
                           for passes in (row.passes_gate, row.passes_calibrated_gate))
    if channel.calibration is None:
        return printed, ''
    return (calibrated, f'printed: {printed}') if channel.calibrated else (printed, f'calibrated: {calibrated}')


def number(value: float, digits: int = 3) -> str:
    """Fixed decimals with a true minus sign, or powers of ten where those would hide the number."""
    if value != 0 and (abs(value) < 0.5 * 10.0 ** -digits or abs(value) >= 1e6):
        text = f'{value:.1e}'
    else:
        text = f'{value:.{digits}f}'
    return text.replace('-', '−')


def seconds(value: float) -> str:
    """12.5 -> '12.5 s', 125 -> '2:05 min'."""
    if value >= 119.95:
        whole = round(value)
        return f'{whole // 60}:{whole % 60:02d}{NBSP}min'
    return f'{value:.1f}'.removesuffix('.0') + f'{NBSP}s'


def count(items: int, one: str, many: str = '') -> str:
    return f'{items:,}{NBSP}{one if items == 1 else many or one + "s"}'


def song_count(songs: int, other: bool = False) -> str:
    """'3 songs', or '3 other songs'."""
    return count(songs, 'other song' if other else 'song')


def recording_count(recordings: int) -> str:
    return count(recordings, 'recording')


def file_count(files: int) -> str:
    return count(files, 'file')


def length(value: float) -> str:
    """Of many recordings: '12.5 s', '2:05 min', or '3.4 h' from ninety minutes on."""
    return seconds(value) if value < 5400 else f'{value / 3600:,.1f}{NBSP}h'


def song(row: SongRow) -> str:
    artist = clean(row.artist)
    return f'“{clean(row.title)}”' + (f' by {artist}' if artist else '')


def paid(channel: ChannelReport) -> tp.List[SongRow]:
    """Songs with a share, the largest first."""
    return sorted((row for row in channel.rows if row.share > 0), key=lambda row: (-row.share, row.rank))


def summary(key: str, channel: ChannelReport, silent: bool) -> str:
    """Who gets what of one channel, in a sentence or two."""
    money = channel_words(key).money
    rows = paid(channel)
    if not rows:
        return f'The whole {money} stays unattributed. {_why_nobody(channel, silent)}'
    goes = [f'{percent(row.share)} goes to {song(row)}' if not index else f'{percent(row.share)} to {song(row)}'
            for index, row in enumerate(rows[:NAMED])]
    rest = sum(row.share for row in rows[NAMED:])
    if len(rows) == NAMED + 1:
        goes.append(f'{percent(rest)} to {song(rows[-1])}')
    elif rest > 0:
        goes.append(f'{percent(rest)} to {count(len(rows) - NAMED, "other song")}')
    listed = goes[0] if len(goes) == 1 else ', '.join(goes[:-1]) + ' and ' + goes[-1]
    if channel.unattributed > 0:
        return f'Of the {money}, {listed}; {percent(channel.unattributed)} stays unattributed.'
    return f'Of the {money}, {listed}. Nothing is left unattributed.'


def channel_meaning(report: AttributionReport) -> str:
    """Whether publishing and master are what the channels find on this model, or that nobody has measured it."""
    if {'P', 'M'} - set(report.channels):
        return ''
    return clean(report.channel_meaning, 2000) if report.channel_meaning else (
        'Whether on this model P tells compositions from productions, and M productions from compositions, has not '
        'been measured; `lumina validate channels` does.')


def other_reading(report: AttributionReport) -> tp.List[str]:
    """What each channel says of a continuation with its prompt counted, or left out, where the report does not."""
    if report.other_reading is None:
        return []
    return [summary(key, channel, report.query.silent) for key, channel in report.other_reading.channels.items()]


def _why_nobody(channel: ChannelReport, silent: bool) -> str:
    level = percent(channel.gate.level, 0)
    if silent:
        return 'The audio is silent, so there is nothing to compare.'
    if channel.songs < 3:
        return f'The store holds {count(channel.songs, "song")}; shares need at least 3 to compare with each other.'
    if channel.calibration is not None and channel.calibrated and not channel.calibration.passing:
        nearest = min(channel.rows, key=lambda row: (row.p_value or 0., row.rank))
        pieces = count(channel.calibration.outside_songs, 'piece')
        return (f'No song stands out from what {pieces} of music from outside the catalogue score: the nearest to '
                f'that is {song(nearest)}, {_by_chance(channel, nearest)}.')
    if channel.calibrated:
        return (f'{_passing(channel)}, but none has a score that stands out from the rest of the catalogue.')
    if not channel.passing:
        best = max(channel.rows, key=lambda row: row.cosine)
        if best.cosine <= 0:
            return 'No song of the catalogue is like it at all: no cosine is above 0.'
        return (f'No song is closer to it than chance can explain: the closest is {song(best)}, '
                f'with a confidence of {confidence(best.confidence)} where the gate asks for {gate_words(channel)}.')
    return (f'{count(channel.passing, "song")} reached the {level} gate, '
            'but none stands out from the rest of the catalogue.')


def _passing(channel: ChannelReport) -> str:
    passing = channel.passing if channel.calibration is None else channel.calibration.passing
    return count(passing, 'song passes the gate', 'songs pass the gate')


def certainty(channel: ChannelReport) -> tp.List[str]:
    """What a reader who is paid, or pays, should know of a channel's first share: could it be chance, how firm is it,
    and what does the other gate say."""
    lines, rows = [], paid(channel)
    if rows and rows[0].p_value is not None:
        first = 'Could it be chance?' if len(rows) == 1 else f'Could {song(rows[0])} be there by chance?'
        lines.append(f'{first} Music that owes nobody comes as close to a song no more than '
                     f'{_once(rows[0])} comparisons, and this report makes {channel.songs:,}.')
    if rows and between(rows[0]) and channel.resampling is not None:
        lines.append(f'With {_drawn(channel)} drawn anew, the first share lies between '
                     f'{between(rows[0]).replace(" to ", " and ")}.')
    return [*lines, *filter(None, [second_opinion(channel), reliability(channel)])]


_DOUBTS = {'ranking_correlation': 'different music gets nearly the same ranking',
           'rank_one_energy': 'a single pattern explains most scores',
           'effective_rank': 'the scores know but few patterns', 'concentration': 'one song would take nearly all',
           'hub_skewness': 'a few songs are close to everything'}


def reliability(channel: ChannelReport) -> str:
    """Whether the store's scores tell music apart, in words and figures; empty where it was not measured."""
    found = channel.calibration.reliability if channel.calibration is not None else None
    if found is None or channel.calibration is None:
        return ''
    verdict = 'no sign that the scores fail to tell music apart' if not found.doubts else (
        'do not rely on this channel, for ' + ' and '.join(_DOUBTS[doubt] for doubt in found.doubts))
    asked = found.queries or channel.calibration.outside_songs
    return (f'Reliability: {verdict} (of {asked:,} outside recordings, rankings agree by '
            f'{number(found.ranking_correlation, 2)}; one pattern explains {percent(found.rank_one_energy, 0)} of the '
            f'scores, in all there are {number(found.effective_rank, 0)}; the closest song would take '
            f'{percent(found.concentration, 0)}; skewness of hubs {number(found.hub_skewness, 1)}).')


def _once(row: SongRow) -> str:
    return odds(row.p_value).replace(f'1{NBSP}in', 'once in', 1)


def _by_chance(channel: ChannelReport, row: SongRow) -> str:
    if (row.p_value or 0.) > 0.5:
        return 'and most music that owes nobody comes closer to a song'
    return (f'and music that owes nobody comes as close to a song {_once(row)} comparisons, of which this report makes '
            f'{channel.songs:,}')


def _drawn(channel: ChannelReport) -> str:
    """What intervals were drawn from, in words."""
    assert channel.resampling is not None
    names = [name for name, drawn in (('the music’s parts', channel.resampling.chunks),
                                      ('the model’s checkpoints', channel.resampling.checkpoints)) if drawn > 1]
    return ' and '.join(names)


def second_opinion(channel: ChannelReport) -> str:
    """Whom the gate that does not decide would pay."""
    if channel.calibration is None:
        return ''
    ours = {row.track_id for row in channel.rows if row.qualified}
    theirs = {row.track_id for row in channel.rows if row.weight > 0 and
              (row.passes_gate if channel.calibrated else row.passes_calibrated_gate)}
    other = 'paper’s printed' if channel.calibrated else 'calibrated'
    if ours == theirs:
        return f'The {other} gate agrees.'
    return f'The {other} gate would pay {count(len(theirs), "song") if theirs else "nobody"} instead.'


def gate_words(channel: ChannelReport) -> str:
    """What the gate asks, on the scale on which confidence is printed."""
    return percent(math.erf(channel.gate.z_threshold / math.sqrt(2.0)))


def headline(report: AttributionReport) -> str:
    """What was attributed, as a title."""
    query = report.query
    if query.kind == 'file':
        return f'Recording “{clean(query.id)}”'
    if query.kind == 'continuation':
        return f'Continuation of {prompt_song(report)}'
    return f'Music generated from “{clean(query.prompt, 160)}”' if query.prompt else 'Music generated without a prompt'


def prompt_song(report: AttributionReport) -> str:
    wanted = report.query.prompt_song_id
    if wanted is None:
        return 'an audio prompt'
    for channel in report.channels.values():
        for row in channel.rows:
            if row.track_id == wanted:
                return song(row)
    return f'“{clean(wanted)}”, which is not in the catalogue'


def overhead(report: AttributionReport) -> str:
    """What attribution took beside the generation itself; empty where no generation was timed."""
    took = {stage: seconds_ for stage, seconds_ in report.timings.items() if stage != 'generate'}
    generated = report.timings.get('generate', 0.)
    if generated <= 0 or not took:
        return ''
    return (f'Attribution took {sum(took.values()):.2f}{NBSP}s, {percent(sum(took.values()) / generated, 0)} of the '
            f'{generated:.2f}{NBSP}s that the generation itself took.')


def method(channel: ChannelReport) -> str:
    """How a channel was judged: score, gate and, where it was measured, chance."""
    found = channel.calibration
    printed = f'a cosine {number(channel.gate.z_threshold, 2)} noise floors above what is unremarkable'
    if found is None:
        return f'{channel.score_name} score; gate: {printed}.'
    calibrated = (f'p-values from {found.outside_songs:,} {clean(found.origin, 200)}, with a false discovery rate of '
                  f'{percent(found.rate, 0)}')
    return f'{channel.score_name} score; gate: {calibrated if found.decides else printed}.'


def expected_by_chance(channel: ChannelReport) -> float:
    """Songs that an unrelated query lets through the gate on average: N·(1 - Φ(threshold))."""
    return channel.songs * 0.5 * math.erfc(channel.gate.z_threshold / math.sqrt(2.0))


def caveat(channel: ChannelReport) -> str:
    """What must stand beside shares that chance could have made: hardly more songs pass than it lets through."""
    chance = expected_by_chance(channel)
    if channel.calibrated:  # chance was measured, and has been dealt with
        return ''
    if not channel.qualified or channel.passing > 2 * chance:
        return ''
    passing = f'{count(channel.passing, "song passes", "songs pass")} the gate'
    return f'But {passing}, where chance alone lets {number(chance, 1)} through: these shares may rest on nothing.'
