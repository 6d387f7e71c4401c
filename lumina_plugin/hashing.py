"""Names for models that cannot drift: hashes over architecture and over weights."""

import hashlib
import json
import typing as tp

import torch
from torch import nn


def model_config_hash(lm: nn.Module) -> str:
    """SHA-256 over a model's architecture: every parameter's name and shape, and how its codebooks are interleaved.

    Two checkpoints of one training share it; a store made with another architecture does not.
    """
    pattern = getattr(lm, 'pattern_provider', None)
    facts = {
        'parameters': sorted((name, list(p.shape)) for name, p in lm.named_parameters()),
        'pattern': [type(pattern).__name__, list(getattr(pattern, 'delays', []))],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def state_hash(state: tp.Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over weights in fp32, by name; equal for equal numbers whatever dtype or device they are kept in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
        digest.update(name.encode() + b'\0')
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def codes_hash(codes: torch.Tensor) -> str:
    """SHA-256 over codes of any integer type, of shape [K, T]."""
    codes = codes.detach().cpu().short().contiguous()
    return hashlib.sha256(repr(tuple(codes.shape)).encode() + codes.numpy().tobytes()).hexdigest()


def seed_of(*parts: tp.Union[int, str]) -> int:
    """A seed for a generator of its own, from whatever names it: the same on every machine, unrelated for others."""
    return int.from_bytes(hashlib.sha256('/'.join(map(str, parts)).encode()).digest()[:7], 'big')
