"""Several stores of one identity into one: e.g. of machines that fingerprinted a part of the catalogue each.

The new store is made in a folder beside its place, and gets there whole, by one rename: killed before it, nothing is
there, and the next merge begins anew. The stores merged are only read.
"""

import os
import shutil
import typing as tp
from pathlib import Path

from ..errors import LuminaError
from . import files, pack
from .folder import AnyPath, FingerprintStore
from .index import write_index
from .layout import Block
from .manifest import version
from .records import CheckpointInfo, Fit, Manifest, NullRef, ShardInfo, TrackRecord, TrackTable
from .tombstones import tombstones_of, write_tombstones

Measure = tp.Callable[[FingerprintStore, str], tp.Mapping[str, tp.Any]]


def merge(target: AnyPath, sources: tp.Sequence[AnyPath], measure: tp.Optional[Measure] = None) -> FingerprintStore:
    """Make a store of all songs of several stores, in the order given.

    Args:
        target: folder of the new store; nothing may be there.
        sources: stores with the same identity (but for the catalogue), type and checkpoints, each of these with the
            same weights and projections; no song may be in two.
        measure: gives a checkpoint's noise anew, from the merged store and the checkpoint's name. Checkpoints that are
            complete in all sources are complete in the new store.
    Raises LuminaError where the stores do not fit together, or one is damaged.
    """
    target = Path(target)
    stores = [FingerprintStore.open(source) for source in sources]
    _check_alike(stores)
    _check_songs(stores)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LuminaError(f"{target} is there already; name a folder that is not, a merge makes a new store")
    made = FingerprintStore(target.with_name(files.TEMP + target.name), stores[0].manifest)
    with made.lock:
        _clear(made.path)
        made.commit(_merged(made.path, stores))
        for record in made.checkpoints:
            if all(store.checkpoint(record).complete for store in stores):
                with made.writer(record) as writer:
                    writer.finish(measure(made, record.name) if measure is not None else None)
        with files.writing(target):
            os.replace(made.path, target)
            files.sync(target.parent)
    return FingerprintStore.open(target)


def _check_alike(stores: tp.Sequence[FingerprintStore]) -> None:
    """Raise LuminaError where two stores cannot be one."""
    if len(stores) < 2:
        raise LuminaError("a merge needs two stores or more; name them all")
    for store in stores[1:]:
        for what, key in (("identity", lambda s: s.identity.lasting()), ("type", lambda s: s.manifest.dtype),
                          ("checkpoints", lambda s: [_essence(record) for record in s.checkpoints])):
            ours, theirs = key(stores[0]), key(store)
            if ours != theirs:
                raise LuminaError(f"{stores[0].path} and {store.path} differ in their {what} "
                                  f"({_difference(ours, theirs)}); only stores made with the same model, recipe and "
                                  "projections can be merged")


def _essence(record: CheckpointInfo) -> tp.Dict[str, tp.Any]:
    """What two checkpoints must share for their vectors to stand in one table."""
    return {"name": record.name, "epoch": record.epoch, "model_hash": record.model_hash,
            "weights_sha256": record.weights_sha256,
            "projections": {channel: ref.sha256 for channel, ref in record.projections.items()}}


