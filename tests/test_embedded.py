"""The embedded catalogue: the same bytes every time, a real crossing, and files that audiocraft reads."""
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from lumina_plugin.embedded import (
    SAMPLE_RATE,
    Composition,
    build_embedded,
    compose,
    effects,
    endless_songs,
    heldout_songs,
    make_production,
    render,
    training_songs,
)
from lumina_plugin.embedded import build as build_module
from lumina_plugin.embedded.production import STYLES
from lumina_plugin.errors import LuminaError

TRAIN, HELDOUT = training_songs(), heldout_songs()


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> build_module.EmbeddedCatalogue:
    return build_embedded(tmp_path_factory.mktemp('embedded') / 'songs', jobs=2, progress=False, extra=2)


def _score(composition: Composition, seconds: float = 12.) -> list:
    return composition.events(seconds)


# --- design ---------------------------------------------------------------------------------------------------------

def test_the_catalogue_has_the_promised_songs():
    assert len(TRAIN) == 97 and len(HELDOUT) == 16
    everything = TRAIN + HELDOUT
    for name in ('id', 'isrc', 'seed', 'title'):
        assert len({getattr(s, name) for s in everything}) == 113, name
    durations = sorted(s.duration for s in TRAIN)
    assert sum(d < 10 for d in durations) == 2 and all(12 <= d <= 30 for d in durations[2:])
    assert all(12 <= s.duration <= 30 for s in HELDOUT)


def test_compositions_and_productions_are_crossed():
    compositions, productions = Counter(s.composition_id for s in TRAIN), Counter(s.production_id for s in TRAIN)
    assert len(compositions) == 24 and set(compositions.values()) == {4, 5}
    assert len(productions) == 8 and set(productions.values()) == {12, 13}
    assert len({(s.composition_id, s.production_id) for s in TRAIN}) == 97
    pairs: Counter = Counter()
    for name in compositions:
        pairs.update(itertools.combinations(sorted(s.production_id for s in TRAIN if s.composition_id == name), 2))
    assert len(pairs) == 28 and max(pairs.values()) - min(pairs.values()) <= 2


def test_equal_ids_mean_equal_notes_and_equal_sound():
    for one, other in itertools.combinations(TRAIN, 2):
        assert (one.composition_id == other.composition_id) == (one.composition == other.composition)
        assert (one.production_id == other.production_id) == (one.production == other.production)


def test_held_out_and_further_songs_share_nothing_with_the_training_songs():
    extra = list(itertools.islice(endless_songs(), 40))
    for kind in ('composition_id', 'production_id', 'composition', 'production'):
        seen: list = []
        for split in (TRAIN, HELDOUT, extra):
            here = [getattr(s, kind) for s in split]
            assert not any(item in seen for item in here), kind
            seen += here


def test_further_songs_can_be_crossed():
    songs = list(itertools.islice(endless_songs(crossing=3), 18))
    assert len({s.id for s in songs}) == 18
    for group in (songs[:9], songs[9:]):
        assert len({s.composition_id for s in group}) == 3 and len({s.production_id for s in group}) == 3
        assert len({(s.composition_id, s.production_id) for s in group}) == 9


def test_credits_are_whole_and_invented():
    for song in TRAIN + HELDOUT:
        assert sum(s for _, s in song.writers) == 100 and sum(s for _, s in song.master_owners) == 100
        assert song.isrc.startswith('ZZ-')
        digits = [int(c) for c in song.iswc if c.isdigit()]
        assert len(digits) == 10 and (1 + sum((i + 1) * d for i, d in enumerate(digits[:9])) + digits[9]) % 10 == 0
    for kind, credit in (('composition_id', 'iswc'), ('composition_id', 'writers'), ('production_id', 'artist')):
        for name in {getattr(s, kind) for s in TRAIN}:
            assert len({getattr(s, credit) for s in TRAIN if getattr(s, kind) == name}) == 1


def test_descriptions_come_from_a_small_vocabulary():
    words = {tag for s in TRAIN + list(itertools.islice(endless_songs(), 100)) for tag in s.description.split(', ')}
    assert len(words) <= 80
    assert len({s.description for s in TRAIN}) < 97  # some songs share one: the text does not name the song


