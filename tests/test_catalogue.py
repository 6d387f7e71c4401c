"""Catalogues: from a folder of recordings, from audiocraft's manifests, and what is wrong with them."""
import gzip
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from lumina_plugin.catalogue import Catalogue, Track, build_catalogue, check_catalogue
from lumina_plugin.catalogue.tracks import unique_ids
from lumina_plugin.errors import LuminaError

RATE = 16000


def song(path: Path, seed: int = 0, seconds: float = 1., level: float = .1, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sf.write(path, (level * rng.standard_normal(int(seconds * rate))).astype(np.float32), rate)
    return path


def manifest(folder: Path, *paths: Path, **change) -> Path:
    rows = [{'path': str(p), 'duration': 1., 'sample_rate': RATE, 'amplitude': None, 'weight': None,
             'info_path': None, **change} for p in paths]
    (folder / 'data.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return folder / 'data.jsonl'


@pytest.fixture
def mixed_songs(tmp_path) -> Path:
    """Three good songs, one of them in another format, a silent one, a copy, and four bad ones."""
    folder = tmp_path / 'in'
    song(folder / 'b.wav', 1, 2.)
    song(folder / 'a.flac', 2, rate=44100)
    song(folder / 'album' / 'b.wav', 3, .3)
    song(folder / 'quiet.wav', 4, level=0.)
    sf.write(folder / 'copy of b.flac', sf.read(folder / 'b.wav', dtype='int16')[0], RATE)
    (folder / 'broken.mp3').write_text('no music here ' * 99)
    (folder / 'empty.ogg').write_bytes(b'')
    sf.write(folder / 'nan.wav', np.array([np.nan] * 99, np.float32), RATE, subtype='FLOAT')
    song(folder / 'odd.wav', 5).with_suffix('.json').write_text('{"title": ')
    (folder / 'notes.txt').write_text('not looked at')
    (folder / '._b.wav').write_text('nor this')
    return folder


# --- from a folder --------------------------------------------------------------------------------------------------

def test_a_folder_becomes_a_catalogue(mixed_songs, tmp_path):
    result = build_catalogue(mixed_songs, tmp_path / 'out', progress=False)
    assert [t.id for t in result.catalogue] == ['a', 'album-b', 'in-b', 'copy-of-b', 'quiet']
    assert result.songs == 5 and result.hours == pytest.approx(sum(t.duration for t in result.catalogue) / 3600)
    assert {Path(p).name for p in result.skipped} == {'broken.mp3', 'empty.ogg', 'nan.wav', 'odd.wav'}
    assert all(Path(p).name in reason for p, reason in result.skipped.items() if not p.endswith('odd.wav'))
    assert 'odd.json' in result.skipped[str(mixed_songs / 'odd.wav')]
    assert result.silent == ['quiet'] and result.catalogue.get('quiet').silent
    assert result.duplicates == [('in-b', 'copy-of-b')], "a WAV and a FLAC of the same samples"
    assert '4 skipped' in result.summary() and 'copy-of-b' in result.summary()
    track = result.catalogue.get('a')
    assert (track.sample_rate, track.duration, track.title) == (44100, 1., 'a')


def test_strict_stops_at_the_first_bad_song(mixed_songs, tmp_path):
    with pytest.raises(LuminaError, match='broken.mp3'):
        build_catalogue(mixed_songs, tmp_path / 'out', strict=True, progress=False)
    assert not (tmp_path / 'out' / 'data.jsonl').exists()


def test_the_recordings_folder_is_never_written_to(mixed_songs, tmp_path):
    def state() -> dict:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [mixed_songs, *mixed_songs.rglob('*')]}
    before = state()
    mode = mixed_songs.stat().st_mode
    mixed_songs.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        build_catalogue(mixed_songs, tmp_path / 'out', progress=False)
    finally:
        mixed_songs.chmod(mode)
    assert state() == before
    for out in (mixed_songs, mixed_songs / 'lumina'):
        with pytest.raises(LuminaError, match='inside'):
            build_catalogue(mixed_songs, out, progress=False)


def test_building_twice_gives_the_same(mixed_songs, tmp_path):
    one = build_catalogue(mixed_songs, tmp_path / 'out', progress=False)
    text, name = one.manifest.read_bytes(), one.catalogue.hash
    two = build_catalogue(mixed_songs, tmp_path / 'out', progress=False)
    assert two.manifest.read_bytes() == text and two.catalogue.hash == name
    other = build_catalogue(mixed_songs, tmp_path / 'elsewhere', progress=False)
    assert other.catalogue.hash == name, "the same songs elsewhere are the same catalogue"


def test_titles_come_from_the_sidecar_then_the_tags_then_the_name(tmp_path):
    folder = tmp_path / 'in'
    for i, name in enumerate(('one', 'two', 'three_words_here')):
        path = song(folder / f'{name}.flac', i)
        if i < 2:
            samples, rate = sf.read(path)
            with sf.SoundFile(path, 'w', rate, 1) as file:
                file.title, file.artist = f'Tag {i}', 'Band'
                file.write(samples)
    rights = {'splits': {'writers': [{'name': 'W', 'share': 60}, {'name': 'V', 'share': 40}],
                         'master_owners': [{'name': 'M', 'share': 100}]}}
    own = {'title': 'Own', 'isrc': 'ZZ-1', 'track_id': 'x', 'moods': ['a'], **rights}
    (folder / 'one.json').write_text(json.dumps(own))
    one, three, two = build_catalogue(folder, tmp_path / 'out', progress=False).catalogue
    assert (one.id, one.title, one.isrc) == ('one', 'Own', 'ZZ-1') and (two.title, two.artist) == ('Tag 1', 'Band')
    assert one.artist == 'Band' and three.title == 'three words here'
    assert [tuple(s) for s in one.writers] == [('W', 60.), ('V', 40.)] and one.masters[0].name == 'M'
    assert json.loads(one.sidecar.read_text())['moods'] == ['a']
    assert json.dumps(one.extra)


def test_folders_without_songs(tmp_path):
    with pytest.raises(LuminaError, match='not a folder'):
        build_catalogue(tmp_path / 'gone', tmp_path / 'out', progress=False)
    (tmp_path / 'in').mkdir()
    with pytest.raises(LuminaError, match='no recordings'):
        build_catalogue(tmp_path / 'in', tmp_path / 'out', progress=False)
    (tmp_path / 'in' / 'a.wav').write_text('x')
    with pytest.raises(LuminaError, match='none of the 1 recordings.*a.wav'):
        build_catalogue(tmp_path / 'in', tmp_path / 'out', progress=False)


def test_an_output_folder_that_cannot_be_written(mixed_songs, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(LuminaError, match='cannot write'):
        build_catalogue(mixed_songs, tmp_path / 'file' / 'out', progress=False)


def test_without_symbolic_links_recordings_are_copied(mixed_songs, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError('not here')
    monkeypatch.setattr(Path, 'symlink_to', refuse)
    track = build_catalogue(mixed_songs, tmp_path / 'out', progress=False).catalogue.get('a')
    assert not track.path.is_symlink() and track.path.read_bytes() == (mixed_songs / 'a.flac').read_bytes()


# --- from a manifest ------------------------------------------------------------------------------------------------

def test_manifests_of_every_form(tmp_path):
    paths = [song(tmp_path / f'{n}.wav', i) for i, n in enumerate('cab')]
    plain = manifest(tmp_path, *paths)
    catalogue = Catalogue.from_manifest(plain)
    assert [t.id for t in catalogue] == ['c', 'a', 'b'] and len(catalogue) == 3 and catalogue[-1].id == 'b'
    assert [t.id for t in catalogue[1:]] == ['a', 'b'] and catalogue.get('a') is catalogue[1]
    assert isinstance(catalogue[0], Track) and catalogue[0].title is None and catalogue[0].extra == {}
    zipped = tmp_path / 'z'
    zipped.mkdir()
    (zipped / 'data.jsonl.gz').write_bytes(gzip.compress(plain.read_bytes()))
    assert Catalogue.from_manifest(zipped).hash == Catalogue.from_manifest(tmp_path).hash == catalogue.hash


def test_relative_paths(tmp_path, monkeypatch):
    song(tmp_path / 'm' / 'a.wav')
    path = manifest(tmp_path / 'm', Path('a.wav'))
    assert Catalogue.from_manifest(path)[0].path == tmp_path / 'm' / 'a.wav'
    song(tmp_path / 'a.wav', 2)
    monkeypatch.chdir(tmp_path)  # audiocraft takes relative paths from here
    assert Catalogue.from_manifest(path)[0].path == tmp_path / 'a.wav'


def test_the_hash_follows_ids_audio_and_order(tmp_path):
    a, b = song(tmp_path / 'a.wav', 1), song(tmp_path / 'b.wav', 2)
    first = Catalogue.from_manifest(manifest(tmp_path, a, b)).hash
    a.with_suffix('.json').write_text(json.dumps({'title': 'A title is not the song'}))
    assert Catalogue.from_manifest(tmp_path).hash == first
    assert Catalogue.from_manifest(manifest(tmp_path, b, a)).hash != first
    assert Catalogue.from_manifest(manifest(tmp_path, a)).hash != first
    manifest(tmp_path, a, b)
    song(a, 3)
    os.utime(a, ns=(1, 1))
    changed = Catalogue.from_manifest(tmp_path).hash
    assert changed != first
    a.unlink()
    assert Catalogue.from_manifest(tmp_path).hash not in (first, changed)
    with pytest.raises(LuminaError, match='a.wav'):
        Catalogue.from_manifest(tmp_path).get('a').sha256  # noqa: B018


@pytest.mark.parametrize('content,words', [
    ('', 'is empty'), ('\n\n', 'is empty'), ('{"path": "a.wav"}\n', "line 1 .*'duration' is missing"),
    ('nonsense\n', 'line 1'), ('[1]\n', 'line 1'), ('{"path": "a", "duration": "x", "sample_rate": 1}', 'line 1')])
def test_broken_manifests(tmp_path, content, words):
    (tmp_path / 'data.jsonl').write_text(content)
    with pytest.raises(LuminaError, match=words) as caught:
        Catalogue.from_manifest(tmp_path)
    assert 'data.jsonl' in str(caught.value)


def test_missing_manifests(tmp_path):
    with pytest.raises(LuminaError, match='does not exist'):
        Catalogue.from_manifest(tmp_path / 'gone.jsonl')
    with pytest.raises(LuminaError, match='catalogue build'):
        Catalogue.from_manifest(tmp_path)
    (tmp_path / 'egs' / 'train').mkdir(parents=True)
    manifest(tmp_path / 'egs' / 'train', song(tmp_path / 'a.wav'))
    with pytest.raises(LuminaError, match='did you mean .*train'):
        Catalogue.from_manifest(tmp_path)
    (tmp_path / 'data.jsonl.gz').write_bytes(b'not gzip')
    with pytest.raises(LuminaError, match='cannot be read'):
        Catalogue.from_manifest(tmp_path)


@pytest.mark.parametrize('content', ['{', '[]', '{"splits": {"writers": [{"name": "x"}]}}', '{"splits": 3}'])
def test_broken_sidecars(tmp_path, content):
    path = song(tmp_path / 'a.wav')
    path.with_suffix('.json').write_text(content)
    with pytest.raises(LuminaError, match='a.json'):
        Catalogue.from_manifest(manifest(tmp_path, path))


def test_ids(tmp_path):
    paths = [Path('/x') / p for p in ('a/01.wav', 'b/01.wav', 'c/b/01.wav', 'Ünder cover!.ogg', '....wav', 'a-01.wav')]
    assert unique_ids(paths) == ['a-01-2', 'b-01', 'b-01-2', 'Ünder-cover', 'song', 'a-01']
    one, two = song(tmp_path / 'a.wav'), song(tmp_path / 'b.wav')
    for path in (one, two):
        path.with_suffix('.json').write_text('{"track_id": "same"}')
    with pytest.raises(LuminaError, match="'same' occurs twice"):
        Catalogue.from_manifest(manifest(tmp_path, one, two))
    two.with_suffix('.json').unlink()
    with pytest.raises(LuminaError, match="no song 'sam'.*like same"):
        Catalogue.from_manifest(tmp_path).get('sam')


# --- checking -------------------------------------------------------------------------------------------------------

def test_check_finds_what_is_wrong(mixed_songs, tmp_path):
    result = build_catalogue(mixed_songs, tmp_path / 'out', progress=False)
    good = check_catalogue(tmp_path / 'out', progress=False)
    assert good.ok and good.songs == 5 and good.silent == ['quiet'] and good.duplicates == [('in-b', 'copy-of-b')]
    assert good.hours == pytest.approx(result.hours)
    (mixed_songs / 'a.flac').unlink()
    (mixed_songs / 'album' / 'b.wav').write_text('overwritten')
    song(mixed_songs / 'quiet.wav', 8, 3.)
    sidecar = result.catalogue.get('in-b').sidecar
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()),
                                   'splits': {'writers': [{'name': 'W', 'share': 30}]}}))
    found = check_catalogue(tmp_path / 'out', progress=False)
    assert not found.ok and found.missing == ['a'] and list(found.bad) == ['album-b'] and found.silent == []
    text = found.summary()
    assert '1 missing, 1 bad' in text and '30 %' in text and 'quiet: lasts 3.0 s' in text and 'a.flac' in text


# --- audiocraft -----------------------------------------------------------------------------------------------------

def test_audiocraft_reads_what_was_built(mixed_songs, tmp_path):
    """Sidecars included, though the recordings' folder has none and must stay as it is."""
    from lumina_plugin import compat
    compat.install()
    from audiocraft.data.music_dataset import MusicDataset
    result = build_catalogue(mixed_songs, tmp_path / 'out', progress=False)
    dataset = MusicDataset.from_meta(result.manifest.parent, segment_duration=None, sample_rate=RATE, channels=1,
                                     info_fields_required=True)
    assert len(dataset) == 5
    for index, track in enumerate(result.catalogue):
        wav, info = dataset[index]
        assert wav.shape[-1] == pytest.approx(track.duration * RATE, abs=2)
        assert info.title == track.title and info.name == track.id.lower()
