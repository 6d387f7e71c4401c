"""LUMINA's gradients for a latent diffusion model: the same capture, projection and store, another objective.

Channel P is the self attention's four matrices of every block, M is `proj_out`. The 1×1 `postprocess_conv` behind it is
left out on purpose: with G = Σ δ hᵀ, δ at the transformer's output and h what `proj_out` reads, the gradients are
(1 + W_c)ᵀ G for `proj_out` and G W_pᵀ for the convolution, so that the second says nothing that the first does not.
"""

import copy
import typing as tp

import torch
from torch import nn

from ..capture import GradientCapture, Reducer
from ..channels import Block, resolve_channels
from ..errors import LuminaError
from ..fingerprint import Fingerprinter, Projections
from ..gradients import Gradients, _undisturbed
from ..recipe import Recipe
from .model import Conditions, LatentDiT, LatentExample
from .objective import angle_time, frame_weights, noise, v_errors

V_OBJECTIVE = 'v_objective'


class _Asked(tp.NamedTuple):
    """A batch as the objective sees it: latents [B, C, T], what frames count [B, T], conditions."""
    latents: torch.Tensor
    weights: torch.Tensor
    conditions: Conditions


class _DiffusionModel(nn.Module):
    """A denoiser and its objective as one module, so that `functional_call` can lend it other weights."""

    def __init__(self, lm: nn.Module, draws: tp.Sequence[int], seed: int):
        super().__init__()
        self.lm, self.draws, self.seed = lm, draws, seed

    def forward(self, asked: _Asked) -> torch.Tensor:
        """Loss per example, [B], with the backward pass of every draw already done where gradients are on; one draw is
        held at a time."""
        total = asked.latents.new_zeros(len(asked.latents))
        for draw in self.draws:
            eps = noise(draw, self.seed, *asked.latents.shape[1:]).to(asked.latents)
            t = asked.latents.new_full((len(asked.latents),), angle_time(draw, self.seed))
            errors = v_errors(self.lm, asked.latents, eps.expand_as(asked.latents), t, asked.conditions)
            values = (errors * asked.weights).sum(1) / len(self.draws)
            if torch.is_grad_enabled():
                values.sum().backward()
            total = total + values.detach()
        return total


class DiTFingerprinter(Fingerprinter):
    """`Fingerprinter` of a latent diffusion model: its examples are `LatentExample`s.

    An example's gradient is that of its v-loss over the recipe's fixed draws of noise, over the frames that hold music.

    Args:
        dit (LatentDiT): The model.
        recipe (Recipe): Of objective `v_objective`; its `draws` say how many.
        weights (mapping, optional): The denoiser's state dict, in place of its own.
        projections (mapping, optional): By channel; without them `fit` must run before a fingerprint is asked for.
        batch_size (int): Windows per pass; halved when memory runs out.
    Raises:
        LuminaError: for a recipe of another objective.
    """

    def __init__(self, dit: LatentDiT, recipe: Recipe, weights: tp.Optional[tp.Mapping[str, torch.Tensor]] = None,
                 projections: tp.Optional[Projections] = None, batch_size: int = 8):
        if recipe.objective != V_OBJECTIVE:
            raise LuminaError(f"Recipe {recipe.name} has objective {recipe.objective}, which a latent diffusion model "
                              f"cannot answer; set it to {V_OBJECTIVE}.")
        self.dit, self.projections = dit, projections
        self._prepare(dit.denoiser, recipe, weights, batch_size)
        self.channels = resolve_channels(dit.denoiser, recipe.channels)
        self._model = _DiffusionModel(dit.denoiser, range(recipe.draws), recipe.projection.seed)

    def alone(self, channel: str) -> 'DiTFingerprinter':
        recipe = self.recipe.model_copy(update={'channels': {channel: self.recipe.channels[channel]}})
        weights = {name.removeprefix('lm.'): tensor for name, tensor in self._state.items()}
        return DiTFingerprinter(self.dit, recipe, weights, batch_size=self.batch_size)

    def gradients(self, examples: tp.Sequence[tp.Any], reducers: tp.Mapping[str, Reducer]) -> Gradients:
        """Reduced per-example gradients of one batch, by block name, each [B, o', i']."""
        blocks: tp.Dict[str, Block] = self.blocks
        asked = self._asked(examples)
        weights = {name: block.of(self._state, 'lm.') for name, block in blocks.items()}
        capture = GradientCapture(weights, {name: reducers[name] for name in weights})
        with _undisturbed(self.lm), torch.enable_grad(), capture:
            torch.func.functional_call(self._model, self._state, tie_weights=False, args=(asked,))
        return capture.collect()

    def values(self, examples: tp.Sequence[tp.Any], objective: tp.Optional[str] = None) -> torch.Tensor:
        """The v-loss of examples, without any gradient: [n], on the CPU. There is no other `objective` here."""
        if objective not in (None, V_OBJECTIVE):
            raise LuminaError(f"A latent diffusion model cannot answer the objective {objective}; use {V_OBJECTIVE}.")

        def ask(batch: tp.Sequence[tp.Any]) -> torch.Tensor:
            with _undisturbed(self.lm), torch.no_grad():
                return torch.func.functional_call(self._model, self._state, tie_weights=False,
                                                  args=(self._asked(batch),))
        found = torch.zeros(len(examples))
        for index, values in self._in_batches(examples, ask):
            found[index] = values.float().cpu()
        return found

    def at_draw(self, draw: int) -> 'DiTFingerprinter':
        """The same, asked at one of its draws alone."""
        other = copy.copy(self)
        other._model = _DiffusionModel(self.dit.denoiser, [draw], self._model.seed)
        return other

    def _asked(self, examples: tp.Sequence[LatentExample]) -> _Asked:
        return _Asked(torch.stack([e.latents for e in examples]).to(self.device),
                      frame_weights(examples, None, self.dit.frames).to(self.device), self.dit.conditions(examples))

    def _kinds(self, examples: tp.Sequence[tp.Any]) -> tp.List[int]:
        """All windows have one length, and share a pass."""
        return [0] * len(examples)

    def _read(self, example: tp.Any) -> int:
        """Frames of a window that the model reads: all of them."""
        return int(example.latents.shape[-1])
