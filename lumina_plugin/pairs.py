"""Recordings that share a composition or a production, as examples: what a separation of channels is fitted on.

Three sources: a user's own songs, changed (`augmentations`); crossed songs of the package (`embedded.crossed`), which
are also what channels are measured on; and excerpts of the user's songs. Codes are remembered on disk.
`fit_separations` makes them into projections, with which a `Fingerprinter` gives separated fingerprints.
"""

import hashlib
import typing as tp
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from . import audio, embedded
from .atomic import write_atomic
from .augmentations import CHANGES
from .catalogue import Track
from .conditions import attributes_for
from .embedded.crossed import CrossedSong
from .errors import LuminaError
from .fingerprint import Fingerprinter, Projections, Song
from .gradients import Example
from .prepared import progress_bar
from .projection import BlockReducers, ChannelProjection
from .separation import KEEPS, RANK, Separation
from .tokens import Tokenizer

_VERSION = 1  # of what is done to songs: remembered codes of another are made again
_EXCERPT = (.2, .8)  # of a song's first chunk


class Recordings(tp.NamedTuple):
    """Examples, and which song each of them was made of, [n]."""
    examples: tp.List[Example]
    songs: npt.NDArray[np.int64]


class Maker:
    """Make recordings into examples under no text, remembering their codes.

    Args:
        tokenizer (Tokenizer): Codec and chunking; a recording is its first chunk.
        lm (nn.Module): Whose conditions an example has.
        cache (path): Folder for codes.
    """

    def __init__(self, tokenizer: Tokenizer, lm: nn.Module, cache: tp.Union[str, Path]):
        self.tokenizer, self.lm, self.cache = tokenizer, lm, Path(cache)

    def changed(self, tracks: tp.Iterable[Track], kept: str, changes: int) -> Recordings:
        """Songs as they are, and as often changed as said in all but what is kept ('composition' or 'production')."""
        change = CHANGES['production' if kept == 'composition' else 'composition']

        def variants(number: int, track: Track) -> tp.Iterator[npt.ArrayLike]:
            wave = self._first_chunk(track)
            yield wave
            for seed in range(changes):
                yield change(wave, self.tokenizer.codec.sample_rate, number * 1000 + seed)

        return self._joined([self._codes(f'{kept}/{changes}/{number}/{track.sha256}',
                                         lambda n=number, t=track: variants(n, t))  # type: ignore[misc]
                             for number, track in enumerate(tracks)])

    def excerpts(self, tracks: tp.Iterable[Track]) -> Recordings:
        """The middle of each song's first chunk, cut anew: a recording that its song should be found by."""
        def middle(track: Track) -> tp.Iterator[npt.ArrayLike]:
            wave = self._first_chunk(track)
            yield wave[int(_EXCERPT[0] * len(wave)):int(_EXCERPT[1] * len(wave))]

        return self._joined([self._codes(f'excerpt/{track.sha256}', lambda t=track: middle(t))  # type: ignore[misc]
                             for track in tracks])

    def crossed(self, songs: tp.Iterable[CrossedSong]) -> Recordings:
        """Crossed songs, rendered."""
        def rendered(song: CrossedSong) -> tp.Iterator[npt.ArrayLike]:
            wave = torch.from_numpy(song.render(self.tokenizer.chunk_seconds))[None]
            rate = self.tokenizer.codec.sample_rate
            yield audio.resample(wave, embedded.SAMPLE_RATE, rate)[0].numpy()

        return self._joined([self._codes(f'crossed/{song}', lambda s=song: rendered(s))  # type: ignore[misc]
                             for song in songs])

    def _first_chunk(self, track: Track) -> npt.NDArray[np.float32]:
        codec = self.tokenizer.codec
        wave = audio.load_audio(track.path, codec.sample_rate)[0]
        return wave[:int(self.tokenizer.chunk_seconds * codec.sample_rate)].numpy()

    def _codes(self, what: str, waves: tp.Callable[[], tp.Iterator[npt.ArrayLike]]) -> tp.Dict[str, torch.Tensor]:
        """Codes [n, K, T] and valid frames [n] of recordings, those that are silent left out."""
        tokenizer = self.tokenizer
        key = f'{_VERSION}/{what}/{tokenizer.codec_hash}/{tokenizer.chunk_seconds}/{tokenizer.silence_db}'
        path = self.cache / f'{hashlib.sha256(key.encode()).hexdigest()}.safetensors'
        if path.is_file():
            try:
                return safetensors.torch.load_file(path)
            except (OSError, safetensors.SafetensorError):
                pass  # a damaged one is made again
        chunks = []
        for wave in waves():
            mono = torch.from_numpy(np.asarray(wave, dtype=np.float32))
            encoded = tokenizer.audio(mono.expand(tokenizer.codec.channels, -1)).chunks[0]
            if not encoded.silent:
                chunks.append(encoded)
        found = {'codes': torch.stack([chunk.codes.short() for chunk in chunks]) if chunks else torch.zeros(0, 0, 0),
                 'frames': torch.tensor([chunk.frames for chunk in chunks], dtype=torch.int64)}
        write_atomic(path, safetensors.torch.save(found))
        return found

    def _joined(self, found: tp.Sequence[tp.Dict[str, torch.Tensor]]) -> Recordings:
        attributes = attributes_for(self.lm)
        examples = [Example(codes.long(), 0, int(frames), attributes) for one in found
                    for codes, frames in zip(one['codes'], one['frames'], strict=True)]
        if not examples:
            raise LuminaError("None of these songs has any sound; name a catalogue with music.")
        return Recordings(examples, np.repeat(np.arange(len(found)), [len(one['frames']) for one in found]))


