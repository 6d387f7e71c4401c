"""Which weights of a language model form channel P, channel M and the other layer groups.

P (composition, publishing) is every self-attention weight and M (production, master) is every output linear
(LUMINA v7, dual channels). Groups are regular expressions over parameter names, so that a recipe can name its own.
"""

import dataclasses
import re
import typing as tp

import torch
from torch import nn

from .errors import LuminaError

LAYER_GROUPS: tp.Dict[str, str] = {
    # audiocraft keeps Q, K and V in one `in_proj_weight`; its plain `mha` path nests the same weights one level deeper
    'self_attention': r'transformer\.layers\.\d+\.self_attn\.(mha\.)?(in_proj_weight|out_proj\.weight)',
    'output_linears': r'linears\.\d+\.weight',
    'cross_attention': r'transformer\.layers\.\d+\.cross_attention\.(mha\.)?(in_proj_weight|out_proj\.weight)',
    'feed_forward': r'transformer\.layers\.\d+\.linear[12]\.weight',
}


@dataclasses.dataclass(frozen=True)
class Block:
    """One weight matrix of a channel.

    Args:
        name (str): Parameter name inside the language model.
        out_features (int): Rows o of the weight [o, i].
        in_features (int): Columns i.
    """
    name: str
    out_features: int
    in_features: int


def resolve_blocks(lm: nn.Module, groups: tp.Sequence[str]) -> tp.List[Block]:
    """List the weight matrices that a channel consists of, in the model's own order.

    Args:
        lm (nn.Module): The language model.
        groups (sequence of str): Names out of `LAYER_GROUPS`, or regular expressions that match whole parameter names.
    Raises:
        LuminaError: when a group matches no weight of this model.
    """
    named = [(name, p) for name, p in lm.named_parameters() if p.dim() == 2]
    wanted: tp.Set[str] = set()
    for group in groups:
        pattern = re.compile(LAYER_GROUPS.get(group, group))
        found = {name for name, _ in named if pattern.fullmatch(name)}
        if not found:
            raise LuminaError(f"Layer group '{group}' matches no weight of this model; use one of "
                              f"{', '.join(LAYER_GROUPS)} or a regular expression over its parameter names.")
        wanted |= found
    return [Block(name, p.shape[0], p.shape[1]) for name, p in named if name in wanted]


def resolve_channels(lm: nn.Module, channels: tp.Mapping[str, tp.Sequence[str]]) -> tp.Dict[str, tp.List[Block]]:
    """Blocks of every channel of a recipe, e.g. `{'P': ['self_attention'], 'M': ['output_linears']}`."""
    return {channel: resolve_blocks(lm, groups) for channel, groups in channels.items()}


def weights_of(blocks: tp.Iterable[Block], state: tp.Mapping[str, torch.Tensor]) -> tp.Dict[str, torch.Tensor]:
    """The tensors of some blocks out of a state dict, by block name."""
    return {block.name: state[block.name] for block in blocks}