def _difference(ours: tp.Any, theirs: tp.Any) -> str:
    """The first thing in which two values differ, in words."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        key = next(key for key in ours if ours[key] != theirs[key])
        return f"{key}: {_difference(ours[key], theirs[key])}"
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return next(_difference(a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
    return f"{ours} against {theirs}"


def _check_songs(stores: tp.Sequence[FingerprintStore]) -> None:
    """Raise LuminaError for a song that two stores hold, or that one holds although another says it was withdrawn."""
    owner: tp.Dict[str, FingerprintStore] = {}
    for store in stores:
        for track in store.tracks:
            if track.id in owner:
                raise LuminaError(f"song '{track.id}' is in {owner[track.id].path} and in {store.path}; withdraw it "
                                  "from one of them, then merge again")
            owner[track.id] = store
    for store in stores:
        for name in store.withdrawn:
            if name in owner:
                raise LuminaError(f"song '{name}' was withdrawn from {store.path}, but {owner[name].path} holds it; "
                                  "withdraw it there, too, then merge again")


def _clear(folder: Path) -> None:
    """Delete what a killed merge left, all but the lock that we hold."""
    with files.writing(folder):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()


def _merged(folder: Path, stores: tp.Sequence[FingerprintStore]) -> Manifest:
    """Write all files but the manifest; returns it."""
    size = max(store.shard_size for store in stores)
    first = stores[0].manifest.model_copy(update={"shard_size": size})
    table: tp.List[TrackRecord] = []
    starts: tp.List[int] = []
    offsets: tp.List[int] = []
    for store in stores:
        offsets.append(len(table))
        # blocks stay as they are: where they are smaller than the largest store's, each is a batch of its own
        own = store.manifest.tracks.starts if store.shard_size == size else [b.first for b in store.layout.blocks]
        starts += [len(table) + start for start in own]
        table += store.table
    hashes = list(dict.fromkeys(store.identity.catalogue_hash for store in stores))
    catalogue_hash = hashes[0] if len(hashes) == 1 else files.sha256(files.canonical(hashes))
    write_tombstones(folder, tombstones_of(table))
    index = write_index(folder, table, starts, size, catalogue_hash)
    manifest = first.model_copy(update={
        "created_by": version(), "tracks": index, "checkpoints": [],
        "identity": first.identity.model_copy(update={"catalogue_hash": catalogue_hash})})
    for record in first.checkpoints:
        manifest = manifest.having(_checkpoint(folder, manifest, stores, offsets, record))
    return manifest


def _checkpoint(folder: Path, manifest: Manifest, stores: tp.Sequence[FingerprintStore], offsets: tp.Sequence[int],
                first: CheckpointInfo) -> CheckpointInfo:
    """A checkpoint's weights and projections from the first store, its shards from all."""
    for ref in ([first.weights] if first.weights is not None else []) + [r.file for r in first.projections.values()]:
        source = stores[0].path / ref
        files.write(folder / ref, lambda temp, source=source: shutil.copyfile(source, temp))  # type: ignore[misc]
    null = _null(folder, stores, first)
    projections = {channel: ref.model_copy(update={"fit": _fit(stores, offsets, manifest.tracks, first.name, channel)})
                   for channel, ref in first.projections.items()}
    record = first.model_copy(update={"projections": projections, "shards": [], "complete": False, "noise": {},
                                       "null": null})
    entries: tp.List[ShardInfo] = []
    count = 0
    for store, offset in zip(stores, offsets, strict=True):
        for shard in store.checkpoint(first).shards:
            block = Block(count + store.layout.of(shard.first).ordinal, shard.first, shard.span)
            entries.append(_shard(folder, manifest, record, store, offset, block, shard))
        count += len(store.layout.blocks)
    return record.model_copy(update={"shards": entries})


def _null(folder: Path, stores: tp.Sequence[FingerprintStore], first: CheckpointInfo) -> tp.Optional[NullRef]:
    """The null of the first store that has one: it was made with what all of them share."""
    for store in stores:
        ref = store.checkpoint(first).null
        if ref is not None and store.null(first) is not None:  # a damaged one is told
            source = store.path / ref.file
            files.write(folder / ref.file, lambda temp, source=source: shutil.copyfile(source, temp))  # type: ignore[misc]
            return ref
    return None


def _fit(stores: tp.Sequence[FingerprintStore], offsets: tp.Sequence[int], table: TrackTable, name: str,
         channel: str) -> Fit:
    """What the common projection was fitted on, in the merged table's slots."""
    fits = [store.checkpoint(name).projections[channel].fit for store in stores]
    spans = [(offset + start, offset + end) for fit, offset in zip(fits, offsets, strict=True)
             for start, end in fit.spans]
    return Fit(kind=fits[0].kind, songs=max(fit.songs for fit in fits), live=sum(fit.live for fit in fits), spans=spans)


def _shard(folder: Path, manifest: Manifest, record: CheckpointInfo, store: FingerprintStore, offset: int, block: Block,
           old: ShardInfo) -> ShardInfo:
    """Write a source's shard anew, `offset` slots further on."""
    tracks = store.table[block.first:block.first + block.span]
    absent = [mark.model_copy(update={"slot": mark.slot + offset}) for mark in old.absent]
    entry, data = pack.pack(manifest, record, block._replace(first=block.first + offset), tracks, store.tensors(old),
                            absent)
    files.write(folder / entry.file, data)
    return entry
