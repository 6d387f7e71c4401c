"""manifest.json (the store's root: what it names exists, what it does not name is not there) and tracks.jsonl.

The track table has its own file, written once: the manifest is rewritten after every shard and must stay small.
"""

import json
import typing as tp
from pathlib import Path

import pydantic

from ..errors import LuminaError
from .files import canonical, plain, sha256, write
from .records import FORMAT_VERSION, Manifest, TrackRecord, TrackTable, explain

AnyTrack = tp.Union[TrackRecord, tp.Mapping[str, tp.Any]]
MANIFEST = "manifest.json"
TRACKS = "tracks.jsonl"
_MEND = "restore it from a backup, or rebuild it from the shards with FingerprintStore.rebuild_manifest"


def version() -> str:
    """Who writes, e.g. "lumina_plugin 0.1.0"."""
    import lumina_plugin
    return f"lumina_plugin {getattr(lumina_plugin, '__version__', 'unknown')}"


def read_manifest(folder: Path) -> Manifest:
    """Read and check `<folder>/manifest.json`. Raises LuminaError: missing, damaged, or of a newer format."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LuminaError(_absent(folder)) from error
    except OSError as error:
        raise LuminaError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise LuminaError(f"{path} is damaged (not JSON: {error}); {_MEND}") from error
    found = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise LuminaError(newer(path, found))
    if not isinstance(data, dict) or data.pop("sha256", None) != sha256(canonical(data)):
        raise LuminaError(f"{path} is damaged (its checksum does not match); {_MEND}")
    try:
        return Manifest.model_validate(data)
    except pydantic.ValidationError as error:
        raise LuminaError(f"{path} is damaged ({explain(error)}); {_MEND}") from error


def newer(path: Path, found: int) -> str:
    """What to tell the owner of a store of format `found`."""
    return f"{path} has store format {found}, this lumina_plugin reads up to {FORMAT_VERSION}; upgrade lumina_plugin"


def _absent(folder: Path) -> str:
    if has_shards(folder):
        return f"{folder / MANIFEST} is missing although there are shards; {_MEND}"
    if folder.is_dir():
        return f"{folder} is not a fingerprint store (it has no {MANIFEST}); name a folder <xp folder>/lumina/<recipe>"
    return f"there is no fingerprint store at {folder}; fingerprint a catalogue into it first, or correct the path"


def has_shards(folder: Path) -> bool:
    """Whether any checkpoint folder in `folder` holds a shard."""
    return any(folder.glob("*/shard-*.safetensors"))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Put `manifest`, marked as updated by this version, in the place of the old one; returns it as written."""
    manifest = manifest.model_copy(update={"updated_by": version()})
    data = manifest.model_dump(mode="json")
    data = {"format_version": data["format_version"], "sha256": sha256(canonical(data)), **data}
    write(folder / MANIFEST, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False).encode())
    return manifest


def write_tracks(folder: Path, tracks: tp.Sequence[TrackRecord]) -> TrackTable:
    """Write the track table, one JSON object a line."""
    data = b"".join(canonical(track.model_dump(mode="json")) + b"\n" for track in tracks)
    write(folder / TRACKS, data)
    return TrackTable(file=TRACKS, sha256=sha256(data), count=len(tracks))


def read_tracks(folder: Path, table: TrackTable) -> tp.List[TrackRecord]:
    """Read and check the track table. Raises LuminaError where it is missing or damaged."""
    path = folder / table.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LuminaError(f"cannot read the track table {path} ({error.strerror}); {_MEND}") from error
    if sha256(data) != table.sha256:
        raise LuminaError(f"the track table {path} is damaged (its SHA-256 does not match the manifest); {_MEND}")
    return [TrackRecord.model_validate_json(line) for line in data.splitlines()]


def validated_tracks(tracks: tp.Iterable[AnyTrack]) -> tp.List[TrackRecord]:
    """Validated tracks with distinct ids, as they will read back from disk."""
    records: tp.Dict[str, TrackRecord] = {}
    for index, track in enumerate(tracks):
        data = track.model_dump() if isinstance(track, TrackRecord) else dict(track)
        try:
            record = TrackRecord.model_validate(plain(data, f"track {index + 1} ({data.get('id')})"))
        except pydantic.ValidationError as error:
            raise LuminaError(f"track {index + 1} ({data.get('id')}) cannot be stored: {explain(error)}") from error
        if record.id in records:
            raise LuminaError(f"two tracks have the id '{record.id}'; ids must be distinct, rename one")
        records[record.id] = record
    if not records:
        raise LuminaError("the catalogue has no track; a store needs at least one")
    return list(records.values())
