"""Left-out groups: losses of known influence, methods that know it or nothing, and the command."""

import dataclasses

import numpy as np
import pytest
import torch

from lumina_plugin.errors import LuminaError
from lumina_plugin.validation.leave_out import agreement, chances, largest_losses, losses_without, source_groups
from lumina_plugin.validation.plan import Retrained
from lumina_plugin.validation.queries import Query
from lumina_plugin.validation.truth import GroundTruth

SONGS = [f's{i}' for i in range(12)]
ARTISTS = [SONGS[0:3], SONGS[3:6], SONGS[6:9]]
COMPOSITIONS = [SONGS[i:12:4] for i in range(3)]  # s3, s7 and s11 are in none that is left out


def plan(whole=3):
    groups = [*((f'artist:{i}', songs) for i, songs in enumerate(ARTISTS)),
              *((f'composition:{i}', songs) for i, songs in enumerate(COMPOSITIONS))]
    return [*(Retrained(f'whole-{k}', 'whole', tuple(SONGS), k) for k in range(whole)),
            *(Retrained(f'without-{name}', 'without', tuple(s for s in SONGS if s not in left), 10, name)
              for name, left in groups)]


def truth_of(influence, queries, noise=0., models=None, seed=0):
    """A truth whose losses fall by a query's influence [Q, N] for every song that a model knows."""
    models = plan() if models is None else models
    made = GroundTruth(SONGS, queries, models, torch.zeros(len(models), len(queries), 2, 1),
                       torch.ones(len(queries), 2, 1), {'run': 'r'})
    losses = 9 - made.members(range(len(models))) @ influence.T
    losses = losses + noise * np.random.default_rng(seed).normal(size=losses.shape)
    return dataclasses.replace(made, sums=torch.tensor(np.stack([losses, losses], -1))[..., None])


def queries_of(count, family='continued', source=True):
    return [Query(f'q{i}', family, torch.zeros(1, 4, dtype=torch.long), 2, SONGS[i % 12] if source else None)
            for i in range(count)]


@pytest.fixture
def known():
    influence = np.random.default_rng(0).uniform(size=(24, 12))
    influence[np.arange(24), np.arange(24) % 12] += 5  # a query's own source above all
    return influence, truth_of(influence, queries_of(24))


def test_a_loss_without_a_group_is_its_songs_influence(known):
    influence, truth = known
    losses = losses_without(truth, 'continued', True)
    assert losses.groups == [model.group for model in truth.models if model.kind == 'without']
    for group, songs in zip(losses.groups[:3], ARTISTS, strict=True):
        column = losses.groups.index(group)
        expected = influence[:, [SONGS.index(song) for song in songs]].sum(1)
        np.testing.assert_allclose(losses.delta[:, column], expected, rtol=1e-5)
    assert losses.noise == pytest.approx(0., abs=1e-6)
    query, group, most, _ = largest_losses(losses, 1)[0]
    assert most == pytest.approx(losses.delta.max())
    assert most == pytest.approx(losses.delta[losses.queries.index(query), losses.groups.index(group)])


def test_the_method_that_knows_agrees_and_its_opposite_does_not(known):
    influence, truth = known
    losses = losses_without(truth, 'continued', True)
    rows = agreement('continued', 'oracle', 'P', influence, losses)
    assert [(row.kind, row.groups) for row in rows] == [('artist', 3), ('composition', 3), ('all', 6)]
    for row in rows:
        assert [one.mean for one in row.measures.values()] == pytest.approx([1., 1., 1.])
    guessing = chances(losses)
    for row in agreement('continued', 'opposite', 'P', -influence, losses):
        assert row.measures['Spearman'].mean == pytest.approx(-1.) and row.measures['top-1'].mean == 0.
        assert row.measures['NDCG'].mean < guessing[row.kind]['NDCG'].low


def test_the_group_of_the_source_is_found_where_it_was_left_out(known):
    influence, truth = known
    losses = losses_without(truth, 'continued', True)
    for scores in (losses.delta, influence @ losses.members.T):
        artist, composition = source_groups('continued', 'oracle', 'P', scores, losses, SONGS)
        assert (artist.kind, artist.queries, artist.groups) == ('artist', 18, 3)
        assert (composition.kind, composition.queries) == ('composition', 18)
        assert artist.first.mean == composition.first.mean == artist.mean == composition.mean == 1.
    worst = source_groups('continued', 'opposite', 'P', -losses.delta, losses, SONGS)
    assert [(row.first.mean, row.mean) for row in worst] == [(0., 3.), (0., 3.)]


