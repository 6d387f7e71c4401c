"""One real training by dora on a tiny model, and everything that follows from it."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

from lumina_plugin.catalogue import Catalogue
from lumina_plugin.errors import LuminaError
from lumina_plugin.recipe import get_recipe
from lumina_plugin.store import FingerprintStore

from .tiny import write_codec, write_outside


def test_store_stands_beside_the_checkpoints(project):
    store = FingerprintStore.open(project.folder() / 'lumina' / 'default')
    assert [(c.name, c.complete) for c in store.checkpoints] == [('epoch-0002', True), ('epoch-0004', True)]
    assert len({c.model_hash for c in store.checkpoints}) == 2
    ids, vectors = store.vectors('epoch-0004', 'P')
    assert ids == [f'song-{i}' for i in range(6)] and vectors.shape == (6, 512)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    assert store.track('silence').status == 'silent'
    catalogue_hash = Catalogue.from_manifest(project.manifest).hash
    assert store.identity.trained_on_hash == store.identity.catalogue_hash == catalogue_hash
    assert store.verify() == []


def test_stored_weights_are_those_of_their_checkpoint(project):
    folder = project.folder()
    last = torch.load(folder / 'checkpoint.th', weights_only=False)
    stored = FingerprintStore.open(folder / 'lumina' / 'default').load_weights('epoch-0004')
    assert set(stored) == set(last['model'])
    assert all(torch.equal(stored[name], tensor) for name, tensor in last['model'].items())


def test_fingerprinting_leaves_the_training_bit_identical(project):
    project.dora('label=without', 'fingerprint.every=null')
    without = project.folder('label=without')
    assert not (without / 'lumina' / 'default').exists()
    states = [torch.load(folder / 'checkpoint.th', weights_only=False) for folder in (project.folder(), without)]
    for name, tensor in states[0]['model'].items():
        assert torch.equal(tensor, states[1]['model'][name]), name


def test_the_weights_that_training_starts_from_can_be_fingerprinted(project):
    """A 0 in the list: the weights that the origin brings, with a training that is the same as without it."""
    from lumina_plugin.hashing import state_hash
    origin = project.folder().name
    start = [f'continue_from=//sig/{origin}', 'optim.epochs=2']
    project.dora(*start, 'fingerprint.every=[0,1]')
    folder = project.folder(*start)
    store = FingerprintStore.open(folder / 'lumina' / 'default')
    assert [(c.epoch, c.complete) for c in store.checkpoints] == [(0, True), (1, True), (2, True)]
    last = torch.load(project.folder() / 'checkpoint.th', weights_only=False)['model']
    assert store.checkpoints[0].model_hash == state_hash(last)
    stored = store.load_weights('epoch-0000')
    assert all(torch.equal(stored[name], tensor) for name, tensor in last.items())
    trained = torch.load(folder / 'checkpoint.th', weights_only=False)['model']
    project.dora(*start, 'label=without', 'fingerprint.every=null')
    without = torch.load(project.folder(*start, 'label=without') / 'checkpoint.th', weights_only=False)['model']
    assert all(torch.equal(trained[name], tensor) for name, tensor in without.items())


def test_an_interrupted_training_resumes_and_fingerprints_the_rest(project):
    project.dora('label=again', 'optim.epochs=4')
    folder = project.folder('label=again', 'optim.epochs=4')
    whole = (folder / 'lumina' / 'default' / 'manifest.json').read_bytes()
    shutil.rmtree(folder / 'lumina' / 'default' / 'epoch-0004')  # as if killed before the last fingerprint stage
    (folder / 'lumina' / 'default' / 'manifest.json').unlink()
    assert len(FingerprintStore.rebuild_manifest(folder / 'lumina' / 'default').checkpoints) == 1
    project.dora('label=again', 'optim.epochs=4', 'execute_only=fingerprint')
    assert (folder / 'lumina' / 'default' / 'manifest.json').read_bytes() == whole
    assert len(json.loads((folder / 'history.json').read_text())) == 4


def test_a_distributed_training_makes_the_store_that_one_process_makes_of_its_weights(project):
    overrides = ('label=two', 'optim.epochs=2')
    project.dora(*overrides, processes=2)
    folder = project.folder(*overrides)
    assert '2 processes' in (folder / 'solver.log.0').read_text()
    store = folder / 'lumina' / 'default'
    shared = {path.name: path.read_bytes() for path in store.rglob('*') if path.is_file() and path.name != '.lock'}
    shutil.rmtree(store)
    project.dora(*overrides, 'execute_only=fingerprint')
    alone = {path.name: path.read_bytes() for path in store.rglob('*') if path.is_file() and path.name != '.lock'}
    assert alone == shared and FingerprintStore.open(store).checkpoint('epoch-0002').complete


def test_torchrun_shares_a_pass_outside_of_training(project, tmp_path):
    folder = project.folder()
    argv = ['fingerprint', str(folder), '--catalogue', str(project.manifest), '--set', 'chunk_seconds=1.0', '--out']
    subprocess.run([sys.executable, '-m', 'lumina_plugin', *argv, tmp_path / 'one'], check=True, cwd=tmp_path)
    ran = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'lumina_plugin',
         *argv, tmp_path / 'two'], check=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert ran.stdout.count('6 songs fingerprinted') == 1
    one, two = (FingerprintStore.open(tmp_path / name) for name in ('one', 'two'))
    for checkpoint in one.checkpoints:
        for channel in one.channels:
            torch.testing.assert_close(two.vectors(checkpoint.name, channel)[1],
                                       one.vectors(checkpoint.name, channel)[1], rtol=0, atol=1e-4)
    assert [c.name for c in two.checkpoints] == [c.name for c in one.checkpoints] and two.verify() == []


def test_a_killed_training_resumes_by_the_same_command(project):
    """kill -9 once the first epochs are there; the same command goes on and ends with a whole store."""
    folder = project.folder('label=killed')
    process = project.start('label=killed')
    history = folder / 'history.json'
    deadline = time.monotonic() + 300
    while not (history.is_file() and len(json.loads(history.read_text() or '[]')) >= 2):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    project.dora('label=killed')
    assert len(json.loads(history.read_text())) == 4
    store = FingerprintStore.open(folder / 'lumina' / 'default')
    assert [(c.epoch, c.complete) for c in store.checkpoints] == [(2, True), (4, True)] and store.verify() == []


def test_execute_only_without_a_checkpoint_is_bad_input(project):
    done = project.dora('label=fresh', 'execute_only=fingerprint', check=False)
    assert done.returncode == 2 and 'train it first' in done.stderr and 'Traceback' not in done.stderr


def test_continuing_from_nothing_is_bad_input(project):
    done = project.dora('continue_from=//sig/TYPO', check=False)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'Error: continue_from is //sig/TYPO, but there is no run TYPO' in done.stderr


def test_an_empty_manifest_is_bad_input(project, tmp_path):
    (tmp_path / 'data.jsonl').write_text('')
    done = project.dora(f'datasource.train={tmp_path}', check=False)
    assert done.returncode == 2 and str(tmp_path) in done.stderr and 'Traceback' not in done.stderr


def test_a_fingerprint_pass_takes_the_last_weights_of_another_run(project):
    """Of a run whose best weights are others, and which began with a hub's model; with a path as a user gives it."""
    import omegaconf

    from lumina_plugin import load_musicgen
    from lumina_plugin.hashing import state_hash
    origin = project.root / 'runs' / 'xps' / '0badf00d'
    shutil.copytree(project.folder() / '.hydra', origin / '.hydra')
    cfg = omegaconf.OmegaConf.load(origin / '.hydra' / 'config.yaml')
    cfg.continue_from = '//pretrained/facebook/musicgen-small'
    omegaconf.OmegaConf.save(cfg, origin / '.hydra' / 'config.yaml')
    state = torch.load(project.folder() / 'checkpoint.th', weights_only=False)
    for tensor in state['best_state']['model'].values():
        tensor.zero_()
    torch.save(state, origin / 'checkpoint.th')

    songs = project.manifest.parent.relative_to(project.root)
    alone = ['continue_from=//sig/0badf00d', 'datasource.train=null', 'datasource.valid=null']
    project.dora(*alone, 'execute_only=fingerprint', f'fingerprint.catalogue={songs}')
    folder = project.folder(*alone)
    store = FingerprintStore.open(folder / 'lumina' / 'default')
    assert [(c.name, c.complete) for c in store.checkpoints] == [('epoch-0000', True)]
    assert store.checkpoints[0].model_hash == state_hash(state['model'])
    assert state_hash(load_musicgen(folder).lm.state_dict()) == state_hash(state['model'])
    assert store.identity.trained_on_hash == store.identity.catalogue_hash
    assert store.identity.model_id == (f'dora:{folder.name} from dora:0badf00d (trained on '
                                       f'{store.identity.catalogue_hash[:12]}) from facebook/musicgen-small')
    assert 'facebook/musicgen-small' in store.identity.licence and 'non-commercial' in store.identity.licence
    assert not (folder / 'history.json').exists()
    from lumina_plugin import inputs, train
    with pytest.raises(LuminaError, match="another run's weights.*fingerprint.recipe.name"):  # a training of its own
        inputs.check_inputs(train.main.get_xp([*project.argv, *alone]).cfg, folder, train.main.dora.dir / 'xps')


