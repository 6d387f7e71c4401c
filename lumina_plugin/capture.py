"""Per-example gradients of chosen weights from one batched backward pass, without forming a weight gradient.

For a linear map `out = a Wᵀ` the gradient of example b is the sum over positions t of δ[b, t] a[b, t]ᵀ, where δ is the
gradient at `out`. A `TorchFunctionMode` sees every `F.linear`, also those that use a bare parameter (audiocraft's
`in_proj_weight`), keeps `a`, and hooks the output to receive δ. Because all weights are passed in detached, autograd
never computes a weight gradient; the first tapped output starts the graph, so nothing below it is differentiated.

Weights are recognised by where their rows lie in memory, so that a linear over some rows of a tapped weight (cross
attention) and a tap on some rows of a weight (its keys and values alone) both work.
"""

import bisect
import inspect
import typing as tp

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .errors import LuminaError

# (input a [B, T, i], output gradient δ [B, T, o]) -> whatever the reducer makes of them, with B first, summable over
# calls. A reducer with a method `keep` is given what that makes of `a` instead, so that `a` itself can be freed.
Reducer = tp.Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# rows of an output that are shared with a tapped weight, their rows in it, and how many it has
_Part = tp.Tuple[tp.Tuple[int, int], tp.Tuple[int, int], int]

