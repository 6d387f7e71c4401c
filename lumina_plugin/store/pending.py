"""Rows whose shard is not full yet, kept on disk so that a killed pass need not redo them."""

import logging
import typing as tp
from pathlib import Path

import torch

from . import files, shards
from .records import Mark

logger = logging.getLogger(__name__)

Rows = tp.Dict[str, shards.Row]
Marks = tp.Dict[str, Mark]


class Pending:
    """The `pending-*.safetensors` of one checkpoint's folder. The manifest does not know them: one lost is one redone.

    Args:
        folder: the checkpoint's folder.
        key: what rows depend on (weights, projections, recipe); files with another key are deleted, not read.
        channels: the store's channels.
        slot_of: a song's slot in the track table; a row kept under another slot is of a song replaced since.
    """

    def __init__(self, folder: Path, key: tp.Dict[str, tp.Any], channels: tp.Sequence[str],
                 slot_of: tp.Callable[[str], tp.Optional[int]]) -> None:
        self.key = key
        self._folder, self._channels, self._slot_of = folder, channels, slot_of
        self._file_of: tp.Dict[str, Path] = {}
        self._left: tp.Dict[Path, int] = {}
        self._next = 0

    def load(self, wanted: tp.Callable[[str], bool]) -> tp.Tuple[Rows, Marks]:
        """Take up what earlier writers saved, as far as it is `wanted`. Files of no use (any more) are deleted."""
        rows: Rows = {}
        marks: Marks = {}
        for path in sorted(self._folder.glob("pending-*.safetensors")):
            try:
                tensors, body = shards.decode(path)
                if body["key"] != self.key:
                    raise shards.Damaged(f"{path} belongs to other weights or another projection")
            except shards.Damaged as problem:
                logger.warning("%s: its songs are fingerprinted again", problem)
                files.remove([path])
                continue
            names = body["ids"]
            found = dict(zip(names, shards.unstack(tensors, self._channels, len(names)), strict=True))
            found_marks = {name: Mark(**mark) for name, mark in body["marks"].items()}
            new = [name for name in (*found, *found_marks) if name not in self._file_of
                   and self._slot_of(name) == body["slots"][name] and wanted(name)]
            rows.update({name: found[name] for name in new if name in found})
            marks.update({name: found_marks[name] for name in new if name in found_marks})
            self._next = int(path.stem.split("-")[1]) + 1
            self._register(path, new)
        return rows, marks

    def save(self, rows: Rows, marks: Marks, dim: int, dtype: torch.dtype) -> Rows:
        """Write rows and marks to one more file; returns the rows as views of it, so that memory stays free."""
        path = self._folder / f"pending-{self._next:05d}.safetensors"
        names = list(rows)
        tensors = shards.stack(list(rows.values()), self._channels, dim, dtype)
        files.write(path, shards.encode(tensors, {
            "kind": "pending", "key": self.key, "ids": names,
            "slots": {name: self._slot_of(name) for name in (*rows, *marks)},
            "marks": {name: mark.model_dump(mode="json") for name, mark in marks.items()}}))
        self._next += 1
        self._register(path, [*names, *marks])
        mapped, _ = shards.load(path)
        return dict(zip(names, shards.unstack(mapped, self._channels, len(names)), strict=True))

    def stale(self) -> tp.List[Path]:
        """Files that hold rows of songs withdrawn or replaced since, or nothing readable."""
        return [path for path in sorted(self._folder.glob("pending-*.safetensors")) if self._is_stale(path)]

    def purge(self, dim: int, dtype: torch.dtype) -> None:
        """Rewrite stale files without those rows.

        Killed in between, a song's row may be in two files, which `load` and the next `purge` put right.
        """
        for path in self.stale():
            try:
                tensors, body = shards.decode(path)
            except shards.Damaged:
                files.remove([path])
                continue
            self.key = body["key"]
            self._next = 1 + max(int(other.stem.split("-")[1]) for other in self._folder.glob("pending-*.safetensors"))
            live = {name for name, slot in body["slots"].items() if self._slot_of(name) == slot}
            rows = zip(body["ids"], shards.unstack(tensors, self._channels, len(body["ids"])), strict=True)
            marks = {name: Mark(**mark) for name, mark in body["marks"].items() if name in live}
            if live:
                self.save({name: row for name, row in rows if name in live}, marks, dim, dtype)
            files.remove([path])

    def _is_stale(self, path: Path) -> bool:
        try:
            return any(self._slot_of(name) != slot for name, slot in shards.decode(path)[1]["slots"].items())
        except shards.Damaged:
            return True

    def drop(self, names: tp.Iterable[str]) -> None:
        """Forget songs that a shard now holds; a file whose songs are all forgotten is deleted."""
        for name in names:
            path = self._file_of.pop(name, None)
            if path is not None:
                self._left[path] -= 1
                if self._left[path] == 0:
                    files.remove([path])

    def _register(self, path: Path, names: tp.Sequence[str]) -> None:
        self._file_of.update(dict.fromkeys(names, path))
        self._left[path] = len(names)
        if not names:
            files.remove([path])
