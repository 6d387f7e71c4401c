"""Small instances of audiocraft's own classes, for tests."""

import typing as tp

import torch

from lumina_plugin import compat

compat.install()

from audiocraft.models.lm import LMModel  # noqa: E402  (after the shims)
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider, LUTConditioner  # noqa: E402

from lumina_plugin.conditions import attributes_for  # noqa: E402
from lumina_plugin.fingerprint import Example, Song  # noqa: E402


def build_lm(n_q: int = 4, card: int = 16, dim: int = 16, seed: int = 0, fuse: str = 'prepend', **kwargs: tp.Any) -> LMModel:
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
