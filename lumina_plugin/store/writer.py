"""Filling one checkpoint with fingerprints, so that being killed costs at most one shard and changes no byte.

Rows whose shard is still open wait in memory. They are saved in `pending-*.safetensors` by every `flush`, and whenever
there are `shard_size` of them; the next writer takes them up from there, and the files are deleted once their shards
are written.

| killed while                       | leaves                                      | what the rerun does             |
|------------------------------------|---------------------------------------------|---------------------------------|
| rows wait in memory                | committed shards, pending files             | redoes those rows (≤ one shard) |
| between shard and manifest         | a shard that the manifest does not name     | takes it up (see `adoption`)    |
| between manifest and clean-up      | pending files of a committed shard          | deletes them                    |
| between finished.json and manifest | all shards, but a checkpoint not `complete` | calls `finish` again            |
"""

import json
import typing as tp

import torch

from ..errors import LuminaError
from . import files, pack, shards
from .filling import Filling
from .null import PATTERN as NULLS
from .pending import Pending
from .records import FORMAT_VERSION, CheckpointInfo, Fit, ProjectionRef

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore

FINISHED = "finished.json"


def finished_bytes(model_hash: str, noise: tp.Mapping[str, tp.Any], slots: int) -> bytes:
    """finished.json: which weights are through with a table of so many slots, and the noise measured."""
    body = {"model_hash": model_hash, "noise": dict(noise), "slots": slots}
    return json.dumps({**body, "sha256": files.sha256(files.canonical(body))}, indent=1, ensure_ascii=False).encode()


