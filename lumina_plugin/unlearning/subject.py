"""What is unlearnt from: a generator, the songs that it was trained on, and where its Fisher information is kept."""

import abc
import logging
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..errors import LuminaError
from ..hashing import state_hash
from ..store import FingerprintStore
from .embeddings import Sound
from .fisher import STAGES, Adam, Fisher, Identity, Learner, adam_fisher, diagonal_fisher, kronecker_fisher
from .kept import alone, facts_of, load_fisher, load_losses, path_of, save_fisher, save_losses, songs_hash
from .masks import MaskedSong, Piece, WholeSong
from .moments import second_moments
from .partial import Partial
from .recipe import UnlearningRecipe
from .scoring import FloatArray, Unlearner
from .sketches import Sketcher, Sketches, half, load_sketches, save_sketches

logger = logging.getLogger(__name__)

LAYERS = ('all', 'self_attention', 'cross_attention', 'cross_attention_key_value', 'P', 'M')
Progress = tp.Callable[[tp.Sequence[tp.Any], str], tp.Iterable[tp.Any]]


class Subject(abc.ABC):
    """One checkpoint of a generator and its songs.

    Args:
        folder (Path): Where its Fisher information is kept: the run's folder.
        module (nn.Module): What has the weights. songs (sequence): Of its training, each with an `id` and `examples`.
        state (mapping, optional): Weights of an earlier checkpoint in place of the module's own.
        titles (mapping): Of songs, by id.
    """

    def __init__(self, folder: Path, module: nn.Module, songs: tp.Sequence[tp.Any],
                 state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None,
                 titles: tp.Optional[tp.Mapping[str, tp.Optional[str]]] = None):
        self.folder, self.module, self.songs, self.state, self.titles = folder, module, songs, state, titles or {}
        self._hashes: tp.Optional[tp.Tuple[str, str]] = None

    # -- what kinds of generators differ in --------------------------------------------------------------------------

    @abc.abstractmethod
    def adapted(self, recipe: UnlearningRecipe) -> UnlearningRecipe:
        """A preset with the objective that this kind of generator has, where it names one of another kind."""

    @abc.abstractmethod
    def learner(self, recipe: UnlearningRecipe, batch_size: int = 8) -> tp.Any:
        """The model under the recipe's objective, a `Learner`; its layers may move.

        Raises:
            LuminaError: for layers that it does not have, or an objective that it cannot answer.
        """

    @abc.abstractmethod
    def masker(self, recipe: UnlearningRecipe) -> tp.Any:
        """What takes padding and silence out of examples."""

    @abc.abstractmethod
    def pieces(self, files: tp.Sequence[Path], text: tp.Optional[str] = None) -> tp.List[Piece]:
        """Recordings as queries, under the text that they were generated with.

        Raises:
            LuminaError: when one cannot be read or is silent.
        """

    @abc.abstractmethod
    def generated(self, count: int, seed: int) -> tp.List[torch.Tensor]:
        """Free generations of ten seconds, as codes [K, T] or latents [C, T]: of the module as it is now."""

    @abc.abstractmethod
    def sounds(self, song: tp.Any) -> tp.List[torch.Tensor]:
        """A song in the same form, chunk by chunk, without its padding."""

    @property
    @abc.abstractmethod
    def sound(self) -> Sound:
        """How that form becomes sound, and vectors."""

    @abc.abstractmethod
    def attributor(self, store: FingerprintStore) -> tp.Any:
        """What compares fingerprints with a store."""

    @abc.abstractmethod
    def fingerprint_scores(self, attributor: tp.Any, piece: tp.Any) -> tp.Dict[str, FloatArray]:
        """Fingerprint scores of a query against the songs of the attributor's store, [N] by channel."""

    def timesteps(self, learner: tp.Any, recipe: UnlearningRecipe) -> tp.Sequence[Learner]:
        """What the Fisher information averages over besides songs; nothing unless said."""
        return ()

    unit = 'nats per code'  # of losses

    # -- what they share ----------------------------------------------------------------------------------------------

    @property
    def weights(self) -> tp.Mapping[str, torch.Tensor]:
        """Of the checkpoint."""
        return self.state if self.state is not None else self.module.state_dict()

    def has_layers(self, layers: str) -> bool:
        """Whether the model has weights of a layer group."""
        recipe = UnlearningRecipe(layers=layers, relative=1.)
        try:
            return bool(self.learner(self.adapted(recipe)).blocks)
        except LuminaError:
            return False

    def songs_of(self, recipe: UnlearningRecipe) -> tp.List[tp.Any]:
        """Songs as their losses are read, masked with M_L or whole; read whenever their examples are asked for."""
        masker = self.masker(recipe)
        return [MaskedSong(song, masker) if recipe.mask == 'both' else WholeSong(song, masker) for song in self.songs]

    def query_of(self, piece: tp.Any, recipe: UnlearningRecipe) -> Piece:
        """A query as it is unlearnt: masked with M_U or whole.

        Raises:
            LuminaError: when the mask leaves nothing.
        """
        masker = self.masker(recipe)
        return tp.cast(Piece, masker.whole(piece) if recipe.mask == 'none' else masker.masked(piece))

    def facts(self, recipe: UnlearningRecipe) -> tp.Dict[str, tp.Any]:
        """All that this checkpoint's Fisher information depends on."""
        extra: tp.Dict[str, tp.Any] = {'silence_db': recipe.silence_db} if recipe.mask == 'both' else {}
        if recipe.objective == 'v_objective':
            extra.update(fisher_draws=recipe.fisher_draws)
        if self._hashes is None:  # of what a mask is made from, which need not be decoded for it
            self._hashes = state_hash(self.weights), songs_hash(self.songs)
        return facts_of(recipe.fisher, recipe.layers, recipe.objective, *self._hashes, extra)

    def _facts_of_losses(self, recipe: UnlearningRecipe) -> tp.Dict[str, tp.Any]:
        """The same of what is asked at all draws."""
        return {**self.facts(recipe), **({'draws': recipe.draws} if recipe.objective == 'v_objective' else {})}

    def fisher(self, recipe: UnlearningRecipe, learner: tp.Any, songs: tp.Sequence[tp.Any], progress: Progress,
               given: tp.Optional[Path] = None) -> Fisher:
        """Fisher information: what is kept beside the checkpoint, else computed and kept.

        A pass that was stopped goes on where its sums were last written. Of several processes one makes it, and the
        others wait.

        Args:
            given (Path, optional): A file of it to use; refused where it is of anything else.
        """
        if recipe.fisher == 'identity':
            if given is not None:
                raise LuminaError(f"fisher=identity uses no Fisher information, but {given} was given; leave one away.")
            return Identity(learner.blocks)
        facts = self.facts(recipe)
        path = path_of(self.folder, facts) if given is None else given
        if path.is_file() or given is not None:
            Partial(path, facts).remove(*STAGES)  # of whoever was stopped just after the last of them
            return load_fisher(path, facts)
        with alone(path):
            if path.is_file():  # another process has made it meanwhile
                return load_fisher(path, facts)
            partial = Partial(path, facts)
            found = self._computed(recipe, learner, songs, progress, partial)
            save_fisher(path, found, facts)
            partial.remove(*STAGES)
        return found

    def _computed(self, recipe: UnlearningRecipe, learner: tp.Any, songs: tp.Sequence[tp.Any], progress: Progress,
                  partial: Partial) -> Fisher:
        if recipe.fisher == Adam.kind:
            if self.state is not None:
                raise LuminaError("The optimizer's moments are those of the last checkpoint; use the diagonal Fisher "
                                  "for an earlier one.")
            return adam_fisher(learner, second_moments(self.folder / 'checkpoint.th', self.module))
        make = diagonal_fisher if recipe.fisher == 'diagonal' else kronecker_fisher
        return make(learner, songs, lambda groups: progress(groups, f'Fisher information, {recipe.fisher}'),
                    self.timesteps(learner, recipe), partial)

    def unlearner(self, recipe: UnlearningRecipe, progress: Progress, fisher: tp.Optional[Path] = None,
                  batch_size: int = 8) -> Unlearner:
        """All of it together, with the songs' losses before anything is unlearnt, which are kept as well."""
        learner, songs = self.learner(recipe, batch_size), self.songs_of(recipe)
        found = Unlearner(learner, self.fisher(recipe, learner, songs, progress, fisher), songs, recipe)
        facts = {**self._facts_of_losses(recipe), 'kind': 'losses', 'objective': recipe.reading, 'layers': ''}
        path = path_of(self.folder, facts)
        known: tp.Optional[FloatArray] = load_losses(path, facts)
        if known is None:
            with alone(path):
                known = load_losses(path, facts)  # another process may have made them meanwhile
                if known is None:
                    known = found.before(lambda some: progress(list(some), 'losses of the songs'))
                    save_losses(path, known, facts)
        found.known_before(known)
        return found

    def sketches(self, unlearner: Unlearner, progress: Progress) -> Sketches:
        """What ranks songs by the first order of unlearning: kept beside the Fisher information, else made and kept."""
        recipe = unlearner.recipe
        sketcher = Sketcher(unlearner.learner, unlearner.fisher, recipe)
        facts = {**self._facts_of_losses(recipe), 'kind': 'sketches', 'fisher': recipe.fisher, **sketcher.facts}
        path = path_of(self.folder, facts)
        known = load_sketches(path, facts)
        if known is None:
            with alone(path):
                known = load_sketches(path, facts)  # another process may have made them meanwhile
                if known is None:
                    known = half(sketcher(unlearner.songs, lambda some: progress(list(some), 'sketches of the songs')))
                    save_sketches(path, known, facts)
        return Sketches(sketcher, known)
