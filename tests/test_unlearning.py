"""Unlearning against what is written out by hand: autograd, the printed steps, dense algebra."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin.channels import Block
from lumina_plugin.conditions import attributes_for
from lumina_plugin.errors import LuminaError
from lumina_plugin.gradients import Example, GradientModel
from lumina_plugin.recipe import get_recipe
from lumina_plugin.unlearning import fisher as module
from lumina_plugin.unlearning.attribute import shortlists
from lumina_plugin.unlearning.fisher import Diagonal, Identity, adam_fisher, diagonal_fisher, kronecker_fisher
from lumina_plugin.unlearning.masks import Piece
from lumina_plugin.unlearning.musicgen import MusicGenSubject
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.unlearning.scoring import Unlearner
from lumina_plugin.unlearning.sketches import Sketcher, Sketches, half, load_sketches, save_sketches
from lumina_plugin.unlearning.step import forget, lent_to, norm

from .tiny import build_lm


def learner_of(lm, layers='all', objective='cross_entropy', **kwargs):
    return GradientModel(lm, get_recipe('default', objective=objective, channels={'layers': [layers]}), **kwargs)


def autograd_loss(lm, piece):
    """The loss of a song, written with audiocraft's own `compute_predictions` where nothing is padded."""
    total, weight = 0., 0.
    for example in piece.examples:
        codes = example.codes[None, :, :example.stop]
        out = lm.compute_predictions(codes, [example.attributes])
        counted = torch.ones(codes.shape[-1], dtype=torch.bool) if example.counted is None else example.counted
        parts = []
        for k in range(codes.shape[1]):
            valid = out.mask[0, k] & counted[:codes.shape[-1]]
            if valid.any():
                parts.append(torch.nn.functional.cross_entropy(out.logits[0, k][valid], codes[0, k][valid]))
        total, weight = total + example.weight * sum(parts) / len(parts), weight + example.weight
    return total / weight


def unpadded(lm, count, frames=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Piece(f'song-{i}', [Example(torch.randint(0, lm.card, (lm.n_q, frames), generator=generator), 0, frames,
                                        attributes_for(lm, 'slow waltz'))]) for i in range(count)]


@pytest.fixture
def lm():
    return build_lm().eval()


@pytest.fixture
def songs(lm):
    return unpadded(lm, 6)


def gradients_by_autograd(lm, piece, names):
    parameters = dict(lm.named_parameters())
    return dict(zip(names, torch.autograd.grad(autograd_loss(lm, piece), [parameters[n] for n in names]), strict=True))


# -- Fisher information -----------------------------------------------------------------------------------------------

def test_the_diagonal_is_the_mean_of_squared_gradients(lm, songs):
    learner = learner_of(lm)
    found = diagonal_fisher(learner, songs)
    by_hand = [gradients_by_autograd(lm, song, list(learner.blocks)) for song in songs]
    for name in learner.blocks:
        torch.testing.assert_close(found.values[name], sum(one[name] ** 2 for one in by_hand) / len(songs),
                                   rtol=1e-4, atol=1e-9)


def test_kronecker_values_are_squares_in_the_eigenbasis(lm, songs):
    learner = learner_of(lm, 'output_linears')
    found = kronecker_fisher(learner, songs)
    for name in learner.blocks:
        inputs, outputs = found.inputs[name], found.outputs[name]
        torch.testing.assert_close(inputs.T @ inputs, torch.eye(len(inputs)), rtol=0, atol=1e-5)
        turned = [outputs.T @ gradients_by_autograd(lm, song, [name])[name] @ inputs for song in songs]
        torch.testing.assert_close(found.values[name], sum(one ** 2 for one in turned) / len(songs),
                                   rtol=1e-3, atol=1e-8)


def test_a_kronecker_step_solves_the_dense_system(lm, songs):
    learner = learner_of(lm, r'linears\.0\.weight')
    found = kronecker_fisher(learner, songs)
    name, = learner.blocks
    gradient = torch.randn(learner.weight(name).shape)
    step = found.step({name: gradient}, damping=0.3, power=1.)[name]
    basis = torch.kron(found.outputs[name].contiguous(), found.inputs[name].contiguous()).double()  # rows: [o * i]
    dense = basis @ torch.diag(found.values[name].flatten().double() + 0.3 * found.mean) @ basis.T
    torch.testing.assert_close(torch.linalg.solve(dense, gradient.flatten().double()), step.flatten().double(),
                               rtol=1e-3, atol=1e-4)


