"""The calibrated gate: chance measured by outside songs, who is paid in view of it, and how firm shares are."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, kstest

from lumina_plugin import calibration
from lumina_plugin.calibration import MIN_SONGS, Null, let_through, q_values, songs_needed
from lumina_plugin.errors import LuminaError
from lumina_plugin.intervals import Parts, share_intervals
from lumina_plugin.statistics import Gate, channel_statistics, noise_floor, weights

SONGS = 97


def chance(rng: np.random.Generator, queries: int, songs: int = SONGS) -> np.ndarray:
    """Scores of queries that owe nobody: some songs are hubs, some are found with more spread, every query has a level
    of its own; about as far from isotropic noise as raw gradients are."""
    fixed = np.random.default_rng(1)
    hub, spread = 0.2 * fixed.exponential(size=songs), 0.02 + 0.05 * fixed.random(songs)
    return hub + spread * rng.normal(size=(queries, songs)) + 0.3 * rng.normal(size=(queries, 1))


def judged(scores: np.ndarray, null: Null, rate: float = 0.05):
    return [channel_statistics(row, row, noise_floor(512), null=null, rate=rate) for row in scores]


def test_p_values_of_queries_that_owe_nobody_are_uniform():
    rng = np.random.default_rng(0)
    null = Null(chance(rng, 100))
    p = null.p_values(null.z(chance(rng, 400)))
    assert kstest(p.ravel(), 'uniform').statistic < 0.03
    assert p.min() >= null.smallest == 1 / (1 + 100 * SONGS)


def test_queries_that_owe_nobody_are_charged_as_rarely_as_the_rate_says_where_the_printed_gate_fails():
    rng = np.random.default_rng(2)
    found = judged(chance(rng, 400), Null(chance(rng, 100)))
    charged = np.mean([values.qualified.any() for values in found])
    assert charged <= 0.075  # 5 %, and three standard errors of 400 queries
    assert np.mean([(values.passes_gate & (values.weight > 0)).any() for values in found]) > 0.9
    assert np.mean([values.unattributed == 1 for values in found]) >= 0.925


def test_a_lone_source_is_paid_with_as_few_outside_songs_as_are_taken():
    rng = np.random.default_rng(3)
    null = Null(chance(rng, MIN_SONGS))
    scores = chance(rng, 20)
    scores[np.arange(20), np.arange(20)] += 2.
    found = judged(scores, null)
    assert all(values.share[song] > 0.2 and values.share.argmax() == song for song, values in enumerate(found))
    assert sum(values.qualified.sum() for values in found) <= 20 + 3  # and hardly anybody beside it
    for values in found:
        assert values.share.sum() + values.unattributed == pytest.approx(1) and 0 < values.unattributed < 1


@pytest.mark.parametrize('rate', [0.2, 0.05, 0.01, 0.003])
@pytest.mark.parametrize('songs', [3, SONGS, 5000])
def test_with_fewer_outside_songs_no_lone_source_could_be_paid(rate, songs):
    needed = int(np.ceil(1 / rate - 1e-9))
    assert songs_needed(rate) == max(MIN_SONGS, needed)
    smallest = [1 / (1 + count * songs) for count in (needed, needed - 1)]
    paid = [let_through(np.array([p, *[1.] * (songs - 1)]), rate, songs)[0] for p in smallest]
    assert paid[0] and (not paid[1] or songs == 3)  # of three songs one more or less decides


def test_too_few_outside_songs_are_refused():
    with pytest.raises(LuminaError, match='63 outside songs.*at least 64.*--songs'):
        Null(np.zeros((63, 5)))
    with pytest.raises(LuminaError, match='not a finite'):
        Null(np.full((64, 5), np.nan))


def test_what_is_alike_to_everything_and_what_is_found_by_everything_owes_nothing():
    """The two standardisations, each on its own."""
    rng = np.random.default_rng(4)
    null, query = Null(chance(rng, 100)), chance(rng, 1)[0]
    np.testing.assert_allclose(null.z(query + 7.), null.z(query), atol=1e-9)
    hub = np.arange(SONGS) == 5
    moved = Null(chance(np.random.default_rng(5), 100) + 0.8 * hub)
    still = Null(chance(np.random.default_rng(5), 100))
    np.testing.assert_allclose(moved.z(query + 0.8 * hub), still.z(query), atol=1e-9)


def test_scores_that_scatter_widely_or_hardly_prove_nothing_by_it():
    """As those of music that is encoded more often, or more smoothly, than the outside songs."""
    rng = np.random.default_rng(6)
    null, queries = Null(rng.normal(size=(200, SONGS))), rng.normal(size=(300, SONGS))
    for scale in (0., .01, 1., 30.):
        paid = let_through(null.p_values(null.z(queries * scale)), .05, SONGS).any(axis=1)
        assert paid.mean() < .09, scale
    lone = queries + 12. * (np.arange(SONGS) == 3)
    assert let_through(null.p_values(null.z(lone * 30.)), .05, SONGS)[:, 3].mean() > .95


def test_equal_scores_are_no_evidence():
    null = Null(np.ones((64, 9)))
    assert np.isfinite(null.z(np.ones(9))).all() and (null.p_values(null.z(np.ones(9))) == 1).all()
    assert channel_statistics(np.ones(9), np.ones(9), 0.1, null=null).unattributed == 1


def test_a_pool_that_is_too_large_to_keep_gives_p_values_that_are_never_too_small(monkeypatch):
    rng = np.random.default_rng(6)
    scores, z = chance(rng, 100), np.sort(rng.normal(size=500) * 3)
    exact = Null(scores).p_values(z)
    for name, value in (('EXACT_POOL', 1000), ('EXACT_TAIL', 300), ('STEPS', 50)):
        monkeypatch.setattr(calibration, name, value)
    coarse = Null(scores).p_values(z)
    assert (coarse >= exact).all() and (coarse - exact).max() < 1.5 / 50
    np.testing.assert_array_equal(coarse[exact < 200 / 9700], exact[exact < 200 / 9700])


@hypothesis.given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_step_up_by_hand_is_scipys(p, rate):
    adjusted = false_discovery_control(np.array(p))
    hypothesis.assume((np.abs(adjusted - rate) > 1e-9).all())
    np.testing.assert_array_equal(let_through(p, rate, len(p)), adjusted <= rate)
    np.testing.assert_array_equal(q_values(p), adjusted)
    padded = np.array([*p, *[1.] * 7])
    np.testing.assert_array_equal(let_through(p, rate, len(padded)), let_through(padded, rate, len(padded))[:len(p)])


@hypothesis.given(st.integers(0, 10_000), st.integers(3, 30), st.floats(0.01, 0.5))
def test_shares_and_what_stays_unattributed_are_one(seed, songs, rate):
    rng = np.random.default_rng(seed)
    null, score = Null(rng.normal(size=(64, songs))), rng.normal(size=songs) * 3
    found = channel_statistics(score, score, 0.1, null=null, rate=rate)
    assert found.share.sum() + found.unattributed == pytest.approx(1)
    assert (found.share > 0).tolist() == found.qualified.tolist()
    total = weights(found.sts).sum()
    np.testing.assert_allclose(found.share[found.qualified], found.weight[found.qualified] / max(total, 1e-300))
    beside = channel_statistics(score, score, 0.1, null=null, rate=rate, calibrated=False)
    printed = channel_statistics(score, score, 0.1)
    np.testing.assert_array_equal(beside.share, printed.share)  # a second opinion changes no share
    np.testing.assert_array_equal(beside.chance.q, found.chance.q)


# ---- intervals ----


class Query:
    """Chunks' fingerprints at some checkpoints, against songs of known fingerprints; scores are inner products."""

    def __init__(self, seed: int, chunks: int, checkpoints: int, noise: float, songs: int = 40, unit: bool = False):
        rng = np.random.default_rng(seed)
        self.songs = rng.normal(size=(checkpoints, songs, 64)) / 8
        clean = self.songs[:, :1] + 0.4 * self.songs[:, 1:2]
        self.vectors = list(clean + noise * rng.normal(size=(checkpoints, chunks, 64)) / 8)
        self.frames = np.full(chunks, 10.)
        self.unit = (unit, unit)
        outside = rng.normal(size=(80, checkpoints, 64)) / 8 * np.linalg.norm(clean, axis=-1).mean()
        self.null = Null(np.mean([self.scores(outside[:, c], c) for c in range(checkpoints)], axis=0))

    def scores(self, rows: np.ndarray, checkpoint: int) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True) if self.unit[0] else 1.
        return rows @ self.songs[checkpoint].T / lengths

    def point(self, chunks=slice(None), checkpoints=slice(None)):
        taken = np.arange(len(self.vectors))[checkpoints]
        whole = [self.vectors[c][chunks].mean(axis=0) for c in taken]
        score = np.mean([self.scores(row[None], c)[0] for row, c in zip(whole, taken, strict=True)], axis=0)
        return channel_statistics(score, score, 0.1, null=self.null), whole

    def intervals(self, values=None, calibrated=True):
        values, whole = self.point() if values is None else values
        scores = [self.scores(rows, c) for c, rows in enumerate(self.vectors)]
        parts = Parts(self.vectors, whole, self.frames, scores, scores, self.unit)
        if not calibrated:
            values = channel_statistics(values.score, values.score, 0.1, Gate())
        return values, share_intervals(values, self.null, parts, 11)


