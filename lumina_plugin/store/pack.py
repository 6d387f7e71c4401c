"""One committed shard: from rows to the bytes of its file, and to its entry in the manifest.

A shard's header repeats its tracks, its checkpoint and the store's identity, so that the manifest can be made anew from
the shards alone. Its name ends in the first digits of its SHA-256: rewriting a shard makes a file beside the old one.
"""

import typing as tp
from pathlib import Path

from . import files, shards
from .layout import Block
from .records import Absent, CheckpointInfo, Manifest, Mark, ShardInfo, TrackRecord

PATTERN = "shard-*.safetensors"


def lasting(manifest: Manifest) -> tp.Dict[str, tp.Any]:
    """What all shards of a store have in common, as JSON."""
    return {"format_version": manifest.format_version, "created_by": manifest.created_by,
            "identity": manifest.identity.lasting(), "dtype": manifest.dtype, "shard_size": manifest.shard_size}


def absent_of(block: Block, tracks: tp.Sequence[TrackRecord], names: tp.Collection[str],
              marks: tp.Mapping[str, Mark]) -> tp.List[Absent]:
    """Slots of a block without a row. `tracks`: those of the block; `names`: with a row; `marks`: why others have none.

    A tombstone's reason stands in the index alone.
    """
    absent = []
    for slot, track in zip(block.slots, tracks, strict=True):
        if track.gone:
            absent.append(Absent(slot=slot, status=track.status))
        elif track.id not in names:
            absent.append(Absent(slot=slot, status=marks[track.id].status, reason=marks[track.id].reason))
    return absent


def pack(manifest: Manifest, record: CheckpointInfo, block: Block, tracks: tp.Sequence[TrackRecord],
         tensors: shards.Tensors, absent: tp.Sequence[Absent]) -> tp.Tuple[ShardInfo, bytes]:
    """Entry and bytes of a block's shard.

    Args:
        manifest: the store's. record: the checkpoint's. block: the shard's slots. tracks: one for each of them.
        tensors: per channel C "C" [n, D] and "C.norm" [n], perhaps chunk norms; rows are the slots not `absent`.
    """
    body = body_of(manifest, record, block, tracks, absent)
    data = shards.encode(tensors, body)
    digest = files.sha256(data)
    return entry_of(file_of(record, block, digest), digest, body), data


def body_of(manifest: Manifest, record: CheckpointInfo, block: Block, tracks: tp.Sequence[TrackRecord],
            absent: tp.Sequence[Absent]) -> tp.Dict[str, tp.Any]:
    """What the header of a block's shard says, as JSON. Arguments as for `pack`."""
    gone = {mark.slot for mark in absent}
    table = {"count": manifest.tracks.count, "starts": manifest.tracks.starts,
             "catalogue_hash": manifest.identity.catalogue_hash}
    return {"kind": "shard", "first": block.first,
            "ids": [track.id for slot, track in zip(block.slots, tracks, strict=True) if slot not in gone],
            "absent": [mark.model_dump(mode="json") for mark in absent],
            "tracks": [track.model_dump(mode="json") for track in tracks],
            "checkpoint": record.model_dump(mode="json", exclude={"shards", "complete", "noise", "null"}),
            "table": table, "store": lasting(manifest)}


def file_of(record: CheckpointInfo, block: Block, digest: str) -> str:
    """Path of a block's shard, relative to the store's folder."""
    return f"{record.name}/shard-{block.ordinal:05d}-{digest[:8]}.safetensors"


def entry_of(file: str, digest: str, body: tp.Mapping[str, tp.Any]) -> ShardInfo:
    """What the manifest says of a shard's file, by its header's `body`."""
    return ShardInfo(file=file, sha256=digest, first=body["first"], span=len(body["tracks"]), count=len(body["ids"]),
                     absent=body["absent"])


def shards_unnamed(folder: Path, manifest: Manifest) -> tp.List[Path]:
    """Shard files that the manifest does not name, by path."""
    named = {shard.file for record in manifest.checkpoints for shard in record.shards}
    return sorted(path for path in folder.glob(f"*/{PATTERN}") if f"{path.parent.name}/{path.name}" not in named)


def unnamed(folder: Path, manifest: Manifest) -> tp.List[Path]:
    """Shard files that the manifest does not name, and pending rows of checkpoints that it does not name."""
    known = {record.name for record in manifest.checkpoints}
    return shards_unnamed(folder, manifest) + [
        path for path in folder.glob("*/pending-*.safetensors") if path.parent.name not in known]
