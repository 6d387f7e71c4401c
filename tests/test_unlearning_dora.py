"""Unlearning as dora runs: one recipe a run, its figures in dora's history and table."""

import dataclasses
import json
import math

import omegaconf
import pytest
import torch
import treetable

from grids.lumina._explorers import UnlearningExplorer
from lumina_plugin import inputs, train
from lumina_plugin.catalogue_pass import run_songs
from lumina_plugin.dit.ground_truth import DiTTruth
from lumina_plugin.errors import LuminaError
from lumina_plugin.models import load_musicgen
from lumina_plugin.unlearning import grid
from lumina_plugin.unlearning.opened import open_bench
from lumina_plugin.unlearning.recipe import UnlearningRecipe, unlearning_recipe
from lumina_plugin.unlearning.solver import read_settings
from lumina_plugin.validation.ground_truth import make_ground_truth
from lumina_plugin.validation.plan import plan_models

from .tiny_dit import tiny_dit, tiny_examples

SOLVER = 'solver=lumina/unlearning'
SMALL = ['unlearning.targets=2', 'unlearning.generations=2', 'unlearning.moved=1', 'unlearning.fisher=diagonal',
         'num_threads=1']
SONGS = {'rank', 'lr', 'relative', 'rise', 'seconds', 'frechet', 'frechet_before', 'frechet_before_max', 'duration'}


@pytest.fixture(scope='module')
def truth(project, tmp_path_factory):
    """A ground truth of four halves of the project's songs, and its file."""
    run = project.folder()
    songs = run_songs(run)
    catalogue = type(songs)([track for track in songs if track.id != 'silence'], songs.source)
    plan = plan_models(catalogue, halves=4, seeds=1, whole=0, groups=0)
    folder = tmp_path_factory.mktemp('truth')
    made = make_ground_truth(run, project.manifest, folder / 'truth', plan=plan, each=3, seconds=1.)
    place = [column for column, query in enumerate(made.queries) if query.source != 'silence']
    made = dataclasses.replace(made, songs=[track.id for track in catalogue], sums=made.sums[:, place],
                               queries=[made.queries[column] for column in place], counts=made.counts[place])
    return made, made.save(folder / 'ground_truth.safetensors')


class Runs:
    """`dora run solver=lumina/unlearning` beside the project's training."""

    def __init__(self, project):
        self.project, self.trained = project, project.folder()

    def argv(self, *overrides):
        return [SOLVER, *SMALL, *overrides]

    def start(self, *overrides, check=True):
        """To its end, the process; its folder."""
        argv, self.project.argv = self.project.argv, self.argv(*overrides)
        try:
            return self.project.dora(check=check)
        finally:
            self.project.argv = argv

    def folder(self, *overrides):
        train.main.dora.dir = self.project.root / 'runs'
        return train.main.get_xp(self.argv(*overrides)).folder

    def history(self, *overrides):
        return json.loads((self.folder(*overrides) / 'history.json').read_text())


@pytest.fixture(scope='module')
def runs(project):
    return Runs(project)


@pytest.fixture(scope='module')
def judged(runs, truth):
    """A run with a truth, finished: its overrides."""
    overrides = (f'unlearning.truth={truth[1]}', 'unlearning.families=[free,heldout]', 'unlearning.relative=0.003')
    runs.start(*overrides)
    return overrides


# -- real runs --------------------------------------------------------------------------------------------------------

def test_a_run_puts_what_the_functions_measure_into_the_history(runs, judged, truth, tmp_path):
    """The run is found by the truth, which names it; LDS, length and rise are those of a measurement by hand."""
    (metrics,) = runs.history(*judged)
    found = metrics['unlearn']
    assert set(found) == {*SONGS, 'lds', 'lds_heldout', 'lds_choosing', 'lds_reporting', 'linear'}
    assert all(math.isfinite(value) for value in found.values())
    recipe = unlearning_recipe('default', fisher='diagonal', relative=0.003)
    point = grid.measure(recipe, load_musicgen(runs.trained, 'cpu'), runs.trained, truth[0], tmp_path,
                         ['free', 'heldout'], linear=True)
    assert found['lds'] == pytest.approx(point.lds['free'].mean(), abs=1e-6)
    assert found['lds_heldout'] == pytest.approx(point.lds['heldout'].mean(), abs=1e-6)
    assert found['linear'] == pytest.approx(point.linear['free'].mean(), abs=1e-6)
    assert found['lr'] == pytest.approx(point.lr, rel=1e-4) and found['rise'] == pytest.approx(point.rise, abs=1e-5)
    assert found['relative'] == pytest.approx(0.003, rel=1e-3) and 1 <= found['rank'] <= 6
    assert 0 < found['frechet_before'] <= found['frechet_before_max'] and found['frechet'] > 0
    assert not (runs.folder(*judged) / 'checkpoint.th').exists()


