"""Looking for damage, and undoing the loss of a manifest. Works on the folder, not through `FingerprintStore`."""

import json
import logging
import typing as tp
from pathlib import Path

from ..errors import LuminaError
from . import files, migrate, pack, shards
from . import null as nulls
from .index import PATTERN as INDEXES
from .index import find_index, write_index
from .manifest import MANIFEST, newer, version, write_manifest
from .records import FORMAT_VERSION, CheckpointInfo, FileRef, Manifest, TrackRecord, TrackTable
from .tombstones import FILE as TOMBSTONES
from .tombstones import read_tombstones, tombstones_of, write_tombstones
from .writer import FINISHED

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore

logger = logging.getLogger(__name__)

Header = tp.Tuple[Path, tp.Dict[str, tp.Any], str]

_OURS = ("shard-*.safetensors", "pending-*.safetensors", "projection-*.safetensors", nulls.PATTERN,
         "weights.safetensors", FINISHED)


def problems(store: "FingerprintStore") -> tp.List[str]:
    """Everything in a store that is not as its manifest says, one sentence each."""
    folder, manifest = store.path, store.manifest
    found = _file_problem(folder, manifest.tracks)
    if not found and not tombstones_of(store.table).items() <= read_tombstones(folder).items():
        found.append(f"{folder / TOMBSTONES} is missing, damaged or incomplete; `lumina store compact` writes it anew")
    for record in manifest.checkpoints:
        refs = [*record.projections.values(), *record.shards, *([record.null] if record.null is not None else [])]
        if record.weights is not None and record.weights_sha256 is not None:
            refs.append(FileRef(file=record.weights, sha256=record.weights_sha256))
        for ref in refs:
            found += _file_problem(folder, ref)
        if record.complete and record.covered != manifest.tracks.count:
            found.append(f"checkpoint {record.name} is called complete, but covers {record.covered} of "
                         f"{manifest.tracks.count} slots")
        if record.complete and finished_noise(folder, record, manifest.tracks.count) is None:
            found.append(f"{folder / record.name / FINISHED} is missing or damaged")
    return found


def _file_problem(folder: Path, ref: FileRef) -> tp.List[str]:
    path = folder / ref.file
    try:
        digest = files.sha256_file(path)
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror})"]
    return [] if digest == ref.sha256 else [f"{path} is damaged: SHA-256 {digest}, the manifest says {ref.sha256}"]


def finished_noise(folder: Path, record: CheckpointInfo, slots: int) -> tp.Optional[tp.Dict[str, tp.Any]]:
    """The noise that `finish` recorded for just these weights and a table of so many slots, or None."""
    try:
        data = json.loads((folder / record.name / FINISHED).read_bytes())
        digest = data.pop("sha256")
        intact = digest == files.sha256(files.canonical(data)) and data["model_hash"] == record.model_hash
        return data["noise"] if intact and data["slots"] == slots else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def delete_store(folder: Path) -> None:
    """Delete a store's files, its root first, and nothing else. Only under the lock."""
    files.remove([folder / MANIFEST, folder / migrate.TRACKS, folder / TOMBSTONES, *folder.glob(INDEXES)])
    files.sweep(folder)
    for sub in [path for path in folder.glob("*") if path.is_dir()]:
        delete_checkpoint(sub)


def delete_checkpoint(sub: Path) -> None:
    """Delete a checkpoint's files in its folder, and the folder when nothing else is in it. Only under the lock."""
    ours = [path for pattern in _OURS for path in sub.glob(pattern)]
    files.remove(ours)
    if ours and not any(sub.iterdir()):
        with files.writing(sub):
            sub.rmdir()


def rebuild(folder: Path) -> Manifest:
    """Write the manifest that the intact shards in `folder` imply. See `FingerprintStore.rebuild_manifest`."""
    headers = list(_headers(folder))
    if not headers:
        raise LuminaError(f"{folder} holds no intact shard to rebuild a manifest from; fingerprint the catalogue again")
    common = _common(folder, headers)
    manifest = _with_tracks(folder, common, [body for _, body, _ in headers])
    records: tp.Dict[str, CheckpointInfo] = {}
    for path, body, digest in _without_doubles(headers):
        record = records.setdefault(path.parent.name, CheckpointInfo.model_validate(body["checkpoint"]))
        if body["checkpoint"]["model_hash"] != record.model_hash:
            raise LuminaError(f"{path} was made with other weights ({body['checkpoint']['model_hash']}) than its "
                              f"neighbours ({record.model_hash}); move it away, then rebuild again")
        shard = pack.entry_of(f"{path.parent.name}/{path.name}", digest, body)
        records[record.name] = record.model_copy(update={"shards": [*record.shards, shard]})
    for record in records.values():
        noise = finished_noise(folder, record, manifest.tracks.count)
        if noise is not None and record.covered == manifest.tracks.count:
            record = record.model_copy(update={"complete": True, "noise": noise})
        record = record.model_copy(update={"null": nulls.found(folder, manifest, record)})
        manifest = manifest.having(record)
    return write_manifest(folder, manifest)


