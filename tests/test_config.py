"""Configurations compose, hold every key that audiocraft reads, and only what changes a result changes a signature."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import omegaconf
import pytest

from lumina_plugin import compat, train
from lumina_plugin.errors import LuminaError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'config'
PRESETS = sorted(str(p.relative_to(CONFIG / 'solver').with_suffix('')) for p in (CONFIG / 'solver').rglob('*.yaml'))
MUSICGEN = 'solver=musicgen/default'


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
    cfg.datasource.train = cfg.datasource.valid = str(tmp_path)
    train.resolve_config_dset_paths(cfg)
    cfg.execute_only = 'generate'
    with pytest.raises(LuminaError, match=r'datasource\.generate'):
        train.resolve_config_dset_paths(cfg)


def test_unknown_solver_and_signature_are_named(tmp_path):
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
