"""Ground truth by retraining: the plan, the queries, the losses, and what is kept of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lumina_plugin.catalogue import Catalogue, Track
from lumina_plugin.errors import LuminaError
from lumina_plugin.validation.lds import HalfLosses, half_losses, interval, lds, own_lds, spearman
from lumina_plugin.validation.losses import mean_losses, query_losses
from lumina_plugin.validation.plan import Retrained, plan_models
from lumina_plugin.validation.queries import Query, Sampling, continuations, free_generations
from lumina_plugin.validation.summary import markdown, save, summarise
from lumina_plugin.validation.truth import GroundTruth

from .tiny import build_lm


def catalogue(songs: int = 12, artists: int = 3, compositions: int = 4) -> Catalogue:
    return Catalogue([Track(f's{i}', None, 10. + i, 16000, artist=f'artist {i % artists}',
                            composition_id=f'c{i % compositions}') for i in range(songs)])


def truth(models, queries=2, codebooks=2, seed=0) -> GroundTruth:
    generator = torch.Generator().manual_seed(seed)
    made = [Query(f'q{i}', 'free', torch.randint(0, 16, (codebooks, 5 + i), generator=generator), i)
            for i in range(queries)]
    counts = torch.tensor([[[i] * codebooks, [5] * codebooks] for i in range(queries)])  # the first has no prompt
    sums = torch.rand(len(models), queries, 2, codebooks, generator=generator) * (counts > 0)
    return GroundTruth([f's{i}' for i in range(12)], made, models, sums, counts, {'run': 'r'})


# -- plan -------------------------------------------------------------------------------------------------------------

@given(st.integers(4, 40), st.integers(2, 20), st.integers(1, 4))
def test_halves_are_halves_and_seeds_share_their_songs(songs, halves, seeds):
    plan = plan_models(catalogue(songs), halves, seeds, whole=1, groups=2)
    found = [model for model in plan if model.kind == 'half']
    assert len(found) == halves * seeds and all(len(model.songs) == songs // 2 for model in found)
    for group in {model.group for model in found}:
        same = [model for model in found if model.group == group]
        assert len(same) == seeds and len({model.songs for model in same}) == 1
    assert len({model.seed for model in plan}) == len({model.name for model in plan}) == len(plan)


def test_a_longer_plan_keeps_the_models_of_a_shorter_one():
    short, long = (plan_models(catalogue(), 5, seeds, whole, groups) for seeds, whole, groups in ((1, 1, 1), (4, 3, 3)))
    assert {(m.name, m.songs, m.seed) for m in short} <= {(m.name, m.songs, m.seed) for m in long}


def test_groups_are_left_out_whole():
    songs = catalogue()
    without = {model.group: set(model.songs) for model in plan_models(songs, groups=8) if model.kind == 'without'}
    assert set(without) == {*(f'artist:artist {i}' for i in range(3)), *(f'composition:c{i}' for i in range(4))}
    assert without['artist:artist 1'] == {track.id for track in songs if track.artist != 'artist 1'}


@pytest.mark.parametrize('numbers, word', [((1, 1), 'halves'), ((4, 0), 'seeds'), ((4, 30), 'seeds')])
def test_numbers_that_cannot_be_planned(numbers, word):
    with pytest.raises(LuminaError, match=word):
        plan_models(catalogue(), *numbers)


def test_too_few_songs():
    with pytest.raises(LuminaError, match='at least 4'):
        plan_models(catalogue(3))


# -- queries and losses -----------------------------------------------------------------------------------------------

def test_generations_are_repeatable_and_keep_their_prompts():
    lm = build_lm()
    songs = [Query(f's{i}', 'songs', torch.randint(0, lm.card, (lm.n_q, 12)), 0, f's{i}') for i in range(3)]
    for make in (lambda: free_generations(lm, 3, 10), lambda: continuations(lm, songs, 4, 10)):
        first, second = make(), make()
        assert [q.id for q in first] == [q.id for q in second] and len(first) == 3
        assert all(torch.equal(a.codes, b.codes) and a.codes.shape == (lm.n_q, 10) for a, b in zip(first, second,
                                                                                                   strict=True))
    for query, song in zip(continuations(lm, songs, 4, 10), songs, strict=True):
        assert torch.equal(query.codes[:, :4], song.codes[:, :4]) and query.source == song.source
    other = free_generations(lm, 3, 10, Sampling(seed=1))
    assert not all(torch.equal(a.codes, b.codes) for a, b in zip(free_generations(lm, 3, 10), other, strict=True))


def test_losses_are_those_of_audiocraft_one_by_one():
    lm = build_lm().eval()
    torch.manual_seed(3)
    kinds = [(9, 0, None), (12, 3, 'a waltz'), (9, 2, None), (12, 0, None)]
    queries = [Query(f'q{i}', 'free', torch.randint(0, lm.card, (lm.n_q, frames)), prompt, text=text)
               for i, (frames, prompt, text) in enumerate(kinds)]
    sums, counts = query_losses(lm, queries, batch_size=2)
    for query, total, number in zip(queries, sums, counts, strict=True):
        with torch.no_grad():
            example = query.example(lm, masked=False)
            out = lm.compute_predictions(query.codes[None], [example.attributes])
        for masked in (False, True):
            per_codebook = []
            for k in range(lm.n_q):
                valid = out.mask[0, k] & (torch.arange(query.codes.shape[-1]) >= (query.prompt_frames if masked else 0))
                per_codebook.append(torch.nn.functional.cross_entropy(out.logits[0, k][valid], query.codes[k][valid]))
            expected = torch.stack(per_codebook).mean()
            torch.testing.assert_close(mean_losses(total, number, masked).float(), expected, rtol=1e-5, atol=1e-6)


# -- what is kept -----------------------------------------------------------------------------------------------------

def test_a_truth_comes_back_as_it_was(tmp_path):
    models = plan_models(catalogue(), 4, 2, whole=1, groups=1)
    made = truth(models)
    back = GroundTruth.load(made.save(tmp_path / 'truth.safetensors'))
    assert back.songs == made.songs and back.models == models and back.facts == made.facts
    assert torch.equal(back.sums, made.sums) and torch.equal(back.counts.long(), made.counts.long())
    for one, other in zip(back.queries, made.queries, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert dataclasses.replace(one, codes=other.codes) == other
    members = back.members(back.rows('half'))
    assert members.shape == (8, 12) and (members.sum(1) == 6).all()


def test_a_file_that_is_no_truth(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(b'nothing of the kind')
    for name in ('x.safetensors', 'missing.safetensors'):
        with pytest.raises(LuminaError, match='ground-truth'):
            GroundTruth.load(tmp_path / name)


# -- LDS --------------------------------------------------------------------------------------------------------------

def test_lds_of_the_influence_that_made_the_losses_is_one():
    rng = np.random.default_rng(0)
    members = (rng.random((30, 12)) < .5).astype(float)
    influence = rng.normal(size=(5, 12))
    halves = HalfLosses(members, -(members @ influence.T), np.ones(5))
    np.testing.assert_allclose(lds(influence, halves), 1.)
    np.testing.assert_allclose(lds(-influence, halves), -1.)
    np.testing.assert_allclose(lds(np.zeros((5, 12)), halves), 0.)


@given(st.integers(0, 10_000))
def test_spearman_is_scipys(seed):
    from scipy import stats
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 5, (12, 3)).astype(float), rng.normal(size=(12, 3))
    for column in range(3):
        expected = stats.spearmanr(first[:, column], second[:, column])[0]
        assert spearman(first, second)[column] == pytest.approx(0. if np.isnan(expected) else expected)


def test_the_ceiling_is_what_the_true_expectation_reaches():
    """Losses = signal + noise of known sizes: the expected losses' own LDS agrees with the ceiling from two seeds."""
    rng = np.random.default_rng(1)
    plan = plan_models(catalogue(), 400, 3, whole=0, groups=0)
    made = truth(plan, queries=8, codebooks=1)
    members = made.members(made.rows('half'))
    signal = members @ rng.normal(size=(12, 8))
    signal = (signal - signal.mean(0)) / signal.std(0)
    noisy = 50 + signal + rng.normal(size=signal.shape)
    sums = torch.tensor(np.stack([np.zeros_like(noisy), noisy], -1))[..., None]
    made = dataclasses.replace(made, counts=torch.ones(8, 2, 1), sums=sums)
    halves = half_losses(made, range(8), masked=True)
    reached = spearman(signal[:400], halves.losses)
    assert halves.ceiling[0] == pytest.approx(np.sqrt(.75), abs=.03)
    assert reached.mean() == pytest.approx(halves.ceiling[0], abs=.03)


