"""A prompt that is counted apart: half of the query's fingerprint, however long it is."""

import numpy as np
import pytest
import torch

from lumina_plugin import attribution
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


def example(reader, start, stop, frames=20):
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, reader.lm.card, (reader.lm.n_q, frames), generator=generator)
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


def test_intervals_draw_each_half_from_its_own_chunks(readers, monkeypatch):
    """Chunks of 50, 50 and 20 frames, of which the first 60 are the prompt's: it never draws what follows."""
    drawn = []

    def share_intervals(values, null, parts, seed):
        drawn.append((values, parts))
        return intervals(values, null, parts, seed)
    intervals = attribution.share_intervals
    monkeypatch.setattr(attribution, 'share_intervals', share_intervals)
    apart, _ = readers
    whole = example(apart, 0, 120, 120)
    report = apart.attribute_codes(whole.codes, facts=QueryFacts(kind='continuation',
                                                                 prompt_seconds=60 / apart.tokenizer.frame_rate))
    (masked, one), (_, other), (values, parts), _ = drawn  # what follows, in two channels; then with the prompt
    assert one.groups is None and other.groups is None and len(one.frames) == 2
    assert parts.groups == [0, 0, 1, 1] and parts.frames == [50, 10, 40, 20] and parts.counts == (4, 2)
    channel = next(iter(report.channels))
    spans = [(0, 0, 50), (1, 0, 10), (1, 10, 50), (2, 0, 20)]
    pieces = apart.fingerprint_parts([Example(whole.codes[:, 50 * chunk:50 * (chunk + 1)], start, stop,
                                              whole.attributes) for chunk, start, stop in spans])
    for found, expected in zip(parts.vectors, pieces[channel], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    prompt, _ = apart._fingerprints([Example(whole.codes[:, first:first + 50], 0, frames, whole.attributes)
                                     for first, frames in ((0, 50), (50, 10))], [0, 0])
    for found, expected in zip(parts.whole, prompt[channel], strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-5)
    resampling = report.other_reading.channels[channel].resampling
    assert (resampling.chunks, resampling.checkpoints) == (4, 2)


def test_one_chunk_of_each_half_leaves_checkpoints_alone_to_draw(readers):
    apart, _ = readers
    codes, facts = example(apart, 0, 20).codes, QueryFacts(kind='continuation',
                                                           prompt_seconds=5 / apart.tokenizer.frame_rate)
    report = apart.attribute_codes(codes, facts=facts)
    for channel in (*report.channels.values(), *report.other_reading.channels.values()):
        assert (channel.resampling.chunks, channel.resampling.checkpoints) == (1, 2)
