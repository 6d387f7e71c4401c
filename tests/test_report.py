"""The report: checked when made and when read, and safe and complete in every view."""

import base64
import csv
import dataclasses
import html.parser
import json
import os
import re
import subprocess
import sys
import typing as tp
from pathlib import Path

import numpy as np
import pydantic
import pytest
import soundfile

from lumina_plugin.calibration import Null
from lumina_plugin.errors import LuminaError
from lumina_plugin.intervals import Intervals
from lumina_plugin.report import render_html, render_table, to_csv, words
from lumina_plugin.report.render import CSV_COLUMNS, MAX_HTML_BYTES
from lumina_plugin.report.schema import (
    AttributionReport,
    ChannelReport,
    OtherReading,
    Segment,
    SegmentHit,
    json_schema,
)
from lumina_plugin.report.words import percent
from lumina_plugin.scoring import cosine, multi_checkpoint
from lumina_plugin.statistics import Gate, channel_statistics, measured_noise

NAUGHTY = '<script>alert(1)</script>'
PLACES = (
    'Harbour',
    'Orchard',
    'Tramline',
    'Lantern',
    'Quarry',
    'Meadow',
    'Attic',
    'Glacier',
    'Market',
    'Signal',
    'Canal',
    'Paper',
)
TIMES = ('at Dawn', 'in Rain', 'after Hours', 'in Blue', 'Revisited', 'by Night', 'for Two', 'in Motion', 'Asleep')


@dataclasses.dataclass
class Song:
    id: str
    title: str
    artist: str
    isrc: tp.Optional[str] = None
    iswc: tp.Optional[str] = None


def songs(count: int) -> tp.List[Song]:
    return [
        Song(
            id=f'song_{index:03d}',
            title=f'{PLACES[index % 12]} {TIMES[index // 12 % 9]}',
            artist=f'The {PLACES[index * 5 % 12]} Trio',
            isrc=f'ZZ-LUM-25-{index:05d}',
            iswc=f'T-900.000.{index % 12:03d}-0',
        )
        for index in range(count)
    ]


def fingerprints(count: int, family: int, width: int = 512, checkpoints: int = 4) -> np.ndarray:
    """[C, N, D]: songs of one family share a direction, as songs of one composition or one production do."""
    rng = np.random.default_rng(family)
    shared = rng.normal(size=(checkpoints, family, width))
    rows = 0.5 * shared[:, np.arange(count) % family] + rng.normal(size=(checkpoints, count, width))
    return rows - rows.mean(axis=1, keepdims=True) if count else rows


def channel(
    tracks: tp.Sequence[Song],
    family: int,
    mix: tp.Mapping[int, float],
    durations: tp.Sequence[float] = (10, 10, 4),
    masked: float = 2.0,
    silent_at: int = -1,
    gate: tp.Optional[Gate] = None,
) -> ChannelReport:
    """A channel's report from fingerprints that went through the real scoring and statistics."""
    count, rng = len(tracks), np.random.default_rng(7)
    store = fingerprints(count, family)
    clean = sum((weight * store[:, index] for index, weight in mix.items()), np.zeros((4, 512)))
    query = clean + 1.6 * rng.normal(size=clean.shape) * bool(mix)
    mean = multi_checkpoint([cosine(vector, rows) for vector, rows in zip(query, store, strict=True)])[0]
    segments, start = [], 0.0
    for index, length in enumerate(durations):
        part = clean * rng.uniform(0.4, 1.2) + 3 * rng.normal(size=clean.shape)
        score = multi_checkpoint([cosine(vector, rows) for vector, rows in zip(part, store, strict=True)])[0]
        hits = [SegmentHit(track_id=tracks[i].id, cosine=score[i], score=score[i]) for i in np.argsort(-score)[:5]]
        silent = index == silent_at
        segments.append(
            Segment(
                index=index,
                start=start,
                end=start + length,
                masked_seconds=0 if index else masked,
                silent=silent,
                top=[] if silent else hits,
            )
        )
        start += length
    noise, floor = measured_noise(list(store))
    return ChannelReport.from_statistics(
        channel_statistics(mean, mean, floor, gate, noise), tracks, 'cosine', 'measured', segments
    )