def test_lds_needs_halves():
    with pytest.raises(LuminaError, match='0 halves'):
        half_losses(truth([Retrained('whole-00', 'whole', ('s0',), 1)]), [0], True)


def test_an_interval_holds_its_mean():
    found = interval(np.arange(20.))
    assert found.low < found.mean == 9.5 < found.high and interval([1., 1.]).low == 1.


# -- the one that is kept beside the code ----------------------------------------------------------------------------

def test_the_kept_truth_is_that_of_the_suite():
    """With it, nobody needs to retrain to score a method."""
    kept = GroundTruth.load(Path(__file__).parent.parent / 'benchmarks' / 'ground_truth.safetensors')
    found = summarise(kept)
    assert (found.songs, found.halves, found.seeds, found.without) == (97, 48, 3, 16)
    assert {title: one.queries for title, one in found.families.items()} == dict.fromkeys(found.families, 16)
    assert found.known < found.unknown and all(one.ceiling > .8 for one in found.families.values())
    assert found.families['free generations'].between_seeds < found.families['free generations'].between_halves
    text = markdown(found)
    assert '48 random halves of 97 songs with 3 seeds each' in text and text.count('\n|') == 6


def test_a_summary_of_one_seed_knows_no_ceiling(tmp_path):
    made = truth(plan_models(catalogue(), 4, 1, whole=1, groups=1))
    songs = [dataclasses.replace(query, family='songs', source=f's{place}') for place, query in enumerate(made.queries)]
    families = [dataclasses.replace(query, family=family) for family in ('free', 'continued', 'heldout')
                for query in made.queries[:1]]
    many = [made.queries.index(query) for query in made.queries] + [0, 0, 0]
    made = dataclasses.replace(made, queries=songs + families, sums=made.sums[:, many], counts=made.counts[many])
    found = summarise(made)
    assert np.isnan(found.families['held-out songs'].ceiling) and found.seeds == 1
    folder = save(tmp_path, made, found)
    assert json.loads((folder / 'ground-truth.json').read_text())['families']['held-out songs']['ceiling'] is None
    assert (folder / 'ground-truth.png').read_bytes().startswith(b'\x89PNG')
    assert '| – |' in (folder / 'ground-truth.md').read_text()


