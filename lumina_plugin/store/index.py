"""The track table on disk: `index-<digest>.arrow`, an Arrow IPC file with one row per slot, opened memory-mapped.

Columns: `slot`, `shard` (its number, in every checkpoint), then the fields of `TrackRecord`, `extra` as JSON text. Any
Arrow reader opens it: pyarrow, pandas, polars, DuckDB, R. A changed table gets another name: whoever reads the old one
is not disturbed, and the manifest's rename switches from one to the other. Arrow's own version may change the file's
bytes, never the digest.
"""

import hashlib
import json
import logging
import typing as tp
from pathlib import Path

from ..errors import LuminaError
from .files import canonical, sha256, sha256_file, write
from .layout import Layout
from .manifest import MEND
from .records import TrackRecord, TrackTable

logger = logging.getLogger(__name__)

PATTERN = "index-*.arrow"
_TEXTS = ("id", "title", "artist", "isrc", "iswc", "sha256", "path", "status", "reason", "gone_on")
_KEY = b"lumina"
_BATCH = 1 << 16  # rows; text of one column and batch must stay below 2 GiB


def digest_of(tracks: tp.Sequence[TrackRecord], starts: tp.Sequence[int]) -> str:
    """SHA-256 of a track table's content."""
    digest = hashlib.sha256(canonical({"starts": list(starts)}))
    for track in tracks:
        digest.update(b"\n" + canonical(track.model_dump(mode="json")))
    return digest.hexdigest()


def write_index(folder: Path, tracks: tp.Sequence[TrackRecord], starts: tp.Sequence[int], shard_size: int,
                catalogue_hash: str) -> TrackTable:
    """Write the table under the name of its content; returns what the manifest says of it."""
    digest = digest_of(tracks, starts)
    head = {"digest": digest, "starts": list(starts), "catalogue_hash": catalogue_hash}
    data = _encode(tracks, Layout(starts, len(tracks), shard_size), canonical(head))
    file = f"index-{digest[:12]}.arrow"
    write(folder / file, data)
    return TrackTable(file=file, sha256=sha256(data), count=len(tracks), starts=list(starts), digest=digest)


def read_index(folder: Path, table: TrackTable) -> tp.List[TrackRecord]:
    """Read and check the table that the manifest names. Raises LuminaError where it is missing or damaged."""
    path = folder / table.file
    try:
        intact = sha256_file(path) == table.sha256
    except OSError as error:
        raise LuminaError(f"cannot read the index {path} ({error.strerror}); {MEND}") from error
    if not intact:
        raise LuminaError(f"the index {path} is damaged (its SHA-256 does not match the manifest); {MEND}")
    return _decode(path)[0]


def find_index(folder: Path) -> tp.Optional[tp.Tuple[tp.List[TrackRecord], tp.List[int], str]]:
    """The newest intact table in `folder` with its starts and catalogue hash, judged without a manifest; None if none.

    Tables only grow, and tracks only ever turn into tombstones: of two tables the longer, then the one with more
    tombstones is the newer.
    """
    best: tp.Optional[tp.Tuple[tp.List[TrackRecord], tp.List[int], str]] = None
    for path in sorted(folder.glob(PATTERN)):
        try:
            tracks, head = _decode(path)
            if head["digest"] != digest_of(tracks, head["starts"]):
                raise ValueError("content and checksum differ")
        except Exception as error:  # whatever Arrow makes of damaged bytes
            logger.warning("left aside: the index %s is damaged (%s)", path, error)
            continue
        if best is None or _age(tracks) > _age(best[0]):
            best = tracks, head["starts"], head["catalogue_hash"]
    return best


def _age(tracks: tp.Sequence[TrackRecord]) -> tp.Tuple[int, int]:
    return len(tracks), sum(track.gone for track in tracks)


def _encode(tracks: tp.Sequence[TrackRecord], layout: Layout, head: bytes) -> bytes:
    import pyarrow as pa
    fields = [pa.field("slot", pa.int64()), pa.field("shard", pa.int32())]
    fields += [pa.field(name, pa.float64() if name == "duration" else pa.string()) for name in TrackRecord.model_fields]
    schema = pa.schema(fields, metadata={_KEY: head})
    shard_of = [block.ordinal for block in layout.blocks for _ in block.slots]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(use_threads=False)) as writer:
        for first in range(0, len(tracks), _BATCH):
            rows = tracks[first:first + _BATCH]
            columns: tp.Dict[str, tp.List[tp.Any]] = {
                "slot": list(range(first, first + len(rows))), "shard": shard_of[first:first + len(rows)],
                "duration": [track.duration for track in rows],
                "extra": [canonical(track.extra).decode() for track in rows],
                **{name: [getattr(track, name) for track in rows] for name in _TEXTS}}
            writer.write_batch(pa.record_batch([pa.array(columns[field.name], field.type) for field in schema],
                                               schema=schema))
    return sink.getvalue().to_pybytes()


def _decode(path: Path) -> tp.Tuple[tp.List[TrackRecord], tp.Dict[str, tp.Any]]:
    import pyarrow as pa
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
        head = json.loads(table.schema.metadata[_KEY])
        names = list(TrackRecord.model_fields)
        columns = [table.column(name).to_pylist() for name in names]
    tracks = []
    for values in zip(*columns, strict=True):
        data = dict(zip(names, values, strict=True))
        tracks.append(TrackRecord.model_construct(**{**data, "extra": json.loads(data["extra"])}))
    return tracks, head
