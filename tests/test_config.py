"""Configurations compose, hold every key that audiocraft reads, and only what changes a result changes a signature."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import omegaconf
import pytest

from lumina_plugin import compat, inputs, train
from lumina_plugin.errors import LuminaError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'config'
PRESETS = sorted(str(p.relative_to(CONFIG / 'solver').with_suffix('')) for p in (CONFIG / 'solver').rglob('*.yaml'))
MUSICGEN = 'solver=musicgen/default'


def songs(folder: Path, text: str = '{"path": "a.wav", "duration": 1.0, "sample_rate": 16000}\n') -> Path:
    """A folder with a manifest."""
    folder.mkdir(exist_ok=True)
    (folder / 'data.jsonl').write_text(text)
    return folder


def get(cfg: omegaconf.DictConfig, key: str):
    return omegaconf.OmegaConf.select(cfg, key, throw_on_missing=True)


@pytest.mark.parametrize('preset', PRESETS)
def test_every_preset_composes_and_resolves(preset):
    cfg = train.main.get_xp([f'solver={preset}']).cfg
    assert omegaconf.OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if preset != 'default':
        assert cfg.solver


@pytest.mark.parametrize('conditioner,scale', [*itertools.product(
    ['none', 'text2music', 'chroma2music', 'lut'], ['xsmall', 'base', 'small', 'medium', 'large'])])
def test_conditioners_and_scales_combine(conditioner, scale):
    cfg = train.main.get_xp([MUSICGEN, f'conditioner={conditioner}', f'model/lm/model_scale={scale}']).cfg
    assert cfg.transformer_lm.dim % cfg.transformer_lm.num_heads == 0
    used = set(itertools.chain(*(cfg.fuser[how] for how in ('sum', 'prepend', 'cross', 'input_interpolate'))))
    assert used == set(cfg.conditioners or {})


@pytest.mark.parametrize('source,solver', [
    ('base', 'compression'), ('base', 'musicgen'), ('compression', 'compression'), ('musicgen', 'musicgen')])
def test_every_key_that_a_solver_reads_is_there(source, solver):
    """Reads audiocraft's source for `cfg.a.b` and looks each up."""
    import importlib.util
    folder = Path(importlib.util.find_spec('audiocraft').submodule_search_locations[0])
    text = re.sub('#.*', '', (folder / 'solvers' / f'{source}.py').read_text())
    keys = set(re.findall(r'(?:self\.|^|[\s(])cfg\.((?:[a-z_]+)(?:\.[a-z_0-9]+)*)(?![\w(])', text))
    assert len(keys) > 3
    cfg = train.main.get_xp([f'solver={solver}/default']).cfg
    omegaconf.OmegaConf.set_struct(cfg, True)
    for key in sorted(keys):
        parts = [part for part in key.split('.') if part not in ('get', 'items')]
        node = cfg
        for part in parts:
            assert part in node, f'{solver}: {key}'
            node = node[part]


def test_audiocrafts_own_builders_take_the_defaults():
    """The real constructors: a missing or misspelt key is a TypeError there."""
    import torch
    from audiocraft.models import builders
    from audiocraft.solvers import builders as solver_builders
    cfg = train.main.get_xp([MUSICGEN, 'model/lm/model_scale=xsmall', 'conditioner=lut', 'device=cpu',
                             'transformer_lm.card=16', 'optim.ema.device=cpu']).cfg
    for pattern in ('delay', 'parallel', 'unroll', 'coarse_first', 'musiclm'):
        cfg.codebooks_pattern.modeling = pattern
        lm = builders.get_lm_model(cfg)
    assert solver_builders.get_optimizer(solver_builders.get_optim_parameter_groups(lm), cfg.optim)
    for name in ('cosine', 'polynomial_decay', 'inverse_sqrt', 'linear_warmup', 'step', 'exponential'):
        cfg.schedule.lr_scheduler = name
        optimizer = torch.optim.SGD(lm.parameters(), lr=1.)
        assert solver_builders.get_lr_scheduler(optimizer, cfg.schedule, 100)
    codec = train.main.get_xp(['solver=compression/default', 'device=cpu', 'seanet.n_filters=2', 'seanet.lstm=1',
                               'rvq.bins=16', 'optim.ema.device=cpu', 'msstftd.filters=2', 'msd.groups=null']).cfg
    codec.adversarial.adversaries = ['msstftd', 'mpd']
    codec.mpd.filters = 2
    assert builders.get_compression_model(codec)(torch.zeros(1, 1, 3200)).x.shape == (1, 1, 3200)
    assert len(solver_builders.get_adversarial_losses(codec)) == 2
    for loss in ('l1', 'l2', 'mel', 'mrstft', 'msspec', 'sisnr'):
        assert solver_builders.get_loss(loss, codec) is not None
    assert solver_builders.get_balancer({'l1': 1.}, codec.balancer)


