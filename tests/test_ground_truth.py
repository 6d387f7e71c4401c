"""Retraining on a real run: the same training as the run's own, resumable, shared among processes."""

import shutil

import pytest
import torch

from lumina_plugin.catalogue import Catalogue
from lumina_plugin.catalogue_pass import run_songs
from lumina_plugin.errors import LuminaError
from lumina_plugin.validation import ground_truth
from lumina_plugin.validation.ground_truth import make_ground_truth
from lumina_plugin.validation.losses import query_losses
from lumina_plugin.validation.plan import Retrained, plan_models
from lumina_plugin.validation.retraining import Retraining
from lumina_plugin.validation.truth import GroundTruth


@pytest.fixture(scope='module')
def run(project):
    return project.folder()


def songs_of(run):
    return tuple(track.id for track in run_songs(run))


def test_retraining_on_all_songs_with_the_runs_seed_is_the_runs_own_training(run, tmp_path):
    seed = 2036  # of config/config.yaml
    lm = Retraining(run, run_songs(run), tmp_path).train(Retrained('same', 'whole', songs_of(run), seed))
    own = torch.load(run / 'checkpoint.th', weights_only=False)['model']
    for name, weight in lm.state_dict().items():
        assert torch.equal(weight, own[name]), name
    other = Retraining(run, run_songs(run), tmp_path).train(Retrained('other', 'whole', songs_of(run), seed + 1))
    assert any(not torch.equal(weight, own[name]) for name, weight in other.state_dict().items())


def test_a_part_is_trained_on_nothing_else_for_as_many_epochs(run, tmp_path):
    retraining = Retraining(run, run_songs(run), tmp_path)
    half = songs_of(run)[:3]
    model = Retrained('half', 'half', half, 1)
    cfg = retraining._config(model)
    assert [track.id for track in Catalogue.from_manifest(cfg.datasource.train)] == list(half)
    seconds = {track.id: track.duration for track in run_songs(run)}
    expected = max(1, round(2 * sum(seconds[song] for song in half) / sum(seconds.values())))
    assert (cfg.optim.epochs, cfg.optim.updates_per_epoch, cfg.seed) == (4, expected, 1)
    with pytest.raises(LuminaError, match='stranger'):
        retraining.train(Retrained('wrong', 'half', ('stranger',), 1))


@pytest.fixture(scope='module')
def plan(run):
    return plan_models(run_songs(run), halves=2, seeds=1, whole=1, groups=0)


@pytest.fixture(scope='module')
def made(run, project, plan, tmp_path_factory):
    work = tmp_path_factory.mktemp('truth')
    truth = make_ground_truth(run, project.manifest, work, jobs=1, plan=plan, each=2, seconds=1.)
    return work, truth


def test_the_truth_holds_every_models_losses(made, run, plan):
    work, truth = made
    assert [model.name for model in truth.models] == [model.name for model in plan]
    assert truth.sums.shape[:3] == (3, len(truth.queries), 2)
    lm = Retraining(run, run_songs(run), work / 'again').train(plan[1])
    sums, counts = query_losses(lm, truth.queries)
    torch.testing.assert_close(truth.sums[1], sums.float(), rtol=1e-5, atol=1e-4)
    assert torch.equal(truth.counts.long(), counts.long())


def test_what_is_finished_is_not_trained_again(made, run, project, plan, monkeypatch):
    work, truth = made
    monkeypatch.setattr(ground_truth, '_train', lambda *_: pytest.fail("trained again"))
    again = make_ground_truth(run, project.manifest, work, plan=plan, each=2, seconds=1.)
    assert torch.equal(again.sums, truth.sums)


def test_parts_leave_the_others_models_alone(made, run, project, plan, tmp_path, monkeypatch):
    work, truth = made
    shutil.copytree(work, tmp_path / 'truth')
    for name in ('half-000-a', 'half-001-a'):
        (tmp_path / 'truth' / 'models' / f'{name}.safetensors').unlink()
    asked = []

    def train(run, work, todo, jobs):
        asked.extend(model.name for model in todo)
        for model in todo:
            ground_truth.train_one(str(run), str(work), model, 1)

    monkeypatch.setattr(ground_truth, '_train', train)
    ask = dict(plan=plan, each=2, seconds=1.)
    assert make_ground_truth(run, project.manifest, tmp_path / 'truth', part=(1, 3), **ask) is None
    assert asked == ['half-001-a']
    whole = make_ground_truth(run, project.manifest, tmp_path / 'truth', part=(0, 3), **ask)
    assert asked == ['half-001-a', 'half-000-a'] and torch.allclose(whole.sums, truth.sums, rtol=1e-4)


def test_models_of_another_plan_are_refused(made, run, project, plan, tmp_path):
    work, _ = made
    shutil.copytree(work, tmp_path / 'truth')
    other = [Retrained(plan[0].name, 'half', plan[0].songs, 99), *plan[1:]]
    with pytest.raises(LuminaError, match='another plan'):
        make_ground_truth(run, project.manifest, tmp_path / 'truth', plan=other, each=2, seconds=1.)
    (tmp_path / 'truth' / 'queries.safetensors').unlink()  # other queries are made: kept losses are not theirs
    with pytest.raises(LuminaError, match='other queries'):
        make_ground_truth(run, project.manifest, tmp_path / 'truth', plan=plan, each=3, seconds=1.)


def test_queries_of_another_run_are_refused(made, run, project, plan, tmp_path):
    work, truth = made
    shutil.copytree(work, tmp_path / 'truth')
    known = GroundTruth.load(tmp_path / 'truth' / 'queries.safetensors')
    known.facts['run'] = 'another'
    known.save(tmp_path / 'truth' / 'queries.safetensors')
    with pytest.raises(LuminaError, match='belongs to run another'):
        make_ground_truth(run, project.manifest, tmp_path / 'truth', plan=plan, each=2, seconds=1.)
