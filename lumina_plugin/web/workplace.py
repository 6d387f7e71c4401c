"""The page's folder: whatever visitors bring or make lies in it, and none of it for longer than stated."""

import atexit
import logging
import os
import shutil
import tempfile
import threading
import time
import typing as tp
from pathlib import Path

logger = logging.getLogger(__name__)

SWEEPS = 30.  # seconds between two looks for what is too old


class Workplace:
    """A private folder below the system's own for temporary files, removed when the page closes.

    Args:
        keep_seconds (float): Files are deleted when nothing has touched them for so long.
    Attributes:
        root (Path): All of it, for this user alone. cache (Path): What Gradio serves: uploads, and copies of files
            that were handed out. results (Path): One folder per result. songs (Path): Songs cut for listening.
    """

    def __init__(self, keep_seconds: float):
        self.keep_seconds = keep_seconds
        self.root = Path(tempfile.mkdtemp(prefix='lumina-demo-')).resolve()  # mode 0700
        self.cache, self.results, self.songs = (self.root / name for name in ('cache', 'results', 'songs'))
        for folder in (self.cache, self.results, self.songs):
            folder.mkdir()
        self._stop = threading.Event()
        self._sweeper: tp.Optional[threading.Thread] = None
        atexit.register(self.close)

    def watch(self) -> None:
        """Begin to delete what is too old, in the background; called again it changes nothing."""
        if self._sweeper is None:
            self._sweeper = threading.Thread(target=self._sweep_on, name='lumina-demo-sweeper', daemon=True)
            self._sweeper.start()

    def close(self) -> None:
        """Remove everything."""
        self._stop.set()
        shutil.rmtree(self.root, ignore_errors=True)
        atexit.unregister(self.close)

    def taken(self) -> int:
        """Bytes of all files."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                try:
                    total += os.stat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    continue
        return total

    def sweep(self, now: tp.Optional[float] = None) -> tp.List[Path]:
        """Delete files that are older than stated, and folders that this leaves empty: the files deleted."""
        latest = (time.time() if now is None else now) - self.keep_seconds
        gone = []
        for folder, _, names in os.walk(self.root, topdown=False):
            for path in (Path(folder) / name for name in names):
                try:
                    if path.stat().st_mtime <= latest:
                        path.unlink()
                        gone.append(path)
                except FileNotFoundError:
                    continue  # somebody else was quicker
            self._remove_if_left(Path(folder), latest)
        return gone

    def _remove_if_left(self, folder: Path, latest: float) -> None:
        if folder in (self.root, self.cache, self.results, self.songs):
            return
        try:
            if folder.stat().st_mtime <= latest or not any(folder.iterdir()):
                folder.rmdir()  # never one that holds something
        except OSError:
            return

    def _sweep_on(self) -> None:
        while not self._stop.wait(min(SWEEPS, self.keep_seconds)):
            try:
                self.sweep()
            except OSError as error:
                logger.warning("Old files of the page could not all be deleted: %s", error)