def test_the_paper_recipe_makes_a_store_of_its_own(project):
    from lumina_plugin.catalogue_pass import fingerprint_model
    recipe = get_recipe('paper', chunk_seconds=1.)
    store = fingerprint_model(project.folder(), recipe=recipe)
    assert store.path == project.folder() / 'lumina' / 'paper' and len(store.checkpoints) == 1
    again = fingerprint_model(project.folder(), recipe=recipe)  # nothing left to do
    assert torch.equal(again.vectors('epoch-0004', 'M')[1], store.vectors('epoch-0004', 'M')[1])
    from lumina_plugin.workflows import Studio
    report = Studio(project.folder(), store.path).attribute(project.root / 'songs' / 'song-2.wav')
    assert report.channels['M'].score_name == 'kernel' and report.channels['M'].noise_floor_how == '1/sqrt(D)'
    assert report.channels['M'].rows[0].track_id == 'song-2'


def test_a_song_of_the_catalogue_is_its_own_first(studio, project, tmp_path):
    from lumina_plugin.workflows import Studio
    once = studio.attributor.recipe.model_copy(update={'query_phases': 1})  # a random codec makes noise of other cuts
    exact = Studio(project.folder(), recipe=once)
    for index in range(6):
        report = exact.attribute(project.root / 'songs' / f'song-{index}.wav', tmp_path)
        for channel in report.channels.values():
            assert channel.rows[0].track_id == f'song-{index}' and channel.rows[0].cosine > 0.9
    assert (tmp_path / 'report.html').stat().st_size > 10_000 and (tmp_path / 'report.json').is_file()
    assert [segment.end for segment in report.channels['P'].segments] == [1., 2., pytest.approx(2.6, abs=.02)]