# --- music ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(12))
def test_compositions_are_music(seed):
    piece = compose(seed)
    notes = _score(piece)
    assert piece == compose(seed) and 70 <= piece.bpm <= 160
    parts = {p: [n for n in notes if n.part == p] for p in ('melody', 'chords', 'bass', 'drums')}
    assert all(parts.values())
    scale = {n.pitch % 12 for n in notes if n.part != 'drums'}
    assert len(scale) <= 7  # it keeps to its key
    assert all(0 < n.velocity <= 1 and n.length > 0 for n in notes)
    assert max(n.pitch for n in parts['bass']) < np.median([n.pitch for n in parts['melody']])
    assert [n.start for n in notes] == sorted(n.start for n in notes)
    first, second = (piece.sections[label] for label in 'AB')
    assert first.notes != second.notes


def test_training_compositions_differ_from_one_another():
    pieces = {s.composition_id: s.composition for s in TRAIN}
    assert len({p.tonic for p in pieces.values()}) == 12 and len({p.metre for p in pieces.values()}) == 4
    tempi = sorted(p.bpm for p in pieces.values())
    assert tempi[0] < 75 and tempi[-1] > 155
    melodies = [tuple((n.start, n.pitch) for n in p.sections['A'].notes if n.part == 'melody') for p in pieces.values()]
    assert len(set(melodies)) == len(melodies)


@pytest.mark.parametrize('style', [*STYLES, None])
def test_every_style_sounds_and_never_clips(style):
    for seed in (0, 3):
        wav = render(compose(seed), make_production(seed, style), 6., seed)
        assert wav.dtype == np.float32 and wav.shape == (6 * SAMPLE_RATE,)
        assert np.isfinite(wav).all() and np.abs(wav).max() < .95
        assert abs(effects.loudness(wav.astype(np.float64)) + 17) < 1.5
        seconds = wav.reshape(6, -1)[:5]
        assert np.sqrt((seconds ** 2).mean(1)).min() > .01
        assert abs(wav[-1]) < 1e-3  # faded, not cut


def test_rendering_depends_on_its_arguments_alone():
    song = TRAIN[4]
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    one = song.render()
    np.random.seed(2)
    assert np.array_equal(one, song.render())
    np.random.seed(1)
    assert np.array_equal(state, np.random.get_state()[1])
    other = render(song.composition, song.production, song.duration, song.seed + 1)
    assert not np.array_equal(one, other)


