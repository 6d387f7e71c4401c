"""Outside songs beside a store's checkpoints: a training makes them, tools carry them, reports use them."""

import collections
import itertools
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lumina_plugin.attribution import Attributor
from lumina_plugin.audio import load_audio
from lumina_plugin.chance import OutsideSongs
from lumina_plugin.conditions import attributes_for
from lumina_plugin.embedded import endless_songs, heldout_songs, training_songs
from lumina_plugin.errors import LuminaError
from lumina_plugin.gradients import Example
from lumina_plugin.null_pass import calibrate
from lumina_plugin.outside import SEED, gather
from lumina_plugin.scoring import fit_scorers
from lumina_plugin.store import FingerprintStore, StoredNull, export, merge
from lumina_plugin.tokens import Tokenizer

from .tiny import build_codec, write_outside


@pytest.fixture
def run(project, tmp_path):
    """A copy of the project's run, whose store may be changed."""
    return shutil.copytree(project.folder(), tmp_path / 'xps' / project.folder().name, symlinks=True)


@pytest.fixture
def store(run):
    return FingerprintStore.open(run / 'lumina' / 'default')


def attributor(studio, store, **options):
    return Attributor(studio.musicgen.lm, studio.musicgen.compression_model, store, **options)


def without_null(store):
    """As a store from before there were nulls, or one whose owner wants none."""
    for record in store.checkpoints:
        store.commit(store.manifest.having(record.model_copy(update={'null': None})))
        for path in (store.path / record.name).glob('null-*'):
            path.unlink()
    return FingerprintStore.open(store.path)


