"""A run, opened for unlearning: its songs, its model under a recipe's objective, its Fisher information."""

import dataclasses
import logging
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..errors import LuminaError
from ..gradients import GradientModel
from ..recipe import get_recipe
from .fisher import Fisher, Identity, adam_fisher, diagonal_fisher, kronecker_fisher
from .kept import facts_of, load_fisher, path_of, save_fisher
from .masks import Masker, Piece
from .moments import second_moments
from .recipe import UnlearningRecipe
from .scoring import Unlearner

logger = logging.getLogger(__name__)

CHANNELS = {'P': 'self_attention', 'M': 'output_linears'}
Progress = tp.Callable[[tp.Sequence[tp.Any], str], tp.Iterable[tp.Any]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is unlearnt from.

    Args:
        folder (Path): Where its Fisher information is kept: the run's folder. lm (nn.Module): audiocraft `LMModel`.
        codec: audiocraft `CompressionModel`. songs (sequence): Of its training, each with an `id` and `examples`.
        state (mapping, optional): Weights of an earlier checkpoint in place of the model's own.
    """
    folder: Path
    lm: nn.Module
    codec: tp.Any
    songs: tp.Sequence[tp.Any]
    state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None

    def learner(self, recipe: UnlearningRecipe, batch_size: int = 8) -> GradientModel:
        """The model under the recipe's objective; its layers may move."""
        if recipe.objective == 'velocity':
            raise LuminaError("A MusicGen has no velocity; choose objective cross_entropy or margin.")
        layers = CHANNELS.get(recipe.layers, recipe.layers)
        keys = get_recipe('default', objective=recipe.objective, channels={recipe.layers: [layers]})
        return GradientModel(self.lm, keys, self.state, batch_size)

    def masker(self, recipe: UnlearningRecipe) -> Masker:
        """What takes padding and silence out."""
        return Masker(self.codec, recipe.silence_db)

    def songs_of(self, recipe: UnlearningRecipe, progress: Progress) -> tp.List[Piece]:
        """Songs as their losses are read: masked with M_L or whole.

        Raises:
            LuminaError: for a song of which the mask leaves nothing.
        """
        masker = self.masker(recipe)
        if recipe.mask != 'both':
            return [masker.whole(song) for song in self.songs]
        return [masker.masked(song) for song in progress(self.songs, 'masking')]

    def query_of(self, piece: tp.Any, recipe: UnlearningRecipe) -> Piece:
        """A query as it is unlearnt: masked with M_U or whole."""
        return self.masker(recipe).whole(piece) if recipe.mask == 'none' else self.masker(recipe).masked(piece)

    def fisher(self, recipe: UnlearningRecipe, learner: GradientModel, songs: tp.Sequence[Piece], progress: Progress,
               given: tp.Optional[Path] = None) -> Fisher:
        """Fisher information: what is kept beside the checkpoint, else computed and kept.

        Args:
            given (Path, optional): A file of it to use; refused where it is of anything else.
        """
        if recipe.fisher == 'identity':
            return Identity(learner.blocks)
        state = self.state if self.state is not None else self.lm.state_dict()
        facts = facts_of(recipe.fisher, recipe.layers, recipe.objective, state, songs)
        path = path_of(self.folder, facts) if given is None else given
        if path.is_file() or given is not None:
            return load_fisher(path, facts)
        if recipe.fisher == 'adam':
            found: Fisher = adam_fisher(learner, second_moments(self.folder / 'checkpoint.th', self.lm))
        else:
            make = diagonal_fisher if recipe.fisher == 'diagonal' else kronecker_fisher
            found = make(learner, songs, lambda groups: progress(groups, f'Fisher information, {recipe.fisher}'))
        save_fisher(path, found, facts)
        return found

    def unlearner(self, recipe: UnlearningRecipe, progress: Progress, fisher: tp.Optional[Path] = None,
                  batch_size: int = 8) -> Unlearner:
        """All of it together."""
        learner, songs = self.learner(recipe, batch_size), self.songs_of(recipe, progress)
        return Unlearner(learner, self.fisher(recipe, learner, songs, progress, fisher), songs, recipe)
