"""The bundle around diffusers' classes: loading and saving both ways, sampling, windows, bad input."""

import json
import math

import pytest
import torch

from lumina_plugin.dit.loading import from_pretrained, load_dit, save_pretrained
from lumina_plugin.dit.model import Denoiser, LatentDiT
from lumina_plugin.dit.objective import DiffusionLoss
from lumina_plugin.dit.oobleck import build_oobleck, load_oobleck, oobleck_hash, standardise_latents
from lumina_plugin.dit.sampling import step_back
from lumina_plugin.errors import LuminaError

from .tiny_dit import build_dit, section, tiny_autoencoder, tiny_dit, tiny_examples


@pytest.fixture(scope='module')
def dit():
    return tiny_dit()


def test_a_saved_pipeline_is_the_same_model(dit, tmp_path):
    """By diffusers' own `StableAudioPipeline.from_pretrained`, the way that the model on the hub is loaded."""
    folder = save_pretrained(dit, tmp_path / 'pipeline')
    assert json.loads((folder / 'model_index.json').read_text())['_class_name'] == 'StableAudioPipeline'
    again = load_dit(folder)
    examples = tiny_examples(dit)
    with torch.no_grad():
        assert torch.equal(DiffusionLoss(dit, 2).losses(examples), DiffusionLoss(again, 2).losses(examples))
    wav = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dit.encode(wav), again.encode(wav)) and again.frame_rate == 50
    torch.testing.assert_close(*(one.generate(1, steps=3, text='waltz')[0].latents for one in (dit, again)))


def test_the_pipeline_itself_reads_what_was_saved(dit, tmp_path):
    """One denoising step of diffusers' pipeline is one prediction of ours, conditions, rotary embedding and all."""
    from diffusers import StableAudioPipeline
    pipeline = StableAudioPipeline.from_pretrained(str(save_pretrained(dit, tmp_path / 'p')))
    seen = {}
    original = pipeline.transformer.forward
    pipeline.transformer.forward = lambda *args, **kwargs: seen.setdefault('out', original(*args, **kwargs)) and \
        original(*args, **kwargs)
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args: seen.setdefault('in', (args[0].clone(), args[1].clone())) and None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline('waltz', audio_end_in_s=0.3, num_inference_steps=2, guidance_scale=1., output_type='latent',
             generator=torch.Generator().manual_seed(0))
    x, t = seen['in']
    conditions = dit.conditions([dit.generate(1, 0.3, steps=1, text='waltz')[0]])
    with torch.no_grad():
        torch.testing.assert_close(dit.denoiser(x, t, conditions), seen['out'][0])


@pytest.mark.parametrize('damage', ['nothing there', 'no pipeline'])
def test_what_cannot_be_loaded_is_told(damage, tmp_path):
    (tmp_path / 'model').mkdir()
    if damage == 'no pipeline':
        (tmp_path / 'model' / 'model_index.json').write_text('{')
    with pytest.raises(LuminaError, match='Stable Audio'):
        from_pretrained(tmp_path / 'model')


def test_parts_that_do_not_fit_are_refused(dit):
    wide = build_oobleck({**dict(dit.vae.config), 'encoder_hidden_size': 16, 'decoder_input_channels': 8})
    with pytest.raises(LuminaError, match='4 channels'):
        LatentDiT(dit.denoiser, wide)
    with pytest.raises(LuminaError, match='odd'):
        build_oobleck({**dict(dit.vae.config), 'downsampling_ratios': [5, 4]})
    assert isinstance(dit.denoiser, Denoiser)


