"""Codes as a language model makes them, by draws that can be repeated."""

import dataclasses
import typing as tp

import torch

from .conditions import attributes_for
from .errors import LuminaError

TOGETHER = 16  # generations at once


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How generations are drawn, as in MusicGen.

    A small model at MusicGen's own temperature of 1 draws much that is nobody's music; these settings keep to what it
    has learnt.
    """
    temperature: float = 0.6
    top_k: int = 50
    seed: int = 0


DEFAULT = Sampling()


@torch.no_grad()
def generate_codes(lm: tp.Any, prompts: tp.Optional[torch.Tensor], texts: tp.Sequence[tp.Optional[str]], frames: int,
                   sampling: Sampling, first: int) -> torch.Tensor:
    """Codes [n, K, T] of n generations, prompts included.

    Args:
        lm: audiocraft `LMModel`; its mode is left as it is.
        prompts (torch.Tensor, optional): Codes [n, K, t] that they go on from.
        texts (sequence): Description of each, or None.
        frames (int): T. first (int): The draws depend on the seed and on this number of the first of the batch.
    Raises:
        LuminaError: for no frames.
    """
    if not 0 < frames:
        raise LuminaError(f"Generations of {frames} frames cannot be made; ask for at least one.")
    device = next(lm.parameters()).device
    training = lm.training
    lm.eval()
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        torch.manual_seed(sampling.seed * 100_003 + first)
        codes = lm.generate(None if prompts is None else prompts.to(device),
                            [attributes_for(lm, text) for text in texts], max_gen_len=frames, use_sampling=True,
                            temp=sampling.temperature, top_k=min(sampling.top_k, lm.card))
    lm.train(training)
    return codes.cpu()
