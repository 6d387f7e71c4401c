"""Generations of a model of other songs, by which a store's generations are judged."""

import shutil

import numpy as np
import pytest
import torch

from lumina_plugin.attribution import Attributor, QueryFacts, fingerprinter_at
from lumina_plugin.calibration import Null
from lumina_plugin.conditions import attributes_for
from lumina_plugin.errors import LuminaError
from lumina_plugin.gradients import Example
from lumina_plugin.models import export_musicgen, load_musicgen
from lumina_plugin.null_pass import calibrate, run_null
from lumina_plugin.origins import origin_named
from lumina_plugin.outside import Outside, gather
from lumina_plugin.outside_generations import SAMPLINGS, made_by
from lumina_plugin.sampling import Sampling, generate_codes
from lumina_plugin.store import GENERATION, RECORDING, FingerprintStore
from lumina_plugin.tokens import Tokenizer

from .tiny import build_codec


@pytest.fixture
def run(project, tmp_path):
    """A copy of the project's run, whose store may be changed."""
    return shutil.copytree(project.folder(), tmp_path / 'xps' / project.folder().name, symlinks=True)


@pytest.fixture
def store(run):
    return FingerprintStore.open(run / 'lumina' / 'default')


@pytest.fixture(scope='module')
def elsewhere(project, tmp_path_factory):
    """A model with the project's codec and other weights, as a folder that tells nothing of its songs."""
    folder = export_musicgen(project.folder(), tmp_path_factory.mktemp('elsewhere') / 'model')
    state = torch.load(folder / 'state_dict.bin', weights_only=True)
    generator = torch.Generator().manual_seed(3)
    for tensor in state['best_state'].values():
        if tensor.is_floating_point():
            tensor += .3 * torch.randn(tensor.shape, generator=generator)
    torch.save(state, folder / 'state_dict.bin')
    return str(folder)


@pytest.fixture(scope='module')
def generation(elsewhere):
    return generate_codes(load_musicgen(elsewhere).lm, None, [None], 50, Sampling(seed=4), 0)[0]


def test_generations_are_judged_by_generations_and_recordings_by_recordings(store, studio, project, elsewhere,
                                                                          generation):
    def reports(opened):
        attributor = Attributor(studio.musicgen.lm, studio.musicgen.compression_model, opened)
        return attributor, [attributor.attribute_codes(generation, facts=QueryFacts('one')),
                            attributor.attribute_file(project.root / 'songs' / 'song-1.wav')]
    _, (before, file) = reports(store)
    assert any('measured by recordings alone' in warning for warning in before.warnings)
    assert not any('measured by recordings alone' in warning for warning in file.warnings)
    (fresh, done), = calibrate(store.path, project.root / 'outside', generations_of=elsewhere).items()
    assert done == ['epoch-0002', 'epoch-0004'] and fresh.verify() == []
    attributor, (after, again) = reports(fresh)
    assert not any('measured by recordings alone' in warning for warning in after.warnings)
    assert [channel.rows for channel in again.channels.values()] == [c.rows for c in file.channels.values()]
    nulls = [fresh.null(record) for record in fresh.checkpoints]
    made = [row for row, song in enumerate(nulls[0].songs) if song.kind == GENERATION]
    for key, channel in after.channels.items():
        assert channel.calibration.outside_songs == len(made) >= 64
        assert channel.calibration.origin.startswith(f'generations of {elsewhere}, of whose training songs nothing')
        scores = np.mean([null.vectors[key][made].numpy() @ np.concatenate(
            [rows for _, rows in fresh.iter_vectors(record.name, key)]).T
            for null, record in zip(nulls, fresh.checkpoints, strict=True)], axis=0)
        by_id = dict(zip(attributor.song_ids, range(9999), strict=False))
        asked = np.zeros(len(by_id))
        for row in channel.rows:
            asked[by_id[row.track_id]] = row.score
        null = Null(scores)
        np.testing.assert_allclose([row.p_value for row in channel.rows],
                                   null.p_values(null.z(asked))[[by_id[row.track_id] for row in channel.rows]])
    assert list(calibrate(store.path, project.root / 'outside', generations_of=elsewhere).values()) == [[]]


