"""Small instances of audiocraft's own classes, for tests."""

import json
import math
import typing as tp
from pathlib import Path

import torch

from lumina_plugin import compat

compat.install()

from audiocraft.models.lm import LMModel  # noqa: E402  (after the shims)
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider, LUTConditioner  # noqa: E402

from lumina_plugin.conditions import attributes_for  # noqa: E402
from lumina_plugin.fingerprint import Song  # noqa: E402
from lumina_plugin.gradients import Example  # noqa: E402


def build_lm(n_q: int = 4, card: int = 16, dim: int = 16, seed: int = 0, fuse: str = 'prepend',
             **kwargs: tp.Any) -> LMModel:
    """An LMModel of a few thousand parameters with a text condition."""
    torch.manual_seed(seed)
    provider = ConditioningProvider({'description': LUTConditioner(32, 8, dim, tokenizer='noop')})
    fuser = ConditionFuser({**{'sum': [], 'prepend': [], 'cross': [], 'input_interpolate': []}, fuse: ['description']})
    options: tp.Dict[str, tp.Any] = dict(
        num_layers=2, num_heads=2, hidden_scale=2, norm='layer_norm', norm_first=True, causal=True, activation='gelu',
        memory_efficient=True, custom=False, bias_proj=False, bias_ff=False, bias_attn=False, dropout=0.1,
        weight_init='gaussian', depthwise_init='current', zero_bias_init=True, cfg_dropout=0.1,
        cross_attention=fuse == 'cross')
    delays = [k // 2 if n_q == 8 else k for k in range(n_q)]
    return LMModel(DelayedPatternProvider(n_q, delays), provider, fuser, n_q=n_q, card=card, dim=dim,
                   **{**options, **kwargs})


def build_songs(lm: LMModel, count: int, frames: int = 24, seed: int = 0) -> tp.List[Song]:
    """Random songs of one to three chunks, the last of each padded."""
    generator = torch.Generator().manual_seed(seed)

    def example(last: bool) -> Example:
        codes = torch.randint(0, lm.card, (lm.n_q, frames), generator=generator)
        return Example(codes, 0, frames - 7 if last else frames, attributes_for(lm, 'slow waltz'))

    return [Song(f'song-{i}', [example(j == i % 3) for j in range(i % 3 + 1)]) for i in range(count)]


def build_codec(seed: int = 0, bins: int = 16) -> tp.Any:
    """An EncodecModel (SEANet, residual VQ, 4 codebooks, 16 kHz, 50 Hz) with random weights, and its configuration."""
    from audiocraft.models.builders import get_compression_model
    from omegaconf import OmegaConf
    shape = dict(dimension=8, channels=1, causal=False, n_filters=2, n_residual_layers=1, ratios=[8, 5, 4, 2],
                 activation='ELU', activation_params={'alpha': 1.}, norm='none', norm_params={}, kernel_size=7,
                 residual_kernel_size=3, last_kernel_size=7, dilation_base=2, pad_mode='constant', true_skip=True,
                 compress=2, lstm=0, disable_norm_outer_blocks=0)
    rvq = dict(n_q=4, q_dropout=False, bins=bins, decay=0.99, kmeans_init=False, kmeans_iters=1,
               threshold_ema_dead_code=0, orthogonal_reg_weight=0., orthogonal_reg_active_codes_only=False)
    architecture = dict(
        compression_model='encodec', sample_rate=16000, channels=1,
        encodec=dict(autoencoder='seanet', quantizer='rvq', sample_rate=16000, channels=1, causal=False,
                     renormalize=False),
        seanet={**shape, 'decoder': dict(trim_right_ratio=1., final_activation=None, final_activation_params=None),
                'encoder': {}}, rvq=rvq)
    torch.manual_seed(seed)
    model = get_compression_model(OmegaConf.create({**architecture, 'device': 'cpu'})).eval()
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.data.normal_()
        layer._codebook.inited.fill_(1)
    return model, architecture


def write_codec(folder: Path, seed: int = 0) -> Path:
    """A random codec as the package ships its own: safetensors and JSON."""
    from safetensors.torch import save_file

    from lumina_plugin.codec import _weights, codec_hash
    model, architecture = build_codec(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in _weights(model).items()},
              folder / 'codec_tiny.safetensors')
    (folder / 'codec_tiny.json').write_text(json.dumps({
        'format': 1, 'name': 'random', 'weights': 'codec_tiny.safetensors', 'dtype': 'float32',
        'hash': codec_hash(model), 'epochs': 0, 'architecture': architecture}))
    return folder


def write_songs(folder: Path, count: int = 6, seconds: float = 2.6, seed: int = 0) -> Path:
    """A folder of chords, one of them silent."""
    from lumina_plugin.audio import save_audio
    time = torch.arange(int(seconds * 16000)) / 16000
    for index in range(count):
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        tones = sum(torch.sin(2 * math.pi * float(f) * time) for f in 100 + 800 * torch.rand(3, generator=generator))
        noise = 0.05 * torch.randn(len(time), generator=generator)
        save_audio(folder / f'song-{index}.wav', (0.2 * tones + noise)[None], 16000)
    save_audio(folder / 'silence.wav', torch.zeros(1, 16000), 16000)
    return folder


def write_outside(folder: Path, count: int = 72) -> Path:
    """A folder of melodies, enough to measure chance by, which differ from all songs to a random codec, too."""
    from lumina_plugin.audio import save_audio
    time = torch.arange(1600) / 16000
    for index in range(count):
        generator = torch.Generator().manual_seed(91_000 + index)
        notes = [level * torch.sin(2 * math.pi * (50 + 3000 * pitch ** 2) * time)
                 for pitch, level in (0.2 + 0.8 * torch.rand(10, 2, generator=generator)).tolist()]
        noise = 0.05 * torch.randn(16000, generator=generator)
        save_audio(folder / f'outside-{index:02d}.wav', (torch.cat(notes) + noise)[None].clamp(-1, 1), 16000)
    return folder
