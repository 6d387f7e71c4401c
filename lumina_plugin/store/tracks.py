"""The track table as a store shows it: who is in it, who is gone, and which shard a song belongs in."""

import typing as tp
from pathlib import Path

from ..errors import LuminaError
from .index import read_index
from .layout import Layout
from .lock import FolderLock
from .manifest import read_manifest
from .records import Manifest, TrackRecord


class TrackView:
    """Base of `FingerprintStore`. Reads the index when it is first asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.lock = FolderLock(path)
        self._table: tp.Optional[tp.List[TrackRecord]] = None
        self._positions: tp.Dict[str, int] = {}
        self._layout: tp.Optional[Layout] = None
        self._slots: tp.Optional[tp.List[TrackRecord]] = None

    def _forget_tracks(self) -> None:
        self._table, self._positions, self._layout = None, {}, None

    @property
    def table(self) -> tp.List[TrackRecord]:
        """All slots of the track table as recorded: with tombstones, without the marks that writers made."""
        if self._table is None:
            try:
                self._table = read_index(self.path, self.manifest.tracks)
            except LuminaError:
                self.expect_current()
                raise
        return self._table

    @property
    def layout(self) -> Layout:
        """Which slots of the table make a shard."""
        if self._layout is None:
            tracks = self.manifest.tracks
            self._layout = Layout(tracks.starts, tracks.count, self.manifest.shard_size)
        return self._layout

    @property
    def slots(self) -> tp.List[TrackRecord]:
        """`table`, where "silent" and "skipped" are those that a writer marked so, in any checkpoint."""
        if self._slots is None:
            slots = list(self.table)
            for checkpoint in self.manifest.checkpoints:
                for mark in (mark for shard in checkpoint.shards for mark in shard.absent):
                    if not slots[mark.slot].gone:
                        slots[mark.slot] = slots[mark.slot].model_copy(
                            update={"status": mark.status, "reason": mark.reason})
            self._slots = slots
        return self._slots

    @property
    def tracks(self) -> tp.List[TrackRecord]:
        """All tracks in order, without those that are gone; their `status` is "ok", "silent" or "skipped"."""
        return [track for track in self.slots if not track.gone]

    @property
    def tombstones(self) -> tp.List[TrackRecord]:
        """What is left of withdrawn and replaced tracks: id, status, date and reason, in the table's order."""
        return [track for track in self.table if track.gone]

    @property
    def withdrawn(self) -> tp.Dict[str, TrackRecord]:
        """Tombstones of withdrawn songs by id; a song that came back, or was only replaced, is not among them."""
        return {track.id: track for track in self.tombstones
                if track.status == "withdrawn" and self.slot_if_any(track.id) is None}

    def track(self, track_id: str) -> TrackRecord:
        """The track of that id. Raises LuminaError for an unknown or a withdrawn one."""
        return self.slots[self.position(track_id)]

    def position(self, track_id: str) -> int:
        """A track's slot in the track table. Raises LuminaError for an unknown or a withdrawn one."""
        slot = self.slot_if_any(track_id)
        if slot is not None:
            return slot
        gone = self.withdrawn.get(track_id)
        if gone is not None:
            raise LuminaError(f"song '{track_id}' was withdrawn from the store {self.path} on {gone.gone_on} "
                              f"({gone.reason or 'no reason given'}); leave it out, or add it again on purpose")
        raise LuminaError(f"song '{track_id}' is not in the store {self.path}; name one of its tracks, or add it")

    def slot_if_any(self, track_id: str) -> tp.Optional[int]:
        """A track's slot, or None for an unknown or a withdrawn one."""
        if not self._positions:
            self._positions = {track.id: slot for slot, track in enumerate(self.table) if not track.gone}
        return self._positions.get(track_id)

    def by_shard(self, track_ids: tp.Iterable[str]) -> tp.List[tp.List[str]]:
        """Ids grouped by the shard that they belong in, in the track table's order.

        Batches that never cross a group's border are the same ones after an interruption, hence the same to the bit.
        """
        groups: tp.Dict[int, tp.List[str]] = {}
        for slot, name in sorted((self.position(name), name) for name in track_ids):
            groups.setdefault(self.layout.of(slot).ordinal, []).append(name)
        return list(groups.values())

    def expect_current(self) -> None:
        """Raise LuminaError where a file is not there since another process has changed the store."""
        if not self.lock.held and read_manifest(self.path) != self.manifest:
            raise LuminaError(f"the store {self.path} was changed by another process meanwhile; open it again")
