"""The page's parts without a server: the desk, uploads, history, what is deleted and what is hidden."""

import json
import os
import re
import threading
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile as sf

from lumina_plugin.calibration import Null
from lumina_plugin.errors import LuminaError
from lumina_plugin.report.schema import AttributionReport
from lumina_plugin.web import Limits, uploads
from lumina_plugin.web.desk import Desk, Stopped
from lumina_plugin.web.history import History
from lumina_plugin.web.private import Concealer
from lumina_plugin.web.workplace import Workplace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def song(project):
    return str(project.root / 'songs' / 'song-3.wav')


# -- the desk ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def desk(studio, tmp_path):
    desk = Desk(studio, Limits(), tmp_path / 'history')
    yield desk
    desk.close()


def test_stopped_work_ends_and_leaves_the_model_as_it_was(desk):
    first = desk.generate(seconds=3, seed=5)
    told = []

    def stop_soon(done, what):
        told.append((done, what))
        if done > 0.1:
            desk.stop('me')
    with pytest.raises(Stopped, match='nothing was kept'):
        desk.generate(seconds=3, seed=5, session='me', watch=stop_soon)
    assert not desk.stop('me')
    again = desk.generate(seconds=3, seed=5, watch=lambda done, what: told.append((done, what)))
    assert first.report.query.codes_hash == again.report.query.codes_hash
    assert {what for _, what in told} == {'Starting', 'Composing', 'Comparing with 6 songs', 'Writing the report'}
    begin = [place for place, (_, what) in enumerate(told) if what == 'Starting'][-1]
    assert [done for done, _ in told[begin:]] == sorted(done for done, _ in told[begin:]) and told[-1][0] == 1


def test_stopping_while_another_works_does_not_wait_for_the_model(desk):
    with desk._model:
        thread = threading.Thread(target=lambda: pytest.raises(Stopped, desk.generate, seconds=2, session='me'))
        thread.start()
        until = time.monotonic() + 10
        while not desk.stop('me') and time.monotonic() < until:
            time.sleep(0.01)
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_generations_are_remembered_and_uploads_never(desk, song):
    upload = desk.workplace.cache / 'mine.wav'
    upload.write_bytes(Path(song).read_bytes())
    desk.attribute(upload)
    desk.generate(seconds=3, recording=upload, prompt_seconds=0.5)
    assert desk.history.past() == []
    made = [desk.generate(seconds=3, song='song-3', prompt_seconds=0.5, seed=seed).report for seed in range(3)]
    track, found = desk.influence('song-3')
    assert track.id == 'song-3' and set(found) == {'P', 'M'}
    for key, one in found.items():
        shares = [next(row.share for row in report.channels[key].rows if row.track_id == 'song-3') for report in made]
        assert (one.generations, one.paid) == (3, sum(share > 0 for share in shares))
        assert one.mean == pytest.approx(sum(shares) / 3)
    files = sorted(desk.history.folder.iterdir())
    assert len(files) == 3 and AttributionReport.load(files[0]).query.seed in (0, 1, 2)


def test_a_result_is_gone_after_its_time_and_its_name_cannot_be_made_up(desk):
    made = desk.generate(seconds=2)
    assert desk.result(made.name).report == made.report
    for name in ('', 'x', '../' + made.name, made.name.upper() + 'g', '0' * 32):
        with pytest.raises(LuminaError, match='no result yet|not here any more'):
            desk.result(name)
    assert not desk.workplace.sweep(time.time() + desk.limits.keep_seconds - 60)
    gone = desk.workplace.sweep(time.time() + desk.limits.keep_seconds + 60)
    assert {path.name for path in gone} >= {'report.json', 'report.html', 'report.csv', 'recording.wav'}
    with pytest.raises(LuminaError, match='deleted after 60 minutes'):
        desk.result(made.name)


def test_a_song_whose_recording_is_not_there_is_told_of_by_name_alone(desk, studio, monkeypatch):
    slots = studio.store.slots
    monkeypatch.setattr(studio.store, '_slots', [record.model_copy(update={'path': '/nowhere/at/all.wav'})
                                                 for record in slots])
    with pytest.raises(LuminaError) as found:
        desk.excerpt('song-1')
    assert 'song-1' in str(found.value) and 'nowhere' not in str(found.value)


# -- parts -------------------------------------------------------------------------------------------------------------

@hypothesis.given(st.lists(st.lists(st.floats(-5, 5, width=16), min_size=3, max_size=3), min_size=64, max_size=70),
                  st.floats(0.001, 1))
@hypothesis.settings(max_examples=60)
def test_right_of_the_line_is_exactly_what_passes(scores, p):
    """Above `reaching(p)` the p-value is at most p, and at it, or below, it is more (where p can be told at all)."""
    null = Null(np.array(scores))
    line = null.reaching(p)
    assert null.p_values(np.nextafter(line, np.inf)) <= max(p, null.smallest) * (1 + 1e-9)
    if p < 1:
        assert null.p_values(line) > p
    assert null.at_least(-np.inf) == null.pool and null.at_least(np.inf) == pytest.approx(0, abs=1e-6)