@pytest.mark.parametrize('unit', [False, True])
@pytest.mark.parametrize('calibrated', [False, True])
def test_intervals_hold_the_share_are_narrow_where_chunks_agree_and_wide_where_they_do_not(unit, calibrated):
    widths = []
    for noise in (0.05, 2.):
        values, found = Query(1, 4, 3, noise, unit=unit).intervals(calibrated=calibrated)
        assert (found.low <= values.share + 1e-12).all() and (values.share <= found.high + 1e-12).all()
        assert values.share[0] > 0.3 and found.index.tolist() == list(range(40))
        widths.append(found.high[0] - found.low[0])
    assert widths[0] < widths[1]
    agreeing = Query(1, 4, 1, 0., unit=unit)
    values, found = agreeing.intervals(calibrated=calibrated)
    np.testing.assert_allclose(found.high, values.share, atol=1e-9)
    np.testing.assert_allclose(found.low, values.share, atol=1e-9)


def test_a_resample_is_what_its_chunks_and_checkpoints_would_have_said(monkeypatch):
    """The oracle: draw by hand, take the mean of the fingerprints, and go the whole way by `channel_statistics`."""
    from lumina_plugin import intervals
    query = Query(2, 3, 2, 0.5, unit=True)  # directions alone: the drawn mean's length plays no part
    chunks, checkpoints = np.array([0, 0, 2]), np.array([1, 1])
    counts = np.bincount(chunks, minlength=3)[None], np.bincount(checkpoints, minlength=2)[None]
    draws = [np.concatenate([np.ones((1, len(drawn[0]))), drawn]) for drawn in counts]
    monkeypatch.setattr(intervals, 'draws_of', lambda *_: tuple(draws))
    values, whole = query.point()
    expected, _ = query.point(chunks, checkpoints)
    _, found = query.intervals((values, whole))
    moved = np.minimum(values.share, expected.share), np.maximum(values.share, expected.share)
    np.testing.assert_allclose((found.low, found.high), moved, atol=2e-3)  # medians follow the means, so nearly


