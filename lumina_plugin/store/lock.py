"""One writer at a time, by a lock that dies with its holder."""

import contextlib
import fcntl
import os
import socket
import typing as tp
import weakref
from pathlib import Path

from ..errors import LuminaError
from .files import make_folder, writing

_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


class FolderLock:
    """Exclusive, re-entrant lock of a folder: `with lock: ...`.

    The kernel's `flock` on `<folder>/.lock` is the lock, so a holder that was killed holds nothing; the text in the
    file only tells others who holds it, and is emptied on release. The file itself stays: deleting it would let two
    processes lock two different files of one name.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._handle: tp.Optional[int] = None
        self._depth = 0

    def __enter__(self) -> "FolderLock":
        if self._handle is None:
            self._handle = self._acquire()
            _held.add(self)
        self._depth += 1
        return self

    def __exit__(self, *_: tp.Any) -> None:
        if self._handle is None:  # a forked child leaves its parent's block
            return
        self._depth -= 1
        if self._depth == 0:
            with contextlib.suppress(OSError):  # a full disk must not mask the error that is under way
                os.ftruncate(self._handle, 0)
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # closing is not enough while a child just forked has it open
            self._drop()

    @property
    def held(self) -> bool:
        """Whether this very object holds it now."""
        return self._handle is not None

    def _acquire(self) -> int:
        with writing(self.path):
            make_folder(self.path.parent)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(handle, 0)
                os.write(handle, f"pid {os.getpid()} on {socket.gethostname()}".encode())
            except BlockingIOError as error:
                holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
                os.close(handle)
                raise LuminaError(f"the store {self.path.parent} is being written by {holder}; wait until it has "
                                  "finished or stop it, then run again") from error
            except OSError:
                os.close(handle)
                raise
        return handle

    def _drop(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._depth = None, 0
        _held.discard(self)


def _forget_in_child() -> None:
    """A forked child (a data loader's worker) shares the parent's open file, and would keep the lock alive after it."""
    for lock in list(_held):
        lock._drop()


os.register_at_fork(after_in_child=_forget_in_child)
