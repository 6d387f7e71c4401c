"""What a store's one writer and the parts of other processes have in common: songs settle, full shards are written.

Shard k always holds the tracks of block k of the track table (see `layout`), whatever the order in which they come and
whoever writes it: that is why an interrupted, reordered or shared pass ends with the same bytes.
"""

import typing as tp
from pathlib import Path

import torch

from ..errors import LuminaError
from . import files, pack, shards
from .records import CheckpointInfo, Mark, ShardInfo

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore


class Filling:
    """Base of `StoreWriter` and `StorePart`: rows wait in memory until their shard is full.

    Open shards, those that the manifest does not name when the block is entered, are dealt out: the k-th of them, in
    order, belongs to process k % `count`. One alone has them all.
    """

    def __init__(self, store: "FingerprintStore", info: CheckpointInfo, rank: int, count: int) -> None:
        self._store, self._info = store, info
        self._rank, self._count = rank, count
        self._folder: Path = store.path / info.name
        self._rows: tp.Dict[str, shards.Row] = {}
        self._marks: tp.Dict[str, Mark] = {}
        self._settled: tp.Set[str] = set()      # fingerprinted or marked, durable or not
        self._unsaved: tp.Dict[str, None] = {}  # fingerprints that memory alone knows, in order
        self._unsaved_marks: tp.Dict[str, None] = {}  # and such marks: many of them must not save rows of half a shard
        self._open: tp.Dict[int, int] = {}      # shard without a file -> how many of its tracks are not settled yet
        self._own: tp.Set[int] = set()          # shards that were open at the beginning, and belong to this process

    # -- what is there ------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> CheckpointInfo:
        """The checkpoint as the manifest has it now."""
        return self._store.checkpoint(self._info.name)

    @property
    def done_ids(self) -> tp.Set[str]:
        """Songs that need no work: durably stored, known to be silent or skipped, or withdrawn.

        Songs added or replaced since the last pass are not among them. A copy: ask before the loop.
        """
        return self._settled.difference(self._unsaved, self._unsaved_marks)

    @property
    def mine(self) -> tp.List[str]:
        """Songs of the shards that belong to this process, in the track table's order, those in `done_ids` included."""
        blocks = (self._store.layout.blocks[index] for index in sorted(self._own))
        return [track.id for block in blocks for track in self._store.table[block.first:block.first + block.span]
                if not track.gone]

    def projection_if_any(self, channel: str) -> tp.Optional[tp.Tuple[shards.Tensors, tp.Dict[str, str]]]:
        """Tensors and metadata of a projection that was put before this block was entered, or None."""
        return self._store.projection(self._info.name, channel) if channel in self.checkpoint.projections else None

    # -- filling ------------------------------------------------------------------------------------------------------

    def add(self, track_id: str, vectors: tp.Mapping[str, torch.Tensor],
            norms: tp.Optional[tp.Mapping[str, float]] = None,
            chunk_norms: tp.Optional[tp.Mapping[str, torch.Tensor]] = None) -> None:
        """Add a song's fingerprint; a shard that it makes full is written.

        Args:
            track_id: a track of the store that is in `mine` and not in `done_ids`.
            vectors: per channel a vector [D], copied and cast to the store's dtype.
            norms: per channel the raw norm before normalisation; by default the norm of the vector given.
            chunk_norms: per channel the raw norm of each chunk's gradient [chunks], kept as fp32.
        """
        self._check_new(track_id)
        self._rows[track_id] = shards.check_row(track_id, (vectors, norms, chunk_norms), self._store.channels,
                                                self._store.identity.dim, self._store.dtype)
        self._settle(track_id)

    def mark(self, track_id: str, status: str, reason: str = "") -> None:
        """Record that a song has no fingerprint, and why. Later checkpoints leave it out too; marking twice is fine.

        A song that belongs to another process is left to that one.
        """
        if status not in ("silent", "skipped"):
            raise LuminaError(f"song '{track_id}' cannot be marked '{status}'; a mark is 'silent' or 'skipped'")
        if track_id in self._marks or self._store.track(track_id).status != "ok" or self._foreign(track_id):
            return
        self._check_new(track_id)
        self._marks[track_id] = Mark.model_validate({"status": status, "reason": reason})
        self._settle(track_id)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Learn what is settled by committed shards, or as silent, skipped or gone."""
        committed = {shard.first for shard in self.checkpoint.shards}
        tracks = self._store.slots
        for block in self._store.layout.blocks:
            is_open = block.first not in committed
            if is_open:
                self._open[block.ordinal] = 0
            for slot in block.slots:
                track = tracks[slot]
                if self._store.slot_if_any(track.id) not in (slot, None):
                    continue  # what is left of a track that another one of its id has replaced
                if is_open and track.status == "ok":
                    self._open[block.ordinal] += 1
                    continue
                self._settled.add(track.id)
                if is_open and not track.gone:
                    self._marks[track.id] = Mark(status=track.status, reason=track.reason)

    def _deal(self) -> None:
        """Take this process's share of the open shards."""
        self._own = set(sorted(self._open)[self._rank::self._count])

    def _foreign(self, track_id: str) -> bool:
        index = self._shard_of(track_id)
        return index in self._open and index not in self._own

    def _check_new(self, track_id: str) -> None:
        self._store.position(track_id)  # raises for an unknown one
        if track_id in self._settled:
            raise LuminaError(f"song '{track_id}' is already settled in checkpoint '{self._info.name}'; skip what "
                              "done_ids names, or make a fresh store to fingerprint it again")
        if self._foreign(track_id):
            raise LuminaError(f"song '{track_id}' belongs to another process of this pass over checkpoint "
                              f"'{self._info.name}'; add just what mine names")

    def _shard_of(self, track_id: str) -> int:
        return self._store.layout.of(self._store.position(track_id)).ordinal

    def _settle(self, track_id: str) -> None:
        self._settled.add(track_id)
        (self._unsaved if track_id in self._rows else self._unsaved_marks)[track_id] = None
        index = self._shard_of(track_id)
        self._open[index] -= 1
        if self._open[index] == 0:
            self._full(index)

    def _full(self, index: int) -> None:
        """What is to be done with a shard whose tracks are all settled."""
        self._write_shard(index)
        self._close(index)

    def _write_shard(self, index: int) -> ShardInfo:
        """Write shard `index`, and nothing else; returns what the manifest is to say of it."""
        block, table = self._store.layout.blocks[index], self._store.table
        tracks = table[block.first:block.first + block.span]
        names = [track.id for track in tracks if not track.gone and track.id in self._rows]
        rows = shards.stack([self._rows[name] for name in names], self._store.channels, self._store.identity.dim,
                            self._store.dtype)
        shard, data = pack.pack(self._store.manifest, self.checkpoint, block, tracks, rows,
                                pack.absent_of(block, tracks, names, self._marks))
        files.write(self._store.path / shard.file, data)
        return shard

    def _close(self, index: int) -> tp.List[str]:
        """Forget the rows of a shard that has its file; returns its songs."""
        block = self._store.layout.blocks[index]
        del self._open[index]
        names = [track.id for track in self._store.table[block.first:block.first + block.span] if not track.gone]
        for name in names:
            self._rows.pop(name, None)
            self._marks.pop(name, None)
            self._unsaved.pop(name, None)
            self._unsaved_marks.pop(name, None)
        self._settled.update(names)
        return names
