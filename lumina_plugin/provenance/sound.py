"""A hash of the sound in a file: the same whatever its tags say."""

import hashlib
import typing as tp
from pathlib import Path

from ..errors import LuminaError


def content_sha256(path: tp.Union[str, Path]) -> str:
    """SHA-256 of an audio file's encoded packets, with rate and channels; titles, pictures and manifests are no part.

    Packets are what the codec made, so that nothing is decoded and any version of any decoder finds the same hash. Of
    WAV they are the samples. Converted to another format, or encoded again, a recording has another hash.

    Raises:
        LuminaError: the file is missing or no audio.
    """
    import av
    path = Path(path)
    digest = hashlib.sha256()
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise LuminaError(f"{path} has no audio track; name a file that has one.")
            stream = container.streams.audio[0]
            digest.update(f'{stream.rate} Hz, {stream.codec_context.channels} channels\n'.encode())
            for packet in container.demux(stream):
                digest.update(bytes(packet))
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise LuminaError(f"{path} cannot be read as audio ({reason}); name a recording.") from error
    return digest.hexdigest()