def test_a_composition_is_heard_through_its_productions_and_a_production_through_its_compositions():
    """Harmony follows the composition, the average spectrum follows the production."""
    import librosa
    chosen = [s for s in TRAIN if s.duration > 10][:32]
    chroma, timbre = [], []
    for song in chosen:
        wav = render(song.composition, song.production, 5., song.seed)
        c = librosa.feature.chroma_stft(y=wav, sr=SAMPLE_RATE, n_fft=4096, hop_length=2048).ravel()
        m = np.log(librosa.feature.melspectrogram(y=wav, sr=SAMPLE_RATE, n_mels=40).mean(1) + 1e-6)
        chroma.append(c / np.linalg.norm(c))
        timbre.append(m)
    chroma_near = np.stack(chroma) @ np.stack(chroma).T
    z = np.stack(timbre) - np.mean(timbre, axis=0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    timbre_near = z @ z.T
    pairs = list(itertools.combinations(range(len(chosen)), 2))

    def mean(near: np.ndarray, kind: str, same: bool) -> float:
        return float(np.mean([near[i, j] for i, j in pairs
                              if (getattr(chosen[i], kind) == getattr(chosen[j], kind)) == same]))
    assert mean(chroma_near, 'composition_id', True) > mean(chroma_near, 'composition_id', False) + .2
    assert mean(timbre_near, 'production_id', True) > mean(timbre_near, 'production_id', False) + .2
    assert mean(chroma_near, 'production_id', True) < mean(chroma_near, 'production_id', False) + .05


# --- files ----------------------------------------------------------------------------------------------------------

def test_files_are_as_the_songs_say(built):
    rows = [json.loads(line) for line in built.train.read_text().splitlines()]
    assert [Path(r['path']).stem for r in rows] == [s.id for s in TRAIN]
    for row, song in list(zip(rows, TRAIN, strict=True))[::12]:
        wav, rate = sf.read(row['path'], dtype='int16')
        assert rate == SAMPLE_RATE and row['duration'] == pytest.approx(len(wav) / rate)
        assert np.array_equal(wav, np.round(song.render().astype(np.float64) * 32767).astype(np.int16))
        assert sf.info(row['path']).subtype == 'PCM_16'
    assert built.extra is not None and len(built.extra.read_text().splitlines()) == 2


def test_no_two_songs_have_the_same_audio(built):
    contents = {p.read_bytes()[44:44 + 60_000] for p in built.folder.rglob('*.wav')}
    assert len(contents) == 97 + 16 + 2


def test_one_process_and_two_give_the_same_bytes(built, tmp_path):
    for song in (TRAIN[0], TRAIN[1], HELDOUT[7]):
        build_module.write_song(tmp_path, song)
        path = build_module.audio_path(tmp_path, song)
        for suffix in ('.wav', '.json'):
            assert path.with_suffix(suffix).read_bytes() == \
                build_module.audio_path(built.folder, song).with_suffix(suffix).read_bytes()


def test_a_second_call_renders_nothing_and_a_damaged_folder_is_mended(built):
    assert build_embedded(built.folder, progress=False).rendered == 0
    victims = [build_module.audio_path(built.folder, TRAIN[5]), build_module.audio_path(built.folder, TRAIN[9])]
    before = [v.read_bytes() for v in victims]
    victims[0].unlink()
    victims[1].write_bytes(before[1][:-2])  # as a copy that was cut off
    stamp = built.folder / build_module.STAMP
    assert build_embedded(built.folder, jobs=1, progress=False).rendered == 2
    assert [v.read_bytes() for v in victims] == before
    stamp.write_text('{"half": ')
    state = built.train.read_bytes()
    again = build_module._read_stamp(built.folder)
    assert again == {}
    stamp.unlink()
    build_module.write_json(stamp, {'seed': 7, 'code': build_module.code_version(), 'complete': False, 'extra': 2})
    victims[0].unlink()  # interrupted after the stamp, before this song
    assert build_embedded(built.folder, jobs=1, progress=False).rendered == 1
    assert built.train.read_bytes() == state


def test_another_version_of_the_code_renders_again(built, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build_module, 'code_version', lambda: 'other')
        assert build_module._cached(built.folder, {'seed': 7, 'code': build_module.code_version()}, 0) is None
    assert build_module._cached(built.folder, {'seed': 7, 'code': build_module.code_version()}, 0) is not None
    assert build_module._cached(built.folder, {'seed': 8, 'code': build_module.code_version()}, 0) is None


def test_a_moved_folder_gets_new_manifests_without_rendering(built, tmp_path):
    moved = tmp_path / 'moved'
    import shutil
    shutil.copytree(built.folder, moved)
    result = build_embedded(moved, progress=False)
    assert result.rendered == 0
    assert all(str(moved) in line for line in result.train.read_text().splitlines())


def test_unwritable_and_absurd_arguments_are_explained(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(LuminaError, match='file'):
        build_embedded(tmp_path / 'file' / 'below', progress=False)
    with pytest.raises(LuminaError, match='jobs'):
        build_embedded(tmp_path, jobs=0)


def test_a_worker_that_fails_is_reported(tmp_path, monkeypatch):
    (tmp_path / 'audio').write_text('in the way of the folder of the songs')
    with pytest.raises(LuminaError, match='stopped with code 2'):
        build_embedded(tmp_path, jobs=2, progress=False)


def test_rendering_needs_neither_torch_nor_audiocraft():
    """Each process that renders starts in a fraction of a second."""
    code = "import sys, lumina_plugin.embedded; print(sorted({'torch', 'audiocraft'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


def test_audiocraft_reads_it(built):
    """audiocraft's own MusicDataset, with every field of the sidecar required."""
    from lumina_plugin import compat
    compat.install()
    from audiocraft.data.music_dataset import MusicDataset
    dataset = MusicDataset.from_meta(built.train.parent, segment_duration=4., num_samples=3, sample_rate=SAMPLE_RATE,
                                     channels=1, info_fields_required=True)
    wav, info = dataset[1]
    assert wav.shape == (1, 4 * SAMPLE_RATE)
    song = next(s for s in TRAIN if s.id == info.name)
    assert (info.title, info.artist, info.description) == (song.title, song.artist, song.description)
    assert info.bpm == song.composition.bpm and info.key == song.composition.key.lower()
    text = info.to_condition_attributes().text
    assert text['description'] == song.description and text['genre'] == song.production.style
