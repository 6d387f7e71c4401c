"""Conditions for teacher forcing: a song's own text, a generation's own attributes, nothing for an uploaded file."""

import copy
import typing as tp

import torch
from torch import nn


def attributes_for(lm: nn.Module, description: tp.Optional[str] = None) -> tp.Any:
    """audiocraft `ConditioningAttributes` with every condition that a model expects, empty but for the description.

    An absent text is None and an absent waveform has length 0, which is how MusicGen itself spells 'no condition'.
    """
    from audiocraft.modules.conditioners import ConditioningAttributes, WavCondition
    provider: tp.Any = lm.condition_provider
    device = next(lm.parameters()).device
    attributes = ConditioningAttributes()
    for name in provider.text_conditions:
        attributes.text[name] = description if name == 'description' else None
    for name in provider.wav_conditions:
        attributes.wav[name] = WavCondition(torch.zeros((1, 1, 1), device=device), torch.tensor([0], device=device),
                                            sample_rate=[getattr(provider.conditioners[name], 'sample_rate', 0)],
                                            path=[None])
    return attributes


def condition_shapes(lm: nn.Module, attributes: tp.Any) -> tp.Hashable:
    """The shapes of a chunk's conditions before they are embedded, e.g. how many words its text has.

    Conditions of unlike shapes that share a pass are padded, and audiocraft's transformer attends to that padding: the
    shorter ones would mean something else than alone. To be called in evaluation mode.
    """
    provider: tp.Any = lm.condition_provider
    return _shapes(provider.tokenize([attributes]))


def _shapes(tokenized: tp.Any) -> tp.Hashable:
    if isinstance(tokenized, torch.Tensor):
        return tuple(tokenized.shape)
    values = tokenized.values() if isinstance(tokenized, tp.Mapping) else tokenized
    return tuple(_shapes(value) for value in values) if isinstance(tokenized, (tp.Mapping, tuple)) else None


def attributes_at(attributes: tp.Any, seconds: float) -> tp.Any:
    """The same conditions for a chunk that begins `seconds` into a generation.

    A melody goes on from there, and from its beginning again where it has ended, as MusicGen itself moves it along when
    it generates more than it can at once.
    """
    if seconds <= 0 or not any(condition.wav.shape[-1] > 1 for condition in attributes.wav.values()):
        return attributes
    moved = copy.copy(attributes)
    moved.wav = {}
    for name, condition in attributes.wav.items():
        length = int(condition.length[0])  # beyond it there is padding
        shift = int(seconds * (condition.sample_rate[0] or 0))
        wav = condition.wav[..., :length]
        moved.wav[name] = condition._replace(wav=wav.roll(-(shift % length), dims=-1)) if length > 1 else condition
    return moved
