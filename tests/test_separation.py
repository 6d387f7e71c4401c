"""Separations on crossed Gaussian data, whose answer is known, and average precision by hand and by chance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumina_plugin import separation
from lumina_plugin.errors import LuminaError
from lumina_plugin.separation import ChannelFigures, Estimate, Separation, verdict
from lumina_plugin.validation.retrieval import average_precision, chance_precision, precision_of_queries, retrieval


def crossed(rng, compositions, productions, frame, loud=4., noise=.3):
    """Rows [C * P, 60]: compositions in some directions of an orthonormal frame, louder productions in others."""
    first, second = np.repeat(np.arange(compositions), productions), np.tile(np.arange(productions), compositions)
    of_first = rng.normal(size=(compositions, 12))[first] @ frame[:12]
    of_second = loud * rng.normal(size=(productions, 8))[second] @ frame[12:20]
    return torch.from_numpy(of_first + of_second + noise * rng.normal(size=(len(first), 60))), first, second


def cosines(rows):
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return (unit @ unit.T).numpy()


def test_what_productions_drown_is_found_once_they_are_turned_down():
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    rows, composition, _ = crossed(rng, 20, 40, frame)
    test, first, second = crossed(rng, 12, 8, frame)
    raw = retrieval(cosines(test), first, second)
    assert raw.production.mean > .8 and raw.composition.mean < .1 and raw.figures('production').separated
    separated = Separation.fit(rows, composition, rank=40)
    found = retrieval(cosines(separated(test)), first, second)
    assert found.composition.mean > .9 and found.production.mean < .1
    assert found.figures('composition').separated and not found.figures('production').separated
    assert found.composition_lead.mean == pytest.approx(found.composition.mean - 1.5 * found.production.mean)


def test_the_other_label_keeps_the_other():
    rng = np.random.default_rng(1)
    frame = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    rows, _, production = crossed(rng, 20, 10, frame, loud=1.)
    test, first, second = crossed(rng, 12, 8, frame, loud=1.)
    found = retrieval(cosines(Separation.fit(rows, production, rank=40)(test)), first, second)
    assert found.figures('production').separated and found.composition.mean < .1


@given(st.integers(0, 1000), st.floats(.01, 1.), st.sampled_from([5, 12, 50]))
def test_it_is_the_formula(seed, shrinkage, width):
    """The Gram route gives what principal components and the covariance within groups give, written out."""
    rng = np.random.default_rng(seed)
    rows, groups = rng.normal(size=(20, width)) * np.linspace(3, .5, width), np.repeat(np.arange(5), 4)
    rank = min(8, width)
    centred = rows - rows.mean(0)
    inside = centred @ np.linalg.svd(centred)[2][:rank].T
    apart = inside - np.repeat(inside.reshape(5, 4, rank).mean(1), 4, axis=0)
    covariance = apart.T @ apart / 15
    mixed = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / rank * np.eye(rank)
    expected = inside @ np.linalg.inv(mixed) @ inside.T * np.trace(covariance) / rank
    found = Separation.fit(torch.from_numpy(rows), groups, rank, shrinkage).project(torch.from_numpy(rows).float())
    np.testing.assert_allclose((found @ found.T).numpy(), expected, atol=2e-3 * np.abs(expected).max())


def test_rows_are_padded_to_a_stores_width_and_of_length_one():
    rows = torch.randn(12, 30)
    found = Separation.fit(rows, [0, 0, 0, 1, 1, 1] * 2, rank=5, dim=16)(rows)
    assert found.shape == (12, 16) and not found[:, 5:].any()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(12))


@pytest.mark.parametrize('keys, words', [
    (dict(groups=range(6)), 'at least two'), (dict(shrinkage=0.), 'shrinkage'), (dict(rank=9, dim=4), 'rank')])
def test_what_cannot_be_fitted_is_refused(keys, words):
    keys = {'groups': [0, 0, 0, 1, 1, 1], **keys}
    with pytest.raises(LuminaError, match=words):
        Separation.fit(torch.randn(6, 10), **keys)


def test_a_row_of_another_width_is_refused():
    separated = Separation.fit(torch.randn(6, 10), [0, 0, 0, 1, 1, 1])
    with pytest.raises(LuminaError, match='takes 10 numbers'):
        separated(torch.randn(2, 11))


def test_what_is_saved_is_loaded(tmp_path):
    rows = torch.randn(8, 20)
    made = {('epoch-0001', channel): Separation.fit(rows, [0, 1] * 4, dim=9, rank=7) for channel in 'PM'}
    path = separation.save(separation.separation_file(tmp_path / 'default'), made, {'recipe_hash': 'r'})
    assert path.name == 'default.separation.safetensors'
    found = separation.load(path, recipe_hash='r')
    assert set(found) == set(made)
    for key, one in found.items():
        torch.testing.assert_close(one(rows), made[key](rows))
    with pytest.raises(LuminaError, match='another store'):
        separation.load(path, recipe_hash='s')
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(LuminaError, match='cannot be read'):
        separation.load(path)


def figures(kept, other, lead, half=.05):
    return ChannelFigures(*(Estimate(mean, mean - half, mean + half) for mean in (kept, other, lead)))


@pytest.mark.parametrize('found, words', [
    (figures(.5, .1, .35), 'Channel P tells composition from production'),
    (figures(.5, .32, .02), 'not known to be separated'),
    (figures(.3, .4, -.3), 'Channel P is not separated on this model'),
    (figures(.03, -.2, .33), 'no evidence of composition')])
def test_the_verdict_says_what_the_figures_allow(found, words):
    told = verdict({'P': found})
    assert words in told and f'{found.kept}' in told and told.endswith('.')


def test_average_precision_by_hand():
    assert average_precision([.9, .8, .7, .6], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([4, 3, 2, 1], [0, 0, 0, 1]) == pytest.approx(1 / 4)
    assert average_precision([2, 1, 1, 0], [0, 1, 0, 1]) == pytest.approx(.5 * 1 / 3 + .5 * 2 / 4)  # two share a step


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_the_sum_over_thresholds(pairs):
    pairs = [*pairs, (3, True)]
    scores, right = (np.array(column) for column in zip(*pairs, strict=True))
    total, before = 0., 0.
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall, precision = right[chosen].sum() / right.sum(), right[chosen].mean()
        total, before = total + (recall - before) * precision, recall
    assert average_precision(scores, right) == pytest.approx(total)


@pytest.mark.parametrize('relevant, songs', [(1, 7), (7, 95), (11, 95), (4, 5)])
def test_chance_is_what_random_orders_reach(relevant, songs):
    rng = np.random.default_rng(0)
    right = np.arange(songs) < relevant
    drawn = [average_precision(rng.random(songs), right) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(chance_precision(relevant, songs), abs=4 * np.std(drawn) / 4000 ** .5)


def test_a_query_is_not_its_own_answer():
    scores = np.array([[9., 1, 0], [1, 9, 2], [0, 1, 9]])
    found = precision_of_queries(scores, ['a', 'a', 'b'])
    assert found[0] == pytest.approx(1.) and found[1] < 0 and np.isnan(found[2])


def test_songs_that_are_not_crossed_are_refused():
    with pytest.raises(LuminaError, match='at least two compositions'):
        retrieval(np.eye(3), [0, 1, 2], [0, 1, 2])