def test_a_finished_run_does_nothing_and_a_stopped_one_takes_what_is_kept(runs, judged):
    history = runs.folder(*judged) / 'history.json'
    kept, aside = runs.trained / 'unlearning', runs.trained / 'aside'
    told = history.read_bytes(), history.stat().st_mtime_ns
    kept.rename(aside)
    again = runs.start(*judged)
    assert 'is finished' in again.stdout + again.stderr
    assert not kept.exists() and told == (history.read_bytes(), history.stat().st_mtime_ns)
    aside.rename(kept)
    files = {path: path.stat().st_mtime_ns for path in kept.rglob('*.safetensors')}
    before = json.loads(told[0])[0]['unlearn']
    history.unlink()  # as if it had been stopped just before its end
    runs.start(*judged)
    after = runs.history(*judged)[0]['unlearn']
    assert {path: path.stat().st_mtime_ns for path in kept.rglob('*.safetensors')} == files
    assert {**after, 'duration': 0} == {**before, 'duration': 0}


def test_without_a_truth_songs_alone_are_forgotten(runs):
    """By signature; the length of a step of the published lr is what its Fisher information makes of it."""
    overrides = (f'unlearning.of={runs.trained.name}', 'unlearning.lr=1e-6')
    runs.start(*overrides)
    found = runs.history(*overrides)[0]['unlearn']
    assert set(found) == SONGS
    assert found['lr'] == 1e-6 and found['relative'] > 0 and all(map(math.isfinite, found.values()))


@pytest.mark.parametrize('overrides, told', [
    (['unlearning.maks=none'], 'unlearning.maks'), (['unlearning.mask=all'], "Unlearning key 'mask'")])
def test_a_bad_key_ends_a_run_with_one_sentence(overrides, told, runs):
    done = runs.start(f'unlearning.of={runs.trained}', *overrides, check=False)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith('Error: ')]
    assert told in sentence and done.stderr.strip().splitlines()[-1] == sentence


def test_a_recipe_that_cannot_be_measured_ends_with_one_sentence_and_no_history(runs):
    overrides = (f'unlearning.of={runs.trained}', 'unlearning.layers=cross_attention_key_value', 'unlearning.lr=1')
    done = runs.start(*overrides, check=False)
    assert done.returncode == 2 and 'Traceback' not in done.stderr and 'cross_attention' in done.stderr
    assert not (runs.folder(*overrides) / 'history.json').exists()


# -- what is asked for ------------------------------------------------------------------------------------------------

def settings_of(runs, *overrides):
    cfg = train.main.get_xp([SOLVER, f'unlearning.of={runs.trained}', *overrides]).cfg
    inputs.check_inputs(cfg, runs.trained.parent / '00000000', runs.trained.parent)
    return read_settings(cfg, runs.trained.parent)


def test_every_key_of_a_recipe_is_in_the_configuration_and_empty_keeps_the_presets(runs):
    cfg = train.main.get_xp([SOLVER]).cfg
    assert set(UnlearningRecipe.model_fields) < set(cfg.unlearning)
    assert settings_of(runs).recipe == unlearning_recipe('default')
    assert settings_of(runs, 'unlearning.preset=published').recipe == unlearning_recipe('published')
    assert settings_of(runs, 'unlearning.lr=1e-6', 'unlearning.steps=3', 'unlearning.layers=M').recipe.hash == \
        unlearning_recipe('default', lr=1e-6, steps=3, layers='M').hash


