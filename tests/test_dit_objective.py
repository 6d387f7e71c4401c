"""The v-objective against its formula by hand, its draws, its masks, and what batches and padding must not change."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_plugin.dit.objective import DiffusionLoss, angle_time, noise, noisy
from lumina_plugin.errors import LuminaError

from .tiny_dit import tiny_dit, tiny_examples


@pytest.fixture(scope='module')
def dit():
    return tiny_dit()


def by_hand(dit, example, draw, seed, mask=None):
    """One example's loss at one draw, spelt out with diffusers' own module alone."""
    t = angle_time(draw, seed)
    phi = t * math.pi / 2
    x0, eps = example.latents, noise(draw, seed, dit.latent_channels, dit.frames)
    x, v = math.cos(phi) * x0 + math.sin(phi) * eps, math.cos(phi) * eps - math.sin(phi) * x0
    states, kept = dit.text([example.text])
    out = dit.projection(text_hidden_states=states, start_seconds=torch.tensor([example.start]),
                         end_seconds=torch.tensor([example.seconds]))
    from diffusers.models.embeddings import get_1d_rotary_pos_embed
    rotary = get_1d_rotary_pos_embed(dit.transformer.config.attention_head_dim // 2, dit.frames + 1, use_real=True,
                                     repeat_interleave_real=False)
    timing = [out.seconds_start_hidden_states, out.seconds_end_hidden_states]
    said = dit.transformer(x[None], torch.tensor([t]), global_hidden_states=torch.cat(timing, 2),
                           encoder_hidden_states=torch.cat([out.text_hidden_states * kept[..., None], *timing], 1),
                           rotary_embedding=rotary).sample[0]
    mask = torch.arange(dit.frames) < example.valid_frames if mask is None else mask
    return float((said.detach() - v)[:, mask].square().mean())


def test_losses_are_the_formula(dit):
    examples = tiny_examples(dit)
    with torch.no_grad():
        found = DiffusionLoss(dit, 4, seed=3, sequences=5).losses(examples)
    for example, loss in zip(examples, found, strict=True):
        expected = sum(by_hand(dit, example, draw, 3) for draw in range(4)) / 4
        assert float(loss) == pytest.approx(expected, rel=1e-5)


@given(st.floats(0.001, 0.999), st.integers(0, 2 ** 31))
@settings(max_examples=25, deadline=None)
def test_x_and_v_are_a_rotation(t, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 1, 3, 5, generator=generator, dtype=torch.float64)
    x, v = noisy(x0, eps, torch.tensor([t], dtype=torch.float64))
    phi = t * math.pi / 2
    torch.testing.assert_close(math.cos(phi) * x - math.sin(phi) * v, x0)
    torch.testing.assert_close(math.sin(phi) * x + math.cos(phi) * v, eps)


def test_convention_is_that_of_the_pipelines_scheduler():
    """diffusers: t = atan(σ)·2/π, and x0 from x and v at noise level σ; only its source says so, so read it there."""
    import importlib.util
    from pathlib import Path
    folder = Path(importlib.util.find_spec('diffusers').submodule_search_locations[0])
    source = (folder / 'schedulers' / 'scheduling_cosine_dpmsolver_multistep.py').read_text()
    assert 'sigma.atan() / math.pi * 2' in source
    assert 'c_out = -sigma * sigma_data / (sigma**2 + sigma_data**2)' in source
    sigma, x0, eps = 0.7, 0.3, -1.2
    phi = math.atan(sigma)
    x, v = math.cos(phi) * x0 + math.sin(phi) * eps, math.cos(phi) * eps - math.sin(phi) * x0
    scaled = x * (1 + sigma ** 2) ** .5  # what the scheduler calls a sample: x0 + σ ε
    assert scaled / (1 + sigma ** 2) - sigma / (1 + sigma ** 2) ** .5 * v == pytest.approx(x0)


def test_draws_are_even_antithetic_and_prefixes_of_longer_ones():
    for count in (8, 64):
        times = sorted(angle_time(draw, 5) for draw in range(0, 2 * count, 2))
        gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
        assert max(gaps) == pytest.approx(1 / count) == min(gaps)
    assert torch.equal(noise(4, 1, 3, 7), -noise(5, 1, 3, 7)) and angle_time(4, 1) == angle_time(5, 1)
    assert not torch.equal(noise(4, 1, 3, 7), noise(6, 1, 3, 7))
    assert not torch.equal(noise(4, 1, 3, 7), noise(4, 2, 3, 7))


def test_the_same_noise_before_and_after(dit):
    """A change of the weights that is taken back gives the same losses to the bit, whatever was asked in between."""
    examples, loss = tiny_examples(dit), DiffusionLoss(dit, 6)
    kept = {name: p.detach().clone() for name, p in dit.transformer.named_parameters()}
    with torch.no_grad():
        before = loss.losses(examples)
        dit.transformer.proj_out.weight.add_(0.1)
        torch.randn(99)
        DiffusionLoss(dit, 600, seed=9).at(examples[:1], [598])
        changed = loss.losses(examples)
        dit.transformer.load_state_dict(kept, strict=False)
        assert torch.equal(loss.losses(examples), before)
        assert torch.equal(DiffusionLoss(dit, 6).losses(examples), before)
    assert not torch.allclose(changed, before)


def test_single_draws_average_to_the_loss(dit):
    examples, loss = tiny_examples(dit), DiffusionLoss(dit, 4)
    with torch.no_grad():
        single = loss.at(examples, range(4))
        assert single.shape == (3, 4)
        torch.testing.assert_close(single.mean(1), loss.losses(examples))
        assert float(single[1, 2]) == pytest.approx(by_hand(dit, examples[1], 2, 0), rel=1e-5)


@given(st.integers(1, 24), st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_neither_batch_nor_masked_frames_matter(dit, valid, seed):
    """A loss is that of the example alone, and an error on a masked frame adds nothing to it."""
    examples, loss = tiny_examples(dit, seed=seed), DiffusionLoss(dit, 2)
    mask = torch.arange(dit.frames) < valid
    with torch.no_grad():
        together = loss.losses(examples, [mask] * 3)
        alone = torch.cat([loss.losses([example], [mask]) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    expected = sum(by_hand(dit, examples[0], draw, 0, mask) for draw in (0, 1)) / 2
    assert float(alone[0]) == pytest.approx(expected, rel=1e-5)


def test_audio_after_the_music_is_the_same_silence_for_all(dit):
    """Padding is no part of a recording: zeros that come with a file are those that the model pads with."""
    wav = 0.1 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(wav, (0, 900))
    assert torch.equal(dit.encode(wav), dit.encode(padded))
    (window,) = dit.windows(wav, 'x')
    assert window.valid_frames == math.ceil(5000 / 320) and window.seconds == 5000 / 16000


def test_weighted_masks(dit):
    example = tiny_examples(dit)[0]
    mask = torch.rand(dit.frames, generator=torch.Generator().manual_seed(1))
    loss = DiffusionLoss(dit, 1)
    with torch.no_grad():
        frames = torch.stack([loss.losses([example], [torch.arange(dit.frames) == i])[0] for i in range(dit.frames)])
        torch.testing.assert_close(loss.losses([example], [mask])[0], (frames * mask).sum() / mask.sum())


def test_an_empty_mask_names_the_song(dit):
    examples = tiny_examples(dit)
    with pytest.raises(LuminaError, match='song-1'):
        DiffusionLoss(dit, 1).losses(examples, [torch.ones(24), torch.zeros(24), torch.ones(24)])
    with pytest.raises(LuminaError, match='song-0'):
        DiffusionLoss(dit, 1).losses(examples, [torch.ones(23)] * 3)
    with pytest.raises(LuminaError):
        DiffusionLoss(dit, 0)


def test_backward_streams_the_same_gradient(dit):
    examples, weights = tiny_examples(dit), torch.tensor([1., -.5, 2.])
    loss = DiffusionLoss(dit, 4, sequences=5)
    parameters = [p for p in dit.transformer.parameters() if p.requires_grad]
    expected = torch.autograd.grad((loss.losses(examples) * weights).sum(), parameters)
    dit.denoiser.zero_grad()
    values = loss.backward(examples, weights=weights)
    for p, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)
    dit.denoiser.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(values, loss.losses(examples))


def test_timing_and_text_are_heard(dit):
    """Each condition changes the loss; the same latents under other seconds are another question."""
    import dataclasses
    example, loss = tiny_examples(dit)[0], DiffusionLoss(dit, 2)
    with torch.no_grad():
        base = float(loss.losses([example]))
        for change in (dict(seconds=3.), dict(start=1.), dict(text='another'), dict(text=None)):
            assert abs(float(loss.losses([dataclasses.replace(example, **change)])) - base) > 1e-6, change
        mute = tiny_dit(text=False)
        assert float(DiffusionLoss(mute, 2).losses([example])) == float(
            DiffusionLoss(mute, 2).losses([dataclasses.replace(example, text='another')]))
