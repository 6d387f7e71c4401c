"""What can be wrong with models, runs, songs and requests, each told in one sentence before anything slow."""

import shutil
from pathlib import Path

import omegaconf
import pytest
import torch

from lumina_plugin import catalogue_pass, workflows
from lumina_plugin.catalogue import build_catalogue
from lumina_plugin.cli import main
from lumina_plugin.errors import LuminaError
from lumina_plugin.recipe import get_recipe
from lumina_plugin.store import FingerprintStore

from .test_melody import musicgen as melody_musicgen  # noqa: F401  (a fixture)
from .tiny import build_codec, build_lm, write_outside, write_songs


def moved(run: Path, folder: Path, **keys: object) -> Path:
    """A copy of a run in another dora folder, with some keys of its configuration changed."""
    copy = shutil.copytree(run, folder / 'xps' / run.name)
    path = copy / '.hydra' / 'config.yaml'
    cfg = omegaconf.OmegaConf.load(path)
    for key, value in keys.items():
        omegaconf.OmegaConf.update(cfg, key.replace('__', '.'), value)
    omegaconf.OmegaConf.save(cfg, path)
    return copy


# -- recipes -----------------------------------------------------------------------------------------------------------

def test_a_run_keeps_its_own_recipe_and_set_overrides_it(project):
    run = project.folder()  # made with fingerprint.recipe.chunk_seconds=1.0
    stored = FingerprintStore.open(run / 'lumina' / 'default').identity.recipe_hash
    assert catalogue_pass.recipe_for(run).fingerprint_hash == stored != get_recipe('default').fingerprint_hash
    recipe = catalogue_pass.recipe_for(run, 'default', [
        'chunk_seconds=2', 'projection.dim=256', 'projection={residual_dim: 8}', 'name=wide',
        'channels={A: [self_attention]}'])
    assert (recipe.chunk_seconds, recipe.projection.dim, recipe.projection.residual_dim) == (2., 256, 8)
    assert recipe.name == 'wide' and list(recipe.channels) == ['A']
    assert catalogue_pass.recipe_for('facebook/musicgen-small', settings=['projection.dim=256']).projection.dim == 256


@pytest.mark.parametrize('setting, named', [
    ('projection.dimm=3', 'projection.dimm'), ('projection.dim=wide', 'projection.dim'), ('name=../x', '../x'),
    ('name=codes', 'codes'), ('dim', 'KEY=VALUE'), ('=3', 'KEY=VALUE'), ('name={', 'KEY=VALUE'), ('name.x=1', 'name')])
def test_settings_that_cannot_be_are_named(setting, named):
    with pytest.raises(LuminaError, match=named):
        catalogue_pass.recipe_for('facebook/musicgen-small', settings=[setting])


