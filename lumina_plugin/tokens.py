"""Audio to codes, chunk by chunk, encoded once: the part of the route from a recording to what the model reads."""

import collections
import dataclasses
import hashlib
import logging
import typing as tp
from concurrent import futures
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from . import audio
from .atomic import write_atomic
from .errors import LuminaError

logger = logging.getLogger(__name__)

READ_AHEAD = 2  # recordings that wait in memory to be encoded
MIN_REMAINDER = 0.25  # seconds; a shorter last piece is dropped where a song has other chunks


@dataclasses.dataclass(frozen=True)
class CodeChunk:
    """Up to `chunk_seconds` of a recording as codes.

    Args:
        codes (torch.Tensor): Shape [K, T], int64, padded frames included.
        frames (int): The first so many of the T frames are music, the others padding.
        start (float): Seconds from the beginning of the recording.
        silent (bool): Never rises above the silence level, so that it carries no evidence.
    """
    codes: torch.Tensor
    frames: int
    start: float
    silent: bool = False


@dataclasses.dataclass(frozen=True)
class TokenizedAudio:
    """All chunks of one recording in order."""
    chunks: tp.List[CodeChunk]
    frame_rate: float

    @property
    def silent(self) -> bool:
        return all(chunk.silent for chunk in self.chunks)

    @property
    def codes(self) -> torch.Tensor:
        """The codes of the music alone, of shape [K, T]."""
        return torch.cat([chunk.codes[:, :chunk.frames] for chunk in self.chunks], dim=-1)


class _Reading(tp.NamedTuple):
    """A recording on its way to codes: what is known of each start, and the waveform [C, T] if something is not."""
    key: tp.Optional[str]
    found: tp.List[tp.Optional[TokenizedAudio]]
    wav: tp.Optional[torch.Tensor]