def test_kronecker_knows_the_fisher_better_than_a_diagonal(lm, songs):
    """In a rotated basis a diagonal matrix can only come closer: that is what the basis is for (George et al. 2018)."""
    learner = learner_of(lm, r'linears\.0\.weight')
    name, = learner.blocks
    rows = torch.stack([gradients_by_autograd(lm, song, [name])[name].flatten() for song in songs]).double()
    full = rows.T @ rows / len(rows)
    diagonal, kronecker = diagonal_fisher(learner, songs), kronecker_fisher(learner, songs)
    basis = torch.kron(kronecker.outputs[name].contiguous(), kronecker.inputs[name].contiguous()).double()
    near = torch.norm(full - basis @ torch.diag(kronecker.values[name].flatten().double()) @ basis.T)
    far = torch.norm(full - torch.diag(diagonal.values[name].flatten().double()))
    assert near < far


@settings(max_examples=20, deadline=None)
@given(power=st.sampled_from([0., 0.5, 1.]), damping=st.floats(1e-3, 10), seed=st.integers(0, 99))
def test_a_diagonal_step_divides(power, damping, seed):
    torch.manual_seed(seed)
    values, gradient = {'w': torch.rand(3, 4)}, {'w': torch.randn(3, 4)}
    found = Diagonal(values).step(gradient, damping, power)['w']
    expected = gradient['w'] / (values['w'] + damping * values['w'].mean()) ** power
    torch.testing.assert_close(found, expected)


def test_layers_that_are_not_covered_are_refused(lm, songs):
    found = diagonal_fisher(learner_of(lm, 'output_linears'), songs)
    with pytest.raises(LuminaError, match='does not cover'):
        found.step({'transformer.layers.0.linear1.weight': torch.zeros(2, 2)}, 0.1, 1.)


def test_adams_moments_are_taken_by_name(lm):
    learner = learner_of(lm, 'self_attention')
    moments = {name: torch.rand(p.shape) for name, p in lm.named_parameters()}
    found = adam_fisher(learner, moments)
    for name, block in learner.blocks.items():
        assert torch.equal(found.values[name], moments[block.parameter])
    with pytest.raises(LuminaError, match='knows no'):
        adam_fisher(learner, {})


# -- the step ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('steps', [1, 3])
def test_steps_are_the_printed_ones(lm, songs, steps):
    """θ ← θ + lr·[1/N·(F + damping)⁻¹∇L(query, θ) − (θ − θ0)], with gradients and loss by autograd."""
    learner = learner_of(lm, 'output_linears')
    fisher = diagonal_fisher(learner, songs)
    recipe = unlearning_recipe('published', lr=0.2, steps=steps, damping=0.5)
    query = unpadded(lm, 1, seed=7)[0]
    found = forget(learner, fisher, query, recipe, len(songs))
    moved = copy.deepcopy(lm)
    start = {name: dict(lm.named_parameters())[name].detach() for name in learner.blocks}
    parameters = dict(moved.named_parameters())
    for _ in range(steps):
        gradient = gradients_by_autograd(moved, query, list(start))
        with torch.no_grad():
            for name, theta0 in start.items():
                pull = parameters[name] - theta0
                push = gradient[name] / (fisher.values[name] + 0.5 * fisher.mean) / len(songs)
                parameters[name].add_(0.2 * (push - pull))
    for name, theta0 in start.items():
        torch.testing.assert_close(found.offsets[name], (parameters[name] - theta0).detach(), rtol=1e-3, atol=1e-6)
    assert found.before == pytest.approx(float(autograd_loss(lm, query)), abs=1e-5)
    assert found.after == pytest.approx(float(autograd_loss(moved, query)), abs=1e-4)
    assert found.after > found.before


def test_a_relative_length_is_reached(lm, songs):
    learner = learner_of(lm)
    recipe = unlearning_recipe('default', relative=1e-3, fisher='diagonal')
    found = forget(learner, diagonal_fisher(learner, songs), songs[0], recipe, len(songs))
    assert found.relative == pytest.approx(1e-3, rel=1e-4)
    assert found.relative == pytest.approx(norm(found.offsets) / norm({n: learner.weight(n) for n in learner.blocks}))


