"""`withdrawn.json`: the tombstones once more, so that no repair can bring back a song whose owner has opted out.

The index holds them too. This second copy counts where manifest and index are both lost before a compaction: the shards
alone would then still know the song.
"""

import json
import logging
import typing as tp
from pathlib import Path

import pydantic

from .files import canonical, remove, sha256, write
from .records import TrackRecord

logger = logging.getLogger(__name__)

FILE = "withdrawn.json"
Tombstones = tp.Dict[int, TrackRecord]


def tombstones_of(tracks: tp.Iterable[TrackRecord]) -> Tombstones:
    """The tombstones of a track table, by slot."""
    return {slot: track for slot, track in enumerate(tracks) if track.gone}


def write_tombstones(folder: Path, found: Tombstones) -> None:
    """Put just these on disk; a store without tombstones has no such file."""
    if not found:
        remove([folder / FILE])
    elif read_tombstones(folder) != found:
        body = {str(slot): track.model_dump(mode="json", exclude_defaults=True) for slot, track in found.items()}
        write(folder / FILE, json.dumps({"sha256": sha256(canonical(body)), "slots": body}, indent=1,
                                        ensure_ascii=False).encode())


def read_tombstones(folder: Path) -> Tombstones:
    """What the file says; nothing, with a warning in the log, where it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
        if data["sha256"] != sha256(canonical(data["slots"])):
            raise ValueError("its checksum does not match")
        return {int(slot): TrackRecord.model_validate(track) for slot, track in data["slots"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pydantic.ValidationError) as error:
        logger.warning("left aside: %s is damaged (%s)", path, error)
        return {}
