"""Looking for damage, and undoing the loss of a manifest. Works on the folder, not through `FingerprintStore`."""

import json
import logging
import typing as tp
from pathlib import Path

from ..errors import LuminaError
from . import files, shards
from .manifest import MANIFEST, TRACKS, newer, read_tracks, version, write_manifest, write_tracks
from .records import FORMAT_VERSION, CheckpointInfo, FileRef, Manifest, ShardInfo, TrackRecord
from .writer import FINISHED

logger = logging.getLogger(__name__)

_OURS = ("shard-*.safetensors", "pending-*.safetensors", "projection-*.safetensors", "weights.safetensors", FINISHED)


def problems(folder: Path, manifest: Manifest) -> tp.List[str]:
    """Everything in a store that is not as its manifest says, one sentence each."""
    found = _file_problem(folder, FileRef(file=manifest.tracks.file, sha256=manifest.tracks.sha256))
    for record in manifest.checkpoints:
        refs = [*record.projections.values(), *record.shards]
        if record.weights is not None and record.weights_sha256 is not None:
            refs.append(FileRef(file=record.weights, sha256=record.weights_sha256))
        for ref in refs:
            found += _file_problem(folder, ref)
        if record.complete and record.covered != manifest.tracks.count:
            found.append(f"checkpoint {record.name} is called complete, but covers {record.covered} of "
                         f"{manifest.tracks.count} tracks")
        if record.complete and _finished(folder, record) is None:
            found.append(f"{folder / record.name / FINISHED} is missing or damaged")
    return found


def _file_problem(folder: Path, ref: FileRef) -> tp.List[str]:
    path = folder / ref.file
    try:
        digest = files.sha256_file(path)
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror})"]
    return [] if digest == ref.sha256 else [f"{path} is damaged: SHA-256 {digest}, the manifest says {ref.sha256}"]


def _finished(folder: Path, record: CheckpointInfo) -> tp.Optional[tp.Dict[str, tp.Any]]:
    """The noise that `finish` recorded for just these weights, or None."""
    try:
        data = json.loads((folder / record.name / FINISHED).read_bytes())
        digest = data.pop("sha256")
        intact = digest == files.sha256(files.canonical(data)) and data["model_hash"] == record.model_hash
        return data["noise"] if intact else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def delete_store(folder: Path) -> None:
    """Delete a store's files, its root first, and nothing else. Only under the lock."""
    files.remove([folder / MANIFEST, folder / TRACKS])
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
    first = headers[0][1]["manifest"]
    for path, body, _ in headers:
        if body["manifest"] != first:
            raise LuminaError(f"{path} and {headers[0][0]} come from different stores; move one of them away, then "
                              "rebuild again")
    if first["format_version"] > FORMAT_VERSION:
        raise LuminaError(newer(folder, first["format_version"]))
    manifest = Manifest.model_validate({**first, "checkpoints": [], "updated_by": version()})
    _restore_tracks(folder, manifest, [body for _, body, _ in headers])
    records: tp.Dict[str, CheckpointInfo] = {}
    for path, body, digest in headers:
        record = records.setdefault(path.parent.name, CheckpointInfo.model_validate(body["checkpoint"]))
        if body["checkpoint"]["model_hash"] != record.model_hash:
            raise LuminaError(f"{path} was made with other weights ({body['checkpoint']['model_hash']}) than its "
                              f"neighbours ({record.model_hash}); move it away, then rebuild again")
        shard = ShardInfo(file=f"{path.parent.name}/{path.name}", sha256=digest, first=body["first"],
                          span=len(body["tracks"]), count=len(body["ids"]), absent=body["absent"])
        records[record.name] = record.model_copy(update={"shards": [*record.shards, shard]})
    for record in records.values():
        noise = _finished(folder, record)
        if noise is not None and record.covered == manifest.tracks.count:
            record = record.model_copy(update={"complete": True, "noise": noise})
        manifest = manifest.having(record)
    return write_manifest(folder, manifest)


def _headers(folder: Path) -> tp.Iterator[tp.Tuple[Path, tp.Dict[str, tp.Any], str]]:
    """Path, body and SHA-256 of every intact shard, by path."""
    for path in sorted(folder.glob("*/shard-*.safetensors")):
        try:
            _, body = shards.decode(path)
            yield path, body, files.sha256_file(path)
        except shards.Damaged as problem:
            logger.warning("left out of the rebuilt manifest: %s", problem)


def _restore_tracks(folder: Path, manifest: Manifest, bodies: tp.Sequence[tp.Dict[str, tp.Any]]) -> None:
    """Make sure that the track table is there, from the shards' copies if need be."""
    try:
        read_tracks(folder, manifest.tracks)
        return
    except LuminaError as error:
        logger.warning("%s", error)
    tracks: tp.Dict[int, TrackRecord] = {}
    for body in bodies:
        for index, track in enumerate(body["tracks"], start=body["first"]):
            tracks[index] = TrackRecord.model_validate(track)
    missing = [index for index in range(manifest.tracks.count) if index not in tracks]
    if missing:
        raise LuminaError(f"{folder / manifest.tracks.file} is damaged, and track {missing[0] + 1} of "
                          f"{manifest.tracks.count} is in no intact shard; restore the file from a backup, or "
                          "fingerprint the catalogue again")
    if write_tracks(folder, [tracks[index] for index in sorted(tracks)]) != manifest.tracks:
        raise LuminaError(f"the shards in {folder} disagree about the tracks; restore {manifest.tracks.file} from a "
                          "backup")
