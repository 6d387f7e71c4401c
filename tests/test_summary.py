"""Who is owed what over many recordings: the mean of their shares, honest intervals, and pages that hold anything."""

import csv
import json
import math
import re
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lumina_plugin.errors import LuminaError
from lumina_plugin.report import words
from lumina_plugin.report.render import MAX_HTML_BYTES
from lumina_plugin.report.summary import (
    ChannelEntry,
    Entry,
    LeftOut,
    Paid,
    Summary,
    json_schema,
    summarise,
    to_csv,
    to_shares_csv,
)
from lumina_plugin.report.summary_page import render_summary, sentence

from .test_report import NAUGHTY, Page, report  # noqa: F401  (fixture)

DOCS = Path(__file__).resolve().parent.parent / 'docs'


def entry(index: int, shares, songs=None, duration: float = 10., **keys) -> Entry:
    """A recording that pays `shares` ({song: share}) in both channels."""
    paid = [Paid(**{'track_id': name, 'title': f'Song {name}', 'artist': '', **(songs or {}).get(name, {}),
                    'share': share}) for name, share in shares.items()]
    part = ChannelEntry(paid=paid, unattributed=1 - math.fsum(shares.values()), method='cosine score; gate: none.')
    return Entry(**{**dict(
        file=f'{index:04d}.wav', sha256='ab' * 32, kind='file', duration=duration, report=f'files/{index:04d}',
        report_sha256=f'{index:064x}', model='model', store='store', store_hash='cd', store_songs=9, recipe='default',
        recipe_hash='ef', channels={'P': part, 'M': part}), **keys})


def matrix(entries, summary: Summary, key: str = 'P') -> np.ndarray:
    """Shares [F, S], songs in the summary's order."""
    return np.array([[next((paid.share for paid in one.channels[key].paid if paid.track_id == song.track_id), 0.)
                      for song in summary.channels[key].owed] for one in entries])


_shares = st.dictionaries(st.sampled_from('abcdef'), st.floats(0.001, 1), max_size=4).map(
    lambda found: {name: share / max(1., math.fsum(found.values()) * 1.0000001) for name, share in found.items()})


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(_shares, min_size=1, max_size=12))
def test_a_songs_share_is_the_mean_and_all_adds_up(found):
    entries = [entry(index, shares) for index, shares in enumerate(found)]
    summary = summarise(entries)
    for channel in summary.channels.values():
        means = matrix(entries, summary).mean(axis=0)
        assert np.allclose([song.share for song in channel.owed], means)
        assert [song.rank for song in channel.owed] == list(range(1, len(means) + 1))
        assert sorted(means, reverse=True) == pytest.approx(list(means))
        assert math.fsum([*means, channel.unattributed]) == pytest.approx(1)
        assert channel.nobody == sum(not shares for shares in found)
        for song in channel.owed:
            assert (song.share_low is None) == (len(entries) == 1)
            assert len(entries) == 1 or 0 <= song.share_low <= song.share <= song.share_high <= 1
            holding = [shares[song.track_id] for shares in found if song.track_id in shares]
            assert (song.recordings, song.largest_share) == (len(holding), max(holding))


def test_intervals_are_as_wide_as_the_mean_of_so_many_recordings_is_uncertain():
    """Half of 400 recordings pay all to one song: the standard error of the mean is known."""
    entries = [entry(index, {'a': 1.} if index % 2 else {}) for index in range(400)]
    (song,) = summarise(entries).channels['P'].owed
    error = 1.96 * 0.5 / math.sqrt(400)
    assert song.share == pytest.approx(0.5)
    assert song.share_low == pytest.approx(0.5 - error, abs=0.006)
    assert song.share_high == pytest.approx(0.5 + error, abs=0.006)
    same = summarise([entry(index, {'a': 0.25}) for index in range(50)]).channels['P']
    assert (same.owed[0].share_low, same.owed[0].share_high) == pytest.approx((0.25, 0.25))
    assert (same.unattributed_low, same.unattributed_high) == pytest.approx((0.75, 0.75))
    again = summarise(entries)
    assert again.channels == summarise(entries).channels  # the same recordings, the same intervals


def test_recordings_may_count_by_their_length():
    entries = [entry(0, {'a': 1.}, duration=30.), entry(1, {'b': 1.}, duration=10.)]
    by_length = {song.track_id: song.share for song in summarise(entries, by='seconds').channels['M'].owed}
    assert by_length == pytest.approx({'a': 0.75, 'b': 0.25})
    assert [song.share for song in summarise(entries).channels['M'].owed] == pytest.approx([0.5, 0.5])


def test_what_cannot_be_summed_up_is_refused():
    with pytest.raises(LuminaError, match='nothing to sum up'):
        summarise([])
    for key in ('store_hash', 'recipe_hash'):
        with pytest.raises(LuminaError, match='different stores or recipes'):
            summarise([entry(0, {}), entry(1, {}, **{key: 'other'})])


def test_an_entry_holds_what_its_report_pays(report):  # noqa: F811
    one = Entry.of(report, 'a.wav', 'ab' * 32, 'cd' * 32)
    for key, channel in report.channels.items():
        assert {paid.track_id: paid.share for paid in one.channels[key].paid} == {
            row.track_id: row.share for row in channel.rows if row.share > 0}
        assert one.channels[key].unattributed == channel.unattributed and 'cosine' in one.channels[key].method


