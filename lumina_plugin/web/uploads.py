"""Whether an upload is a recording that the page takes: told by its content, before it is unfolded in memory."""

import typing as tp
from pathlib import Path

from ..errors import LuminaError
from .limits import Limits

NOT_AUDIO = ("“{name}” is no recording that can be read, whatever its name says; upload WAV, FLAC, Ogg, MP3, M4A or "
             "AIFF.")
_FORMATS = 'aac,aiff,caf,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,wav'


def accept(path: tp.Optional[tp.Union[str, Path]], folder: Path, limits: Limits) -> Path:
    """The path of a recording that may be used; one that may not is deleted at once.

    Args:
        path (str or Path): What was uploaded. folder (Path): Where uploads lie; nothing outside of it is ever read.
    Raises:
        LuminaError: nothing was uploaded, it is not there (any more), too large, too long, or no recording.
    """
    if not path:
        raise LuminaError("No recording was given; choose one first.")
    upload = Path(path).resolve()
    if not upload.is_relative_to(folder) or not upload.is_file():
        raise LuminaError(f"That upload is not here any more; uploads are deleted after {limits.keep_minutes:g} "
                          "minutes, so give it once more.")
    try:
        _expect_fit(upload, limits)
    except LuminaError:
        _delete(upload, folder)
        raise
    return upload


def _delete(upload: Path, folder: Path) -> None:
    """Delete a refused upload. Asks by itself whether it is one: no other mistake may ever delete a file elsewhere."""
    if folder in upload.resolve().parents:
        upload.unlink(missing_ok=True)


def _expect_fit(upload: Path, limits: Limits) -> None:
    name, size = upload.name, upload.stat().st_size
    if size > limits.upload_bytes:
        raise LuminaError(f"“{name}” has {size / 2 ** 20:.1f} MiB, and {limits.upload_mb:g} MiB are taken here; cut "
                          "it, or convert it to Ogg or MP3.")
    seconds, samples = _lengths(upload, limits)
    if seconds > limits.upload_seconds:
        raise LuminaError(f"“{name}” is longer than the {limits.upload_seconds:g} s that are taken here; cut it.")
    if samples > limits.upload_samples:
        raise LuminaError(f"“{name}” has more samples than {limits.upload_seconds:g} s of stereo at 48 kHz; convert it "
                          "to that.")


def _lengths(upload: Path, limits: Limits) -> tp.Tuple[float, int]:
    """Seconds, and samples of all channels. Containers whose header may lie are decoded, but not kept."""
    import soundfile as sf
    try:
        facts = sf.info(str(upload))
        return facts.frames / max(facts.samplerate, 1), facts.frames * facts.channels
    except (sf.LibsndfileError, TypeError):
        return _decoded_lengths(upload, limits)


def _decoded_lengths(upload: Path, limits: Limits) -> tp.Tuple[float, int]:
    import av
    seconds, samples = 0., 0
    try:
        # of what ffmpeg knows, no playlist and no description of a stream: those name other files and addresses to open
        with av.open(str(upload), options={'format_whitelist': _FORMATS, 'protocol_whitelist': 'file'}) as container:
            if not container.streams.audio:
                raise LuminaError(NOT_AUDIO.format(name=upload.name))
            for frame in container.decode(container.streams.audio[0]):
                seconds += frame.samples / max(frame.sample_rate, 1)
                samples += frame.samples * len(frame.layout.channels)
                if seconds > limits.upload_seconds or samples > limits.upload_samples:
                    break
    except (av.FFmpegError, ValueError) as error:
        raise LuminaError(NOT_AUDIO.format(name=upload.name)) from error
    if not samples:
        raise LuminaError(NOT_AUDIO.format(name=upload.name))
    return seconds, samples