@pytest.fixture(autouse=True)
def one_thread():
    """As the training had: by more of them sums are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_training_keeps_outside_songs_beside_every_checkpoint(project, studio):
    store = FingerprintStore.open(project.folder() / 'lumina' / 'default')
    nulls = [store.null(record) for record in store.checkpoints]
    assert len(nulls) == 2 and nulls[0].songs == nulls[1].songs and 64 <= len(nulls[0].songs) <= 72
    assert nulls[0].vectors['P'].shape == (len(nulls[0].songs), 512) and nulls[0].origin == 'songs of outside'
    assert not torch.equal(nulls[0].vectors['M'], nulls[1].vectors['M'])
    path = next((project.root / 'outside').glob(f'{nulls[0].songs[0].id}.wav'))
    tokenizer, bare = studio.attributor.tokenizer, attributes_for(studio.musicgen.lm)
    wav = load_audio(path, 16000)[..., :16000]  # the first chunk, from as many starts as a query's
    chunks = [tokenizer.audio(wav[..., start:]).chunks[0] for start in tokenizer.starts(wav, 4)]
    examples = [Example(chunk.codes, 0, chunk.frames, bare) for chunk in chunks]
    whole, _ = studio.attributor._fingerprints(examples, [0] * len(examples))
    torch.testing.assert_close(torch.from_numpy(whole['P'][1]), nulls[1].vectors['P'][0], rtol=1e-3, atol=1e-4)


def test_a_report_carries_both_verdicts(studio, project):
    report = studio.attributor.attribute_file(project.root / 'songs' / 'song-1.wav')
    for channel in report.channels.values():
        assert channel.calibrated and channel.calibration.rate == 0.05 and channel.calibration.outside_songs >= 64
        assert all(row.passes_calibrated_gate == (row.q_value <= 0.05) for row in channel.rows)
        assert sum(row.share for row in channel.rows) + channel.unattributed == pytest.approx(1)
        assert (channel.resampling.chunks, channel.resampling.checkpoints) == (3, 2)
        assert all(row.share_low <= row.share <= row.share_high for row in channel.rows)
    assert not any('lumina calibrate' in warning for warning in report.warnings)
    again = studio.attributor.attribute_file(project.root / 'songs' / 'song-1.wav')
    assert again.channels == report.channels  # the draws are the query's own


def test_a_store_without_outside_songs_falls_back_and_says_how_to_mend_it(store, studio, project):
    bare = without_null(store)
    report = attributor(studio, bare).attribute_file(project.root / 'songs' / 'song-1.wav')
    assert re.search(f"printed gate decides.*lumina calibrate` with the store's folder, {re.escape(str(bare.path))}",
                     report.warnings[0])
    for channel in report.channels.values():
        assert channel.calibration is None and channel.rows[0].p_value is None and channel.unattributed in (0, 1)
    printed = attributor(studio, bare, recipe=studio.attributor.recipe.model_copy(update={
        'gate': studio.attributor.recipe.gate.model_copy(update={'kind': 'paper'})}))
    assert not any('lumina calibrate' in warning for warning in printed.warnings())


def test_calibrating_is_done_once_and_can_be_done_with_other_songs(store, run, project, studio, tmp_path):
    before = store.hash
    assert not any(calibrate(run).values())  # the run's own songs are there, in each of its stores
    other = calibrate(store.path, write_outside(tmp_path / 'other', 90), 66)
    (fresh, done), = other.items()
    assert done == ['epoch-0002', 'epoch-0004'] and fresh.hash != before and fresh.verify() == []
    assert 64 <= len(fresh.null('epoch-0002').songs) <= 66 and len(list(store.path.glob('*/null-*'))) == 2
    assert list(calibrate(store.path, tmp_path / 'other', 66).values()) == [[]]
    bare = without_null(FingerprintStore.open(store.path))
    assert bare.hash != before
    calibrate(run)
    assert FingerprintStore.open(store.path).hash == before  # to the byte


def test_songs_of_the_catalogue_and_too_few_songs_cannot_measure_chance(store, project, tmp_path, caplog):
    songs = write_outside(tmp_path / 'songs')
    tokenizer = Tokenizer(build_codec()[0], store.identity.codec_hash, 1., cache=project.folder() / 'lumina' / 'codes')
    shutil.copy(project.root / 'songs' / 'song-2.wav', songs / 'zz.wav')
    with pytest.raises(LuminaError, match='zz.wav cannot measure chance: it is song song-2 of the catalogue'):
        gather(songs, store, tokenizer)
    wav = (songs / 'zz.wav').read_bytes()
    (songs / 'zz.wav').write_bytes(wav + b'\0\0')  # another file, the same music
    assert 'zz' not in [song.id for song in gather(songs, store, tokenizer).songs]
    assert 'zz cannot measure chance and is passed over: it has the codes of song song-2' in caplog.text
    (songs / 'zz.wav').unlink()
    seen = [song.sha256 for song in gather(songs, store, tokenizer).songs]
    with pytest.raises(LuminaError, match='a training song'):
        gather(songs, store, tokenizer, seen=seen[:1])
    with pytest.raises(LuminaError, match='at least 1000 outside songs'):
        gather(songs, store, tokenizer, needed=1000)
    assert gather('none', store, tokenizer) is None


def test_a_validation_split_measures_chance_where_it_will_do_and_generated_songs_elsewhere(store, tmp_path):
    from lumina_plugin.catalogue import build_catalogue
    valid = build_catalogue(write_outside(tmp_path / 'valid'), tmp_path / 'manifest', progress=False).manifest
    tokenizer = Tokenizer(build_codec()[0], 'another', 1.)
    found = gather(None, store, tokenizer, valid=valid)
    assert found.origin == 'songs of the validation split' and len(found.songs) >= 64
    seen = [found.songs[3].sha256]
    made = gather('', store, tokenizer, count=64, valid=valid, seen=seen)
    assert 'embedded generator' in made.origin and len(made.songs) == 64
    assert all(0 < song.chunk.frames <= 50 for song in made.songs)

    ours = {song.seed for song in itertools.islice(endless_songs(SEED), 200)}
    assert not ours & {song.seed for song in [*training_songs(), *heldout_songs(),
                                              *itertools.islice(endless_songs(), 400)]}


def test_a_damaged_null_is_named_and_mended(store, run, studio):
    path = store.path / store.checkpoint('epoch-0004').null.file
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    problems = FingerprintStore.open(store.path).verify()
    assert len(problems) == 1 and str(path) in problems[0] and 'damaged' in problems[0]
    with pytest.raises(LuminaError, match='null.*is damaged.*lumina calibrate'):
        attributor(studio, FingerprintStore.open(store.path))
    assert {store.path.name: done for store, done in calibrate(run).items()}['default'] == ['epoch-0004']
    assert FingerprintStore.open(store.path).verify() == []


def test_a_null_of_other_weights_is_not_taken(store):
    null = store.null('epoch-0002')
    names = [store.checkpoint(name).null.file for name in ('epoch-0002', 'epoch-0004')]
    shutil.copy(store.path / names[0], store.path / 'epoch-0004' / 'null-00000000.safetensors')
    (store.path / names[1]).unlink()
    (store.path / 'manifest.json').unlink()
    rebuilt = FingerprintStore.rebuild_manifest(store.path)
    assert rebuilt.null('epoch-0004') is None and rebuilt.null('epoch-0002').songs == null.songs
    with pytest.raises(LuminaError, match='finite .*is needed'):
        store.save_null('epoch-0002', StoredNull(null.songs[1:], null.vectors, null.origin))


def test_tools_carry_the_null(store, tmp_path):
    songs, files = store.null('epoch-0002').songs, [record.null.file for record in store.checkpoints]
    whole = (store.path / 'manifest.json').read_bytes()
    (store.path / 'manifest.json').unlink()
    rebuilt = FingerprintStore.rebuild_manifest(store.path)
    assert (store.path / 'manifest.json').read_bytes() == whole
    rebuilt.withdraw(['song-3'])
    rebuilt.compact()
    assert FingerprintStore.migrate(store.path).verify() == []
    assert [record.null.file for record in rebuilt.checkpoints] == files and rebuilt.null('epoch-0002').songs == songs
    written = export(rebuilt, tmp_path / 'out', 'npz')
    copy = next(path for path in written if path.name == 'epoch-0002.null.safetensors')
    with safe_open(str(copy), 'pt') as stream:
        assert set(stream.keys()) == {'P', 'M'}
    record = rebuilt.checkpoint('epoch-0002')
    other = FingerprintStore.create(tmp_path / 'other', rebuilt.identity, [{'id': 'new'}])
    for info in rebuilt.checkpoints:
        bare = info.model_copy(update={'shards': [], 'null': None, 'weights': None, 'weights_sha256': None})
        if info.weights is not None:
            other.save_weights(info.name, rebuilt.load_weights(info))
        with other.writer(bare.model_copy(update={'weights': info.weights})) as writer:
            for channel in rebuilt.channels:
                writer.put_projection(channel, *rebuilt.projection(info, channel))
            writer.add('new', {channel: torch.ones(512) for channel in rebuilt.channels})
            writer.finish()
    joined = merge(tmp_path / 'merged', [other.path, rebuilt.path])
    assert joined.null('epoch-0002').songs == songs and joined.checkpoint('epoch-0002').null == record.null
    assert joined.verify() == []
    joined.drop_checkpoint('epoch-0004')
    assert not (joined.path / 'epoch-0004').exists()


def test_an_outside_song_that_joined_the_catalogue_is_left_out(store, studio):
    outside = store.null('epoch-0002').songs
    store.add_tracks([{'id': 'joined', 'sha256': outside[0].sha256}])
    found = OutsideSongs(store, store.checkpoints, .05)
    if len(outside) > 64:
        assert found.kind_for('generation') == found.kind_for('recording') == 'recording'
        ids = [track.id for track in store.tracks if track.status == 'ok' and track.id != 'joined']
        scorers = [fit_scorers(['cosine'], np.concatenate([rows for _, rows in store.iter_vectors(
            record.name, 'P', partial=True)])) for record in store.checkpoints]
        chance = found.chances('P', scorers, 'cosine', ids)['recording']
        assert chance.null.outside == len(outside) - 1 and chance.origin == 'songs of outside'
    else:
        assert found.kind_for('recording') is None and 'share 63 outside songs' in found.missing['recording']


def test_outside_songs_are_encoded_once_whoever_was_stopped(store, tmp_path, monkeypatch):
    """What a stopped pass has encoded is remembered, and gives the very songs."""
    codec, songs = build_codec()[0], write_outside(tmp_path / 'songs', 70)
    tokenizer = Tokenizer(codec, 'another', 1., cache=tmp_path / 'codes')
    encode, calls = codec.encode, []

    def stopped(wav):
        if len(calls) == 30:
            raise KeyboardInterrupt
        calls.append(1)
        return encode(wav)

    for where in (songs, 'generated'):
        calls.clear()
        monkeypatch.setattr(codec, 'encode', stopped)
        with pytest.raises(KeyboardInterrupt):
            gather(where, store, tokenizer, count=64, phases=2)
        calls.clear()
        monkeypatch.setattr(codec, 'encode', lambda wav, calls=calls: calls.append(1) or encode(wav))
        found = gather(where, store, tokenizer, count=64, phases=2)
        assert 0 < len(calls) <= 2 * 64 - 28
        monkeypatch.setattr(codec, 'encode', None)
        again = gather(where, store, tokenizer, count=64, phases=2)
        monkeypatch.setattr(codec, 'encode', encode)
        fresh = gather(where, store, Tokenizer(codec, 'another', 1.), count=64, phases=2)
        for one in (again, fresh):
            assert [(song.id, song.sha256, song.evidence_hash) for song in one.songs] == [
                (song.id, song.sha256, song.evidence_hash) for song in found.songs]


def test_a_folder_that_will_not_do_is_told_before_a_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr('lumina_plugin.null_pass.load_musicgen', None)
    few = write_outside(tmp_path / 'few', 3)
    for folder, told in ((few, '3 songs can be used, but .* at least 64'), (tmp_path / 'none', 'does not exist')):
        with pytest.raises(LuminaError, match=told):
            calibrate(run, folder)


def test_the_notice_of_generated_songs_is_no_alarm(store, project, caplog):
    caplog.set_level('INFO')
    gather(None, store, Tokenizer(build_codec()[0], 'another', 1.), count=64, valid=project.manifest)
    (told,) = [record.getMessage() for record in caplog.records if 'datasource.valid' in record.getMessage()]
    assert told.startswith('Chance is measured by songs that the embedded generator makes.') and 'no lone' not in told


def test_info_tells_recordings_from_generations(store, capsys):
    from lumina_plugin.cli import main
    counts = collections.Counter(song.kind for song in store.null('epoch-0004').songs)
    main(['store', 'info', str(store.path)])
    told = capsys.readouterr().out
    assert f"chance by {counts['recording']} recordings from outside" in told and 'outside songs' not in told
    null = store.null('epoch-0004')
    mixed = [song.model_copy(update={'kind': 'generation'}) if row < 3 else song for row, song in enumerate(null.songs)]
    store.save_null('epoch-0004', null._replace(songs=mixed, generator='made by another model'))
    main(['store', 'info', str(store.path)])
    told = capsys.readouterr().out
    assert '3 generations' in told and f"{counts['recording'] - 3} recordings" in told