def sample(
    tracks: tp.Optional[tp.List[Song]] = None,
    mixes: tp.Sequence[tp.Mapping[int, float]] = ({5: 1, 17: 0.5, 30: 0.2}, {5: 1, 13: 0.6}),
    query: tp.Optional[tp.Dict[str, tp.Any]] = None,
    warnings: tp.Sequence[str] = (),
    **options: tp.Any,
) -> AttributionReport:
    tracks = songs(97) if tracks is None else tracks
    families = zip('PM', (12, 8), mixes, strict=True)
    channels = {key: channel(tracks, family, mix, **options) for key, family, mix in families}
    about = dict(
        id='clip_0002',
        kind='continuation',
        prompt='slow waltz with a warm pad',
        seed=42,
        prompt_song_id='song_005',
        prompt_seconds=2.0,
        duration=sum(options.get('durations', (10, 10, 4))),
        sample_rate=11500,
        sha256='ab' * 32,
        codes_hash='cd' * 32,
        audio_file='clip_0002.wav',
    ) | (query or {})
    return AttributionReport.model_validate(
        dict(
            lumina_version='0.1.0',
            query=about,
            model=dict(id='lumina/quickstart', config_hash='11' * 32),
            codec=dict(id='lumina_tiny', hash='22' * 32),
            channels=channels,
            store=dict(
                name='lumina', hash='33' * 32, songs=len(tracks), catalogue_hash='44' * 32, trained_on_hash='44' * 32
            ),
            checkpoints=[
                dict(name=f'epoch_{epoch}', epoch=epoch, model_hash=f'{epoch:02d}' * 32) for epoch in (2, 4, 6, 8)
            ],
            recipe=dict(
                name='default',
                hash='55' * 32,
                keys={
                    'objective': 'margin',
                    'chunk_seconds': 10.0,
                    'channels': {'P': ['self_attention'], 'M': ['output_linears']},
                    'block_norm': True,
                    'projection.kind': 'fitted',
                    'projection.dim': 512,
                    'projection.seed': 0,
                    'projection.block_width': 64,
                    'scoring.method': 'cosine',
                    'scoring.ridge': 0.01,
                    'gate.level': 0.95,
                    'gate.tail': 'two_sided',
                    'gate.noise_floor': 'measured',
                    'checkpoints': 'all',
                    'mask_prompt': True,
                },
            ),
            timings={'encode': 0.05, 'fingerprint': 1.31, 'score': 0.02},
            warnings=list(warnings),
        )
    )


