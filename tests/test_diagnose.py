"""Diagnoses of score matrices of known shape, and of real reports."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumina_plugin.errors import LuminaError
from lumina_plugin.reliability import TOP, diagnose
from lumina_plugin.validation.diagnose import scores_of

NAMES = [f's{i}' for i in range(200)]


def test_one_ranking_for_all_queries_is_seen():
    rng = np.random.default_rng(0)
    scores = np.outer(rng.uniform(1, 2, 30), rng.normal(size=50)) + 1e-6 * rng.normal(size=(30, 50))
    found = diagnose(scores, NAMES)
    assert found.ranking_correlation > .99 and found.rank_one_energy > .99 and found.effective_rank < 1.01
    assert found.hub_skewness > 2 and found.hubs[0][1] == 30


def test_independent_queries_are_seen():
    found = diagnose(np.random.default_rng(0).normal(size=(100, 200)), NAMES)
    assert found.ranking_correlation < .1 and found.rank_one_energy < .05 and found.effective_rank > 60
    assert abs(found.hub_skewness) < 1


def test_opposite_rankings_are_one_pattern():
    pattern = np.random.default_rng(1).normal(size=20)
    found = diagnose(np.stack([pattern, -pattern, 2 * pattern, -pattern]), NAMES)
    assert found.ranking_correlation == pytest.approx(1.) and found.rank_one_energy == pytest.approx(1.)


@given(st.integers(0, 1000), st.integers(3, 12), st.integers(6, 20))
def test_the_order_of_songs_and_the_scale_of_a_query_do_not_matter(seed, queries, songs):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(queries, songs))
    order = rng.permutation(songs)
    first = diagnose(scores, NAMES)
    second = diagnose(scores[:, order] + rng.normal(size=(queries, 1)), [NAMES[i] for i in order])
    for key in ('ranking_correlation', 'rank_one_energy', 'effective_rank', 'hub_skewness'):
        assert getattr(first, key) == pytest.approx(getattr(second, key), abs=1e-8)
    assert sum(often for _, often in first.hubs) <= TOP * queries


def test_equal_scores_are_a_result():
    found = diagnose(np.ones((4, 6)), NAMES, np.zeros((4, 6)))
    assert (found.ranking_correlation, found.effective_rank, found.concentration) == (0., 1., 0.)
    assert np.isfinite(found.hub_skewness)


def test_too_little_is_refused():
    with pytest.raises(LuminaError, match='at least three'):
        diagnose(np.ones((2, 6)), NAMES)


@pytest.fixture(scope='module')
def reports(studio, project, tmp_path_factory):
    folder = tmp_path_factory.mktemp('reports')
    for path in sorted((project.root / 'songs').rglob('song-*.wav'))[:4]:
        studio.attribute(path, folder / path.stem)
    return folder


def test_reports_are_gathered_and_diagnosed(reports, tmp_path, capsys):
    from lumina_plugin.cli import main
    scores = scores_of([reports])
    assert set(scores) == {'P', 'M'} and scores['P'].scores.shape == (4, 6)
    some = json.loads((reports / 'song-0' / 'report.json').read_text())
    row = some['channels']['M']['rows'][2]
    place = scores['M'].songs.index(row['track_id'])
    assert scores['M'].scores[scores['M'].queries.index('song-0'), place] == row['score']
    main(['validate', 'diagnose', str(reports), '--out', str(tmp_path)])
    assert '| effective rank |' in capsys.readouterr().out
    assert json.loads((tmp_path / 'diagnose.json').read_text())['P']['queries'] == 4
    assert (tmp_path / 'diagnose.png').read_bytes().startswith(b'\x89PNG') and (tmp_path / 'diagnose.md').is_file()


def test_reports_of_different_stores_are_not_mixed(reports, tmp_path):
    text = (reports / 'song-1' / 'report.json').read_text()
    held = json.loads(text)['store']['hash']
    (tmp_path / 'report.json').write_text(text.replace(held, '0' * len(held)))
    with pytest.raises(LuminaError, match='another store'):
        scores_of([reports, tmp_path])


def test_a_folder_without_reports(tmp_path):
    with pytest.raises(LuminaError, match='no report.json'):
        scores_of([tmp_path])