def test_a_step_too_far_names_one_that_is_not(lm, songs):
    learner = learner_of(lm)
    with pytest.raises(LuminaError, match='not finite; the largest tried that does not is lr') as refused:
        forget(learner, Identity(learner.blocks), songs[0], unlearning_recipe('default', fisher='identity', lr=1e38), 6)
    named = float(str(refused.value).split('is lr ')[1].split(':')[0])
    fine = forget(learner, Identity(learner.blocks), songs[0],
                  unlearning_recipe('default', fisher='identity', lr=named * 0.999), 6)
    assert math.isfinite(fine.after)


def test_margins_are_driven_down(lm, songs):
    learner = learner_of(lm, objective='margin')
    found = forget(learner, Identity(learner.blocks), songs[0],
                   unlearning_recipe('default', fisher='identity', objective='margin', relative=1e-3), 6)
    assert found.after > found.before  # losses both: minus the margin


def test_the_model_is_never_touched(lm, songs):
    state = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    learner = learner_of(lm)
    recipe = unlearning_recipe('default', fisher='diagonal')
    Unlearner(learner, diagonal_fisher(learner, songs), songs, recipe).scores(songs[:2])
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.state_dict().items())
    assert all(p.grad is None for p in lm.parameters())


@pytest.mark.parametrize('fails', [False, True])
def test_a_lent_model_is_put_back_to_the_bit(lm, songs, fails):
    state = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    learner = learner_of(lm)
    gone = forget(learner, Identity(learner.blocks), songs[0], unlearning_recipe('default', fisher='identity'), 6)
    try:
        with lent_to(lm, learner, gone.offsets):
            assert float(autograd_loss(lm, songs[0])) == pytest.approx(gone.after, abs=1e-4)
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.state_dict().items())


def test_keys_and_values_alone_move_two_thirds_of_a_matrix():
    lm = build_lm(fuse='cross').eval()
    learner = learner_of(lm, 'cross_attention_key_value')
    songs = unpadded(lm, 3)
    gone = forget(learner, diagonal_fisher(learner, songs), songs[0],
                  unlearning_recipe('default', fisher='diagonal', layers='cross_attention_key_value'), 3)
    with lent_to(lm, learner, gone.offsets):
        after = {name: p.detach().clone() for name, p in lm.named_parameters()}
    for name, p in lm.named_parameters():
        if name.endswith('cross_attention.in_proj_weight'):
            third = len(p) // 3
            assert torch.equal(p[:third], after[name][:third]) and not torch.equal(p[third:], after[name][third:])
        else:
            assert torch.equal(p, after[name]), name


# -- scores -----------------------------------------------------------------------------------------------------------

def test_a_score_is_the_rise_of_the_songs_loss(lm, songs):
    learner, recipe = learner_of(lm), unlearning_recipe('default', fisher='diagonal')
    unlearner = Unlearner(learner, diagonal_fisher(learner, songs), songs, recipe)
    query = unpadded(lm, 1, seed=5)[0]
    found = unlearner.scores([query])
    gone = unlearner.forget(query)
    with lent_to(lm, learner, gone.offsets):
        after = [float(autograd_loss(lm, song)) for song in songs]
    expected = np.array(after) - [float(autograd_loss(lm, song)) for song in songs]
    np.testing.assert_allclose(found.scores[0], expected, atol=1e-5)


def test_the_linearisation_is_where_small_steps_go(lm, songs):
    learner, recipe = learner_of(lm), unlearning_recipe('default', fisher='diagonal', relative=1e-3)
    unlearner = Unlearner(learner, diagonal_fisher(learner, songs), songs, recipe)
    flat, small = unlearner.linearised(songs[:2]), unlearner.scores(songs[:2]).scores
    np.testing.assert_allclose(flat, small, rtol=0.05, atol=2e-6)


def test_queries_together_are_queries_alone(lm, songs, monkeypatch):
    learner, recipe = learner_of(lm), unlearning_recipe('default', fisher='diagonal', steps=2)
    unlearner = Unlearner(learner, diagonal_fisher(learner, songs), songs, recipe)
    together = unlearner.scores(songs[:3]).scores
    monkeypatch.setattr('lumina_plugin.unlearning.scoring.MODELS_BYTES', 1)
    np.testing.assert_array_equal(together, unlearner.scores(songs[:3]).scores)