def joined_rows(fingerprinter: Fingerprinter, reducers: tp.Mapping[str, BlockReducers], examples: tp.Sequence[Example],
                label: str = 'gradients') -> tp.Dict[str, torch.Tensor]:
    """Joined gradients [n, R] of examples, by channel, in the processor's memory."""
    alone = [Song(str(number), [example]) for number, example in enumerate(examples)]
    found: tp.Dict[str, tp.List[torch.Tensor]] = {channel: [] for channel in reducers}
    bar = tp.cast(tp.Any, progress_bar(alone, label, len(alone)))
    for window in fingerprinter.windows(alone, reducers):
        for channel, rows in window.rows.items():
            found[channel].append(rows.cpu())
        bar.update(len(window.songs))
    bar.close()
    return {channel: torch.cat(parts) for channel, parts in found.items()}


def fit_separations(fingerprinter: Fingerprinter, reducers: tp.Mapping[str, BlockReducers],
                    changed: tp.Mapping[str, Recordings]) -> Projections:
    """Projections of the channels P and M that give separated fingerprints, of the width that the recipe asks for.

    Args:
        fingerprinter (Fingerprinter): Of one checkpoint. reducers (mapping): By channel, as `fit_reducers` gives them.
        changed (mapping): By what is kept, songs and their changes (`Maker.changed`).
    Raises:
        LuminaError: for a channel that is neither P nor M.
    """
    strange = [channel for channel in reducers if channel not in KEEPS]
    if strange:
        raise LuminaError(f"It is not known what channel {strange[0]} is to find; separate {' and '.join(KEEPS)}.")
    projections: Projections = {}
    dim = fingerprinter.recipe.projection.dim
    for channel, reducer in reducers.items():
        examples, songs = changed[KEEPS[channel]]
        rows = joined_rows(fingerprinter, reducers, examples, f'what {channel} is to find')[channel]
        separated = Separation.fit(rows, songs, min(RANK, dim), dim=dim)
        projections[channel] = ChannelProjection(reducer, Separation(
            separated.mean.to(fingerprinter.device), separated.map.to(fingerprinter.device), dim))
    return projections
