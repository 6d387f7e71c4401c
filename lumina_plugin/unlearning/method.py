"""Unlearning among the methods that the suite judges."""

import functools
import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..hashing import state_hash
from ..prepared import progress_bar
from ..validation.methods import Indexed, Method
from ..validation.queries import Query
from ..validation.truth import FloatArray
from .masks import Piece
from .musicgen import MusicGenSubject
from .recipe import PRESETS, UnlearningRecipe, unlearning_recipe
from .scoring import Unlearnt
from .subject import Subject

Ask = tp.Callable[[tp.Any, bool], Piece]  # a query, its prompt masked or not, as what is unlearnt


class Unlearning(Indexed):
    """Scores of unlearning: one column, named by the layers that move.

    Args:
        recipe (UnlearningRecipe): Every key. subject (Subject): Model and songs.
        ask (callable): What a query is to that kind of generator. name (str, optional): For tables.
    """

    def __init__(self, recipe: UnlearningRecipe, subject: Subject, ask: Ask, name: tp.Optional[str] = None):
        super().__init__(name or f'unlearning, {recipe.name}', [song.id for song in subject.songs])
        self.recipe, self.subject, self.ask = subject.adapted(recipe), subject, ask
        self.found: tp.List[Unlearnt] = []  # of every call, with lengths of steps

    @property
    def facts(self) -> tp.Any:
        """All that scores depend on besides model, songs and queries."""
        state = self.subject.state
        return [self.recipe.hash, None if state is None else state_hash(state), 'with moves']

    def _index(self) -> None:
        self.unlearner = self.subject.unlearner(self.recipe, progress_bar)
        self.unlearner.before()

    def piece(self, query: tp.Any, masked: bool) -> Piece:
        """A query as it is unlearnt."""
        return self.subject.query_of(self.ask(query, masked), self.recipe)

    def _scores(self, queries: tp.Sequence[tp.Any], masked: bool) -> tp.Dict[str, FloatArray]:
        self.found.append(self.unlearner.scores([self.piece(query, masked) for query in queries]))
        return {self.recipe.layers: self.found[-1].scores}

    def moves(self) -> tp.Dict[str, FloatArray]:
        last = self.found[-1]
        return {'lr': last.lr, 'relative': last.relative, 'rise': last.after - last.before}

    def _bytes(self) -> float:
        tensors = self.unlearner.fisher.tensors().values()  # of the checkpoint, not of a song
        return sum(t.numel() * t.element_size() for t in tensors) / len(self.songs)


def unlearning_of(recipe: UnlearningRecipe, musicgen: tp.Any, folder: Path, songs: tp.Sequence[Query],
                  name: tp.Optional[str] = None, state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None
                  ) -> Unlearning:
    """Of a MusicGen.

    Args:
        musicgen: Model and codec. folder (Path): Of its run. songs (sequence of Query): Of the family 'songs'.
        state (mapping, optional): Weights of an earlier checkpoint. recipe, name: As `Unlearning`.
    """
    lm = tp.cast(nn.Module, musicgen.lm)
    pieces = [Piece(str(song.source), [song.example(lm, False)]) for song in songs]
    subject = MusicGenSubject(folder, lm, musicgen.compression_model, pieces, state)
    return Unlearning(recipe, subject, functools.partial(_asked, lm), name)


def _asked(lm: nn.Module, query: Query, masked: bool) -> Piece:
    return Piece(query.id, [query.example(lm, masked)])


def unlearning_methods(musicgen: tp.Any, folder: Path, songs: tp.Sequence[Query]) -> tp.List[Method]:
    """One per preset. Arguments as for `unlearning_of`."""
    return [unlearning_of(unlearning_recipe(preset), musicgen, folder, songs) for preset in PRESETS]
