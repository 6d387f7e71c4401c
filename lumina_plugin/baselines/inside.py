"""What goes on inside a language model while it reads finished codes: activations, and what they are to predict."""

import dataclasses
import itertools
import typing as tp

import torch
from torch import nn

from ..conditions import condition_shapes
from ..errors import LuminaError
from ..gradients import Example
from ..magnet import is_magnet

TOGETHER = 8  # examples at once
Reduce = tp.Callable[[torch.Tensor], torch.Tensor]  # activations [B, S, C] to what is kept of them


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some examples in the order of the codebooks' pattern.

    Args:
        index (list of int): Which examples. sequence (torch.Tensor): What is read, [B, K, S].
        targets (torch.Tensor): Code of each codebook that a step predicts, [B, K, S].
        counted (torch.Tensor): True where there is one that counts, [B, K, S].
        heard (torch.Tensor): True at the steps whose first codebook is of a frame that counts, [B, S].
        attributes (list): Conditions.
    """
    index: tp.List[int]
    sequence: torch.Tensor
    targets: torch.Tensor
    counted: torch.Tensor
    heard: torch.Tensor
    attributes: tp.List[tp.Any]


def batches(lm: tp.Any, examples: tp.Sequence[Example]) -> tp.Iterator[Batch]:
    """All examples, those together that padding would not change.

    Raises:
        LuminaError: for a MAGNeT, which does not read codes step by step.
    """
    if is_magnet(lm):
        raise LuminaError("LPIPS and representer points are made of what an autoregressive model predicts step by "
                          "step; leave them out for a MAGNeT.")
    kinds = [str((example.codes.shape[-1], condition_shapes(lm, example.attributes))) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: kinds[i])
    for _, group in itertools.groupby(order, key=lambda i: kinds[i]):
        alike = list(group)
        for first in range(0, len(alike), TOGETHER):
            yield _batch(lm, alike[first:first + TOGETHER], examples)


def _batch(lm: tp.Any, index: tp.List[int], examples: tp.Sequence[Example]) -> Batch:
    some = [examples[i] for i in index]
    device = next(lm.parameters()).device
    codes = torch.stack([example.codes for example in some]).to(device)  # [B, K, T]
    frames = torch.arange(codes.shape[-1], device=device)
    starts, stops = torch.tensor([[e.start, e.stop] for e in some], device=device).T[..., None]  # [B, 1] each
    valid = ((frames >= starts) & (frames < stops))[:, None].expand_as(codes)
    pattern = lm.pattern_provider.get_pattern(codes.shape[-1])
    after = (frames >= stops)[:, None].expand_as(codes)  # what follows the music is never read
    sequence, where, filled = pattern.build_pattern_sequence(codes.masked_fill(after, lm.special_token_id),
                                                             lm.special_token_id, keep_only_valid_steps=True)
    heard, _ = _picked(valid, where, filled)  # [B, K, S]
    first = int(pattern.starts_with_special_token())  # a step predicts the codes of the next one
    where = nn.functional.pad(where[:, first:], (0, first), value=codes[0].numel())
    filled = nn.functional.pad(filled[:, first:], (0, first))
    counted, targets = _picked(valid, where, filled, codes)
    return Batch(index, sequence, targets, counted, heard[:, 0], [example.attributes for example in some])


def _picked(valid: torch.Tensor, where: torch.Tensor, filled: torch.Tensor,
            codes: tp.Optional[torch.Tensor] = None) -> tp.Tuple[torch.Tensor, torch.Tensor]:
    """Validity and codes [B, K, T] in the pattern's order [B, K, S]: step s of codebook k holds code `where[k, s]`."""
    codes = valid.long() if codes is None else codes
    found = [nn.functional.pad(x.flatten(1), (0, 1))[:, where.flatten()].unflatten(1, where.shape)
             for x in (valid, codes)]
    return found[0] & filled, found[1]


def read(lm: tp.Any, batch: Batch, modules: tp.Sequence[nn.Module], reduce: Reduce, inputs: bool = False
         ) -> tp.List[torch.Tensor]:
    """Run a batch through the model and `overhear` some of its modules."""
    return overhear(lm, lambda: lm(batch.sequence, [], lm.condition_provider(
        lm.condition_provider.tokenize(batch.attributes))), batch.sequence.shape[-1], modules, reduce, inputs)


@torch.no_grad()
def overhear(model: nn.Module, run: tp.Callable[[], tp.Any], steps: int, modules: tp.Sequence[nn.Module],
             reduce: Reduce, inputs: bool = False) -> tp.List[torch.Tensor]:
    """Run a model and keep something of the outputs (or inputs) of some of its modules.

    Args:
        run (callable): Runs it. steps (int): S, of the sequence without what is prepended to it.
        reduce (callable): Of activations [B, S, C], fp32, prepended conditions left out. inputs (bool): What goes in.
    Returns:
        list: What `reduce` made of them, in the order of `modules`. The model is left as it was.
    """
    found: tp.Dict[int, torch.Tensor] = {}

    def keep(place: int, value: tp.Any) -> None:
        tensor = value[0] if isinstance(value, tuple) else value
        found[place] = reduce(tensor[:, -steps:].float())

    hooks = [module.register_forward_pre_hook(lambda _, given, place=place: keep(place, given)) if inputs else
             module.register_forward_hook(lambda _, given, out, place=place: keep(place, out))
             for place, module in enumerate(modules)]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        run()
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return [found[place] for place in range(len(modules))]
