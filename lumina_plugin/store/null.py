"""Fingerprints of songs outside of the catalogue, beside a checkpoint's own: what its chance is measured by.

`<checkpoint>/null-<digest>.safetensors` holds per channel C a tensor "C" [n, D] (fp32), and in its header the n songs
(id, kind, SHA-256 of the audio or of a generation's codes, hash of the codes), where they come from, and the weights,
recipe and projections that they were fingerprinted with. The manifest names it with its SHA-256, so that another null
makes another store hash.
"""

import typing as tp
from pathlib import Path

import pydantic
import torch

from ..errors import LuminaError
from . import files, shards
from .records import CheckpointInfo, Manifest, NullRef, Record, explain

if tp.TYPE_CHECKING:
    from .folder import FingerprintStore

PATTERN = "null-*.safetensors"
Kind = tp.Literal["recording", "generation"]
RECORDING: tp.Final = "recording"
GENERATION: tp.Final = "generation"


class OutsideRecord(Record):
    """A song outside of the catalogue, of which the first chunk with sound was fingerprinted: a recording, or what a
    model made that was trained on other songs alone."""

    id: str
    sha256: str
    codes_hash: str
    kind: Kind = RECORDING


class StoredNull(tp.NamedTuple):
    """A checkpoint's outside songs; vectors are [n, D] by channel. `origin` says in words where recordings come from,
    `generator` where generations do."""

    songs: tp.List[OutsideRecord]
    vectors: shards.Tensors
    origin: str
    generator: str = ""

    def words(self, kind: Kind) -> str:
        """Where the songs of a kind come from."""
        return self.generator if kind == GENERATION else self.origin


def save(store: "FingerprintStore", name: str, null: StoredNull) -> str:
    """See `FingerprintStore.save_null`."""
    vectors = shards.independent({channel: null.vectors[channel] for channel in store.channels}, torch.float32)
    shape = [len(null.songs), store.identity.dim]
    for channel, tensor in vectors.items():
        if list(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
            raise LuminaError(f"channel {channel} of the outside songs has shape {list(tensor.shape)} or holds NaN; "
                              f"finite {shape} is needed, so fingerprint them again")
    with store.lock:
        store.reload()
        record = store.checkpoint(name)
        body = {"kind": "null", "origin": null.origin, "generator": null.generator,
                "songs": [song.model_dump(mode="json") for song in null.songs], **_made_with(store.manifest, record)}
        data = shards.encode(vectors, body)
        digest = files.sha256(data)
        ref = NullRef(file=f"{name}/null-{digest[:8]}.safetensors", sha256=digest, songs=len(null.songs))
        if not files.holds(store.path / ref.file, digest):
            files.write(store.path / ref.file, data)
        if record.null != ref:
            store.commit(store.manifest.having(record.model_copy(update={"null": ref})))
            files.remove(path for path in (store.path / name).glob(PATTERN) if path.name != Path(ref.file).name)
    return ref.file


def _made_with(manifest: Manifest, record: CheckpointInfo) -> tp.Dict[str, tp.Any]:
    """What outside songs and songs of the catalogue must have in common, as JSON."""
    identity = manifest.identity
    return {"checkpoint": record.name, "model_hash": record.model_hash, "recipe_hash": identity.recipe_hash,
            "codec_hash": identity.codec_hash, "channels": identity.channels,
            "projections": {channel: ref.sha256 for channel, ref in sorted(record.projections.items())}}


def read(path: Path, manifest: Manifest, record: CheckpointInfo) -> StoredNull:
    """A null's file, checked by its own header. Raises shards.Damaged where it is not this checkpoint's."""
    vectors, body = shards.decode(path)
    made_with = _made_with(manifest, record)
    if {key: body.get(key) for key in made_with} != made_with:
        raise shards.Damaged(f"{path} belongs to another model, recipe or projection")
    try:
        songs = [OutsideRecord.model_validate(song) for song in body["songs"]]
    except (KeyError, TypeError, pydantic.ValidationError) as error:
        reason = explain(error) if isinstance(error, pydantic.ValidationError) else str(error)
        raise shards.Damaged(f"{path} is damaged: {reason}") from error
    return StoredNull(songs, vectors, str(body.get("origin", "")), str(body.get("generator", "")))


def found(folder: Path, manifest: Manifest, record: CheckpointInfo) -> tp.Optional[NullRef]:
    """An intact null of a checkpoint that lies in its folder: for a manifest that is made anew."""
    for path in sorted((folder / record.name).glob(PATTERN)):
        try:
            null = read(path, manifest, record)
        except shards.Damaged:
            continue
        return NullRef(file=f"{record.name}/{path.name}", sha256=files.sha256_file(path), songs=len(null.songs))
    return None


def unnamed(folder: Path, manifest: Manifest) -> tp.List[Path]:
    """Files of nulls that the manifest does not name."""
    named = {record.null.file for record in manifest.checkpoints if record.null is not None}
    return [path for path in folder.glob(f"*/{PATTERN}") if f"{path.parent.name}/{path.name}" not in named]