def test_noise_is_what_chance_makes_of_a_difference():
    """No song matters: the losses' differences have the standard deviation that is told."""
    truth = truth_of(np.zeros((150, 12)), queries_of(150), noise=.3, models=plan(whole=4))
    losses = losses_without(truth, 'continued', True)
    assert losses.noise == pytest.approx(.3 * np.sqrt(1 + 1 / 4), rel=.1)
    assert losses.delta.std() == pytest.approx(losses.noise, rel=.1)
    guessing = chances(losses)
    for row in agreement('continued', 'oracle', 'P', np.random.default_rng(1).normal(size=(150, 12)), losses):
        level = guessing[row.kind]
        for name, one in row.measures.items():
            assert one.low < level[name].high and one.high > level[name].low


def test_queries_without_a_source_have_no_source_group(known):
    truth = truth_of(known[0], queries_of(24, source=False))
    losses = losses_without(truth, 'continued', True)
    assert source_groups('continued', 'oracle', 'P', losses.delta, losses, SONGS) == []


def test_a_truth_without_the_models_is_refused():
    for models, words in ((plan()[:3], '0 models without a group'), (plan(whole=1), '1 of all songs')):
        truth = truth_of(np.zeros((2, 12)), queries_of(2), models=models)
        with pytest.raises(LuminaError, match=words):
            losses_without(truth, 'continued', True)


def test_the_command(project, tmp_path, capsys):
    """On a real run and real queries, with losses that the test makes."""
    from lumina_plugin.cli import main
    from lumina_plugin.validation.opened import Continued, open_run
    opened = open_run(project.folder(), tmp_path)
    ids = opened.ids
    groups = [*((f'artist:{i}', ids[i::2]) for i in range(2)), *((f'composition:{i}', ids[i::3]) for i in range(3))]
    models = [*(Retrained(f'whole-{k}', 'whole', tuple(ids), k) for k in range(2)),
              *(Retrained(name, 'without', tuple(s for s in ids if s not in left), 9, name) for name, left in groups)]
    queries = [*opened.free(2), *opened.continued(Continued(1., count=2)), *opened.songs]
    generator = torch.Generator().manual_seed(0)
    truth = GroundTruth(ids, queries, models, torch.rand(len(models), len(queries), 2, 4, generator=generator),
                        torch.ones(len(queries), 2, 4),
                        {'run': opened.run.name, 'catalogue': opened.catalogue.hash})
    truth.save(tmp_path / 'truth' / 'ground_truth.safetensors')
    main(['validate', 'leave-out', '--out', str(tmp_path), '--model', str(opened.run)])
    printed = capsys.readouterr().out
    for words in ('## Free generations', '## Continuations, prompt masked', '| default | P + M |', '| *guessing* |',
                  '| LPIPS | activations |', '| RPS | output linears |', '| RPS, fitted to codes | output linears |',
                  '| retraining |  | artist | 2 | 2 |', '## Training songs'):
        assert words in printed
    assert '## Held-out songs' not in printed  # there are none
    assert (tmp_path / 'leave-out' / 'leave-out.png').read_bytes().startswith(b'\x89PNG')
    main(['unlearn', 'compare', '--out', str(tmp_path / 'x'), '--model', str(opened.run), '--top', '2', '--truth',
          str(tmp_path / 'truth' / 'ground_truth.safetensors')])
    printed = capsys.readouterr().out  # no halves, so no LDS
    assert '| method | leave out: Spearman | leave out: NDCG | leave out: top-1 |' in printed
    truth = dataclasses.replace(truth, facts={**truth.facts, 'catalogue': 'other'})
    truth.save(tmp_path / 'truth' / 'ground_truth.safetensors')
    with pytest.raises(SystemExit) as stop:
        main(['validate', 'leave-out', '--out', str(tmp_path), '--model', str(opened.run)])
    assert stop.value.code == 2 and 'other songs' in capsys.readouterr().err
