"""CLAP and CLEWS: small instances of the same classes, loaded by the code that loads the real ones."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin.audio import resample
from lumina_plugin.baselines.choose import baselines, parse
from lumina_plugin.baselines.clap import load_clap
from lumina_plugin.baselines.clews import Segments, load_clews
from lumina_plugin.baselines.embedding import AudioEmbeddings, Embedder, Windows
from lumina_plugin.errors import LuminaError
from lumina_plugin.validation.decoded import decoded
from lumina_plugin.validation.queries import Query

from .listening import Bands, write_clap, write_clews
from .tiny import build_codec


@pytest.fixture(scope='module')
def clap(tmp_path_factory):
    return write_clap(tmp_path_factory.mktemp('clap'))


@pytest.fixture(scope='module')
def clews(tmp_path_factory):
    return write_clews(tmp_path_factory.mktemp('clews'))


@pytest.fixture(scope='module')
def codec():
    return build_codec()[0]


def songs(count: int = 5, frames: int = 120, family: str = 'songs'):
    generator = torch.Generator().manual_seed(3)
    return [Query(f'q{i}', family, torch.randint(0, 16, (4, frames), generator=generator), 0, f'song-{i}')
            for i in range(count)]


# -- CLAP -------------------------------------------------------------------------------------------------------------

def test_clap_embeds_as_transformers_does(clap):
    from transformers import ClapFeatureExtractor, ClapModel
    wave = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * .1
    model, extractor = ClapModel.from_pretrained(clap).eval(), ClapFeatureExtractor.from_pretrained(clap)
    with torch.no_grad():
        wanted = model.get_audio_features(**extractor(wave.numpy(), sampling_rate=16000, return_tensors='pt'))
    found = load_clap(clap).embed([wave, wave * .5])
    torch.testing.assert_close(found[:1], wanted.pooler_output)
    assert found.shape == (2, 12) and not torch.allclose(found[0], found[1])


def test_claps_windows_are_resampled_and_averaged(tmp_path, codec):
    embedder = load_clap(write_clap(tmp_path, rate=24000))
    query = songs(1)[0]  # 2.4 s
    method = AudioEmbeddings(embedder, songs(), codec)
    wave = resample(decoded(codec, query, False)[None], codec.sample_rate, 24000)[0]
    rows = embedder.embed([wave[:24000], wave[24000:48000], wave[48000:]])
    mean = torch.nn.functional.normalize(rows, dim=1).mean(0)
    np.testing.assert_allclose(method._embedded(query, False)[0], torch.nn.functional.normalize(mean, dim=0), atol=1e-6)


@pytest.mark.parametrize('truncation, fusion', [('rand_trunc', False), ('fusion', True)])
def test_clap_draws_nothing(tmp_path, codec, truncation, fusion):
    embedder = load_clap(write_clap(tmp_path, truncation=truncation, fusion=fusion))
    found = []
    for seed in range(3):
        np.random.seed(seed)
        found.append(AudioEmbeddings(embedder, songs(3), codec).scores(songs(2), False)['black box'])
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_a_recording_is_most_like_itself(clap, clews, codec):
    for embedder in (load_clap(clap), load_clews(clews)):
        method = AudioEmbeddings(embedder, songs(), codec)
        found = method.scores(songs(), False)['black box']
        np.testing.assert_allclose(np.diag(found), 1., atol=1e-9)
        assert (found.argmax(1) == np.arange(5)).all() and (found <= 1 + 1e-9).all()
        assert method.cost().bytes_per_song == 4 * (12 if embedder.windows.reduction == 'mean' else 8 * 4)


def test_a_prompt_is_not_heard(clews, codec):
    whole = songs(1, family='continued')[0]
    same = Query('x', 'continued', torch.cat([whole.codes[:, :60].flip(1), whole.codes[:, 60:]], dim=1), 60)
    method = AudioEmbeddings(load_clews(clews), songs(), codec)
    a, b = (method.scores([Query('y', 'continued', one.codes, 60)], True)['black box'] for one in (whole, same))
    c, d = (method.scores([Query('y', 'continued', one.codes, 60)], False)['black box'] for one in (whole, same))
    assert np.abs(a - b).max() < np.abs(c - d).max() / 3  # but for what the codec smears over the border


def test_tables_say_whose_weights_they_are(clap, clews):
    assert load_clap(clap).name == f'CLAP ({clap.name}, not the published network)'
    assert load_clews(clews).name == 'CLEWS (a small random instance)'


def test_settings_and_weights_are_part_of_the_facts(clap, clews, tmp_path):
    assert load_clap(clap).facts == load_clap(clap).facts
    assert load_clap(clap).facts != load_clap(write_clap(tmp_path / 'a', seed=1)).facts
    assert load_clap(clap).facts != load_clap(write_clap(tmp_path / 'b', seconds=2)).facts
    facts = [load_clews(folder).facts for folder in (clews, write_clews(tmp_path / 'c', seed=1),
                                                     write_clews(tmp_path / 'd', hop=.25))]
    assert len({json.dumps(one) for one in facts}) == 3


def test_a_missing_clap_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(LuminaError, match=r'There is no CLAP at .*nowhere.*clap=FOLDER'):
        load_clap(tmp_path / 'nowhere')
    with pytest.raises(LuminaError, match='There is no CLAP at lumina/absent'):
        load_clap('lumina/absent')


def test_a_clap_without_some_weights_is_refused(clap, tmp_path):
    from safetensors.torch import load_file, save_file
    for name in ('config.json', 'preprocessor_config.json'):
        (tmp_path / name).write_text((clap / name).read_text())
    kept = load_file(clap / 'model.safetensors')
    kept.pop('audio_projection.linear1.weight')
    save_file(kept, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(LuminaError, match='lacks audio_projection.linear1.weight'):
        load_clap(tmp_path)


def test_a_damaged_clap_is_refused(clap, tmp_path):
    for name in ('config.json', 'preprocessor_config.json'):
        (tmp_path / name).write_text((clap / name).read_text())
    (tmp_path / 'model.safetensors').write_bytes((clap / 'model.safetensors').read_bytes()[:999])
    with pytest.raises(LuminaError, match='There is no CLAP at'):
        load_clap(tmp_path)


# -- CLEWS ------------------------------------------------------------------------------------------------------------

def test_torchscript_and_a_callable_agree(clews, codec):
    torch.manual_seed(0)
    loaded = load_clews(clews)
    called = Segments(Bands(), 'the same', loaded.windows, 'x')
    a, b = (AudioEmbeddings(one, songs(), codec).scores(songs(3), False)['black box'] for one in (loaded, called))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_best_takes_the_best_segment_of_each():
    class Given(Embedder):
        def embed(self, pieces):
            return torch.stack([piece[:2] for piece in pieces])

    class Codec(torch.nn.Linear):  # what `decoded` asks of one
        sample_rate, frame_rate = 8000, 1

        def decode(self, codes):
            return torch.tensor(WAVES[int(codes[0, 0, 0])]).repeat_interleave(1)[None, None]
    rows = {0: [[1., 0], [0, 1]], 1: [[1., 0], [1, 0]], 2: [[-1., 0], [.6, .8]]}
    pad = [0.] * 7998
    WAVES = {key: [number for row in value for number in (*row, *pad)] for key, value in rows.items()}
    queries = [Query(str(i), 'songs', torch.full((1, 2), i), 0, str(i)) for i in rows]
    best = AudioEmbeddings(Given('x', Windows(8000, 1., 1., 'best'), 0), queries, Codec(1, 1))
    np.testing.assert_allclose(best.scores(queries, False)['black box'],
                               [[1., .5, .7], [1., 1., .6], [(0 + .8) / 2, (-1 + .6) / 2, 1.]], atol=1e-6)
    mean = AudioEmbeddings(Given('x', Windows(8000, 1., 1., 'mean'), 0), queries[:2], Codec(1, 1))
    np.testing.assert_allclose(mean.scores(queries[:2], False)['black box'], [[1, .5 ** .5], [.5 ** .5, 1]], atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(samples=st.integers(1, 90_000), seconds=st.sampled_from([.5, 1., 2.]), part=st.sampled_from([.25, .5, 1.]))
def test_windows_cover_a_recording(samples, seconds, part):
    windows = Windows(8000, seconds, seconds * part)
    pieces = windows.cut(torch.arange(samples))
    covered = torch.cat(pieces).unique()
    assert len(covered) > samples - 2000 and (covered == torch.arange(len(covered))).all()
    assert all(len(piece) <= seconds * 8000 for piece in pieces)
    assert len({int(piece[0]) for piece in pieces}) == len(pieces)


@pytest.mark.parametrize('settings, words', [
    ({'sample_rate': 22050}, 'takes 16000 Hz, but clews.json says 22050'), ({'sample_rate': 0}, 'sample rate of 0'),
    ({'window': 0.}, 'cannot be cut'), ({'hop': 2.}, 'cannot be cut'), ({'reduction': 'worst'}, "no reduction 'worst'"),
    ({'file': 'absent.pt'}, 'absent.pt, which are not beside it'), ({'wndow': 3}, 'wndow: Extra inputs'),
    ({'weights': ''}, 'weights: ')])
def test_a_clews_that_says_nonsense_is_refused(tmp_path, settings, words):
    with pytest.raises(LuminaError, match=words):
        load_clews(write_clews(tmp_path, **settings))


def test_a_damaged_clews_is_refused(tmp_path):
    folder = write_clews(tmp_path)
    whole = (folder / 'bands.pt').read_bytes()
    for damaged in (whole[:len(whole) // 2], b'not a network', b''):
        (folder / 'bands.pt').write_bytes(damaged)
        with pytest.raises(LuminaError, match='cannot be read as TorchScript'):
            load_clews(folder)
    (folder / 'clews.json').write_text('{')
    with pytest.raises(LuminaError, match='cannot be used'):
        load_clews(folder)
    (folder / 'clews.json').unlink()
    with pytest.raises(LuminaError, match='no clews.json'):
        load_clews(folder)


@pytest.mark.parametrize('network, words', [
    (lambda waves: waves.view(-1, 7), 'fails on audio'), (lambda waves: waves.mean(), 'rather than'),
    (lambda waves: waves[:, :4] * float('nan'), 'NaN')])
def test_a_network_of_another_kind_is_refused(codec, network, words):
    method = AudioEmbeddings(Segments(network, 'x', Windows(16000, 1., 1.), 0), songs(2), codec)
    with pytest.raises(LuminaError, match=words):
        method.scores(songs(1), False)


# -- which are chosen -------------------------------------------------------------------------------------------------

def test_what_is_asked_for_is_read():
    assert parse('clap=A, clews=B/c=d,lpips,rps') == {'clap': 'A', 'clews': 'B/c=d', 'lpips': '', 'rps': ''}
    assert parse('') == {} and parse('clap') == {'clap': ''}


@pytest.mark.parametrize('text, words', [('calp=A', "no baseline 'calp'"), ('clap,clap=B', 'names clap twice'),
                                         ('lpips=A', 'lpips has no weights'), ('clews', 'clews=FOLDER')])
def test_what_cannot_be_asked_for_is_refused(text, words):
    with pytest.raises(LuminaError, match=words):
        parse(text)


def test_all_that_are_asked_for_score_all_songs(clap, clews, codec):
    from .tiny import build_lm
    lm = build_lm(card=16)
    methods = baselines(f'clap={clap},clews={clews}', lm, codec, songs())
    assert [method.name for method in methods] == [
        f'CLAP ({clap.name}, not the published network)', 'CLEWS (a small random instance)', 'LPIPS', 'RPS',
        'RPS, fitted to codes']
    for method in methods:
        found, = method.scores(songs(2), False).values()
        cost = method.cost()
        assert found.shape == (2, 5) and np.isfinite(found).all() and method.songs == [f'song-{i}' for i in range(5)]
        assert cost.bytes_per_song > 0 and cost.seconds_per_song is not None and cost.seconds_per_query > 0
