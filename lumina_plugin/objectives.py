"""The scalars per example whose gradients are fingerprints.

Every objective maps logits, codes and a mask to one number per example, averaged the way audiocraft averages its
training loss: over the valid codes of each codebook first, then over the codebooks.
"""

import typing as tp

import torch

from .errors import LuminaError

Objective = tp.Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class _Weighted(torch.autograd.Function):
    """Weighted sums of a quantity per code, whose gradient at the logits is written down rather than traced.

    What autograd would do in a dozen passes over [B, K, T, card] numbers takes four, in one buffer.
    """

    @staticmethod
    def forward(ctx: tp.Any, logits: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor, odds: bool
                ) -> torch.Tensor:
        index = codes[..., None].long()  # [B, K, T, 1]
        right = logits.gather(-1, index)[..., 0].float()  # [B, K, T]
        if odds:
            other = (index + 1) % logits.shape[-1]  # any other code: its logit and log probability tell the logsumexp
            buffer = logits.float().scatter(-1, index, float('-inf')).log_softmax(-1)
            values = right - (logits.gather(-1, other).float() - buffer.gather(-1, other))[..., 0]
        else:
            buffer = logits.float().log_softmax(-1)  # [B, K, T, card]
            values = -buffer.gather(-1, index)[..., 0]
        sign = -1. if odds else 1.
        buffer.exp_().mul_(sign * weights[..., None])
        buffer.scatter_add_(-1, index, -sign * weights[..., None])
        unused = weights.flatten() == 0  # audiocraft marks what it cannot predict by NaN
        buffer.view(-1, buffer.shape[-1])[unused] = 0.
        ctx.gradient = buffer.to(logits.dtype)
        return torch.where(weights > 0, values * weights, 0.).sum((1, 2))  # [B]

    @staticmethod
    def backward(ctx: tp.Any, *grads: torch.Tensor) -> tp.Tuple[torch.Tensor, None, None, None]:
        scale = grads[0].to(ctx.gradient.dtype)  # [B]
        gradient = ctx.gradient if bool((scale == 1).all()) else ctx.gradient * scale[:, None, None, None]
        return gradient, None, None, None


def _weights(mask: torch.Tensor) -> torch.Tensor:
    """What each code counts so that their sum is the mean over the valid frames of each codebook, then over codebooks.

    Args:
        mask (torch.Tensor): True where a code counts, of shape [B, K, T].
    Returns:
        torch.Tensor: Shape [B, K, T]; all 0 for an example without a single valid code.
    """
    counts = mask.sum(-1, keepdim=True)  # [B, K, 1]
    used = (counts > 0).sum(1, keepdim=True).clamp(min=1)  # [B, 1, 1]
    return mask / (counts.clamp(min=1) * used)


def cross_entropy(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Teacher-forced cross entropy, the training loss of MusicGen and the objective printed in LUMINA v7.

    Args:
        logits (torch.Tensor): Shape [B, K, T, card]; anything, even NaN, where `mask` is False.
        codes (torch.Tensor): Codes to predict, of shape [B, K, T].
        mask (torch.Tensor): Valid codes, of shape [B, K, T].
    Returns:
        torch.Tensor: Shape [B], in nats per code. It can be differentiated once.
    """
    return tp.cast(torch.Tensor, _Weighted.apply(logits, codes, _weights(mask), False))


def margin(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log odds of the right code, log(p / (1 - p)), written as z_y - logsumexp of the other logits.

    Unlike the loss, its gradient does not fade where the model is already sure, which is what makes gradients of a
    trained model informative (the objective of TRAK, Park et al. 2023, section 3.1).

    Args and returns: as `cross_entropy`; the value grows as the model fits the example better.
    """
    return tp.cast(torch.Tensor, _Weighted.apply(logits, codes, _weights(mask), True))


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
