"""`lumina attribute FOLDER`: every recording once, bad ones named, nothing done twice, and a killed run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lumina_plugin.batch import FILES, attribute_folder
from lumina_plugin.cli import main
from lumina_plugin.errors import LuminaError
from lumina_plugin.report import AttributionReport
from lumina_plugin.report.summary import Summary
from lumina_plugin.store import FingerprintStore


def run(studio, folder, out, **options):
    return attribute_folder(folder, out, 'unused', studio.store.path, progress=False, **{'studio': studio, **options})


def content(summary: Summary) -> Summary:
    return summary.model_copy(update={'created': None})


def times(folder: Path):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def folder(project, tmp_path) -> Path:
    """Six songs, some deeper down, and everything that such folders hold besides."""
    folder = tmp_path / 'deliveries'
    shutil.copytree(project.root / 'songs', folder)
    (folder / 'deeper down').mkdir()
    shutil.move(folder / 'song-4.wav', folder / 'deeper down' / 'Ünïcode <b> =1.wav')
    shutil.copy(folder / 'song-1.wav', folder / 'zz copy of song-1.wav')
    (folder / 'broken.wav').write_bytes((folder / 'song-2.wav').read_bytes()[:20])
    (folder / 'empty.flac').write_bytes(b'')
    (folder / 'notes.txt').write_text('no recording')
    return folder


def test_every_recording_is_attributed_and_what_cannot_be_is_named(studio, folder, tmp_path):
    batch = run(studio, folder, tmp_path / 'out')
    summary = batch.summary
    assert [entry.file for entry in summary.recordings] == [
        'deeper down/Ünïcode <b> =1.wav', 'song-0.wav', 'song-1.wav', 'song-2.wav', 'song-3.wav', 'song-5.wav']
    reasons = {one.file: one.reason for one in summary.left_out}
    assert set(reasons) == {'broken.wav', 'empty.flac', 'silence.wav', 'zz copy of song-1.wav'}
    assert 'silent' in reasons['silence.wav'] and 'copy of song-1.wav' in reasons['zz copy of song-1.wav']
    assert 'empty file' in reasons['empty.flac'] and not any(str(tmp_path) in reason for reason in reasons.values())
    for entry in summary.recordings:
        home = tmp_path / 'out' / entry.report
        assert {'report.json', 'report.html', 'report.csv', 'entry.json'} == {path.name for path in home.iterdir()}
        report = AttributionReport.load(home / 'report.json')
        assert report.query.sha256 == entry.sha256 and report.channels['M'].unattributed == entry.channels[
            'M'].unattributed
        assert report.channels == studio.attribute(folder / entry.file).channels
    for key, channel in summary.channels.items():
        for song in channel.owed:
            shares = [row.share for entry in summary.recordings for row in AttributionReport.load(
                tmp_path / 'out' / entry.report / 'report.json').channels[key].rows if row.track_id == song.track_id]
            assert song.share == pytest.approx(sum(shares) / len(summary.recordings))
    assert Summary.load(tmp_path / 'out' / 'summary.json') == summary and batch.page.name == 'summary.html'
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        FILES, 'summary.html', 'summary.json', 'summary.csv', 'shares.csv'}


def test_nothing_is_done_twice(studio, folder, tmp_path, monkeypatch):
    first = run(studio, folder, tmp_path / 'out')
    before = times(tmp_path / 'out' / FILES)
    shutil.move(folder / 'song-5.wav', folder / 'deeper down' / 'renamed.wav')
    done = []
    attribute = studio.attribute
    monkeypatch.setattr(studio, 'attribute', lambda path: done.append(Path(path).name) or attribute(path))
    again = run(studio, folder, tmp_path / 'out')
    assert set(done) == {'silence.wav', 'broken.wav'} and again.reused == 6  # a bad file may have been mended
    assert times(tmp_path / 'out' / FILES) == before
    shares = [[(song.track_id, song.share) for song in batch.summary.channels['M'].owed] for batch in (first, again)]
    assert again.summary.recordings[0].file == 'deeper down/renamed.wav' and dict(shares[0]) == pytest.approx(
        dict(shares[1]))
    (next((tmp_path / 'out' / FILES).glob('song-2-*')) / 'report.json').unlink()
    (next((tmp_path / 'out' / FILES).glob('song-3-*')) / 'entry.json').write_text('{')
    done.clear()
    assert run(studio, folder, tmp_path / 'out').reused == 4 and {'song-2.wav', 'song-3.wav'} <= set(done)


def test_another_state_of_the_store_is_another_result(studio, folder, tmp_path):
    from lumina_plugin.workflows import Studio
    run(studio, folder, tmp_path / 'out')
    shutil.copytree(studio.store.path, tmp_path / 'store')
    FingerprintStore.open(tmp_path / 'store').withdraw(['song-5'])
    other = Studio(studio.store.path.parent.parent, tmp_path / 'store')
    batch = attribute_folder(folder, tmp_path / 'out', 'unused', tmp_path / 'store', progress=False, studio=other)
    assert batch.reused == 0 and len(batch.summary.recordings) == 6
    assert all(song.track_id != 'song-5' for channel in batch.summary.channels.values() for song in channel.owed)
    assert run(studio, folder, tmp_path / 'out').reused == 6  # those of the first are still there


def test_generations_keep_the_report_of_their_own_tokens(studio, project, tmp_path, monkeypatch):
    from lumina_plugin.generation import Request, generate_clips
    made = [one.clip for one in generate_clips(studio, Request('slow waltz', seconds=0.6), tmp_path / 'clips', count=3,
                                               progress=False)]
    attribute = studio.attribute
    monkeypatch.setattr(studio, 'attribute', lambda path: 1 / 0)
    batch = run(studio, tmp_path / 'clips', tmp_path / 'out')
    assert [entry.kind for entry in batch.summary.recordings] == ['generation'] * 3
    for entry, clip in zip(batch.summary.recordings, made, strict=True):
        assert AttributionReport.load(tmp_path / 'out' / entry.report / 'report.json') == clip.report
    monkeypatch.setattr(studio, 'attribute', attribute)
    path = made[0].folder / 'report.json'
    data = json.loads(path.read_text())
    data['store']['hash'] = 'another'
    path.write_text(json.dumps(data))
    shutil.rmtree(tmp_path / 'out')
    entries = run(studio, tmp_path / 'clips', tmp_path / 'out').summary.recordings
    assert [entry.kind for entry in entries] == ['file', 'generation', 'generation']


def test_one_recording_that_breaks_something_does_not_stop_the_others(studio, folder, tmp_path, monkeypatch):
    attribute = studio.attribute

    def breaking(path):
        if path.name == 'song-2.wav':
            raise RuntimeError('out of luck')
        return attribute(path)
    monkeypatch.setattr(studio, 'attribute', breaking)
    summary = run(studio, folder, tmp_path / 'out').summary
    assert len(summary.recordings) == 5
    assert 'RuntimeError: out of luck' in {one.file: one.reason for one in summary.left_out}['song-2.wav']


def test_what_cannot_be_done_is_told(studio, folder, project, tmp_path):
    (tmp_path / 'none').mkdir()
    (tmp_path / 'bad').mkdir()
    shutil.copy(folder / 'broken.wav', tmp_path / 'bad')
    for where, options, match in ((tmp_path / 'none', {}, 'no recordings'), (tmp_path / 'gone', {}, 'no folder'),
                                  (tmp_path / 'bad', {}, 'None of the 1 recordings.*broken.wav'),
                                  (folder, {'jobs': 0}, '0 processes')):
        with pytest.raises(LuminaError, match=match):
            run(studio, where, tmp_path / 'out', **options)
    inside = run(studio, folder, folder / 'results')  # results inside of the folder are not attributed
    shutil.copy(folder / 'song-1.wav', folder / 'results' / 'more.wav')
    assert len(run(studio, folder, folder / 'results').summary.recordings) == len(inside.summary.recordings)


def test_several_processes_find_the_same(studio, project, folder, tmp_path):
    alone = run(studio, folder, tmp_path / 'one')
    shared = attribute_folder(folder, tmp_path / 'two', project.folder(), jobs=2, progress=False)
    assert [entry.file for entry in shared.summary.recordings] == [entry.file for entry in alone.summary.recordings]
    assert {one.file for one in shared.summary.left_out} == {one.file for one in alone.summary.left_out}
    for mine, theirs in zip(alone.summary.recordings, shared.summary.recordings, strict=True):
        for key in mine.channels:
            assert {paid.track_id: pytest.approx(paid.share, abs=1e-3) for paid in mine.channels[key].paid} == {
                paid.track_id: paid.share for paid in theirs.channels[key].paid}


def test_a_model_that_cannot_be_loaded_is_told_by_all_processes(studio, folder, tmp_path):
    for jobs in (1, 2):
        with pytest.raises(LuminaError, match='no-such-model'):
            attribute_folder(folder, tmp_path / 'out', 'no-such-model', studio.store.path, jobs=jobs, progress=False)


def test_a_killed_run_leaves_no_process_and_goes_on(studio, project, folder, tmp_path):
    out = tmp_path / 'out'
    argv = [sys.executable, '-m', 'lumina_plugin', 'attribute', str(folder), '--out', str(out), '--jobs', '2',
            '--model', str(project.folder()), '-q']
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not list(out.glob('files/*/entry.json')):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert len(workers) >= 2 and psutil.wait_procs(workers, timeout=60)[1] == []
    finished = len(list(out.glob('files/*/entry.json')))
    batch = run(studio, folder, out)
    assert batch.reused == finished >= 1 and len(batch.summary.recordings) == 6 and not list(out.rglob('*.part'))


def test_the_command(studio, project, folder, tmp_path, capsys):
    argv = ['attribute', str(folder), '--model', str(project.folder()), '--out', str(tmp_path / 'out')]
    main([*argv, '--top', '2', '--by', 'seconds'])
    out = capsys.readouterr().out
    assert 'left out: silence.wav: it is silent' in out and 'unattributed' in out and 'summary.html' in out
    assert '6 recordings, 0 of them attributed before; 4 left out' in out
    main([*argv, '--json', '-q'])
    told = Summary.model_validate_json(capsys.readouterr().out)
    assert content(told) == content(Summary.load(tmp_path / 'out' / 'summary.json')) and told.by == 'recordings'
    for wrong, named in ((['attribute', str(folder)], '--out'), ([*argv, '--sidecar'], 'sidecars'),
                         ([*argv, '--by', 'pounds'], 'pounds')):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2 and named in capsys.readouterr().err