class Page(html.parser.HTMLParser):
    """Collects what a page would load or run, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: tp.List[tp.Tuple[str, tp.Dict[str, tp.Optional[str]]]] = []
        self.text = ''
        self.source = path.read_text(encoding='utf-8')
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def rows(self, key: str) -> int:
        part = self.source.split(f'Statistics of all songs, channel {key}')[1].split('</table>')[0]
        return part.split('<tbody>')[1].count('<tr')


@pytest.fixture(scope='module')
def report() -> AttributionReport:
    return sample()


def page_of(report: AttributionReport, folder: Path, **options: tp.Any) -> Page:
    return Page(render_html(report, folder / 'report.html', **options))


# ---- schema ----


def test_rows_are_all_songs_ranked_by_score_with_the_statistics_values(report):
    tracks, store = songs(97), fingerprints(97, 12)
    rows = report.channels['P'].rows
    assert sorted(row.track_id for row in rows) == [track.id for track in tracks]
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    assert rows[0].track_id == 'song_005' and rows[0].title == tracks[5].title and rows[0].isrc == tracks[5].isrc
    mean, sigma = measured_noise(store)
    assert rows[0].z == pytest.approx((rows[0].cosine - mean) / sigma)


def test_save_and_load_give_the_same_report(report, tmp_path):
    path = report.save(tmp_path / 'new' / 'report.json')
    assert AttributionReport.load(path) == report
    assert json.loads(path.read_text())['created'].endswith('Z') and os.listdir(path.parent) == ['report.json']


def test_a_failed_write_leaves_the_old_file_and_nothing_else(report, tmp_path, monkeypatch):
    path = report.save(tmp_path / 'report.json')
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(LuminaError, match='No space left'):
        report.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['report.json']


def test_a_folder_that_cannot_be_made_is_named(report, tmp_path):
    (tmp_path / 'file').write_text('')
    for write in (report.save, lambda path: render_html(report, path), lambda path: to_csv(report, path)):
        with pytest.raises(LuminaError, match='(?i)cannot write .*file/report'):
            write(tmp_path / 'file' / 'report')


def broken(data: tp.Dict[str, tp.Any], *keys: tp.Any, value: tp.Any) -> str:
    part = data
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    'keys, value, words',
    [
        (('schema_version',), '2.0', "version '2.0'.*reads '1.4'.*0.1.0"),
        (('channels', 'P', 'rows', 0, 'share'), 0.99, 'channels.P.*add up to'),
        (('channels', 'P', 'rows', 0, 'cosine'), float('nan'), 'NaN'),
        (('recipe', 'keys', 'objective'), float('inf'), 'Infinity'),
        (('channels', 'M', 'rows', 3, 'rank'), 9, 'channels.M.*order of rank'),
        (('channels', 'M', 'passing'), 0, 'passing or qualified'),
        (('query', 'kind'), 'rumour', 'query.kind'),
        (('query', 'extra'), 1, 'query.extra'),
        (('created',), '2025-01-01T00:00:00', 'created'),
        (('checkpoints',), [], 'checkpoints'),
    ],
)
def test_a_changed_report_is_refused_by_name(report, tmp_path, keys, value, words):
    path = tmp_path / 'report.json'
    path.write_text(broken(json.loads(report.model_dump_json()), *keys, value=value))
    with pytest.raises(LuminaError, match=f'report.json.*{words}'):
        AttributionReport.load(path)


@pytest.mark.parametrize(
    'content',
    [b'', b'{"schema_version": "1.0"', b'[]', b'\xff\xfe\x00', b'{}', b'[' * 100_000, b'{"schema_version": "1.0"}'],
)
def test_a_file_that_is_no_report_is_refused_with_a_mend(tmp_path, content):
    path = tmp_path / 'report.json'
    path.write_bytes(content)
    with pytest.raises(LuminaError, match='report.json.*again'):
        AttributionReport.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LuminaError, match='gone.json'):
        AttributionReport.load(tmp_path / 'gone.json')


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_no_report_can_be_made_with_nan_or_infinity(report, value):
    data = report.model_dump()
    for change in (dict(timings={'encode': value}), dict(recipe=dict(data['recipe'], keys={'a': [{'b': value}]}))):
        with pytest.raises(pydantic.ValidationError):
            AttributionReport.model_validate(data | change)


def test_the_module_prints_the_json_schema_of_the_file():
    run = subprocess.run(
        [sys.executable, '-W', 'error', '-m', 'lumina_plugin.report.schema'], capture_output=True, text=True, check=True
    )
    printed = json.loads(run.stdout)
    assert run.stderr == '' and printed == json_schema()
    assert set(sample_keys()) == set(printed['properties']) and printed['additionalProperties'] is False


def sample_keys() -> tp.Iterable[str]:
    return json.loads(sample(tracks=songs(3), mixes=({0: 1}, {})).model_dump_json())


def test_file_names_that_are_not_utf8_can_be_saved(tmp_path):
    tracks = songs(5)
    tracks[1] = Song(id='caf\udce9', title='caf\udce9', artist='')
    report = sample(tracks, mixes=({0: 1}, {1: 1}), durations=())
    assert 'caf?' in [row.title for row in AttributionReport.load(report.save(tmp_path / 'r.json')).channels['P'].rows]


# ---- HTML ----


def test_the_page_loads_nothing_and_runs_nothing(report, tmp_path):
    page = page_of(report, tmp_path)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {'script', 'link', 'img', 'iframe', 'object', 'embed', 'base', 'form', 'audio'}
    for tag, attributes in page.tags:
        for name in attributes:
            assert not name.startswith('on') and name not in ('href', 'src', 'srcset', 'action', 'xlink:href'), (
                tag,
                name,
            )
    assert not re.search(r'https?:|@import|url\((?!#)', page.source)
    assert ('meta', "default-src 'none'") in [(tag, (a.get('content') or '')[:18]) for tag, a in page.tags]


def test_hostile_titles_are_text_everywhere(tmp_path):
    tracks = [
        Song(
            id=f'{NAUGHTY}{i}',
            title=f'{NAUGHTY}" onload="x\' {i}',
            artist='{{ 7*7 }}<b>',
            isrc='<i>',
            iswc='"><svg onload=x>',
        )
        for i in range(9)
    ]
    report = sample(
        tracks,
        mixes=({0: 1, 1: 1}, {2: 1}),
        warnings=[NAUGHTY],
        query=dict(id=NAUGHTY, prompt=NAUGHTY, prompt_song_id=NAUGHTY, audio_file=NAUGHTY),
    )
    page = page_of(report, tmp_path)
    assert (
        not {tag for tag, _ in page.tags} & {'script', 'i'} and NAUGHTY in page.text and '{{ 7*7 }}' in page.text
    )
    assert not any(name.startswith('on') for _, attributes in page.tags for name in attributes)


def test_the_audio_is_inside_and_whole(report, tmp_path):
    wav = tmp_path / 'clip.wav'
    soundfile.write(wav, np.random.default_rng(0).uniform(-0.3, 0.3, 11500), 11500)
    page = page_of(report, tmp_path, audio_path=wav)
    source = dict(page.tags)['audio']['src']
    kind, data = source.split(';base64,')

    assert (
        kind == 'data:audio/wav' and base64.b64decode(data) == wav.read_bytes() and page.source.count(data[:200]) == 1
    )


def test_bad_audio_is_named(report, tmp_path):
    for name, named in (('gone.wav', 'gone.wav'), ('notes.txt', 'no audio')):
        with pytest.raises(LuminaError, match=named):
            render_html(report, tmp_path / 'r.html', audio_path=tmp_path / name)
    assert not (tmp_path / 'r.html').exists()


def test_the_page_says_everything(report, tmp_path):
    page = page_of(report, tmp_path)
    text = re.sub(r'[ \n]+', ' ', page.text)
    for key, money in (('P', 'publishing'), ('M', 'master')):
        part = report.channels[key]
        best = max(part.rows, key=lambda row: row.share)
        assert f'Of the {money} share, {percent(best.share)} goes to “{best.title}” by {best.artist}' in text
        assert page.rows(key) == 97 and 'Unattributed' in text
        assert all(row.isrc in text for row in part.rows)
    for mark in (
        report.query.sha256,
        report.query.codes_hash,
        report.model.config_hash,
        report.codec.hash,
        report.store.hash,
        report.store.catalogue_hash,
        report.recipe.hash,
        *(point.model_hash for point in report.checkpoints),
        *report.recipe.keys,
    ):
        assert mark in text or mark == 'channels'
    assert 'channels.P' in text and 'The first 2 s are the prompt itself' in text.replace('\xa0', ' ')


def test_bars_are_as_long_as_the_shares_and_add_up(report, tmp_path):
    page = page_of(report, tmp_path)
    for card, part in zip(page.source.split('class="bars"')[1:3], report.channels.values(), strict=True):
        card = card.split('</ul>')[0]
        values = [float(value) for value in re.findall(r'<rect class="(?:tone|soft)" width="([\d.]+)%"', card)]
        best = sorted((100 * row.share for row in part.rows), reverse=True)[:5]
        np.testing.assert_allclose(values[:5], best, atol=1e-3)
        assert sum(values) == pytest.approx(100, abs=0.01) and 'Unattributed' in card


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(mixes=({}, {}), query=dict(silent=True)), 'The audio is silent'),
        (dict(mixes=({}, {})), 'no cosine is above 0'),
        (dict(mixes=({3: 0.12}, {3: 0.12})), 'where the gate asks for 95.0 %'),
        (dict(mixes=({3: 0.12}, {3: 0.12}), gate=Gate(tail='one_sided')), 'where the gate asks for 90.0 %'),
        (dict(tracks=songs(2), mixes=({0: 1}, {1: 1})), 'at least 3'),
        (dict(tracks=[], mixes=({}, {}), durations=()), 'The store holds 0 songs'),
    ],
)
def test_an_unattributed_channel_says_why_and_shows_the_whole_remainder(tmp_path, options, words):
    report = sample(**options)
    assert all(part.unattributed == 1 for part in report.channels.values())
    page = page_of(report, tmp_path)
    text = ' '.join(page.text.split()).replace('\xa0', ' ')
    assert words in text and 'The whole publishing share stays unattributed.' in text
    assert page.source.count('width="100.0%" height="13" rx="1.5" style="fill:url(#hatch)"') == 2


def test_warnings_stand_before_the_summary_and_none_is_lost(tmp_path):
    warnings = [f'warning number {index}.' for index in range(20)]
    page = page_of(sample(warnings=warnings), tmp_path)
    head = page.source.split('In plain words')[0]
    assert '20 warnings' in head and all(warning in head for warning in warnings)


def test_segments_mark_prompt_silence_and_the_closest_song(tmp_path):
    report = sample(durations=(10,) * 13 + (3.5,), silent_at=4)
    page = page_of(report, tmp_path)
    assert '>silent<' in page.source and 'prompt of 2\xa0s left out' in page.source
    assert page.source.count('closest of all') >= 2 * 13 and 'not compared (prompt or silence)' in ' '.join(
        page.text.split()
    )


def test_a_huge_catalogue_stays_below_the_limit_and_says_what_it_left_out(tmp_path):
    tracks = [dataclasses.replace(song, title='<&"' * 300, artist='<>' * 500) for song in songs(1500)]
    page = page_of(sample(tracks, durations=(10,)), tmp_path)
    assert len(page.source.encode()) <= MAX_HTML_BYTES
    assert f'{1500 - page.rows("P")} songs with lower scores are in the JSON and CSV' in ' '.join(page.text.split())
    assert page.rows('P') >= 100


def test_landmarks_and_names_for_screen_readers(report, tmp_path):
    page = page_of(report, tmp_path)
    ids = [attributes['id'] for _, attributes in page.tags if 'id' in attributes]
    assert len(ids) == len(set(ids)) and dict(page.tags)['html']['lang'] == 'en'
    for tag, attributes in page.tags:
        if tag == 'svg':
            assert attributes.get('aria-hidden') == 'true' or (attributes['role'] == 'img' and attributes['aria-label'])
        if 'aria-labelledby' in attributes:
            assert attributes['aria-labelledby'] in ids


# ---- terminal and CSV ----


def test_the_table_shows_the_columns_the_top_songs_and_the_remainder(report):
    text = render_table(report, top=2)
    for word in (
        'song',
        'cosine',
        'score',
        'confidence',
        'STS',
        'LIP %',
        'share',
        'unattributed',
        'Composition',
        'Production',
    ):
        assert word in text
    best = report.channels['P'].rows[0]
    line = next(line for line in text.splitlines() if best.title in line)
    assert percent(best.share).replace('\xa0', ' ') in line and f'{best.cosine:.3f}' in line
    assert report.channels['P'].rows[2].title not in text.split('other paid songs')[0]


def test_a_terminal_gets_no_control_characters_or_markup_from_titles():
    tracks = [Song(id='x', title='[red]loud[/red] \x1b[31mescape\x07 :smile:', artist='\u202eflipped')] + songs(9)[1:]
    text = render_table(sample(tracks, mixes=({0: 1}, {0: 1})), top=1, width=140)
    assert '[red]loud[/red] [31mescape :smile:' in text and '\x1b' not in text and '\u202e' not in text
    assert '\x1b[' in render_table(sample(tracks, mixes=({0: 1}, {0: 1})), colour=True)


def test_warnings_come_first_in_the_terminal():
    assert render_table(sample(warnings=['the catalogue changed'])).startswith('Warning: the catalogue changed')


def test_csv_holds_every_song_of_every_channel_in_full_precision(report, tmp_path):
    with open(to_csv(report, tmp_path / 'report.csv'), newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(CSV_COLUMNS) and len(rows) == 2 * 97
    for row, song in zip(rows, [song for part in report.channels.values() for song in part.rows], strict=True):
        assert (
            row['track_id'] == song.track_id
            and float(row['share']) == song.share
            and float(row['cosine']) == song.cosine
        )


def test_csv_text_is_never_a_formula(tmp_path):
    tracks = [Song(id='a', title='=HYPERLINK("x")', artist='@cmd'), *songs(6)[1:]]
    with open(
        to_csv(sample(tracks, mixes=({0: 1}, {1: 1}), durations=()), tmp_path / 'r.csv'), newline='', encoding='utf-8'
    ) as file:
        row = next(row for row in csv.DictReader(file) if row['track_id'] == 'a')
    assert row['title'] == '\'=HYPERLINK("x")' and row['artist'] == "'@cmd" and row['isrc'] == ''


@pytest.mark.parametrize(
    'value, text', [(0, '0.0 %'), (1, '100.0 %'), (0.00001, '< 0.1 %'), (0.99999, '> 99.9 %'), (0.714, '71.4 %')]
)
def test_a_share_never_rounds_to_nothing_or_everything(value, text):
    assert percent(value).replace('\xa0', ' ') == text


def test_reports_of_the_version_before_are_read(report, tmp_path):
    old = json.loads(report.model_dump_json())
    old['schema_version'] = '1.0'
    del old['other_reading']
    for channel in old['channels'].values():
        del channel['noise_mean']
    (tmp_path / 'old.json').write_text(json.dumps(old))
    read = AttributionReport.load(tmp_path / 'old.json')
    assert read.other_reading is None and read.channels['P'].noise_mean == 0


def test_a_continuation_is_also_read_with_its_prompt(tmp_path):
    """Both readings are in every view, the recipe's own first."""
    plain, other = sample(), sample(mixes=({5: 0.9}, {5: 0.9}))
    bare = {key: part.model_copy(update={'segments': []}) for key, part in other.channels.items()}
    report = plain.model_copy(update={'other_reading': OtherReading(prompt_counted=True, channels=bare)})
    path = report.save(tmp_path / 'report.json')
    assert AttributionReport.load(path) == report and AttributionReport.load(plain.save(path)).other_reading is None
    lines = words.other_reading(report)
    assert len(lines) == 2 and words.other_reading(plain) == []
    page = Page(render_html(report, tmp_path / 'report.html')).text
    table = render_table(report, width=300)
    assert 'with the prompt counted' in page and 'With the prompt counted' in table
    for line in lines:
        assert ' '.join(line.split()) in ' '.join(page.split()) and line.replace(words.NBSP, ' ') in table
    assert 'Read the other way' not in Page(render_html(plain, tmp_path / 'plain.html')).text