_MHA = inspect.signature(F.multi_head_attention_forward)


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

    def keep(self, a: torch.Tensor) -> torch.Tensor:
        """What must be kept of inputs a [B, T, i] until the backward pass: [B, T, w_i]."""
        return a if self.u_in is None else a.float() @ self.u_in

    def __call__(self, kept: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        delta = delta.float() if self.u_out is None else delta.float() @ self.u_out  # [B, T, w_o]
        return torch.einsum('bto,bti->boi', delta, kept.float())


class Moments:
    """Collect the second moments of a block's inputs and output gradients, of shapes [i, i] and [o, o].

    Positions without a gradient, such as padding, add nothing to a weight's gradient and are left out of both.
    Their leading eigenvectors are the two sides of a fitted `TwoSided` reducer (the Kronecker factors of K-FAC,
    Martens & Grosse 2015).
    """

    def __init__(self) -> None:
        self.a: tp.Optional[torch.Tensor] = None
        self.delta: tp.Optional[torch.Tensor] = None
        self._passing: tp.List[tp.Tuple[torch.Tensor, torch.Tensor]] = []  # of a pass that may yet fail

    def __call__(self, a: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        examples = len(a)
        a, delta = a.float().flatten(0, 1), delta.float().flatten(0, 1)  # [B * T, i], [B * T, o]
        a = a[delta.any(dim=-1)]
        self._passing.append((a.T @ a, delta.T @ delta))
        return a.new_zeros(examples)

    def settle(self) -> None:
        """Count what the pass that has just ended brought."""
        for second_a, second_delta in self._passing:
            self.a = second_a if self.a is None else self.a + second_a
            self.delta = second_delta if self.delta is None else self.delta + second_delta
        self.forget()

    def forget(self) -> None:
        """Do not count what a pass brought that did not end."""
        self._passing.clear()


class _Rows:
    """The rows of a contiguous matrix as a range of addresses."""

    def __init__(self, weight: torch.Tensor):
        self.start, self.width = weight.data_ptr(), weight.shape[1] * weight.element_size()
        self.count = weight.shape[0]
        self.stop = self.start + self.count * self.width

    def shared_with(self, other: '_Rows') -> tp.Optional[tp.Tuple[int, int]]:
        """First and last + 1 of our rows that are also rows of `other`."""
        first, last = max(self.start, other.start), min(self.stop, other.stop)
        if first >= last or self.width != other.width or (first - self.start) % self.width:
            return None
        return (first - self.start) // self.width, (last - self.start) // self.width


def _as_multiplied(input: torch.Tensor) -> torch.Tensor:
    """A linear's input in the precision in which it is multiplied: autocast rounds it inside of `F.linear`, unseen."""
    kind = input.device.type
    if not torch.is_autocast_enabled(kind) or input.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return input
    return input.to(torch.get_autocast_dtype(kind))


class GradientCapture(TorchFunctionMode):
    """Context in which a forward and a backward pass yield reduced per-example gradients of the tapped weights.

    Usage:
        capture = GradientCapture({'linears.0.weight': weight}, {'linears.0.weight': full_gradient})
        with capture:
            objective(model(codes)).sum().backward()
        gradients = capture.collect()  # {'linears.0.weight': [B, o, i]}

    Args:
        weights (mapping): The very tensors that the model multiplies with, or some of their rows, by block name;
            contiguous, not overlapping, requiring no gradient.
        reducers (mapping): One `Reducer` for each of them.
        from_embeddings (bool): Start the graph at the embeddings. Needed where layers are checkpointed: what torch
            recomputes in the backward pass runs outside of this mode, and must find the same graph as before.
    """

    def __init__(self, weights: tp.Mapping[str, torch.Tensor], reducers: tp.Mapping[str, Reducer],
                 from_embeddings: bool = False):
        super().__init__()
        self._from_embeddings = from_embeddings
        self._taps = sorted(((_Rows(weight), name) for name, weight in weights.items()), key=lambda tap: tap[0].start)
        self._starts = [rows.start for rows, _ in self._taps]
        self._reducers = reducers
        self._names = list(weights)
        self._gradients: tp.Dict[str, torch.Tensor] = {}
        for reducer in reducers.values():
            if isinstance(reducer, Moments):
                reducer.forget()

    def __torch_function__(self, func: tp.Any, types: tp.Any, args: tp.Any = (), kwargs: tp.Any = None) -> tp.Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward and torch.is_grad_enabled():
            bound = _MHA.bind(*args, **kwargs)
            bound.apply_defaults()
            return self._attention(**bound.arguments)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        out = func(*args, **kwargs)
        if func is F.embedding and self._from_embeddings and torch.is_grad_enabled() and not out.requires_grad:
            return out.requires_grad_()
        return out

    def _linear(self, input: torch.Tensor, weight: torch.Tensor, bias: tp.Optional[torch.Tensor] = None
                ) -> torch.Tensor:
        """`F.linear`, remembered where its weight shares rows with a tapped one."""
        shared = list(self._shared(weight)) if torch.is_grad_enabled() else []
        if not shared:
            return F.linear(input, weight, bias)
        input = _as_multiplied(input)
        out = F.linear(input, weight, bias)
        if not out.requires_grad:
            out.requires_grad_()  # nothing below needs a gradient: the graph starts here
        for name, part in shared:
            with torch.no_grad():
                keep = getattr(self._reducers[name], 'keep', None)
                with torch.autocast(input.device.type, enabled=False):  # a reducer's products are no part of the model
                    kept = input.detach() if keep is None else keep(input.detach())
            out.register_hook(self._receive(name, kept, part))
        return out

    def _shared(self, weight: torch.Tensor) -> tp.Iterator[tp.Tuple[str, tp.Optional[_Part]]]:
        """The tapped weights that share rows with this one, and which rows; None where each is the other."""
        if weight.dim() != 2 or not weight.is_contiguous():
            return
        rows = _Rows(weight)
        index = bisect.bisect_left(self._starts, rows.stop)
        while index and self._taps[index - 1][0].stop > rows.start:
            index -= 1
            tapped, name = self._taps[index]
            place, taken = tapped.shared_with(rows), rows.shared_with(tapped)
            if place is not None and taken is not None:
                whole = place == (0, tapped.count) and taken == (0, rows.count)
                yield name, None if whole else (taken, place, tapped.count)

    def _attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int,
                   in_proj_weight: torch.Tensor, in_proj_bias: tp.Optional[torch.Tensor],
                   out_proj_weight: torch.Tensor, out_proj_bias: tp.Optional[torch.Tensor],
                   attn_mask: tp.Optional[torch.Tensor], **rest: tp.Any) -> tp.Tuple[torch.Tensor, None]:
        """`F.multi_head_attention_forward` on [T, B, d], spelt out: torch's own projections are hidden from any mode.

        Covers what audiocraft's plain `nn.MultiheadAttention` path asks of it, in evaluation mode and not recomputed.
        """
        asked = [name for name in ('bias_k', 'bias_v', 'add_zero_attn', 'key_padding_mask', 'need_weights',
                                   'use_separate_proj_weight', 'static_k', 'static_v', 'is_causal')
                 if rest.get(name) is not None and rest[name] is not False]
        if asked or (rest['training'] and rest['dropout_p'] > 0):
            raise LuminaError(f"Attention that uses {asked[0] if asked else 'dropout'} of nn.MultiheadAttention cannot "
                              "be captured; build the model with transformer_lm.custom=true.")
        if self._from_embeddings:
            raise LuminaError("nn.MultiheadAttention cannot be captured where layers are checkpointed: torch would "
                              "recompute it in another way; build the model with transformer_lm.custom=true.")
        d = query.shape[-1]  # as few products as torch makes, so that half precision rounds alike
        sides, sizes = ([query, key, value], [d, d, d]) if key is not value else \
            ([query], [3 * d]) if query is key else ([query, key], [d, 2 * d])
        biases = in_proj_bias.split(sizes) if in_proj_bias is not None else [None] * len(sizes)
        q, k, v = (one.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, H, T, d / H]
                   for x, w, b in zip(sides, in_proj_weight.split(sizes), biases, strict=True)
                   for one in self._linear(x.transpose(0, 1), w, b).split(d, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2).flatten(2)  # [B, T, d]
        return self._linear(out, out_proj_weight, out_proj_bias).transpose(0, 1), None

    def _receive(self, name: str, inputs: torch.Tensor, part: tp.Optional[_Part]
                 ) -> tp.Callable[[torch.Tensor], None]:
        def hook(delta: torch.Tensor) -> None:
            if part is not None:  # put the shared rows where they belong in the tapped weight, zeros elsewhere
                (first, last), (place, end), count = part
                delta = F.pad(delta[..., first:last], (place, count - end))
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
                              "model takes no part of it in this pass, or does not apply it through "
                              "torch.nn.functional.linear; leave its layer group out of the recipe's channels.")
        gradients, self._gradients = self._gradients, {}
        for reducer in self._reducers.values():
            if isinstance(reducer, Moments):
                reducer.settle()
        return gradients
