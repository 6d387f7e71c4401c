"""A catalogue as codes: every song encoded once, read from the cache of codes whenever it is needed."""

import dataclasses
import logging
import time
import typing as tp

import torch
from torch import nn
from tqdm import tqdm

from .catalogue import Catalogue, Track
from .conditions import attributes_for
from .errors import LuminaError
from .fingerprint import Fingerprinter, Song, spread
from .gradients import Example
from .tokens import TokenizedAudio, Tokenizer
from .workers import Workers

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreparedCatalogue:
    """A catalogue as codes, with what could not be used.

    Args:
        catalogue (Catalogue): All songs.
        songs (list of Song): Songs with at least one chunk of sound, in the catalogue's order.
        silent (list of str): Ids of songs without sound.
        skipped (dict): Why a song could not be read, by id.
        tokenizer (Tokenizer): What made the codes.
    """
    catalogue: Catalogue
    songs: tp.List[Song]
    silent: tp.List[str]
    skipped: tp.Dict[str, str]
    tokenizer: Tokenizer

    @property
    def hours(self) -> float:
        return sum(track.duration for track in self.catalogue) / 3600


def progress_bar(items: tp.Iterable, label: str, total: tp.Optional[int] = None) -> tp.Iterable:
    """A progress bar on standard error for stages that may take longer than two seconds."""
    return tqdm(items, desc=label, total=total, dynamic_ncols=True, mininterval=0.5, delay=1)


def prepare(catalogue: Catalogue, tokenizer: Tokenizer, lm: nn.Module, strict: bool = False,
            phases: int = 1, workers: tp.Optional[Workers] = None) -> PreparedCatalogue:
    """Encode every song of a catalogue, once: the tokenizer's cache remembers.

    With a cache, a song's codes are read from it whenever they are needed, so that a catalogue need not fit in memory,
    and several processes share the work.

    Args:
        catalogue (Catalogue): Songs to read.
        tokenizer (Tokenizer): Codec and chunking. lm (nn.Module): Its conditions tell what a song's text is for.
        strict (bool): Stop at the first song that cannot be read instead of naming and skipping it.
        phases (int): Starts within one frame from which each song is encoded (recipe key `song_phases`).
        workers (Workers, optional): The processes that encode together; each gets the same result.
    Raises:
        LuminaError: with `strict`, or when no song is left.
    """
    workers = workers or Workers()
    tracks = list(catalogue)
    mine = tracks if tokenizer.cache is None else workers.share_of(tracks)
    examples: tp.Dict[str, tp.Sequence[Example]] = {}
    skipped: tp.Dict[str, str] = {}
    encoded = tokenizer.each([(track.path, track.sha256) for track in mine], phases)
    for track, tokenized in progress_bar(zip(mine, encoded, strict=True), 'encoding', len(mine)):
        if isinstance(tokenized, LuminaError):
            if strict:
                raise tokenized
            logger.warning("Skipping %s: %s", track.id, tokenized)
            skipped[track.id] = str(tokenized)
            continue
        found = examples_of(track, tokenized, lm)
        examples[track.id] = found if tokenizer.cache is None else _Remembered(track, tokenizer, phases, lm, len(found))
    if tokenizer.cache is not None:
        counts = {id: count for part in workers.gather({id: len(one) for id, one in examples.items()})
                  for id, count in part.items()}
        skipped = {id: reason for part in workers.gather(skipped) for id, reason in part.items()}
        examples = {track.id: _Remembered(track, tokenizer, phases, lm, counts[track.id])
                    for track in tracks if track.id in counts}
    songs = [Song(track.id, examples[track.id]) for track in tracks if len(examples.get(track.id, ()))]
    silent = [track.id for track in tracks if track.id in examples and not len(examples[track.id])]
    if not songs:
        raise LuminaError(f"None of the {len(catalogue)} songs can be fingerprinted ({len(skipped)} unreadable, "
                          f"{len(silent)} silent); check them with `lumina catalogue check`.")
    return PreparedCatalogue(catalogue, songs, silent, skipped, tokenizer)


def examples_of(track: Track, tokenized: tp.Sequence[TokenizedAudio], lm: nn.Module) -> tp.List[Example]:
    """A track's chunks of sound, however often it was encoded, as examples under its own text.

    Silent chunks carry no evidence and are left out.
    """
    attributes = attributes_for(lm, track.description)
    return [Example(chunk.codes, 0, chunk.frames, attributes)
            for phase in tokenized for chunk in phase.chunks if not chunk.silent]


class _Remembered(tp.Sequence[Example]):
    """A track's examples, read from the tokenizer's cache whenever they are asked for."""

    def __init__(self, track: Track, tokenizer: Tokenizer, phases: int, lm: nn.Module, count: int):
        self._track, self._tokenizer, self._phases, self._lm, self._count = track, tokenizer, phases, lm, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> tp.Iterator[Example]:
        return iter(self._load())

    def __getitem__(self, index: tp.Any) -> tp.Any:
        return self._load()[index]

    def _load(self) -> tp.List[Example]:
        tokenized = self._tokenizer.phases(self._track.path, self._phases, self._track.sha256)
        return examples_of(self._track, tokenized, self._lm)


def estimate(prepared: PreparedCatalogue, fingerprinter: Fingerprinter) -> str:
    """One line before a long pass: songs, hours, time (from one timed batch), disk and memory."""
    chunks = sum(len(song.examples) for song in prepared.songs)
    batch = [song.examples[0] for song in spread(prepared.songs, fingerprinter.batch_size)]
    ignored = {name: lambda a, d: torch.zeros(len(a), 1) for name in fingerprinter.blocks}
    list(fingerprinter.batches(batch[:1], ignored))  # the first pass of a process is slower than all others
    size, begun = fingerprinter.batch_size, time.perf_counter()
    list(fingerprinter.batches(batch, ignored))
    fingerprinter.batch_size = size  # other processes make no estimate, and are to make the same batches
    seconds = (time.perf_counter() - begun) / len(batch)  # for a chunk
    recipe = fingerprinter.recipe
    fitted = any(recipe.projection.kind_of(channel) == 'fitted' for channel in recipe.channels)
    passes = 1.3 if fitted else 1.0  # the fit looks at some chunks twice
    changed = sum(fingerprinter.recordings(len(prepared.songs)).values())
    weights = sum(p.numel() for p in fingerprinter.lm.parameters()) * 4
    vectors = len(prepared.songs) * len(recipe.channels) * recipe.projection.dim * 4
    projections, rows = fingerprinter.fit_bytes(len(prepared.songs))
    disk, memory = vectors + weights + projections, weights + rows + projections
    before = f"; {changed} recordings to fit on are made first, once" if changed else ''
    return (f"{len(prepared.songs)} songs, {prepared.hours:.2f} h, {chunks} chunks: about "
            f"{seconds * (chunks * passes + changed):.0f} s per checkpoint, {disk / 2 ** 20:.0f} MiB on disk, "
            f"{memory / 2 ** 20:.0f} MiB of memory beyond the model's own{before}")