def test_a_shortlist_has_the_scores_of_the_whole(lm, songs):
    learner, recipe = learner_of(lm), unlearning_recipe('default', fisher='diagonal')
    fisher = diagonal_fisher(learner, songs)
    whole = Unlearner(learner, fisher, songs, recipe).scores(songs[:2]).scores
    for known in (False, True):
        unlearner = Unlearner(learner, fisher, songs, recipe)
        if known:
            unlearner.before()
        short = unlearner.scores(songs[:2], [[0, 4], [5, 1]]).scores
        assert np.isnan(short[0, [1, 2, 3, 5]]).all() and np.isnan(short[1, [0, 2, 3, 4]]).all()
        np.testing.assert_allclose(short[0, [0, 4]], whole[0, [0, 4]], atol=1e-6)
        np.testing.assert_allclose(short[1, [5, 1]], whole[1, [5, 1]], atol=1e-6)


def test_other_readings_are_of_the_same_step(lm, songs):
    learner = learner_of(lm)
    fisher = diagonal_fisher(learner, songs)
    one = Unlearner(learner, fisher, songs, unlearning_recipe('default', fisher='diagonal')).scores(songs[:1])
    other = Unlearner(learner, fisher, songs, unlearning_recipe('default', fisher='diagonal', reading='margin')
                      ).scores(songs[:1])
    assert one.lr == other.lr and not np.allclose(one.scores, other.scores)
    assert other.scores[0, 0] > 0  # the song that was forgotten lost its margin, too


def test_a_song_forgets_itself_first(lm):
    """On a model that has learnt its songs, forgetting one hurts that one most."""
    songs = unpadded(lm, 5)
    optimizer = torch.optim.Adam(lm.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(autograd_loss(lm, song) for song in songs).backward()
        optimizer.step()
    lm.zero_grad()
    learner = learner_of(lm)
    for fisher in (diagonal_fisher(learner, songs), kronecker_fisher(learner, songs), Identity(learner.blocks)):
        found = Unlearner(learner, fisher, songs, unlearning_recipe('default')).scores(songs)
        assert (found.scores.argmax(1) == np.arange(5)).all(), fisher.kind


# -- sketches ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [diagonal_fisher, kronecker_fisher])
def test_sketches_rank_songs_as_the_linearisation_does(lm, songs, make):
    learner, recipe = learner_of(lm), unlearning_recipe('default', fisher='diagonal')
    fisher, queries = make(learner, songs), unpadded(lm, 2, seed=5)
    flat = Unlearner(learner, fisher, songs, recipe).linearised(queries)  # [2, 6]
    sketcher = Sketcher(learner, fisher, recipe, dim=1 << 16)
    found = Sketches(sketcher, half(sketcher(songs))).scores(queries)
    for row, expected in zip(found, flat, strict=True):  # but for one factor, and the signs' noise
        factor = row @ expected / (row @ row)
        assert factor > 0
        assert np.abs(factor * row - expected).max() < 0.1 * np.abs(expected).max()


def test_sketches_are_kept_and_those_of_something_else_are_not_taken(tmp_path):
    rows, facts = half(torch.randn(3, 8)), {'kind': 'sketches', 'damping': 0.1}
    save_sketches(tmp_path / 's', rows, facts)
    assert torch.equal(load_sketches(tmp_path / 's', facts), rows)
    assert load_sketches(tmp_path / 's', {**facts, 'damping': 0.2}) is None
    assert load_sketches(tmp_path / 'none', facts) is None
    (tmp_path / 's').write_bytes(b'x' * 40)
    assert load_sketches(tmp_path / 's', facts) is None


def test_a_shortlist_adds_what_it_is_given(lm):
    """Of twenty songs ten are taken: those that either ranking puts far up, and none that both put last."""
    subject = MusicGenSubject(Path('nowhere'), lm, None, [Piece(f'song-{i}', []) for i in range(20)])

    class Ranks:
        song_ids = [f'song-{i}' for i in reversed(range(20))]

        def scores(self, examples, prompt_frames):
            return {'P': np.arange(20.), 'M': np.zeros(20)}  # song-0 is the last of the store, and the best
    first_order = np.zeros((1, 20))
    first_order[0, 19] = 1.
    assert shortlists(Ranks(), subject, [Piece('query', [])])[0] == list(range(10))
    assert shortlists(None, subject, [Piece('query', [])], first_order=first_order)[0][0] == 19
    both = shortlists(Ranks(), subject, [Piece('query', [])], first_order=first_order)[0]
    assert both[0] == 19 and both[1:] == list(range(9))
    with pytest.raises(LuminaError, match='no fingerprint of song-20'):
        shortlists(Ranks(), MusicGenSubject(Path('nowhere'), lm, None, [Piece('song-20', [])]), [Piece('query', [])])


# -- memory -----------------------------------------------------------------------------------------------------------

class Weights:
    """A learner of weights of some shapes, as far as is asked for what memory holds."""

    def __init__(self, shapes):
        self.blocks = {f'{place}': Block(f'{place}', out, into, f'{place}') for place, (out, into) in enumerate(shapes)}
        self.bytes = sum(4 * out * into for out, into in shapes)


@given(shapes=st.lists(st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)), min_size=1, max_size=5),
       songs=st.integers(1, 30), budget=st.integers(1, 2 ** 34))