def test_only_what_changes_a_result_changes_the_signature():
    base = train.main.get_xp([MUSICGEN]).sig
    for same in ('device=cpu', 'num_threads=7', 'dataset.num_workers=0', 'execute_only=generate',
                 'execute_inplace=true',
                 'logging.level=DEBUG', 'generate.every=3', 'evaluate.every=3', 'checkpoint.save_every=1',
                 'efficient_attention_backend=xformers', 'show=true', 'deadlock.use=true'):
        assert train.main.get_xp([MUSICGEN, same]).sig == base, same
    for other in ('seed=1', 'optim.lr=2', 'optim.ema.decay=0.5', 'transformer_lm.dim=64', 'dataset.segment_duration=3',
                  'label=again', 'datasource.train=/elsewhere', 'conditioner=lut', 'autocast=false'):
        assert train.main.get_xp([MUSICGEN, other]).sig != base, other


def test_teams_file_serves_every_kind_of_machine(monkeypatch):
    for name in ('USER', 'LOGNAME', 'LUMINA_DORA_DIR'):
        monkeypatch.delenv(name, raising=False)
    teams = omegaconf.OmegaConf.load(CONFIG / 'teams' / 'default.yaml')
    for kind in ('default', 'darwin', 'aws', 'fair', 'rsc'):
        assert {'dora_dir', 'partitions', 'reference_dir'} <= set(teams[kind])
        assert teams[kind].dora_dir == './outputs'


def test_config_lies_inside_an_installed_package_and_beside_it_in_a_checkout(tmp_path, monkeypatch):
    assert compat.config_dir() == CONFIG
    (tmp_path / 'site' / 'lumina_plugin' / 'config').mkdir(parents=True)
    monkeypatch.setattr(compat, '__file__', str(tmp_path / 'site' / 'lumina_plugin' / 'compat.py'))
    assert compat.config_dir() == tmp_path / 'site' / 'lumina_plugin' / 'config'


# --- dora's entry -----------------------------------------------------------------------------------------------------

def test_missing_data_is_one_sentence_that_names_the_key(tmp_path):
    cfg = train.main.get_xp([MUSICGEN]).cfg
    with pytest.raises(LuminaError, match=r'datasource\.train'):
        train.resolve_config_dset_paths(cfg)
    cfg.datasource.train = str(tmp_path / 'no')
    with pytest.raises(LuminaError, match='does not exist'):
        train.resolve_config_dset_paths(cfg)
    cfg.datasource.train = cfg.datasource.valid = str(songs(tmp_path))
    train.resolve_config_dset_paths(cfg)
    cfg.execute_only = 'generate'
    with pytest.raises(LuminaError, match=r'datasource\.generate'):
        train.resolve_config_dset_paths(cfg)


@pytest.mark.parametrize('solver', [MUSICGEN, 'solver=compression/default', 'solver=lumina/default'])
@pytest.mark.parametrize('split', ['train', 'evaluate'])
def test_a_folder_without_songs_is_one_sentence_for_every_solver(solver, split, tmp_path):
    cfg = train.main.get_xp([solver, 'dset=audio/default']).cfg
    cfg.datasource.train = cfg.datasource.valid = str(songs(tmp_path / 'whole'))
    (tmp_path / 'bare').mkdir()
    for folder, told in (tmp_path / 'bare', 'holds no data.jsonl'), (songs(tmp_path / 'empty', '\n'), 'is empty'):
        cfg.datasource[split] = str(folder)
        with pytest.raises(LuminaError, match=rf'datasource\.{split} is not usable: .*{told}'):
            train.resolve_config_dset_paths(cfg)


