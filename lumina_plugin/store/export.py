"""Fingerprints for other tools: Parquet, `.npz` or `.npy`. Songs that are gone are in none of them."""

import shutil
import typing as tp
from pathlib import Path

import numpy as np

from ..errors import LuminaError
from . import files
from .folder import FingerprintStore
from .records import CheckpointInfo

FORMATS = ("parquet", "npz", "npy")
_FACTS = ("id", "title", "artist", "isrc", "iswc", "duration", "sha256")


def export(store: FingerprintStore, out: tp.Union[str, Path], format: str = "parquet",
           checkpoints: tp.Optional[tp.Sequence[str]] = None) -> tp.List[Path]:
    """Write the fingerprints of checkpoints into a folder; a file of the same name is replaced, whole or not at all.

        parquet  <checkpoint>.parquet: a row per song with its title, artist, codes, duration in seconds, SHA-256, and
                 per channel C `C` (fp32 [D]), `C_norm` and `C_chunk_norms`; a row group per shard
        npz      <checkpoint>.npz: `ids` [N], per channel C `C` [N, D] in the store's type and `C_norm` [N]
        npy      the same, a file each: <checkpoint>.ids.npy, <checkpoint>.C.npy, <checkpoint>.C_norm.npy; written shard
                 by shard, to be opened with `numpy.load(..., mmap_mode='r')`

    Fingerprints of outside songs, where a checkpoint has some, go with each as <checkpoint>.null.safetensors.

    Args:
        store: what to export. out: a folder, made where needed. format: one of `FORMATS`.
        checkpoints: names; all complete ones unless given.
    Returns the files written. Raises LuminaError for an unknown format, an incomplete or unknown checkpoint.
    """
    writers = {"parquet": _parquet, "npz": _npz, "npy": _npy}
    if format not in writers:
        raise LuminaError(f"'{format}' is no format to export to; choose one of {', '.join(FORMATS)}")
    records = [store.checkpoint(name) for name in checkpoints or
               [record.name for record in store.checkpoints if record.complete]]
    if not records:
        raise LuminaError(f"the store {store.path} has no complete checkpoint to export; fingerprint to the end first")
    for record in records:
        store.readable(record, store.channels[0], partial=False)
    return [path for record in records
            for path in (*writers[format](store, Path(out), record), *_null(store, Path(out), record))]


def _null(store: FingerprintStore, out: Path, record: CheckpointInfo) -> tp.List[Path]:
    """A copy of a checkpoint's outside songs, which are a file for other tools as they are."""
    if record.null is None or store.null(record) is None:
        return []
    source, path = store.path / record.null.file, out / f"{record.name}.null.safetensors"

    def copy(temp: Path) -> None:
        shutil.copyfile(source, temp)
    files.write(path, copy)
    return [path]


def _parquet(store: FingerprintStore, out: Path, record: CheckpointInfo) -> tp.List[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    facts = [pa.field(name, pa.float64() if name == "duration" else pa.string()) for name in _FACTS]
    channels = [field for channel in store.channels for field in (
        pa.field(channel, pa.list_(pa.float32(), store.identity.dim)), pa.field(f"{channel}_norm", pa.float32()),
        pa.field(f"{channel}_chunk_norms", pa.list_(pa.float32())))]
    schema = pa.schema([*facts, *channels])

    def fill(temp: Path) -> None:
        with pq.ParquetWriter(temp, schema) as writer:
            for part in _parts(store, record):
                columns = [pa.array([getattr(track, name) for track in part.tracks]) for name in _FACTS]
                for channel in store.channels:
                    flat = pa.array(part.vectors[channel].astype(np.float32).reshape(-1))
                    columns += [pa.FixedSizeListArray.from_arrays(flat, store.identity.dim),
                                pa.array(part.norms[channel]), pa.array([list(c) for c in part.chunks[channel]])]
                writer.write_table(pa.table([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema))

    path = out / f"{record.name}.parquet"
    files.write(path, fill)
    return [path]


class _Part(tp.NamedTuple):
    """Live songs of one shard: tracks, and per channel vectors [n, D], norms [n] and chunk norms (n of [chunks])."""

    tracks: tp.List[tp.Any]
    vectors: tp.Dict[str, np.ndarray]
    norms: tp.Dict[str, np.ndarray]
    chunks: tp.Dict[str, tp.List[np.ndarray]]


def _parts(store: FingerprintStore, record: CheckpointInfo) -> tp.Iterator[_Part]:
    from .shards import chunk_norms
    for shard in record.shards:
        tensors, live = store.tensors(shard), store.live_rows(shard)
        rows = list(live)
        chunks = {channel: chunk_norms(tensors, channel, shard.count) for channel in store.channels}
        yield _Part([store.track(name) for name in live.values()],
                    {channel: tensors[channel].numpy()[rows] for channel in store.channels},
                    {channel: tensors[f"{channel}.norm"].numpy()[rows] for channel in store.channels},
                    {channel: [chunks[channel][row].numpy() for row in rows] for channel in store.channels})


def _npz(store: FingerprintStore, out: Path, record: CheckpointInfo) -> tp.List[Path]:
    arrays = {"ids": np.array(store.vectors(record, store.channels[0])[0])}
    for channel in store.channels:
        arrays[channel] = store.vectors(record, channel)[1].numpy()
        arrays[f"{channel}_norm"] = store.norms(record, channel).numpy()

    def fill(temp: Path) -> None:
        with open(temp, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    path = out / f"{record.name}.npz"
    files.write(path, fill)
    return [path]


def _npy(store: FingerprintStore, out: Path, record: CheckpointInfo) -> tp.List[Path]:
    ids = np.array([track.id for part in _parts(store, record) for track in part.tracks])

    def save(array: np.ndarray) -> tp.Callable[[Path], None]:
        def fill(temp: Path) -> None:
            with open(temp, "wb") as stream:
                np.save(stream, array)
        return fill

    def stream_vectors(channel: str) -> tp.Callable[[Path], None]:
        def fill(temp: Path) -> None:
            kind = np.dtype(str(store.dtype).removeprefix("torch."))
            array = np.lib.format.open_memmap(temp, mode="w+", dtype=kind, shape=(len(ids), store.identity.dim))
            row = 0
            for part in _parts(store, record):
                array[row:row + len(part.tracks)] = part.vectors[channel]
                row += len(part.tracks)
            array.flush()
        return fill

    wanted = {"ids": save(ids)}
    for channel in store.channels:
        wanted[channel] = stream_vectors(channel)
        wanted[f"{channel}_norm"] = save(store.norms(record, channel).numpy())
    for name, fill in wanted.items():
        files.write(out / f"{record.name}.{name}.npy", fill)
    return [out / f"{record.name}.{name}.npy" for name in wanted]
