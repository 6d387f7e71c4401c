"""The only way in which the store writes: a file is complete and on disk, or it is not there at all.

| killed while                        | leaves                               | who cleans up            |
|-------------------------------------|--------------------------------------|--------------------------|
| filling the temporary file          | the old file and a `.tmp-` file      | `sweep`, the next writer |
| between the file's fsync and rename | the same                             | the same                 |
| before the folder's fsync           | the new file; the old after power loss | nobody needs to        |
"""

import contextlib
import hashlib
import json
import os
import typing as tp
from pathlib import Path

from safetensors import SafetensorError

from ..errors import LuminaError

TEMP = ".tmp-"


def canonical(value: tp.Any) -> bytes:
    """JSON in one defined spelling, for hashing: sorted keys, no spaces, no NaN; NumPy and torch scalars as numbers."""

    def scalar(item: tp.Any) -> tp.Any:
        if hasattr(item, "item"):
            return item.item()
        raise TypeError(f"{type(item).__name__} is not JSON")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False,
                      default=scalar).encode()


def plain(value: tp.Any, what: str) -> tp.Any:
    """`value` as it will read back from JSON. Raises LuminaError, naming `what`, for whatever JSON cannot hold."""
    try:
        return json.loads(canonical(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise LuminaError(f"{what} cannot be stored as JSON ({error}); use numbers, strings, lists, dicts") from error


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> tp.Iterator[None]:
    """Turn whatever the file system refuses inside into a LuminaError that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LuminaError(f"cannot write {path.name} into {path.parent}: {reason}; make room there or choose a "
                          "folder that can be written, then run again: what was finished is kept") from error


def holds(path: Path, digest: str) -> bool:
    """Whether the file at `path` is there, with that SHA-256."""
    return path.is_file() and sha256_file(path) == digest


def write(path: Path, content: tp.Union[bytes, tp.Callable[[Path], None]]) -> None:
    """Put `content` (bytes, or a function that fills the file at the path it is given) at `path`, whole and durably.

    Raises LuminaError, naming the folder, where that fails (no permission, disk full); the old file is then untouched.
    """
    temp = path.with_name(TEMP + path.name)
    with writing(path):
        try:
            make_folder(path.parent)
            if callable(content):
                temp.touch()
                mode = temp.stat().st_mode
                content(temp)
                temp.chmod(mode)  # safetensors makes files that their owner alone can read
            else:
                temp.write_bytes(content)
            sync(temp)
            os.replace(temp, path)
            sync(path.parent)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            raise


def remove(paths: tp.Iterable[Path]) -> None:
    """Delete files; those already gone are no error."""
    for path in paths:
        with writing(path):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete the temporary files that killed writers left in `folder` and its folders. Only for the lock's holder.

    Those are ours, and safetensors' own: its `save_file` fills a `.tmpXXXXXX` of random name beside the file asked for.
    """
    remove(path for pattern in (".tmp*", "*/.tmp*") for path in folder.glob(pattern) if path.is_file())