@pytest.mark.parametrize('overrides, told', [
    (['unlearning.of=0badc0de'], 'there is no run 0badc0de'),
    (['unlearning.of=/nowhere'], 'is no dora run'),
    (['unlearning.of=null'], 'unlearning.of is empty'),
    (['unlearning.truth=/nowhere.safetensors'], 'unlearning.truth is /nowhere.safetensors, which is not there'),
    (['unlearning.preset=best'], "no unlearning recipe 'best'"),
    (['unlearning.lr=1', 'unlearning.relative=1'], 'lr and relative say the same thing'),
    (['unlearning.steps=0'], "Unlearning key 'steps'"),
    (['unlearning.families=[free,other]'], "unlearning.families names 'other'"),
    (['unlearning.families=[]'], 'unlearning.families is empty'),
    (['unlearning.targets=x'], 'unlearning.targets is .x., but must be a whole number'),
    (['unlearning.targets=0'], 'nothing to measure'),
    (['unlearning.generations=1'], 'needs 2 clips'),
    (['unlearning.embedding=ears'], 'unlearning.embedding'),
    (['unlearning.linear=maybe'], 'unlearning.linear'),
    (['execute_only=valid'], 'execute_only is valid'),
    (['continue_from=//sig/00000000'], 'continue_from'),
])
def test_bad_input_is_one_sentence(overrides, told, runs):
    with pytest.raises(LuminaError, match=told) as refused:
        settings_of(runs, *overrides)
    assert '\n' not in str(refused.value)


def test_a_diffusions_truth_names_its_run(runs, tmp_path):
    """Which is looked for where a MusicGen's is; a run of the other kind is refused, as is one that is not there."""
    dit, cfg = tiny_dit(), train.main.get_xp(['solver=lumina/dit_quickstart']).cfg
    path = DiTTruth(['song-0'], tiny_examples(dit, 2), ['free', 'heldout'], [], torch.zeros(0, 2, 4),
                    {'run': '0d1f0d1f'}).save(tmp_path / 'work' / 'dit_ground_truth.safetensors')
    empty = (f'unlearning.truth={path}', 'unlearning.of=')
    with pytest.raises(LuminaError, match='empty, and the ground truth is of run 0d1f0d1f, but there is no run 0d1f'):
        settings_of(runs, *empty)
    with pytest.raises(LuminaError, match='There is no run 0d1f0d1f below'):
        open_bench(path)
    folder = tmp_path / 'xps' / '0d1f0d1f'
    (folder / '.hydra').mkdir(parents=True)
    omegaconf.OmegaConf.save(cfg, folder / '.hydra' / 'config.yaml')
    found = settings_of(runs, *empty)
    assert found.of == folder and found.truth == path
    with pytest.raises(LuminaError, match='a MusicGen, but .* is the ground truth of a diffusion'):
        settings_of(runs, f'unlearning.truth={path}')


def test_a_run_of_unlearning_cannot_be_unlearnt_from(runs, judged):
    with pytest.raises(LuminaError, match='solver=lumina_unlearning; name the training'):
        settings_of(runs, f'unlearning.of={runs.folder(*judged)}')


def test_only_what_changes_a_result_changes_the_signature():
    base = train.main.get_xp([SOLVER]).sig
    for same in ('unlearning.name=mine', 'unlearning.out=/elsewhere', 'device=cpu', 'num_threads=7'):
        assert train.main.get_xp([SOLVER, same]).sig == base, same
    for other in ('unlearning.lr=1e-6', 'unlearning.truth=/x', 'unlearning.families=[heldout]', 'unlearning.targets=3',
                  'unlearning.generations=8', 'unlearning.linear=false', 'unlearning.preset=published', 'label=again'):
        assert train.main.get_xp([SOLVER, other]).sig != base, other


def test_paths_are_seen_from_where_dora_was_started(runs, monkeypatch):
    monkeypatch.chdir(runs.trained.parent)
    assert settings_of(runs, f'unlearning.of=./{runs.trained.name}', 'unlearning.out=there').out == \
        runs.trained.parent / 'there'


# -- the table --------------------------------------------------------------------------------------------------------

def test_the_table_shows_a_real_run_and_stands_unfinished_ones(runs, judged):
    explorer = UnlearningExplorer(lambda launcher: None)
    history = runs.history(*judged)
    shown, found = explorer.process_history(history), history[0]['unlearn']
    leaves = {(group.key, leaf.key) for group in explorer.get_grid_metrics() for leaf in group.groups}
    assert leaves == {(group, leaf) for group, values in shown.items() for leaf in values}
    assert shown['truth']['lds'] == found['lds'] and shown['frechet']['after'] == found['frechet']
    assert shown['step']['length'] == found['relative'] and shown['songs']['R'] == found['rank']
    lines = [shown, *(explorer.process_history(other) for other in ([], [{}], [{'other': {}}]))]
    table = treetable.treetable(lines, treetable.table(groups=explorer.get_grid_metrics()))
    assert f"{found['lds']:.3f}" in table and 'linear' in table