def test_a_large_pool_is_drawn_about_as_well():
    rng = np.random.default_rng(0)
    null = Null(rng.normal(size=(70, 20000)))  # more numbers than are kept
    assert null.pool > 1 << 20
    for p in (1e-5, 1e-3, 0.1, 0.5, 1.):
        assert null.p_values(np.nextafter(null.reaching(p), np.inf)) <= p * 1.01 + 1e-3


def test_old_files_are_deleted_and_young_ones_stay(tmp_path):
    place = Workplace(100)
    old, young = place.cache / 'a' / 'old.wav', place.cache / 'b' / 'young.wav'
    for path in (old, young):
        path.parent.mkdir()
        path.write_bytes(b'x')
    os.utime(old, (0, time.time() - 101))
    assert place.sweep() == [old] and young.exists() and not old.parent.exists() and place.cache.is_dir()
    assert place.taken() == 1 and oct(place.root.stat().st_mode & 0o777) == '0o700'
    place.close()
    assert not place.root.exists()


@pytest.mark.parametrize('name', ['../outside.wav', '../notes.txt', 'gone.wav', 'link.wav', '{absolute}'])
def test_nothing_outside_of_the_uploads_is_accepted(tmp_path, name):
    """With decoys alone: were the check ever broken, these would be read and deleted."""
    folder, outside, notes = tmp_path / 'cache', tmp_path / 'outside.wav', tmp_path / 'notes.txt'
    folder.mkdir()
    sf.write(outside, np.zeros(16000), 16000)
    notes.write_text('private')
    (folder / 'link.wav').symlink_to(notes)
    with pytest.raises(LuminaError, match='not here any more'):
        uploads.accept(folder / name.format(absolute=notes), folder.resolve(), Limits())
    assert outside.exists() and notes.read_text() == 'private'


def test_nothing_outside_of_the_uploads_is_deleted_even_if_it_were_accepted(tmp_path):
    folder, notes = tmp_path / 'cache', tmp_path / 'notes.txt'
    folder.mkdir()
    notes.write_text('private')
    (folder / 'link.wav').symlink_to(notes)
    for path in (notes, folder / '..' / 'notes.txt', folder / 'link.wav'):
        uploads._delete(path, folder.resolve())
    assert notes.read_text() == 'private'
    refused = folder / 'refused.wav'
    refused.write_text('no music')
    uploads._delete(refused, folder.resolve())
    assert not refused.exists()


def test_a_small_file_that_unfolds_to_a_large_one_is_refused(tmp_path):
    path = tmp_path / 'many.flac'
    sf.write(path, np.zeros((48000 * 5, 8), dtype='int16'), 48000)
    with pytest.raises(LuminaError, match='more samples'):
        uploads.accept(path, tmp_path.resolve(), Limits(upload_seconds=10))
    assert not path.exists()


@pytest.mark.parametrize('text', [
    '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{song}\n#EXT-X-ENDLIST\n', 'ffconcat version 1.0\nfile {song}\n',
    'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n'])
def test_lists_that_name_other_files_are_no_recordings(tmp_path, song, text):
    path = tmp_path / 'list.wav'
    path.write_text(text.format(song=song))
    with pytest.raises(LuminaError, match='no recording'):
        uploads.accept(path, tmp_path.resolve(), Limits())


def test_recordings_of_other_containers_are_taken_and_measured(tmp_path):
    import av
    path = tmp_path / 'a.m4a'
    with av.open(str(path), 'w', format='mp4') as container:
        stream = container.add_stream('aac', rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100 * 3), dtype=np.float32), 'fltp', 'mono')
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    data = path.read_bytes()
    assert uploads.accept(path, tmp_path.resolve(), Limits()) == path.resolve()
    path.write_bytes(data)
    with pytest.raises(LuminaError, match='longer than the 2 s'):
        uploads.accept(path, tmp_path.resolve(), Limits(upload_seconds=2))


def test_history_is_bounded_and_skips_what_is_damaged_or_of_another_store(desk, tmp_path):
    report = desk.generate(seconds=2).report
    size = len(report.model_dump_json(indent=2)) + 1
    others = [tmp_path / 'h' / name for name in ('00000000T000000-mine.json', 'report.json')]
    others[0].parent.mkdir()
    for path in others:
        path.write_text('{}')  # of whoever named the folder
    history = History(tmp_path / 'h', report.store.hash, most=3)
    for index in range(5):
        history.add(report, f'{index:032x}')
    assert [past.name[-6] for past in history.past()] == ['4', '3', '2']
    (history.folder / '00000000T000000-damaged.json').write_text('{')
    assert len(history.past()) == 3 and all(path.exists() for path in others)
    small = History(tmp_path / 's', report.store.hash, most=100, most_bytes=2 * size + 10)
    for index in range(5):
        small.add(report, f'{index:032x}')
    assert len(list(small.folder.iterdir())) == 2
    assert History(tmp_path / 'h', 'another').past() == [] and History(None, 'x').past() == []
    assert History(tmp_path / 'h', report.store.hash, model_hash='another').past() == []
    assert History(tmp_path / 'h', report.store.hash, model_hash=report.model.checkpoint.model_hash).past()


