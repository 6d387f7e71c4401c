"""A catalogue as latents: every song encoded once, remembered on disk."""

import hashlib
import logging
import typing as tp
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from .. import audio
from ..atomic import write_atomic
from ..catalogue import Catalogue, Track
from ..errors import LuminaError
from ..fingerprint import Song
from ..prepared import PreparedCatalogue, progress_bar
from .model import LatentDiT, LatentExample
from .oobleck import oobleck_hash

logger = logging.getLogger(__name__)

_VERSION = 1  # of how a recording becomes windows: remembered latents of another are made again


class LatentEncoder:
    """Cut recordings into windows and encode them with a model's autoencoder; remember the latents on disk.

    Args:
        dit (LatentDiT): Its autoencoder, and the length of its windows.
        windows (int): At most so many of a recording, one after the other from its beginning.
        cache (path, optional): Folder for latents, keyed by file content, autoencoder and length; None keeps nothing.
        silence_db (float): Level in dBFS under which a recording is silent.
    """

    def __init__(self, dit: LatentDiT, windows: int = 1, cache: tp.Optional[tp.Union[str, Path]] = None,
                 silence_db: float = -60.):
        self.dit, self.windows, self.silence_db = dit, windows, silence_db
        self.cache = None if cache is None else Path(cache)
        self.hash = oobleck_hash(dit.vae)

    def file(self, path: tp.Union[str, Path], id: str, text: tp.Optional[str] = None,
             sha256: tp.Optional[str] = None) -> tp.List[LatentExample]:
        """Windows of a recording on disk; none where it is silent.

        Raises:
            LuminaError: when the file cannot be read as audio.
        """
        kept = None
        if self.cache is not None:
            facts = f'{_VERSION}/{sha256 or audio.file_sha256(path)}/{self.hash}/{self.dit.frames}/{self.windows}/' \
                    f'{self.silence_db}'
            kept = self.cache / f'{hashlib.sha256(facts.encode()).hexdigest()}.safetensors'
            known = self._remembered(kept, id, text)
            if known is not None:
                return known
        wav = audio.load_audio(path, self.dit.sample_rate, self.dit.channels)
        silent = audio.silent(wav, self.silence_db)
        examples = [] if silent else self.dit.windows(wav, id, text, self.windows)
        if kept is not None:
            self._write(kept, examples)
        return examples

    def _remembered(self, path: Path, id: str, text: tp.Optional[str]) -> tp.Optional[tp.List[LatentExample]]:
        if not path.exists():
            return None
        try:
            kept = safetensors.torch.load_file(path)
            return [LatentExample(latents, int(valid), float(seconds), text, id, float(start))
                    for latents, valid, seconds, start in zip(kept['latents'], kept['valid'], kept['seconds'],
                                                              kept['start'], strict=True)]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("The remembered latents in %s are damaged (%s); encoding again.", path, error)
            return None

    def _write(self, path: Path, examples: tp.Sequence[LatentExample]) -> None:
        none = torch.zeros(0, self.dit.latent_channels, self.dit.frames)
        write_atomic(path, safetensors.torch.save({
            'latents': torch.stack([e.latents for e in examples]) if examples else none,  # [n, C, T]
            'valid': torch.tensor([e.valid_frames for e in examples]),
            'seconds': torch.tensor([e.seconds for e in examples], dtype=torch.float64),
            'start': torch.tensor([e.start for e in examples], dtype=torch.float64)}))


def prepare_latents(catalogue: Catalogue, encoder: LatentEncoder, strict: bool = False) -> PreparedCatalogue:
    """A catalogue as songs of latent windows, for a pass of fingerprints or for training.

    Args:
        catalogue (Catalogue): Songs to read. encoder (LatentEncoder): How.
        strict (bool): Stop at the first song that cannot be read instead of naming and skipping it.
    Raises:
        LuminaError: with `strict`, or when no song is left.
    """
    songs: tp.List[Song] = []
    silent: tp.List[str] = []
    skipped: tp.Dict[str, str] = {}
    for track in progress_bar(list(catalogue), 'encoding latents', len(catalogue)):
        try:
            examples = song_windows(track, encoder)
        except LuminaError as error:
            if strict:
                raise
            logger.warning("Skipping %s: %s", track.id, error)
            skipped[track.id] = str(error)
            continue
        if examples:
            songs.append(Song(track.id, tp.cast(tp.Any, examples)))
        else:
            silent.append(track.id)
    if not songs:
        raise LuminaError(f"None of the {len(catalogue)} songs can be used ({len(skipped)} unreadable, {len(silent)} "
                          "silent); check them with `lumina catalogue check`.")
    return PreparedCatalogue(catalogue, songs, silent, skipped, tp.cast(tp.Any, None))


def song_windows(track: Track, encoder: LatentEncoder) -> tp.List[LatentExample]:
    """A track's windows under its own text."""
    return encoder.file(track.path, track.id, track.description, track.sha256)


def windows_of(prepared: PreparedCatalogue) -> tp.List[LatentExample]:
    """All songs' windows, in the catalogue's order."""
    return [example for song in prepared.songs for example in tp.cast(tp.Sequence[LatentExample], song.examples)]
