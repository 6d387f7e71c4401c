"""Recordings to waveforms: reading, resampling, downmixing, cutting into chunks, and telling silence.

Nothing here needs audiocraft or an ffmpeg binary: soundfile reads what libsndfile knows (WAV, FLAC, Ogg Vorbis and
Opus, MP3, AIFF), PyAV the rest (M4A/AAC, MP4, WebM). Waveforms are float32, `[C, T]`.
"""
import hashlib
import io
import math
import typing as tp
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .atomic import write_atomic
from .errors import LuminaError

MIN_RATE, MAX_RATE = 8_000, 192_000
WRITTEN = {'wav': 'PCM_16', 'flac': 'PCM_16', 'mp3': 'MPEG_LAYER_III', 'ogg': 'VORBIS'}  # formats, and how
_MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
MIN_REMAINDER = .25  # seconds: a shorter last chunk is dropped where the song has other chunks
_SILENCE_FRAME = 1024
_LARGEST_FRACTION = 1000  # julius builds a filter per phase: awkward fractions go through a polyphase filter instead
_HALF = math.sqrt(.5)
# What each channel of a surround recording gives to (left, right), in the order of WAV and FLAC: L R C LFE Ls Rs ...
# ITU-R BS.775: centre and surrounds at -3 dB, the effects channel left out; then scaled so that full scale cannot clip.
_SURROUND: tp.Dict[int, tp.Tuple[tp.Tuple[float, float], ...]] = {
    4: ((1., 0.), (0., 1.), (_HALF, 0.), (0., _HALF)),
    5: ((1., 0.), (0., 1.), (_HALF, _HALF), (_HALF, 0.), (0., _HALF)),
    6: ((1., 0.), (0., 1.), (_HALF, _HALF), (0., 0.), (_HALF, 0.), (0., _HALF)),
    8: ((1., 0.), (0., 1.), (_HALF, _HALF), (0., 0.), (_HALF, 0.), (0., _HALF), (_HALF, 0.), (0., _HALF)),
}
# Vorbis and Opus order their channels L C R Ls Rs LFE, and libsndfile hands that on: where WAV's channels are in it.
_FROM_VORBIS = {5: [0, 2, 1, 3, 4], 6: [0, 2, 1, 5, 3, 4], 8: [0, 2, 1, 7, 5, 6, 3, 4]}


@dataclass(frozen=True)
class Chunk:
    """A piece of a song, of the same length for every song.

    Args:
        wav (torch.Tensor): `[C, S]`, zero padded at the end.
        offset (int): First sample's place in the song.
        valid (int): Samples that are the song's own; the rest is padding.
    """
    wav: torch.Tensor
    offset: int
    valid: int


def load_audio(path: tp.Union[str, Path], sample_rate: int, channels: int = 1) -> torch.Tensor:
    """Read a recording of any common format at the rate and with the channels wanted.

    Args:
        path (str or Path): The file.
        sample_rate (int): Hz wanted; the file may have 8 to 192 kHz.
        channels (int): 1 or 2. Two channels become one by their mean, one becomes two by repetition; see `downmix`.
    Returns:
        torch.Tensor: `[channels, T]`, float32.
    Raises:
        LuminaError: what `read_audio` raises.
    """
    wav, rate = read_audio(path)
    return resample(downmix(wav, channels), rate, sample_rate)


def read_audio(path: tp.Union[str, Path]) -> tp.Tuple[torch.Tensor, int]:
    """Read a recording as it is.

    Args:
        path (str or Path): The file.
    Returns:
        tuple: wav `[C, T]` float32, and its rate in Hz. Channels in WAV's order (L, R, C, LFE, Ls, Rs).
    Raises:
        LuminaError: the file is missing, a folder, empty, not audio or damaged, holds NaN or infinite samples, or has a
            sample rate outside of 8 to 192 kHz.
    """
    path = Path(path)
    expect_file(path)
    found = _read_soundfile(path)
    wav, rate = found if found is not None else _read_av(path)
    if wav.shape[-1] == 0:
        raise LuminaError(f"{path} holds no samples; remove it or export it again.")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise LuminaError(f"{path} has a sample rate of {rate} Hz; convert it to one from {MIN_RATE} to {MAX_RATE} Hz.")
    if not np.isfinite(wav).all():
        bad = int((~np.isfinite(wav)).sum())
        raise LuminaError(f"{path} holds {bad} samples that are NaN or infinite; export it again.")
    return torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32)), rate