def test_another_recipe_is_refused_before_songs_are_encoded(project, monkeypatch, capsys):
    monkeypatch.setattr('lumina_plugin.prepared.prepare', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        main(['fingerprint', str(project.folder()), '--set', 'projection.dim=256'])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and 'projection.dim 256 instead of 512' in told and '--set name=' in told


# -- where a run's songs are -------------------------------------------------------------------------------------------

def test_songs_are_found_where_the_quickstart_put_them(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = moved(project.folder(), tmp_path / 'out', lumina__catalogue='${oc.env:LUMINA_CATALOGUE,./outputs/embedded}',
                datasource__train='${lumina.catalogue}/egs/train')
    with pytest.raises(LuminaError, match='datasource.train: ./outputs/embedded/egs/train.*--catalogue'):
        catalogue_pass.run_songs(run)
    there = shutil.copytree(project.manifest.parent, tmp_path / 'out' / 'embedded' / 'egs' / 'train')
    assert catalogue_pass.run_songs(run).source == there / 'data.jsonl'
    others = build_catalogue(write_songs(tmp_path / 'songs', 2), tmp_path / 'others', progress=False).manifest.parent
    shutil.copytree(others, tmp_path / 'outputs' / 'embedded' / 'egs' / 'train')  # likelier, but not the run's
    assert catalogue_pass.run_songs(run).source == there / 'data.jsonl'
    shutil.rmtree(there)
    with pytest.raises(LuminaError, match='not those that run .* was trained on'):
        catalogue_pass.run_songs(run)


def test_relative_songs_are_seen_from_where_dora_was_started(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = moved(project.folder(), tmp_path / 'runs', datasource__train='catalogue')  # started in project.root
    assert catalogue_pass.run_songs(run).source == project.manifest


# -- damaged models ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def exported(project, tmp_path_factory):
    from lumina_plugin.models import export_musicgen
    return export_musicgen(project.folder(), tmp_path_factory.mktemp('models') / 'exported')


@pytest.mark.parametrize('name', ['state_dict.bin', 'compression_state_dict.bin'])
def test_damaged_exports_are_named(exported, tmp_path, name):
    from lumina_plugin import load_musicgen
    folder = shutil.copytree(exported, tmp_path / 'model')
    whole = torch.load(folder / name, weights_only=True)
    for damage in (b'', b'\x07 random' * 99, (folder / name).read_bytes()[:3000], [1, 2], {'xp.cfg': whole['xp.cfg']},
                   {'best_state': whole['best_state']}, {**whole, 'best_state': {}}, {**whole, 'xp.cfg': 'a: 1'}):
        if isinstance(damage, bytes):
            (folder / name).write_bytes(damage)
        else:
            torch.save(damage, folder / name)
        with pytest.raises(LuminaError, match=f'^{name} of .*model.*export it again'):
            load_musicgen(folder)


def test_damaged_runs_are_named(project, tmp_path):
    from lumina_plugin import load_musicgen
    run = moved(project.folder(), tmp_path)
    shutil.rmtree(run / 'lumina')  # its weights are checkpoint.th's then
    load_musicgen(run)
    last, config = run / 'checkpoint.th', run / '.hydra' / 'config.yaml'
    whole, text = last.read_bytes(), config.read_text()
    for damage in (b'', whole[:5000], b'random' * 99):
        last.write_bytes(damage)
        with pytest.raises(LuminaError, match='checkpoint.th cannot be used .*train the run again'):
            load_musicgen(run)
    for other in ([1], {}, {'model': {}}):
        torch.save(other, last)
        with pytest.raises(LuminaError, match='checkpoint.* cannot be used'):
            load_musicgen(run)
    last.write_bytes(whole)
    for damage in ('a: 1', '{a: [', '- a', text.replace('segment_duration', 'length'),
                   text.replace('compression_model_checkpoint', 'codec')):
        config.write_text(damage)
        with pytest.raises(LuminaError, match='configuration of run .*train the run again'):
            load_musicgen(run)


def test_an_unknown_device_is_named(project):
    from lumina_plugin import load_musicgen
    with pytest.raises(LuminaError, match='device banana'):
        load_musicgen(project.folder(), 'banana')


# -- requests ----------------------------------------------------------------------------------------------------------

def test_impossible_clips_are_told(studio, project, tmp_path):
    songs = project.root / 'songs'
    for options, named in (
            (dict(seconds=0.001), 'at least one frame'), (dict(seconds=float('inf')), 'inf s'),
            (dict(name='../x'), '../x'), (dict(name=''), 'name'), (dict(seed=2 ** 70), 'seed'),
            (dict(count=0), '0 clips'),
            (dict(prompt=workflows.Prompt(songs / 'silence.wav', .5), seconds=1.), 'silence.wav is silent'),
            (dict(melody=songs / 'song-1.wav'), 'no melody condition')):
        with pytest.raises(LuminaError, match=named):
            studio.generate(tmp_path / 'out', progress=False, **options)
    assert not (tmp_path / 'out').exists()


def test_the_command_line_offers_melodies(project, tmp_path, capsys):
    song = str(project.root / 'songs' / 'song-1.wav')
    with pytest.raises(SystemExit) as stop:
        main(['generate', '--model', str(project.folder()), '--melody', song, '--out', str(tmp_path)])
    assert stop.value.code == 2 and 'no melody condition' in capsys.readouterr().err


def test_an_unwritable_folder_is_told_before_attributing(studio, project, monkeypatch):
    monkeypatch.setattr(studio.attributor, 'attribute_file', lambda path: 1 / 0)
    song = project.root / 'songs' / 'song-1.wav'
    for out in (song, song / 'out'):
        with pytest.raises(LuminaError, match='Cannot write into .*song-1.wav'):
            studio.attribute(song, out)


def test_a_silent_clip_is_told_in_its_report(studio, project, tmp_path):
    report = studio.attribute(project.root / 'songs' / 'song-1.wav')
    heard = torch.sin(torch.arange(16000) / 10)[None]
    for wave, silent in ((0.1 * heard, False), (0.0003 * heard, True), (0 * heard, True)):
        clip = workflows.write_clip(tmp_path / 'clip', wave, 16000, report, 'clip')
        assert any('The clip is silent' in warning for warning in clip.report.warnings) == silent
        assert clip.report.warnings[-len(report.warnings):] == report.warnings
    assert 'The clip is silent' in (clip.folder / 'report.json').read_text()


def test_a_melody_is_followed(melody_musicgen, tmp_path, monkeypatch):  # noqa: F811
    for module in (workflows, catalogue_pass):
        monkeypatch.setattr(module, 'load_musicgen', lambda *args: melody_musicgen)
        monkeypatch.setattr(module, 'expect_model', lambda source: None, raising=False)
    songs = write_songs(tmp_path / 'songs', 4)
    manifest = build_catalogue(songs, tmp_path / 'catalogue', progress=False).manifest
    recipe = get_recipe('default', chunk_seconds=1., projection={'dim': 64, 'residual_dim': 16})
    store = catalogue_pass.fingerprint_model('melody', manifest, tmp_path / 'store', recipe,
                                             outside=str(write_outside(tmp_path / 'outside')))
    studio = workflows.Studio('melody', store.path)
    try:
        free, led = (studio.generate(tmp_path / 'out', 'clip', 'waltz', seconds=1., top_k=16, progress=False,
                                     melody=melody)[0].report for melody in (None, songs / 'song-0.wav'))
        assert free.query.codes_hash != led.query.codes_hash and led.query.prompt == 'waltz'  # of the same seed
        with pytest.raises(LuminaError, match='melody from .*silence.wav is silent'):
            studio.generate(tmp_path / 'out', melody=songs / 'silence.wav', progress=False)
        with pytest.raises(LuminaError, match='one of the two'):
            prompt = workflows.Prompt(songs / 'song-1.wav')
            studio.generate(tmp_path / 'out', melody=songs / 'song-0.wav', prompt=prompt)
    finally:
        studio.attachment.detach()


# -- attaching ---------------------------------------------------------------------------------------------------------

def test_an_old_attachment_lets_a_newer_one_be(project):
    from lumina_plugin import attach, load_musicgen
    musicgen, store = load_musicgen(project.folder()), project.folder() / 'lumina' / 'default'
    before = dict(musicgen.__dict__)
    old = attach(musicgen, store)
    old.detach()
    new = attach(musicgen, store)
    old.detach()
    musicgen.set_generation_params(duration=0.5, extend_stride=0.5, top_k=16)
    musicgen.generate_unconditional(1)
    assert len(musicgen.last_attributions) == 1
    new.detach()
    assert set(musicgen.__dict__) == set(before)
    again = attach(musicgen, store)
    inner = musicgen._generate_tokens
    musicgen._generate_tokens = lambda *args, **kwargs: inner(*args, **kwargs)  # somebody wraps the wrapper
    again.detach()
    musicgen.last_attributions = []
    musicgen.generate_unconditional(1)
    assert musicgen.last_attributions == []


def test_a_store_that_does_not_fit_leaves_the_model_untouched(project, tmp_path):
    from audiocraft.models import MusicGen

    from lumina_plugin import attach, load_musicgen
    from lumina_plugin.models import make_musicgen
    musicgen = load_musicgen(project.folder())
    unfinished = shutil.copytree(project.folder() / 'lumina' / 'default', tmp_path / 'unfinished')
    store = FingerprintStore.open(unfinished)
    for info in store.checkpoints:
        store.drop_checkpoint(info.name)
    other = make_musicgen(MusicGen, 'other', build_codec()[0], build_lm().eval(), 1.)
    for one, path, named in ((musicgen, unfinished, 'no finished checkpoint'), (other, unfinished, 'another'),
                             (musicgen, tmp_path, 'not a fingerprint store')):
        before, weights = dict(one.__dict__), {name: t.clone() for name, t in one.lm.state_dict().items()}
        with pytest.raises(LuminaError, match=named):
            attach(one, path)
        assert one.__dict__ == before and not one.lm.training
        assert all(torch.equal(t, weights[name]) for name, t in one.lm.state_dict().items())


# -- a store that is in the middle of something ------------------------------------------------------------------------

def test_an_update_redoes_every_checkpoint_and_serves_meanwhile(project, tmp_path):
    """One more song: the same checkpoints as before, all of them finished again; until then the old songs are paid."""
    run = moved(project.folder(), tmp_path / 'out')
    before = [info.name for info in FingerprintStore.open(run / 'lumina' / 'default').checkpoints]
    songs = shutil.copytree(project.root / 'songs', tmp_path / 'songs')
    shutil.copy(write_songs(tmp_path / 'more', 1, seed=9) / 'song-0.wav', songs / 'song-6.wav')
    grown = build_catalogue(songs, tmp_path / 'grown', progress=False)
    store = FingerprintStore.open(run / 'lumina' / 'default')
    store.add_tracks([{'id': 'song-6', 'title': 'New', 'artist': '', 'duration': 2.6}])
    assert not any(info.complete for info in store.checkpoints)
    studio = workflows.Studio(run)
    report = studio.attribute(project.root / 'songs' / 'song-1.wav')
    assert len(report.checkpoints) == len(before) and len(report.channels['P'].rows) == 6
    assert '1 songs were added to the store' in report.warnings[0]
    shutil.rmtree(run / 'lumina' / 'default')
    shutil.copytree(project.folder() / 'lumina' / 'default', run / 'lumina' / 'default')
    store = catalogue_pass.fingerprint_model(run, grown.manifest, update=True)
    assert [info.name for info in store.checkpoints] == before and all(info.complete for info in store.checkpoints)
    assert len(store.vectors(before[0], 'P')[0]) == 7


def test_an_interrupted_checkpoint_is_finished(project, tmp_path):
    run = moved(project.folder(), tmp_path / 'out')
    store = FingerprintStore.open(run / 'lumina' / 'default')
    last = store.checkpoints[-1]
    undone = last.model_copy(update={'complete': False, 'shards': [], 'noise': {}})
    open_again = [*store.manifest.checkpoints[:-1], undone]
    with store.lock:
        store.commit(store.manifest.model_copy(update={'checkpoints': open_again}))
    assert not FingerprintStore.open(store.path).checkpoints[-1].complete
    store = catalogue_pass.fingerprint_model(run, project.manifest)
    assert all(info.complete for info in store.checkpoints) and store.checkpoints[-1].name == last.name


def test_the_papers_recipe_stays_the_papers(project, tmp_path):
    """A run's own keys belong to the presets that it trained with."""
    run = moved(project.folder(), tmp_path / 'out', fingerprint__recipe__scoring__ridge=0.5)
    assert catalogue_pass.recipe_for(run, 'default').scoring.ridge == 0.5
    assert catalogue_pass.recipe_for(run, 'paper') == get_recipe('paper')


def test_a_withdrawal_is_told_in_reports_and_of_other_stores(project, tmp_path, capsys):
    run = moved(project.folder(), tmp_path / 'out')
    folder = run / 'lumina' / 'default'
    shutil.copytree(folder, folder.parent / 'second')
    main(['store', 'withdraw', str(folder), 'song-1', '--reason', 'opted out'])
    assert f'{folder.parent / "second"} is another store' in capsys.readouterr().out
    report = workflows.Studio(run, folder).attribute(project.root / 'songs' / 'song-1.wav')
    assert report.warnings[0].startswith('1 songs were withdrawn from this store')
    assert all(row.track_id != 'song-1' for row in report.channels['P'].rows)
