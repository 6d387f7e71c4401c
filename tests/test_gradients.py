"""Batches of examples: like lengths together, and as large as memory takes."""

import logging

import pytest
import torch

from lumina_plugin.capture import Moments, full_gradient
from lumina_plugin.errors import LuminaError
from lumina_plugin.gradients import Example, GradientModel
from lumina_plugin.recipe import get_recipe

from .tiny import build_lm, build_songs


def model(batch_size=8):
    return GradientModel(build_lm(), get_recipe('default'), batch_size=batch_size)


def cut(example, frames):
    """Of which so many frames are music and the others padding."""
    return Example(example.codes, 0, frames, example.attributes)


def test_examples_of_like_length_share_a_batch():
    gradients = model(4)
    examples = [cut(build_songs(gradients.lm, 1, seed=i)[0].examples[0], n) for i, n in enumerate((6, 17, 5, 17, 6, 6))]
    seen = [batch for batch, _ in gradients.batches(examples, {name: full_gradient for name in gradients.blocks})]
    assert seen == [[1, 3, 0, 4], [5, 2]]


def test_shorter_examples_fill_a_batch_by_their_frames():
    gradients = model(2)
    one = build_songs(gradients.lm, 1)[0].examples[0]
    examples = [cut(one, 17), *(cut(one, 7) for _ in range(5))]  # 3 more are read, for the delays
    seen = [batch for batch, _ in gradients.batches(examples, {name: full_gradient for name in gradients.blocks})]
    assert seen == [[0, 1], [2, 3, 4, 5]]


def test_codes_that_end_with_the_music_are_not_padded():
    """Padded, those of late codebooks at their end would be predicted, which alone they are not."""
    gradients = model()
    one = build_songs(gradients.lm, 1)[0].examples[0]
    examples = [Example(one.codes[:, :frames], 0, frames, one.attributes) for frames in (24, 9, 24)]
    seen = [batch for batch, _ in gradients.batches(examples, {name: full_gradient for name in gradients.blocks})]
    assert seen == [[0, 2], [1]]


def test_what_follows_the_music_changes_nothing():
    """Codes after the music are neither read nor computed, but for the steps that a delay pattern needs."""
    gradients = model()
    reducers = {name: full_gradient for name in gradients.blocks}
    short = build_songs(gradients.lm, 1, frames=24)[0].examples[0]  # 17 of 24 frames are music
    other = Example(torch.cat([short.codes[:, :17], (short.codes[:, 17:] + 5) % 16, short.codes], dim=1), 0, 17,
                    short.attributes)
    for name, gradient in gradients.gradients([short], reducers).items():
        assert torch.equal(gradients.gradients([other], reducers)[name], gradient)


def test_each_channel_has_the_gradients_of_its_own_objective():
    lm = build_lm()
    examples = list(build_songs(lm, 2)[0].examples)
    def of(objective):
        gradients = GradientModel(lm, get_recipe('default', objective=objective))
        found = gradients.gradients(examples, {name: full_gradient for name in gradients.blocks})
        return {channel: {block.name: found[block.name] for block in blocks}
                for channel, blocks in gradients.channels.items()}
    mixed, margin, entropy = of({'P': 'margin', 'M': 'cross_entropy'}), of('margin'), of('cross_entropy')
    for channel, same, other in (('P', margin, entropy), ('M', entropy, margin)):
        for name, gradient in mixed[channel].items():
            torch.testing.assert_close(gradient, same[channel][name])
            assert not torch.allclose(gradient, other[channel][name], rtol=1e-3)


def test_a_weight_cannot_have_two_objectives():
    recipe = get_recipe('default', objective={'P': 'margin', 'M': 'cross_entropy'}, channels={'P': ['all'],
                                                                                             'M': ['output_linears']})
    with pytest.raises(LuminaError, match=r'linears\.0\.weight belongs to channels of different objectives'):
        GradientModel(build_lm(), recipe)


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory'), MemoryError(),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_a_batch_that_memory_does_not_hold_is_halved_and_said(error, caplog):
    gradients, undisturbed = model(8), model(1)
    inner, room = gradients.gradients, 3

    def crowded(examples, reducers):
        if len(examples) > room:
            raise error
        return inner(examples, reducers)
    gradients.gradients = crowded
    reducers = {name: full_gradient for name in gradients.blocks}
    examples = [example for song in build_songs(gradients.lm, 6) for example in song.examples]
    with caplog.at_level(logging.WARNING):
        found = list(gradients.batches(examples, reducers))
    assert gradients.batch_size == 4 and 'going on with at most 3' in caplog.text
    assert all(len(batch) <= 3 for batch, _ in found)
    alone = {index: one for batch, one in undisturbed.batches(examples, reducers) for index in batch}
    assert sorted(index for batch, _ in found for index in batch) == sorted(alone)
    for batch, several in found:
        for row, index in enumerate(batch):
            for name, gradient in several.items():
                torch.testing.assert_close(gradient[row], alone[index][name][0], rtol=1e-4, atol=1e-7)
    room = 0
    with pytest.raises(LuminaError, match='not enough memory on cpu .* single chunk .*chunk_seconds'):
        list(gradients.batches(examples, reducers))


def test_short_chunks_are_halved_too_until_one_is_left():
    gradients = model(1)
    inner = gradients.gradients

    def crowded(examples, reducers):
        if len(examples) > 1:
            raise MemoryError
        return inner(examples, reducers)
    one = build_songs(gradients.lm, 1, frames=40)[0].examples[0]
    examples = [one, *(cut(one, 5) for _ in range(5))]
    gradients.gradients = crowded
    found = [batch for batch, _ in gradients.batches(examples, {name: full_gradient for name in gradients.blocks})]
    assert sorted(index for batch in found for index in batch) == list(range(6)) and len(found) == 6


def test_second_moments_of_a_pass_that_failed_are_not_counted():
    gradients, again = model(), model()
    examples = build_songs(gradients.lm, 3)[2].examples
    moments, expected = ({name: Moments() for name in gradients.blocks} for _ in range(2))
    last = min(gradients.blocks)  # the first layer: the last whose gradient comes

    def fails_once(a, delta):
        moments[last](a, delta)
        raise MemoryError
    with pytest.raises(MemoryError):
        gradients.gradients(examples, {**moments, last: fails_once})
    for _ in gradients.batches(examples, moments):
        pass
    for _ in again.batches(examples, expected):
        pass
    for name in moments:
        torch.testing.assert_close(moments[name].delta, expected[name].delta)


def test_another_error_is_not_taken_for_lack_of_memory():
    gradients = model()

    def broken(examples, reducers):
        raise RuntimeError('shape mismatch')
    gradients.gradients = broken
    with pytest.raises(RuntimeError, match='shape mismatch'):
        list(gradients.batches(build_songs(gradients.lm, 1)[0].examples, {}))