def expect_file(path: Path) -> None:
    """Raise LuminaError where a path is not that of a file that can be opened and holds something."""
    if path.is_dir():
        raise LuminaError(f"{path} is a folder, not an audio file; name a file in it.")
    if not path.is_file():
        raise LuminaError(f"{path} does not exist; check the path.")
    try:
        if path.stat().st_size == 0:
            raise LuminaError(f"{path} is an empty file (0 bytes); remove it or copy it again.")
        path.open('rb').close()
    except OSError as error:
        raise LuminaError(f"{path} cannot be opened: {error.strerror}; check its permissions.") from error


def _read_soundfile(path: Path) -> tp.Optional[tp.Tuple[np.ndarray, int]]:
    """Wav `[C, T]` and rate, or None where libsndfile does not know the format at all."""
    import soundfile as sf
    try:
        file = sf.SoundFile(str(path))
    except (sf.LibsndfileError, TypeError):  # TypeError: headerless formats want to be told everything
        return None
    with file:
        try:
            wav = file.read(dtype='float32', always_2d=True).T
        except sf.LibsndfileError as error:
            raise LuminaError(f"{path} is damaged ({str(error).rstrip('.')}); copy or export it again.") from error
        if file.format == 'OGG' and file.channels in _FROM_VORBIS:
            wav = wav[_FROM_VORBIS[file.channels]]
        return wav, int(file.samplerate)


