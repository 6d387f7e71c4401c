"""Recordings that share a composition or a production, as examples: what a separation of channels is fitted on.

Three sources: a user's own songs, changed (`augmentations`); crossed songs of the package (`embedded.crossed`), which
are also what channels are measured on; and excerpts of the user's songs. Codes are remembered on disk.
`fit_separations` makes them into projections, with which a `Fingerprinter` gives separated fingerprints; a pass over a
catalogue gives it the `changed_songs`.
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
from .fingerprint import Fingerprinter, Projections, Song, spread
from .gradients import Example
from .prepared import PreparedCatalogue, progress_bar
from .projection import BlockReducers, ChannelProjection
from .separation import KEEPS, RANK, TIMES, Separation
from .tokens import Tokenizer
from .workers import Workers

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
        cache (path, optional): Folder for codes; None keeps nothing.
    """

    def __init__(self, tokenizer: Tokenizer, lm: nn.Module, cache: tp.Optional[tp.Union[str, Path]]):
        self.tokenizer, self.lm, self.cache = tokenizer, lm, None if cache is None else Path(cache)

    def changed(self, tracks: tp.Sequence[Track], kept: str, changes: int, seed: int = 0,
                workers: tp.Optional[Workers] = None) -> Recordings:
        """Songs as they are, and as often changed as said in all but what is kept ('composition' or 'production').

        Args:
            tracks (sequence of Track): The songs. kept (str): What all recordings of a song share.
            changes (int): How often each is changed. seed (int): Chooses how.
            workers (Workers, optional): The processes that make them together, where there is a cache; each gets all.
        """
        workers = workers or Workers()
        change = CHANGES['production' if kept == 'composition' else 'composition']

        def variants(number: int, track: Track) -> tp.Iterator[npt.ArrayLike]:
            wave = self._first_chunk(track)
            yield wave
            for time in range(changes):
                yield change(wave, self.tokenizer.codec.sample_rate, (seed * 1_000_000 + number) * 1000 + time)

        def made(number: int, track: Track) -> tp.Dict[str, torch.Tensor]:
            key = f'{kept}/{changes}/{number}/{track.sha256}' + (f'/{seed}' if seed else '')
            return self._codes(key, lambda: variants(number, track))

        songs = list(enumerate(tracks))
        mine = songs if self.cache is None else workers.share_of(songs)
        found = [made(*song) for song in progress_bar(mine, f'songs with the same {kept}', len(mine))]
        workers.barrier()
        return self._joined(found if len(mine) == len(songs) else [made(*song) for song in songs])

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
        path = None if self.cache is None else self.cache / f'{hashlib.sha256(key.encode()).hexdigest()}.safetensors'
        if path is not None and path.is_file():
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
        if path is not None:
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
                label: str = 'gradients', workers: tp.Optional[Workers] = None) -> tp.Dict[str, torch.Tensor]:
    """Joined gradients [n, R] of examples, by channel, in the processor's memory; those of several workers in that of
    process zero, and the same as one would get."""
    workers = workers or Workers()
    alone = [Song(str(number), [example]) for number, example in enumerate(examples)]
    groups = list(fingerprinter.grouped(alone, reducers))  # what one window holds does not depend on the others
    found = {channel: torch.empty(len(alone), reducer.dim) for channel, reducer in reducers.items()
             if workers.first}
    bar = tp.cast(tp.Any, progress_bar(alone, label, len(alone)))
    for first in range(0, len(groups), workers.count):  # in step, so that no more than a window of each waits
        own = [window.cpu() for group in groups[first + workers.rank:first + workers.rank + 1]
               for window in fingerprinter.windows(group, reducers)]
        for window in (window for part in workers.collect(own) for window in part):
            place = int(window.songs[0])
            for channel, rows in window.rows.items():
                found[channel][place:place + len(rows)] = rows
        bar.update(sum(map(len, groups[first:first + workers.count])))
    bar.close()
    return found


def changed_songs(fingerprinter: Fingerprinter, reducers: tp.Mapping[str, BlockReducers], prepared: PreparedCatalogue,
                  songs: tp.Sequence[Song], workers: tp.Optional[Workers] = None) -> tp.Dict[str, Recordings]:
    """What a catalogue's channels are separated by, by what is kept: some of its songs, as they are and changed.

    Args:
        fingerprinter (Fingerprinter): Whose recipe says how many songs at most. reducers (mapping): By channel.
        prepared (PreparedCatalogue): Where they are read; its tokenizer's cache remembers their codes.
        songs (sequence of Song): The songs to choose from, at equal distances.
    """
    if not reducers:
        return {}
    cache = prepared.tokenizer.cache
    maker = Maker(prepared.tokenizer, fingerprinter.lm, None if cache is None else cache / 'changed')
    found = {}
    for channel, reducer in reducers.items():
        some = spread(songs, fingerprinter.songs_to_change(len(songs), reducer.dim))
        found[KEEPS[channel]] = maker.changed([prepared.catalogue.get(song.id) for song in some], KEEPS[channel], TIMES,
                                              fingerprinter.recipe.projection.seed, workers)
    return found


def fit_separations(fingerprinter: Fingerprinter, reducers: tp.Mapping[str, BlockReducers],
                    changed: tp.Mapping[str, Recordings], workers: tp.Optional[Workers] = None) -> Projections:
    """Projections of the channels P and M that give separated fingerprints, of the width that the recipe asks for.

    Args:
        fingerprinter (Fingerprinter): Of one checkpoint. reducers (mapping): By channel, as `fit_reducers` gives them.
        changed (mapping): By what is kept, songs and their changes (`Maker.changed`).
        workers (Workers, optional): The processes that compute gradients; process zero alone gets the projections.
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
        rows = joined_rows(fingerprinter.alone(channel), {channel: reducer}, examples, f'what {channel} is to find',
                           workers)
        if not rows:
            continue
        separated = Separation.fit(rows.pop(channel), songs, min(RANK, dim), dim=dim)
        separated.mean, separated.map = (one.to(fingerprinter.device) for one in (separated.mean, separated.map))
        projections[channel] = ChannelProjection(reducer, separated)
    return projections
