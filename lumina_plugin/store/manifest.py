"""manifest.json, the store's root: what it names exists, what it does not name is not there.

Every change of a store writes its new files beside the old ones, then replaces the manifest, then deletes the old ones:
killed anywhere, the store is the old one or the new one. The track table has its own file (see `index`), since the
manifest is rewritten after every shard and must stay small.
"""

import json
import typing as tp
from pathlib import Path

import pydantic

from ..errors import LuminaError
from .files import canonical, plain, sha256, write
from .records import FORMAT_VERSION, Manifest, TrackRecord, explain

AnyTrack = tp.Union[TrackRecord, tp.Mapping[str, tp.Any]]
MANIFEST = "manifest.json"
MEND = "restore it from a backup, or rebuild it from the shards with `lumina store rebuild`"


def version() -> str:
    """Who writes, e.g. "lumina_plugin 0.1.0"."""
    import lumina_plugin
    return f"lumina_plugin {getattr(lumina_plugin, '__version__', 'unknown')}"


def read_manifest(folder: Path) -> Manifest:
    """Read and check `<folder>/manifest.json`. Raises LuminaError: missing, damaged, of a newer or an older format."""
    path, data = folder / MANIFEST, read_root(folder)
    found = data["format_version"]
    if found < FORMAT_VERSION:
        raise LuminaError(f"{path} has store format {found}, this lumina_plugin reads {FORMAT_VERSION}; bring it up to "
                          f"date, in place, with `lumina store migrate {folder}`")
    try:
        return Manifest.model_validate(data)
    except pydantic.ValidationError as error:
        raise LuminaError(f"{path} is damaged ({explain(error)}); {MEND}") from error


def read_root(folder: Path) -> tp.Dict[str, tp.Any]:
    """manifest.json as JSON with a matching checksum, of any format up to ours. Raises LuminaError."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LuminaError(_absent(folder)) from error
    except OSError as error:
        raise LuminaError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise LuminaError(f"{path} is damaged (not JSON: {error}); {MEND}") from error
    found = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(found, int) and found > FORMAT_VERSION:
        raise LuminaError(newer(path, found))
    if not isinstance(found, int) or data.pop("sha256", None) != sha256(canonical(data)):
        raise LuminaError(f"{path} is damaged (its checksum does not match); {MEND}")
    return data


def newer(path: Path, found: int) -> str:
    """What to tell the owner of a store of format `found`."""
    return f"{path} has store format {found}, this lumina_plugin reads up to {FORMAT_VERSION}; upgrade lumina_plugin"


def _absent(folder: Path) -> str:
    if has_shards(folder):
        return f"{folder / MANIFEST} is missing although there are shards; {MEND}"
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


def validated_tracks(tracks: tp.Iterable[AnyTrack]) -> tp.List[TrackRecord]:
    """Validated tracks with distinct ids, as they will read back from disk."""
    records: tp.Dict[str, TrackRecord] = {}
    for index, track in enumerate(tracks):
        data = track.model_dump() if isinstance(track, TrackRecord) else dict(track)
        try:
            record = TrackRecord.model_validate(plain(data, f"track {index + 1} ({data.get('id')})"))
        except pydantic.ValidationError as error:
            raise LuminaError(f"track {index + 1} ({data.get('id')}) cannot be stored: {explain(error)}") from error
        if record.gone:
            raise LuminaError(f"track {index + 1} ({record.id}) cannot be stored: it is {record.status}")
        if record.id in records:
            raise LuminaError(f"two tracks have the id '{record.id}'; ids must be distinct, rename one")
        records[record.id] = record
    return list(records.values())
