"""The v-objective of a latent diffusion model over a fixed set of noises and angles.

Draw i of seed s is a pure function of (s, i): which angle and which noise does not depend on the model, on the songs,
on how many draws there are or on what was asked before. So losses before and after a change of the weights are of the
very same questions, and a longer set of draws begins with the shorter one.

- Angles: draws 2j and 2j + 1 share t_j, the j-th number of the van der Corput sequence in base 2, shifted by an amount
  of the seed's own (Cranley & Patterson 1976): any number of them is spread evenly over (0, 1).
- Noise: draw 2j + 1 has the noise of draw 2j with the other sign. What is odd in the noise cancels in the pair, and
  that is most of what tells one draw's loss from another's.
- All songs get the same noise in a draw, which lies on the latent's own frames: they are compared under like
  conditions.
"""

import contextlib
import math
import typing as tp

import torch

from ..errors import LuminaError
from ..hashing import seed_of
from .model import LatentDiT, LatentExample

Masks = tp.Optional[tp.Sequence[torch.Tensor]]
SEQUENCES = 16  # noisy latents that go through the transformer at once


def angle_time(index: int, seed: int) -> float:
    """t of a draw, in (0, 1): the angle is φ = t·π/2."""
    pair, value, scale = index // 2, 0., .5
    while pair:  # radical inverse in base 2
        value += scale * (pair & 1)
        pair, scale = pair >> 1, scale / 2
    shift = (seed_of(seed, 'shift') % 2 ** 32 + .5) / 2 ** 32
    return (value + shift) % 1.


