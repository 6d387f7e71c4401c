"""`FingerprintStore`: the folder as the rest of lumina_plugin sees it."""

import contextlib
import typing as tp
from pathlib import Path

import pydantic
import torch

from ..errors import LuminaError
from . import adoption, changes, compact, files, migrate, pack, repair, shards, summary, weights
from . import null as nulls
from .index import PATTERN as INDEXES
from .index import write_index
from .layout import shard_size_for
from .lock import FolderLock
from .manifest import (
    MANIFEST,
    AnyTrack,
    has_shards,
    read_manifest,
    validated_tracks,
    version,
    write_manifest,
)
from .part import StorePart
from .records import CheckpointInfo, FileRef, Identity, Manifest, ShardInfo, explain
from .tombstones import tombstones_of, write_tombstones
from .tracks import TrackView
from .writer import StoreWriter

Checkpoint = tp.Union[str, CheckpointInfo]
AnyPath = tp.Union[str, Path]
_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_REDO = "restore it from a backup, or fingerprint again into a fresh store"
_REDO_SHARD = ("restore it from a backup, or run `lumina store rebuild`, which leaves it out, and fingerprint again: "
               "only its songs are redone")


class FingerprintStore(TrackView):
    """All fingerprints made with one model architecture, codec and recipe.

        <path>/manifest.json            identity, checkpoints, shards and their SHA-256; the root of all else
               index-<digest>.arrow     the ordered track table
               withdrawn.json           songs that are gone, where there are any
               <checkpoint>/shard-00000-<digest>.safetensors      per channel C: "C" [n, D], "C.norm" [n] (fp32)
                            projection-<channel>.safetensors, weights.safetensors, finished.json
                            null-<digest>.safetensors          songs outside of the catalogue, where it was calibrated

    Make one with `create` or `open`. Songs come in the order of the track table, always; those added or replaced later
    come last. Withdrawn songs are in no answer of any method but `tombstones`.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(path, manifest)
        self._verified: tp.Set[tp.Tuple[str, str]] = set()
        self._columns: tp.Dict[tp.Tuple[str, str], torch.Tensor] = {}

    # -- making and opening -------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: AnyPath, identity: Identity, tracks: tp.Iterable[AnyTrack],
               shard_size: tp.Optional[int] = None, dtype: str = "float32", overwrite: bool = False
               ) -> "FingerprintStore":
        """Make an empty store.

        Args:
            path: the store's folder; parents are made.
            identity: what its fingerprints are made with.
            tracks: the catalogue in its order; ids must be distinct. One whose status is not "ok" gets no fingerprint.
            shard_size: songs per shard file, what a kill can cost at most; by the number of tracks unless given.
            dtype: "float32" or "float16", of the vectors.
            overwrite: delete a store that is there. Files that are no store's are never touched.

        Raises LuminaError for bad arguments, a store that is there already, or a folder that cannot be written.
        """
        path = Path(path)
        records = validated_tracks(tracks)
        if not records:
            raise LuminaError("the catalogue has no track; a store needs at least one")
        shard_size = shard_size_for(len(records)) if shard_size is None else shard_size
        try:
            manifest = Manifest.model_validate(dict(
                created_by=version(), updated_by=version(), dtype=dtype, shard_size=shard_size,
                identity=files.plain(identity.model_dump(), "the store's identity"),
                tracks=dict(file="", sha256="", count=len(records), digest="")))
        except pydantic.ValidationError as error:
            raise LuminaError(f"cannot make the store {path}: {explain(error)}") from error
        store = cls(path, manifest)
        with store.lock:
            if (cls.exists(path) or has_shards(path)) and not overwrite:
                raise LuminaError(f"{path} already holds a fingerprint store; open it to resume, choose another "
                                  "folder, or pass overwrite=True")
            repair.delete_store(path)
            table = write_index(path, records, [0], shard_size, manifest.identity.catalogue_hash)
            store.commit(manifest.model_copy(update={"tracks": table}))
        return store

    @classmethod
    def open(cls, path: AnyPath) -> "FingerprintStore":
        """Open a store for reading, or for resuming with `writer`.

        Raises LuminaError where there is none, its manifest is damaged, or it has another format than this version's.
        """
        path = Path(path)
        return cls(path, read_manifest(path))

    @staticmethod
    def exists(path: AnyPath) -> bool:
        """Whether `path` holds a store (damaged or not)."""
        return (Path(path) / MANIFEST).is_file()

    @classmethod
    def rebuild_manifest(cls, path: AnyPath) -> "FingerprintStore":
        """Write manifest.json (and the index where that is damaged) anew from the shards alone, and open the store.

        Damaged shards are left out, with a warning in the log: their checkpoint is then incomplete, and fingerprinting
        again redoes just their songs. Withdrawn songs stay withdrawn.

        Raises LuminaError where no intact shard is left, or tracks are lost for good.
        """
        path = Path(path)
        if not has_shards(path):
            raise LuminaError(f"{path} holds no shards to rebuild a manifest from; fingerprint the catalogue again")
        with FolderLock(path):
            repair.rebuild(path)
        return cls.open(path)

    @classmethod
    def migrate(cls, path: AnyPath) -> "FingerprintStore":
        """Bring a store of an older format up to date, in place, and open it; one that is up to date stays as it is.

        Killed at any moment the store is whole, in one format or the other; run it again. Raises LuminaError where the
        store is damaged or written by a newer lumina_plugin.
        """
        path = Path(path)
        if not path.is_dir():
            read_manifest(path)  # says that there is none
        with FolderLock(path):
            migrate.migrate(path)
            store = cls.open(path)
            store.tidy()
        return store

    def writer(self, checkpoint: CheckpointInfo, count: int = 1) -> StoreWriter:
        """A context manager that fills `checkpoint`, resuming it where it was begun; see `StoreWriter`.

        `count` processes share the work: the others have a `part` each. Entering it raises LuminaError where another
        process writes the store, or other weights' songs are in it.
        """
        return StoreWriter(self, checkpoint, count)

    def part(self, checkpoint: CheckpointInfo, rank: int, count: int) -> StorePart:
        """A context manager for process `rank` (from 1) of the `count` that fill `checkpoint`; see `StorePart`."""
        return StorePart(self, checkpoint, rank, count)

    # -- what is in it ------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """What the fingerprints were made with."""
        return self.manifest.identity

    @property
    def channels(self) -> tp.List[str]:
        """Channel names, in order."""
        return self.manifest.identity.channels

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored vectors."""
        return _DTYPES[self.manifest.dtype]

    @property
    def shard_size(self) -> int:
        """Songs per shard."""
        return self.manifest.shard_size

    @property
    def hash(self) -> str:
        """Hash of all content (identity, tracks, fingerprints), whichever version of anything wrote it."""
        content = self.manifest.model_dump(mode="json", exclude={
            "created_by": True, "updated_by": True, "tracks": {"file", "sha256"}})
        return files.sha256(files.canonical(content))

    @property
    def checkpoints(self) -> tp.List[CheckpointInfo]:
        """Checkpoints by epoch, complete or not."""
        return list(self.manifest.checkpoints)

    def checkpoint(self, checkpoint: Checkpoint) -> CheckpointInfo:
        """The checkpoint of that name as the manifest has it. Raises LuminaError for an unknown one."""
        name = checkpoint if isinstance(checkpoint, str) else checkpoint.name
        found = self.manifest.find(name)
        if found is None:
            known = ", ".join(c.name for c in self.checkpoints) or "none"
            raise LuminaError(f"the store {self.path} has no checkpoint '{name}'; it has: {known}")
        return found

    def info(self) -> tp.Dict[str, tp.Any]:
        """A summary for printing: plain strings, numbers, lists and dicts; `notes` are sentences about what to do."""
        return summary.info(self)

    def verify(self) -> tp.List[str]:
        """Read every byte and say what is wrong, one sentence each; empty where nothing is. Changes nothing."""
        return repair.problems(self)

    def expect(self, *, codec_hash: tp.Optional[str] = None, model_config_hash: tp.Optional[str] = None,
               recipe_hash: tp.Optional[str] = None, catalogue_hash: tp.Optional[str] = None) -> None:
        """Raise LuminaError, printing both hashes, where the store was made with something else than what is given."""
        wanted = {"codec": codec_hash, "model config": model_config_hash, "recipe": recipe_hash,
                  "catalogue": catalogue_hash}
        differing = []
        for what, yours in wanted.items():
            stored = getattr(self.identity, f"{what.replace(' ', '_')}_hash")
            if yours is not None and yours != stored:
                differing.append(f"another {what} (store: {stored}, yours: {yours})")
        if differing:
            raise LuminaError(f"the store {self.path} was made with {' and '.join(differing)}; use what the store was "
                              "made with, or fingerprint the catalogue again into a fresh store")

    # -- changing the catalogue ---------------------------------------------------------------------------------------

    def compare(self, records: tp.Iterable[AnyTrack]) -> changes.Difference:
        """How a catalogue differs from what the store holds; nothing is changed. For whoever keeps the two in step."""
        return changes.compare(self, records)

    def add_tracks(self, records: tp.Iterable[AnyTrack], catalogue_hash: tp.Optional[str] = None,
                   readmit: bool = False) -> tp.List[str]:
        """Add songs at the end of the track table; the next pass over each checkpoint fingerprints just these.

        Args:
            records: new tracks; one that the store holds already, with the same recording, is passed over.
            catalogue_hash: of the catalogue that they make up with the others; the old one stays unless given.
            readmit: also add songs that were withdrawn.
        Returns the ids added. Raises LuminaError for a withdrawn song, or one held with another recording.
        """
        return changes.add(self, records, catalogue_hash, readmit)

    def replace(self, records: tp.Iterable[AnyTrack], catalogue_hash: tp.Optional[str] = None) -> tp.List[str]:
        """Put other recordings (or other titles) in the place of songs, by id; the next pass fingerprints just these.

        The old fingerprint is not read any more, and leaves the disk by `compact`. A song that is just the same is
        passed over. Returns the ids replaced. Raises LuminaError for a song that the store does not hold.
        """
        return changes.replace(self, records, catalogue_hash)

    def describe(self, records: tp.Iterable[AnyTrack]) -> tp.List[str]:
        """Take titles, artists, codes and paths as they are now, of songs whose recording is still the same.

        No fingerprint is touched; songs with another recording and unknown ones are passed over. Returns the ids whose
        particulars changed.
        """
        return changes.describe(self, records)

    def withdraw(self, ids: tp.Iterable[str], reason: str = "") -> tp.List[str]:
        """Withdraw songs: from now on no method returns them; their fingerprints leave the disk by `compact`.

        A tombstone of each stays: id, date, `reason`; title, artist, codes and path are forgotten. Songs withdrawn
        before are passed over. Returns the ids withdrawn. Raises LuminaError for an unknown one; nothing changes then.
        """
        return changes.withdraw(self, ids, reason)

    def compact(self) -> tp.List[str]:
        """Remove from disk whatever is left of songs that are gone, and what killed writers left behind.

        Rewrites the shards that hold such songs, and no other. Killed at any moment the store is whole; run it again.
        Returns the shards rewritten.
        """
        return compact.compact(self)

    @contextlib.contextmanager
    def changing(self) -> tp.Iterator[None]:
        """Hold the lock for a change of the whole store, with the manifest as it is on disk and no litter.

        Raises LuminaError where another process writes the store, or this very object has a `writer` open.
        """
        if self.lock.held:
            raise LuminaError(f"the store {self.path} has a writer open; leave its block before the store is changed")
        with self.lock:
            self.reload()
            self.tidy()
            yield

    # -- fingerprints -------------------------------------------------------------------------------------------------

    def vectors(self, checkpoint: Checkpoint, channel: str, partial: bool = False
                ) -> tp.Tuple[tp.List[str], torch.Tensor]:
        """Ids and fingerprints [N, D] of a checkpoint, in the order of the track table.

        One shard: a view of the mapped file. Several: concatenated at the first call and kept; to stream instead, see
        `iter_vectors`. Treat the tensor as read-only.

        Raises LuminaError where a shard is damaged (each is checked against its SHA-256 at its first read), or songs
        are still missing, unless `partial` asks for what there is.
        """
        record = self.readable(checkpoint, channel, partial)
        return self._ids(record), self._column(record, channel, (0, self.identity.dim), self.dtype)

    def norms(self, checkpoint: Checkpoint, channel: str, partial: bool = False) -> torch.Tensor:
        """Raw norms before normalisation [N], fp32, in the order of `vectors`. Raises as `vectors` does."""
        record = self.readable(checkpoint, channel, partial)
        return self._column(record, f"{channel}.norm", (0,), torch.float32)

    def chunk_norms(self, checkpoint: Checkpoint, channel: str, partial: bool = False) -> tp.List[torch.Tensor]:
        """Raw norm of each chunk [chunks] of each song, fp32, in the order of `vectors`; empty where none were kept."""
        record, found = self.readable(checkpoint, channel, partial), []
        for shard in record.shards:
            rows = shards.chunk_norms(self.tensors(shard), channel, shard.count)
            found += [rows[row] for row in self.live_rows(shard)]
        return found

    def iter_vectors(self, checkpoint: Checkpoint, channel: str, partial: bool = False
                     ) -> tp.Iterator[tp.Tuple[tp.List[str], torch.Tensor]]:
        """`vectors` shard by shard: ids and a mapped [n, D] each, nothing is copied. Raises as `vectors` does."""
        record = self.readable(checkpoint, channel, partial)
        for shard in record.shards:
            yield self._shard_ids(shard), self._rows(shard, channel)

    def projection(self, checkpoint: Checkpoint, channel: str) -> tp.Tuple[shards.Tensors, tp.Dict[str, str]]:
        """Tensors and metadata as given to `StoreWriter.put_projection`; LuminaError where it is missing or damaged."""
        record = self.checkpoint(checkpoint)
        if channel not in record.projections:
            raise LuminaError(f"checkpoint '{record.name}' of {self.path} has no projection {channel}; fingerprint it "
                              "again")
        ref = record.projections[channel]
        self._check(ref, "the projection", _REDO)
        tensors, body = shards.decode(self.path / ref.file)
        return tensors, body["metadata"]

    # -- weights ------------------------------------------------------------------------------------------------------

    def save_weights(self, checkpoint: Checkpoint, state_dict: tp.Mapping[str, torch.Tensor]) -> str:
        """Write a model's weights (floats as fp32) to `<checkpoint>/weights.safetensors`; returns that relative path.

        Within a `writer` block the checkpoint learns of them by itself; done before it, pass the path on as
        `CheckpointInfo(weights=...)`. Writing the same weights again changes nothing.

        Raises LuminaError for other weights than those that committed songs were fingerprinted with.
        """
        return weights.save(self, checkpoint if isinstance(checkpoint, str) else checkpoint.name, state_dict)

    def load_weights(self, checkpoint: Checkpoint, verify: bool = True) -> shards.Tensors:
        """A checkpoint's state dict, memory-mapped; `verify` reads the file once to check its SHA-256.

        Raises LuminaError where the checkpoint stands for the live model, or the file is missing or damaged.
        """
        record = self.checkpoint(checkpoint)
        if record.weights is None:
            raise LuminaError(f"checkpoint '{record.name}' of {self.path} has no weights of its own: it is the live "
                              "model's; use the model that the store was made with")
        if verify and record.weights_sha256 is not None:
            self._check(FileRef(file=record.weights, sha256=record.weights_sha256), "the weights file", _REDO)
        try:
            return shards.load(self.path / record.weights)[0]
        except shards.Damaged as problem:
            raise LuminaError(f"the weights file {problem}; {_REDO}") from problem

    # -- outside songs ------------------------------------------------------------------------------------------------

    def save_null(self, checkpoint: Checkpoint, null: nulls.StoredNull) -> str:
        """Write the fingerprints of songs outside of the catalogue, in the place of others; returns the relative path.

        Writing the same again changes nothing. Raises LuminaError for vectors that are not finite, of the store's
        width, one per song and channel.
        """
        return nulls.save(self, checkpoint if isinstance(checkpoint, str) else checkpoint.name, null)

    def null(self, checkpoint: Checkpoint) -> tp.Optional[nulls.StoredNull]:
        """A checkpoint's outside songs, mapped; None where it has none. Raises LuminaError for a damaged file."""
        record = self.checkpoint(checkpoint)
        if record.null is None:
            return None
        mend = f"make it again with `lumina calibrate {self.path}`"
        self._check(record.null, "the null", mend)
        try:
            return nulls.read(self.path / record.null.file, self.manifest, record)
        except shards.Damaged as problem:
            raise LuminaError(f"the null {problem}; {mend}") from problem

    # -- shards, for the rest of this package -----------------------------------------------------------------------

    def readable(self, checkpoint: Checkpoint, channel: str, partial: bool) -> CheckpointInfo:
        """A checkpoint whose `channel` can be read. Raises LuminaError for an unknown or an incomplete one."""
        record = self.checkpoint(checkpoint)
        self.check_channel(channel)
        if record.covered < self.manifest.tracks.count and not partial:
            raise LuminaError(f"checkpoint '{record.name}' of {self.path} is not complete ({record.covered} of "
                              f"{self.manifest.tracks.count} songs); fingerprint again to resume it")
        return record

    def live_rows(self, shard: ShardInfo) -> tp.Dict[int, str]:
        """Rows of a shard's file that are to be read, with their ids: a tombstone's row is there until compaction."""
        absent = {mark.slot for mark in shard.absent}
        slots = [slot for slot in range(shard.first, shard.first + shard.span) if slot not in absent]
        return {row: self.table[slot].id for row, slot in enumerate(slots) if not self.table[slot].gone}

    def tensors(self, shard: ShardInfo) -> shards.Tensors:
        """All tensors of a shard, mapped; checked at their first read. Raises LuminaError for a damaged one."""
        self._check(shard, "the shard", _REDO_SHARD)
        return shards.load(self.path / shard.file)[0]

    # -- for the writer -----------------------------------------------------------------------------------------------

    def check_channel(self, channel: str) -> None:
        """Raise LuminaError for a channel that the store does not have."""
        if channel not in self.channels:
            raise LuminaError(f"the store {self.path} has no channel '{channel}', but {', '.join(self.channels)}")

    def tidy(self) -> None:
        """Take up finished shards that the manifest does not name, delete other litter. Only under the lock."""
        files.sweep(self.path)
        adoption.adopt(self)
        old = [path for path in self.path.glob(INDEXES) if path.name != self.manifest.tracks.file]
        files.remove([*old, self.path / migrate.TRACKS, *pack.unnamed(self.path, self.manifest),
                      *nulls.unnamed(self.path, self.manifest)])
        write_tombstones(self.path, tombstones_of(self.table))

    def reload(self) -> None:
        """Read the manifest again, as another process may have changed it."""
        self._adopt(read_manifest(self.path))

    def drop_checkpoint(self, name: str) -> None:
        """Remove a checkpoint with its fingerprints and weights, e.g. of an epoch that a resumed training did anew."""
        with self.lock:
            self.reload()
            self.commit(self.manifest.without(name))
            repair.delete_checkpoint(self.path / name)

    def commit(self, manifest: Manifest) -> None:
        """Make `manifest` the store's, on disk first. Only under the lock."""
        self._adopt(write_manifest(self.path, manifest))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _adopt(self, manifest: Manifest) -> None:
        if manifest.tracks != self.manifest.tracks:
            self._forget_tracks()
        self.manifest, self._slots = manifest, None
        self._columns.clear()

    def _shard_ids(self, shard: ShardInfo) -> tp.List[str]:
        return list(self.live_rows(shard).values())

    def _ids(self, record: CheckpointInfo) -> tp.List[str]:
        return [name for shard in record.shards for name in self._shard_ids(shard)]

    def _column(self, record: CheckpointInfo, name: str, empty: tp.Tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        key = (record.name, name)
        if key not in self._columns:
            parts = [self._rows(shard, name) for shard in record.shards] or [torch.empty(empty, dtype=dtype)]
            self._columns[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._columns[key]

    def _rows(self, shard: ShardInfo, name: str) -> torch.Tensor:
        """A tensor's rows of live songs: mapped where that is all of them, else copied."""
        tensor, live = self.tensors(shard)[name], self.live_rows(shard)
        return tensor if len(live) == shard.count else tensor[list(live)]

    def _check(self, ref: FileRef, what: str, mend: str) -> None:
        """Compare a file with its SHA-256, once per store object."""
        if (ref.file, ref.sha256) in self._verified:
            return
        try:
            found = files.sha256_file(self.path / ref.file)
        except OSError as error:
            self.expect_current()
            raise LuminaError(f"{what} {self.path / ref.file} cannot be read ({error.strerror}); {mend}") from error
        if found != ref.sha256:
            raise LuminaError(f"{what} {self.path / ref.file} is damaged (SHA-256 {found}, the manifest says "
                              f"{ref.sha256}); {mend}")
        self._verified.add((ref.file, ref.sha256))
