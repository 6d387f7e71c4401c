"""A MusicGen language model as other libraries can take it: tensors in, a loss out, every weight in an `nn.Linear`."""

import copy
import dataclasses
import typing as tp

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..channels import resolve_channels
from ..errors import LuminaError
from ..gradients import Example
from ..objectives import code_weights

Tensors = tp.Dict[str, torch.Tensor]
TOGETHER = 8  # examples per pass


class LinearAttention(nn.Module):
    """audiocraft's causal self attention, its bare `in_proj_weight` [3d, d] held by an `nn.Linear`."""

    def __init__(self, attention: tp.Any):
        super().__init__()
        self.in_proj = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, bias=False, device='meta')
        self.in_proj.weight = attention.in_proj_weight
        self.out_proj, self.heads = attention.out_proj, attention.num_heads

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: tp.Any
                ) -> tp.Tuple[torch.Tensor, None]:
        """query [B, T, d], which is also key and value -> [B, T, d]."""
        q, k, v = self.in_proj(query).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, d / H]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)), None


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of examples, in operations that `torch.func` can trace.

    Args:
        logits (torch.Tensor): [B, K, T, card], finite. codes (torch.Tensor): [B, K, T].
        mask (torch.Tensor): Which codes count, [B, K, T].
    """
    logits: torch.Tensor
    codes: torch.Tensor
    mask: torch.Tensor

    @property
    def log_probabilities(self) -> torch.Tensor:
        """Of the right codes, [B, K, T]."""
        return self.logits.log_softmax(-1).gather(-1, self.codes[..., None])[..., 0]

    @property
    def losses(self) -> torch.Tensor:
        """Mean cross entropy of each example as `objectives.cross_entropy` has it, [B]."""
        return -self._mean(self.log_probabilities)

    @property
    def loss(self) -> torch.Tensor:
        """Mean of `losses`, as dattri expects it: it multiplies an example's part by the size of the batch again."""
        return self.losses.mean()

    @property
    def margins(self) -> torch.Tensor:
        """Mean log odds of the right codes as `objectives.margin` has it, [B]."""
        right = self.logits.gather(-1, self.codes[..., None])[..., 0]
        others = self.logits.scatter(-1, self.codes[..., None], float('-inf')).logsumexp(-1)
        return self._mean(right - others)

    @property
    def probabilities(self) -> torch.Tensor:
        """Mean probability of the right codes, [B]."""
        return self._mean(self.log_probabilities.exp())

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        """Over the valid codes of each codebook, then over codebooks: [B, K, T] -> [B]."""
        return (values * code_weights(self.mask)).sum((1, 2))