class Tokenizer:
    """Cut recordings into chunks and encode them with a codec; remember the codes on disk.

    Args:
        codec: audiocraft `CompressionModel` in eval mode.
        codec_hash (str): Its hash; part of the cache's keys.
        chunk_seconds (float): Length of a chunk. silence_db (float): Level in dBFS under which a chunk is silent.
        cache (path, optional): Folder for codes, keyed by file content, codec and chunking; None keeps nothing.
    """

    def __init__(self, codec: tp.Any, codec_hash: str, chunk_seconds: float = 10., silence_db: float = -60.,
                 cache: tp.Optional[tp.Union[str, Path]] = None):
        self.codec, self.codec_hash = codec, codec_hash
        self.chunk_seconds, self.silence_db = chunk_seconds, silence_db
        self.cache = Path(cache) if cache is not None else None

    @property
    def frame_rate(self) -> float:
        return float(self.codec.frame_rate)

    def file(self, path: tp.Union[str, Path], sha256: tp.Optional[str] = None) -> TokenizedAudio:
        """Codes of a recording on disk, from the cache where they are known.

        Raises:
            LuminaError: when the file cannot be read as audio.
        """
        return self.phases(path, 1, sha256)[0]

    def phases(self, path: tp.Union[str, Path], parts: int, sha256: tp.Optional[str] = None
               ) -> tp.List[TokenizedAudio]:
        """A recording's chunks as often as `parts` says, each time from a start a little later within one frame.

        Where an excerpt was cut is chance, and so is how its frames lie to those of the song it comes from; all of
        these together depend less on it. The first are those of `file`.

        Raises:
            LuminaError: when the file cannot be read as audio.
        """
        return self._encoded(self._read_in(path, parts, sha256))

    def each(self, files: tp.Sequence[tp.Tuple[tp.Union[str, Path], tp.Optional[str]]], parts: int = 1
             ) -> tp.Iterator[tp.Union[tp.List[TokenizedAudio], LuminaError]]:
        """`phases` of many recordings, given as paths and hashes: the next ones are read and resampled while one is
        encoded. For one that cannot be read, the error that says why."""
        with futures.ThreadPoolExecutor(1) as reader:
            ahead: tp.Deque[futures.Future] = collections.deque()
            for index in range(len(files) + READ_AHEAD):
                if index < len(files):
                    ahead.append(reader.submit(self._read_in, files[index][0], parts, files[index][1]))
                if index >= READ_AHEAD:
                    try:
                        reading = ahead.popleft().result()
                    except LuminaError as error:
                        yield error
                    else:  # outside of `try`: a cache that cannot be written is no fault of the recording
                        yield self._encoded(reading)

    def _read_in(self, path: tp.Union[str, Path], parts: int, sha256: tp.Optional[str]) -> '_Reading':
        """What is remembered of a recording and, where that is not all, its waveform."""
        key = None if self.cache is None else self._key(sha256 or audio.file_sha256(path))
        found = [None if key is None else self._remembered(key, part, parts) for part in range(parts)]
        tiny = found[0] is not None and found[0].codes.shape[-1] <= 2  # has no room for more starts than are there
        wav = None
        if any(phase is None for phase in found) and not tiny:
            wav = audio.load_audio(path, self.codec.sample_rate, self.codec.channels)
        return _Reading(key, found, wav)

    def _encoded(self, reading: '_Reading') -> tp.List[TokenizedAudio]:
        """Every start's codes, those that were not known yet being remembered from now on."""
        found, parts = list(reading.found), len(reading.found)
        if reading.wav is not None:
            starts = self.starts(reading.wav, parts)
            for part, start in enumerate(starts):
                if found[part] is None:
                    found[part] = phase = self.audio(reading.wav[:, start:])
                    if reading.key is not None:
                        self._write(self._file(reading.key, part, parts), phase)
        return [phase for phase in found if phase is not None]

    @torch.no_grad()
    def audio(self, wav: torch.Tensor) -> TokenizedAudio:
        """Codes of a waveform [C, T] at the codec's rate, one chunk at a time so that no chunk depends on another."""
        device = next(self.codec.parameters()).device
        chunks = []
        for piece in audio.chunk(wav, self.codec.sample_rate, self.chunk_seconds):
            wav_in = piece.wav[None].pin_memory() if device.type == 'cuda' else piece.wav[None]
            codes, scale = self.codec.encode(wav_in.to(device, non_blocking=True))  # [1, K, T]
            assert scale is None, "codecs that rescale are not supported by MusicGen either"
            frames = max(1, int(piece.valid * self.frame_rate / self.codec.sample_rate + 1e-6))
            silent = audio.silent(piece.wav[..., :piece.valid], self.silence_db)
            chunks.append(CodeChunk(codes[0].cpu().long(), min(frames, codes.shape[-1]),
                                    piece.offset / self.codec.sample_rate, silent))
        return TokenizedAudio(chunks, self.frame_rate)

    @torch.no_grad()
    def shifted(self, path: tp.Union[str, Path], parts: int) -> tp.List[torch.Tensor]:
        """Codes [K, T] of a whole recording, encoded from `parts` starts that are equally spaced within one frame."""
        wav = audio.load_audio(path, self.codec.sample_rate, self.codec.channels)
        device = next(self.codec.parameters()).device
        return [self.codec.encode(wav[None, :, start:].to(device))[0][0].cpu().long()
                for start in self.starts(wav, parts)]

    def starts(self, wav: torch.Tensor, parts: int) -> tp.List[int]:
        """Samples at which a recording [C, T] is cut to begin: equally spaced within one frame, never all of it."""
        hop = self.codec.sample_rate / self.frame_rate
        return [start for start in (int(part * hop / parts) for part in range(parts))
                if start == 0 or start <= wav.shape[-1] - hop]

    def finished(self, codes: torch.Tensor) -> TokenizedAudio:
        """Chunks of codes [K, T] that a model has just generated, without a second encode."""
        step = int(self.chunk_seconds * self.frame_rate)
        pieces = list(codes.cpu().long().split(step, dim=-1))
        if len(pieces) > 1 and pieces[-1].shape[-1] < MIN_REMAINDER * self.frame_rate:
            pieces.pop()
        return TokenizedAudio([CodeChunk(piece, piece.shape[-1], index * self.chunk_seconds)
                               for index, piece in enumerate(pieces)], self.frame_rate)

    def _key(self, sha256: str) -> str:
        return f'{sha256}/{self.codec_hash}/{self.chunk_seconds}/{self.silence_db}'

    def _file(self, key: str, part: int, parts: int) -> Path:
        assert self.cache is not None
        shifted = f'/{part}:{parts}' if part else ''
        return self.cache / f'{hashlib.sha256((key + shifted).encode()).hexdigest()}.safetensors'

    def remembered(self, sha256: str) -> tp.Optional[TokenizedAudio]:
        """Codes of a recording by its hash alone, wherever it lies by now; None where the cache has none."""
        return None if self.cache is None else self._remembered(self._key(sha256), 0, 1)

    def kept(self, name: str, make: tp.Callable[[], tp.Sequence[CodeChunk]]) -> tp.Tuple[CodeChunk, ...]:
        """Chunks that `make` gives, of one shape, remembered under a name of the caller's beside whole recordings."""
        if self.cache is None:
            return tuple(make())
        key = self._key(name)
        known = self._remembered(key, 0, 1)
        if known is None:
            known = TokenizedAudio(list(make()), self.frame_rate)
            if known.chunks:
                self._write(self._file(key, 0, 1), known)
        return tuple(known.chunks)

    def _remembered(self, key: str, part: int, parts: int) -> tp.Optional[TokenizedAudio]:
        path = self._file(key, part, parts)
        if not path.exists():
            return None
        try:
            return self._read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("The remembered codes in %s are damaged (%s); encoding again.", path, error)
            return None

    def _read(self, path: Path) -> TokenizedAudio:
        stored = safetensors.torch.load_file(path)
        rows = zip(stored['codes'], stored['frames'].tolist(), stored['start'].tolist(), stored['silent'].tolist(),
                   strict=True)
        return TokenizedAudio([CodeChunk(codes.long(), frames, start, bool(silent))
                               for codes, frames, start, silent in rows], self.frame_rate)

    def _write(self, path: Path, tokenized: TokenizedAudio) -> None:
        chunks = tokenized.chunks
        tensors = {
            'codes': torch.stack([chunk.codes.short() for chunk in chunks]),  # [n, K, T]
            'frames': torch.tensor([chunk.frames for chunk in chunks]),
            'start': torch.tensor([chunk.start for chunk in chunks], dtype=torch.float64),
            'silent': torch.tensor([chunk.silent for chunk in chunks])}
        write_atomic(path, safetensors.torch.save(tensors))
