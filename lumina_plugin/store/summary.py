"""What a store holds, for printing, and what its owner should do about it."""

import collections
import typing as tp

from ..errors import LuminaError
from .compact import is_stale
from .pending import Pending
from .records import CheckpointInfo, Fit

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore

FITTED = ("fitted", "separated")  # kinds of projections that were made of the songs
STALE = 0.2  # share of songs changed since a fit, above which it should be done again


def info(store: "FingerprintStore") -> tp.Dict[str, tp.Any]:
    """See `FingerprintStore.info`."""
    statuses = [track.status for track in store.slots]
    gone = {kind: statuses.count(kind) for kind in ("withdrawn", "replaced") if kind in statuses}
    left_out: tp.Any = {"identity": {"recipe"}, "tracks": True, "checkpoints": True}
    keys = {"name", "epoch", "complete", "model_hash", "weights", "noise"}
    return {
        "path": str(store.path), "hash": store.hash, **store.manifest.model_dump(mode="json", exclude=left_out),
        "tracks": {"total": len(store.tracks), **{kind: statuses.count(kind) for kind in ("ok", "silent", "skipped")},
                   **gone},
        "checkpoints": [{**record.model_dump(mode="json", include=keys),
                         "songs": sum(len(store.live_rows(shard)) for shard in record.shards),
                         "shards": len(record.shards),
                         "outside_songs": 0 if record.null is None else record.null.songs,
                         "outside": outside_of(store, record),
                         "changed_since_fit": {channel: round(changed_share(store, ref.fit), 4)
                                               for channel, ref in record.projections.items()}}
                        for record in store.checkpoints],
        "bytes": sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()),
        "notes": notes(store),
    }


def outside_of(store: "FingerprintStore", record: CheckpointInfo) -> tp.Dict[str, int]:
    """How many outside songs of each kind a checkpoint has; of a damaged file nothing is known."""
    try:
        null = store.null(record)
    except LuminaError:
        return {}
    return {} if null is None else dict(collections.Counter(song.kind for song in null.songs))


def changes_since(store: "FingerprintStore", fit: Fit) -> tp.Tuple[int, int]:
    """Songs added and songs gone since a projection was fitted; a replaced song counts as both."""
    inside = sum(not track.gone for start, end in fit.spans for track in store.table[start:end])
    return len(store.tracks) - inside, fit.live - inside


def changed_share(store: "FingerprintStore", fit: Fit) -> float:
    """Songs added or gone since the fit, as a share of those that it was drawn from."""
    return sum(changes_since(store, fit)) / max(fit.live or fit.songs, 1)


def notes(store: "FingerprintStore") -> tp.List[str]:
    """Sentences about what there is to do; none where all is well."""
    found: tp.List[str] = []
    for record in store.checkpoints:
        if not record.complete:
            missing = sum(not track.gone for block in store.layout.blocks
                          if block.first not in {shard.first for shard in record.shards}
                          for track in store.table[block.first:block.first + block.span])
            found.append(f"Checkpoint {record.name} is not complete ({missing} songs are in no shard yet): fingerprint "
                         "again to finish it.")
        for channel, ref in record.projections.items():
            if ref.fit.kind in FITTED and changed_share(store, ref.fit) > STALE:
                added, gone = changes_since(store, ref.fit)
                found.append(f"The projection of channel {channel} of checkpoint {record.name} should be fitted again, "
                             f"by fingerprinting into a fresh store: since its fit on {ref.fit.songs} songs {added} "
                             f"were added and {gone} withdrawn or replaced ({changed_share(store, ref.fit):.0%}).")
    if has_remains(store):
        found.append("Songs that were withdrawn or replaced are still on disk: remove them with `lumina store compact "
                     f"{store.path}`.")
    return found


def has_remains(store: "FingerprintStore") -> bool:
    """Whether files still hold something of songs that are gone."""
    return any(is_stale(store, shard) for record in store.checkpoints for shard in record.shards) or any(
        Pending(store.path / record.name, {}, store.channels, store.slot_if_any).stale()
        for record in store.checkpoints)
