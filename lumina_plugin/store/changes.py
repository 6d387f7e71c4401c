"""Songs that come, change and go, without fingerprinting the others again.

All three make a new track table, and one rename of the manifest puts it in force:

| killed                                  | leaves                                                              |
|-----------------------------------------|---------------------------------------------------------------------|
| before the manifest's rename            | the old store, and files that it does not name; `tidy` deletes them |
| after it, before the old index is gone  | the new store, and the old index; the same                          |

`withdrawn.json` is written first: a rebuild from the shards alone would rather lose a song than show one that is gone.
`tidy` makes it agree with the index.
"""

import datetime
import typing as tp

from ..errors import LuminaError
from . import files
from .index import write_index
from .layout import grown
from .manifest import AnyTrack, validated_tracks
from .records import TrackRecord
from .tombstones import tombstones_of, write_tombstones

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore


def today() -> str:
    """The date, UTC, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class Difference(tp.NamedTuple):
    """A catalogue beside a store.

    Tracks that are `new`, tracks with another recording (`changed`), ids that only the store has (`missing`), and ids
    that the catalogue still names although they were `withdrawn`.
    """

    new: tp.List[TrackRecord]
    changed: tp.List[TrackRecord]
    missing: tp.List[str]
    withdrawn: tp.List[str]


def compare(store: "FingerprintStore", records: tp.Iterable[AnyTrack]) -> Difference:
    """See `FingerprintStore.compare`."""
    given, gone = {track.id: track for track in validated_tracks(records)}, store.withdrawn
    held = {track.id: store.table[slot] for track in given.values()
            for slot in [store.slot_if_any(track.id)] if slot is not None}
    return Difference(new=[track for name, track in given.items() if name not in held and name not in gone],
                      changed=[track for name, track in given.items()
                               if name in held and not _same_recording(held[name], track)],
                      missing=[track.id for track in store.tracks if track.id not in given],
                      withdrawn=[name for name in given if name in gone])


def _same_recording(ours: TrackRecord, theirs: TrackRecord) -> bool:
    """By the audio's hash; where that is not known, by all that is."""
    return ours == theirs or (ours.sha256 is not None and ours.sha256 == theirs.sha256)


def add(store: "FingerprintStore", records: tp.Iterable[AnyTrack], catalogue_hash: tp.Optional[str],
        readmit: bool) -> tp.List[str]:
    """See `FingerprintStore.add_tracks`."""
    given = validated_tracks(records)
    with store.changing():
        new = [track for track in given if not _known(store, track)]
        gone = store.withdrawn
        for track in new:
            if track.id in gone and not readmit:
                store.position(track.id)  # says when it was withdrawn, and why
        _publish(store, store.table, new, catalogue_hash)
    return [track.id for track in new]


def _known(store: "FingerprintStore", track: TrackRecord) -> bool:
    """Whether the store holds this recording. Raises LuminaError where it holds another one of that id."""
    slot = store.slot_if_any(track.id)
    if slot is not None and not _same_recording(store.table[slot], track):
        raise LuminaError(f"song '{track.id}' is in the store {store.path} already, with another recording or other "
                          "particulars; replace it, or give the new one an id of its own")
    return slot is not None


def replace(store: "FingerprintStore", records: tp.Iterable[AnyTrack],
            catalogue_hash: tp.Optional[str]) -> tp.List[str]:
    """See `FingerprintStore.replace`."""
    given = validated_tracks(records)
    with store.changing():
        changed = {store.position(track.id): track for track in given}
        changed = {slot: track for slot, track in changed.items() if store.table[slot] != track}
        table, date = list(store.table), today()
        for slot in changed:
            table[slot] = table[slot].tombstone("replaced", "", date)
        _publish(store, table, list(changed.values()), catalogue_hash)
    return [track.id for track in changed.values()]


def describe(store: "FingerprintStore", records: tp.Iterable[AnyTrack]) -> tp.List[str]:
    """See `FingerprintStore.describe`."""
    given = validated_tracks(records)
    with store.changing():
        slots = {slot: track for track in given for slot in [store.slot_if_any(track.id)] if slot is not None}
        told = {slot: track for slot, track in slots.items()
                if store.table[slot] != track and _same_recording(store.table[slot], track)}
        table = [told.get(slot, track) for slot, track in enumerate(store.table)]
        _publish(store, table, [], None)
    return [track.id for track in told.values()]


def withdraw(store: "FingerprintStore", ids: tp.Iterable[str], reason: str) -> tp.List[str]:
    """See `FingerprintStore.withdraw`."""
    wanted = list(dict.fromkeys(ids))
    with store.changing():
        gone = store.withdrawn
        slots = [store.position(name) for name in wanted if name not in gone]
        table, date = list(store.table), today()
        for slot in slots:
            table[slot] = table[slot].tombstone("withdrawn", reason, date)
        _publish(store, table, [], None)
    return [table[slot].id for slot in slots]


def _publish(store: "FingerprintStore", table: tp.Sequence[TrackRecord], new: tp.Sequence[TrackRecord],
             catalogue_hash: tp.Optional[str]) -> None:
    """Put a changed table, and `new` tracks behind it, in force. Only under the lock."""
    manifest, old = store.manifest, store.manifest.tracks
    identity = manifest.identity if catalogue_hash is None else manifest.identity.model_copy(
        update={"catalogue_hash": catalogue_hash})
    begun = {shard.first for record in manifest.checkpoints for shard in record.shards}
    starts = grown(old.starts, old.count, manifest.shard_size, begun.__contains__) if new else old.starts
    tracks = [*table, *new]
    if tracks == store.table and identity == manifest.identity:
        return
    write_tombstones(store.path, tombstones_of(tracks))
    index = write_index(store.path, tracks, starts, manifest.shard_size, identity.catalogue_hash)
    checkpoints = [record.model_copy(update={"complete": False, "noise": {}}) if new else record
                   for record in manifest.checkpoints]
    store.commit(manifest.model_copy(update={"identity": identity, "tracks": index, "checkpoints": checkpoints}))
    if index.file != old.file:
        files.remove([store.path / old.file])
