"""What a step will do to each song, to first order, from a few thousand numbers kept per song: to shortlist by.

To first order the score of a song is lr/N · ∇L(song)ᵀ (F + damping)^-power ∇L(query): the inner product of both
gradients, each multiplied by (F + damping)^(-power/2). Of each song a seeded random projection of that is kept, by
which inner products stay the same on average, up to a noise of 1/√D of both lengths (Johnson & Lindenstrauss 1984).
Cosines between songs are small there, so that D is large: 32 KB per song. The projection itself takes 36 bytes per
weight while it is used.
"""

import json
import typing as tp
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..atomic import write_atomic
from ..capture import full_gradient
from ..projection import SparseSigns
from .fisher import Fisher, Learner, grouped, song_gradients
from .recipe import UnlearningRecipe
from .scoring import FloatArray

Progress = tp.Callable[[tp.Sequence[tp.Any]], tp.Iterable[tp.Any]]
DIM, SEED = 16384, 0
BLOCK = 4096  # songs read at a time
FORMAT = 'lumina-sketches-1'


class Sketcher:
    """Gradients of one model, seen as its Fisher information sees them, in D numbers.

    Args:
        learner (Learner): Under `recipe.objective`, for the layers that may move. fisher (Fisher): Of its checkpoint.
        recipe (UnlearningRecipe): Its damping and power. dim (int): D.
    """

    def __init__(self, learner: Learner, fisher: Fisher, recipe: UnlearningRecipe, dim: int = DIM):
        self.learner, self.fisher, self.recipe, self.dim = learner, fisher, recipe, dim
        self._signs = {name: SparseSigns(block.out_features * block.in_features, dim, SEED + place)
                       for place, (name, block) in enumerate(sorted(learner.blocks.items()))}

    @property
    def facts(self) -> tp.Dict[str, tp.Any]:
        """What sketches depend on besides the model, the songs and the Fisher information."""
        return {'damping': self.recipe.damping, 'power': self.recipe.power, 'dim': self.dim, 'seed': SEED}

    def __call__(self, pieces: tp.Sequence[tp.Any], progress: Progress = iter) -> torch.Tensor:
        """Sketches of songs or queries, [n, D] on the CPU."""
        reducers = {name: full_gradient for name in self.learner.blocks}
        found = []
        for group in progress(grouped(self.learner, pieces)):
            gradients = song_gradients(self.learner, group, reducers)  # [n, o, i] each
            seen = self.fisher.step(gradients, self.recipe.damping, self.recipe.power / 2)
            found.append(torch.stack([self._signs[name](one.flatten(1)) for name, one in seen.items()]).sum(0).cpu())
        return torch.cat(found)


class Sketches:
    """What ranks songs for a query by the first order of unlearning.

    Args:
        sketcher (Sketcher): For queries. songs (torch.Tensor): Sketches of the songs, [N, D], fp16 or fp32.
    """

    def __init__(self, sketcher: Sketcher, songs: torch.Tensor):
        self.sketcher, self.songs = sketcher, songs

    def scores(self, queries: tp.Sequence[tp.Any]) -> FloatArray:
        """First-order scores of queries but for a factor of each query: [Q, N]."""
        asked = self.sketcher(queries)  # [Q, D]
        blocks = [asked @ block.float().T for block in self.songs.split(BLOCK)]
        return tp.cast(FloatArray, torch.cat(blocks, 1).double().numpy())


def half(sketches: torch.Tensor) -> torch.Tensor:
    """Sketches [N, D] in fp16, scaled by one factor to its range: only the order of scores counts."""
    return (sketches * (1e4 / sketches.abs().max().clamp(min=torch.finfo(torch.float32).tiny))).half()


def save_sketches(path: Path, sketches: torch.Tensor, facts: tp.Mapping[str, tp.Any]) -> None:
    """Write songs' sketches [N, D] whole or not at all."""
    header = {'format': FORMAT, 'facts': json.dumps(dict(facts))}
    write_atomic(path, safetensors.torch.save({'sketches': sketches.contiguous()}, header))


def load_sketches(path: Path, facts: tp.Mapping[str, tp.Any]) -> tp.Optional[torch.Tensor]:
    """What `save_sketches` wrote; None where there is nothing, or nothing that fits or can be read."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(str(path), 'pt') as file:
            if json.loads((file.metadata() or {})['facts']) == dict(facts):
                return tp.cast(torch.Tensor, file.get_tensor('sketches'))
    except (OSError, safetensors.SafetensorError, ValueError, KeyError):
        pass
    return None
