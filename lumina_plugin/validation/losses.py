"""Losses of queries under a model: what retraining changes, and what every method tries to foretell."""

import itertools
import typing as tp

import torch
from torch import nn

from ..conditions import attributes_for, condition_shapes
from .queries import Query

PARTS = 2  # prompt, and what follows it


@torch.no_grad()
def query_losses(lm: tp.Any, queries: tp.Sequence[Query], batch_size: int = 16
                 ) -> tp.Tuple[torch.Tensor, torch.Tensor]:
    """Teacher-forced cross entropy of queries, summed over frames, apart for the prompt and for what follows.

    Args:
        lm (nn.Module): audiocraft `LMModel`. queries (sequence of Query): Q of them. batch_size (int): At once.
    Returns:
        torch.Tensor: Sums in nats, [Q, 2, K], fp64. torch.Tensor: The number of codes in each, [Q, 2, K].
    """
    training = lm.training
    lm.eval()
    device = next(lm.parameters()).device
    sums, counts = [], []
    attributes = [attributes_for(lm, query.text) for query in queries]
    kinds = [(query.codes.shape[-1], condition_shapes(lm, one))  # what padding would change never shares a batch
             for query, one in zip(queries, attributes, strict=True)]
    order = sorted(range(len(queries)), key=lambda i: (str(kinds[i]), i))
    for index in _alike(order, kinds, batch_size):
        batch = [queries[i] for i in index]
        codes = torch.stack([query.codes for query in batch]).to(device)  # [B, K, T]
        out = lm.compute_predictions(codes, [attributes[i] for i in index])
        valid = out.mask  # [B, K, T]
        logits = out.logits.masked_fill(~valid[..., None], 0.)  # what cannot be predicted is NaN
        nats = nn.functional.cross_entropy(logits.flatten(0, 2).float(), codes.flatten(), reduction='none')
        nats = (nats.view_as(codes) * valid).double().cpu()
        frames = torch.arange(codes.shape[-1])
        starts = torch.tensor([query.prompt_frames for query in batch])
        after = (frames >= starts[:, None])[:, None]  # [B, 1, T]
        sums.append(torch.stack([(nats * ~after).sum(-1), (nats * after).sum(-1)], dim=1))
        counts.append(torch.stack([(valid.cpu() & ~after).sum(-1), (valid.cpu() & after).sum(-1)], dim=1))
    lm.train(training)
    back = torch.argsort(torch.tensor(order))
    return torch.cat(sums)[back], torch.cat(counts)[back]


def mean_losses(sums: torch.Tensor, counts: torch.Tensor, masked: bool) -> torch.Tensor:
    """Losses as audiocraft averages them, over frames and then over codebooks: [..., 2, K] -> [...].

    Args:
        masked (bool): Leave the prompt out.
    """
    if not masked:
        sums, counts = sums.sum(-2), counts.sum(-2)
    else:
        sums, counts = sums[..., 1, :], counts[..., 1, :]
    return (sums / counts.clamp(min=1)).mean(-1)


def _alike(order: tp.Sequence[int], kinds: tp.Sequence[tp.Hashable], batch_size: int) -> tp.Iterator[tp.List[int]]:
    """Consecutive indices of one kind, at most `batch_size` at a time."""
    for _, group in itertools.groupby(order, key=lambda i: kinds[i]):
        index = list(group)
        for first in range(0, len(index), batch_size):
            yield index[first:first + batch_size]