class StoreWriter(Filling):
    """The one writer of a store, for one checkpoint. Made by `FingerprintStore.writer`; use it as a context manager.

        with store.writer(CheckpointInfo(name="epoch-0004", epoch=4, model_hash=digest)) as writer:
            done = writer.done_ids
            for song in songs: ...  # skipping those in `done`
                writer.add(song.id, {"P": p, "M": m})
            writer.finish(noise)

    Leaving the block as it should be saves what was added; an exception drops the rows of shards that are not full, so
    that a rerun sees the very groups of songs that an undisturbed run would (see `FingerprintStore.by_shard`). Every
    method raises LuminaError where the folder cannot be written; what was committed before stays valid. Where `count`
    processes share the work this is the first one's part, see `part`.
    """

    def __init__(self, store: "FingerprintStore", info: CheckpointInfo, count: int = 1) -> None:
        super().__init__(store, info, 0, count)
        self._pending = Pending(self._folder, {}, store.channels, store.slot_if_any)

    # -- opening and closing ------------------------------------------------------------------------------------------

    def __enter__(self) -> "StoreWriter":
        self._store.lock.__enter__()
        try:
            self._store.reload()
            self._store.tidy()
            self._begin()
            self._resume()
        except BaseException:
            self._store.lock.__exit__()
            raise
        return self

    def __exit__(self, kind: tp.Any, *_: tp.Any) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._store.lock.__exit__()

    def _begin(self) -> None:
        """Register the checkpoint, or find it begun with the same weights."""
        old, info = self._store.manifest.find(self._info.name), self._info
        if old is not None:
            keys = ["epoch", "model_hash"] + ([] if info.weights is None else ["weights"])
            differing = [key for key in keys if getattr(old, key) != getattr(info, key)]
            if not differing:
                return
            if old.shards:
                key = differing[0]
                raise LuminaError(f"checkpoint '{info.name}' of {self._store.path} was begun with {key} "
                                  f"{getattr(old, key)}, now it is {getattr(info, key)}; use another checkpoint name "
                                  "or a fresh store")
            self._store.commit(self._store.manifest.without(info.name))
            files.remove(path for pattern in (pack.PATTERN, "pending-*", "projection-*", NULLS, FINISHED)
                         for path in self._folder.glob(pattern))
        weights = None if info.weights is None else self._store.path / info.weights
        digest = files.sha256_file(weights) if weights is not None and weights.is_file() else None
        self._store.commit(self._store.manifest.having(CheckpointInfo(
            name=info.name, epoch=info.epoch, model_hash=info.model_hash, weights=info.weights, weights_sha256=digest)))

    def _resume(self) -> None:
        """Learn what is settled, by pending rows too, and write what they make full."""
        self._learn()
        self._pending.key = self._key()
        rows, marks = self._pending.load(wanted=lambda name: name not in self._settled)
        self._rows.update(rows)
        self._marks.update(marks)
        for name in (*rows, *marks):
            self._settled.add(name)
            self._open[self._shard_of(name)] -= 1
        if self.begun:
            self._commit_ready()
        self._deal()

    def _key(self) -> tp.Dict[str, tp.Any]:
        """What pending rows must agree with to be taken up again."""
        record, manifest = self.checkpoint, self._store.manifest
        return {"format_version": FORMAT_VERSION, "identity": manifest.identity.lasting(),
                "model_hash": record.model_hash, "dtype": manifest.dtype,
                "projections": {channel: ref.sha256 for channel, ref in record.projections.items()}}

    # -- what is there ------------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether the checkpoint holds any fingerprint: then its projections stand, whatever songs are added."""
        return bool(self._rows) or any(shard.count for shard in self.checkpoint.shards)

    # -- filling ------------------------------------------------------------------------------------------------------

    def put_projection(self, channel: str, tensors: tp.Mapping[str, torch.Tensor],
                       metadata: tp.Optional[tp.Mapping[str, str]] = None, seen: bool = True) -> None:
        """Store a channel's projection (any tensors) before the first `add`. The same one again changes nothing.

        Args:
            channel: one of the store's. tensors: whatever makes the projection up.
            metadata: facts about it; of "kind" ("fitted" or another) and "songs" (how many the fit used) the manifest
                keeps note, to tell when it should be fitted again.
            seen: False for one that was fitted elsewhere, on other songs than this store's.

        Raises LuminaError for another one once songs are stored: their vectors would not belong to it.
        """
        self._store.check_channel(channel)
        body = {"kind": "projection", "channel": channel,
                "metadata": files.plain(dict(metadata or {}), f"the metadata of projection {channel}")}
        data = shards.encode(shards.independent(tensors), body)
        ref = ProjectionRef(file=f"{self._info.name}/projection-{channel}.safetensors", sha256=files.sha256(data),
                            fit=self._fit(body["metadata"], seen))
        record, path = self.checkpoint, self._store.path / ref.file
        if channel in record.projections and record.projections[channel].sha256 == ref.sha256:
            if not files.holds(path, ref.sha256):
                files.write(path, data)
            return
        if record.shards or self._rows:
            raise LuminaError(f"checkpoint '{record.name}' of {self._store.path} already holds fingerprints made "
                              f"without this projection {channel}; put projections before the first song, or start a "
                              "fresh store")
        others = {name: other for name, other in record.projections.items() if name != channel}
        if channel in record.projections:  # the manifest never names a file that is being replaced
            self._update(projections=others)
        files.write(path, data)
        self._update(projections=dict(sorted({**others, channel: ref}.items())))
        self._pending.key = self._key()

    def _fit(self, metadata: tp.Mapping[str, tp.Any], seen: bool) -> Fit:
        """What the manifest keeps of a projection's fit."""
        live, told = len(self._store.tracks), str(metadata.get("songs", ""))
        return Fit(kind=str(metadata.get("kind", "")), songs=int(told) if told.isdecimal() else live,
                   live=live if seen else 0, spans=[(0, self._store.manifest.tracks.count)] if seen else [])

    def flush(self) -> None:
        """Make everything added so far durable. Nothing needs it to be correct: it narrows what a kill can cost."""
        if self.begun:  # before, the projections, which headers name, may not be there yet
            self._commit_ready()
        self._save_unsaved()

    def adopt(self) -> None:
        """Take up the shards that other processes' parts have written, once they have all left off writing.

        A file that does not belong to this checkpoint as it is now is deleted, as whatever the manifest does not name.
        """
        self._store.tidy()
        named = {shard.first for shard in self.checkpoint.shards}
        for index in [index for index in self._open if self._store.layout.blocks[index].first in named]:
            self._pending.drop(self._close(index))

    def finish(self, noise: tp.Optional[tp.Mapping[str, tp.Any]] = None) -> None:
        """Mark the checkpoint complete; `noise`: per channel what was measured (any JSON). Again: changes nothing.

        Raises LuminaError while a track is neither added nor marked, or the weights that were announced are not there.
        """
        self.flush()
        left, record = sum(self._open.values()), self.checkpoint
        if left:
            first = next(track.id for track in self._store.slots if track.id not in self._settled)
            raise LuminaError(f"checkpoint '{record.name}' of {self._store.path} is not complete: {left} songs, the "
                              f"first '{first}', have neither a fingerprint nor a mark; add or mark them before finish")
        if record.weights is not None and record.weights_sha256 is None:
            raise LuminaError(f"the weights {self._store.path / record.weights} of checkpoint '{record.name}' are not "
                              "there; write them with save_weights before the first song")
        self._commit_ready()
        measured = files.plain(dict(noise or {}), "the measured noise")
        slots = self._store.manifest.tracks.count
        files.write(self._folder / FINISHED, finished_bytes(record.model_hash, measured, slots))
        self._update(complete=True, noise=measured)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _settle(self, track_id: str) -> None:
        super()._settle(track_id)
        if len(self._unsaved) >= self._store.shard_size:
            self._save_unsaved()

    def _commit_ready(self) -> None:
        """Write those shards that nobody wrote although nothing is left to settle: e.g. all of their songs are gone."""
        for index in [index for index, left in self._open.items() if left == 0]:
            self._full(index)

    def _full(self, index: int) -> None:
        """Write shard `index`, then name it in the manifest, then forget its rows."""
        shard = self._write_shard(index)
        self._update(shards=sorted([*self.checkpoint.shards, shard], key=lambda s: s.first))
        self._pending.drop(self._close(index))

    def _save_unsaved(self) -> None:
        """Write rows of open shards to a pending file, and hold them as views of it from now on."""
        if not self._unsaved and not self._unsaved_marks:
            return
        rows = {name: self._rows[name] for name in self._unsaved}
        marks = {name: self._marks[name] for name in self._unsaved_marks}
        self._rows.update(self._pending.save(rows, marks, self._store.identity.dim, self._store.dtype))
        self._unsaved.clear()
        self._unsaved_marks.clear()

    def _update(self, **changes: tp.Any) -> None:
        self._store.commit(self._store.manifest.having(self.checkpoint.model_copy(update=changes)))