def test_some_go_on_from_outside_recordings_whose_frames_are_left_out(store, studio, project, elsewhere):
    tokenizer = Tokenizer(build_codec()[0], store.identity.codec_hash, 1., cache=store.path.parent / 'codes')
    recordings = gather(project.root / 'outside', store, tokenizer).songs
    texts = ['slow waltz', 'fast march']
    songs, words = made_by(origin_named(elsewhere), recordings, texts, store, tokenizer, 72)
    assert words.startswith(f'generations of {elsewhere}') and len(songs) == 72
    assert [song.text for song in songs] == [None] * 24 + texts * 12 + [None] * 24
    assert [song.prompt_frames for song in songs] == [0] * 48 + [15] * 24
    for number, song in enumerate(songs[48:], 48):
        source = recordings[number % len(recordings)].chunk.codes
        assert torch.equal(song.chunk.codes[:, :15], source[:, :15]) and song.kind == GENERATION
        assert song.chunk.frames == 50 and not torch.equal(song.chunk.codes[:, 15:], source[:, 15:50])
    assert len(SAMPLINGS) == 2 and SAMPLINGS[0].temperature < SAMPLINGS[1].temperature == 1
    again, _ = made_by(origin_named(elsewhere), recordings, texts, store, tokenizer, 72)
    assert [song.sha256 for song in again] == [song.sha256 for song in songs]
    kept, = (store.path.parent / 'codes').glob('generations-*')
    kept.write_bytes(kept.read_bytes()[:100])
    mended, _ = made_by(origin_named(elsewhere), recordings, texts, store, tokenizer, 72)
    assert [song.sha256 for song in mended] == [song.sha256 for song in songs]  # the draws can be repeated

    run_null(fingerprinter_at(store, store.checkpoint('epoch-0004'), studio.musicgen.lm, studio.attributor.recipe),
             Outside(recordings, 'songs', songs, words), store, 'epoch-0004')
    null = FingerprintStore.open(store.path).null('epoch-0004')
    for song in (songs[30], songs[50]):
        masked = Example(song.chunk.codes, song.prompt_frames, 50, attributes_for(studio.musicgen.lm, song.text))
        expected = studio.attributor.fingerprint_parts([masked])['P'][1][0]
        row = next(row for row, one in enumerate(null.songs) if one.sha256 == song.sha256)
        torch.testing.assert_close(torch.from_numpy(expected), null.vectors['P'][row], rtol=1e-3, atol=1e-4)


def test_a_model_that_cannot_be_meant_is_refused(store, run, project, tmp_path):
    with pytest.raises(LuminaError, match='was trained on the catalogue itself.*name a model of other songs'):
        calibrate(store.path, project.root / 'outside', generations_of=str(run))
    with pytest.raises(LuminaError, match='There is no model'):
        calibrate(store.path, project.root / 'outside', generations_of=str(tmp_path / 'nowhere'))
    assert all(song.kind == RECORDING for song in FingerprintStore.open(store.path).null('epoch-0004').songs)


def test_a_song_of_the_store_among_those_of_the_model_is_found(store, run, project):
    identity = store.manifest.identity.model_copy(update={'catalogue_hash': 'another'})
    store.commit(store.manifest.model_copy(update={'identity': identity}))
    with pytest.raises(LuminaError, match=r'was trained on [a-z0-9-]+, a song of the store'):
        made_by(origin_named(str(project.folder())), [], [], store, Tokenizer(build_codec()[0], 'any', 1.), 64)


def test_another_codec_is_refused(store, elsewhere):
    with pytest.raises(LuminaError, match='has another codec'):
        made_by(origin_named(elsewhere), [], [], store, Tokenizer(build_codec()[0], 'another', 1.), 64)
