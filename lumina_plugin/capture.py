"""Per-example gradients of chosen weights from one batched backward pass, without forming a weight gradient.

For a linear map `out = a Wᵀ` the gradient of example b is the sum over positions t of δ[b, t] a[b, t]ᵀ, where δ is the
gradient at `out`. A `TorchFunctionMode` sees every `F.linear`, also those that use a bare parameter (audiocraft's
`in_proj_weight`), keeps `a`, and hooks the output to receive δ. Because all weights are passed in detached, autograd
never computes a weight gradient; the first tapped output starts the graph, so nothing below it is differentiated.
"""

import typing as tp

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .errors import LuminaError

# (input a [B, T, i], output gradient δ [B, T, o]) -> whatever the reducer keeps, with B first, summable over calls
Reducer = tp.Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def full_gradient(a: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """The example's whole gradient of a weight, [B, o, i], from a [B, T, i] and δ [B, T, o]."""
    return torch.einsum('bto,bti->boi', delta.float(), a.float())


class TwoSided:
    """Reduce a gradient from both sides, U_oᵀ (Σ_t δ aᵀ) U_i, before it is ever formed.

    Args:
        u_in (torch.Tensor or None): Shape [i, w_i]; None keeps the input side whole.
        u_out (torch.Tensor or None): Shape [o, w_o]; None keeps the output side whole.
    """

    def __init__(self, u_in: tp.Optional[torch.Tensor], u_out: tp.Optional[torch.Tensor]):
        self.u_in = u_in
        self.u_out = u_out

    def __call__(self, a: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        a = a.float() if self.u_in is None else a.float() @ self.u_in  # [B, T, w_i]
        delta = delta.float() if self.u_out is None else delta.float() @ self.u_out  # [B, T, w_o]
        return torch.einsum('bto,bti->boi', delta, a)


class Moments:
    """Collect the second moments of a block's inputs and output gradients, of shapes [i, i] and [o, o].

    Their leading eigenvectors are the two sides of a fitted `TwoSided` reducer (the Kronecker factors of K-FAC,
    Martens & Grosse 2015).
    """

    def __init__(self) -> None:
        self.a: tp.Optional[torch.Tensor] = None
        self.delta: tp.Optional[torch.Tensor] = None

    def __call__(self, a: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        a, delta = a.float().flatten(0, 1), delta.float().flatten(0, 1)  # [B * T, i], [B * T, o]
        second_a, second_delta = a.T @ a, delta.T @ delta
        self.a = second_a if self.a is None else self.a + second_a
        self.delta = second_delta if self.delta is None else self.delta + second_delta
        return torch.zeros(1)


class GradientCapture(TorchFunctionMode):
    """Context in which a forward and a backward pass yield reduced per-example gradients of the tapped weights.

    Usage:
        capture = GradientCapture({'linears.0.weight': weight}, {'linears.0.weight': full_gradient})
        with capture:
            objective(model(codes)).sum().backward()
        gradients = capture.collect()  # {'linears.0.weight': [B, o, i]}

    Args:
        weights (mapping): The very tensors that the model multiplies with, by block name, requiring no gradient.
        reducers (mapping): One `Reducer` for each of them.
        from_embeddings (bool): Start the graph at the embeddings. Needed where layers are checkpointed: what torch
            recomputes in the backward pass runs outside of this mode, and must find the same graph as before.
    """

    def __init__(self, weights: tp.Mapping[str, torch.Tensor], reducers: tp.Mapping[str, Reducer],
                 from_embeddings: bool = False):
        super().__init__()
        self._from_embeddings = from_embeddings
        self._by_storage = {(w.data_ptr(), w.shape): name for name, w in weights.items()}
        self._reducers = reducers
        self._names = list(weights)
        self._gradients: tp.Dict[str, torch.Tensor] = {}

    def __torch_function__(self, func: tp.Any, types: tp.Any, args: tp.Any = (), kwargs: tp.Any = None) -> tp.Any:
        out = func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled():
            return out
        if func is F.embedding and self._from_embeddings and not out.requires_grad:
            return out.requires_grad_()
        if func is not F.linear:
            return out
        inputs, weight = (*args, *(kwargs or {}).values())[:2]
        name = self._by_storage.get((weight.data_ptr(), weight.shape))
        if name is None:
            return out
        if not out.requires_grad:
            out.requires_grad_()  # nothing below needs a gradient: the graph starts here
        out.register_hook(self._receive(name, inputs.detach()))
        return out

    def _receive(self, name: str, inputs: torch.Tensor) -> tp.Callable[[torch.Tensor], None]:
        def hook(delta: torch.Tensor) -> None:
            reduced = self._reducers[name](inputs, delta)
            seen = self._gradients.get(name)
            self._gradients[name] = reduced if seen is None else seen + reduced
        return hook

    def collect(self) -> tp.Dict[str, torch.Tensor]:
        """Hand over what was captured since the last call, by block name.

        Raises:
            LuminaError: when a tapped weight took no part in the pass, which would silently weaken a channel.
        """
        missing = [name for name in self._names if name not in self._gradients]
        if missing:
            raise LuminaError(f"No gradient reached {missing[0]} ({len(missing)} of {len(self._names)} weights): the "
                              "model does not apply it through torch.nn.functional.linear; build the model with "
                              "transformer_lm.custom=true or transformer_lm.memory_efficient=true.")
        gradients, self._gradients = self._gradients, {}
        return gradients