def test_shares_that_chance_could_have_made_are_called_so(tmp_path):
    report = sample()
    doubtful = report.channels['P'].model_copy(update={'passing': 3})
    sure = report.channels['P'].model_copy(update={'passing': 12})
    assert words.expected_by_chance(doubtful) == pytest.approx(97 * 0.025, rel=1e-3)
    assert 'chance alone lets 2.4 through' in words.caveat(doubtful) and words.caveat(sure) == ''
    assert words.caveat(doubtful.model_copy(update={'qualified': 0})) == ''  # nothing is paid
    shown = report.model_copy(update={'channels': {'P': doubtful, 'M': sure}})
    assert words.caveat(doubtful) in ' '.join(Page(render_html(shown, tmp_path / 'r.html')).text.split('\n'))
    assert 'may rest on nothing' in render_table(shown, width=300).replace('\n', ' ')


def test_a_summary_names_a_fourth_song_rather_than_counting_one():
    part = sample().channels['P']
    paid = [row.model_copy(update={'share': 0.25}) for row in part.rows[:4]]
    rest = [row.model_copy(update={'share': 0.0}) for row in part.rows[4:]]
    four = words.summary('P', part.model_copy(update={'rows': paid + rest}), False)
    assert 'other song' not in four and all(words.clean(row.title) in four for row in paid)
    five = [row.model_copy(update={'share': 0.2}) for row in part.rows[:5]]
    assert '2\u00a0other songs' in words.summary('P', part.model_copy(update={'rows': five + rest[1:]}), False)


