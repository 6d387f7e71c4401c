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

    def scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
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

    def cost(self) -> Cost:
        """What it took so far."""
        per_song, per_query = self._per_song(), self.spent / max(1, self.scored)
        return Cost(*per_song, per_query)

    @abc.abstractmethod
    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        """By channel, scores [Q, N]."""

    @abc.abstractmethod
    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        """Bytes and seconds per song."""


class Fingerprints(Method):
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
        super().__init__(_title(opened.path.name, recipe, scoring), songs)
        self.lm, self.known = musicgen.lm, list(known)
        self.attributor = Attributor(musicgen.lm, musicgen.compression_model, opened, recipe=recipe)
        missing = [song for song in songs if song not in set(self.attributor.song_ids)]
        if missing:
            raise LuminaError(f"Store {opened.path} has no fingerprint of {missing[0]}, which the ground truth knows; "
                              "fingerprint the catalogue of the ground truth.")
        place = {song: column for column, song in enumerate(self.attributor.song_ids)}
        self._order = [place[song] for song in songs]

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        rows = [self.attributor.scores([query.example(self.lm, masked)]) for query in queries]
        return {channel: np.stack([row[channel][self._order] for row in rows]) for channel in rows[0]}

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        store, recipe = self.attributor.store, self.attributor.recipe
        checkpoints = len(self.attributor.checkpoints)
        size = checkpoints * len(store.channels) * recipe.projection.dim * float(store.dtype.itemsize)
        sample = [query.example(self.lm, False) for query in self.known[:8]]
        if not sample:
            return size, None
        begun = time.perf_counter()
        self.attributor.fingerprint_parts(sample)
        return size, (time.perf_counter() - begun) / len(sample)


class CodeHistogram(Method):
    """A black box: how often each code occurs, per codebook, compared by cosine. It looks at no model."""

    def __init__(self, songs: tp.Sequence[Query], card: int):
        super().__init__('code histogram', [str(song.source) for song in songs])
        self.card = card
        begun = time.perf_counter()
        self._songs = np.stack([self._histogram(song, False) for song in songs])
        self._seconds = (time.perf_counter() - begun) / len(songs)

    def _histogram(self, query: Query, masked: bool) -> FloatArray:
        codes = query.codes[:, query.prompt_frames if masked else 0:].numpy()
        counts = np.stack([np.bincount(row, minlength=self.card) for row in codes]).astype(np.float64).ravel()
        return counts / max(1., float(np.linalg.norm(counts)))

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        return {'black box': np.stack([self._histogram(query, masked) for query in queries]) @ self._songs.T}

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        return self._songs.shape[1] * 2., self._seconds  # counts fit 16 bits


class PlayingTime(Method):
    """Every song by its length, whatever the query: how much of today's money is shared."""

    def __init__(self, songs: tp.Sequence[str], seconds: tp.Sequence[float]):
        super().__init__('share of playing time', songs)
        self.seconds = np.asarray(seconds, dtype=np.float64)

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        return {'black box': np.tile(self.seconds, (len(queries), 1))}

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        return 4., None


class Random(Method):
    """Noise: what a method that knows nothing reaches."""

    def __init__(self, songs: tp.Sequence[str], seed: int = 0):
        super().__init__('random', songs)
        self._rng = np.random.default_rng(seed)

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        return {'black box': self._rng.normal(size=(len(queries), len(self.songs)))}

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        return 0., None


def _title(store: str, recipe: Recipe, scoring: tp.Optional[str]) -> str:
    return store if scoring is None else f'{store}, {scoring}'