def test_generations_carry_attributions(studio, project, tmp_path):
    from lumina_plugin.workflows import Prompt
    clips = studio.generate(tmp_path, 'text', text='slow waltz', seconds=1., count=2, seed=3, progress=False)
    assert [clip.folder.name for clip in clips] == ['text-1', 'text-2']
    for clip in clips:
        assert sorted(path.name for path in clip.folder.iterdir()) == [
            'audio.wav', 'audio.wav.lumina.json', 'report.csv', 'report.html', 'report.json']
        assert clip.report.query.prompt == 'slow waltz' and clip.report.query.seed == 3
    prompt = Prompt(project.root / 'songs' / 'song-1.wav', 0.5, 'song-1')
    clip = studio.generate(tmp_path, 'continued', prompt=prompt, seconds=0.9, progress=False)[0]
    assert clip.report.query.kind == 'continuation' and clip.report.query.prompt_seconds == 0.5
    assert clip.report.channels['P'].segments[0].masked_seconds == 0.5
    assert clip.report.recipe.keys['mask_prompt'] is True
    longer = studio.generate(tmp_path, 'longer', seconds=2.4, progress=False)[0]  # beyond max_duration, in windows
    assert len(longer.report.channels['M'].segments) == 3


def test_generation_with_attributions_sounds_as_without(studio, tmp_path):
    studio.attachment.enabled = False
    try:
        torch.manual_seed(5)
        plain = studio.musicgen.generate_unconditional(1)
    finally:
        studio.attachment.enabled = True
    torch.manual_seed(5)
    assert torch.equal(studio.musicgen.generate_unconditional(1), plain)
    assert len(studio.musicgen.last_attributions) == 1


