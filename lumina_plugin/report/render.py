"""Views of an AttributionReport: one self-contained HTML page, a table for the terminal, CSV."""

import base64
import csv
import functools
import io
import json
import re
import typing as tp
import uuid
from pathlib import Path

import jinja2
import rich.box
import rich.console
import rich.table
import rich.text
from markupsafe import Markup, escape

from ..atomic import write_atomic
from ..errors import LuminaError
from . import plots, words
from .schema import AttributionReport, ChannelReport, PathLike

MAX_HTML_BYTES = 1_500_000  # without the audio
TABLE_ROWS = 1000
SHOWN_WARNINGS = 6
TITLE_WIDTH = 44  # columns of a terminal for a song; titles give way, numbers never
_MIME = {'.wav': 'audio/wav', '.flac': 'audio/flac', '.mp3': 'audio/mpeg', '.ogg': 'audio/ogg', '.oga': 'audio/ogg',
         '.opus': 'audio/ogg', '.m4a': 'audio/mp4', '.mp4': 'audio/mp4', '.aac': 'audio/aac', '.webm': 'audio/webm'}
CSV_COLUMNS = ('query_id', 'channel', 'rank', 'track_id', 'title', 'artist', 'isrc', 'iswc', 'cosine', 'score', 'z',
               'confidence', 'sts', 'lip_percent', 'passes_gate', 'qualified', 'weight', 'share', 'share_low',
               'share_high', 'p_value', 'q_value', 'passes_calibrated_gate')


