"""Queries drawn anew, whole or in two halves: a resample scores what the mean that it stands for would score."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumina_plugin.gradients import Example
from lumina_plugin.prompts import Halves, cut_at_prompt
from lumina_plugin.resampling import Parts, draws_of, mixture_of

CHUNKS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20), st.integers(-9, 40), st.integers(0, 3)), min_size=1,
                  max_size=8)  # start, frames, the frame before which it was given, and the part


def parts_of(groups, unit, seed=0, checkpoints=2, width=7, songs=5):
    """Chunks in groups, whose scores are inner products with songs, by direction or not; and the songs."""
    rng = np.random.default_rng(seed)
    count = len(groups)
    vectors = list(rng.normal(size=(checkpoints, count, width)))
    whole = list(rng.normal(size=(checkpoints, len(set(groups)), width)))
    known = rng.normal(size=(checkpoints, songs, width))
    scores = [rows @ of.T / (np.linalg.norm(rows, axis=1, keepdims=True) if unit else 1.)
              for rows, of in zip(vectors, known, strict=True)]
    return Parts(vectors, whole, rng.integers(1, 9, count), scores, scores, (unit, unit), groups), known


def by_hand(parts, known, chunks, checkpoints, unit):
    """The mean, over the drawn checkpoints, of the scores of the mean of the groups' drawn means [N]."""
    total = 0.
    for checkpoint, (rows, wholes) in enumerate(zip(parts.vectors, parts.whole, strict=True)):
        drawn = []
        for group, whole in zip(sorted(set(parts.groups)), wholes, strict=True):
            names = [chunk for chunk, own in enumerate(parts.groups) if own == group for _ in range(int(chunks[chunk]))]
            mean = np.average(rows[names], axis=0, weights=np.asarray(parts.frames)[names])
            drawn.append(mean / np.linalg.norm(mean) * np.linalg.norm(whole))
        query = np.mean(drawn, axis=0)
        query /= np.linalg.norm(query) if unit else 1.
        total += checkpoints[checkpoint] * known[checkpoint] @ query
    return total / len(parts.vectors)


@pytest.mark.parametrize('unit', [False, True])
@pytest.mark.parametrize('groups', [[0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1]])
def test_a_resample_scores_what_the_mean_of_its_groups_means_scores(groups, unit):
    parts, known = parts_of(groups, unit)
    draws = draws_of(parts, 3)
    found = mixture_of(parts, draws, unit) @ np.concatenate(parts.scores)  # [1 + B, N]
    for row, chunks, checkpoints in zip(found, *draws, strict=True):
        np.testing.assert_allclose(row, by_hand(parts, known, chunks, checkpoints, unit), atol=1e-12)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 99))
def test_each_group_draws_as_many_of_its_own_as_it_has(groups, checkpoints, seed):
    groups = [group - min(groups) for group in groups]
    parts, _ = parts_of(groups, False, checkpoints=checkpoints)
    chunks, drawn = draws_of(parts, seed)
    assert (chunks[0] == 1).all() and (drawn.sum(axis=1) == checkpoints).all()
    for group in set(groups):
        own = [chunk for chunk, name in enumerate(groups) if name == group]
        assert (chunks[:, own].sum(axis=1) == len(own)).all()
    sizes = [groups.count(group) for group in set(groups)]
    assert parts.counts == (sum(size for size in sizes if size > 1) or 1, checkpoints)
    ungrouped = dataclasses.replace(parts, groups=None)
    assert ungrouped.counts == (len(groups), checkpoints)


@given(CHUNKS)
def test_a_cut_query_has_every_frame_once_in_its_half(chunks):
    codes = torch.zeros(1, 40)
    examples = [(Example(codes, start, start + frames, None), frame) for start, frames, frame, _ in chunks]
    of_part = [part for *_, part in chunks]
    cut = cut_at_prompt(examples, of_part)
    given_frames = sum(max(0, min(frame, one.stop) - one.start) for one, frame in examples)
    total = sum(one.weight for one, _ in examples)
    if cut is None:
        assert given_frames in (0, total)
        return
    by_half = [sum(frames for frames, half in zip(cut.frames, cut.half, strict=True) if half == wanted)
               for wanted in range(2)]
    assert by_half == [given_frames, total - given_frames]
    assert [cut.half[piece] for piece in cut.of_piece] == cut.of_half == sorted(cut.of_half)
    for piece, frames in enumerate(cut.frames):
        own = [one for one, name in zip(cut.examples, cut.of_piece, strict=True) if name == piece]
        assert own and sum(one.weight for one in own) == frames
    assert set(cut.half) == {0, 1} and len(cut.half) <= 2 * len(set(of_part))


def test_a_query_is_the_mean_of_its_halves():
    halves = Halves(None, {'P': [np.array([[1., 0.], [0., 3.]])]}, {})  # type: ignore[arg-type]
    np.testing.assert_array_equal(halves.whole['P'][0], [0.5, 1.5])
