"""Bringing a store of an older format up to date, in place.

Format 1 had its track table in `tracks.jsonl`, no tombstones, no batches, and shards named by their number alone. All
files of the new format stand beside the old ones before the manifest is replaced, so that a kill leaves a whole store
of one format or of the other; what is left of the old one is deleted afterwards.
"""

import logging
import typing as tp
from pathlib import Path

from ..errors import LuminaError
from . import files, pack, shards
from .index import write_index
from .layout import Layout
from .manifest import read_root, write_manifest
from .records import FORMAT_VERSION, CheckpointInfo, Fit, Manifest, Mark, ProjectionRef, ShardInfo, TrackRecord
from .writer import FINISHED, finished_bytes

logger = logging.getLogger(__name__)

TRACKS = "tracks.jsonl"  # of format 1
Json = tp.Dict[str, tp.Any]


def migrate(folder: Path) -> None:
    """Bring the store in `folder` to our format; does nothing where it has it. Only under the lock."""
    old = read_root(folder)
    if old["format_version"] < FORMAT_VERSION:
        _from_1(folder, old)


def _from_1(folder: Path, old: Json) -> None:
    files.sweep(folder)
    files.remove(folder.glob("*/pending-*.safetensors"))  # at most one shard of songs, in the old format
    tracks = _read_tracks(folder, old["tracks"])
    table = write_index(folder, tracks, [0], old["shard_size"], old["identity"]["catalogue_hash"])
    manifest = Manifest.model_validate({**old, "format_version": FORMAT_VERSION, "tracks": table, "checkpoints": []})
    for record in old["checkpoints"]:
        manifest = manifest.having(_checkpoint(folder, manifest, tracks, record))
    write_manifest(folder, manifest)


def _read_tracks(folder: Path, table: Json) -> tp.List[TrackRecord]:
    path = folder / table["file"]
    if not files.holds(path, table["sha256"]):
        raise LuminaError(f"the track table {path} is missing or damaged; restore it from a backup, then migrate again")
    return [TrackRecord.model_validate_json(line) for line in path.read_bytes().splitlines()]


def _checkpoint(folder: Path, manifest: Manifest, tracks: tp.Sequence[TrackRecord], old: Json) -> CheckpointInfo:
    """A checkpoint with its shards written in the new format; a damaged one is left out, its songs are then redone."""
    projections = {channel: ProjectionRef(**ref, fit=_fit(folder / ref["file"], len(tracks)))
                   for channel, ref in old["projections"].items()}
    record = CheckpointInfo.model_validate({**old, "projections": projections, "shards": []})
    kept = [shard for shard in old["shards"] if _intact(folder, shard)]
    layout = Layout(manifest.tracks.starts, len(tracks), manifest.shard_size)
    record = record.model_copy(update={
        "complete": record.complete and len(kept) == len(old["shards"]),
        "shards": [_shard(folder, manifest, record, layout, tracks, shard) for shard in kept]})
    if record.complete:
        files.write(folder / record.name / FINISHED, finished_bytes(record.model_hash, record.noise, len(tracks)))
    return record


def _fit(path: Path, songs: int) -> Fit:
    """What a projection was fitted on, as far as its file says."""
    try:
        metadata = shards.decode(path)[1]["metadata"]
    except shards.Damaged:
        metadata = {}
    told = str(metadata.get("songs", ""))
    return Fit(kind=str(metadata.get("kind", "")), songs=int(told) if told.isdecimal() else songs, live=songs,
               spans=[(0, songs)])


def _intact(folder: Path, shard: Json) -> bool:
    intact = files.holds(folder / shard["file"], shard["sha256"])
    if not intact:
        logger.warning("left out: %s is missing or damaged; fingerprint again to redo its songs",
                       folder / shard["file"])
    return intact


def _shard(folder: Path, manifest: Manifest, record: CheckpointInfo, layout: Layout,
           tracks: tp.Sequence[TrackRecord], old: Json) -> ShardInfo:
    block = layout.of(old["first"])
    mine = tracks[block.first:block.first + block.span]
    marks = {name: Mark(**mark) for name, mark in old["absent"].items()}
    names = {track.id for track in mine if track.id not in marks}
    entry, data = pack.pack(manifest, record, block, mine, shards.load(folder / old["file"])[0],
                            pack.absent_of(block, mine, names, marks))
    files.write(folder / entry.file, data)
    return entry