def many(recordings: int, songs: int):
    rng = np.random.default_rng(0)
    names = {f'song-{index:05d}': {'title': f'Title {index}', 'artist': f'Artist {index % 7}'}
             for index in range(songs)}
    ids = list(names)
    return [entry(index, dict(zip((ids[i] for i in rng.choice(songs, 3, replace=False)),
                                  rng.dirichlet(np.ones(4))[:3].tolist(), strict=True)), names)
            for index in range(recordings)]


def test_the_page_says_what_the_summary_says(tmp_path):
    summary = summarise(many(40, 25), [LeftOut(file='b.wav', reason='it is damaged')], 'November')
    page = Page(render_summary(summary, tmp_path / 'summary.html'))
    text = re.sub(r'\s+', ' ', page.text.replace(words.NBSP, ' '))
    for key, channel in summary.channels.items():
        assert sentence(summary, key, channel).replace(words.NBSP, ' ') in text
        assert words.percent(channel.unattributed).replace(words.NBSP, ' ') in text
        for song in channel.owed:
            assert song.title in text and words.percent(song.share, 2).replace(words.NBSP, ' ') in text
    for one in summary.recordings:
        assert one.file in text and f'href="{one.report}/report.html"' in page.source
    assert '1 file left out' in text and 'it is damaged' in text and 'Who is owed what for 40 recordings' in text


def test_the_page_loads_nothing_and_escapes_all(tmp_path):
    songs = {'a': {'title': NAUGHTY, 'artist': '"><img src=x>'}, 'b': {'title': '=cmd()', 'artist': '@x'}}
    named = entry(0, {'a': .5, 'b': .2}, songs, file=f'{NAUGHTY}.wav', report='files/"><script>', warnings=[NAUGHTY])
    summary = summarise([named, entry(1, {'b': .1}, songs)], [LeftOut(file=NAUGHTY, reason=NAUGHTY)], NAUGHTY)
    page = Page(render_summary(summary, tmp_path / 'summary.html'))
    assert not {'script', 'img', 'link', 'iframe', 'object'} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith('on') or name == 'src' for name in attributes)
        assert not re.match(r'\w+:|//', attributes.get('href') or '')
    with open(to_csv(summary, tmp_path / 's.csv'), newline='', encoding='utf-8') as file:
        titles = [row['title'] for row in csv.DictReader(file)]
    assert "'=cmd()" in titles and '=cmd()' not in titles


def test_a_summary_of_very_many_stays_small_and_says_what_it_leaves_off(tmp_path):
    summary = summarise(many(4000, 6000))
    page = render_summary(summary, tmp_path / 'summary.html')
    assert page.stat().st_size <= MAX_HTML_BYTES
    text = page.read_text()
    assert 'others are in shares.csv alone' in text and 'are in summary.csv alone' in text


def test_of_nobody_and_of_one_recording_there_is_a_page_too(tmp_path):
    for entries in ([entry(0, {})], [entry(0, {'a': 1.})], [entry(0, {}), entry(1, {})]):
        summary = summarise(entries)
        text = Page(render_summary(summary, tmp_path / 'summary.html')).text
        assert ('stays unattributed: no song' in text) == (not summary.channels['P'].owed)
        assert ('drawn anew' in text) == (len(entries) > 1)


def test_the_csv_files_hold_every_share(tmp_path):
    entries = many(30, 12)
    summary = summarise(entries)
    with open(to_csv(summary, tmp_path / 'summary.csv'), newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    for key, channel in summary.channels.items():
        mine = [row for row in rows if row['channel'] == key]
        assert [row['track_id'] for row in mine] == [*(song.track_id for song in channel.owed), '']
        assert math.fsum(float(row['share']) for row in mine) == pytest.approx(1)
    with open(to_shares_csv(summary, tmp_path / 'shares.csv'), newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    song = summary.channels['P'].owed[0]
    paid = [float(row['share']) for row in rows if (row['channel'], row['track_id']) == ('P', song.track_id)]
    assert math.fsum(paid) / len(entries) == pytest.approx(song.share) and len(paid) == song.recordings
    assert sum(row['title'] == 'unattributed' for row in rows) == 2 * len(entries)


def test_a_summary_is_read_back_and_a_damaged_one_is_refused(tmp_path):
    summary = summarise(many(5, 9))
    path = summary.save(tmp_path / 'summary.json')
    assert Summary.load(path) == summary
    data = json.loads(path.read_text())
    data['channels']['P']['unattributed'] = 0.9
    path.write_text(json.dumps(data))
    with pytest.raises(LuminaError, match='add up to'):
        Summary.load(path)
    with pytest.raises(LuminaError, match='gone.json'):
        Summary.load(tmp_path / 'gone.json')


def test_the_published_schemas_are_those_of_the_code():
    from lumina_plugin.report import schema
    assert json.loads((DOCS / 'summary.schema.json').read_text()) == json_schema()
    assert json.loads((DOCS / 'report.schema.json').read_text()) == schema.json_schema()


@pytest.mark.parametrize('fraction, reads', [
    (-2e-16, '0.0 %'), (0., '0.0 %'), (1 + 2e-16, '100.0 %'), (1e-6, '< 0.1 %'), (0.714, '71.4 %'), (-0.1, '-10.0 %')])
def test_percentages_read_without_a_negative_nothing(fraction, reads):
    from lumina_plugin.report import words
    assert words.percent(fraction).replace('\u00a0', ' ') == reads.replace('\u00a0', ' ')
