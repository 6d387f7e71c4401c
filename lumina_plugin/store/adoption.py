"""Shards that are finished on disk, but not in the manifest yet.

Other processes of a pass leave them (see `part`), and so does a writer that is killed between a shard and the manifest.
Such a shard is taken up if the writer would write the very same header now: then it belongs to this store, to these
weights and projections, and its songs are those that the track table has in its place today.
"""

import typing as tp
from pathlib import Path

import pydantic

from . import files, pack, shards
from .records import Absent, CheckpointInfo, ShardInfo

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore


def adopt(store: "FingerprintStore") -> None:
    """Name such shards of all checkpoints in the manifest, on disk. Only under the lock, with the manifest read anew.

    Of two of one block the first by name is taken. What is left unnamed after this is of no use.
    """
    manifest = store.manifest
    for path in pack.shards_unnamed(store.path, manifest):
        record = manifest.find(path.parent.name)
        entry = None if record is None else _entry(store, record, path)
        if record is not None and entry is not None:
            entries = sorted([*record.shards, entry], key=lambda shard: shard.first)
            manifest = manifest.having(record.model_copy(update={"shards": entries}))
    if manifest != store.manifest:
        store.commit(manifest)


def _entry(store: "FingerprintStore", record: CheckpointInfo, path: Path) -> tp.Optional[ShardInfo]:
    """What the manifest would say of an unnamed shard, or None where it is damaged, out of date or there already."""
    try:
        _, body = shards.decode(path)
        block = store.layout.of(body["first"])
        absent = [Absent.model_validate(mark) for mark in body["absent"]]
    except (shards.Damaged, KeyError, TypeError, pydantic.ValidationError):
        return None
    if any(shard.first == block.first for shard in record.shards):
        return None
    tracks = store.table[block.first:block.first + block.span]
    expected = pack.body_of(store.manifest, record, block, tracks, absent)
    file = pack.file_of(record, block, digest := files.sha256_file(path))
    if files.canonical(body) != files.canonical(expected) or path != store.path / file:
        return None
    return pack.entry_of(file, digest, body)