def test_a_fingerprint_pass_asks_for_its_own_songs_alone(tmp_path):
    cfg = train.main.get_xp(['solver=lumina/default', 'dset=audio/default', 'execute_only=fingerprint']).cfg
    with pytest.raises(LuminaError, match=r'datasource\.train is empty'):
        train.resolve_config_dset_paths(cfg)
    cfg.fingerprint.catalogue = str(songs(tmp_path))
    train.resolve_config_dset_paths(cfg)
    cfg.execute_only = None
    cfg.datasource.train = cfg.datasource.valid = str(tmp_path)
    cfg.fingerprint.catalogue = str(tmp_path / 'no')
    with pytest.raises(LuminaError, match=r'fingerprint\.catalogue is .*no, which does not exist'):
        train.resolve_config_dset_paths(cfg)


def test_paths_are_seen_from_where_dora_was_started_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('run', 'exported'):
        (tmp_path / folder).mkdir()
    cfg = train.main.get_xp(['solver=lumina/default', 'fingerprint.catalogue=mine', 'lumina.codes_cache=codes']).cfg
    wanted = {'run': f'{tmp_path}/run', './codec.th': f'{tmp_path}/codec.th', '/abs/x.th': '/abs/x.th',
              '//pretrained/exported': f'//pretrained/{tmp_path}/exported'}
    same = ('//sig/abcd1234', '//pretrained/facebook/musicgen-small', '//reference/x', 'lumina//tiny', 'tiny',
            'facebook/encodec_32khz')
    for name, absolute in {**wanted, **{name: name for name in same}}.items():
        cfg.continue_from = cfg.compression_model_checkpoint = name
        inputs.resolve_paths(cfg)
        inputs.resolve_paths(cfg)  # twice is once
        assert cfg.continue_from == cfg.compression_model_checkpoint == absolute
    assert cfg.fingerprint.catalogue == f'{tmp_path}/mine' and cfg.lumina.codes_cache == f'{tmp_path}/codes'


