"""Every grid is laid out by dora without Slurm or a hub, and its table shows loss and attribution together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lumina_plugin import inputs, train
from lumina_plugin.unlearning.recipe import unlearning_recipe

ROOT = Path(__file__).resolve().parents[1]
GRIDS = sorted(path.stem for path in (ROOT / 'grids' / 'lumina').glob('[!_]*.py'))
RUNS = {'quickstart': 5, 'finetune': 3, 'finetune_large': 1, 'recipes': 13, 'unlearning': 60}
TRAINING = [name for name in GRIDS if name != 'unlearning']  # which forgets instead


@pytest.fixture(scope='module')
def laid_out(tmp_path_factory):
    """By grid: what `dora grid … --dry_run --init` printed, and the command lines of its runs by signature."""
    found = {}
    for name in GRIDS:
        folder = tmp_path_factory.mktemp(name)
        done = subprocess.run([sys.executable, '-m', 'dora', '-P', 'lumina_plugin', 'grid', f'lumina.{name}',
                               '--dry_run', '--init', '--no_monitoring'], cwd=folder, text=True, capture_output=True,
                              env={**os.environ, 'LUMINA_DORA_DIR': str(folder), 'COLUMNS': '400'})
        assert done.returncode == 0, done.stderr
        found[name] = (done.stdout, {path.parent.name: json.loads(path.read_text())
                                     for path in folder.glob('xps/*/.argv.json')})
    return found


@pytest.mark.parametrize('name', GRIDS)
def test_dora_lays_out_every_grid(name, laid_out):
    """As many runs as the grid means: two that dora takes for one would be a run less."""
    table, runs = laid_out[name]
    assert name not in RUNS or len(runs) == RUNS[name]
    assert runs and all(signature in table for signature in runs)


@pytest.mark.parametrize('name', TRAINING)
def test_the_runs_of_every_training_grid_have_recipes_that_hold(name, laid_out):
    for argv in laid_out[name][1].values():
        cfg = train.main.get_xp(argv).cfg
        if cfg.solver != 'lumina':  # a codec's training has none
            continue
        recipes = inputs.recipes_of(cfg)
        assert cfg.fingerprint.every or cfg.execute_only == 'fingerprint' or cfg.fsdp.use
        assert all(recipe.fingerprint_hash for recipe in recipes)


def test_the_ablation_has_a_recipe_and_a_store_of_its_own_in_each_run_but_one_training(laid_out):
    cfgs = [train.main.get_xp(argv).cfg for argv in laid_out['recipes'][1].values()]
    names = [tuple(recipe.name for recipe in inputs.recipes_of(cfg)) for cfg in cfgs]
    assert len(set(names)) == len(names)
    learnt = {json.dumps({key: value for key, value in sorted(cfg.items()) if key not in ('label', 'fingerprint')},
                         default=str, sort_keys=True) for cfg in cfgs}
    assert len(learnt) == 1
    kinds = [inputs.recipes_of(cfg)[0].projection.kind for cfg in cfgs if cfg.label == 'projection-separated']
    assert kinds == ['separated']


def test_every_recipe_of_unlearning_is_a_run_of_its_own(laid_out):
    recipes = []
    for argv in laid_out['unlearning'][1].values():
        keys = {key.removeprefix('unlearning.'): yaml.safe_load(value)
                for key, value in (override.split('=', 1) for override in argv)}
        assert keys.pop('solver') == 'lumina/unlearning' and (ROOT / keys.pop('truth')).is_file()
        sizes = {key: float(keys.pop(key)) for key in ('lr', 'relative') if key in keys}  # YAML reads 1e-6 as text
        recipes.append(unlearning_recipe(keys.pop('preset', 'default'), **keys, **sizes))
    assert len({recipe.hash for recipe in recipes}) == len(recipes)
    for key, values in (('fisher', {'kronecker', 'diagonal', 'adam', 'identity'}), ('steps', {1, 4}),
                        ('layers', {'all', 'P', 'M'}), ('mask', {'mixed', 'none'}), ('lr', {1e-6, None}),
                        ('relative', {None, 1e-3, 3e-3, 1e-2, 3e-2})):
        assert {getattr(recipe, key) for recipe in recipes} == values, key
    assert unlearning_recipe('published').hash in {recipe.hash for recipe in recipes}


def test_the_large_model_is_fingerprinted_whole_from_the_run_that_trained_it(laid_out):
    trained = {sig: train.main.get_xp(argv).cfg for sig, argv in laid_out['finetune'][1].items()}
    (argv,) = laid_out['finetune_large'][1].values()
    cfg = train.main.get_xp(argv).cfg
    source = trained[cfg.continue_from.removeprefix('//sig/')]
    assert source.fsdp.use and not source.fingerprint.every and source.transformer_lm.dim == 2048
    assert not cfg.fsdp.use and cfg.execute_only == 'fingerprint'
    assert cfg.transformer_lm == source.transformer_lm and cfg.datasource.train == source.datasource.train


def test_the_table_shows_loss_and_attribution_of_a_real_training(project):
    from dora.grid import RunGridArgs, run_grid
    from dora.shep import SubmitRules

    from grids.lumina._explorers import CHANNELS, LuminaExplorer
    folder = project.folder()
    history = json.loads((folder / 'history.json').read_text())

    @LuminaExplorer
    def explorer(launcher):
        launcher(project.argv)

    shown = LuminaExplorer(explorer).process_history(history)
    last = history[-1]
    assert shown['train']['ce'] == last['train']['ce'] and shown['train']['epoch'] == 4
    assert shown['valid']['best_ppl'] == min(metrics['valid']['ppl'] for metrics in history)
    leaves = next(group for group in explorer.get_grid_metrics() if group.key == 'fingerprint').groups
    assert {leaf.key for leaf in leaves} == {*last['fingerprint'], 'epoch'} - {'duration'}
    for channel in CHANNELS:
        assert 0 <= last['fingerprint'][f'alike_{channel}'] <= 1 and last['fingerprint'][f'spread_{channel}'] > 0
    (sheep,) = run_grid(train.main, explorer, 'test', SubmitRules(), args=RunGridArgs(monitor=False, dry_run=True))
    assert sheep.xp.sig == folder.name


def test_figures_are_those_of_the_report(project, studio):
    """Of a store's checkpoint, as `Attributor` finds them for a recipe that takes the last one alone."""
    from lumina_plugin import Attributor, FingerprintStore
    from lumina_plugin.monitoring import checkpoint_figures
    from lumina_plugin.recipe import recipe_from_dict
    store = FingerprintStore.open(project.folder() / 'lumina' / 'default')
    recipe = recipe_from_dict(store.identity.recipe)
    found = checkpoint_figures(store, 'epoch-0004', recipe)
    last = Attributor(studio.musicgen.lm, studio.musicgen.compression_model, store,
                      recipe=recipe.model_copy(update={'checkpoints': 'last'}))
    for channel in store.channels:
        diagnosis = last.chance(channel).diagnosis
        assert found[f'alike_{channel}'] == pytest.approx(diagnosis.ranking_correlation, abs=1e-6)
        assert found[f'hubs_{channel}'] == pytest.approx(diagnosis.hub_skewness, abs=1e-6)
    assert found == {key: pytest.approx(value) for key, value in json.loads(
        (project.folder() / 'history.json').read_text())[-1]['fingerprint'].items() if key in found}