def test_one_chunk_at_one_checkpoint_has_no_interval_and_equal_seeds_give_equal_ones():
    assert Query(3, 1, 1, 0.5).intervals()[1] is None
    first, second = (Query(3, 2, 2, 0.5).intervals()[1] for _ in range(2))
    np.testing.assert_array_equal(first.low, second.low)


def large_query(noise, songs=5000, kernel=False):
    """A query whose chunks differ, against more songs than fit one block; some of them are its sources."""
    rng = np.random.default_rng(9)
    hub, spread = 0.1 * rng.exponential(size=songs), 0.05 + 0.1 * rng.random(songs)
    scores = [hub + spread * (rng.normal(size=songs) + noise * rng.normal(size=(3, songs))) for _ in range(2)]
    for each in scores:
        each[:, :30] += np.linspace(1.2, 0.2, 30)
    vectors = list(rng.normal(size=(2, 3, 16)))
    cosines = [np.tanh(each) for each in scores] if kernel else scores
    parts = Parts(vectors, [rows.mean(axis=0) for rows in vectors], [10., 10., 5.], cosines, scores, (False, False))
    null = Null(hub + spread * (rng.normal(size=(80, songs)) + rng.normal(size=(80, 1))))
    return parts, null, *(np.average(np.mean(each, axis=0), axis=0, weights=parts.frames) for each in (cosines, scores))


def by_hand(values, null, parts, calibrated):
    """Every resample's shares [B, N], all songs at once, by the whole catalogue's p-values."""
    from lumina_plugin.resampling import draws_of, mixture_of
    mixture = mixture_of(parts, draws_of(parts, 11), False)
    cosine, score = (point + (mixture[1:] - mixture[:1]) @ np.concatenate(each)
                     for point, each in ((values.cosine, parts.cosines), (values.score, parts.scores)))
    weight = weights((score - score.mean(axis=1, keepdims=True)) / score.std(axis=1, keepdims=True))
    passes = Gate().passes((cosine - values.noise_mean) / values.noise_floor)
    if calibrated:
        centre = np.median(values.score) + score.mean(axis=1, keepdims=True) - values.score.mean()
        passes = let_through(null.p_values(null.z(score, centre)), 0.05, score.shape[1])
    divided = weight if calibrated else np.where(passes, weight, 0.)
    return np.where(passes, weight, 0.) / divided.sum(axis=1, keepdims=True), values.share


