"""Unlearning among the methods that the suite judges."""

import typing as tp
from pathlib import Path

import torch
from torch import nn

from ..prepared import progress_bar
from ..validation.methods import Indexed, Method
from ..validation.queries import Query
from ..validation.truth import FloatArray
from .masks import Piece
from .musicgen import MusicGenSubject
from .recipe import PRESETS, UnlearningRecipe, unlearning_recipe
from .scoring import Unlearnt


class Unlearning(Indexed):
    """Scores of unlearning: one column, named by the layers that move.

    Args:
        recipe (UnlearningRecipe): Every key. musicgen: Model and codec. folder (Path): Of its run.
        songs (sequence of Query): Of the family 'songs'. name (str, optional): For tables.
        state (mapping, optional): Weights of an earlier checkpoint.
    """

    def __init__(self, recipe: UnlearningRecipe, musicgen: tp.Any, folder: Path, songs: tp.Sequence[Query],
                 name: tp.Optional[str] = None, state: tp.Optional[tp.Mapping[str, torch.Tensor]] = None):
        super().__init__(name or f'unlearning, {recipe.name}', [str(song.source) for song in songs])
        self.recipe, self.lm = recipe, tp.cast(nn.Module, musicgen.lm)
        pieces = [Piece(str(song.source), [song.example(self.lm, False)]) for song in songs]
        self.subject = MusicGenSubject(folder, self.lm, musicgen.compression_model, pieces, state)
        self.found: tp.List[Unlearnt] = []  # of every call, with lengths of steps

    def _index(self) -> None:
        self.unlearner = self.subject.unlearner(self.recipe, progress_bar)
        self.unlearner.before()

    def piece(self, query: Query, masked: bool) -> Piece:
        """A query as it is unlearnt."""
        return self.subject.query_of(Piece(query.id, [query.example(self.lm, masked)]), self.recipe)

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        self.found.append(self.unlearner.scores([self.piece(query, masked) for query in queries]))
        return {self.recipe.layers: self.found[-1].scores}

    def _bytes(self) -> float:
        tensors = self.unlearner.fisher.tensors().values()  # of the checkpoint, not of a song
        return sum(t.numel() * t.element_size() for t in tensors) / len(self.songs)


def unlearning_methods(musicgen: tp.Any, folder: Path, songs: tp.Sequence[Query]) -> tp.List[Method]:
    """One per preset. Arguments as for `Unlearning`."""
    return [Unlearning(unlearning_recipe(preset), musicgen, folder, songs) for preset in PRESETS]