def noise(index: int, seed: int, channels: int, frames: int) -> torch.Tensor:
    """ε [C, T] of a draw, in the processor's memory whatever device the model is on."""
    generator = torch.Generator().manual_seed(seed_of(seed, 'noise', index // 2))
    return torch.randn(channels, frames, generator=generator) * (-1. if index % 2 else 1.)


def noisy(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> tp.Tuple[torch.Tensor, torch.Tensor]:
    """What the transformer reads and what it should say.

    Args:
        x0 (torch.Tensor): Latents, [B, C, T]. eps (torch.Tensor): Noise of that shape. t (torch.Tensor): [B].
    Returns:
        torch.Tensor: x_t = cos φ·x0 + sin φ·ε. torch.Tensor: v = cos φ·ε − sin φ·x0. Both [B, C, T].
    """
    angle = (t * (math.pi / 2))[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    return cos * x0 + sin * eps, cos * eps - sin * x0


def v_errors(dit_denoiser: torch.nn.Module, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor,
             conditions: tp.Any) -> torch.Tensor:
    """Squared error of the predicted v, averaged over channels: [B, T]."""
    x, v = noisy(x0, eps, t)
    return (dit_denoiser(x, t, conditions) - v).square().mean(1)


def frame_weights(examples: tp.Sequence[LatentExample], masks: Masks, frames: int) -> torch.Tensor:
    """What each frame counts, [B, T], of sum 1 per example: the mean over the frames that a mask leaves.

    Args:
        masks (sequence of torch.Tensor, optional): Per example [T], true (or a weight above 0) where a frame counts;
            its valid frames unless given.
    Raises:
        LuminaError: naming the song of which nothing is left, or whose mask has another length.
    """
    if masks is not None and len(masks) != len(examples):
        raise LuminaError(f"{len(examples)} examples came with {len(masks)} masks; give one for each.")
    rows = []
    for index, example in enumerate(examples):
        if masks is None:
            row = (torch.arange(frames) < example.valid_frames).float()
            row = row if example.counted is None else row * example.counted.float()
        else:
            row = masks[index].detach().cpu().float()
        if row.shape != (frames,) or not bool((row >= 0).all()):
            raise LuminaError(f"The mask of {example.id} has shape {list(row.shape)} or weights below 0, but the model "
                              f"has {frames} frames; give one weight of at least 0 per frame.")
        if float(row.sum()) <= 0:
            raise LuminaError(f"The mask of {example.id} leaves none of its frames; use another mask, or leave the "
                              "song out.")
        rows.append(row / row.sum())
    return torch.stack(rows)


class DiffusionLoss:
    """v-losses of examples over T fixed draws, of which every call asks the same.

    Args:
        dit (LatentDiT): The model; its weights are looked at whenever losses are asked for.
        draws (int): T. seed (int): Of the draws.
        sequences (int): Noisy latents per pass through the transformer.
    Raises:
        LuminaError: for fewer than one draw.
    """

    def __init__(self, dit: LatentDiT, draws: int, seed: int = 0, sequences: int = SEQUENCES):
        if draws < 1:
            raise LuminaError(f"A loss over {draws} draws of noise says nothing; ask for at least 1.")
        self.dit, self.draws, self.seed, self.sequences = dit, draws, seed, sequences
        self._noise: tp.Dict[int, torch.Tensor] = {}  # by pair of draws

    def losses(self, examples: tp.Sequence[LatentExample], masks: Masks = None) -> torch.Tensor:
        """Mean squared error of v over unmasked frames, channels and all draws: [B].

        It can be differentiated at the transformer's parameters, and then keeps what all draws need for that;
        `backward` needs the memory of one pass alone.

        Raises:
            LuminaError: a mask leaves nothing of a song, or does not fit.
        """
        total = torch.zeros(len(examples), device=self.dit.device)
        for rows, found in self._passes(examples, range(self.draws), masks):
            total = total.index_add(0, rows, found)
        return total / self.draws

    def at(self, examples: tp.Sequence[LatentExample], draws: tp.Sequence[int], masks: Masks = None) -> torch.Tensor:
        """Losses of single draws, [B, len(draws)], for whoever needs a gradient of each (a Fisher, a reducer)."""
        found = [values for _, values in self._passes(examples, draws, masks)]
        return torch.cat(found).unflatten(0, (len(draws), len(examples))).T

    def backward(self, examples: tp.Sequence[LatentExample], masks: Masks = None,
                 weights: tp.Optional[torch.Tensor] = None) -> torch.Tensor:
        """Add the gradient of Σ_b weights[b]·loss[b] to the parameters' own, one pass at a time.

        Args:
            weights (torch.Tensor, optional): [B]; 1 unless given.
        Returns:
            torch.Tensor: The losses, [B], without a graph.
        """
        total = torch.zeros(len(examples), device=self.dit.device)
        weights = torch.ones_like(total) if weights is None else weights.to(total)
        for rows, found in self._passes(examples, range(self.draws), masks):
            (found * weights[rows]).sum().div(self.draws).backward()
            total = total.index_add(0, rows, found.detach())
        return total / self.draws

    def _passes(self, examples: tp.Sequence[LatentExample], draws: tp.Sequence[int], masks: Masks
                ) -> tp.Iterator[tp.Tuple[torch.Tensor, torch.Tensor]]:
        """Pass by pass, draw by draw, which examples [n] were asked and their losses [n]."""
        dit = self.dit
        x0 = torch.stack([example.latents for example in examples]).to(dit.device)  # [B, C, T]
        weights = frame_weights(examples, masks, dit.frames).to(dit.device)  # [B, T]
        conditions = dit.conditions(examples)
        asked = [(row, draw) for draw in draws for row in range(len(examples))]
        for first in range(0, len(asked), self.sequences):
            part = asked[first:first + self.sequences]
            rows = torch.tensor([row for row, _ in part], device=dit.device)
            t = torch.tensor([angle_time(draw, self.seed) for _, draw in part], device=dit.device)
            eps = torch.stack([self._eps(draw) for _, draw in part]).to(dit.device)
            chosen = conditions.take(rows)
            with _evaluating(dit.denoiser):
                errors = v_errors(dit.denoiser, x0[rows], eps, t, chosen)
            yield rows, (errors * weights[rows]).sum(1)

    def _eps(self, draw: int) -> torch.Tensor:
        pair = draw // 2
        if pair not in self._noise:
            if len(self._noise) >= 256:  # they are made again when asked for
                self._noise.clear()
            self._noise[pair] = noise(2 * pair, self.seed, self.dit.latent_channels, self.dit.frames)
        return -self._noise[pair] if draw % 2 else self._noise[pair]


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> tp.Iterator[None]:
    """Dropout off, whatever mode the module is in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
