"""Diagnoses of a store by its outside songs, and what reports say of them."""

import numpy as np
import pytest

from lumina_plugin.attribution import Attributor
from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.reliability import FIGURES, LEAST, MOST, diagnose_store, doubts
from lumina_plugin.report import words

NAMES = [f's{i}' for i in range(300)]


def scores(common, queries=80, songs=300, seed=0):
    """Every query with its own scores, and so much of one that all share."""
    rng = np.random.default_rng(seed)
    return (1 - common) * rng.normal(size=(queries, songs)) + common * rng.normal(size=songs)


def test_one_ranking_for_everything_is_doubted_and_many_are_not():
    assert doubts(diagnose_store(scores(0.), NAMES)) == []
    found = doubts(diagnose_store(scores(.95), NAMES))
    assert {'ranking_correlation', 'rank_one_energy', 'effective_rank', 'hub_skewness'} <= set(found)
    assert set(found) <= {*MOST, *LEAST} == set(FIGURES)


def test_a_large_store_is_sampled_and_a_tiny_one_not_judged(monkeypatch):
    from lumina_plugin import reliability
    monkeypatch.setattr(reliability, 'SONGS', 100)
    assert diagnose_store(scores(.5), NAMES).songs == 100
    assert diagnose_store(scores(.5, songs=2), NAMES[:2]) is None


def test_reports_print_the_line_of_their_store(project):
    run = project.folder()
    musicgen = load_musicgen(run)
    attributor = Attributor(musicgen.lm, musicgen.compression_model, run_stores(run)[0])
    report = attributor.attribute_file(next((project.root / 'songs').glob('*.wav')))
    for channel in report.channels.values():
        reliability = channel.calibration.reliability
        assert 0 <= reliability.ranking_correlation <= 1 and reliability.effective_rank >= 1
        line = words.reliability(channel)
        assert line in words.certainty(channel) and line.startswith('Reliability: ')
        assert f'of {channel.calibration.reliability.queries} outside recordings' in line
        doubted = reliability.model_copy(update={'doubts': ['hub_skewness']})
        calibration = channel.calibration.model_copy(update={'reliability': doubted})
        assert 'do not rely on this channel, for a few songs are close to everything' in words.reliability(
            channel.model_copy(update={'calibration': calibration}))


@pytest.mark.parametrize('key', FIGURES)
def test_every_figure_has_words(key):
    assert words._DOUBTS[key]