class PlainModel(nn.Module):
    """A copy on the CPU of a language model: its conditions are tensors, its self attention multiplies by `nn.Linear`s.

    Args:
        lm (nn.Module): audiocraft `LMModel` with causal self attention and conditions of text.
        channels (mapping): Layer groups by channel; `layers` then names the channels' `nn.Linear`s.
    Raises:
        LuminaError: for another kind of model.
    """

    def __init__(self, lm: tp.Any, channels: tp.Mapping[str, tp.Sequence[str]]):
        super().__init__()
        if not hasattr(lm, 'pattern_provider') or lm.condition_provider.wav_conditions:
            raise LuminaError("Peers know language models with conditions of text alone; leave out --peers for this "
                              "one.")
        self.lm = copy.deepcopy(lm).cpu().eval()
        for layer in self.lm.transformer.layers:
            layer.self_attn = LinearAttention(layer.self_attn)
        self.layers = {channel: [f'lm.{_linear(block.parameter)}' for block in blocks]
                       for channel, blocks in resolve_channels(lm, channels).items()}
        self._spec: tp.Any = None  # how the tensors of conditions are nested

    def load(self, state: tp.Mapping[str, torch.Tensor]) -> 'PlainModel':
        """Take over the weights of a state dict of the original model."""
        renamed = {name.replace('self_attn.in_proj_weight', 'self_attn.in_proj.weight'): tensor
                   for name, tensor in state.items()}
        self.lm.load_state_dict(renamed)
        return self

    def train_only(self, channels: tp.Iterable[str]) -> 'PlainModel':
        """Let the weights of these channels alone require gradients."""
        wanted = {f'{name}.weight' for channel in channels for name in self.layers[channel]}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in wanted)
        return self

    def forward(self, codes: torch.Tensor, inputs: torch.Tensor, valid: torch.Tensor, **conditions: torch.Tensor
                ) -> Predictions:
        """Predict codes [B, K, T] where valid [B, K, T] from inputs [B, K, T] and what `tensors` made of conditions."""
        leaves = [conditions[f'condition_{index}'] for index in range(len(conditions))]
        embedded = self.lm.condition_provider(pytree.tree_unflatten(leaves, self._spec))
        out = self.lm.compute_predictions(inputs, [], embedded)
        mask = out.mask & valid
        return Predictions(torch.where(mask[..., None], out.logits, 0.), codes, mask)  # masked ones are NaN

    @torch.no_grad()
    def tensors(self, examples: tp.Sequence[Example]) -> tp.List[Tensors]:
        """Examples as `forward` takes them, without B; codes of unlike lengths are padded, which changes nothing."""
        length = max(example.codes.shape[-1] for example in examples)
        provider, special = self.lm.condition_provider, self.lm.special_token_id
        found = []
        for example in examples:
            leaves, self._spec = pytree.tree_flatten(provider.tokenize([example.attributes]))
            frames = torch.arange(length)
            after = length - example.codes.shape[-1]
            codes = F.pad(example.codes, (0, after))
            counted = (frames >= example.start) & (frames < example.stop) & F.pad(self._predicted(example), (0, after))
            found.append({'codes': codes, 'inputs': codes.masked_fill(frames >= example.stop, special),
                          'valid': counted, **{f'condition_{i}': leaf[0] for i, leaf in enumerate(leaves)}})
        self(**{name: tensor[None] for name, tensor in found[0].items()})  # what audiocraft remembers of a pattern
        return found  # cannot be made inside of `torch.func.vmap`

    def _predicted(self, example: Example) -> torch.Tensor:
        """Which codes can be predicted where they end with the example's, [K, T]: late codebooks' last ones cannot."""
        codes = example.codes[None].contiguous()
        pattern = self.lm.pattern_provider.get_pattern(codes.shape[-1])
        steps = pattern.build_pattern_sequence(codes, self.lm.special_token_id, keep_only_valid_steps=True)[0].shape[-1]
        nothing = torch.zeros(1, 1, codes.shape[1], steps)
        return pattern.revert_pattern_logits(nothing, 0., keep_only_valid_steps=True)[2]

    def expect_like(self, lm: tp.Any, example: Example) -> None:
        """Raise LuminaError where this copy and its original say unlike things of an example."""
        one = {name: tensor[None] for name, tensor in self.tensors([example])[0].items()}
        training = lm.training
        lm.eval()
        with torch.no_grad():
            inputs = one['inputs'].to(next(lm.parameters()).device)
            out, found = lm.compute_predictions(inputs, [example.attributes]), self(**one)
        lm.train(training)
        if not torch.allclose(found.logits[found.mask], out.logits.cpu()[found.mask], atol=1e-3, rtol=1e-3):
            raise LuminaError("The self attention of this model is of a kind that its copy for peers does not know; "
                              "leave out --peers.")


def loader(rows: tp.Sequence[Tensors], together: int = TOGETHER) -> torch.utils.data.DataLoader:
    """Batches of so many, in order; of one where texts are of unlike lengths, which padding would change."""
    shapes = {tuple((name, tensor.shape) for name, tensor in row.items()) for row in rows}
    return torch.utils.data.DataLoader(tp.cast(tp.Any, list(rows)), batch_size=together if len(shapes) == 1 else 1)


def _linear(parameter: str) -> str:
    """The `nn.Linear` that holds a parameter of the original model."""
    return parameter.replace('self_attn.in_proj_weight', 'self_attn.in_proj.weight').removesuffix('.weight')