def test_detach_restores_the_object_exactly(project):
    from lumina_plugin import attach, load_musicgen
    musicgen = load_musicgen(project.folder())
    before = dict(musicgen.__dict__)
    seen = []
    attach(musicgen, project.folder() / 'lumina' / 'default', callback=seen.append)
    with pytest.raises(LuminaError, match='already'):
        attach(musicgen, project.folder() / 'lumina' / 'default')
    musicgen.set_generation_params(duration=0.5, extend_stride=0.5, top_k=16)
    musicgen.generate(['a', 'b'])
    assert len(seen) == 1 and len(seen[0]) == 2
    musicgen.detach()
    after = dict(musicgen.__dict__)
    assert set(after) == set(before)
    assert all(after[name] is before[name] for name in before
               if name not in ('generation_params', 'duration', 'extend_stride'))
    assert musicgen._generate_tokens.__func__ is type(musicgen)._generate_tokens


def test_another_codec_or_model_is_refused_with_both_hashes(project, tmp_path):
    from lumina_plugin import Attributor, load_codec, load_musicgen
    musicgen = load_musicgen(project.folder())
    store = FingerprintStore.open(project.folder() / 'lumina' / 'default')
    other = load_codec(write_codec(tmp_path / 'codec', seed=1))
    with pytest.raises(LuminaError, match=f'codec.*{store.identity.codec_hash[:12]}'):
        Attributor(musicgen.lm, other, store)
    with pytest.raises(LuminaError, match=f'recipe.*{store.identity.recipe_hash[:12]}'):
        Attributor(musicgen.lm, musicgen.compression_model, store,
                   recipe=get_recipe('default', objective='cross_entropy'))
    from .tiny import build_lm
    with pytest.raises(LuminaError, match=f'model config.*{store.identity.model_config_hash[:12]}'):
        Attributor(build_lm(), musicgen.compression_model, store)


def test_an_exported_folder_works_by_the_same_names(project, tmp_path):
    from lumina_plugin.catalogue_pass import fingerprint_model
    from lumina_plugin.models import export_musicgen
    from lumina_plugin.workflows import Studio
    exported = export_musicgen(project.folder(), tmp_path / 'exported')
    studio = Studio(exported, project.folder() / 'lumina' / 'default')
    assert studio.attribute(project.root / 'songs' / 'song-4.wav').channels['M'].rows[0].track_id == 'song-4'
    recipe = get_recipe('default', chunk_seconds=1., scoring={'method': 'cosine'})
    store = fingerprint_model(exported, project.manifest, tmp_path / 'store', recipe,
                              outside=str(write_outside(tmp_path / 'outside')))
    assert [c.weights for c in store.checkpoints] == [None]
    report = Studio(exported, store.path).attribute(project.root / 'songs' / 'song-4.wav')
    assert report.channels['P'].rows[0].track_id == 'song-4'
    assert any('not known what this checkpoint was trained on' in warning for warning in report.warnings)


def test_silence_is_told_not_attributed(studio, project):
    with pytest.raises(LuminaError, match='silent throughout'):
        studio.attribute(project.root / 'songs' / 'silence.wav')


def test_a_prompt_as_long_as_the_clip_is_bad_input(studio, project, tmp_path):
    from lumina_plugin.workflows import Prompt
    with pytest.raises(LuminaError, match='change its length'):
        studio.generate(tmp_path, prompt=Prompt(project.root / 'songs' / 'song-1.wav', 2.), seconds=1.)


def test_an_unwritable_output_folder_is_named(studio, project):
    blocked = project.root / 'songs' / 'song-1.wav' / 'out'
    with pytest.raises(LuminaError, match='song-1.wav'):
        studio.generate(blocked, seconds=0.5)


def test_ctrl_c_is_one_sentence(monkeypatch, capsys):
    from lumina_plugin import train

    def stopped(cfg):
        raise KeyboardInterrupt
    monkeypatch.setattr('lumina_plugin.train._run', stopped)
    with pytest.raises(SystemExit) as ended:
        train.main.main(None)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Interrupted; the same command goes on from the last checkpoint.\n"