def test_as_many_songs_at_once_as_memory_holds_gradients_for(shapes, songs, budget):
    learner = Weights(shapes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, 'GRADIENTS_BYTES', budget)
        groups = module.grouped(learner, list(range(songs)))
    assert [song for group in groups for song in group] == list(range(songs))
    sizes = [len(group) for group in groups]
    assert max(sizes) == 1 or max(sizes) * learner.bytes <= budget
    room = min(module.TOGETHER, songs)  # it holds no fewer than would fit
    assert max(sizes) == room or (max(sizes) + 1) * learner.bytes > budget


def test_of_musicgen_medium_one_song_is_held():
    """48 layers of 1,536 features, each of four attention matrices and two four times as wide; four output linears."""
    learner = Weights([(12 * 1536, 1536)] * 48 + [(2048, 1536)] * 4)
    assert [len(group) for group in module.grouped(learner, [1, 2, 3])] == [1, 1, 1]


@pytest.mark.parametrize('budget', [1, 3])
def test_gradients_are_the_same_however_few_are_held(lm, songs, monkeypatch, budget):
    """Of songs of two chunks; no pass gives more gradients than the budget holds."""
    songs = [Piece(one.id, [*one.examples, *other.examples]) for one, other in zip(songs[:3], songs[3:], strict=True)]
    learner, recipe = learner_of(lm), unlearning_recipe('default', fisher='diagonal', relative=1e-3)
    make = (diagonal_fisher, kronecker_fisher)
    whole = [one(learner, songs).tensors() for one in make]
    fisher = diagonal_fisher(learner, songs)
    flat = Unlearner(learner, fisher, songs, recipe).linearised(songs[:2])
    gradient = 4 * sum(block.out_features * block.in_features for block in learner.blocks.values())
    monkeypatch.setattr(module, 'GRADIENTS_BYTES', budget * gradient)
    monkeypatch.setattr('lumina_plugin.unlearning.scoring.MODELS_BYTES', 1)
    asked, batches = [], learner.batches

    def counted(examples, reducers):
        for index, gradients in batches(examples, reducers):
            asked.extend([len(index)] if next(iter(gradients.values())).dim() == 3 else [])  # not of moments
            yield index, gradients
    learner.batches = counted
    np.testing.assert_allclose(Unlearner(learner, fisher, songs, recipe).linearised(songs[:2]), flat, rtol=1e-3,
                               atol=1e-9)
    assert asked and max(asked) <= budget
    diagonal = diagonal_fisher(learner, songs).tensors()
    for name, tensor in whole[0].items():
        torch.testing.assert_close(diagonal[name], tensor, rtol=1e-3, atol=1e-10)
    kronecker = kronecker_fisher(learner, songs).tensors()
    for name, tensor in whole[1].items():  # their eigenvectors may differ in sign
        if name.startswith('values'):
            assert float(kronecker[name].sum()) == pytest.approx(float(tensor.sum()), rel=1e-3)
    assert max(asked) <= budget
