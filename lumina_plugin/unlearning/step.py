"""Forget one query: steps up its loss that the songs' information holds back.

The objective is -L(query) + N/2 · (θ - θ0)ᵀ F (θ - θ0), whose Newton-like steps are (arXiv 2506.18312, section 3)

    θ ← θ + lr · [ 1/N · (F + damping)^-power ∇L(query, θ) - (θ - θ0) ],

the first of which has nothing to pull back. The model itself is never written to: a moved copy of its weights is lent
to every pass, so that nothing needs restoring; `lent_to` writes them into a live model while it generates.
"""

import contextlib
import dataclasses
import math
import typing as tp

import torch

from ..capture import full_gradient
from ..errors import LuminaError
from .fisher import Fisher, Learner, Tensors, song_gradients
from .recipe import UnlearningRecipe

SIGN = {'cross_entropy': 1., 'margin': -1., 'v_objective': 1.}  # a loss is what gets better as it falls
TENTHS = 45  # all that single precision holds
BISECTIONS = 4


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """A model that has unlearnt a query.

    Args:
        learner (Learner): With the moved weights. offsets (dict): θ - θ0 by block name, [o, i].
        lr (float): Of each step. relative (float): ‖θ - θ0‖ / ‖θ0‖ over the layers that may move.
        before (float): Loss of the query at θ0. after (float): At θ.
    """
    learner: Learner
    offsets: Tensors
    lr: float
    relative: float
    before: float
    after: float


def forget(learner: Learner, fisher: Fisher, query: tp.Any, recipe: UnlearningRecipe, songs: int) -> Forgotten:
    """Unlearn one query.

    Args:
        learner (Learner): Under the objective `recipe.objective`, for the layers that may move.
        query: An `id` and `examples`. songs (int): N, how many songs the model was trained on.
    Raises:
        LuminaError: when the loss does not stay finite; it names the largest lr that keeps it so.
    """
    sign = SIGN[recipe.objective]
    before = sign * loss_of(learner, query)
    if not math.isfinite(before):
        raise LuminaError(f"The loss of {query.id} is not finite before anything is unlearnt; check the model.")
    direction = _direction(learner, fisher, query, recipe, sign)
    length = norm(direction)
    if not length:
        raise LuminaError(f"The loss of {query.id} has no gradient at the layers '{recipe.layers}': nothing can be "
                          "unlearnt there; choose other layers.")
    lr = recipe.lr if recipe.lr is not None else \
        tp.cast(float, recipe.relative) * weights_norm(learner) * songs / (length * recipe.steps)
    if recipe.steps > 1 and lr > 1:
        raise LuminaError(f"{recipe.steps} steps of lr {lr:.3g} for {query.id} would overshoot their own pull back, "
                          "which needs an lr of at most 1; take one step, a smaller one, or Fisher information.")
    found = _stepped(learner, fisher, query, recipe, songs, lr, direction)
    if found is None:
        raise LuminaError(_too_far(learner, fisher, query, recipe, songs, lr, direction))
    offsets, moved, after = found
    return Forgotten(moved, offsets, lr, norm(offsets) / weights_norm(learner), before, after)


def _stepped(learner: Learner, fisher: Fisher, query: tp.Any, recipe: UnlearningRecipe, songs: int, lr: float,
             direction: Tensors) -> tp.Optional[tp.Tuple[Tensors, Learner, float]]:
    """After all steps: θ - θ0, the moved learner and the query's loss; None where something was not finite."""
    sign = SIGN[recipe.objective]
    offsets = {name: lr / songs * d for name, d in direction.items()}
    moved = learner.moved(offsets)
    for _ in range(recipe.steps - 1):
        direction = _direction(moved, fisher, query, recipe, sign)
        if not math.isfinite(norm(direction)):
            return None
        offsets = {name: offset + lr * (direction[name] / songs - offset) for name, offset in offsets.items()}
        moved = learner.moved(offsets)
    after = sign * loss_of(moved, query)
    return (offsets, moved, after) if math.isfinite(after) and math.isfinite(norm(offsets)) else None


def _too_far(learner: Learner, fisher: Fisher, query: tp.Any, recipe: UnlearningRecipe, songs: int, lr: float,
             direction: Tensors) -> str:
    """The sentence for a step that was too large, with one that is not."""
    smaller = lr
    for _ in range(TENTHS):
        smaller /= 10
        if _stepped(learner, fisher, query, recipe, songs, smaller, direction) is not None:
            larger = lr if smaller * 10 > lr else smaller * 10
            for _ in range(BISECTIONS):  # between one that will do and one that will not
                middle = math.sqrt(smaller * larger)
                fits = _stepped(learner, fisher, query, recipe, songs, middle, direction) is not None
                smaller, larger = (middle, larger) if fits else (smaller, middle)
            return (f"A step of lr {lr:.3g} makes the loss of {query.id} not finite; the largest tried that does not "
                    f"is lr {smaller:.3g}: use that or less.")
    return (f"A step of lr {lr:.3g} makes the loss of {query.id} not finite, as does any smaller one; "
            "check the Fisher information and raise the damping.")


def _direction(learner: Learner, fisher: Fisher, query: tp.Any, recipe: UnlearningRecipe, sign: float) -> Tensors:
    gradients = song_gradients(learner, [query], {name: full_gradient for name in learner.blocks})
    return fisher.step({name: sign * gradient[0] for name, gradient in gradients.items()}, recipe.damping, recipe.power)


def loss_of(learner: Learner, piece: tp.Any) -> float:
    """Objective of a song or query: the mean over its examples, weighted by what counts in them."""
    weights = torch.tensor([example.weight for example in piece.examples], dtype=torch.float64)
    return float((learner.values(list(piece.examples)).double() * weights).sum() / weights.sum())


def norm(tensors: tp.Mapping[str, torch.Tensor]) -> float:
    """Euclidean length of all of them together."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def weights_norm(learner: Learner) -> float:
    """‖θ0‖ over the layers that may move."""
    return norm({name: learner.weight(name) for name in learner.blocks})


@contextlib.contextmanager
def lent_to(model: torch.nn.Module, learner: tp.Optional[Learner], offsets: tp.Mapping[str, torch.Tensor],
            state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None) -> tp.Iterator[None]:
    """Write moved weights into a live model; they are put back to the bit, also after an error.

    Args:
        model (nn.Module): What the learner was made of. offsets (mapping): θ - θ0 by block name.
        state (mapping, optional): θ0, where that is not what the model has.
    """
    parameters = dict(model.named_parameters())
    blocks = {} if learner is None else learner.blocks
    touched = {blocks[name].parameter for name in offsets} if state is None else set(parameters)
    kept = {name: parameters[name].detach().clone() for name in touched}
    try:
        with torch.no_grad():
            for name, tensor in (state or {}).items():
                if name in parameters:
                    parameters[name].copy_(tensor)
            for name, offset in offsets.items():
                block = blocks[name]
                block.of(parameters).add_(offset.to(parameters[block.parameter]))
        yield
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                parameters[name].copy_(tensor)
