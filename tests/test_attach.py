"""Attributions attached: every way to generate, in a loop, in batches, over several stores, in windows, in stereo."""

import pytest
import torch

from lumina_plugin import attach, load_musicgen
from lumina_plugin.errors import LuminaError
from lumina_plugin.hashing import codes_hash
from lumina_plugin.recipe import get_recipe
from lumina_plugin.report import words


@pytest.fixture
def musicgen(project):
    musicgen = load_musicgen(project.folder())
    musicgen.set_generation_params(duration=0.6, extend_stride=0.5, top_k=16)
    yield musicgen
    if '_generate_tokens' in musicgen.__dict__:
        musicgen.detach()


@pytest.fixture
def store(project):
    return project.folder() / 'lumina' / 'default'


def tone(seconds: float) -> torch.Tensor:
    return 0.3 * torch.sin(2 * torch.pi * 330 * torch.arange(int(seconds * 16000)) / 16000)[None]


def test_the_tokens_that_were_generated_are_those_that_are_attributed(musicgen, store):
    """One report per sample, in whatever way it was made: batched, continued, longer than the model's own windows."""
    attach(musicgen, store)
    prompts = ['slow waltz', 'fast', 'slow waltz']

    def generated():
        yield musicgen.generate(prompts, return_tokens=True)[1], prompts
        yield musicgen.generate_unconditional(2, return_tokens=True)[1], [None, None]
        yield musicgen.generate_continuation(tone(0.3), 16000, ['on'], return_tokens=True)[1], ['on']
        musicgen.set_generation_params(duration=2.3, extend_stride=0.5, top_k=16)  # max_duration is 1 s
        yield musicgen.generate(prompts[:2], return_tokens=True)[1], prompts[:2]
        yield musicgen.generate_continuation(tone(0.3), 16000, ['on'], return_tokens=True)[1], ['on']

    for tokens, texts in generated():
        reports = musicgen.last_attributions
        assert [report.query.codes_hash for report in reports] == [codes_hash(codes) for codes in tokens]
        assert [report.query.prompt for report in reports] == texts
        for report in reports:
            assert report.query.duration == pytest.approx(tokens.shape[-1] / musicgen.frame_rate)
            assert report.query.prompt_seconds == pytest.approx(0.3 if texts == ['on'] else 0., abs=0.02)
            (masked,) = {channel.segments[0].masked_seconds for channel in report.channels.values()}
            assert masked == report.query.prompt_seconds and len(report.channels['P'].segments) == 1 + (
                report.query.duration > 1) + (report.query.duration > 2)
    assert len({report.query.codes_hash for report in reports}) == len(reports)


def test_in_a_loop_each_generation_has_its_own_reports(musicgen, store):
    seen = []
    attachment = attach(musicgen, store, callback=seen.append)
    for index in range(4):
        attachment.seed = index
        torch.manual_seed(index)
        musicgen.generate(['slow waltz'])
        assert musicgen.last_attributions[0].query.seed == index and seen[-1] is musicgen.last_attributions
    assert len(seen) == 4 and len({reports[0].query.codes_hash for reports in seen}) == 4
    torch.manual_seed(2)
    musicgen.generate(['slow waltz'])
    again = seen[-1][0]
    assert again.channels == seen[2][0].channels  # nothing of a generation stays behind for the next


def test_several_stores_give_each_sample_a_report_each(musicgen, project, store):
    from lumina_plugin.catalogue_pass import fingerprint_model
    recipe = get_recipe('paper', chunk_seconds=1.).model_copy(update={'name': 'other'})
    other = fingerprint_model(project.folder(), recipe=recipe).path
    attach(musicgen, [store, other])
    torch.manual_seed(1)
    musicgen.generate(['slow waltz', 'fast'])
    both = musicgen.last_attributions
    assert [[report.store.name for report in reports] for reports in both] == [['default', 'other']] * 2
    assert [[report.recipe.name for report in reports] for reports in both] == [['default', 'other']] * 2
    assert both[0][0].query.codes_hash == both[0][1].query.codes_hash != both[1][0].query.codes_hash
    musicgen.detach()
    for place, path in enumerate((store, other)):
        attach(musicgen, path)
        torch.manual_seed(1)
        musicgen.generate(['slow waltz', 'fast'])
        assert [report.channels for report in musicgen.last_attributions] == [
            reports[place].channels for reports in both]
        musicgen.detach()
    with pytest.raises(LuminaError, match='at least one'):
        attach(musicgen, [])


