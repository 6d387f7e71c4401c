"""`lumina generate`: many clips, each by its own seed, whole, and never made twice."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile

from lumina_plugin.cli import main
from lumina_plugin.errors import LuminaError
from lumina_plugin.generation import Request, generate_clips, prompt_of
from lumina_plugin.provenance import read_back
from lumina_plugin.report import AttributionReport
from lumina_plugin.workflows import Prompt

from .authority import Authority

FILES = ['audio.wav', 'audio.wav.lumina.json', 'report.csv', 'report.html', 'report.json', 'request.json']


def make(studio, out, **options):
    request = {key: options.pop(key) for key in list(options) if key in Request.__dataclass_fields__}
    return list(generate_clips(studio, Request(**{'seconds': 0.6, 'text': 'slow waltz', **request}), out,
                               progress=False, **options))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob('*')) if path.is_file()}


def test_clips_have_seeds_of_their_own_and_all_their_files(studio, tmp_path):
    made = make(studio, tmp_path, count=3, seed=5)
    assert [one.clip.folder.name for one in made] == ['clip-1', 'clip-2', 'clip-3']
    assert [one.clip.report.query.seed for one in made] == [5, 6, 7] and not any(one.reused for one in made)
    for one in made:
        assert sorted(path.name for path in one.clip.folder.iterdir()) == FILES
        found = read_back(one.clip.folder)
        assert found.fits and found.report == one.clip.report and 'generate' in found.report.timings
        with open(one.clip.folder / 'report.csv', newline='', encoding='utf-8') as file:
            rows = list(csv.DictReader(file))
        assert {(row['query_id'], row['channel']) for row in rows} == {(one.clip.folder.name, 'P'),
                                                                      (one.clip.folder.name, 'M')}
        assert len(rows) == 2 * one.clip.report.store.songs
    alone = make(studio, tmp_path / 'alone', seed=6)[0].clip
    assert alone.report.query.codes_hash == made[1].clip.report.query.codes_hash  # depends on no other clip


def test_clips_that_are_there_are_kept_and_only_what_is_missing_is_made(studio, tmp_path):
    first = make(studio, tmp_path, count=3)
    before = times(tmp_path)
    assert all(one.reused for one in make(studio, tmp_path, count=3)) and times(tmp_path) == before
    (tmp_path / 'clip-2' / 'report.json').unlink()
    data = bytearray((tmp_path / 'clip-3' / 'audio.wav').read_bytes())
    data[2000] ^= 0xff
    (tmp_path / 'clip-3' / 'audio.wav').write_bytes(bytes(data))
    again = make(studio, tmp_path, count=4)
    assert [one.reused for one in again] == [True, False, False, False]
    assert [one.clip.report.query.codes_hash for one in again[:3]] == [
        one.clip.report.query.codes_hash for one in first]
    assert not make(studio, tmp_path, count=1, name='clip-1', text='fast')[0].reused  # another request
    assert not make(studio, tmp_path, count=1, name='clip-1', text='fast', temperature=0.5)[0].reused


def test_a_killed_run_goes_on_where_it_was(studio, project, tmp_path):
    argv = ['generate', '--model', str(project.folder()), '--prompt', 'slow waltz', '--seconds', '0.6', '--n']
    process = subprocess.Popen([sys.executable, '-m', 'lumina_plugin', *argv, '500', '--out', str(tmp_path), '-q'],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (tmp_path / 'clip-2' / 'request.json').is_file():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    finished = len(list(tmp_path.glob('*/request.json')))
    made = make(studio, tmp_path, count=finished + 1)
    assert [one.reused for one in made] == [True] * finished + [False] and finished >= 2
    assert all(read_back(one.clip.folder).fits for one in made) and not list(tmp_path.rglob('*.part'))


def test_songs_are_continued_by_file_or_by_id(studio, project, tmp_path):
    store, song = studio.store, project.root / 'songs' / 'song-2.wav'
    by_id = prompt_of(store, 'song-2', 0.3)
    assert by_id == prompt_of(store, str(by_id.path), 0.3) and by_id.song_id == 'song-2'
    copy = shutil.copy(song, tmp_path / 'renamed.wav')
    assert prompt_of(store, copy, 0.3).song_id == 'song-2'  # known by its hash
    clip = make(studio, tmp_path / 'out', prompt=by_id)[0].clip
    assert clip.report.query.kind == 'continuation' and clip.report.query.prompt_song_id == 'song-2'
    (tmp_path / 'other.wav').write_bytes(song.read_bytes() + b'LIST\0\0\0\0')
    assert prompt_of(store, str(tmp_path / 'other.wav')) == Prompt(tmp_path / 'other.wav', 3., None, 0.)
    for name, match in (('song-22', 'did you mean song-2'), ('zzzz', 'neither a recording nor a song'),
                        ('gone.wav', 'gone.wav does not exist'), (str(tmp_path), 'is a folder')):
        with pytest.raises(LuminaError, match=match):
            prompt_of(store, name)


def test_a_song_whose_recording_is_gone_is_told(studio, tmp_path):
    from lumina_plugin.store import FingerprintStore
    shutil.copytree(studio.store.path, tmp_path / 'store')
    store = FingerprintStore.open(tmp_path / 'store')
    track = store.track('song-1').model_copy(update={'path': str(tmp_path / 'moved.wav')})
    store.describe([track])
    with pytest.raises(LuminaError, match='song-1 is not at .*moved.wav'):
        prompt_of(FingerprintStore.open(tmp_path / 'store'), 'song-1')


@pytest.mark.parametrize('kind', ['flac', 'mp3', 'ogg'])
def test_clips_in_other_formats(studio, tmp_path, kind):
    clip = make(studio, tmp_path, kind=kind)[0].clip
    assert clip.audio.name == f'audio.{kind}' and soundfile.info(clip.audio).duration > 0.5
    assert read_back(clip.audio).fits and 'data:audio/' in (clip.folder / 'report.html').read_text()
    assert make(studio, tmp_path, kind=kind)[0].reused


def test_what_cannot_be_made_is_told_first(studio, tmp_path):
    authority = Authority(tmp_path)
    from lumina_plugin.provenance import Signing
    signing = Signing(*authority.signer())
    for options, match in ((dict(count=0), '0 clips'), (dict(kind='aiff'), 'written as aiff'),
                           (dict(kind='ogg', signing=signing), 'ogg cannot hold'),
                           (dict(name='../x'), 'name of a clip'),
                           (dict(signing=Signing(tmp_path / 'no.pem', tmp_path / 'no.key')), 'no.pem')):
        with pytest.raises(LuminaError, match=match):
            make(studio, tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_the_command(project, tmp_path, capsys):
    authority = Authority(tmp_path)
    certificate, key = authority.signer()
    base = ['generate', '--model', str(project.folder()), '--seconds', '0.6', '--out', str(tmp_path / 'out')]
    main([*base, '--prompt', 'slow waltz', '--n', '2', '--format', 'mp3', '--seed', '3',
          '--c2pa-cert', str(certificate), '--c2pa-key', str(key)])
    out = capsys.readouterr().out
    assert '2 clips in' in out and out.count('Attribution took') == 2 and '  P  ' in out
    found = read_back(tmp_path / 'out' / 'clip-2' / 'audio.mp3', authority.root)
    assert found.fits and found.sources[0].name == 'the C2PA manifest' and found.report.query.seed == 4
    main([*base, '--prompt', 'slow waltz', '--n', '2', '--format', 'mp3', '--seed', '3',
          '--c2pa-cert', str(certificate), '--c2pa-key', str(key)])
    assert '2 were there already' in capsys.readouterr().out
    main([*base, '--continue', 'song-1', '--prompt-seconds', '0.2', '--name', 'on', '-q'])
    assert 'unattributed' in capsys.readouterr().out
    report = AttributionReport.load(tmp_path / 'out' / 'on' / 'report.json')
    assert report.query.prompt_song_id == 'song-1'
    assert json.loads((tmp_path / 'out' / 'on' / 'request.json').read_text())['prompt']['song_id'] == 'song-1'
    for extra, named in ((['--c2pa-cert', str(certificate)], '--c2pa-key'), (['--continue', 'sonng-1'], 'song-1'),
                         (['--c2pa-cert', str(key), '--c2pa-key', str(key)], 'cannot sign')):
        with pytest.raises(SystemExit) as stop:
            main([*base, *extra])
        assert stop.value.code == 2 and named in capsys.readouterr().err