def _headers(folder: Path) -> tp.Iterator[Header]:
    """Path, body and SHA-256 of every intact shard, by path."""
    for path in sorted(folder.glob("*/shard-*.safetensors")):
        try:
            _, body = shards.decode(path)
            yield path, body, files.sha256_file(path)
        except shards.Damaged as problem:
            logger.warning("left out of the rebuilt manifest: %s", problem)


def _common(folder: Path, headers: tp.Sequence[Header]) -> tp.Dict[str, tp.Any]:
    """What the shards say of their store. Raises LuminaError where they disagree, or their format is not ours."""
    for path, body, _ in headers:
        found = body["store" if "store" in body else "manifest"]["format_version"]  # "manifest": format 1
        if found > FORMAT_VERSION:
            raise LuminaError(newer(folder, found))
        if found < FORMAT_VERSION:
            raise LuminaError(f"{path} has store format {found}, of which a manifest cannot be rebuilt; restore "
                              f"{MANIFEST} from a backup and run `lumina store migrate`, or fingerprint again")
        if body["store"] != headers[0][1]["store"]:
            raise LuminaError(f"{path} and {headers[0][0]} come from different stores; move one of them away, then "
                              "rebuild again")
    return headers[0][1]["store"]


def _without_doubles(headers: tp.Sequence[Header]) -> tp.List[Header]:
    """One shard per block: a compaction that was killed leaves the old one beside the new one, which has fewer rows."""
    best: tp.Dict[tp.Tuple[str, int], Header] = {}
    for header in headers:
        key = header[0].parent.name, header[1]["first"]
        if key not in best or len(header[1]["ids"]) < len(best[key][1]["ids"]):
            best[key] = header
    return sorted(best.values(), key=lambda header: (header[0].parent.name, header[1]["first"]))


def _with_tracks(folder: Path, common: tp.Dict[str, tp.Any], bodies: tp.Sequence[tp.Dict[str, tp.Any]]) -> Manifest:
    """A manifest without checkpoints, whose track table is the intact index, or what the shards know of it."""
    found = find_index(folder)
    tracks, starts, catalogue_hash = found if found is not None else _tracks_of_shards(folder, bodies)
    for slot, tombstone in read_tombstones(folder).items():  # written first: the index may not know of it yet
        if slot < len(tracks):
            tracks[slot] = tombstone
    manifest = Manifest.model_validate({
        **common, "updated_by": version(), "identity": {**common["identity"], "catalogue_hash": catalogue_hash},
        "tracks": TrackTable(file="", sha256="", count=len(tracks), digest="")})
    write_tombstones(folder, tombstones_of(tracks))
    return manifest.model_copy(update={
        "tracks": write_index(folder, tracks, starts, manifest.shard_size, catalogue_hash)})


def _tracks_of_shards(folder: Path, bodies: tp.Sequence[tp.Dict[str, tp.Any]]
                      ) -> tp.Tuple[tp.List[TrackRecord], tp.List[int], str]:
    """Tracks, starts and catalogue hash from the shards' copies. Raises LuminaError where a track is in none."""
    table = max((body["table"] for body in bodies), key=lambda table: table["count"])
    tracks: tp.Dict[int, TrackRecord] = {}
    for body in bodies:
        for slot, data in enumerate(body["tracks"], start=body["first"]):
            track = TrackRecord.model_validate(data)
            if slot not in tracks or track.gone:
                tracks[slot] = track
    missing = [slot for slot in range(table["count"]) if slot not in tracks]
    if missing:
        raise LuminaError(f"the index in {folder} is damaged, and track {missing[0] + 1} of {table['count']} is in no "
                          "intact shard; restore the index from a backup, or fingerprint the catalogue again")
    return [tracks[slot] for slot in sorted(tracks)], table["starts"], table["catalogue_hash"]
