"""Songs outside of the catalogue, which chance is measured by: recordings that the model never saw, or rendered ones.

Of each the first chunk with sound is one query that owes nobody: without text, without prompt, encoded from as many
starts as the recipe encodes a recording that is asked about. What a model generates is compared with generations
instead (`outside_generations`).
"""

import dataclasses
import functools
import hashlib
import itertools
import logging
import typing as tp
from pathlib import Path

import torch

from . import audio
from .calibration import MIN_SONGS
from .catalogue import Catalogue, Track
from .catalogue.build import find_recordings
from .catalogue.tracks import MANIFESTS, unique_ids
from .errors import LuminaError
from .fingerprint import spread
from .hashing import codes_hash
from .inputs import GENERATED, NONE
from .prepared import progress_bar
from .store import RECORDING, FingerprintStore
from .tokens import CodeChunk, Tokenizer

logger = logging.getLogger(__name__)

COUNT = 100  # songs unless said
SEED = 64_001  # of generated songs; any but the embedded catalogue's own makes other songs than that has in any split
SECONDS = 10.  # of a generated song, unless chunks are longer
_MADE = 'songs that the embedded generator made'


@dataclasses.dataclass(frozen=True)
class OutsideSong:
    """A song as one query.

    Args:
        id (str): Unique. sha256 (str): Of its file, of its samples or, of a generation, of its codes.
        chunk (CodeChunk): Its first with sound. again (tuple): The same, encoded from other starts within a frame.
        kind (str): 'recording' or 'generation'.
        prompt_frames (int): So many frames of a generation were given; they are left out.
        text (str, optional): That a generation was made under.
    """
    id: str
    sha256: str
    chunk: CodeChunk
    kind: str = RECORDING
    prompt_frames: int = 0
    text: tp.Optional[str] = None
    again: tp.Tuple[CodeChunk, ...] = ()

    @property
    def codes_hash(self) -> str:
        """Of the chunk's codes, without padding."""
        return _hash_of(self.chunk)

    @property
    def evidence_hash(self) -> str:
        """Of all that is fingerprinted."""
        hashes = [_hash_of(chunk) for chunk in (self.chunk, *self.again)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(' '.join(hashes).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Outside:
    """Songs outside of the catalogue, and in words where they come from: recordings, and generations if there are."""
    songs: tp.List[OutsideSong]
    origin: str
    generations: tp.List[OutsideSong] = dataclasses.field(default_factory=list)
    generator: str = ''


def gather(where: tp.Union[None, str, Path], store: FingerprintStore, tokenizer: Tokenizer, needed: int = MIN_SONGS,
           count: int = COUNT, valid: tp.Optional[tp.Union[str, Path]] = None, seen: tp.Collection[str] = (),
           phases: int = 1) -> tp.Optional[Outside]:
    """Outside songs for a store.

    Args:
        where: A folder of recordings or a manifest; 'generated'; 'none'. Empty: `valid` where that holds enough songs
            and none that is known, else generated ones.
        store: Whose songs they must not be. tokenizer: Of the store's codec and recipe.
        needed (int): The fewest that will do. count (int): How many to take, at least `needed`.
        valid (path, optional): Manifest of a run's validation split.
        seen (collection of str): SHA-256 of further recordings that the model was trained on.
        phases (int): Encode each from so many starts, the recipe's `query_phases`.
    Raises:
        LuminaError: too few songs, or one that the store or the training holds.
    """
    if where == NONE:
        return None
    known = {track.sha256: track.id for track in store.tracks if track.sha256} | {digest: '' for digest in seen}
    count = max(count, needed)
    if where in (None, '') and valid is not None:
        try:
            return _fresh(_recordings(valid, tokenizer, needed, count, known, 'songs of the validation split', phases),
                          store, tokenizer, needed)
        except LuminaError as reason:
            logger.info("Chance is measured by songs that the embedded generator makes. (Those of datasource.valid are "
                        "taken where they are %d or more and unknown to the model; fingerprint.outside names others.)",
                        needed)
            logger.debug("Why not by datasource.valid: %s", reason)
    if where in (None, '', GENERATED):
        return _fresh(_generated(tokenizer, count, phases), store, tokenizer, needed)
    path = Path(tp.cast(str, where)).expanduser()
    return _fresh(_recordings(path, tokenizer, needed, count, known, f'songs of {path.name}', phases),
                  store, tokenizer, needed)


def songs_in(path: tp.Union[str, Path]) -> Catalogue:
    """The recordings that a manifest names, or that lie in and below a folder without one.

    Raises:
        LuminaError: there are none.
    """
    path = Path(path).expanduser()
    if path.is_dir() and not any((path / name).is_file() for name in MANIFESTS):
        files = find_recordings(path)
        if files:
            return Catalogue([Track(name, file.absolute(), 0., 0)
                              for name, file in zip(unique_ids(files), files, strict=True)])
    return Catalogue.from_manifest(path)


def expect_enough(path: tp.Union[str, Path], needed: int = MIN_SONGS) -> Catalogue:
    """`songs_in`, or LuminaError where they are too few to measure chance by."""
    songs = songs_in(path)
    if len(songs) < needed:
        raise LuminaError(_too_few(path, len(songs), needed))
    return songs


def _too_few(path: tp.Union[str, Path], found: int, needed: int) -> str:
    return (f"{path}: {found} songs can be used, but chance is measured by at least {needed} outside songs: "
            "with fewer no lone source could ever be paid; name a folder with more, or 'generated'.")


def _recordings(path: tp.Union[str, Path], tokenizer: Tokenizer, needed: int, count: int, known: tp.Mapping[str, str],
                origin: str, phases: int) -> Outside:
    """The first chunk with sound of at most `count` recordings, spread over all that there are."""
    tracks = list(expect_enough(path, needed))
    chosen = spread(tracks, count)
    ids = {track.id for track in chosen}
    ahead = iter([*chosen, *(track for track in tracks if track.id not in ids)])  # others stand in for unusable ones
    found: tp.Dict[str, OutsideSong] = {}
    for track in progress_bar(ahead, 'outside songs', len(tracks)):
        try:
            digest = track.sha256
            chunks = () if digest in known else _beginning(track.path, digest, tokenizer, phases)
        except LuminaError as error:
            logger.warning("Passing over the outside song %s: %s", track.id, error)
            continue
        if digest in known:
            raise LuminaError(f"{track.path} cannot measure chance: it is "
                              f"{f'song {known[digest]} of the catalogue' if known[digest] else 'a training song'}; "
                              "take it away, or name other songs.")
        if chunks:
            song = OutsideSong(track.id, digest, chunks[0], again=chunks[1:])
            found.setdefault(song.codes_hash, song)  # the same recording twice is one song
        if len(found) == count:
            break
    if len(found) < needed:
        raise LuminaError(_too_few(path, len(found), needed))
    return Outside(list(found.values()), origin)


def _generated(tokenizer: Tokenizer, count: int, phases: int) -> Outside:
    """Beginnings of songs that the embedded generator makes for this, and for nothing else."""
    from .embedded import SAMPLE_RATE, endless_songs
    codec, songs = tokenizer.codec, []
    specs = itertools.islice(endless_songs(SEED), count)
    for number, spec in enumerate(progress_bar(specs, 'outside songs', count), 1):
        samples = dataclasses.replace(spec, duration=max(SECONDS, tokenizer.chunk_seconds)).render()
        wav = audio.resample(torch.from_numpy(samples)[None], SAMPLE_RATE, codec.sample_rate)
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        chunks = tokenizer.kept(f'{digest}/first/{phases}', functools.partial(
            _first, audio.downmix(wav, codec.channels), tokenizer, phases))
        assert chunks, "the generator makes no silence"
        songs.append(OutsideSong(f'generated-{number:04d}', digest, chunks[0], again=chunks[1:]))
    return Outside(songs, _MADE)


def _beginning(path: Path, digest: str, tokenizer: Tokenizer, phases: int) -> tp.Tuple[CodeChunk, ...]:
    """`_first` of a recording, which is decoded and encoded once alone: a pass that was stopped goes on from there."""
    return tokenizer.kept(f'{digest}/first/{phases}', lambda: _first(
        audio.load_audio(path, tokenizer.codec.sample_rate, tokenizer.codec.channels), tokenizer, phases))


def _first(wav: torch.Tensor, tokenizer: Tokenizer, phases: int) -> tp.Tuple[CodeChunk, ...]:
    """Codes of the first chunk with sound of a waveform [C, T] at the codec's rate, from so many starts; none where all
    is silent."""
    for piece in audio.chunk(wav, tokenizer.codec.sample_rate, tokenizer.chunk_seconds):
        sound = piece.wav[..., :piece.valid]
        if not audio.silent(sound, tokenizer.silence_db):
            return tuple(tokenizer.audio(sound[..., start:]).chunks[0] for start in tokenizer.starts(sound, phases))
    return ()


def _fresh(outside: Outside, store: FingerprintStore, tokenizer: Tokenizer, needed: int) -> Outside:
    """The songs without those that have the codes of a song of the store, as far as those are remembered.

    Raises:
        LuminaError: too few are left.
    """
    codes, taken = {song.codes_hash: song for song in outside.songs}, set()
    for track in store.tracks:
        remembered = tokenizer.remembered(track.sha256) if track.sha256 else None
        for chunk in remembered.chunks if remembered is not None else ():
            digest = _hash_of(chunk)
            same = codes.get(digest)
            if same is not None and not chunk.silent and digest not in taken:
                taken.add(digest)
                logger.warning("The outside song %s cannot measure chance and is passed over: it has the codes of song "
                               "%s of the catalogue.", same.id, track.id)
    kept = [song for song in outside.songs if song.codes_hash not in taken]
    if len(kept) < needed:
        raise LuminaError(_too_few(outside.origin.capitalize(), len(kept), needed))
    return Outside(kept, outside.origin)


def _hash_of(chunk: CodeChunk) -> str:
    return codes_hash(chunk.codes[:, :chunk.frames])
