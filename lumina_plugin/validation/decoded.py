"""Queries are codes; what listens to audio hears them decoded, songs and generations through the same codec."""

import typing as tp

import torch

from .queries import Query

Decode = tp.Callable[[tp.Any, tp.Any, bool], torch.Tensor]  # what decodes, a query, masked or not: as `decoded`


@torch.no_grad()
def decoded(codec: tp.Any, query: Query, masked: bool) -> torch.Tensor:
    """What a query sounds like.

    Args:
        codec (nn.Module): audiocraft `CompressionModel`. query (Query): Its codes. masked (bool): Leave the prompt out.
    Returns:
        torch.Tensor: Mono, [samples] at the codec's rate, on the CPU.
    """
    device = next(codec.parameters()).device
    wave = codec.decode(query.codes[None].to(device))[0].mean(0).cpu()  # [samples]
    skipped = round(query.prompt_frames * codec.sample_rate / codec.frame_rate) if masked else 0
    return tp.cast(torch.Tensor, wave[skipped:])