def test_texts_lose_the_servers_folders_and_nothing_else(tmp_path):
    (tmp_path / 'store').mkdir()
    concealer = Concealer([tmp_path / 'store', tmp_path, 'facebook/musicgen-small'])
    assert concealer.text(f'run `lumina calibrate {tmp_path}/store`.') == 'run `lumina calibrate store`.'
    assert concealer.text('AC/DC by /r/music, facebook/musicgen-small') == 'AC/DC by /r/music, facebook/musicgen-small'
    assert concealer.error('Cannot read /var/lib/x/a b: denied, see /usr/y.') == 'Cannot read a b: denied, see y.'
    assert str(tmp_path) not in concealer.error(f'{tmp_path}/x/y.wav is silent; {tmp_path}')


def test_a_report_with_a_path_in_it_is_shown_without(desk, monkeypatch, song):
    warnings = type(desk.studio.attributor).warnings
    monkeypatch.setattr(type(desk.studio.attributor), 'warnings', lambda self, kind: [
        *warnings(self, kind), f'mend it by `lumina calibrate {self.store.path}`'])
    made = desk.generate(seconds=2)
    assert made.report.warnings[-1] == f'mend it by `lumina calibrate {desk.studio.store.path.name}`'
    for path in made.files.values():
        assert str(desk.studio.store.path).encode() not in path.read_bytes()


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(LuminaError, match='queue is 0'):
        Limits(queue=0)
    with pytest.raises(LuminaError, match='keep_minutes is nan'):
        Limits(keep_minutes=float('nan'))


def test_the_colours_are_told_apart_in_grey_and_by_colour_blind_readers():
    """Publishing, master and the unattributed hatching: by luminance, and as dichromats see them (Machado 2009)."""
    css = (ROOT / 'lumina_plugin' / 'web' / 'page.css').read_text()
    light, dark = (dict(re.findall(r'--([\w-]+): (#[0-9a-f]{6})', block)) for block in
                   re.findall(r'^(?:\.dark )?\.lum, [^{]*\{(.*?)\}', css, re.S | re.M)[:2])
    for colours in (light, dark):
        seen = [_linear(colours[name]) for name in ('p', 'm')]
        grey = sorted(float(np.dot(one, (0.2126, 0.7152, 0.0722))) for one in seen)
        assert (grey[1] + 0.05) / (grey[0] + 0.05) > 1.8
        for matrix in _DICHROMATS.values():
            assert np.linalg.norm(matrix @ seen[0] - matrix @ seen[1]) > 0.2
        for ink in ('ink', 'muted', 'p-ink', 'm-ink'):  # WCAG AA on cards
            text, card = (float(np.dot(_linear(colours[name]), (0.2126, 0.7152, 0.0722))) for name in (ink, 'card'))
            assert (max(text, card) + 0.05) / (min(text, card) + 0.05) >= 4.5, ink


_DICHROMATS = {
    'protan': np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    'deutan': np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
    'tritan': np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                        [0.004733, 0.691367, 0.303900]])}


def _linear(colour):
    parts = np.array([int(colour[place:place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def test_validation_results_are_read_as_they_were_measured(tmp_path):
    from lumina_plugin.web.measured import measured
    assert measured(None, 'default') is None and measured(tmp_path, 'default') is None
    mean = {'mean': 0.7, 'low': 0.6, 'high': 0.8}
    (tmp_path / 'lds').mkdir()
    (tmp_path / 'lds' / 'lds.json').write_text(json.dumps({'facts': {'run': '1234abcd'}, 'rows': [
        {'method': 'default', 'channel': 'P', 'lds': {'free generations': mean}},
        {'method': 'paper', 'channel': 'P', 'lds': {'free generations': {**mean, 'mean': 0.1}}}]}))
    found = measured(tmp_path, 'default')
    assert found.run == '1234abcd' and found.pictures == []
    assert [(line.name, line.values) for line in found.measures] == [
        ('Foretells retraining: free generations', {'P': (0.7, 0.6, 0.8)})]
    (tmp_path / 'lds' / 'lds.json').write_text('damaged')
    assert measured(tmp_path, 'default') is None


def test_a_page_of_another_stores_channels_has_them(studio, monkeypatch):
    """Channels are the store's, whatever they are called."""
    from lumina_plugin.web import views
    made = Desk(studio, Limits())
    try:
        result = made.generate(seconds=2)
        report = result.report.model_copy(update={'channels': {'rhythm': result.report.channels['P']},
                                                  'other_reading': None})
        html = views.result(type(result)(result.name, result.folder, report), 'x')
        assert 'Channel rhythm' in html and 'Production / master' not in html
    finally:
        made.close()
