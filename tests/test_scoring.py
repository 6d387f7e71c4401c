"""Scores against oracles: the printed formulas, and the degenerate inputs that must not become NaN."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lumina_plugin import scoring
from lumina_plugin.errors import LuminaError
from lumina_plugin.scoring import (
    StackedRows,
    compute_scores,
    cosine,
    dot,
    fit_scorers,
    kernel,
    kernel_reference,
    multi_checkpoint,
    score_names,
    score_together,
)

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def data(songs: int = 30, width: int = 12, queries: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(queries, width)), rng.normal(size=(songs, width)) * rng.uniform(0.1, 10, size=(songs, 1))


def test_cosine_is_the_printed_formula():
    queries, songs = data()
    expected = [[query @ song / (np.linalg.norm(query) * np.linalg.norm(song)) for song in songs] for query in queries]
    np.testing.assert_allclose(cosine(queries, songs), expected, atol=1e-12)
    np.testing.assert_allclose(cosine(queries[1], songs), [expected[1]], atol=1e-12)


@pytest.mark.parametrize('songs, width', [(30, 12), (12, 30), (1, 8), (50, 50)])
@pytest.mark.parametrize('ridge', [1e-3, 0.01, 1.0])
def test_kernel_is_the_printed_n_by_n_form(songs, width, ridge):
    queries, rows = data(songs, width, seed=songs)
    rows[0] = 0  # a silent song
    np.testing.assert_allclose(kernel(queries, rows, ridge), kernel_reference(queries, rows, ridge), atol=1e-6)


@pytest.mark.parametrize('name', ['cosine', 'dot', 'kernel'])
def test_blocks_do_not_change_a_score(name, monkeypatch):
    queries, songs = data(songs=29)
    whole = compute_scores(name, queries, songs)
    monkeypatch.setattr(scoring, 'BLOCK', 4)
    np.testing.assert_allclose(compute_scores(name, queries, songs), whole, atol=1e-12)


def test_a_memory_map_is_read_block_by_block_and_never_as_a_whole(tmp_path, monkeypatch):
    queries, songs = data(songs=40)
    np.save(tmp_path / 'songs.npy', songs.astype(np.float32))
    stored = np.load(tmp_path / 'songs.npy', mmap_mode='r')

    class Watched:
        shape, longest = stored.shape, 0

        def __getitem__(self, part):
            Watched.longest = max(Watched.longest, part.stop - part.start)
            return stored[part]

    monkeypatch.setattr(scoring, 'BLOCK', 8)
    for name in score_names():
        np.testing.assert_allclose(
            compute_scores(name, queries, Watched()), compute_scores(name, queries, songs), atol=1e-5
        )
    assert Watched.longest == 8


@pytest.mark.parametrize('name', score_names())
def test_zero_vectors_score_zero(name):
    queries, songs = data()
    queries[0], songs[3] = 0, 0
    scores = compute_scores(name, queries, songs)
    assert np.isfinite(scores).all() and (scores[0] == 0).all() and (scores[:, 3] == 0).all()
    assert np.abs(scores[1:, :3]).min() > 0
    assert (compute_scores(name, queries, np.zeros_like(songs)) == 0).all()


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8), elements=finite), st.data())
def test_any_finite_input_gives_finite_scores(songs, draw):
    query = draw.draw(arrays(np.float64, songs.shape[1], elements=finite))
    for name in score_names():
        assert np.isfinite(compute_scores(name, query, songs)).all()
    assert np.abs(cosine(query, songs)).max() <= 1


@given(st.sampled_from(['cosine', 'kernel']), st.floats(1e-150, 1e150), st.integers(0, 5))
def test_lengths_do_not_matter_to_cosine_and_kernel(name, factor, seed):
    queries, songs = data(seed=seed)
    np.testing.assert_allclose(
        compute_scores(name, queries * factor, songs / factor), compute_scores(name, queries, songs), atol=1e-9
    )


def test_dot_keeps_lengths_and_an_empty_store_gives_an_empty_row():
    queries, songs = data()
    np.testing.assert_allclose(dot(queries, songs), queries @ songs.T, atol=1e-9)
    for name in score_names():
        assert compute_scores(name, queries, np.zeros((0, 12))).shape == (3, 0)


def test_multi_checkpoint_is_the_mean():
    scores = [np.array([[1.0, 2.0]]), np.array([[3.0, -2.0]])]
    np.testing.assert_array_equal(multi_checkpoint(scores), [[2.0, 0.0]])


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda: compute_scores('cosin', np.ones(3), np.ones((2, 3))), 'cosine, dot, kernel'),
        (lambda: cosine(np.ones(4), np.ones((2, 3))), '4 wide and the songs. are 3'),
        (lambda: cosine(np.ones(3), np.ones(3)), r'\[N, D\]'),
        (lambda: cosine(np.array([1, np.nan]), np.ones((2, 2))), 'query number 0'),
        (lambda: kernel(np.ones(2), np.array([[1, 1], [1, np.inf]])), 'song number 1'),
        (lambda: kernel(np.ones(2), np.ones((2, 2)), ridge=0), 'scoring.ridge'),
        (lambda: multi_checkpoint([]), 'fingerprint at least one'),
        (lambda: multi_checkpoint([np.ones((1, 2)), np.ones((1, 3))]), 'same songs'),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(LuminaError, match=words):
        call()


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match='already'):
        scoring.register_score('cosine')(scoring.Cosine)


@pytest.mark.parametrize('name', score_names())
def test_shards_score_as_one_matrix_and_scores_together_as_alone(name):
    queries, songs = data(songs=40)
    parts = [torch.from_numpy(songs[:15]), torch.from_numpy(songs[15:15]), torch.from_numpy(songs[15:])]
    stacked = StackedRows(parts, 12)
    assert stacked.shape == (40, 12)
    np.testing.assert_allclose(compute_scores(name, queries, stacked), compute_scores(name, queries, songs), atol=1e-12)
    scorers = fit_scorers(['dot', name], stacked, ridge=0.3)
    together = score_together(list(scorers.values()), queries)
    np.testing.assert_allclose(together[-1], compute_scores(name, queries, songs, ridge=0.3), atol=1e-12)
    np.testing.assert_array_equal(stacked.take(np.array([3, 15, 39])), songs[[3, 15, 39]])
    assert StackedRows([], 12).shape == (0, 12) and compute_scores(name, queries, StackedRows([], 12)).shape == (3, 0)


@pytest.mark.parametrize('name', score_names())
def test_large_stores_are_scored_in_single_precision_to_six_digits(name, monkeypatch):
    queries, songs = data(songs=500, width=64)
    exact = compute_scores(name, queries, songs)
    monkeypatch.setattr(scoring, 'EXACT_SONGS', 100)
    fast = compute_scores(name, queries, songs.astype(np.float32))
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, exact, atol=3e-6 * np.abs(exact).max())


def test_the_highest_songs_of_a_large_half_precision_store_have_exact_scores(monkeypatch):
    queries, songs = data(songs=900, width=64, queries=6)
    stored = torch.from_numpy(songs / np.linalg.norm(songs, axis=1, keepdims=True)).half()
    rows = StackedRows([stored[:400], stored[400:]], 64)
    exact = {name: compute_scores(name, queries, stored.double().numpy(), ridge=50.) for name in ('cosine', 'kernel')}
    monkeypatch.setattr(scoring, 'EXACT_SONGS', 100)
    monkeypatch.setattr(scoring, 'REFINED', 20)
    for asked in (queries, queries[:1]):
        scorers = fit_scorers(['cosine', 'kernel'], rows, ridge=50.)
        found = dict(zip(scorers, score_together(list(scorers.values()), asked), strict=True))
        for name, scores in found.items():
            for score, true in zip(scores, exact[name], strict=False):
                top = np.argsort(-true)[:20]
                np.testing.assert_allclose(score[top], true[top], rtol=2e-6)
                np.testing.assert_allclose(score, true, atol=2e-3 * np.abs(true).max())
                assert (np.argsort(-score)[:20] == top).all()


def test_kernel_is_exact_at_five_hundred_songs_of_full_width():
    """The D x D form against the printed N x N one, at the width that stores have."""
    rng = np.random.default_rng(7)
    queries, songs = rng.normal(size=(2, 512)), rng.normal(size=(500, 512)).astype(np.float16)
    for ridge in (0.01, 0.1):
        difference = np.abs(kernel(queries, songs, ridge) - kernel_reference(queries, songs, ridge)).max()
        assert difference < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(0, 300), st.integers(0, 2 ** 31), st.booleans())
def test_the_highest_are_those_of_a_full_sort(count, k, seed, ties):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 9, count).astype(float) if ties else rng.standard_normal(count)
    expected = np.argsort(-score, kind='stable')[:k]
    np.testing.assert_array_equal(scoring.highest(score, k), expected)
    exact, scoring.EXACT_SONGS = scoring.EXACT_SONGS, 64  # so that most songs are not sorted at all
    try:
        np.testing.assert_array_equal(scoring.highest(score, k), expected)
    finally:
        scoring.EXACT_SONGS = exact
