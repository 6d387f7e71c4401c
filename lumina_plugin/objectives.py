"""The scalars per example whose gradients are fingerprints.

Every objective maps logits, codes and a mask to one number per example, averaged the way audiocraft averages its
training loss: over the valid codes of each codebook first, then over the codebooks.
"""

import typing as tp

import torch

from .errors import LuminaError

Objective = tp.Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _of_example(logits: torch.Tensor, index: torch.Tensor, weights: torch.Tensor,
                gradient: tp.Optional[torch.Tensor], values: torch.Tensor, odds: bool) -> None:
    """Weighted values [K, T] of one example and their gradient [K, T, card] if there is a place for it, written where
    they belong."""
    if odds:
        other = (index + 1) % logits.shape[-1]  # any other code: its logit and log probability tell the logsumexp
        work = logits.float().scatter(-1, index, float('-inf')).log_softmax(-1)
        found = logits.gather(-1, index).float() - logits.gather(-1, other).float() + work.gather(-1, other)
    else:
        work = logits.float().log_softmax(-1)  # [K, T, card]
        found = -work.gather(-1, index)
    unused = weights == 0  # audiocraft marks what it cannot predict by NaN
    values.copy_((found[..., 0] * weights).masked_fill_(unused, 0.))
    if gradient is None:
        return
    sign = -1. if odds else 1.
    work.exp_().mul_(sign * weights[..., None]).scatter_add_(-1, index, -sign * weights[..., None])
    gradient.copy_(work.masked_fill_(unused[..., None], 0.))


class _Weighted(torch.autograd.Function):
    """Weighted sums of a quantity per code, whose gradient at the logits is written down rather than traced.

    Autograd would go over [B, K, T, card] numbers a dozen times, and keep several copies of them.
    """

    @staticmethod
    def forward(ctx: tp.Any, logits: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor, odds: bool
                ) -> torch.Tensor:
        values = torch.empty_like(weights)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for row in range(len(logits)):  # one example at a time: what lies between then stays in the processor's cache
            _of_example(logits[row], codes[row, ..., None].long(), weights[row],
                        None if gradient is None else gradient[row], values[row], odds)
        ctx.gradient = gradient
        return values.sum((1, 2))  # [B]

    @staticmethod
    def backward(ctx: tp.Any, *grads: torch.Tensor) -> tp.Tuple[torch.Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # let go of, so that it can be freed on the way down
        scale = grads[0].to(gradient.dtype)  # [B]
        return gradient if bool((scale == 1).all()) else gradient * scale[:, None, None, None], None, None, None


def code_weights(mask: torch.Tensor) -> torch.Tensor:
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
    return tp.cast(torch.Tensor, _Weighted.apply(logits, codes, code_weights(mask), False))


def margin(logits: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log odds of the right code, log(p / (1 - p)), written as z_y - logsumexp of the other logits.

    Unlike the loss, its gradient does not fade where the model is already sure, which is what makes gradients of a
    trained model informative (the objective of TRAK, Park et al. 2023, section 3.1).

    Args and returns: as `cross_entropy`; the value grows as the model fits the example better.
    """
    return tp.cast(torch.Tensor, _Weighted.apply(logits, codes, code_weights(mask), True))


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
