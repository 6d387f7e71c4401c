"""The scalars per example whose gradients are fingerprints.

Every objective maps logits, codes and a mask to one number per example, averaged the way audiocraft averages its
training loss: over the valid codes of each codebook first, then over the codebooks.
"""

import typing as tp

import torch
from torch.nn import functional as F

from .errors import LuminaError

Objective = tp.Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _mean_over_codes(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the valid frames of each codebook, then over the codebooks that have any.

    Args:
        values (torch.Tensor): One value per code, finite everywhere, of shape [B, K, T].
        mask (torch.Tensor): True where a code counts, of shape [B, K, T].
    Returns:
        torch.Tensor: Shape [B]; 0 for an example without a single valid code.
    """
    counts = mask.sum(-1)  # [B, K]
    per_codebook = (values * mask).sum(-1) / counts.clamp(min=1)  # [B, K]
    used = (counts > 0).sum(-1).clamp(min=1)  # [B]
    return per_codebook.sum(-1) / used


def _valid_logits(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Replace the logits of masked positions by zeros: audiocraft marks them with NaN, which a product would spread."""
    return torch.where(mask[..., None], logits, torch.zeros((), dtype=logits.dtype, device=logits.device)).float()


def cross_entropy(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Teacher-forced cross entropy, the training loss of MusicGen and the objective printed in LUMINA v7.

    Args:
        logits (torch.Tensor): Shape [B, K, T, card], NaN where `mask` is False.
        codes (torch.Tensor): Codes to predict, of shape [B, K, T].
        mask (torch.Tensor): Valid codes, of shape [B, K, T].
    Returns:
        torch.Tensor: Shape [B], in nats per code.
    """
    log_probs = F.log_softmax(_valid_logits(logits, mask), dim=-1)  # [B, K, T, card]
    nll = -log_probs.gather(-1, codes[..., None].long())[..., 0]  # [B, K, T]
    return _mean_over_codes(nll, mask)


def margin(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log odds of the right code, log(p / (1 - p)), written as z_y - logsumexp of the other logits.

    Unlike the loss, its gradient does not fade where the model is already sure, which is what makes gradients of a
    trained model informative (the objective of TRAK, Park et al. 2023, section 3.1).

    Args and returns: as `cross_entropy`; the value grows as the model fits the example better.
    """
    logits = _valid_logits(logits, mask)
    index = codes[..., None].long()
    right = logits.gather(-1, index)[..., 0]  # [B, K, T]
    others = logits.scatter(-1, index, float('-inf'))  # [B, K, T, card]
    return _mean_over_codes(right - torch.logsumexp(others, dim=-1), mask)


OBJECTIVES: tp.Dict[str, Objective] = {'cross_entropy': cross_entropy, 'margin': margin}


def get_objective(name: str) -> Objective:
    """Look an objective up by its recipe name.

    Raises:
        LuminaError: when there is no such objective.
    """
    if name not in OBJECTIVES:
        raise LuminaError(f"There is no objective '{name}'; set recipe key 'objective' to one of "
                          f"{', '.join(sorted(OBJECTIVES))}.")
    return OBJECTIVES[name]
