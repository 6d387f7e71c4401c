"""Small instances of diffusers' own Stable Audio classes, for tests."""

import typing as tp
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from lumina_plugin import compat

compat.install()

from lumina_plugin.atomic import write_json  # noqa: E402  (after the shims)
from lumina_plugin.dit.loading import build_dit  # noqa: E402
from lumina_plugin.dit.model import Denoiser, LatentDiT, LatentExample  # noqa: E402
from lumina_plugin.dit.oobleck import oobleck_hash  # noqa: E402

SECTION: tp.Dict[str, tp.Any] = dict(
    seed=0, autoencoder='lumina//oobleck', condition_dim=16, max_seconds=8, windows=1,
    text=dict(dim=16, length=12, seed=0),
    transformer=dict(sample_size=24, num_layers=2, attention_head_dim=16, num_attention_heads=2,
                     num_key_value_attention_heads=1, cross_attention_dim=16, time_proj_dim=16))


def tiny_autoencoder(seed: int = 0) -> tp.Any:
    """An AutoencoderOobleck of random weights: 16 kHz, 50 frames a second, 4 channels."""
    from lumina_plugin.dit.oobleck import build_oobleck
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_oobleck(dict(encoder_hidden_size=8, decoder_input_channels=4, downsampling_ratios=[8, 10, 4],
                                  channel_multiples=[1, 1, 2], decoder_channels=4, audio_channels=1,
                                  sampling_rate=16000))


def tiny_dit(seed: int = 0, text: bool = True) -> LatentDiT:
    """A LatentDiT of a few thousand random weights, none of them zero; windows of 0.48 s."""
    from diffusers import StableAudioDiTModel
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    from lumina_plugin.dit.text import small_text_encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = StableAudioDiTModel(**SECTION['transformer'], in_channels=4, out_channels=4,
                                          cross_attention_input_dim=16, global_states_input_dim=32)
        projection = StableAudioProjectionModel(text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=8)
    encoder = small_text_encoder(16, 12) if text else None
    dit = LatentDiT(Denoiser(transformer, projection), tiny_autoencoder(seed), encoder, 'tiny')
    dit.denoiser.eval()
    return dit


def write_autoencoder(folder: Path) -> Path:
    """A random autoencoder as the package ships its own."""
    vae = tiny_autoencoder()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in vae.state_dict().items()}, folder / 'tiny.safetensors')
    architecture = {key: value for key, value in dict(vae.config).items() if not key.startswith('_')}
    return write_json(folder / 'tiny.json', {'format': 1, 'name': 'tiny', 'weights': 'tiny.safetensors',
                                             'hash': oobleck_hash(vae), 'architecture': architecture})


def tiny_examples(dit: LatentDiT, count: int = 3, seed: int = 0) -> tp.List[LatentExample]:
    """Random windows of several lengths, with texts."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        valid = dit.frames - 5 * (index % 4)
        made.append(LatentExample(torch.randn(dit.latent_channels, dit.frames, generator=generator), valid,
                                  valid / dit.frame_rate, ['slow waltz', None, 'drum machine'][index % 3],
                                  f'song-{index}'))
    return made


def section(**changes: tp.Any) -> tp.Any:
    """A configuration's section `dit`."""
    return OmegaConf.create({**SECTION, **changes})


__all__ = ['build_dit', 'section', 'tiny_autoencoder', 'tiny_dit', 'tiny_examples']