@pytest.mark.parametrize('key', ['continue_from', 'compression_model_checkpoint'])
def test_a_model_that_is_not_there_or_damaged_is_told_at_once(key, tmp_path, monkeypatch):
    import torch
    monkeypatch.setattr(train.main.dora, 'dir', tmp_path)
    runs = tmp_path / 'xps'
    for sig in ('untrained', 'torn', 'foreign', 'good'):
        (runs / sig).mkdir(parents=True)
    for sig, state in ('foreign', {'weights': 1}), ('good', {'best_state': {}}):
        torch.save(state, runs / sig / 'checkpoint.th')
    whole = (runs / 'good' / 'checkpoint.th').read_bytes()
    (runs / 'torn' / 'checkpoint.th').write_bytes(whole[:len(whole) // 2])
    cfg = train.main.get_xp([MUSICGEN]).cfg
    for name, told in {
            '//sig/TYPO': 'there is no run TYPO below .*: check the signature',
            '//sig/untrained': r'has no checkpoint\.th: train that run first',
            '//sig/torn': 'torn/checkpoint.th cannot be read as a checkpoint .*: name another run',
            str(runs / 'torn' / 'checkpoint.th'): 'cannot be read',
            '//sig/foreign': 'it has no best_state',
            str(tmp_path / 'gone.th'): 'which does not exist: name a run',
            f'//pretrained/{tmp_path}/gone': 'gone does not exist',
            'facebook/musicgen-small': '//pretrained/<name>'}.items():
        cfg[key] = name
        with pytest.raises(LuminaError, match=f'^{key} is {name}.*{told}'):
            inputs.check_inputs(cfg, tmp_path, train.main.dora.dir / 'xps')
    for name in ('//sig/good', str(runs / 'good'), '//pretrained/facebook/musicgen-small'):
        cfg[key] = name
        inputs.check_inputs(cfg, tmp_path, train.main.dora.dir / 'xps')
    if key == 'continue_from':  # a run with a checkpoint goes on from that one, which must be whole as well
        cfg[key] = '//sig/TYPO'
        inputs.check_inputs(cfg, runs / 'good', train.main.dora.dir / 'xps')
        with pytest.raises(LuminaError, match="The run's own checkpoint .*torn"):
            inputs.check_inputs(cfg, runs / 'torn', train.main.dora.dir / 'xps')


def test_a_stage_that_a_solver_lacks_is_named(tmp_path):
    cfg = train.main.get_xp([MUSICGEN, 'execute_only=fingerprint']).cfg
    with pytest.raises(LuminaError, match='execute_only is fingerprint, which solver=musicgen .*choose valid'):
        inputs.check_inputs(cfg, tmp_path, train.main.dora.dir / 'xps')


def test_an_unknown_key_or_preset_is_one_sentence(monkeypatch, capsys):
    bad = 'solver=lumina/default', 'fingerprint.recipe.foo=1'
    with pytest.raises(LuminaError, match=r'fingerprint\.recipe\.foo'):
        train.main.get_xp(bad)
    monkeypatch.setattr(sys, 'argv', ['/anywhere/bin/dora', 'run'])
    for argv, named in (bad, 'fingerprint.recipe.foo'), (('solver=lumina/typo',), 'solver/lumina/typo'):
        with pytest.raises(SystemExit) as end:
            train.main.get_xp(argv)
        told = capsys.readouterr().err
        assert end.value.code == 2 and told.startswith('Error: ') and named in told and told.count('\n') == 1


# --- recipes ----------------------------------------------------------------------------------------------------------

def lumina(*overrides: str) -> omegaconf.DictConfig:
    return train.main.get_xp(['solver=lumina/default', *overrides]).cfg


def test_every_key_of_a_recipe_is_in_the_configuration():
    from lumina_plugin.recipe import Recipe
    listed = lumina().fingerprint.recipe
    assert set(listed) == set(Recipe.model_fields)
    for section in ('projection', 'scoring', 'gate'):
        assert set(listed[section]) == set(Recipe.model_fields[section].annotation.model_fields)


def test_recipes_take_what_is_given_and_keep_the_rest():
    from lumina_plugin.recipe import get_recipe
    assert inputs.recipes_of(lumina('fingerprint.recipes=[default,paper]')) == [get_recipe('default'),
                                                                               get_recipe('paper')]
    (recipe,) = inputs.recipes_of(lumina('fingerprint.recipe.projection.kind={P:separated,M:fitted}'))
    assert recipe == get_recipe('default', projection={'kind': {'P': 'separated', 'M': 'fitted'}})
    (recipe,) = inputs.recipes_of(lumina('fingerprint.recipe.name=wide', 'fingerprint.recipe.projection.dim=1024',
                                        'fingerprint.recipe.projection.block_width=0'))
    assert recipe.name == 'wide'
    assert recipe.fingerprint_keys == get_recipe('default', projection={'dim': 1024, 'block_width': None}
                                                 ).fingerprint_keys


@pytest.mark.parametrize('override,told', [
    ('fingerprint.recipes=[typo]', "no recipe 'typo'"), ('fingerprint.recipes=[]', 'is empty'),
    ('+fingerprint.recipe.foo=1', "'foo'"), ('fingerprint.recipe.projection.dim=2', r"'projection\.dim'"),
    ('fingerprint.recipe.name=a/b', 'names a folder'), ('fingerprint.recipe.name=codes', 'names a folder'),
    ('fingerprint.recipes=[default,paper] fingerprint.recipe.name=x', 'default, paper.*one store')])
def test_a_bad_recipe_is_told_before_training(override, told, tmp_path):
    with pytest.raises(LuminaError, match=told):
        inputs.check_inputs(lumina(*override.split()), tmp_path, train.main.dora.dir / 'xps')


def test_a_store_of_another_recipe_is_told_before_training(tmp_path):
    from lumina_plugin.recipe import get_recipe
    from lumina_plugin.store import FingerprintStore, Identity
    old = get_recipe('default')
    store = FingerprintStore.create(tmp_path / 'lumina' / 'default', Identity(
        model_id='m', model_config_hash='m', codec_hash='c', recipe_hash=old.fingerprint_hash, catalogue_hash='s',
        dim=512), [{'id': 'a', 'duration': 1.}])
    inputs.check_inputs(lumina(), tmp_path, train.main.dora.dir / 'xps')
    changed = ['fingerprint.recipe.objective=cross_entropy']
    with pytest.raises(LuminaError, match=f'{store.path}.*store: {old.fingerprint_hash}, yours: .*recipe.name'):
        inputs.check_inputs(lumina(*changed), tmp_path, train.main.dora.dir / 'xps')
    inputs.check_inputs(lumina(*changed, 'fingerprint.recipe.name=loss'), tmp_path, train.main.dora.dir / 'xps')
    # will not touch it
    inputs.check_inputs(lumina(*changed, 'fingerprint.every=null'), tmp_path, train.main.dora.dir / 'xps')


def test_a_training_song_among_the_outside_songs_is_told_before_training(tmp_path, monkeypatch):
    from lumina_plugin.catalogue import build_catalogue, tracks

    from .tiny import write_outside, write_songs
    read = []
    hashed = tracks.file_sha256
    trained, other = (build_catalogue(write_songs(tmp_path / name, 3, seed=seed), tmp_path / f'{name}-manifest',
                                      progress=False).manifest.parent for seed, name in enumerate(('songs', 'more')))
    outside = write_outside(tmp_path / 'outside', 65)
    monkeypatch.setattr(tracks, 'file_sha256', lambda path: read.append(Path(path).name) or hashed(path))

    def check(*overrides):
        inputs.check_inputs(lumina(f'fingerprint.outside={outside}', f'datasource.train={trained}',
                                   f'fingerprint.catalogue={other}', *overrides), tmp_path,
                            train.main.dora.dir / 'xps')
    check()
    assert not any(name.startswith('song-') for name in read)  # of a size that no outside song has
    like = outside / 'zz.wav'
    for folder, key in ('songs', 'datasource.train'), ('more', 'fingerprint.catalogue'):
        song = (tmp_path / folder / 'song-2.wav').read_bytes()
        like.write_bytes(song)
        for named in (outside, build_catalogue(outside, tmp_path / 'outside-manifest', progress=False).manifest):
            with pytest.raises(LuminaError, match='^fingerprint.outside is not usable: .*zz.wav cannot measure chance: '
                                                  f'it is song song-2 of {key}; take it away, or name other songs.$'):
                check(f'fingerprint.outside={named}')
        like.write_bytes(song[:-1] + bytes([song[-1] ^ 1]))  # as long, but another song
        check()
    assert 'song-1.wav' in read  # which is as long
    like.write_bytes((tmp_path / 'songs' / 'song-2.wav').read_bytes())
    for unread in ('fingerprint.every=null', 'fingerprint.outside=generated'):
        check(unread)
    (tmp_path / 'songs' / 'song-2.wav').unlink()  # a song that is gone cannot be looked for
    check()


def test_fingerprints_of_a_sharded_training_are_refused_before_it(tmp_path):
    with pytest.raises(LuminaError, match=r'fsdp\.use=true.*fingerprint\.every=null'):
        inputs.check_inputs(lumina('fsdp.use=true'), tmp_path, train.main.dora.dir / 'xps')
    for off in ('null', ''):
        inputs.check_inputs(lumina('fsdp.use=true', f'fingerprint.every={off}'), tmp_path, train.main.dora.dir / 'xps')


def test_unknown_solver_and_signature_are_named(tmp_path):
    songs(tmp_path)
    cfg = train.main.get_xp([MUSICGEN, f'datasource.train={tmp_path}', f'datasource.valid={tmp_path}']).cfg
    cfg.solver = 'nonsense'
    with pytest.raises(LuminaError, match='nonsense'):
        train.get_solver(cfg)
    with pytest.raises(LuminaError, match='0badc0de'):
        train.get_solver_from_sig('0badc0de')


def test_auto_device_and_autocast_follow_the_machine():
    import torch
    cfg = train.main.get_xp([MUSICGEN]).cfg
    train.resolve_device(cfg)
    assert cfg.device == ('cuda' if torch.cuda.is_available() else 'cpu') and cfg.autocast == torch.cuda.is_available()


def test_dora_runs_from_a_checkout_and_ends_bad_input_without_a_traceback(tmp_path):
    """`dora run` with no -P finds the package by itself; missing data ends with one line and exit code 2."""
    env = {**os.environ, 'LUMINA_DORA_DIR': str(tmp_path), 'LUMINA_CATALOGUE': str(tmp_path / 'nothing')}
    env.pop('USER', None)
    done = subprocess.run([str(Path(sys.executable).parent / 'dora'), 'run', 'solver=lumina/quickstart'],
                          cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert 'datasource.train' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('override', [
    'fingerprint.batch_size=0', 'fingerprint.batch_size=abc', 'fingerprint.every=abc', 'fingerprint.every=-1',
    'fingerprint.every=0.5', 'fingerprint.every=[1,abc]', 'fingerprint.every=0', 'fingerprint.every=[0,2]',
    'lumina.token_phases=0', 'optim.epochs=abc', 'optim.updates_per_epoch=0', 'dataset.batch_size=x'])
def test_what_counts_must_be_a_number_and_is_told_before_training(override, tmp_path):
    with pytest.raises(LuminaError, match=override.split('=')[0].replace('.', r'\.')):
        inputs.check_inputs(lumina(override), tmp_path, train.main.dora.dir / 'xps')
