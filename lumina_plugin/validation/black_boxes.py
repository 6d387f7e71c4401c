"""Scores that look at no model: what every method has to beat, and what noise and money reach."""

import abc
import typing as tp

import numpy as np
import torch

from .decoded import Decode, decoded
from .methods import Indexed, Method
from .queries import Query
from .truth import FloatArray

BLACK_BOX = 'black box'  # what tables print in place of a channel
BANDS, WINDOW, QUIET = 64, 1024, 1e-5  # of mel spectra; power below which there is silence


class CodeHistogram(Indexed):
    """How often each code occurs, per codebook, compared by cosine.

    Args:
        songs (sequence of Query): Of the family 'songs'. card (int): Codes per codebook.
    """
    facts: tp.Any = None

    def __init__(self, songs: tp.Sequence[Query], card: int):
        super().__init__('code histogram', [str(song.source) for song in songs])
        self.card, self._queries = card, list(songs)

    def _index(self) -> None:
        self._songs = np.stack([self._histogram(song, False) for song in self._queries])

    def _histogram(self, query: Query, masked: bool) -> FloatArray:
        codes = query.codes[:, query.prompt_frames if masked else 0:].numpy()
        counts = np.stack([np.bincount(row, minlength=self.card) for row in codes]).astype(np.float64).ravel()
        return counts / max(1., float(np.linalg.norm(counts)))

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        return {BLACK_BOX: np.stack([self._histogram(query, masked) for query in queries]) @ self._songs.T}

    def _bytes(self) -> float:
        return self._songs.shape[1] * 2.  # counts fit 16 bits


class Statistics(Indexed):
    """Numbers about each piece of music, compared by cosine.

    Each number is standardised by its mean and spread over the songs: raw ones, such as levels far below 0, would
    be alike in everything.

    Args:
        name (str): For tables. songs (sequence): With an id as `source`.
    """
    facts: tp.Any = None

    def __init__(self, name: str, songs: tp.Sequence[tp.Any]):
        super().__init__(name, [str(song.source) for song in songs])
        self._queries = list(songs)

    @abc.abstractmethod
    def _statistics(self, query: tp.Any, masked: bool) -> FloatArray:
        """Of one piece of music, [D]."""

    def _index(self) -> None:
        raw = np.stack([self._statistics(song, False) for song in self._queries])  # [N, D]
        self._mean, self._spread = raw.mean(0), np.maximum(raw.std(0), 1e-6)
        self._songs = self._unit(raw)

    def _unit(self, raw: FloatArray) -> FloatArray:
        """Standardised rows [n, D] of length 1."""
        rows: FloatArray = (raw - self._mean) / self._spread
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def _scores(self, queries: tp.Sequence[tp.Any], masked: bool) -> tp.Dict[str, FloatArray]:
        return {BLACK_BOX: self._unit(np.stack([self._statistics(query, masked) for query in queries])) @ self._songs.T}

    def _bytes(self) -> float:
        return self._songs.shape[1] * 4.


class MelStatistics(Statistics):
    """How music sounds: mean and standard deviation of 64 log mel bands over time.

    Songs and queries are decoded, so that both have passed the same codec.

    Args:
        songs (sequence): Songs. codec: What decodes them, with a `sample_rate`.
        decode (callable): How, for another kind of generator.
    """

    def __init__(self, songs: tp.Sequence[tp.Any], codec: tp.Any, decode: Decode = decoded):
        super().__init__('mel statistics', songs)
        from torchaudio.transforms import MelSpectrogram
        self.codec, self._decode = codec, decode
        self._mel = MelSpectrogram(codec.sample_rate, n_fft=WINDOW, hop_length=WINDOW // 4, n_mels=BANDS)

    @torch.no_grad()
    def _statistics(self, query: tp.Any, masked: bool) -> FloatArray:
        bands = (self._mel(self._decode(self.codec, query, masked)) + QUIET).log()  # [64, frames]
        return torch.cat([bands.mean(1), bands.std(1, correction=0)]).double().numpy()


class PlayingTime(Method):
    """Every song by its length, whatever the query: how much of today's money is shared."""

    def __init__(self, songs: tp.Sequence[str], seconds: tp.Sequence[float]):
        super().__init__('share of playing time', songs)
        self.seconds = np.asarray(seconds, dtype=np.float64)

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        return {BLACK_BOX: np.tile(self.seconds, (len(queries), 1))}

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        return 4., None


class Random(Method):
    """Noise: what a method that knows nothing reaches."""

    def __init__(self, songs: tp.Sequence[str], seed: int = 0):
        super().__init__('random', songs)
        self._rng = np.random.default_rng(seed)

    def _scores(self, queries: tp.Sequence[Query], masked: bool) -> tp.Dict[str, FloatArray]:
        return {BLACK_BOX: self._rng.normal(size=(len(queries), len(self.songs)))}

    def _per_song(self) -> tp.Tuple[float, tp.Optional[float]]:
        return 0., None
