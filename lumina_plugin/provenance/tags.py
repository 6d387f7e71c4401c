"""Tags in WAV and MP3 (ID3), FLAC and Ogg (Vorbis comments), by mutagen."""

import contextlib
import io
import typing as tp
from pathlib import Path

from ..atomic import write_atomic
from ..errors import LuminaError
from .record import Attribution

RECORD, REPORT = 'LUMINA_ATTRIBUTION', 'LUMINA_REPORT_SHA256'
TAGGED = ('.wav', '.flac', '.mp3', '.ogg', '.oga', '.opus')


def write_tags(path: tp.Union[str, Path], attribution: Attribution) -> Path:
    """Put a record into an audio file's tags, in place and atomically; the sound stays as it is, to the bit.

    Written are the record as JSON (LUMINA_ATTRIBUTION) and the report's hash (LUMINA_REPORT_SHA256), and, where the
    file has none yet, a title and a comment that names who is credited.

    Raises:
        LuminaError: the file is not of a kind that takes tags, is damaged, or cannot be written.
    """
    path = Path(path)
    with _usable(path):
        data = io.BytesIO(path.read_bytes())
        file = _opened(path, data)
        if file.tags is None:
            file.add_tags()
        _fill(file.tags, attribution)
        data.seek(0)
        file.save(data)
    return write_atomic(path, data.getvalue())


def read_tags(path: tp.Union[str, Path]) -> tp.Optional[Attribution]:
    """The record in a file's tags; None where there is none.

    Raises:
        LuminaError: the file is damaged, or its record is.
    """
    path = Path(path)
    if path.suffix.lower() not in TAGGED:
        return None
    with _usable(path):
        tags = _opened(path, str(path)).tags
        if tags is None:
            return None
        found = tags.getall(f'TXXX:{RECORD}') if hasattr(tags, 'getall') else tags.get(RECORD)
        text = None if not found else found[0] if isinstance(found[0], str) else ''.join(map(str, found[0].text))
    return None if text is None else Attribution.parse(text, f'the tags of {path}')


def _opened(path: Path, source: tp.Any) -> tp.Any:
    import mutagen
    from mutagen import flac, mp3, oggopus, oggvorbis, wave
    kinds = [wave.WAVE, flac.FLAC, mp3.MP3, oggvorbis.OggVorbis, oggopus.OggOpus]
    file = mutagen.File(source, options=kinds)
    if file is None:
        raise LuminaError(f"{path} takes no tags; write WAV, FLAC, MP3 or Ogg, or keep the record beside it.")
    return file


def _fill(tags: tp.Any, attribution: Attribution) -> None:
    """ID3 has frames, the other kinds have plain keys."""
    ours = {RECORD: attribution.text(), REPORT: attribution.report_sha256}
    if not hasattr(tags, 'getall'):
        for key, text in ours.items():
            tags[key] = [text]
        for key, text in (('TITLE', attribution.title), ('COMMENT', attribution.sentence())):
            if not tags.get(key):
                tags[key] = [text]
        return
    from mutagen.id3 import COMM, TIT2, TXXX, Encoding
    for key, text in ours.items():
        tags.delall(f'TXXX:{key}')
        tags.add(TXXX(encoding=Encoding.UTF8, desc=key, text=[text]))
    if not tags.getall('TIT2'):
        tags.add(TIT2(encoding=Encoding.UTF8, text=[attribution.title]))
    if not tags.getall('COMM'):
        tags.add(COMM(encoding=Encoding.UTF8, lang='eng', desc='', text=[attribution.sentence()]))


@contextlib.contextmanager
def _usable(path: Path) -> tp.Iterator[None]:
    """Tell as bad input what mutagen raises of files that are none of the kind that they seem to be."""
    from mutagen import MutagenError
    try:
        yield
    except LuminaError:
        raise
    except OSError as error:
        raise LuminaError(f"{path} cannot be read: {error.strerror}; check the path and its permissions.") from error
    except (MutagenError, ValueError, KeyError, IndexError, EOFError) as error:
        raise LuminaError(f"The tags of {path} cannot be read ({str(error)[:120] or type(error).__name__}); the file "
                          "is damaged: copy or make it again.") from error
