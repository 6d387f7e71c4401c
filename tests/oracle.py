"""What every capture is held against: one example's gradient by plain autograd on the model's own weights."""

import contextlib
import typing as tp

import torch

from lumina_plugin.gradients import Example
from lumina_plugin.objectives import get_objective

from .tiny import LMModel


def oracle(lm: LMModel, example: Example, objective: str,
           autocast: tp.Callable[[], tp.ContextManager] = contextlib.nullcontext) -> tp.Dict[str, torch.Tensor]:
    """Gradients of one example alone, by parameter name."""
    def value() -> torch.Tensor:
        conditions = lm.condition_provider(lm.condition_provider.tokenize([example.attributes]))
        frames = torch.arange(example.codes.shape[-1])
        inputs = example.codes.masked_fill(frames >= example.stop, lm.special_token_id)  # padding is never read
        out = lm.compute_predictions(inputs[None], [], conditions)
        valid = (frames >= example.start) & (frames < example.stop)
        return get_objective(objective)(out.logits, example.codes[None], out.mask & valid[None, None])
    return gradients_of(lm, value, autocast)


def gradients_of(lm: LMModel, value: tp.Callable[[], torch.Tensor],
                 autocast: tp.Callable[[], tp.ContextManager] = contextlib.nullcontext) -> tp.Dict[str, torch.Tensor]:
    """Gradients of a scalar of the model in evaluation mode, by parameter name; the model's own stay empty."""
    lm.eval()
    lm.zero_grad(set_to_none=True)
    with autocast():
        scalar = value().sum()
    scalar.backward()
    gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad(set_to_none=True)
    return gradients


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found - expected‖ / ‖expected‖; nothing where both are 0."""
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))