def render_html(report: AttributionReport, out_path: PathLike, audio_path: tp.Optional[PathLike] = None) -> Path:
    """Write the report as one HTML file that loads nothing from anywhere and runs no script.

    The page holds at most 1.5 MB besides the audio: where the catalogue is too large for that, the full table shows the
    songs with the highest scores and says how many it leaves to the JSON and CSV files.

    Args:
        report: what to show.
        out_path: the HTML file; written atomically.
        audio_path: the query's audio, embedded so that it plays; any format that browsers know.
    Raises:
        LuminaError: for an unreadable audio file or an unwritable folder.
    """
    audio = _data_uri(Path(audio_path)) if audio_path is not None else ''
    # The audio goes in last, since the limit is about the rest; no title can guess the name of its slot.
    slot = f'data:audio/{uuid.uuid4().hex}' if audio else ''
    limit = TABLE_ROWS
    page = _page(report, limit, slot)
    while (size := len(page.encode())) > MAX_HTML_BYTES and limit > 10:
        limit = min(int(0.9 * limit * MAX_HTML_BYTES / size), limit // 2 if limit < 100 else limit)
        page = _page(report, limit, slot)
    return write_atomic(out_path, page.replace(slot, audio) if audio else page)


def _page(report: AttributionReport, limit: int, audio: str) -> str:
    template = environment().get_template('report.html.j2')
    return template.render(
        report=report, query=report.query, headline=words.headline(report), facts=_facts(report),
        shown_warnings=report.warnings[:SHOWN_WARNINGS], more_warnings=report.warnings[SHOWN_WARNINGS:limit],
        channels=[_channel_view(key, channel, report.query.silent, limit)
                  for key, channel in report.channels.items()],
        other_summaries=words.other_reading(report),
        channel_meaning=words.channel_meaning(report), hashes=_hashes(report), audio=audio,
        overhead=words.overhead(report),
        recipe_keys=[pair for key, value in report.recipe.keys.items() for pair in _flat(key, value)])


def environment() -> jinja2.Environment:
    """Templates of this folder, escaped, with the number formats of `words` as filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ('clean', 'percent', 'confidence', 'number', 'seconds', 'odds', 'between', 'song_count',
                 'recording_count', 'file_count'):
        environment.filters[name] = getattr(words, name)
    environment.filters['coded'] = _coded
    return environment


def _coded(text: str) -> Markup:
    """A sentence, escaped, with what stands between backticks as code."""
    return Markup(re.sub('`([^`]+)`', r'<code>\1</code>', str(escape(text))))


def _channel_view(key: str, channel: ChannelReport, silent: bool, limit: int) -> tp.Dict[str, tp.Any]:
    heard = {hit.track_id for segment in channel.segments for hit in segment.top}
    return dict(
        key=key, words=words.channel_words(key), channel=channel, summary=words.summary(key, channel, silent),
        bars=plots.share_bars(channel), position=plots.position(channel), timeline=plots.timeline(channel),
        titles={row.track_id: words.clean(row.title) for row in channel.rows if row.track_id in heard},
        rows=channel.rows[:limit], left_off=max(0, len(channel.rows) - limit), segments=channel.segments[:limit],
        verdicts=functools.partial(words.gates, channel), certainty=words.certainty(channel),
        gate=words.gate_words(channel), by_chance=words.expected_by_chance(channel), caveat=words.caveat(channel))


def _facts(report: AttributionReport) -> tp.List[tp.Tuple[str, str]]:
    query = report.query
    facts = [('Query', words.clean(query.id)), ('Made on', f'{report.created:%d %B %Y, %H:%M} UTC'.lstrip('0')),
             ('Length', words.seconds(query.duration))]
    if query.kind == 'continuation':
        facts.append(('Prompt', f'first {words.seconds(query.prompt_seconds)} of {words.prompt_song(report)}'))
    if query.prompt:
        facts.append(('Text', f'“{words.clean(query.prompt, 160)}”'))
    if query.seed is not None:
        facts.append(('Seed', str(query.seed)))
    facts += [('Model', _model(report)),
              ('Catalogue', f'{words.clean(report.store.name)}, {words.count(report.store.songs, "song")}'),
              ('Recipe', words.clean(report.recipe.name))]
    return facts


def _model(report: AttributionReport) -> str:
    loaded = report.model.checkpoint
    return words.clean(report.model.id) + ('' if loaded is None else f', weights of {words.clean(loaded.name)}')


def _flat(key: str, value: tp.Any) -> tp.Iterator[tp.Tuple[str, str]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _flat(f'{key}.{name}', part)
    elif isinstance(value, list):
        yield key, ', '.join(part if isinstance(part, str) else json.dumps(part) for part in value)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _hashes(report: AttributionReport) -> tp.List[tp.Tuple[str, tp.Optional[str]]]:
    listed: tp.List[tp.Tuple[str, tp.Optional[str]]] = [
        ('Audio (SHA-256)', report.query.sha256), ('Codes', report.query.codes_hash),
        ('Model configuration', report.model.config_hash), (f'Codec {report.codec.id}', report.codec.hash),
        (f'Store {report.store.name}', report.store.hash), ('Catalogue', report.store.catalogue_hash),
        ('Catalogue of the training', report.store.trained_on_hash or 'not known'),
        (f'Recipe {report.recipe.name}', report.recipe.hash)]
    for point in report.checkpoints:
        epoch = '' if point.epoch is None else f', epoch {point.epoch}'
        listed.append((f'Weights of {point.name}{epoch}', point.model_hash))
    return listed


def _data_uri(path: Path) -> str:
    mime = _MIME.get(path.suffix.lower())
    if mime is None:
        raise LuminaError(f"{path} is no audio that a browser plays: convert it to WAV, FLAC, OGG or MP3.")
    try:
        return f'data:{mime};base64,' + base64.b64encode(path.read_bytes()).decode('ascii')
    except OSError as error:
        raise LuminaError(f"Cannot read the audio {path} ({error.strerror or error}): check its name.") from error


def render_table(report: AttributionReport, top: int = 5, width: int = 110, colour: bool = False) -> str:
    """The songs with the highest scores per channel, the unattributed remainder, and the warnings, for a terminal.

    Args:
        report: what to show.
        top: songs per channel; all that are paid are counted in the remainder line.
        width: columns of the terminal.
        colour: with ANSI colours.
    """
    console = rich.console.Console(
        file=io.StringIO(), width=width, force_terminal=colour, no_color=not colour,
        color_system='standard' if colour else None, highlight=False, markup=False, emoji=False)
    for warning in report.warnings[:SHOWN_WARNINGS]:
        console.print(rich.text.Text(f'Warning: {words.clean(warning, 1000)}', style='bold red'))
    if len(report.warnings) > SHOWN_WARNINGS:
        console.print(f'… and {len(report.warnings) - SHOWN_WARNINGS} more warnings in the report')
    for key, channel in report.channels.items():
        console.print(_terminal_table(key, channel, top))
        for line in filter(None, (words.summary(key, channel, report.query.silent), words.caveat(channel),
                                  *words.certainty(channel))):
            console.print(line.replace(words.NBSP, ' '))
    if words.channel_meaning(report):
        console.print(f'The channels: {words.channel_meaning(report)}'.replace(words.NBSP, ' '))
    if report.other_reading is not None:
        console.print(f"With the prompt {'counted' if report.other_reading.prompt_counted else 'left out'}:")
        for line in words.other_reading(report):
            console.print(f'  {line}'.replace(words.NBSP, ' '))
    return tp.cast(io.StringIO, console.file).getvalue()


def _gate_names(channel: ChannelReport) -> str:
    return 'gate' if channel.calibration is None else (
        f'printed gate, {channel.calibration.passing} the calibrated one')


def _terminal_table(key: str, channel: ChannelReport, top: int) -> rich.table.Table:
    table = rich.table.Table(
        title=f'{key}  {words.channel_words(key).name}', title_justify='left', title_style='bold',
        caption=f'{channel.score_name} over {channel.songs} songs; {channel.passing} pass the '
                f'{_gate_names(channel)}, {channel.qualified} qualify',
        caption_justify='left', box=rich.box.SIMPLE_HEAD)
    chance = channel.calibration is not None
    table.add_column('song', no_wrap=True, overflow='ellipsis', width=TITLE_WIDTH - (12 if chance else 0))
    for name in ('cosine', 'score', 'confidence', *(('chance',) if chance else ()), 'STS', 'LIP %', 'share'):
        table.add_column(name, justify='right', no_wrap=True, min_width=len(name))
    for row in channel.rows[:max(top, 0)]:
        name = words.clean(row.title) + (f' – {words.clean(row.artist)}' if row.artist else '')
        cells = (words.number(row.cosine), words.number(row.score), words.confidence(row.confidence),
                 *((words.odds(row.p_value),) if chance else ()), words.number(row.sts, 2), f'{row.lip_percent:.1f}',
                 words.percent(row.share))
        table.add_row(rich.text.Text(name), *(cell.replace(words.NBSP, ' ') for cell in cells),
                      style='bold' if row.share > 0 else 'dim')
    empty = [''] * (len(table.columns) - 2)
    hidden = [row for row in channel.rows[max(top, 0):] if row.share > 0]
    if hidden:
        table.add_row(f'{len(hidden)} other paid songs', *empty,
                      words.percent(sum(row.share for row in hidden)).replace(words.NBSP, ' '))
    table.add_row('unattributed', *empty, words.percent(channel.unattributed).replace(words.NBSP, ' '))
    return table


def to_csv(report: AttributionReport, path: PathLike) -> Path:
    """Write one row per song and channel, numbers in full precision, UTF-8, atomically.

    Text that a spreadsheet would run as a formula (starting with = + - @, tab or return) gets a leading apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\r\n')
    writer.writerow(CSV_COLUMNS)
    for key, channel in report.channels.items():
        for row in channel.rows:
            values = row.model_dump() | {'query_id': report.query.id, 'channel': key}
            writer.writerow([csv_cell(values[column]) for column in CSV_COLUMNS])
    return write_atomic(path, buffer.getvalue())


def csv_cell(value: tp.Any) -> tp.Any:
    """A value as every spreadsheet reads it: no formula, no Python."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, str) and value[:1] in ('=', '+', '-', '@', '\t', '\r'):
        return "'" + value
    return '' if value is None else value
