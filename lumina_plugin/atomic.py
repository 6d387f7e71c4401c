"""Files that are either there whole or not there at all."""
import json
import os
import tempfile
import typing as tp
from pathlib import Path

from .errors import LuminaError


def write_atomic(path: tp.Union[str, Path], data: tp.Union[bytes, str]) -> Path:
    """Write `data` through a temporary file in the same folder, synced, then renamed over `path`.

    Args:
        path (str or Path): Where to; its folder is made. A crash leaves the old file or none, never a part.
        data (bytes or str): Text is encoded as UTF-8.
    Returns:
        Path: the path written.
    Raises:
        LuminaError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    raw = data.encode('utf-8') if isinstance(data, str) else data
    temporary: tp.Optional[str] = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix='.' + path.name[:60] + '.', suffix='.part', dir=path.parent)
        with os.fdopen(handle, 'wb') as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise LuminaError(f"cannot write {path}: {error.strerror or error}; choose a folder that can be written to "
                          "and has room.") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def write_json(path: tp.Union[str, Path], value: tp.Any) -> Path:
    """`write_atomic` of `value` as indented JSON."""
    return write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def writable_folder(folder: Path) -> Path:
    """Make a folder where it is missing; LuminaError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / '.lumina-write-test'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LuminaError(f"Cannot write into {folder} ({error.strerror}); choose another output folder.") from None
    return folder
