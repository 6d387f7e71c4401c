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
    gone = {mark.slot for mark in absent}
    table = {"count": manifest.tracks.count, "starts": manifest.tracks.starts,
             "catalogue_hash": manifest.identity.catalogue_hash}
    names = [track.id for slot, track in zip(block.slots, tracks, strict=True) if slot not in gone]
    data = shards.encode(tensors, {
        "kind": "shard", "first": block.first, "ids": names,
        "absent": [mark.model_dump(mode="json") for mark in absent],
        "tracks": [track.model_dump(mode="json") for track in tracks],
        "checkpoint": record.model_dump(mode="json", exclude={"shards", "complete", "noise"}),
        "table": table, "store": lasting(manifest)})
    digest = files.sha256(data)
    return ShardInfo(file=f"{record.name}/shard-{block.ordinal:05d}-{digest[:8]}.safetensors", sha256=digest,
                     first=block.first, span=block.span, count=len(names), absent=list(absent)), data


def unnamed(folder: Path, manifest: Manifest) -> tp.List[Path]:
    """Shard files that the manifest does not name, and pending rows of checkpoints that it does not name."""
    named = {shard.file for record in manifest.checkpoints for shard in record.shards}
    known = {record.name for record in manifest.checkpoints}
    return [path for path in folder.glob(f"*/{PATTERN}") if f"{path.parent.name}/{path.name}" not in named] + [
        path for path in folder.glob("*/pending-*.safetensors") if path.parent.name not in known]
