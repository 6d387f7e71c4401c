"""LPIPS and representer points: against what they are defined by, worked out by hand or one step at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin.baselines import inside, lpips, rps
from lumina_plugin.errors import LuminaError
from lumina_plugin.validation.queries import Query

from .tiny import build_lm


def songs(count: int = 5, frames: int = 20, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return [Query(f'q{i}', 'songs', torch.randint(0, 16, (4, frames - i % 2), generator=generator), 0, f'song-{i}',
                  'slow waltz') for i in range(count)]


@pytest.fixture(scope='module', params=['prepend', 'cross'])
def lm(request):
    return build_lm(fuse=request.param)


@pytest.fixture(scope='module')
def points():
    method = rps.Representers(build_lm(), songs(), targets='codes')
    method.scores(songs(1), False)
    return method


# -- inside -----------------------------------------------------------------------------------------------------------

def test_what_is_read_is_what_the_model_predicts_from(lm):
    """The features that are taken, times the output linears, are the logits of `compute_predictions`."""
    query = songs(1)[0]
    batch = next(inside.batches(lm, [query.example(lm, False)]))
    features, = inside.read(lm, batch, [lm.linears[0]], lambda a: a, inputs=True)
    lm.eval()
    with torch.no_grad():
        wanted = lm.compute_predictions(query.codes[None], batch.attributes)
    for k, linear in enumerate(lm.linears):
        counts = batch.counted[0, k]
        assert torch.equal(batch.targets[0, k][counts], query.codes[k][wanted.mask[0, k]])
        torch.testing.assert_close(features[0, counts] @ linear.weight.T, wanted.logits[0, k][wanted.mask[0, k]])


def test_a_model_is_left_as_it_was(lm):
    lm.train()
    lm.linears[0].eval()
    modes = [module.training for module in lm.modules()]
    lpips.codes_profiles(lm)(songs(3), False)
    assert [module.training for module in lm.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.modules())


def test_batches_change_nothing(lm):
    listen = lpips.codes_profiles(lm)
    together, apart = listen(songs(), True), [listen([one], True) for one in songs()]
    for layer, rows in enumerate(together):
        np.testing.assert_allclose(rows, np.concatenate([one[layer] for one in apart]), atol=1e-6)


def test_a_prompts_frames_are_left_out(lm):
    query = dataclasses.replace(songs(1, 12)[0], prompt_frames=5)
    batch = next(inside.batches(lm, [query.example(lm, True)]))
    for k in range(4):  # by the delay, a later codebook's last codes are not predicted before the music ends
        assert batch.targets[0, k][batch.counted[0, k]].tolist() == query.codes[k, 5:12 - k].tolist()
    assert batch.heard[0].nonzero().flatten().tolist() == list(range(6, 13))  # after the special token


def test_a_magnet_is_refused():
    model = build_lm()
    model.attn_mask_per_stage = []
    with pytest.raises(LuminaError, match='leave them out for a MAGNeT'):
        next(inside.batches(model, [songs(1)[0].example(model, False)]))


# -- LPIPS ------------------------------------------------------------------------------------------------------------

def test_equal_codes_are_at_no_distance(lm):
    listen = lpips.codes_profiles(lm)
    again = [dataclasses.replace(song, text=None) for song in songs()]
    found = lpips.distances(listen(again, False), listen(songs(), False))
    assert np.abs(np.diag(found)).max() < 1e-12 and (found[~np.eye(5, dtype=bool)] > 1e-6).all()
    method = lpips.Lpips(listen, songs())
    scores = method.scores(again, False)[lpips.CHANNEL]
    np.testing.assert_allclose(scores.sum(1), 0., atol=1e-9)
    assert (scores.argmax(1) == np.arange(5)).all() and method.cost().bytes_per_song == 2 * 16 * 4


def test_a_distance_by_hand():
    activations = torch.tensor([[[3., 4.], [0., 2.]], [[1., 0.], [5., 0.]]])  # [B, S, C]
    rows = lpips.profile(activations, torch.tensor([[True, True], [True, False]])).numpy()
    np.testing.assert_allclose(rows, [[.3, .9], [1., 0.]], atol=1e-9)
    other = np.array([[0., 0.], [.6, .8]])
    found = lpips.distances([rows[:1], other[:1]], [rows[1:], other[1:]])
    assert found.item() == pytest.approx(((.7 ** 2 + .9 ** 2) + 1.) / 2)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(5)), scale=st.floats(.01, 100.))
def test_songs_may_come_in_any_order_and_activations_at_any_scale(order, scale):
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(5, 7, 3, generator=generator) for _ in range(2)]

    def listen(queries, masked):
        rows = [int(query.id[1:]) for query in queries]
        return [lpips.profile(layer[rows] * (scale if queries is not given_queries else 1.), torch.ones(len(rows), 7)
                              ).numpy() for layer in layers]
    given_queries = songs(2)
    plain = lpips.Lpips(listen, songs()).scores(given_queries, False)[lpips.CHANNEL]
    moved = lpips.Lpips(listen, [songs()[i] for i in order]).scores(given_queries, False)[lpips.CHANNEL]
    np.testing.assert_allclose(moved, plain[:, list(order)], atol=1e-8)


# -- representer points -----------------------------------------------------------------------------------------------

def test_a_share_by_hand():
    """Two examples of one feature, two classes, a given map: α = -(p - y) / (2 λ n), times the product of features."""
    weight = torch.tensor([[0.], [0.]])
    first = rps.Steps(torch.tensor([[2.]]), torch.tensor([0]))
    second = rps.Steps(torch.tensor([[3.]]), torch.tensor([1]))
    parts = [rps.representer(weight, one, count=2, ridge=.25, given=None) for one in (first, second)]
    # p = (1/2, 1/2), so α of the first is (1/2, -1/2) / (2 * 1/4 * 2) = (1/2, -1/2)
    assert parts[0].tolist() == [[1.], [-1.]] and parts[1].tolist() == [[-1.5], [1.5]]
    query = rps.Steps(torch.tensor([[4.], [6.]]), torch.tensor([0, 1]))
    assert rps.explained(query, 2).tolist() == [[2.], [3.]]
    shares = [float((part * rps.explained(query, 2)).sum()) for part in parts]
    # step by step: the first adds 1/2 * 2 * 4 = 4 to class 0 of step one, -1/2 * 2 * 6 = -6 to class 1 of step two
    assert shares == [(4 - 6) / 2, (-1.5 * 4 + 1.5 * 6) / 2]


def test_residuals_are_the_gradient_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    features, weight, other = (torch.randn(n, 3, generator=generator) for n in (7, 5, 5))
    steps = rps.Steps(features, torch.randint(0, 5, (7,), generator=generator))
    for given_weight in (None, other):
        logits = (features @ weight.T).requires_grad_()
        wanted = steps.codes if given_weight is None else (features @ other.T).softmax(-1)
        torch.nn.functional.cross_entropy(logits, wanted, reduction='sum').backward()
        torch.testing.assert_close(rps.residuals(weight, steps, given_weight), logits.grad)


@pytest.mark.parametrize('targets', rps.TARGETS)
@pytest.mark.parametrize('biased', [False, True])
def test_all_songs_together_make_the_prediction(targets, biased):
    """Scores add up to the mean value of the query's codes under the fitted layer, and the parts to that layer."""
    lm = build_lm(bias_proj=biased)
    if biased:
        for linear in lm.linears:
            torch.nn.init.normal_(linear.bias, std=.3)
    method = rps.Representers(lm, songs(), targets=targets)
    query = songs(1, seed=8)[0]
    scores = method.scores([query], False)[rps.CHANNEL]
    steps = method.steps([query], False)[0]
    values = [float((one.features @ weight.T).gather(1, one.codes[:, None]).mean())
              for one, weight in zip(steps, method.fitted, strict=True)]
    assert scores.sum() == pytest.approx(np.mean(values), abs=.01) and abs(np.mean(values)) > .03
    for k, weight in enumerate(method.fitted):
        whole = torch.from_numpy(method._parts.sum(0)[k]).view_as(weight)
        assert (whole - weight).norm() < .005 * weight.norm()