def test_draws_depend_on_seed_and_index_alone(dit):
    three = dit.generate(3, 0.2, seed=4, steps=4, batch_size=2)
    one = dit.generate(1, 0.2, seed=4, steps=4)
    torch.testing.assert_close(three[0].latents, one[0].latents, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(three[0].latents, three[1].latents)
    assert not torch.allclose(dit.generate(1, 0.2, seed=5, steps=4)[0].latents, one[0].latents)
    assert three[2].id == 'free-002' and three[0].valid_frames == 10 and three[0].seconds == 0.2
    sound = dit.decode(torch.stack([e.latents for e in three]))
    assert sound.shape == (3, 1, 24 * 320) and torch.isfinite(sound).all()
    with pytest.raises(LuminaError, match='texts'):
        dit.generate(2, text=['one'])


def test_guidance_leads_away_from_the_unconditional(dit):
    plain, guided, none = (dit.generate(1, steps=2, text='waltz', guidance=g)[0].latents for g in (1., 3., 0.))
    assert not torch.allclose(plain, guided) and not torch.allclose(plain, none)


def test_a_perfect_model_samples_its_only_song():
    """With v known exactly, DDIM's steps end at the song, from any noise."""
    x0, x = torch.randn(2, 1, 3, 8, dtype=torch.float64)
    angles = [math.pi / 2 * (1 - i / 10) for i in range(11)]
    for angle, towards in zip(angles, angles[1:], strict=False):
        eps = (x - math.cos(angle) * x0) / math.sin(angle)
        x = step_back(x, math.cos(angle) * eps - math.sin(angle) * x0, angle, towards)
    torch.testing.assert_close(x, x0)


def test_windows_of_a_long_recording(dit):
    """One after the other, each sample in one of them; a short rest is left out; timing tells where and how long."""
    length = dit.frames * 320
    wav = 0.1 * torch.randn(1, 2 * length + length // 2, generator=torch.Generator().manual_seed(0))
    windows = dit.windows(wav, 'long', 'waltz', most=9)
    assert [w.start for w in windows] == pytest.approx([0., dit.seconds, 2 * dit.seconds])
    assert [w.valid_frames for w in windows] == [24, 24, 12]
    assert all(w.seconds == wav.shape[-1] / 16000 and w.text == 'waltz' and w.id == 'long' for w in windows)
    assert len(dit.windows(wav[:, :length + 5], 'x', most=9)) == 1 and len(dit.windows(wav, 'x')) == 1
    assert torch.equal(windows[0].latents, dit.encode(wav[:, :length]))


def test_standardised_latents_change_no_sound():
    """The affine map that export folds into both ends: latents of mean 0 and spread 1, the same reconstruction."""
    vae = tiny_autoencoder(3).eval()
    wav = torch.randn(2, 1, 6400, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, posterior = vae.decode(vae.encode(wav).latent_dist.mode()).sample, vae.encode(wav).latent_dist
        latents = posterior.mode().transpose(0, 1).flatten(1)  # [C, frames]
        standardise_latents(vae, latents.mean(1), latents.std(1))
        after = vae.encode(wav).latent_dist.mode()
        found = after.transpose(0, 1).flatten(1)
        torch.testing.assert_close(found.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(found.std(1), torch.ones(4), atol=1e-4, rtol=0)
        inner = slice(320 * 4, -320 * 4)  # at its ends a decoder sees zeros, which are other latents now
        torch.testing.assert_close(vae.decode(after).sample[..., inner], before[..., inner], atol=1e-3, rtol=1e-3)


def test_the_shipped_autoencoder_is_whole_and_damage_is_told(tmp_path, monkeypatch):
    from lumina_plugin.dit import oobleck
    vae = load_oobleck()
    facts = json.loads((oobleck.WEIGHTS / 'oobleck_tiny.json').read_text())
    assert oobleck_hash(vae) == facts['hash'] and not any(p.requires_grad for p in vae.parameters())
    assert (oobleck.WEIGHTS / 'oobleck_tiny.safetensors').stat().st_size < 2 ** 20
    for file in ('json', 'safetensors'):
        raw = bytearray((oobleck.WEIGHTS / f'oobleck_tiny.{file}').read_bytes())
        if file == 'safetensors':
            raw[-5] ^= 64
        (tmp_path / f'oobleck_tiny.{file}').write_bytes(bytes(raw))
    with pytest.raises(LuminaError, match='damaged'):
        load_oobleck(tmp_path / 'oobleck_tiny.json')
    with pytest.raises(LuminaError, match='missing'):
        load_oobleck(tmp_path / 'none.json')


def test_weights_depend_on_the_seed_alone_and_leave_torchs_state():
    torch.manual_seed(1)
    first, drawn = build_dit(section(seed=5)), torch.rand(1)
    torch.manual_seed(1)
    torch.rand(1)
    torch.manual_seed(1)
    second = build_dit(section(seed=5))
    assert torch.equal(drawn, torch.rand(1))
    for one, other in zip(first.denoiser.parameters(), second.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)
    other = build_dit(section(seed=6)).transformer.proj_in.weight
    assert not torch.equal(first.transformer.proj_in.weight, other)
    with pytest.raises(LuminaError, match='dit.transformer'):
        build_dit(section(transformer={'layers': 2}))