# ---- the calibrated gate ----


@pytest.fixture(scope='module')
def calibrated(report) -> AttributionReport:
    """The sample's channels, judged in view of outside songs, with intervals."""
    rng, found = np.random.default_rng(0), {}
    for key, part in report.channels.items():
        score = np.array([row.score for row in part.rows])
        tracks = [Song(row.track_id, row.title, row.artist, row.isrc, row.iswc) for row in part.rows]
        values = channel_statistics(score, score, part.noise_floor, noise_mean=part.noise_mean,
                                    null=Null(rng.normal(scale=1.8 * score[5:].std(), size=(100, len(score)))))
        ends = Intervals(np.arange(len(score)), 0.5 * values.share, np.minimum(1.5 * values.share, 1.))
        found[key] = ChannelReport.from_statistics(values, tracks, 'cosine', 'measured', part.segments, ends, (3, 4),
                                                   'songs of a folder')
    return report.model_copy(update={'channels': found})


def test_a_calibrated_report_shows_both_verdicts_the_interval_and_the_remainder(calibrated, tmp_path):
    page, table = page_of(calibrated, tmp_path), render_table(calibrated)
    text = re.sub(r'\s+', ' ', page.text)
    for channel in calibrated.channels.values():
        best = max(channel.rows, key=lambda row: row.share)
        assert best.share > 0 and 0 < channel.unattributed < 1 and channel.passing > channel.calibration.passing
        assert f'{percent(channel.unattributed)} stays unattributed'.replace(words.NBSP, ' ') in text
        assert words.odds(best.p_value).replace(words.NBSP, ' ') in text
        assert words.between(best).replace(words.NBSP, ' ') in text
    assert 'printed: passes' in text and 'printed: below' in text and 'printed gate would pay' in text
    assert 'p-values from 100 songs of a folder' in text and 'chance' in table and 'the calibrated one' in table
    assert page.source.count('class="range"') >= 6
    with open(to_csv(calibrated, tmp_path / 'r.csv'), newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert {row['passes_calibrated_gate'] for row in rows} == {'yes', 'no'} and float(rows[0]['q_value']) <= 0.05
    assert AttributionReport.load(calibrated.save(tmp_path / 'r.json')) == calibrated


def test_chances_are_told_in_words_and_never_rarer_than_they_are():
    shown = {1 / 9701: '1 in 9,700', 1 / 97_001: '1 in 97,000', 0.0399: '1 in 25', 0.5: '1 in 2', 0.7: 'likely'}
    assert {p: words.odds(p).replace(words.NBSP, ' ') for p in shown} == shown


def test_a_report_from_before_the_calibrated_gate_still_loads_and_renders(report, tmp_path):
    data = json.loads(report.model_dump_json())
    data['schema_version'] = '1.1'
    for part in data['channels'].values():
        del part['calibration'], part['resampling']
        for row in part['rows']:
            for key in ('passes_calibrated_gate', 'p_value', 'q_value', 'share_low', 'share_high'):
                del row[key]
    path = tmp_path / 'old.json'
    path.write_text(json.dumps(data))
    old = AttributionReport.load(path)
    assert old.channels == report.channels and 'would by chance' in page_of(old, tmp_path).text


def test_a_report_whose_verdicts_are_miscounted_is_refused(calibrated, tmp_path):
    path = tmp_path / 'report.json'
    data = json.loads(calibrated.model_dump_json())
    path.write_text(broken(data, 'channels', 'P', 'calibration', 'passing', value=50))
    with pytest.raises(LuminaError, match='calibration.passing'):
        AttributionReport.load(path)