# -- what is each query's own -----------------------------------------------------------------------------------------

def _world(seed, queries=5, songs=12, halves=40):
    """Losses of a world where songs shape queries, and some songs help all of them far more than that."""
    rng = np.random.default_rng(seed)
    members = np.stack([rng.permutation([0.] * (songs // 2) + [1.] * (songs // 2)) for _ in range(halves)])
    own, common = rng.normal(size=(queries, songs)), 10 * rng.normal(size=songs)
    return own, common, HalfLosses(members, -(members @ (own + common).T), np.full(queries, np.nan))


def test_what_helps_all_queries_is_no_querys_own():
    own, common, halves = _world(0)
    unseen = np.tile(common, (len(own), 1))
    assert lds(unseen, halves).mean() > .95 and (own_lds(unseen, halves) == 0).all()
    assert lds(own, halves).mean() < .5  # what is drowned by the common part
    assert own_lds(own + common, halves).min() > .999


def test_two_queries_are_each_others_opposite():
    own, _, halves = _world(1, queries=2)
    foretold, said = halves.members @ own.T, -halves.losses
    unit = [(x - x.mean(0)) / x.std(0) for x in (foretold, said)]
    wanted = stats.spearmanr(unit[0][:, 0] - unit[0][:, 1], unit[1][:, 0] - unit[1][:, 1]).statistic
    np.testing.assert_allclose(own_lds(own, halves), [wanted, wanted], atol=1e-6)


@given(seed=st.integers(0, 50), scale=st.sampled_from([1e-6, .5, 1e6]))
def test_own_lds_depends_on_no_querys_scale(seed, scale):
    own, common, halves = _world(seed)
    scores = own + common
    scaled = scores * np.array([scale, 1., 1., 1., 1.])[:, None] + 3.
    np.testing.assert_allclose(own_lds(scaled, halves), own_lds(scores, halves), atol=1e-3)
