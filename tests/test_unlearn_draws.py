"""How many draws of noise a diffusion's losses need: what is counted, and the command in a process of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lumina_plugin.errors import LuminaError
from lumina_plugin.fingerprint import Song
from lumina_plugin.prepared import progress_bar
from lumina_plugin.unlearning import draws
from lumina_plugin.unlearning.diffusion import DiffusionSubject
from lumina_plugin.unlearning.masks import Piece
from lumina_plugin.unlearning.recipe import unlearning_recipe
from lumina_plugin.validation.lds import HalfLosses, Interval, interval, lds
from lumina_plugin.validation.ranking import row_spearman

from .test_dit_solver import runs  # noqa: F401 (a fixture)
from .tiny_dit import tiny_dit, tiny_examples

RECIPE = unlearning_recipe('default', fisher='identity', relative=.01, mask='none')


@pytest.fixture
def subject(tmp_path):
    dit = tiny_dit()
    return DiffusionSubject(tmp_path, dit, [Song(f'song-{i}', [one]) for i, one in enumerate(tiny_examples(dit, 12))])


@pytest.fixture
def pieces(subject):
    return [Piece(one.id, [one]) for one in tiny_examples(subject.dit, 2, seed=1)]


def test_every_number_is_an_unlearning_of_its_own(subject, pieces, tmp_path):
    members = np.random.default_rng(0).integers(0, 2, (6, 12)).astype(float)
    halves = HalfLosses(members, np.random.default_rng(1).normal(size=(6, 2)), np.full(2, np.nan))
    found = draws.measure(subject, RECIPE, pieces, tmp_path, 2, 8, halves)
    assert [row.draws for row in found.rows] == [2, 4] and (found.queries, found.songs) == (2, 12)
    scores = {}
    for count in (2, 4, 8):
        recipe = subject.adapted(RECIPE).model_copy(update={'draws': count})
        scores[count] = subject.unlearner(recipe, progress_bar).scores([subject.query_of(p, recipe)
                                                                        for p in pieces]).scores
    for row in found.rows:
        one, two = scores[row.draws], scores[2 * row.draws]
        first = [[set(np.argsort(-line)[:10]) for line in some] for some in (one, two)]
        assert row.unmoved == sum(a == b for a, b in zip(*first, strict=True))
        assert row.common.mean == pytest.approx(np.mean([len(a & b) / 10 for a, b in zip(*first, strict=True)]))
        assert row.spearman == interval(row_spearman(one, two)) and row.lds == interval(lds(one, halves))
        assert row.relative == pytest.approx(.01, rel=1e-3)
    assert 'LDS at T' in draws.markdown(found)


def test_the_first_ten_can_be_looked_for_among_the_highest(subject, pieces, tmp_path):
    whole = draws.measure(subject, RECIPE, pieces, tmp_path, 2, 8)
    few = draws.measure(subject, RECIPE, pieces, tmp_path, 2, 8, among=11)
    scores = {}
    for count in (2, 4, 8):
        recipe = subject.adapted(RECIPE).model_copy(update={'draws': count})
        scores[count] = subject.unlearner(recipe, progress_bar).scores([subject.query_of(p, recipe)
                                                                        for p in pieces]).scores
    for row, one in zip(few.rows, (2, 4), strict=True):
        kept = [set(np.argsort(-line)[:11]) for line in scores[2]]
        first = [[set(sorted(some, key=lambda song: -line[song])[:10])
                  for some, line in zip(kept, scores[count], strict=True)] for count in (one, 2 * one)]
        assert row.unmoved == sum(a == b for a, b in zip(*first, strict=True)) and row.lds is None
    assert few.rows[0].seconds == whole.rows[0].seconds  # what was measured of all songs was read
    assert 'only the 11 songs' in draws.markdown(few)


def test_what_was_measured_is_read(subject, pieces, tmp_path, monkeypatch):
    found = draws.measure(subject, RECIPE, pieces, tmp_path, 2, 4)
    monkeypatch.setattr(DiffusionSubject, 'unlearner', None)
    assert draws.measure(subject, RECIPE, pieces, tmp_path, 2, 4) == found


@pytest.mark.parametrize('unmoved, enough', [([2, 2, 2], 16), ([1, 2, 2], 32), ([2, 1, 2], 64), ([2, 2, 1], None)])
def test_enough_is_where_nothing_moves_any_more(unmoved, enough):
    one = Interval(1., 1., 1.)
    rows = [draws.Doubling(16 * 2 ** i, count, one, one, None, .01, 1.) for i, count in enumerate(unmoved)]
    found = draws.Draws(RECIPE, 2, 12, rows)
    assert found.enough == enough
    assert (f'From T = {enough} on' if enough else 'ask for more') in draws.markdown(found)


def test_what_has_no_answer_is_refused(subject, pieces, tmp_path, project):
    from lumina_plugin.unlearning.opened import free_pieces
    with pytest.raises(LuminaError, match='raise the last number to 16'):
        draws.measure(subject, RECIPE, pieces, tmp_path, 8, 12)
    with pytest.raises(LuminaError, match='among 10 of 12'):
        draws.measure(subject, RECIPE, pieces, tmp_path, 2, 4, among=10)
    with pytest.raises(LuminaError, match='is no diffusion'):
        free_pieces(project.folder(), 2)


def test_the_command_in_a_process_of_its_own(runs, tmp_path):  # noqa: F811
    """Whatever is imported first: the libraries that audiocraft trips over are seen to."""
    argv = [sys.executable, '-m', 'lumina_plugin', 'unlearn', 'draws', str(runs.folder()), '--from', '2', '--to', '4',
            '--queries', '2', '--set', 'fisher=identity', '--set', 'mask=none', '--out', str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=runs.root,
                          env={**os.environ, 'LUMINA_DORA_DIR': str(runs.root / 'runs')})
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((tmp_path / 'draws' / 'draws.json').read_text())
    assert [row['draws'] for row in told['rows']] == [2] and told['queries'] == 2
    assert (tmp_path / 'draws' / 'draws.md').read_text().strip() in done.stdout
    assert (tmp_path / 'draws' / 'draws.png').read_bytes().startswith(b'\x89PNG')
