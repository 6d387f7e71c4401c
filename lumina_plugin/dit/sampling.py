"""From noise to latents: deterministic DDIM steps along the angle φ."""

import math
import typing as tp

import torch

from ..hashing import seed_of
from .model import LatentDiT, LatentExample


def step_back(x: torch.Tensor, v: torch.Tensor, angle: float, towards: float) -> torch.Tensor:
    """x at angle φ → x at a smaller angle, along the circle on which x0 = cos φ·x − sin φ·v and
    ε = sin φ·x + cos φ·v stay the same."""
    turn = angle - towards
    return math.cos(turn) * x - math.sin(turn) * v


def draw(dit: LatentDiT, asked: tp.Sequence[LatentExample], first: int, seed: int, steps: int, guidance: float
         ) -> torch.Tensor:
    """Latents [n, C, T] for what is asked; the noise is that of draws `first` and on of this seed. On the CPU."""
    shape = dit.latent_channels, dit.frames
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(seed, 'draw', first + i)))
             for i in range(len(asked))]
    x = torch.stack(noise).to(dit.device)
    conditions = dit.conditions(asked)
    angles = [math.pi / 2 * (steps - i) / steps for i in range(steps + 1)]
    for angle, towards in zip(angles, angles[1:], strict=False):
        t = x.new_full((len(asked),), 2 * angle / math.pi)
        v = dit.denoiser(x, t, conditions)
        if guidance != 1.:
            free = dit.denoiser(x, t, conditions.hidden())
            v = free + guidance * (v - free)
        x = step_back(x, v, angle, towards)
    return x.cpu()
