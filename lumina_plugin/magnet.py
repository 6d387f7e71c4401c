"""What is asked of a MAGNeT: codes that are hidden, one codebook at a time, from all that is heard around them.

MAGNeT (Ziv et al. 2024, arXiv 2401.04577) is not autoregressive. Each step of its training draws a codebook, hides
spans of it and all of the later codebooks, and takes the loss on the hidden codes of that codebook alone, where later
codebooks attend to their surroundings only. For a fingerprint every codebook has its turn, and the spans are not drawn
but lie where they always do: equal codes have equal fingerprints.
"""

import typing as tp

import torch
from torch import nn

from .errors import LuminaError


def is_magnet(lm: nn.Module) -> bool:
    """Whether a language model is audiocraft's `MagnetLMModel`, which does not predict one step from those before."""
    return hasattr(lm, 'attn_mask_per_stage')


def hidden_frames(frames: int, codebooks: int, span: int) -> torch.Tensor:
    """Frames of each codebook that are hidden in its turn, of shape [K, T]: two spans of `span` frames out of three.

    In training the share of hidden codes is cos(πu/2) with u uniform in 0..1, on average 2/π = 0.64. Which third is
    heard moves on with the codebook.
    """
    spans = torch.arange(frames) // max(span, 1)
    return (spans + torch.arange(codebooks)[:, None]) % 3 != 2


def hidden_predictions(lm: tp.Any, inputs: torch.Tensor, valid: torch.Tensor, conditions: tp.Any
                       ) -> tp.Tuple[torch.Tensor, torch.Tensor]:
    """Predict the hidden codes of every codebook in its turn: one forward pass per codebook.

    Args:
        lm: audiocraft `MagnetLMModel`.
        inputs (torch.Tensor): Codes with the special token where nothing must be read, of shape [B, K, T].
        valid (torch.Tensor): Frames that count and may be hidden, of shape [B, T].
        conditions: Embedded conditions, as `lm.compute_predictions` takes them.
    Returns:
        torch.Tensor: Logits of shape [B, K, T, card].
        torch.Tensor: True where a code was hidden in its codebook's turn, and so counts, of shape [B, K, T].
    Raises:
        LuminaError: when the codes are longer than the model's attention masks, or audiocraft would not apply them.
    """
    frames = inputs.shape[-1]
    _expect_masks(lm, frames)
    asked = hidden_frames(frames, lm.n_q, lm.span_len).to(inputs.device) & valid[:, None]  # [B, K, T]
    logits = []
    for stage in range(lm.n_q):
        heard = inputs.clone()
        heard[:, stage].masked_fill_(asked[:, stage], lm.special_token_id)
        heard[:, stage + 1:] = lm.special_token_id
        logits.append(lm.compute_predictions(heard, [], conditions, stage=stage).logits[:, stage])  # [B, T, card]
    return torch.stack(logits, dim=1), asked


def _expect_masks(lm: tp.Any, frames: int) -> None:
    from audiocraft.modules import transformer
    masks = [mask for mask in lm.attn_mask_per_stage if mask is not None]
    if masks and frames > masks[0].shape[-1]:
        raise LuminaError(f"A chunk has {frames} frames, but this MAGNeT attends to at most {masks[0].shape[-1]}; set "
                          "the recipe's chunk_seconds to no more than the model's segment_duration.")
    if masks and transformer._efficient_attention_backend != 'xformers':
        raise LuminaError("audiocraft applies MAGNeT's attention masks in its xformers backend only; call "
                          "audiocraft.modules.transformer.set_efficient_attention_backend('xformers') first.")