def test_scores_are_sums_over_all_pairs_of_steps(points):
    query = dataclasses.replace(songs(1, seed=9)[0], prompt_frames=4)
    found = points.scores([query], True)[rps.CHANNEL][0]
    made, known = points.steps([query], True)[0], points.steps(songs(), False)
    for i, song in enumerate(known):
        total = 0.
        for k, weight in enumerate(points.fitted):
            count = sum(len(one[k].codes) for one in known)
            alpha = -rps.residuals(weight, song[k], None) / (2 * points.ridge * count)  # [t, card]
            products = song[k].features @ made[k].features.T  # [t, s]
            total += float((alpha[:, made[k].codes] * products).sum(0).mean()) / len(points.fitted)
        assert found[i] == pytest.approx(total, rel=1e-3, abs=1e-6)


def test_a_fit_ends_where_nothing_can_be_gained():
    generator = torch.Generator().manual_seed(0)
    steps = [rps.Steps(torch.randn(40, 3, generator=generator), torch.randint(0, 4, (40,), generator=generator))]
    weight = rps.fitted(torch.randn(4, 3, generator=generator), steps, .01, None).requires_grad_()
    loss = torch.nn.functional.cross_entropy(steps[0].features @ weight.T, steps[0].codes) + .01 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-3
    for _ in range(20):
        moved = weight.detach() + .05 * torch.randn(4, 3, generator=generator)
        other = torch.nn.functional.cross_entropy(steps[0].features @ moved.T, steps[0].codes)
        assert other + .01 * moved.square().sum() > loss


@settings(deadline=None, max_examples=5)
@given(order=st.permutations(range(5)))
def test_representers_take_songs_in_any_order(points, order):
    moved = rps.Representers(points.lm, [songs()[i] for i in order], targets='codes')
    queries = songs(2, seed=11)
    plain, found = (one.scores(queries, False)[rps.CHANNEL] for one in (points, moved))
    np.testing.assert_allclose(found, plain[:, list(order)], rtol=.02, atol=.02 * np.abs(plain).max())


def test_settings_out_of_range_are_refused():
    for ridge, targets in ((0., 'own'), (-1., 'own'), (float('nan'), 'own'), (.1, 'theirs')):
        with pytest.raises(LuminaError, match='ridge above 0'):
            rps.Representers(build_lm(), songs(), ridge, targets)