def test_reports_say_what_attribution_cost(musicgen, store):
    attach(musicgen, store)
    musicgen.generate(['slow waltz', 'fast'])
    first, second = musicgen.last_attributions
    assert set(first.timings) == {'generate', 'fingerprint', 'score'} and min(first.timings.values()) > 0
    assert first.timings['generate'] == second.timings['generate']
    beside = first.timings['fingerprint'] + first.timings['score']
    assert f'Attribution took {beside:.2f}' in words.overhead(first)
    assert words.overhead(first.model_copy(update={'timings': {'encode': 1., 'score': 1.}})) == ''


def test_facts_may_differ_from_sample_to_sample(musicgen, store):
    attachment = attach(musicgen, store)
    attachment.seed, attachment.prompt_song_id = [7, None], ['song-1', 'song-2']
    musicgen.generate_continuation(tone(0.3).expand(2, 1, -1), 16000)
    queries = [report.query for report in musicgen.last_attributions]
    assert [(query.seed, query.prompt_song_id) for query in queries] == [(7, 'song-1'), (None, 'song-2')]
    calls = []
    musicgen.set_custom_progress_callback(lambda done, total: calls.append(done))
    with pytest.raises(LuminaError, match='seed names 2 samples, but 3 are'):
        musicgen.generate(['a', 'b', 'c'], progress=True)
    assert calls == []


def test_of_a_generation_that_fails_there_are_no_reports(musicgen, store, monkeypatch):
    attach(musicgen, store)
    musicgen.generate(['slow waltz'])
    assert musicgen.last_attributions
    monkeypatch.setattr(musicgen.lm, 'generate', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        musicgen.generate(['fast'])
    assert musicgen.last_attributions == []


@pytest.fixture(scope='module')
def stereo(project):
    """A run as audiocraft trains stereo models: two mono codecs' codebooks, interleaved."""
    keys = ['label=stereo', 'channels=2', 'datasource.max_channels=2', 'interleave_stereo_codebooks.use=true',
            'transformer_lm.n_q=8', 'codebooks_pattern.delay.delays=[0,0,1,1,2,2,3,3]']
    project.dora(*keys)
    return project.folder(*keys)


def test_stereo_models_are_fingerprinted_and_attributed(stereo, project, tmp_path):
    import soundfile

    from lumina_plugin import audio
    from lumina_plugin.provenance import read_back
    from lumina_plugin.workflows import Studio
    studio = Studio(stereo)
    assert studio.musicgen.audio_channels == 2 and studio.musicgen.lm.n_q == 8
    found = studio.attribute(project.root / 'songs' / 'song-3.wav')
    assert {channel.rows[0].track_id for channel in found.channels.values()} == {'song-3'}
    wav, rate = audio.read_audio(project.root / 'songs' / 'song-3.wav')
    both = audio.save_audio(tmp_path / 'both.wav', wav.expand(2, -1), rate)
    left = audio.save_audio(tmp_path / 'left.wav', torch.cat([wav, 0.5 * wav.flip(-1)]), rate)
    hashes = {path.name: studio.attribute(path).query.codes_hash for path in (both, left)}
    assert hashes['both.wav'] == found.query.codes_hash != hashes['left.wav']
    torch.manual_seed(0)
    _, tokens = studio.musicgen.generate(['slow waltz'], return_tokens=True)
    assert tokens.shape[1] == 8 and studio.musicgen.last_attributions[0].query.codes_hash == codes_hash(tokens[0])
    clip = studio.generate(tmp_path, 'longer', 'slow waltz', seconds=2.4, progress=False, kind='flac')[0]
    assert soundfile.info(clip.audio).channels == 2 and read_back(clip.audio).fits
    assert len(clip.report.channels['M'].segments) == 3