def _read_av(path: Path) -> tp.Tuple[np.ndarray, int]:
    """Wav `[C, T]` and rate of a container's first audio stream."""
    import av
    pieces: tp.List[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise LuminaError(f"{path} has no audio track; name a file that has one.")
            stream = container.streams.audio[0]
            rate = int(stream.rate)
            resampler = av.AudioResampler(format='fltp')  # the format alone: rate and layout stay
            for frame in container.decode(stream):
                pieces.extend(f.to_ndarray() for f in resampler.resample(frame))
            if pieces:
                pieces.extend(f.to_ndarray() for f in resampler.resample(None))
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise LuminaError(f"{path} cannot be read as audio ({reason}); convert it to WAV, FLAC, Ogg, MP3 or M4A, "
                          "or remove it.") from error
    return (np.concatenate(pieces, axis=1) if pieces else np.zeros((1, 0), np.float32)), rate


def downmix(wav: torch.Tensor, channels: int = 1) -> torch.Tensor:
    """`[C, T]` to `[channels, T]`, channels 1 or 2.

    5.1 in WAV's order is first folded to stereo after ITU-R BS.775: L' = (L + C/√2 + Ls/√2) / (1 + √2), R' likewise,
    LFE left out. Four, five and eight channels follow the same rule; of any other number every channel counts the same.

    Raises:
        LuminaError: `channels` is neither 1 nor 2.
    """
    if channels not in (1, 2):
        raise LuminaError(f"audio can be mixed to 1 or 2 channels, not {channels}; use a codec that has 1 or 2.")
    count = wav.shape[0]
    if count in _SURROUND:
        matrix = torch.tensor(_SURROUND[count], dtype=wav.dtype, device=wav.device)  # [C, 2]
        wav = (matrix / matrix.sum(0)).T @ wav
    elif count > 2:
        wav = wav.mean(0, keepdim=True)
    if wav.shape[0] == channels:
        return wav
    return wav.mean(0, keepdim=True) if channels == 1 else wav.expand(2, -1).contiguous()


def resample(wav: torch.Tensor, old_rate: int, new_rate: int) -> torch.Tensor:
    """Band-limited resampling: `[C, T]` to `[C, T * new_rate / old_rate]`, at least one sample.

    Ratios of small numbers take julius' sinc filter, the one audiocraft uses; others a Kaiser-windowed polyphase one.
    """
    if old_rate == new_rate:
        return wav
    common = math.gcd(old_rate, new_rate)
    up, down = new_rate // common, old_rate // common
    length = max(1, new_rate * wav.shape[-1] // old_rate)
    if max(up, down) <= _LARGEST_FRACTION:
        import julius
        out = julius.resample_frac(wav, old_rate, new_rate)
    else:
        from scipy import signal
        taps = signal.firwin(2 * 24 * max(up, down) + 1, .945 / max(up, down), window=('kaiser', 9.))
        out = torch.from_numpy(signal.resample_poly(wav.double().numpy(), up, down, axis=-1, window=taps)).float()
    out = out[..., :length]
    return torch.nn.functional.pad(out, (0, length - out.shape[-1]))


def chunk(wav: torch.Tensor, sample_rate: int, seconds: float) -> tp.List[Chunk]:
    """Cut a song so that each of its samples lies in exactly one chunk.

    Args:
        wav (torch.Tensor): `[C, T]`.
        sample_rate (int): Hz.
        seconds (float): Length of a chunk.
    Returns:
        list of Chunk: in order, each `seconds` long; the last one padded with zeros. A remainder of less than
            `MIN_REMAINDER` seconds is left out, unless it is all there is.
    Raises:
        LuminaError: `wav` is empty or `seconds` not positive.
    """
    size = int(round(seconds * sample_rate))
    if size < 1:
        raise LuminaError(f"a chunk of {seconds} s has no samples; choose a longer one.")
    if wav.shape[-1] == 0:
        raise LuminaError("a song without samples cannot be cut into chunks.")
    out: tp.List[Chunk] = []
    for offset in range(0, wav.shape[-1], size):
        piece = wav[..., offset:offset + size]
        valid = piece.shape[-1]
        if out and valid < MIN_REMAINDER * sample_rate:
            break
        out.append(Chunk(torch.nn.functional.pad(piece, (0, size - valid)), offset, valid))
    return out


def _levels(wav: torch.Tensor, size: int) -> torch.Tensor:
    """Mean square per frame around the frame's own mean, of the loudest channel: `[ceil(T / size)]`."""
    length = wav.shape[-1]
    frames = max(1, math.ceil(length / size))
    padded = torch.nn.functional.pad(wav.double(), (0, frames * size - length)).unflatten(-1, (frames, size))
    counts = torch.full((frames,), float(size), dtype=torch.float64, device=wav.device)
    if length < frames * size:
        counts[-1] = max(1, length - (frames - 1) * size)
    mean = padded.sum(-1) / counts  # a constant offset is no sound
    return ((padded ** 2).sum(-1) / counts - mean ** 2).clamp(min=0).amax(0)


def silent(wav: torch.Tensor, threshold_db: float = -60.) -> bool:
    """Whether no 1024 samples in a row of `[C, T]` rise above `threshold_db` (rms, full scale 0 dB)."""
    if wav.numel() == 0:
        return True
    return bool((_levels(wav, _SILENCE_FRAME) <= 10 ** (threshold_db / 10)).all())


def activity_mask(wav: torch.Tensor, sample_rate: int, frame_rate: float = 50., threshold_db: float = -60.
                  ) -> torch.Tensor:
    """Which frames of `[C, T]` sound: bool `[ceil(T * frame_rate / sample_rate)]`, True above `threshold_db` rms."""
    return _levels(wav, max(1, int(round(sample_rate / frame_rate)))) > 10 ** (threshold_db / 10)


def save_audio(path: tp.Union[str, Path], wav: torch.Tensor, sample_rate: int) -> Path:
    """Write `[C, T]` (or `[T]`) whole or not at all, as the file's name says; values beyond [-1, 1] are clipped.

    .wav and .flac hold 16-bit samples; .mp3 and .ogg (Vorbis) are lossy. MP3 knows few rates: others are resampled to
    the next higher one.

    Raises:
        LuminaError: the samples are NaN or infinite, the name ends otherwise, or the file cannot be written.
    """
    path = Path(path)
    samples = wav.detach().cpu().float()
    if samples.dim() == 1:
        samples = samples[None]
    if not bool(torch.isfinite(samples).all()):
        raise LuminaError(f"{path} is not written: its samples are NaN or infinite.")
    kind = path.suffix.lower().removeprefix('.')
    if kind not in WRITTEN:
        raise LuminaError(f"{path} cannot be written: choose one of {', '.join(WRITTEN)}.")
    if kind == 'mp3' and sample_rate not in _MP3_RATES:
        rate = min((rate for rate in _MP3_RATES if rate > sample_rate), default=_MP3_RATES[-1])
        samples, sample_rate = resample(samples, sample_rate, rate), rate
    return write_atomic(path, _encoded(samples.clamp(-1, 1).T.numpy(), sample_rate, kind))


def _encoded(samples: np.ndarray, sample_rate: int, kind: str) -> bytes:
    """A whole file of samples [T, C]."""
    import soundfile as sf
    buffer = io.BytesIO()
    with sf.SoundFile(buffer, 'w', sample_rate, samples.shape[1], WRITTEN[kind], format=kind.upper()) as file:
        for start in range(0, len(samples), sample_rate):  # libsndfile's Vorbis encoder cannot take long pieces at once
            file.write(samples[start:start + sample_rate])
    return buffer.getvalue()


def file_sha256(path: tp.Union[str, Path]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        LuminaError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise LuminaError(f"{path} cannot be read: {error.strerror}; check the path and its permissions.") from error
    return digest.hexdigest()
