"""A run, opened for unlearning: its songs, its model under a recipe's objective, its Fisher information."""

import dataclasses
import logging
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..channels import resolve_blocks
from ..errors import LuminaError
from ..gradients import GradientModel
from ..recipe import get_recipe
from ..tokens import Tokenizer
from .fisher import Fisher, Identity, adam_fisher, diagonal_fisher, kronecker_fisher
from .kept import facts_of, load_fisher, load_losses, path_of, save_fisher, save_losses
from .masks import MaskedSong, Masker, Piece, WholeSong
from .moments import second_moments
from .recipe import UnlearningRecipe
from .scoring import Unlearner

logger = logging.getLogger(__name__)

CHUNK_SECONDS = 10.
LAYERS = ('all', 'self_attention', 'cross_attention', 'cross_attention_key_value', 'P', 'M')
CHANNELS = {'P': 'self_attention', 'M': 'output_linears'}
Progress = tp.Callable[[tp.Sequence[tp.Any], str], tp.Iterable[tp.Any]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is unlearnt from.

    Args:
        folder (Path): Where its Fisher information is kept: the run's folder. lm (nn.Module): audiocraft `LMModel`.
        codec: audiocraft `CompressionModel`. songs (sequence): Of its training, each with an `id` and `examples`.
        state (mapping, optional): Weights of an earlier checkpoint in place of the model's own.
        tokenizer (Tokenizer, optional): What recordings are encoded by. titles (dict): Of songs, by id.
    """
    folder: Path
    lm: nn.Module
    codec: tp.Any
    songs: tp.Sequence[tp.Any]
    state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None
    tokenizer: tp.Optional[Tokenizer] = None
    titles: tp.Dict[str, tp.Optional[str]] = dataclasses.field(default_factory=dict)

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

    def songs_of(self, recipe: UnlearningRecipe) -> tp.List[tp.Any]:
        """Songs as their losses are read, masked with M_L or whole; read whenever their examples are asked for."""
        masker = self.masker(recipe)
        return [MaskedSong(song, masker) if recipe.mask == 'both' else WholeSong(song) for song in self.songs]

    def query_of(self, piece: tp.Any, recipe: UnlearningRecipe) -> Piece:
        """A query as it is unlearnt: masked with M_U or whole."""
        return self.masker(recipe).whole(piece) if recipe.mask == 'none' else self.masker(recipe).masked(piece)

    def fisher(self, recipe: UnlearningRecipe, learner: GradientModel, songs: tp.Sequence[tp.Any], progress: Progress,
               given: tp.Optional[Path] = None) -> Fisher:
        """Fisher information: what is kept beside the checkpoint, else computed and kept.

        Args:
            given (Path, optional): A file of it to use; refused where it is of anything else.
        """
        if recipe.fisher == 'identity':
            return Identity(learner.blocks)
        facts = self.facts(recipe, songs)
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
        """All of it together, with the songs' losses before anything is unlearnt, which are kept as well."""
        learner, songs = self.learner(recipe, batch_size), self.songs_of(recipe)
        found = Unlearner(learner, self.fisher(recipe, learner, songs, progress, fisher), songs, recipe)
        facts = {**self.facts(recipe, songs), 'kind': 'losses', 'objective': recipe.reading, 'layers': ''}
        path = path_of(self.folder, facts)
        known = load_losses(path, facts)
        if known is None:
            known = found.before(lambda some: progress(list(some), 'losses of the songs'))
            save_losses(path, known, facts)
        found.known_before(known)
        return found

    def facts(self, recipe: UnlearningRecipe, songs: tp.Sequence[tp.Any]) -> tp.Dict[str, tp.Any]:
        """All that this checkpoint's Fisher information depends on."""
        state = self.state if self.state is not None else self.lm.state_dict()
        return facts_of(recipe.fisher, recipe.layers, recipe.objective, state, songs)


def has_layers(lm: nn.Module, layers: str) -> bool:
    """Whether a model has weights of a layer group."""
    try:
        return bool(resolve_blocks(lm, [CHANNELS.get(layers, layers)]))
    except LuminaError:
        return False


def open_subject(source: tp.Union[str, Path], device: tp.Optional[str] = None,
                 checkpoint: tp.Optional[str] = None) -> Subject:
    """A dora run with the songs that it was trained on.

    Args:
        source (str or path): Its folder or signature. device (str, optional): cpu or cuda.
        checkpoint (str, optional): One whose weights the run's fingerprinting kept, e.g. epoch-0004; the last unless
            said.
    Raises:
        LuminaError: when it is no run, its songs cannot be found, or there is no such checkpoint.
    """
    from ..catalogue_pass import run_songs
    from ..codec import codec_hash
    from ..models import load_musicgen, run_folder
    from ..prepared import prepare
    from ..validation.tracin import run_checkpoints
    run = run_folder(source)
    if run is None:
        raise LuminaError(f"{source} is no dora run, whose songs are needed to unlearn; name the folder or the "
                          "signature of a training.")
    catalogue, musicgen = run_songs(run), load_musicgen(run, device)
    state = None
    if checkpoint is not None:
        known = {one.name: one.state for one in run_checkpoints(run, musicgen.lm)}
        if checkpoint not in known:
            raise LuminaError(f"Run {run.name} has no checkpoint '{checkpoint}' whose weights were kept; choose of "
                              f"{', '.join(known)}.")
        state = known[checkpoint]
    codec = musicgen.compression_model
    tokenizer = Tokenizer(codec, codec_hash(codec), CHUNK_SECONDS, cache=run / 'lumina' / 'codes')
    prepared = prepare(catalogue, tokenizer, musicgen.lm)
    titles = {track.id: track.title for track in catalogue}
    return Subject(run, musicgen.lm, codec, prepared.songs, state, tokenizer, titles)
