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

_KEY_VALUE = '[key, value]'  # ends the name of a block that is the last two thirds of an `in_proj_weight`

LAYER_GROUPS: tp.Dict[str, str] = {
    # audiocraft keeps Q, K and V in one `in_proj_weight`; its plain `mha` path nests the same weights one level deeper
    'self_attention': r'transformer\.layers\.\d+\.self_attn\.(mha\.)?(in_proj_weight|out_proj\.weight)',
    'output_linears': r'linears\.\d+\.weight',
    'cross_attention': r'transformer\.layers\.\d+\.cross_attention\.(mha\.)?(in_proj_weight|out_proj\.weight)',
    'cross_attention_key_value':
        r'transformer\.layers\.\d+\.cross_attention\.(mha\.)?in_proj_weight' + re.escape(_KEY_VALUE),
    'feed_forward': r'transformer\.layers\.\d+\.linear[12]\.weight',
}
# every matrix of the transformer and every output linear, each once: no part of one
LAYER_GROUPS['all'] = '|'.join(p for group, p in LAYER_GROUPS.items() if group != 'cross_attention_key_value')


@dataclasses.dataclass(frozen=True)
class Block:
    """One weight matrix of a channel.

    Args:
        name (str): Parameter name inside the language model; of a part of its rows, with a suffix that says which.
        out_features (int): Rows o of the weight [o, i].
        in_features (int): Columns i.
        parameter (str): The parameter that it lies in.
        first_row (int): Where in it.
    """
    name: str
    out_features: int
    in_features: int
    parameter: str
    first_row: int = 0

    def of(self, state: tp.Mapping[str, torch.Tensor], prefix: str = '') -> torch.Tensor:
        """This block's weight [o, i] out of a state dict, as a view."""
        return state[prefix + self.parameter][self.first_row:self.first_row + self.out_features]


def resolve_blocks(lm: nn.Module, groups: tp.Sequence[str]) -> tp.List[Block]:
    """List the weight matrices that a channel consists of, in the model's own order.

    Args:
        lm (nn.Module): The language model.
        groups (sequence of str): Names out of `LAYER_GROUPS`, or regular expressions that match whole parameter names.
    Raises:
        LuminaError: when a group matches no weight of this model.
    """
    known = [block for name, p in lm.named_parameters() if p.dim() == 2 for block in _blocks_of(name, p)]
    wanted: tp.Set[str] = set()
    for group in groups:
        expression = LAYER_GROUPS.get(group, group)
        try:
            pattern = re.compile(expression)
        except re.error as error:
            raise LuminaError(f"Layer group '{group}' is no regular expression ({error}); use one of "
                              f"{', '.join(LAYER_GROUPS)} or correct it.") from None
        parts = re.escape(_KEY_VALUE) in expression  # a pattern over parameters never means a part of one
        found = {block.name for block in known if pattern.fullmatch(block.name) and (parts or not block.first_row)}
        if not found:
            raise LuminaError(f"Layer group '{group}' matches no weight of this model; use one of "
                              f"{', '.join(LAYER_GROUPS)} or a regular expression over its parameter names.")
        wanted |= found
    blocks = [block for block in known if block.name in wanted]
    twice = {block.parameter for block in blocks if block.first_row} & {b.name for b in blocks}
    if twice:
        raise LuminaError(f"The layer groups {', '.join(groups)} name {min(twice)} and a part of it; keep one of them.")
    return blocks


def _blocks_of(name: str, parameter: torch.Tensor) -> tp.Iterator[Block]:
    out_features, in_features = parameter.shape
    yield Block(name, out_features, in_features, name)
    if name.endswith('in_proj_weight'):
        third = out_features // 3
        yield Block(name + _KEY_VALUE, out_features - third, in_features, name, third)


def resolve_channels(lm: nn.Module, channels: tp.Mapping[str, tp.Sequence[str]]) -> tp.Dict[str, tp.List[Block]]:
    """Blocks of every channel of a recipe, e.g. `{'P': ['self_attention'], 'M': ['output_linears']}`."""
    return {channel: resolve_blocks(lm, groups) for channel, groups in channels.items()}
