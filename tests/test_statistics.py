"""The statistics against the paper's worked numbers, and as properties over any finite input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lumina_plugin.errors import LuminaError
from lumina_plugin.scoring import cosine
from lumina_plugin.statistics import (
    Gate,
    channel_statistics,
    confidence,
    lip,
    measured_noise,
    noise_floor,
    shares,
    standardised_scores,
    weights,
)

WORKED_STS = (3.2, 2.1, 1.8, 1.3)
ARRAYS = (
    'cosine',
    'score',
    'z',
    'confidence',
    'sts',
    'lip',
    'lip_percent',
    'passes_gate',
    'qualified',
    'weight',
    'share',
)


def catalogue_of_97() -> np.ndarray:
    """97 values of mean 0 and sd 1: the worked four, and ninety-three below 1."""
    top = np.array(WORKED_STS)
    mean = -top.sum() / 93
    spread = math.sqrt((97 - (top**2).sum() - 93 * mean**2) / 92)
    return np.concatenate([top, [mean], np.repeat([mean - spread, mean + spread], 46)])


def test_worked_example():
    values = catalogue_of_97()
    assert len(values) == 97 and (values[4:] < 1).all()
    found = channel_statistics(cosine=0.5 + 0.1 * values, score=3 + 0.25 * values, noise_floor=noise_floor(512))
    np.testing.assert_allclose(found.sts, values, atol=1e-9)
    np.testing.assert_allclose(found.weight[:4], [4.84, 1.21, 0.64, 0.09], atol=1e-9)
    np.testing.assert_allclose(np.round(100 * found.share[:4], 1), [71.4, 17.8, 9.4, 1.3])
    assert found.qualified.sum() == 4 and found.unattributed == 0 and not found.weight[4:].any()


def test_a_song_below_the_gate_is_not_paid_whatever_its_score():
    values = catalogue_of_97()
    cosines = np.full(97, 0.5)
    cosines[1] = 1.95 * noise_floor(512)
    found = channel_statistics(cosines, values, noise_floor(512))
    assert found.weight[1] == pytest.approx(1.21) and found.share[1] == 0
    np.testing.assert_allclose(found.share[[0, 2, 3]], np.array([4.84, 0.64, 0.09]) / 5.57)


def test_noise_floor_and_confidence_at_printed_points():
    assert 100 * noise_floor(512) == pytest.approx(4.42, abs=0.005)
    sigma = noise_floor(512)
    np.testing.assert_allclose(
        confidence(np.array([1.0, 1.959964, 3.0]) * sigma, sigma), [0.6827, 0.95, 0.9973], atol=1e-4
    )
    assert (confidence([-0.5, 0.0], sigma) == 0).all()
    np.testing.assert_allclose(lip([0.0, 2.0, -2.0]), [0, math.tanh(1), -math.tanh(1)])


def test_the_two_printed_gates_disagree_where_they_should():
    assert Gate().threshold == pytest.approx(1.960, abs=5e-4)
    assert Gate(tail='one_sided').threshold == pytest.approx(1.645, abs=5e-4)
    z = np.array([1.64, 1.65, 1.95, 1.97])
    np.testing.assert_array_equal(Gate().passes(z), [False, False, False, True])
    np.testing.assert_array_equal(Gate(tail='one_sided').passes(z), [False, True, True, True])
    np.testing.assert_array_equal(Gate(level=0.0).passes([-1, 0, 0.1]), [False, False, True])
    np.testing.assert_array_equal(Gate(level=0.2, tail='one_sided').passes([-0.5, 0, 0.1]), [False, False, True])


@pytest.mark.parametrize('tail, wanted', [('two_sided', 0.025), ('one_sided', 0.05)])
def test_an_isotropic_null_passes_as_often_as_the_gate_says(tail, wanted):
    rng = np.random.default_rng(3)
    songs, queries = rng.normal(size=(2000, 512)), rng.normal(size=(50, 512))
    passing = Gate(tail=tail).passes(cosine(queries, songs) / noise_floor(512)).mean()
    assert passing == pytest.approx(wanted, rel=0.1)


def test_measured_floor_equals_theory_for_unrelated_songs_and_shrinks_over_checkpoints():
    store = np.random.default_rng(0).normal(size=(4, 400, 64))
    assert measured_noise(store[0])[1] == pytest.approx(noise_floor(64), rel=0.02)
    assert measured_noise(list(store))[1] == pytest.approx(noise_floor(64) / 2, rel=0.02)
    assert measured_noise(store)[1] == measured_noise(list(store))[1]


def test_measured_noise_is_mean_and_spread_of_the_off_diagonal_mean_cosine():
    store = np.random.default_rng(1).normal(size=(3, 600, 9)) + 0.3
    mean = np.mean([cosine(rows, rows) for rows in store], axis=0)
    off = mean[~np.eye(600, dtype=bool)]
    assert measured_noise(store) == pytest.approx((off.mean(), off.std()), rel=1e-9)
    found = channel_statistics(mean[0], mean[0], measured_noise(store)[1], noise_mean=measured_noise(store)[0])
    np.testing.assert_allclose(found.z, (mean[0] - off.mean()) / off.std(), rtol=1e-9)  # what is common is no evidence


def test_measured_floor_of_degenerate_stores():
    rng = np.random.default_rng(2)
    for rows in (np.zeros((0, 8)), np.ones((1, 8)), np.zeros((5, 8))):
        assert measured_noise(rows) == (0.0, 1.0)
    assert measured_noise(np.ones((4, 16))) == pytest.approx((1.0, 0.25))
    assert measured_noise(np.eye(16))[1] == pytest.approx(0.25)
    songs = rng.normal(size=(50, 8))
    silent = np.concatenate([songs, np.zeros((50, 8))])
    assert measured_noise(silent)[1] == pytest.approx(measured_noise(songs)[1])
    with pytest.raises(LuminaError, match='NaN'):
        measured_noise(np.array([[1.0, np.nan], [1.0, 0.0]]))[1]
    with pytest.raises(LuminaError, match='same songs'):
        measured_noise([np.ones((3, 2)), np.ones((4, 2))])[1]


def test_measured_floor_of_a_large_store_is_sampled_the_same_way_every_time():
    songs = np.random.default_rng(4).normal(size=(3000, 32))
    sampled = measured_noise(songs, max_songs=500)[1]
    assert sampled == measured_noise(songs, max_songs=500)[1] != measured_noise(songs)[1]
    assert sampled == pytest.approx(measured_noise(songs)[1], rel=0.02)


def test_rank_keeps_the_floor_honest_inside_a_span_fitted_on_the_songs():
    """Songs that are all but orthogonal span 29 dimensions; an unrelated query falls into them with 1/√29."""
    rng = np.random.default_rng(5)
    songs = rng.normal(size=(30, 20000))
    songs -= songs.mean(axis=0)
    basis = np.linalg.svd(songs, full_matrices=False)[2][:29]
    fitted, queries = songs @ basis.T, rng.normal(size=(300, 20000)) @ basis.T
    truth = math.sqrt((cosine(queries, fitted) ** 2).mean())
    assert measured_noise(fitted)[1] < truth / 3
    assert measured_noise(fitted, rank=29)[1] == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize('scores', [[], [0.4], [0.4, 0.9], [0.1] * 7, [0.0] * 5, [1e308] * 4, [5e-324] * 3])
def test_degenerate_catalogues_pay_nobody(scores):
    found = channel_statistics(np.full(len(scores), 0.9), scores, 0.05)
    assert found.unattributed == 1 and not found.share.any() and not found.sts.any() and (found.lip_percent == 50).all()


def test_an_sts_of_exactly_one_earns_nothing():
    # Two values, each in half of the songs: every STS is +1 or -1, here 1 + 2e-16 through rounding.
    scores = np.array([-0.4] * 3 + [-0.15] * 3)
    assert standardised_scores(scores).max() > 1
    assert channel_statistics([0.9] * 6, scores, 0.05).unattributed == 1


values = st.floats(allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1, 1).map(lambda value: round(value, 4))


@given(
    st.integers(0, 12).flatmap(lambda n: st.tuples(*[arrays(np.float64, n, elements=values)] * 2)),
    st.floats(1e-300, 1e300),
)
def test_no_finite_input_gives_nan_and_shares_sum_to_one_or_zero(pair, sigma):
    found = channel_statistics(*pair, noise_floor=sigma)
    for name in ARRAYS:
        assert np.isfinite(getattr(found, name)).all(), name
    total = found.share.sum() + found.unattributed
    assert total == pytest.approx(1) and found.unattributed in (0.0, 1.0)
    assert (found.share > 0).sum() == found.qualified.sum()


@given(arrays(np.float64, 9, elements=ordinary), st.randoms())
def test_the_order_of_the_songs_does_not_matter(scores, random):
    order = np.array(random.sample(range(9), 9))
    straight, mixed = channel_statistics(scores, scores, 0.05), channel_statistics(scores[order], scores[order], 0.05)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(straight, name)[order], getattr(mixed, name))
    assert straight.unattributed == mixed.unattributed


@given(arrays(np.float64, 15, elements=ordinary))
def test_everything_grows_with_the_score(scores):
    order = np.argsort(scores)
    found = channel_statistics(scores, scores, 0.05)
    for name in ('z', 'confidence', 'sts', 'lip', 'lip_percent', 'weight', 'share'):
        assert (np.diff(getattr(found, name)[order]) >= 0).all(), name


@given(arrays(np.float64, 10, elements=ordinary), st.floats(0.01, 100), st.floats(-10, 10))
def test_sts_does_not_depend_on_the_scale_of_the_score(scores, factor, shift):
    if np.ptp(scores) > 1e-3:
        np.testing.assert_allclose(standardised_scores(factor * scores + shift), standardised_scores(scores), atol=1e-6)


def test_weights_and_shares_alone():
    weight = weights([*WORKED_STS, 0.99, 1.0, -4.0])
    np.testing.assert_allclose(weight, [4.84, 1.21, 0.64, 0.09, 0, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(shares(weight, np.zeros(7, dtype=bool)), np.zeros(7))
    np.testing.assert_allclose(shares([1, 3, 5], [True, True, False]), [0.25, 0.75, 0])


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda: channel_statistics([0.1], [0.1, 0.2], 0.1), '1 cosines but 2 scores'),
        (lambda: channel_statistics([[0.1]], [[0.1]], 0.1), r'\[N\]'),
        (lambda: channel_statistics([0.1, math.nan], [0, 0], 0.1), 'cosine of song number 1'),
        (lambda: channel_statistics([0.1, 0.2], [math.inf, 0], 0.1), 'score of song number 0'),
        (lambda: channel_statistics([0.1], [0.1], 0.0), 'noise floor is 0'),
        (lambda: noise_floor(0), 'projection.dim'),
        (lambda: Gate(level=1.0), 'gate.level'),
        (lambda: Gate(tail='both'), 'two_sided, one_sided'),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(LuminaError, match=words):
        call()
