"""Songs and queries of a latent diffusion model, as methods that score songs are asked about them."""

import dataclasses
import typing as tp

import torch

from ..hashing import state_hash
from .model import LatentDiT, LatentExample


@dataclasses.dataclass(frozen=True)
class LatentQuery:
    """One song or query as windows of latents.

    Args:
        id (str): Unique. examples (sequence of LatentExample): Its windows, at least one.
        source (str, optional): Of a song of the catalogue, its id.
    """
    id: str
    examples: tp.Sequence[LatentExample]
    source: tp.Optional[str] = None


def latent_facts(queries: tp.Sequence[LatentQuery]) -> tp.List[tp.Any]:
    """All that a score depends on, ready for JSON."""
    return [[query.id, [[state_hash({'latents': one.latents}), one.valid_frames, one.seconds, one.start, one.text]
                        for one in query.examples]] for query in queries]


def latent_decoded(dit: LatentDiT, query: LatentQuery, masked: bool) -> torch.Tensor:
    """What a query sounds like, without the padding behind it.

    Args:
        dit (LatentDiT): Whose autoencoder decodes. query (LatentQuery): Its latents.
        masked (bool): Nothing: there are no prompts.
    Returns:
        torch.Tensor: Mono, [samples] at the model's rate, on the CPU.
    """
    hop, pieces = int(dit.vae.hop_length), []
    for one in query.examples:
        wave = dit.decode(one.latents[None])[0].mean(0)  # [samples]
        pieces.append(wave[:one.valid_frames * hop])
    return torch.cat(pieces)
