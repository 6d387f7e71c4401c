"""A prompt that is counted apart: half of the query's fingerprint, however long it is."""

import numpy as np
import pytest
import torch

from lumina_plugin.attribution import Attributor, QueryFacts
from lumina_plugin.conditions import attributes_for
from lumina_plugin.gradients import Example
from lumina_plugin.models import load_musicgen, run_stores
from lumina_plugin.recipe import recipe_from_dict
from lumina_plugin.store import FingerprintStore


@pytest.fixture(scope='module')
def readers(project):
    """Attributors of one store, with the prompt apart and together."""
    run = project.folder()
    musicgen, store = load_musicgen(run), FingerprintStore.open(run_stores(run)[0])
    recipe = recipe_from_dict(store.identity.recipe)
    assert recipe.prompt_apart
    return [Attributor(musicgen.lm, musicgen.compression_model, store,
                       recipe=recipe.model_copy(update={'prompt_apart': apart})) for apart in (True, False)]


def example(reader, start, stop):
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, reader.lm.card, (reader.lm.n_q, 20), generator=generator)
    return Example(codes, start, stop, attributes_for(reader.lm))


def test_both_count_alike(readers):
    """The kernel is linear in the query: the scores are the mean of the two parts' own."""
    apart, together = readers
    whole = apart.scores([example(apart, 0, 20)], prompt_frames=5)
    for channel in ('P', 'M'):
        parts = [together.scores([example(apart, *span)])[channel] for span in ((0, 5), (5, 20))]
        np.testing.assert_allclose(whole[channel], np.mean(parts, axis=0), rtol=1e-4, atol=1e-6)
        assert not np.allclose(whole[channel], together.scores([example(apart, 0, 20)], prompt_frames=5)[channel])


@pytest.mark.parametrize('frames', [0, 20, 99])
def test_without_a_prompt_or_with_nothing_else_there_is_one_part(readers, frames):
    apart, together = readers
    for channel, scores in apart.scores([example(apart, 0, 20)], prompt_frames=frames).items():
        np.testing.assert_array_equal(scores, together.scores([example(apart, 0, 20)])[channel])


def test_a_report_reads_the_prompt_in_its_other_reading(readers):
    apart, together = readers
    rate = apart.tokenizer.frame_rate
    codes = example(apart, 0, 20).codes
    facts = QueryFacts(kind='continuation', prompt_seconds=5 / rate)
    reports = [reader.attribute_codes(codes, facts=facts) for reader in readers]
    assert reports[0].other_reading.prompt_counted and reports[0].recipe.keys['prompt_apart'] is True
    expected = apart.scores([example(apart, 0, 20)], prompt_frames=5)
    for channel, found in reports[0].other_reading.channels.items():
        by_song = {row.track_id: row.score for row in found.rows}
        np.testing.assert_allclose([by_song[song] for song in apart.song_ids], expected[channel], rtol=1e-4, atol=1e-6)
    first, second = ({row.track_id: row.score for row in report.channels['P'].rows} for report in reports)
    assert first == second  # with the prompt masked there is nothing to weigh
