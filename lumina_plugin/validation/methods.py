"""Attribution methods as the suite judges them: each gives every query a score against every song, per channel."""

import abc
import dataclasses
import time
import typing as tp
from pathlib import Path

import numpy as np

from ..attribution import Attributor
from ..errors import LuminaError
from ..recipe import Recipe, recipe_from_dict
from ..statistics import standardised_scores
from ..store import FingerprintStore
from .queries import Query
from .truth import FloatArray

BOTH = 'P + M'  # the sum of the channels' STS


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a method takes: bytes that are kept per song, seconds per song (None: nothing is done) and per query."""
    bytes_per_song: float
    seconds_per_song: tp.Optional[float]
    seconds_per_query: float


class Method(abc.ABC):
    """One way to score songs.

    Args:
        name (str): As tables print it. songs (sequence of str): Ids of the N songs, in the order of the scores.
    """

    def __init__(self, name: str, songs: tp.Sequence[str]):
        self.name, self.songs = name, list(songs)
        self.spent, self.scored = 0., 0

    def scores(self, queries: tp.Sequence[tp.Any], masked: bool) -> tp.Dict[str, FloatArray]:
        """By channel, scores [Q, N]; where there are two channels, also the sum of their STS.

        Args:
            masked (bool): Leave the frames of prompts out.
        """
        begun = time.perf_counter()
        found = self._scores(queries, masked)
        self.spent += time.perf_counter() - begun
        self.scored += len(queries)
        if len(found) > 1:
            standardised = [np.stack([standardised_scores(row) for row in rows]) for rows in found.values()]
            found = {**found, BOTH: np.sum(standardised, axis=0)}
        return found

    def moves(self) -> tp.Dict[str, FloatArray]:
        """Of a method that moves weights, how far it did for the queries that it scored last, [Q] by name."""
        return {}

    def cost(self) -> Cost:
        """What it took so far."""
        per_song, per_query = self._per_song(), self.spent / max(1, self.scored)
        return Cost(*per_song, per_query)

    @abc.abstractmethod
    def _scores(self, queries: tp.Sequence[tp.Any], masked: bool) -> tp.Dict[str, FloatArray]:
        """By channel, scores [Q, N]."""

    @abc.abstractmethod
    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        """Bytes and seconds per song."""


class Indexed(Method):
    """A method that goes over the songs once, before its first scores; what that takes is told apart from queries."""

    def __init__(self, name: str, songs: tp.Sequence[str]):
        super().__init__(name, songs)
        self._seconds: tp.Optional[float] = None

    def scores(self, queries: tp.Sequence[tp.Any], masked: bool) -> tp.Dict[str, FloatArray]:
        if self._seconds is None:
            begun = time.perf_counter()
            self._index()
            self._seconds = (time.perf_counter() - begun) / len(self.songs)
        return super().scores(queries, masked)

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        return self._bytes(), self._seconds

    @abc.abstractmethod
    def _index(self) -> None:
        """Go over the songs."""

    @abc.abstractmethod
    def _bytes(self) -> float:
        """What is kept per song, once they are known."""


class Stored(Method):
    """Fingerprints of a store.

    Args:
        name (str): For tables. attributor: What compares queries with the store. songs: As `Method`.
    Raises:
        LuminaError: when the store lacks a song.
    """

    def __init__(self, name: str, attributor: tp.Any, songs: tp.Sequence[str]):
        super().__init__(name, songs)
        self.attributor = attributor
        place = {song: column for column, song in enumerate(attributor.song_ids)}
        missing = [song for song in songs if song not in place]
        if missing:
            raise LuminaError(f"Store {attributor.store.path} has no fingerprint of {missing[0]}, which the ground "
                              "truth knows; fingerprint the catalogue of the ground truth.")
        self._order = [place[song] for song in songs]

    @property
    def facts(self) -> tp.Any:
        """All that scores depend on besides model, songs and queries."""
        return [self.attributor.store.hash, self.attributor.recipe.hash]

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        store, recipe = self.attributor.store, self.attributor.recipe
        checkpoints = len(self.attributor.checkpoints)
        return checkpoints * len(store.channels) * recipe.projection.dim * float(store.dtype.itemsize), None


class Fingerprints(Stored):
    """A store of fingerprints under its own recipe, or with another score.

    Args:
        musicgen: audiocraft `MusicGen` that the store was made with. store (path): The store.
        songs (sequence of str): Ids in the order of the scores. scoring (str, optional): In place of the recipe's.
        known (sequence of Query): Songs as queries, a few of which are fingerprinted again to be timed.
    Raises:
        LuminaError: when the store lacks a song, or belongs to another model.
    """

    def __init__(self, musicgen: tp.Any, store: tp.Union[str, Path], songs: tp.Sequence[str],
                 scoring: tp.Optional[str] = None, known: tp.Sequence[Query] = ()):
        opened = FingerprintStore.open(store)
        recipe = recipe_from_dict(opened.identity.recipe)
        if scoring is not None:
            recipe = recipe.model_copy(update={'scoring': recipe.scoring.model_copy(update={'method': scoring})})
        self.lm, self.known = musicgen.lm, list(known)
        super().__init__(_title(opened.path.name, recipe, scoring),
                         Attributor(musicgen.lm, musicgen.compression_model, opened, recipe=recipe), songs)

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        rows = [self.attributor.scores([query.example(self.lm, masked)], 0 if masked else query.prompt_frames)
                for query in queries]
        return {channel: np.stack([row[channel][self._order] for row in rows]) for channel in rows[0]}

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        size, _ = super()._per_song()
        sample = [query.example(self.lm, False) for query in self.known[:8]]
        if not sample:
            return size, None
        begun = time.perf_counter()
        self.attributor.fingerprint_parts(sample)
        return size, (time.perf_counter() - begun) / len(sample)


def _title(store: str, recipe: Recipe, scoring: tp.Optional[str]) -> str:
    return store if scoring is None else f'{store}, {scoring}'
