"""Similarity of sound: embeddings of windows of audio, compared by cosine. What embeds them is given."""

import abc
import dataclasses
import typing as tp

import numpy as np
import torch

from ..audio import MAX_RATE, MIN_RATE, MIN_REMAINDER, resample
from ..errors import LuminaError
from ..validation.black_boxes import BLACK_BOX
from ..validation.decoded import Decode, decoded
from ..validation.methods import Indexed
from ..validation.truth import FloatArray

REDUCTIONS = ('mean', 'best')


@dataclasses.dataclass(frozen=True)
class Windows:
    """How an embedder listens.

    Args:
        sample_rate (int): Hz. seconds, hop (float): Length of a window, and how far one begins after another.
        reduction (str): How two recordings are compared: 'mean', the cosine of the means of their windows' embeddings;
            'best', the cosine of each of the query's windows with the window of the song that is most like it, averaged
            over the query's windows.
    Raises:
        LuminaError: when one of them is out of range.
    """
    sample_rate: int
    seconds: float
    hop: float
    reduction: str = 'mean'

    def __post_init__(self) -> None:
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise LuminaError(f"An embedding model wants a sample rate of {self.sample_rate} Hz; it must be one from "
                              f"{MIN_RATE} to {MAX_RATE} Hz: mend the file that stands beside its weights.")
        if not (self.seconds > 0 and 0 < self.hop <= self.seconds):
            raise LuminaError(f"Windows of {self.seconds:g} s every {self.hop:g} s cannot be cut: the length must be "
                              "positive, and the hop no longer than it.")
        if self.reduction not in REDUCTIONS:
            raise LuminaError(f"There is no reduction '{self.reduction}' of windows; choose one of "
                              f"{', '.join(REDUCTIONS)}.")

    def cut(self, wave: torch.Tensor) -> tp.List[torch.Tensor]:
        """Windows of a recording [samples] at the rate wanted, the last one as long as what is left.

        What is left counts from `MIN_REMAINDER` s on, unless it is all there is.
        """
        size, hop = round(self.seconds * self.sample_rate), round(self.hop * self.sample_rate)
        offsets = [0]
        while offsets[-1] + size < len(wave) and len(wave) - offsets[-1] - hop >= MIN_REMAINDER * self.sample_rate:
            offsets.append(offsets[-1] + hop)
        return [wave[offset:offset + size] for offset in offsets]


class Embedder(abc.ABC):
    """A network that embeds audio.

    Args:
        name (str): As tables print it; it says whose weights they are. windows (Windows): How it listens.
        facts: All that its embeddings depend on, ready for JSON.
    """

    def __init__(self, name: str, windows: Windows, facts: tp.Any):
        self.name, self.windows, self.facts = name, windows, [facts, dataclasses.asdict(windows)]

    @abc.abstractmethod
    def embed(self, pieces: tp.Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings [n, D] of n pieces [samples], none longer than a window."""


class AudioEmbeddings(Indexed):
    """Songs by how much they sound like a query, to an embedder; both are decoded from codes or latents.

    Args:
        embedder (Embedder): What listens. songs (sequence): Songs, each with its id as `source`.
        codec: What decodes them, with a `sample_rate`. decode (callable): How, for another kind of generator.
    """

    def __init__(self, embedder: Embedder, songs: tp.Sequence[tp.Any], codec: tp.Any, decode: Decode = decoded):
        super().__init__(embedder.name, [str(song.source) for song in songs])
        self.embedder, self.codec, self._decode, self._queries = embedder, codec, decode, list(songs)

    @property
    def facts(self) -> tp.Any:
        """All that scores depend on besides model, songs and queries."""
        return self.embedder.facts

    def _index(self) -> None:
        self._songs = [self._embedded(song, False) for song in self._queries]

    @torch.no_grad()
    def _embedded(self, query: tp.Any, masked: bool) -> FloatArray:
        """Embeddings of length 1, [windows, D]; of 'mean' [1, D]."""
        windows = self.embedder.windows
        wave = self._decode(self.codec, query, masked)[None]  # [1, samples]
        wave = resample(wave, self.codec.sample_rate, windows.sample_rate)[0]
        rows = self.embedder.embed(windows.cut(wave)).double().cpu().numpy()
        if not np.isfinite(rows).all():
            raise LuminaError(f"{self.name} gives {query.id} an embedding that is NaN or infinite; its weights are "
                              "damaged, or made for other audio.")
        rows = _unit(rows)
        return _unit(rows.mean(0, keepdims=True)) if windows.reduction == 'mean' else rows

    def _scores(self, queries: tp.Sequence[tp.Any], masked: bool) -> tp.Dict[str, FloatArray]:
        rows = [self._embedded(query, masked) for query in queries]
        return {BLACK_BOX: np.array([[(row @ song.T).max(1).mean() for song in self._songs] for row in rows])}

    def _bytes(self) -> float:
        return 4. * sum(song.size for song in self._songs) / len(self._songs)


def _unit(rows: FloatArray) -> FloatArray:
    """Rows [n, D] of length 1; silence to a network, a row of zeros, stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