@pytest.mark.parametrize('kernel', [False, True])
@pytest.mark.parametrize('calibrated', [False, True])
@pytest.mark.parametrize('noise', [0.3, 2.])
def test_of_a_large_catalogue_every_song_counts_in_every_resample(noise, calibrated, kernel):
    """Songs that the query itself does not pay, too: they may pass and be divided in a resample."""
    parts, null, cosine, score = large_query(noise, kernel=kernel)
    values = channel_statistics(cosine, score, 0.2, noise_mean=0.1, null=null if calibrated else None)
    found, (share, point) = share_intervals(values, null, parts, 11), by_hand(values, null, parts, calibrated)
    low, high = np.quantile(share, [0.025, 0.975], axis=0)
    np.testing.assert_array_equal(found.index, np.arange(5000))
    np.testing.assert_allclose(found.low, np.minimum(low, point), atol=1e-12)
    np.testing.assert_allclose(found.high, np.maximum(high, point), atol=1e-12)
    assert (found.high > 0).sum() >= values.qualified.sum() > 0


@pytest.mark.parametrize('calibrated', [False, True])
def test_intervals_do_not_depend_on_how_many_songs_are_looked_at_together_nor_fill_the_memory(calibrated, monkeypatch):
    import tracemalloc

    from lumina_plugin import intervals, resampling
    parts, null, cosine, score = large_query(1.)
    values = channel_statistics(cosine, score, 0.2, noise_mean=0.1, null=null if calibrated else None)
    tracemalloc.start()
    first = share_intervals(values, null, parts, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 200 * 512 * 8 * 3 < 200 * 5000 * 8 * 2  # some blocks of the resamples' scores, not all of them
    for module in (intervals, resampling):
        monkeypatch.setattr(module, 'BLOCK', 37)
    again = share_intervals(values, null, parts, 3)
    np.testing.assert_allclose((again.low, again.high), (first.low, first.high), atol=1e-12)


def test_where_nobody_can_be_let_through_all_intervals_are_empty():
    parts, null, cosine, score = large_query(0.3)
    values = channel_statistics(cosine, score, 0.2, null=null, rate=1e-7)  # less than the smallest p, for all songs
    found = share_intervals(values, null, parts, 11)
    assert not found.low.any() and not found.high.any()


def test_more_songs_let_through_than_are_told_apart_are_counted_in_steps_rounded_down(monkeypatch):
    from lumina_plugin import intervals
    parts, null, cosine, score = large_query(0.3)
    values = channel_statistics(cosine, score, 0.2, null=null)
    exact = share_intervals(values, null, parts, 11)
    assert 20 < (exact.high > 0).sum()
    monkeypatch.setattr(intervals, 'EXACT_STEPS', 4)
    found = share_intervals(values, null, parts, 11)
    assert (found.high <= exact.high).all()
    np.testing.assert_allclose(found.high, exact.high, atol=0.01)


@hypothesis.given(st.integers(3, 5000), st.sampled_from([4, 4096]))
def test_steps_rise_by_one_and_then_by_about_a_percent(most, exact):
    from lumina_plugin import intervals
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, 'EXACT_STEPS', exact)
        steps = intervals._steps(most)
    assert steps[0] == 1 and steps[-1] <= most < (steps[-1] + 1) * 2 ** (1 / 64)
    assert (np.diff(steps) <= np.maximum(1, steps[1:] * 0.011 + 1)).all()


@hypothesis.given(st.lists(st.floats(1e-7, 0.99), min_size=1, max_size=5), st.integers(0, 99), st.booleans())
def test_below_the_least_z_p_values_are_larger(p, seed, coarse):
    from lumina_plugin.intervals import least_z
    with pytest.MonkeyPatch.context() as patch:
        if coarse:
            for name, value in (('EXACT_POOL', 100), ('EXACT_TAIL', 30), ('STEPS', 50)):
                patch.setattr(calibration, name, value)
        null = Null(np.random.default_rng(seed).normal(size=(64, 9)))
        least = least_z(null, np.array(p))
        for limit, z in zip(p, least, strict=True):
            assert (z == np.inf) == (limit < null.smallest)
            if np.isfinite(z):
                assert null.p_values(z) > limit >= null.p_values(z + 2e-9 * max(1, abs(z)) + 1e-9)
