"""What the page shows, as HTML. Everything that a song, a visitor or a file brings is escaped."""

import functools
import math
import typing as tp
from pathlib import Path

import jinja2

from ..explain import Explanation
from ..report import plots, words
from ..report.schema import AttributionReport
from ..store.records import TrackRecord
from .certainty import Certainty, NullChart
from .desk import LISTENED, Desk, Songs
from .history import Influence, Past
from .limits import Limits
from .measured import Measured
from .results import Result

Urls = tp.Callable[[Path], str]  # where a browser finds a file
HERE = Path(__file__).parent
LATEST = 8  # past generations that a song's card lists


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / 'templates'), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ('clean', 'percent', 'confidence', 'number', 'seconds', 'odds', 'between', 'count'):
        environment.filters[name] = getattr(words, name)
    environment.filters['clock'] = clock
    environment.globals['channel_words'] = words.channel_words
    return environment


def _render(template: str, **values: tp.Any) -> str:
    return _environment().get_template(f'{template}.html.j2').render(**values)


def clock(seconds: float) -> str:
    """75.2 -> '1:15'."""
    whole = int(seconds + 0.5)
    return f'{whole // 60}:{whole % 60:02d}'


def front() -> str:
    """What stands in the document itself, before any script has run: the page's name, and how all of it looks."""
    return _render('front', css=(HERE / 'page.css').read_text(encoding='utf-8'))


def header(desk: Desk) -> str:
    """Of which model and catalogue this page is."""
    studio = desk.studio
    return _render('header', model=desk.concealer.text(studio.musicgen.name),
                   checkpoint=studio.checkpoint, songs=len(studio.store.tracks),
                   recipe=studio.attributor.recipe.name)


def footer(limits: Limits, remembers: bool) -> str:
    """What is kept of visitors, and what is not."""
    return _render('footer', limits=limits, remembers=remembers)


def result(found: Result, audio: str) -> str:
    """Both channels side by side: shares with intervals, the remainder, and the evidence over time; and the music, by
    its address."""
    report = found.report
    channels = [dict(key=key, words=words.channel_words(key), channel=channel, bars=plots.share_bars(channel),
                     timeline=plots.timeline(channel), summary=words.summary(key, channel, report.query.silent),
                     caveat=words.caveat(channel), certainty=words.certainty(channel))
                for key, channel in report.channels.items()]
    masked = sum(segment.masked_seconds for segment in next(iter(report.channels.values())).segments)
    return _render('result', name=found.name, audio=audio, report=report, headline=words.headline(report),
                   channels=channels, masked=masked, other=words.other_reading(report),
                   meaning=words.channel_meaning(report), facts=_facts(report))


def _facts(report: AttributionReport) -> tp.List[str]:
    query = report.query
    return [words.seconds(query.duration), *([f'seed {query.seed}'] if query.seed is not None else []),
            f'compared with {words.count(report.store.songs, "song")}', f'recipe {words.clean(report.recipe.name)}',
            f'{report.created:%d %B %Y, %H:%M} UTC'.lstrip('0')]


def player(mine: str, begin: float, end: float, song: str, track: TrackRecord) -> str:
    """Two players: a segment, and the song that it points to, by their addresses."""
    return _render('player', mine=mine, begin=begin, end=end, song=song, title=words.clean(track.title or track.id),
                   artist=words.clean(track.artist), listened=LISTENED,
                   cut=(track.duration or 0.) > LISTENED)


def catalogue(found: Songs, wanted: str) -> str:
    """A page of songs to choose from."""
    return _render('catalogue', found=found, wanted=wanted)


def song(track: TrackRecord, influence: tp.Mapping[str, Influence], past: tp.Sequence[Past], audio: tp.Optional[str],
         channels: tp.Sequence[str]) -> str:
    """One song: what is known of it, its recording, and what it was paid over all past generations."""
    latest = [one for one in past if any(track.id in earned for earned in one.earned.values())][:LATEST]
    return _render('song', track=track, influence=influence, latest=latest, audio=audio, generations=len(past),
                   channels=channels, rights=_rights(track))


def _rights(track: TrackRecord) -> tp.List[tp.Tuple[str, str]]:
    """Who owns which part of a song, in words."""
    found = []
    for key, label in (('writers', 'Written by'), ('master_owners', 'Master owned by')):
        owners = [f"{words.clean(str(owner.get('name', '')))} {owner.get('share', 0):g} %"
                  for owner in track.extra.get(key, []) if isinstance(owner, dict)]
        if owners:
            found.append((label, ', '.join(owners)))
    return found


def certainty(channels: tp.Sequence[Certainty], report: tp.Optional[AttributionReport],
              known: tp.Optional[Measured], urls: Urls, own_run: str) -> str:
    """The null distribution with this query on it, both gates, the store's diagnostics, and validation."""
    drawn = [dict(found=found, chart=None if found.chart is None else null_geometry(found.chart),
                  words=words.channel_words(found.channel)) for found in channels]
    pictures = [] if known is None else [(text, urls(path)) for text, path in known.pictures]
    return _render('certainty', channels=drawn, known=known, pictures=pictures, own_run=own_run,
                   headline=words.headline(report) if report is not None else '')


def null_geometry(chart: NullChart, height: int = 120) -> tp.Dict[str, tp.Any]:
    """Where things stand in the chart: x in percent, heights in pixels, counts on a logarithmic scale."""
    low, high = chart.edges[0], chart.edges[-1]
    top = math.log10(1 + max(chart.counts))

    def place(value: float) -> float:
        return round(100 * min(max((value - low) / (high - low), 0.), 1.), 3)
    columns = [dict(x=place(edge), width=round(100 / len(chart.counts), 3), height=max(2., round(
        height * math.log10(1 + count) / top, 1)), count=count)
               for edge, count in zip(chart.edges, chart.counts, strict=False) if count]
    marks = [dict(x=place(mark.z), title=words.clean(mark.title, 40), z=mark.z, paid=mark.share > 0, p=mark.p)
             for mark in chart.marks]
    powers = [power for power in range(1, 9) if math.log10(1 + 10 ** power) < top]
    return dict(columns=columns, marks=marks, line=None if chart.line is None else place(chart.line), height=height,
                ticks=[(place(value), f'{value}'.replace('-', '−')) for value in range(math.ceil(low), int(high) + 1)
                       if value % max(1, round((high - low) / 8)) == 0],
                levels=[(round(height * math.log10(1 + 10 ** power) / top, 1), f'{10 ** power:,}') for power in powers])


def explanation(found: Explanation, report: AttributionReport, keys: tp.Mapping[str, tp.Any]) -> str:
    """The route of the numbers drawn, and one song's numbers along it in both channels."""
    return _render('explanation', found=found, report=report, parts_list=[
        dict(part=part, words=words.channel_words(part.key)) for part in found.channels], keys=keys,
        headline=words.headline(report))


def nothing_yet(text: str) -> str:
    """In the place of a result that is not there yet."""
    return _render('nothing', text=text)
