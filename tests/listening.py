"""Small instances of the networks that listen to audio, saved as the real ones are."""

import json
import warnings
from pathlib import Path

import torch
from torch import nn

from lumina_plugin import compat

compat.install()


def write_clap(folder: Path, seed: int = 0, truncation: str = 'rand_trunc', seconds: int = 1, rate: int = 16000,
               fusion: bool = False) -> Path:
    """A random `ClapModel` of some thousand parameters with its feature extractor, by `save_pretrained`."""
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig
    torch.manual_seed(seed)
    audio = ClapAudioConfig(spec_size=64, num_mel_bins=16, depths=[1, 1], num_attention_heads=[2, 2], hidden_size=32,
                            patch_embeds_hidden_size=16, window_size=4, projection_dim=12, enable_fusion=fusion,
                            hidden_dropout_prob=0.1)
    text = ClapTextConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                          intermediate_size=8, projection_dim=12)
    model = ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=12))
    model.save_pretrained(folder)
    ClapFeatureExtractor(feature_size=16, sampling_rate=rate, hop_length=160, max_length_s=seconds,
                         fft_window_size=512, frequency_max=rate // 2, truncation=truncation).save_pretrained(folder)
    return folder


class Bands(nn.Module):
    """Levels of a segment's bands, as a network that can be scripted."""

    def __init__(self, rate: int = 16000):
        super().__init__()
        self.sample_rate = rate
        self.mix = nn.Linear(16, 8, bias=False)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(waves).abs()
        size = spectrum.shape[1] // 16
        bands = spectrum[:, :16 * size].reshape(waves.shape[0], 16, size).mean(2)
        return self.mix(torch.log(bands + 1e-3))


def write_clews(folder: Path, seed: int = 0, **settings) -> Path:
    """A scripted `Bands` with the JSON that stands beside it."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        torch.jit.script(Bands()).save(str(folder / 'bands.pt'))
    facts = {'file': 'bands.pt', 'weights': 'a small random instance', 'sample_rate': 16000, 'window': 1., 'hop': .5}
    (folder / 'clews.json').write_text(json.dumps({**facts, **settings}))
    return folder
