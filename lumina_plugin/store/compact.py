"""Removing from disk what is left of songs that are gone: their rows, their chunk norms, their names in headers.

Shards are written anew beside the old ones, one checkpoint at a time, then the manifest is replaced, then the old ones
are deleted. Files are deleted, not overwritten: what a disk, a file system's snapshots or a backup keep of deleted
files is out of reach from here.
"""

import typing as tp

from . import files, pack, shards
from .layout import Block
from .pending import Pending
from .records import CheckpointInfo, Mark, ShardInfo

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore


def compact(store: "FingerprintStore") -> tp.List[str]:
    """See `FingerprintStore.compact`."""
    rewritten: tp.List[str] = []
    with store.changing():
        for record in store.checkpoints:
            Pending(store.path / record.name, {}, store.channels, store.slot_if_any).purge(
                store.identity.dim, store.dtype)
            old = [shard for shard in record.shards if is_stale(store, shard)]
            new = {shard.file: _rewrite(store, record, shard) for shard in old}
            if old:
                shards_now = [new.get(shard.file, shard) for shard in record.shards]
                store.commit(store.manifest.having(record.model_copy(update={"shards": shards_now})))
                files.remove(store.path / shard.file for shard in old)
            rewritten += [shard.file for shard in new.values()]
    return rewritten


def is_stale(store: "FingerprintStore", shard: ShardInfo) -> bool:
    """Whether a shard's file still knows more of a song that is gone than its id."""
    forgotten = {mark.slot for mark in shard.absent if mark.status in ("withdrawn", "replaced")}
    return any(store.table[slot].gone and slot not in forgotten
               for slot in range(shard.first, shard.first + shard.span))


def _rewrite(store: "FingerprintStore", record: CheckpointInfo, shard: ShardInfo) -> ShardInfo:
    """Write a shard without the songs that are gone; returns its new entry."""
    block = Block(store.layout.of(shard.first).ordinal, shard.first, shard.span)
    tracks = store.table[block.first:block.first + block.span]
    live = store.live_rows(shard)
    rows = shards.unstack(store.tensors(shard), store.channels, shard.count)
    marks: tp.Dict[str, Mark] = {store.table[mark.slot].id: mark for mark in shard.absent
                                 if not store.table[mark.slot].gone}
    tensors = shards.stack([rows[row] for row in live], store.channels, store.identity.dim, store.dtype)
    entry, data = pack.pack(store.manifest, record, block, tracks, tensors,
                            pack.absent_of(block, tracks, set(live.values()), marks))
    files.write(store.path / entry.file, data)
    return entry
