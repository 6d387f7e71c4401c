"""Conditions for teacher forcing: a song's own text, a generation's own attributes, nothing for an uploaded file."""

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
